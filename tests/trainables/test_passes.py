"""What a step of each method costs, counted where it is paid: passes and backwards by target."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core.mixture import Norm
from tests.trainables.searches import small_search
from trainables.search import SearchTrial
from trainables.timing import Stopwatch

pytestmark = pytest.mark.usefixtures("tiny_plugins")

UNROLLED = {"name": "darts", "alpha_gradient": "unrolled"}
ADV = {"name": "sdarts_adv"}
MS = {"name": "ms_darts"}
P_DARTS = {"name": "p_darts", "added_cells": [0], "operations": [], "skip_dropout": [0.1]}
FIXED = {"name": "darts", "fixed_alphas": True, "select": "perturbation"}
BOTH_PARTS = {"name": "darts", "perturb": "sdarts_adv", "alpha_gradient": "amended"}


def counted(trial: SearchTrial, epoch: int, patch: pytest.MonkeyPatch) -> tuple[Counter[str], ...]:
    """Forwards of the supernet by norm and backwards by target, in one step of an epoch."""
    bilevel = trial._bilevel
    forwards: Counter[str] = Counter()
    backwards: Counter[str] = Counter()
    weights = {id(weight) for weight in bilevel.weights}
    forward, gradient = bilevel.supernet.forward, torch.autograd.grad

    def counted_forward(images: Tensor, *args: Any, norm: Norm, **options: Any) -> Tensor:
        forwards[norm] += 1
        return forward(images, *args, norm=norm, **options)

    def counted_gradient(outputs: Any, inputs: Any, **options: Any) -> Any:
        asked = {id(leaf) in weights for leaf in inputs}
        # What is no weight is an alpha or, in an attack, an op weight.
        backwards["both" if len(asked) == 2 else "weights" if True in asked else "alphas"] += 1
        return gradient(outputs, inputs, **options)

    def uncounted(*args: Any, **options: Any) -> None:
        raise AssertionError("a backward that does not name its targets")

    patch.setattr(bilevel.supernet, "forward", counted_forward)
    patch.setattr(torch.autograd, "grad", counted_gradient)
    patch.setattr(torch.autograd, "backward", uncounted)
    clocks = Stopwatch(trial.device), Stopwatch(trial.device)
    bilevel.step(bilevel.point(epoch), *trial._data.next_batches(), clocks)
    return forwards, backwards


@pytest.mark.parametrize(
    ("method", "epoch", "forwards", "both", "alphas", "weights"),
    [
        # An alpha step and a weight step.
        ("darts", 0, 2, 0, 1, 1),
        # The virtual step (weights), its validation pass (both), two probes (alphas).
        (UNROLLED, 0, 5, 1, 2, 2),
        ("sdarts_rs", 0, 2, 0, 1, 1),
        # K passes with a gradient in the op weights, and the losses at both ends: K + 2.
        (ADV, 0, 11, 0, 7 + 1, 1),
        (ADV | {"steps": 3}, 0, 2 + 3 + 2, 0, 3 + 1, 1),
        (ADV | {"random_start": False}, 0, 11, 0, 7 + 1, 1),
        # N T losses; the alphas rest in the first epoch.
        (MS, 0, 1 + 3 * 2, 0, 0, 1),
        (MS, 1, 2 + 3 * 2, 0, 1, 1),
        (MS | {"samples": 2, "shifts": 1, "alpha_start": 0}, 0, 2 + 2, 0, 1, 1),
        # Validation (both), two probes for H v (weights), two for A u (alphas), the weight step.
        ("amended_darts", 0, 6, 1, 2, 2 + 1),
        # The sum of the parts: 4 probes in the alpha step, K + 2 passes of the attack.
        (BOTH_PARTS, 0, 2 + 4 + 7 + 2, 1, 2 + 7, 2 + 1),
        ({"name": "darts", "alpha_start": 2}, 1, 1, 0, 0, 1),
        # The alphas rest in the first epoch, then a step is one of first order.
        ("pc_darts", 0, 1, 0, 0, 1),
        ("pc_darts", 1, 2, 0, 1, 1),
        (P_DARTS, 0, 1, 0, 0, 1),
        (P_DARTS, 1, 2, 0, 1, 1),
        ("gdas", 0, 2, 0, 1, 1),
        ("drnas", 0, 2, 0, 1, 1),
        ("fair_darts", 0, 2, 0, 1, 1),
        ("darts_minus", 0, 2, 0, 1, 1),
        ("beta_darts", 0, 2, 0, 1, 1),
        # Validation (both), two probes for each of K = 2 products (weights), two for A s (alphas).
        ("idarts", 0, 1 + 4 + 2 + 1, 1, 2, 4 + 1),
        ({"name": "idarts", "terms": 0}, 0, 1 + 2 + 1, 1, 2, 1),
        # No alphas are trained.
        ("random", 0, 1, 0, 0, 1),
        ({"name": "random", "share_weights": False}, 0, 1, 0, 0, 0),
        (FIXED, 0, 1, 0, 0, 1),
    ],
    ids=str,
)
def test_a_step_costs_what_is_documented(
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    epoch: int,
    forwards: int,
    both: int,
    alphas: int,
    weights: int,
) -> None:
    trial = small_search(method, batch_size=6)
    found_forwards, found_backwards = counted(trial, epoch, monkeypatch)
    assert found_forwards.total() == forwards
    assert found_backwards == Counter(both=both, alphas=alphas, weights=weights)


@pytest.mark.parametrize(
    ("method", "running", "batch", "updating"),
    [
        # At the trial's own weights and op weights the running statistics are updated.
        ("darts", 0, 0, 2),
        ("sdarts_rs", 0, 0, 2),
        # The virtual weights' validation pass and the two probes update nothing.
        (UNROLLED, 0, 3, 2),
        # Losses of a perturbation are those on running statistics.
        (ADV, 9, 0, 2),
        (MS | {"alpha_start": 0}, 6, 0, 2),
        ("amended_darts", 0, 4, 2),
        (BOTH_PARTS, 9, 4, 2),
    ],
    ids=str,
)
def test_a_pass_uses_the_statistics_that_are_documented(
    monkeypatch: pytest.MonkeyPatch, method: Any, running: int, batch: int, updating: int
) -> None:
    found, _ = counted(small_search(method, batch_size=6), 0, monkeypatch)
    assert found == Counter(running=running, batch=batch, batch_and_update=updating)
