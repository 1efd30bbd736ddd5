"""What a mixture can say besides op weights, against the op-by-op reference in float64."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.supernets import (
    matched,
)
from spaces.core.errors import SpaceError
from spaces.core.layers import Source
from spaces.core.layout import CellLayer
from spaces.core.mixed_cell import MixedCell
from spaces.core.mixture import PLAIN, Mixture, Norm, Structure
from spaces.core.source_mix import Draws
from spaces.core.supernet import CellMixture, Supernet
from tests.spaces.helpers import space_of
from tests.spaces.pairs import (
    AUXILIARY,
    CASES,
    EVERYTHING,
    HALF,
    QUARTER,
    batch,
    close,
    gradient_of,
    mixture_of,
    pair_of,
    seeded,
    variables,
)


def is_inactive_pool(mixture: Mixture, engine: Supernet, name: str) -> bool:
    # The engine's norm of a pool is one for all edges that leave a node.
    _, layer, row, operation, *_ = [*name.split("."), "", "", ""]
    if mixture.active is None or "pool" not in operation:
        return False
    topology = engine.trunk.layers[int(layer)].topology
    active = mixture.active[topology.name]
    if active.dim() == 3:
        before = engine.trunk.layers[: int(layer)]
        active = active[sum(getattr(c, "topology", None) is topology for c in before)]
    return not active[int(row), topology.operations.index(operation)]


PLAIN_CASES = [
    ("edge_weights",),
    ("offsets",),
    ("active",),
    ("one_active",),
    ("one_active", "offsets", "edge_weights"),
    ("skip_dropout",),
    EVERYTHING,
]
COMPARED = [
    *((c, PLAIN, extras, "batch_and_update", False, 8) for c in CASES for extras in PLAIN_CASES),
    *((c, PLAIN, EVERYTHING, norm, True, 8) for c in CASES for norm in get_args(Norm)),
    *((c, AUXILIARY, ("skip_scale",), "batch_and_update", False, 8) for c in CASES),
    *((c, AUXILIARY, (*EVERYTHING, "skip_scale"), n, True, 8) for c in CASES for n in ("batch",)),
    *((c, AUXILIARY, (*EVERYTHING, "skip_scale"), "running", False, 9) for c in CASES),
    *((c, HALF, (), "batch_and_update", False, 8) for c in CASES),
    *((c, QUARTER, ("edge_weights",), norm, False, 8) for c in CASES for norm in get_args(Norm)),
    *((c, HALF, EVERYTHING, "batch_and_update", True, 9) for c in CASES),
    *((c, QUARTER, ("one_active", "offsets"), "batch", False, 8) for c in CASES),
]


@pytest.mark.parametrize(("case", "structure", "extras", "norm", "per_cell", "side"), COMPARED)
def test_it_equals_the_reference(
    case: str, structure: Structure, extras: tuple[str, ...], norm: Norm, per_cell: bool, side: int
) -> None:
    _, engine, reference = pair_of(case, structure)
    reference.train(norm != "running")
    images, labels = batch(side)
    mine, plain = (mixture_of(engine, extras, per_cell=per_cell) for _ in range(2))
    ours_of, theirs_of = variables(mine), variables(plain)
    before = {name: value.clone() for name, value in engine.named_buffers()}

    logits = engine(images, mine, norm=norm, generator=seeded())
    expected = reference(images, plain.op_weights, plain, seeded())
    functional.cross_entropy(logits, labels).backward()
    functional.cross_entropy(expected, labels).backward()

    assert close(logits, expected)
    assert len(ours_of) == len(theirs_of)
    for name, value in ours_of.items():
        assert close(gradient_of(value), gradient_of(theirs_of[name])), name
    for name, ours, rows, theirs in matched(engine, reference):
        if isinstance(ours, nn.Parameter):
            assert close(gradient_of(ours)[rows], gradient_of(theirs)), name
        elif norm == "batch_and_update" and not is_inactive_pool(mine, engine, name):
            assert close(ours[rows], theirs), name
    if norm != "batch_and_update":
        assert all(torch.equal(value, before[name]) for name, value in engine.named_buffers())


@pytest.mark.parametrize(
    ("case", "structure", "extras"),
    [
        ("nasbench201", AUXILIARY, (*EVERYTHING, "skip_scale")),
        ("darts", AUXILIARY, ("one_active", "offsets", "edge_weights", "skip_scale")),
        ("darts", HALF, EVERYTHING),
    ],
)
def test_second_derivatives_equal_those_of_the_reference(
    case: str, structure: Structure, extras: tuple[str, ...]
) -> None:
    _, engine, reference = pair_of(case, structure)
    images, labels = batch()
    mine, plain = (mixture_of(engine, extras) for _ in range(2))
    results = []
    for mixture, logits_of, stem in (
        (mine, lambda: engine(images, mine, generator=seeded()), engine.trunk.stem.convolution),
        (plain, lambda: reference(images, plain.op_weights, plain, seeded()), reference.stem[0]),
    ):
        leaves = variables(mixture)
        loss = functional.cross_entropy(logits_of(), labels)
        (gradient,) = torch.autograd.grad(loss, stem.weight, create_graph=True)
        mixed = torch.autograd.grad(gradient.square().sum(), list(leaves.values()))
        results.append(dict(zip(leaves, mixed, strict=True)))
    for name, value in results[0].items():
        assert close(value, results[1][name], 1e-8), name
        assert value.abs().max().item() > 0, name


@pytest.mark.parametrize("case", CASES)
def test_extras_that_say_nothing_change_no_bit(case: str) -> None:
    _, engine, _ = pair_of(case)
    images, labels = batch()
    op_weights = mixture_of(engine, ()).op_weights
    everything = {name: torch.ones_like(w, dtype=torch.bool) for name, w in op_weights.items()}
    results = []
    for mixture in (
        Mixture(op_weights),
        Mixture(op_weights, active=everything),
        Mixture(op_weights, skip_dropout=0.0),
    ):
        engine.zero_grad()
        generator = seeded()
        logits = engine(images, mixture, generator=generator)
        functional.cross_entropy(logits, labels).backward()
        assert torch.equal(generator.get_state(), seeded().get_state())
        results.append([logits, *(weight.grad for weight in engine.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_skip_dropout_draws_from_the_generator_alone(case: str) -> None:
    _, engine, _ = pair_of(case)
    images, _ = batch()
    mixture = mixture_of(engine, ("skip_dropout",))
    plain = Mixture(mixture.op_weights)
    generator = seeded()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = engine(images, mixture, generator=generator)
    second = engine(images, mixture, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(engine(images, mixture, generator=seeded()), first)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, engine(images, plain))
    running = engine(images, mixture, norm="running")  # needs no generator
    assert torch.equal(running, engine(images, plain, norm="running"))
    with pytest.raises(SpaceError, match="skip_dropout needs a generator"):
        engine(images, mixture)


def test_skip_dropout_keeps_the_expectation() -> None:
    # Every path of skips alone is a product of independent masks of mean 1.
    topology = space_of("nasbench201").topologies[0]
    cell = MixedCell(topology, CellLayer("cell", 2, (2,), (), 1, 2), PLAIN)
    active = torch.zeros(6, 5, dtype=torch.bool)
    active[:, topology.operations.index("skip_connect")] = True
    op_weights = torch.rand(6, 5, generator=seeded(), dtype=torch.float64)
    scales = CellMixture(op_weights, None, active, None, None).scales(2)
    x = torch.ones(20000, 2, 2, 2, dtype=torch.float64)
    exact = cell([Source(x)], scales, "batch")
    out = cell([Source(x)], scales, "batch", Draws(seeded(), 0.3))
    spread = out.std().item() / out.numel() ** 0.5
    assert abs(out.mean().item() - exact.mean().item()) < 4 * spread
    assert spread < 0.01 * exact.mean().item()
    dropped = Draws(seeded(), 0.3).drop(x)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}


def test_cells_of_their_own_type_equal_those_with_a_cell_axis() -> None:
    shared, engine, _ = pair_of("darts")
    space = space_of({"name": "darts_per_cell", "channels": 4, "cells": 4})
    ours = space.build_supernet(3, 5, seed=0).double()
    ours.load_state_dict(engine.state_dict())
    mixture = mixture_of(engine, EVERYTHING, per_cell=True)

    def by_cell(what: str) -> dict[str, Tensor]:
        seen = dict.fromkeys(shared.cell_types, 0)
        values = {}
        for name in space.cell_types:
            kind = name.rpartition("_")[2]
            values[name] = getattr(mixture, what)[kind][seen[kind]]
            seen[kind] += 1
        return values

    tensors = {what: by_cell(what) for what in ("op_weights", "edge_weights", "active", "offsets")}
    images, _ = batch()
    logits = ours(images, Mixture(**tensors, skip_dropout=0.4), generator=seeded())
    assert torch.equal(logits, engine(images, mixture, generator=seeded()))


@pytest.mark.parametrize("what", ["op_weights", "edge_weights", "active", "offsets"])
def test_each_part_may_have_a_cell_axis_by_itself(what: str) -> None:
    # Two cells of one width: what cells share is worked out once for each width.
    space = space_of({**CASES["nasbench201"], "cells_per_stage": 2})
    engine = space.build_supernet(3, 5, seed=1).double()
    images, _ = batch()
    shared, own = (mixture_of(engine, EVERYTHING, per_cell=p, seed=6) for p in (False, True))

    def repeated(name: str) -> dict[str, Tensor]:
        values = getattr(shared, name)
        return {k: torch.stack([v] * engine.num_cells[k]) for k, v in values.items()}

    parts = ("op_weights", "edge_weights", "active", "offsets")
    alone = {name: getattr(own if name == what else shared, name) for name in parts}
    all_four = {name: getattr(own, name) if name == what else repeated(name) for name in parts}
    logits = engine(images, Mixture(**alone))
    assert torch.equal(logits, engine(images, Mixture(**all_four)))
    assert not torch.allclose(logits, engine(images, Mixture(**{n: repeated(n) for n in parts})))


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        ("edge_weights", torch.ones(5), r"edge_weights\['cell'\] must have shape \(6,\) or \(3, 6"),
        ("edge_weights", torch.ones(6, 5), r"\(3, 6\), got \(6, 5\)"),
        ("offsets", torch.ones(2, 6), r"offsets\['cell'\] must have shape .* got \(2, 6\)"),
        ("active", torch.ones(6, dtype=torch.bool), r"active\['cell'\] must have shape \(6, 5\)"),
        ("active", torch.ones(6, 5), "must be boolean and on the CPU.*got torch.float32"),
        ("active", torch.ones(6, 5, dtype=torch.bool, device="meta"), "on the CPU.* on meta"),
    ],
)
def test_wrong_extras_are_refused(what: str, value: Tensor, message: str) -> None:
    _, engine, _ = pair_of("nasbench201")
    images, _ = batch()
    op_weights = mixture_of(engine, ()).op_weights
    with pytest.raises(SpaceError, match=message):
        engine(images, Mixture(op_weights, **{what: {"cell": value}}))
    with pytest.raises(SpaceError, match=f"{what} must have the cell type 'cell', got"):
        engine(images, Mixture(op_weights, **{what: {"normal": value}}))
