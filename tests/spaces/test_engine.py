"""The engine against the op-by-op reference, in float64."""

from __future__ import annotations

import copy
import functools
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.supernets import (
    DARTS_OPS,
    DartsReference,
    NasBench201Reference,
    copy_weights,
    matched,
)
from spaces.core.errors import SpaceError
from spaces.core.mixture import Mixture, Norm
from spaces.core.space import Space
from spaces.core.supernet import Supernet
from tests.spaces.helpers import give_weights, one_hot, space_of

TOLERANCE = 1e-10
CASES = {
    "nasbench201": {"name": "nasbench201", "channels": 3, "cells_per_stage": 2},
    "darts": {"name": "darts", "channels": 3, "cells": 4},
    "darts7": {"name": "darts", "channels": 2, "cells": 3, "operations": 7},
}


def pair_of(case: str) -> tuple[Space, Supernet, nn.Module]:
    """Return a space, its supernet in float64 with uneven statistics, and the equal reference."""
    space, engine, reference, states = _built(case)
    for net, state in zip((engine, reference), states, strict=True):
        net.double().load_state_dict(state)
        net.zero_grad()
    return space, engine, reference


@functools.cache
def _built(case: str) -> tuple[Space, Supernet, nn.Module, list[dict[str, Tensor]]]:
    # Building thousands of modules takes longer than a pass: once for all tests.
    space = space_of(CASES[case])
    engine = space.build_supernet(3, 5, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in (*engine.named_buffers(), *engine.named_parameters()):
            if "norm" in name:
                value.uniform_(0.5, 1.5, generator=generator)
    reference = reference_of(case, space)
    copy_weights(engine, reference)
    return space, engine, reference, [copy.deepcopy(n.state_dict()) for n in (engine, reference)]


def reference_of(case: str, space: Space) -> nn.Module:
    config = space.config
    if case == "nasbench201":
        return NasBench201Reference(config.channels, config.cells_per_stage, 3, 5).double()
    names = DARTS_OPS[-config.operations :]
    return DartsReference(config.channels, config.cells, 3, 5, names).double()


def batch(side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64)
    return images, torch.tensor([0, 1, 4, 2])


def op_weights_of(space: Space, engine: Supernet, *, per_cell: bool) -> dict[str, Tensor]:
    """Return op weights off the simplex, of both signs: the forward promises any finite values."""
    generator = torch.Generator().manual_seed(4)
    shapes = {
        name: (engine.num_cells[name], *shape) if per_cell else shape
        for name, shape in space.alpha_shapes().items()
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def close(ours: Tensor, theirs: Tensor) -> bool:
    return (ours - theirs).abs().max().item() <= TOLERANCE * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize(
    ("case", "norm", "per_cell", "side"),
    [
        *((case, norm, False, 8) for case in ("nasbench201", "darts") for norm in get_args(Norm)),
        ("nasbench201", "batch", True, 8),
        ("darts", "batch_and_update", True, 8),
        ("darts7", "batch", False, 8),
        ("darts7", "batch", False, 12),  # 3x3 after two reductions: no phases
    ],
)
def test_engine_equals_the_reference(case: str, norm: Norm, per_cell: bool, side: int) -> None:
    space, engine, reference = pair_of(case)
    reference.train(norm != "running")
    images, labels = batch(side)
    mine = op_weights_of(space, engine, per_cell=per_cell)
    plain = op_weights_of(space, engine, per_cell=per_cell)
    before = {name: value.clone() for name, value in engine.named_buffers()}

    logits = engine(images, Mixture(mine), norm=norm)
    expected = reference(images, plain)
    functional.cross_entropy(logits, labels).backward()
    functional.cross_entropy(expected, labels).backward()

    assert close(logits, expected)
    for name, weights in mine.items():
        assert close(weights.grad, plain[name].grad), name
    parts = list(matched(engine, reference))
    for name, ours, rows, theirs in parts:
        if isinstance(ours, nn.Parameter):
            assert close(ours.grad[rows], theirs.grad), name
        elif norm == "batch_and_update":
            assert close(ours[rows], theirs), name
    if norm != "batch_and_update":
        assert all(torch.equal(value, before[name]) for name, value in engine.named_buffers())
    else:
        assert not any(torch.equal(value, before[name]) for name, value in engine.named_buffers())


@pytest.mark.parametrize("case", CASES)
def test_float32_logits_are_close_to_float64(case: str) -> None:
    space, engine, _ = pair_of(case)
    images, _ = batch()
    op_weights = op_weights_of(space, engine, per_cell=False)
    exact = engine(images, Mixture(op_weights))
    engine.float()
    single = engine(images.float(), Mixture({k: v.float() for k, v in op_weights.items()}))
    assert (single.double() - exact).abs().max().item() < 1e-4 * exact.abs().max().item()


GENOTYPES = {
    "nasbench201": "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|"
    "nor_conv_3x3~2|",
    "darts": "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_5x5', 1), ('skip_connect', 0), "
    "('dil_conv_3x3', 2), ('dil_conv_5x5', 1), ('max_pool_3x3', 3), ('avg_pool_3x3', 0), "
    "('sep_conv_3x3', 4)], normal_concat=range(2, 6), reduce=[('skip_connect', 0), "
    "('max_pool_3x3', 1), ('avg_pool_3x3', 0), ('sep_conv_5x5', 1), ('dil_conv_5x5', 0), "
    "('skip_connect', 2), ('sep_conv_3x3', 1), ('dil_conv_3x3', 4)], "
    "reduce_concat=range(2, 6))",
}


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("case", GENOTYPES)
def test_one_hot_op_weights_equal_the_built_network(case: str, norm: Norm) -> None:
    space = space_of(CASES[case])
    genotype = space.parse(GENOTYPES[case])
    supernet = space.build_supernet(3, 5, seed=1).double()
    with torch.no_grad():
        for name, value in supernet.named_buffers():
            value.uniform_(0.5, 1.5) if "running" in name else None
    sizes = {"channels": space.config.channels, "cells": depth_of(space)}
    network = space.build_network(genotype, 3, 5, **sizes, seed=7).double()
    give_weights(supernet, network)
    network.train(norm == "batch")
    images, _ = batch()

    logits = supernet(images, Mixture(one_hot(space, genotype, torch.float64)), norm=norm)
    expected, auxiliary = network(images)

    assert auxiliary is None
    assert close(logits, expected)
    assert logits.abs().max().item() > 1e-3


def depth_of(space: Space) -> int:
    config = space.config
    return config.cells_per_stage if space.name == "nasbench201" else config.cells


@pytest.mark.parametrize("case", ["nasbench201", "darts"])
def test_two_updating_passes_can_be_differentiated_together(case: str) -> None:
    # The unrolled gradient holds several graphs at a time while running statistics move on.
    space, engine, _ = pair_of(case)
    images, labels = batch()
    mixture = Mixture(op_weights_of(space, engine, per_cell=False))
    losses = [
        functional.cross_entropy(engine(images, mixture, norm="batch_and_update"), labels)
        for _ in range(2)
    ]
    first, both = losses[0], losses[0] + losses[1]
    weights = [engine.trunk.stem.convolution.weight]
    (single,) = torch.autograd.grad(first, weights, retain_graph=True)
    (double,) = torch.autograd.grad(both, weights)
    assert close(double, 2 * single)


@pytest.mark.parametrize("case", ["nasbench201", "darts"])
def test_second_derivatives_exist(case: str) -> None:
    space, engine, _ = pair_of(case)
    images, labels = batch()
    op_weights = op_weights_of(space, engine, per_cell=False)
    loss = functional.cross_entropy(engine(images, Mixture(op_weights)), labels)
    weight = engine.trunk.stem.convolution.weight
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    mixed = torch.autograd.grad(gradient.square().sum(), list(op_weights.values()))
    assert all(value.abs().max().item() > 0 for value in mixed)


@pytest.mark.parametrize("case", ["nasbench201", "darts"])
def test_a_step_depends_on_nothing_global(case: str) -> None:
    space = space_of(CASES[case])
    torch.manual_seed(5)
    first = space.build_supernet(3, 5, seed=3)
    after_build = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after_build)
    second = space.build_supernet(3, 5, seed=3)
    other = space.build_supernet(3, 5, seed=4)
    for name, value in first.named_parameters():
        assert torch.equal(value, second.get_parameter(name))
    assert not torch.equal(first.trunk.stem.convolution.weight, other.trunk.stem.convolution.weight)


def test_wrong_mixtures_are_refused() -> None:
    space = space_of(CASES["darts"])
    engine = space.build_supernet(3, 5, seed=0)
    images = torch.zeros(2, 3, 8, 8)
    good = {name: torch.zeros(shape) for name, shape in space.alpha_shapes().items()}
    with pytest.raises(SpaceError, match="must have the cell type 'reduction'"):
        engine(images, Mixture({"normal": good["normal"]}))
    with pytest.raises(SpaceError, match=r"\(14, 8\) or \(2, 14, 8\), got \(14, 7\)"):
        engine(images, Mixture({**good, "normal": torch.zeros(14, 7)}))
    with pytest.raises(SpaceError, match="norm must be one of"):
        engine(images, Mixture(good), norm="train")
