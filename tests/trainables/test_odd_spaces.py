"""Searches where edges have candidates of their own (S1), noise (S4) or a rule of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core import source_mix
from tests.trainables.searches import EDGELESS, ODD_SPACES, differences, flat, small_search, untimed
from tests.trainables.test_amended import next_problem
from trainables.datasets import digits
from trainables.implicit import amended, by_difference, exactly
from trainables.retrain import RetrainTrial
from trainables.search import SearchTrial
from trainables.timing import Stopwatch

pytestmark = pytest.mark.usefixtures("tiny_plugins")

CELLS = [name for name in ODD_SPACES if name not in EDGELESS]
RULES = (
    {"name": "operation_strength"},
    {"name": "operation_strength", "variant": "signed"},
    {"name": "perturbation", "tune_epochs": 0, "batches": 1},
)


@pytest.fixture(scope="module")
def searched() -> Callable[[str], SearchTrial]:
    """Search a space once for all rules: each has to leave the trial as it was."""

    @lru_cache
    def search(space: str) -> SearchTrial:
        trial = small_search(space=space, epochs=1)
        trial.run()
        return trial

    return search


@pytest.mark.parametrize("space", CELLS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_finds_a_genotype_of_the_space(
    space: str, rule: dict[str, Any], searched: Callable[[str], SearchTrial]
) -> None:
    trial = searched(space)
    before = flat(trial.state_dict())
    first, second = trial.select(rule), trial.select(rule)
    trial.space.check(first.genotype)
    assert first.genotype == second.genotype
    for name, scores in first.scores.items():
        assert scores.shape == (8 if space == "fixed_edges" else 14, 2)
        assert torch.equal(scores, second.scores[name])
    after = flat(trial.state_dict())
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[k])) for k, v in before.items()
               if isinstance(v, Tensor))  # fmt: skip


@pytest.mark.parametrize(
    "method",
    [
        "darts",
        {"name": "sdarts_adv", "steps": 2},
        {"name": "p_darts", "added_cells": [0, 0, 0], "operations": [2, 1], "alpha_start": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("space", CELLS)
def test_it_is_resumed_bit_for_bit(space: str, method: Any) -> None:
    def search() -> SearchTrial:
        return small_search(method, space=space, batch_size=24)

    straight, states = search(), []
    while not straight.finished:
        straight.run_epoch()
        states.append(straight.state_dict())
    for state in states[:2]:
        resumed = search()
        resumed.load_state_dict(state)
        resumed.run()
        assert differences(straight, resumed) == []
        assert untimed(straight) == untimed(resumed)


def test_probes_see_the_same_noise() -> None:
    """Fresh draws for each probe would measure noise / (2 R), which grows as the radius falls."""
    trial = small_search(space="s4", precision="float64", batch_size=8)
    problem = next_problem(trial)

    def gradient(product: Any) -> Tensor:
        found = amended(problem, product, eta=1.0, weight_decay=0.0).gradients
        return torch.cat([value.flatten() for value in found.values()])

    exact = gradient(exactly)
    for radius in (1e-2, 1e-5, 1e-7):
        product = partial(by_difference, radius=radius)
        assert torch.equal(gradient(product), gradient(product))
    assert (gradient(product) - exact).norm() / exact.norm() < 1e-4


def test_all_passes_of_an_attack_see_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    passes: list[list[float]] = []
    original = source_mix.noise_like

    def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = original(x, generator)
        drawn.append(float(noise.sum()))
        return noise

    monkeypatch.setattr(source_mix, "noise_like", noise_like)
    trial = small_search("sdarts_adv", space="s4")
    forward = trial._bilevel.supernet.forward

    def counted(*args: Any, **options: Any) -> Tensor:
        drawn.clear()
        logits = forward(*args, **options)
        passes.append(list(drawn))
        return logits

    trial._bilevel.supernet.forward = counted  # type: ignore[method-assign, assignment]
    at = trial._bilevel.point(0)
    clocks = Stopwatch(trial.device), Stopwatch(trial.device)
    trial._bilevel.step(at, *trial._data.next_batches(), clocks)
    # One pass of the alpha step, nine of the attack, one of the weight step.
    assert len(passes) == 11
    assert len(passes[0]) == 14 * 3
    assert all(each == passes[1] for each in passes[2:10])
    assert passes[0] != passes[1] != passes[10]


def test_random_genotypes_have_candidates_of_their_edges() -> None:
    found: set[tuple[Any, ...]] = set()
    for seed in range(6):
        trial = small_search({"name": "random", "share_weights": False}, space="s1", seed=seed)
        trial.run()
        trial.space.check(trial.genotype)
        found.add(trial.genotype.hash)
    assert len(found) == 6


def noisy_retraining(epochs: int = 2) -> RetrainTrial:
    space = small_search(space="s4").space
    half = {k: torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 7) for k in space.alpha_shapes()}
    return RetrainTrial(
        genotype=space.discretize(half),
        space=ODD_SPACES["s4"],
        dataset="digits",
        retrain={"epochs": epochs, "batch_size": 48, "channels": 2, "cells": 3, "drop_path": 0.2},
    )


def test_a_genotype_with_noise_is_retrained_and_resumed_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load, few = digits.load, torch.arange(150)
    monkeypatch.setattr(digits, "load", lambda *which: load(*which).subset(few))
    straight, stopped, resumed = (noisy_retraining() for _ in range(3))
    straight.run()
    stopped.run_epoch()
    resumed.load_state_dict(stopped.state_dict())
    resumed.run()
    assert differences_of(straight, resumed) == []
    assert straight.curve[-1]["test_accuracy"] == resumed.curve[-1]["test_accuracy"]


def differences_of(one: RetrainTrial, other: RetrainTrial) -> list[str]:
    mine, theirs = flat(one.network.state_dict()), flat(other.network.state_dict())
    return [name for name, value in mine.items() if not torch.equal(value, theirs[name])]


def test_alphas_have_the_candidates_of_an_edge_for_columns() -> None:
    trial: SearchTrial = small_search(space="s1")
    assert {name: tuple(a.shape) for name, a in trial.alphas.items()} == {
        "normal": (14, 2),
        "reduction": (14, 2),
    }
