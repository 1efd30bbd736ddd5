"""Inactive operations: not run, not updated, not paid for."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference.supernets import (
    matched,
)
from spaces.core.layers import ConvNorm, Source
from spaces.core.mixture import Mixture, Norm
from tests.spaces.pairs import (
    CASES,
    batch,
    close,
    mixture_of,
    pair_of,
    seeded,
)


@pytest.mark.parametrize("case", CASES)
def test_a_mask_of_the_one_hot_operations_changes_nothing(case: str) -> None:
    _, engine, _ = pair_of(case)
    images, _ = batch()
    active = mixture_of(engine, ("one_active",)).active
    op_weights = {name: mask.double() for name, mask in active.items()}
    masked = engine(images, Mixture(op_weights, active=active))
    assert close(masked, engine(images, Mixture(op_weights)))
    assert masked.abs().max().item() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_inactive_operations_are_not_there(case: str) -> None:
    # Weights that are not numbers spoil whatever runs; statistics that move tell of a run.
    _, engine, reference = pair_of(case)
    images, _ = batch()
    mixture = mixture_of(engine, ("one_active",))
    expected = engine(images, mixture)
    with torch.no_grad():
        for name, ours, rows, _ in matched(engine, reference):
            parts = name.split(".")
            if parts[0] != "layers" or len(parts) < 4 or not parts[2].isdigit():
                continue
            topology = engine.trunk.layers[int(parts[1])].topology
            column = topology.operations.index(parts[3])
            if not mixture.active[topology.name][int(parts[2]), column] and "pool" not in name:
                ours[rows] = float("nan")
    spoilt = {name: value.isnan().any() for name, value in engine.named_buffers()}
    assert any(spoilt.values())
    assert torch.equal(engine(images, mixture, norm="batch_and_update"), expected)
    assert torch.isfinite(engine(images, mixture, norm="running")).all()


def test_pool_norms_move_where_some_edge_of_their_node_pools() -> None:
    _, engine, _ = pair_of("darts")
    images, _ = batch()
    topology = engine.topologies["normal"]
    off = {name: torch.zeros(14, 8, dtype=torch.bool) for name in engine.topologies}
    column = topology.operations.index("max_pool_3x3")
    off["normal"][topology.edges.index((1, 3)), column] = True
    before = {name: value.clone() for name, value in engine.named_buffers()}
    op_weights = mixture_of(engine, ()).op_weights
    engine(images, Mixture(op_weights, active=off), norm="batch_and_update")
    moved = {name for name, v in engine.named_buffers() if not torch.equal(v, before[name])}
    assert {name for name in moved if ".mixes." in name} == {
        f"trunk.layers.{cell}.mixes.1.pool_norms.max_pool_3x3.{what}"
        for cell in (0, 3)
        for what in ("running_mean", "running_var")
    }


def test_only_active_convolutions_cost_anything() -> None:
    _, engine, _ = pair_of("nasbench201")
    images, _ = batch()
    op_weights = mixture_of(engine, ()).op_weights
    operations = engine.topologies["cell"].operations

    def flops(*entries: tuple[int, str]) -> int:
        active = torch.zeros(6, 5, dtype=torch.bool)
        for row, operation in entries:
            active[row, operations.index(operation)] = True
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            engine(images, Mixture(op_weights, active={"cell": active}))
        return counter.get_total_flops()

    rest = flops()
    one, three = flops((4, "nor_conv_1x1")) - rest, flops((4, "nor_conv_3x3")) - rest
    assert three == 9 * one > 0
    # Rows 0, 1 and 3 leave the input: neighbours 0 and 1 run as one, 3 by itself.
    assert flops((0, "nor_conv_3x3"), (1, "nor_conv_3x3"), (2, "nor_conv_1x1")) - rest == 19 * one
    assert flops((0, "nor_conv_3x3"), (3, "nor_conv_3x3"), (5, "skip_connect")) - rest == 18 * one
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        engine(images, Mixture(op_weights))
    assert counter.get_total_flops() - rest == 60 * one


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("norm", get_args(Norm))
def test_a_layer_runs_on_some_rows_alone(kernel: int, stride: int, norm: Norm) -> None:
    layer, same = (ConvNorm(2, 6, kernel, stride=stride, affine=False) for _ in range(2))
    same.load_state_dict(layer.state_dict())
    source, scale = Source(torch.randn(3, 2, 5, 5, generator=seeded())), torch.arange(1.0, 7.0)
    rows = slice(2, 4)
    some = layer.on_rows(source, norm, scale[rows].contiguous(), rows)
    assert torch.allclose(some, same(source, norm, scale)[:, rows], rtol=0, atol=1e-5)
    for what, value in layer.batch_norm.named_buffers():
        whole = same.batch_norm.get_buffer(what)
        assert torch.allclose(value[rows], whole[rows])
        assert torch.equal(value[4:], torch.full((2,), float(what == "running_var")))
