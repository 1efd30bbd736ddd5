"""Partial channels, auxiliary skips and other depths of a supernet."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spaces.core import plugins
from spaces.core.errors import SpaceError
from spaces.core.layers import Source
from spaces.core.layout import CellLayer, CellTopology
from spaces.core.mixed_cell import MixedCell, shuffled
from spaces.core.mixture import PLAIN, Mixture, Structure
from spaces.core.supernet import CellMixture
from tests.spaces.helpers import space_of
from tests.spaces.pairs import (
    AUXILIARY,
    CASES,
    HALF,
    QUARTER,
    batch,
    mixture_of,
    pair_of,
    seeded,
)


@pytest.mark.parametrize("case", CASES)
def test_the_auxiliary_skip_leaves_all_other_weights_as_they_are(case: str) -> None:
    space = space_of(CASES[case])
    plain = space.build_supernet(3, 5, seed=1)
    auxiliary = space.build_supernet(3, 5, seed=1, structure=AUXILIARY)
    ours, theirs = plain.state_dict(), auxiliary.state_dict()
    extra = theirs.keys() - ours.keys()
    assert all("auxiliary_skips" in name for name in extra)
    # Two inputs with four edges each, halved in two cells by two convolutions and one norm each.
    assert len(extra) == (0 if case == "nasbench201" else 2 * 8 * 4)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    images = batch()[0].float()
    mixture = Mixture({k: v.float() for k, v in mixture_of(plain, ()).op_weights.items()})
    expected = plain(images, mixture)
    assert torch.equal(auxiliary(images, mixture), expected)  # no skip_scale, no branch
    scaled = [
        auxiliary(images, Mixture(mixture.op_weights, skip_scale=scale))
        for scale in (0.5, torch.tensor(0.5), 0.0)
    ]
    assert torch.equal(scaled[0], scaled[1])
    assert not torch.allclose(scaled[0], expected)
    assert torch.allclose(scaled[2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", [PLAIN, HALF])
@pytest.mark.parametrize("case", CASES)
def test_a_supernet_without_any_operation_has_logits(case: str, structure: Structure) -> None:
    _, engine, _ = pair_of(case, structure)
    images, _ = batch(9)
    mixture = mixture_of(engine, ())
    off = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in mixture.op_weights.items()}
    assert torch.isfinite(engine(images, Mixture(mixture.op_weights, active=off))).all()


@pytest.mark.parametrize("groups", [2, 4])
def test_channels_are_shuffled_as_by_torch(groups: int) -> None:
    x = torch.randn(2, 8, 3, 2, generator=seeded())
    seen = 8 // groups
    ours = shuffled(x[:, :seen], x[:, seen:])
    assert torch.equal(ours, functional.channel_shuffle(x, groups))
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_partial_channels_bypass_the_operations() -> None:
    # With nothing active, 1 of every 2 channels of node 1 is that of the input; the rest are 0.
    topology = CellTopology("cell", 1, ((0, 1),), ("skip_connect",), (1,), pool_norm=False)
    x = torch.randn(2, 4, 3, 3, generator=seeded())
    edge_weights = torch.tensor([3.0])
    for stride in (1, 2):
        cell = MixedCell(topology, CellLayer("cell", 4, (4,), (), stride, 4), HALF)
        off = torch.zeros(1, 1, dtype=torch.bool)
        mixture = CellMixture(torch.ones(1, 1), edge_weights, off, torch.tensor([0.5]), None)
        out = cell([Source(x)], mixture.scales(2), "batch")
        bypass = x[:, 2:]
        if stride == 2:
            # Windows of rows and columns {0, 1} and {2}.
            rows = [bypass[:, :, part].amax(2) for part in (slice(0, 2), slice(2, 3))]
            bypass = torch.stack(
                [torch.stack([r[..., :2].amax(-1), r[..., 2]], -1) for r in rows], 2
            )
        assert torch.equal(out[:, 1::2], 3.0 * bypass)
        assert torch.equal(out[:, 0::2], torch.full_like(bypass, 1.5))


@pytest.mark.parametrize("name", plugins.available("spaces"))
@pytest.mark.parametrize("structure", [HALF, AUXILIARY])
def test_every_space_can_be_built_with_a_structure(name: str, structure: Structure) -> None:
    fields = plugins.describe("spaces", name).config.__dataclass_fields__
    sizes = {"channels": 4, "cells": 3, "cells_per_stage": 1}
    space = space_of({"name": name, **{k: v for k, v in sizes.items() if k in fields}})
    engine = space.build_supernet(1, 4, seed=0, structure=structure)
    assert engine.structure == structure
    scale = torch.tensor(0.5) if structure.auxiliary_skip else None
    shapes = space.alpha_shapes().items()
    op_weights = {n: torch.rand(s, generator=seeded(), requires_grad=True) for n, s in shapes}
    images = torch.randn(4, 1, 8, 8, generator=seeded())
    logits = engine(images, Mixture(op_weights, skip_scale=scale), generator=seeded())
    assert logits.shape == (4, 4)
    logits.square().sum().backward()
    for weight_name, weight in engine.named_parameters():
        assert weight.grad is not None, weight_name
        assert torch.isfinite(weight.grad).all(), weight_name


def test_wrong_skip_settings_are_refused() -> None:
    _, plain, _ = pair_of("nasbench201")
    _, auxiliary, _ = pair_of("nasbench201", AUXILIARY)
    images, _ = batch()
    op_weights = mixture_of(plain, ()).op_weights
    with pytest.raises(SpaceError, match=r"needs a supernet with auxiliary skips: build it with"):
        plain(images, Mixture(op_weights, skip_scale=0.0))
    with pytest.raises(SpaceError, match=r"skip_scale must be .* got shape \(1,\)"):
        auxiliary(images, Mixture(op_weights, skip_scale=torch.ones(1)))
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"skip_dropout must be in \[0, 1\), got"):
            Mixture(op_weights, skip_dropout=share)


def test_impossible_structures_are_refused() -> None:
    with pytest.raises(ValueError, match="partial_channels must be >= 1, got 0"):
        Structure(partial_channels=0)
    space = space_of({"name": "darts", "channels": 6, "cells": 3})
    with pytest.raises(SpaceError, match="got 4 for 6 channels of cell 'normal'"):
        space.build_supernet(3, 5, seed=0, structure=QUARTER)
    with pytest.raises(SpaceError, match="both partial channels and an auxiliary skip"):
        space.build_supernet(3, 5, seed=0, structure=Structure(2, auxiliary_skip=True))
    topology = CellTopology("cell", 1, ((0, 1),), ("skip_connect",), (1,), pool_norm=False)
    with pytest.raises(SpaceError, match=r"at least 2 channels.*got 4 channels / 4 partial"):
        MixedCell(topology, CellLayer("cell", 4, (4,), (), 2, 4), QUARTER)
    MixedCell(topology, CellLayer("cell", 4, (4,), (), 1, 4), QUARTER)


def test_with_cells_changes_the_depth_alone() -> None:
    for settings, depth, bad in ((CASES["darts"], 3, 2), (CASES["nasbench201"], 2, 0)):
        space = space_of(settings)
        other = space.with_cells(depth)
        assert type(other) is type(space)
        assert other.search_size() == (4, depth)
        assert space.search_size()[1] != depth
        assert (other.name, other.alpha_shapes()) == (space.name, space.alpha_shapes())
        assert other.evaluation == space.evaluation
        layers = other.build_supernet(3, 5, seed=0).trunk.layout.layers
        cells = sum(isinstance(layer, CellLayer) for layer in layers)
        assert cells == (depth if space.name == "darts" else 3 * depth)
        with pytest.raises(SpaceError, match=rf"'{space.name}': cells.* must be >= .*, got {bad}"):
            space.with_cells(bad)
    space = space_of({"name": "darts_per_cell", "channels": 4, "cells": 4})
    assert space.with_cells(4).search_size() == (4, 4)
    with pytest.raises(SpaceError, match="every cell has its own alphas: "):
        space.with_cells(5)
