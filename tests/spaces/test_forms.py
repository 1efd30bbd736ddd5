"""The forms of a supernet: joined to wide calls, or plainly one by one, they are one function."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measuring import count_launches
from benchmarks.reference.supernets import matched
from spaces.core.mixture import PLAIN, Form, Mixture, Norm, Structure
from spaces.core.source_mix import SourceMix
from spaces.core.supernet import Supernet
from tests.spaces import pairs, test_engine
from tests.spaces.helpers import space_of

OTHER_FORMS: tuple[Form, ...] = ("wide", "plain")
SPACES = {
    "s1": {"name": "s1", "channels": 4, "cells": 3},
    "s4": {"name": "s4", "channels": 4, "cells": 3},
    "per_cell": {"name": "darts_per_cell", "channels": 4, "cells": 3},
    "odd_channels": {"name": "darts", "channels": 3, "cells": 3},
}


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize(
    ("case", "norm", "side"),
    [
        *((case, norm, 8) for case in ("nasbench201", "darts") for norm in get_args(Norm)),
        ("darts7", "batch_and_update", 12),
        ("darts", "batch", 7),  # odd sides: the halved images are padded
    ],
)
def test_every_form_equals_the_reference(form: Form, case: str, norm: Norm, side: int) -> None:
    space, engine, reference = test_engine.pair_of(case)
    engine.use_form(form)
    try:
        reference.train(norm != "running")
        images, labels = test_engine.batch(side)
        mine = test_engine.op_weights_of(space, engine, per_cell=False)
        plain = test_engine.op_weights_of(space, engine, per_cell=False)
        before = {name: value.clone() for name, value in engine.named_buffers()}
        logits, expected = engine(images, Mixture(mine), norm=norm), reference(images, plain)
        functional.cross_entropy(logits, labels).backward()
        functional.cross_entropy(expected, labels).backward()
        assert test_engine.close(logits, expected)
        for name, weights in mine.items():
            assert test_engine.close(weights.grad, plain[name].grad), name
        for name, ours, rows, theirs in matched(engine, reference):
            if isinstance(ours, nn.Parameter):
                assert test_engine.close(ours.grad[rows], theirs.grad), name
            elif norm == "batch_and_update":
                assert test_engine.close(ours[rows], theirs), name
        if norm != "batch_and_update":
            assert all(torch.equal(value, before[n]) for n, value in engine.named_buffers())
    finally:
        engine.use_form("edge")


def found(
    engine: Supernet, mixture: Mixture, norm: Norm, *, side: int = 8
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return logits, all gradients and statistics after a pass, by name."""
    engine.zero_grad()
    images, labels = pairs.batch(side)
    leaves = pairs.variables(mixture)
    logits = engine(images, mixture, norm=norm, generator=pairs.seeded())
    functional.cross_entropy(logits, labels).backward()
    gradients = {name: pairs.gradient_of(value) for name, value in engine.named_parameters()}
    values = {"logits": logits.detach(), **gradients}
    values |= {f"d {name}": pairs.gradient_of(leaf) for name, leaf in leaves.items()}
    return values, {name: value.clone() for name, value in engine.named_buffers()}


def compare(
    engine: Supernet, form: Form, extras: tuple[str, ...], norm: Norm, *, per_cell: bool
) -> None:
    other = copy.deepcopy(engine)
    other.use_form(form)
    expected = found(engine, pairs.mixture_of(engine, extras, per_cell=per_cell), norm)
    got = found(other, pairs.mixture_of(engine, extras, per_cell=per_cell), norm)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert pairs.close(value, theirs[name]), name


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize("name", SPACES)
def test_forms_agree_in_every_space(name: str, form: Form) -> None:
    engine = space_of(SPACES[name]).build_supernet(3, 5, seed=1).double()
    compare(engine, form, (), "batch_and_update", per_cell=False)


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize(
    ("case", "structure", "extras"),
    [
        ("nasbench201", PLAIN, ("edge_weights", "offsets", "skip_dropout")),
        ("darts", PLAIN, ("edge_weights", "active", "skip_dropout")),
        ("darts", pairs.HALF, ("edge_weights",)),
        ("darts", pairs.AUXILIARY, ("skip_scale",)),
    ],
)
def test_forms_agree_with_all_that_a_mixture_can_have(
    case: str, structure: Structure, extras: tuple[str, ...], form: Form
) -> None:
    _, engine, _ = pairs.pair_of(case, structure)
    compare(engine, form, extras, "batch_and_update", per_cell=True)


def test_weights_are_stored_as_they_were() -> None:
    space = space_of(pairs.CASES["darts"])
    edge, wide = (space.build_supernet(3, 5, seed=seed) for seed in (1, 2))
    before = {name: value.clone() for name, value in edge.state_dict().items()}
    images, _ = pairs.batch()
    op_weights = {n: torch.ones(s) for n, s in space.alpha_shapes().items()}
    wide.use_form("wide")
    wide(images.float(), Mixture(op_weights))  # its weights lie together from now on
    wide.load_state_dict(before)
    assert list(wide.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())
    logits = wide(images.float(), Mixture(op_weights))
    # Both in float32 and in another order of sums, which some CPUs round more coarsely.
    expected = edge(images.float(), Mixture(op_weights))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_moved_and_copied_supernets_join_their_weights_anew() -> None:
    space = space_of(pairs.CASES["darts"])
    op_weights = {n: torch.ones(s).double() for n, s in space.alpha_shapes().items()}
    images, _ = pairs.batch()
    wide = space.build_supernet(3, 5, seed=1)
    wide.use_form("wide")
    wide(images.float(), Mixture({n: q.float() for n, q in op_weights.items()}))
    wide.double()
    for other in (copy.deepcopy(wide), wide):
        edge = space.build_supernet(3, 5, seed=1).double()
        with torch.no_grad():
            for net in (edge, other):
                for value in net.parameters():
                    value.mul_(1.5)
            ours, theirs = (
                net(images, Mixture(op_weights), norm="batch_and_update") for net in (other, edge)
            )
        assert pairs.close(ours, theirs)
        for name, value in other.named_buffers():
            assert pairs.close(value, edge.get_buffer(name)), name


def test_second_derivatives_are_those_of_the_other_form() -> None:
    _, engine, _ = pairs.pair_of("darts")
    images, labels = pairs.batch()
    weight = engine.trunk.stem.convolution.weight
    rows = []
    for form in ("edge", "wide"):
        engine.use_form(form)  # type: ignore[arg-type]
        mixture = pairs.mixture_of(engine, ())
        leaves = pairs.variables(mixture)
        loss = functional.cross_entropy(engine(images, mixture), labels)
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        rows.append(torch.autograd.grad(gradient.square().sum(), list(leaves.values())))
    engine.use_form("edge")
    assert all(pairs.close(ours, theirs) for ours, theirs in zip(*rows, strict=True))


@pytest.mark.parametrize(("case", "limit"), [("nasbench201", 0.60), ("darts", 0.45)])
def test_the_wide_form_takes_few_launches(case: str, limit: float) -> None:
    # The measured shares are 0.42 and 0.23 of the reference's at the published depths.
    _, engine, reference = pairs.pair_of(case)
    images, labels = pairs.batch()

    def passes(net: nn.Module, *, ours: bool) -> None:
        mixture = pairs.mixture_of(engine, ())
        leaves = list(pairs.variables(mixture).values())
        logits = net(images, mixture if ours else mixture.op_weights)
        loss = functional.cross_entropy(logits, labels)
        torch.autograd.grad(loss, [*leaves, *net.parameters()], allow_unused=True)

    expected = count_launches(lambda: passes(reference, ours=False))
    engine.use_form("wide")
    try:
        passes(engine, ours=True)  # joins the weights
        assert 0 < count_launches(lambda: passes(engine, ours=True)) < limit * expected
    finally:
        engine.use_form("edge")


def test_forms_are_of_whole_supernets() -> None:
    engine = space_of(pairs.CASES["nasbench201"]).build_supernet(3, 5, seed=1)
    engine.use_form("wide")
    mixes = [module for module in engine.modules() if isinstance(module, SourceMix)]
    assert mixes
    assert {mix.form for mix in mixes} == {"wide"}
    assert SourceMix.form == "edge"


@pytest.mark.parametrize("case", ["nasbench201", "s1", "s4"])
def test_running_statistics_are_the_plain_ones_after_ten_batches(case: str) -> None:
    space = space_of((SPACES | test_engine.CASES)[case])
    found = {}
    for form in ("edge", "wide", "plain"):
        engine = space.build_supernet(3, 5, seed=1).double()
        engine.use_form(form)
        generator = torch.Generator().manual_seed(4)
        op_weights = {
            name: torch.rand(shape, generator=generator, dtype=torch.float64)
            for name, shape in space.alpha_shapes().items()
        }
        with torch.no_grad():
            for _ in range(10):
                images = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
                engine(images, Mixture(op_weights), norm="batch_and_update", generator=generator)
        found[form] = dict(engine.named_buffers())
    for name, expected in found["plain"].items():
        for form in ("edge", "wide"):
            torch.testing.assert_close(found[form][name], expected, rtol=1e-10, atol=1e-10)
