"""Cells that run again in the backward pass: the same results from less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measuring import saved_bytes
from spaces.core.errors import SpaceError
from spaces.core.mixture import Mixture
from spaces.core.recomputing import recompute_cells, recomputed
from tests.spaces.helpers import space_of
from tests.trainables.searches import ODD_SPACES, SPACES, differences, small_search, untimed
from tests.trainables.test_engine import GPU, P_DARTS, UNROLLED, chosen
from trainables.search import SearchTrial
from trainables.settings import SearchSettings, identifying_search

pytestmark = pytest.mark.usefixtures("tiny_plugins")

PC_DARTS = {"name": "pc_darts", "alpha_start": 0}
EXACT = {"name": "darts", "alpha_gradient": {"name": "unrolled", "product": "exact"}}
"""Second derivatives: cells run again for gradients and for the gradients of those."""


def compared(method: Any, **search: Any) -> None:
    """Compare searches of one step an epoch: states differ after the first or not at all."""
    plain, again = (
        small_search(method, checkpointing=checkpointing, batch_size=24, **search)
        for checkpointing in ("none", "cell")
    )
    for trial in (plain, again):
        trial.run()
    assert recomputes(again)
    assert not recomputes(plain)
    assert untimed(again) == untimed(plain)
    assert differences(again, plain) == []


def recomputes(trial: SearchTrial) -> bool:
    return bool(trial._bilevel.supernet.recomputes)


@pytest.mark.parametrize("space", [*SPACES, *ODD_SPACES])
def test_a_search_is_the_same_bit_for_bit_in_every_space(space: str) -> None:
    compared("darts", space=space, epochs=1)


@pytest.mark.parametrize(
    "method",
    [UNROLLED, EXACT, "sdarts_adv", PC_DARTS, "darts_minus", "gdas", P_DARTS],
    ids=str,
)
def test_a_search_is_the_same_bit_for_bit_with_every_kind_of_step(method: Any) -> None:
    compared(method, epochs=2 if method == P_DARTS else 1)


def test_what_is_drawn_in_a_cell_is_drawn_again() -> None:
    compared(EXACT, space="s4", epochs=1)


@pytest.mark.parametrize(
    "more",
    [{"precision": "bf16"}, {"engine": "graph"}, {"engine": "reference"}],
    ids=lambda more: next(iter(more.values())),
)
def test_it_goes_with_every_engine_and_precision(more: dict[str, Any]) -> None:
    compared(UNROLLED, epochs=1, **more)


def test_diagnostics_are_the_same() -> None:
    found = []
    for checkpointing in ("none", "cell"):
        trial = SearchTrial(
            space=SPACES["nasbench201"], dataset="tiny", method="darts",
            search={"epochs": 1, "batch_size": 12, "checkpointing": checkpointing},
            diagnostics={"hessian": {}, "discretization_gap": {"statistics": "re_estimated"}},
        )  # fmt: skip
        trial.run()
        found.append(untimed(trial))
    assert found[0] == found[1]
    assert "hessian_eigenvalue" in found[0][0]


def test_a_search_goes_on_with_and_without_it() -> None:
    straight = small_search(UNROLLED, batch_size=24)
    straight.run()
    for switches in (["none", "cell", "none"], ["cell", "none", "cell"]):
        state: dict[str, Any] | None = None
        for checkpointing in switches:
            trial = small_search(UNROLLED, checkpointing=checkpointing, batch_size=24)
            if state is not None:
                trial.load_state_dict(state)
            trial.run_epoch()
            state = trial.state_dict()
        assert differences(trial, straight) == []
        assert not trial.resumed_elsewhere


def test_it_changes_no_key() -> None:
    settings = {"epochs": 3, "precision": "float32"}
    assert identifying_search({**settings, "checkpointing": "cell"}) == settings
    field = SearchSettings.__dataclass_fields__["checkpointing"]
    assert field.default == "auto"
    assert field.metadata["later"]


def test_steps_that_draw_in_cells_are_not_recorded_with_it() -> None:
    assert chosen("darts", GPU, checkpointing="cell").name == "graph"
    assert chosen("darts", GPU, "s4").name == "graph"
    for method, space in (("darts", "s4"), (P_DARTS, "nasbench201")):
        found = chosen(method, GPU, space, checkpointing="cell")
        assert found.name == "eager"
        assert "cells that run again have to draw the same random numbers" in found.why


@pytest.mark.parametrize(
    ("space", "share"),
    # Of a pass that keeps all: what is left grows by a cell's ends with every cell.
    [
        ({"name": "nasbench201", "channels": 4, "cells_per_stage": 2}, 0.25),
        ({"name": "darts", "channels": 4, "cells": 4}, 0.10),
        ({"name": "nasbench1shot1_1", "channels": 4, "cells": 6}, 0.35),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_pass_keeps_less_for_its_gradients(space: dict[str, Any], share: float) -> None:
    built = space_of(space)
    supernet = built.build_supernet(3, 5, seed=0)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    op_weights = {
        name: torch.full(shape, 0.1, requires_grad=True)
        for name, shape in built.alpha_shapes().items()
    }
    weights = [*supernet.parameters(), *op_weights.values()]

    def forward() -> Tensor:
        return functional.cross_entropy(supernet(images, Mixture(op_weights)), torch.arange(4))

    whole = saved_bytes(forward, weights)
    recompute_cells(supernet)
    assert saved_bytes(forward, weights) < share * whole


@pytest.mark.parametrize("fails", [False, True])
def test_a_second_run_leaves_statistics_as_they_are_though_it_fails(fails: bool) -> None:
    cell, x = nn.Module(), torch.ones(2, requires_grad=True)
    cell.register_buffer("count", torch.zeros(()))
    seen: list[float] = []

    def run(x: Tensor) -> Tensor:
        seen.append(float(cell.count))
        cell.count += 1
        if fails and len(seen) == 2:
            raise ValueError("in the second run")
        return x.exp()

    y = recomputed(run, [x], cell, None)
    if fails:
        with pytest.raises(ValueError, match="in the second run"):
            torch.autograd.grad(y.sum(), [x])
    else:
        assert torch.equal(torch.autograd.grad(y.sum(), [x])[0], y)
    assert (seen, float(cell.count)) == ([0.0, 1.0], 1.0)


def test_without_gradients_cells_run_once() -> None:
    calls: list[int] = []

    def run(x: Tensor) -> Tensor:
        calls.append(1)
        return x

    with torch.no_grad():
        recomputed(run, [torch.ones(2)], nn.Module(), None)
    assert len(calls) == 1


def test_a_supernet_of_a_space_s_own_that_cannot_is_refused() -> None:
    with pytest.raises(SpaceError, match="attribute `recomputes`, which Identity does not have"):
        recompute_cells(nn.Identity())
