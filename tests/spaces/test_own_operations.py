"""Operations of plug-ins: look-up, equality with the operation by itself, broken contracts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.layers import Source
from spaces.core.mixture import Mixture
from spaces.core.operations import PARAMETER_FREE, build_operation, without_weights
from spaces.core.space import Space
from spaces.core.supernet import CellMixture
from tests.spaces.helpers import give_weights, one_hot, space_of
from tests.spaces.pairs import batch, close, mixture_of

GOOD = '''
"""Scaled convolution, and shifts."""
import torch
from torch import nn
from torch.nn import functional
from spaces.core.layers import BatchNorm

SOURCE = "a test"
EXPORTS = {"scaled_conv": "Convolution of a scaled image.", "shift": "A shifted image."}

class Scaled(nn.Module):
    def __init__(self, channels, stride, affine):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1)
        self.norm = BatchNorm(channels, affine=affine)

    def forward(self, x, norm):
        return self.norm(self.conv(torch.tanh(x)), norm)

class Shift(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x, norm):
        return x.roll(1, 2)[:, :, :: self.stride, :: self.stride]

def build(name, channels, *, stride, affine):
    return Shift(stride) if name == "shift" else Scaled(channels, stride, affine)
'''
NAMES = ("scaled_conv", "skip_connect", "shift")
SETTINGS = {"name": "custom", "channels": 4, "nodes": 2, "operations": [*NAMES], "keep": 1}
SETTINGS |= {"cells": 2, "reductions": [1], "network_channels": 4, "network_cells": 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "operations").mkdir()
    (tmp_path / "operations" / "own.py").write_text(GOOD)
    monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def space(folder: Path) -> Space:
    return space_of(SETTINGS)


def test_operations_are_found_and_described_without_an_import(folder: Path) -> None:
    assert {"scaled_conv", "shift", *PARAMETER_FREE} <= set(plugins.available("operations"))
    info = plugins.describe("operations", "shift")
    assert (info.summary, info.source) == ("A shifted image.", "a test")
    assert [name for name in NAMES if without_weights(name)] == ["skip_connect", "shift"]
    with pytest.raises(SpaceError, match=r"no operation 'scaled'. Did you mean 'scaled_conv'"):
        build_operation("scaled", 4, stride=1, affine=True)
    with pytest.raises(SpaceError, match="no operation 'none'"):
        build_operation("none", 4, stride=1, affine=True)


def test_every_shipped_operation_is_described() -> None:
    for name in plugins.available("operations"):
        if name != "none":
            for stride in (1, 2):
                module = build_operation(name, 4, stride=stride, affine=True)
                generator = [torch.Generator()] if name == "noise" else []
                out = module(Source(torch.zeros(2, 4, 7, 8)), "batch", *generator)
                assert out.shape == ((2, 4, 7, 8) if stride == 1 else (2, 4, 4, 4))


def test_an_edge_weighs_what_the_operation_gives(space: Space) -> None:
    engine = space.build_supernet(3, 5, seed=1).double()
    cell = engine.trunk.layers[1]
    images = torch.randn(
        2, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    sources = [Source(images), Source(2.0 * images)]
    weights = mixture_of(engine, ()).op_weights["reduction"].requires_grad_()
    out = cell(sources, CellMixture(weights, None, None, None, None).scales(8), "batch")
    # Node by node: 0 and 1 are inputs at stride 2; rows are 0 -> 2, 1 -> 2, 0 -> 3, 1 -> 3, 2 -> 3.
    nodes = [images, 2.0 * images]
    for rows in (((0, 0), (1, 1)), ((0, 2), (1, 3), (2, 4))):
        total: Tensor | float = 0.0
        for source, row in rows:
            mix = cell.mixes[cell.place_of_mix[source]]
            place = mix.rows.index(row)
            x, stride = nodes[source], 2 if source < 2 else 1
            own = mix.edge_operations["scaled_conv"][place].module
            conv = functional.conv2d(torch.tanh(x), own.conv.weight, own.conv.bias, stride, 1)
            scaled = functional.batch_norm(conv, None, None, training=True)
            shifted = x.roll(1, 2)[:, :, ::stride, ::stride]
            skipped = (
                x if stride == 1 else mix.edge_operations["skip_connect"][place](Source(x), "batch")
            )
            for weight, term in zip(weights[row], (scaled, skipped, shifted), strict=True):
                total = total + weight * term
        nodes.append(total)
    expected = torch.cat(nodes[2:], 1)
    assert close(out, expected)
    probe = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = (
        torch.autograd.grad((x * probe).sum(), weights, retain_graph=True)[0]
        for x in (out, expected)
    )
    assert close(ours, theirs)


def test_a_one_hot_supernet_is_the_network(space: Space) -> None:
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        shapes = space.alpha_shapes().items()
        genotype = space.discretize({k: torch.rand(s, generator=generator) for k, s in shapes})
        supernet = space.build_supernet(3, 5, seed=1).double()
        network = space.build_network(genotype, 3, 5).double().eval()
        give_weights(supernet, network)
        images, _ = batch()
        mixture = Mixture(one_hot(space, genotype, torch.float64))
        assert close(supernet(images, mixture, norm="running"), network(images)[0])
    assert space.parameter_free == {"skip_connect", "shift"}


BROKEN = [
    ("x.roll(1, 2)[:, :, :: self.stride, :: self.stride]", "x.roll(1, 2)",
     r"'shift' at stride 2 must map \(2, 4, 8, 8\) to \(2, 4, 4, 4\), got \(2, 4, 8, 8\)"),
    ("x.roll(1, 2)[:", "torch.rand_like(x)[:", "'shift' at stride 1 must give the same twice"),
    ("def forward(self, x, norm):\n        return x.roll",
     "def forward(self, x):\n        return x.roll",
     r"must map images \(2, 4, 8, 8\) by forward\(x, norm\), got TypeError"),
    ("self.stride = stride", "self.stride = stride; self.n = nn.BatchNorm2d(4)",
     "'shift' must have no BatchNorm2d.*take spaces.core.layers.BatchNorm"),
    ("self.stride = stride", "self.stride = stride; self.n = nn.Dropout()", "have no Dropout"),
    ("def build(name, channels, *, stride, affine)", "def build(name, channels)",
     r"own.py: build\('scaled_conv', 4, stride=1, affine=False\) must return .*TypeError"),
    ("return Shift(stride) if", "return None if", "build must return a torch module, got None"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_what_does_not_keep_the_contract_is_refused(
    folder: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    plugins.load("operations", "shift")
    del sys.modules["nas_plugins.operations.own"]
    (folder / "operations" / "own.py").write_text(GOOD.replace(old, new))
    try:
        with pytest.raises(SpaceError, match=message):
            space_of(SETTINGS)
    finally:
        sys.modules.pop("nas_plugins.operations.own", None)


def test_an_operation_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(
        PluginSettingsError, match=r"operations\[0\] must be .* Did you mean 'shift'"
    ):
        space_of({**SETTINGS, "operations": ["shif", "skip_connect"]})
