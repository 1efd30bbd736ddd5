"""FairDARTS and beta-DARTS: penalties of the alphas, entry by entry, and in whole searches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core.errors import PluginSettingsError
from spaces.core.space import Space
from tests.spaces.helpers import space_of
from tests.trainables.plain_search import PlainSearch, one_step, plain_softmax
from tests.trainables.searches import SPACES, flat, small_search
from trainables.method import Method, OpWeights, SearchPoint
from trainables.methods import beta_darts, fair_darts
from trainables.search import SearchTrial

pytestmark = pytest.mark.usefixtures("tiny_plugins")

FAIR: dict[str, Any] = {"name": "fair_darts"}
BETA: dict[str, Any] = {"name": "beta_darts"}


def at(epoch: int = 0, epochs: int = 1) -> SearchPoint:
    return SearchPoint(epoch, epochs, torch.Generator())


def random_alphas(*shapes: tuple[int, int]) -> OpWeights:
    """Of different sizes, so that a mean of the cell types' means is another number."""
    source = torch.Generator().manual_seed(2)
    return {
        f"cell {index}": torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()
        for index, shape in enumerate(shapes or ((5, 4), (2, 7)))
    }


def entries(alphas: OpWeights) -> list[float]:
    return [value for alpha in alphas.values() for row in alpha.tolist() for value in row]


def logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def penalty_of(method: Method, alphas: OpWeights, point: SearchPoint) -> Tensor:
    assert method.penalty is not None
    found = method.penalty(alphas, point)
    assert found.shape == ()
    return found


# FairDARTS.


def test_sigmoid_op_weights_are_independent_of_each_other() -> None:
    alphas = random_alphas()
    found = fair_darts.build(fair_darts.Config()).relax(alphas, at())
    expected = [logistic(value) for value in entries(alphas)]
    assert entries(found) == pytest.approx(expected, abs=1e-14)
    assert fair_darts.build(fair_darts.Config()).mean is None


@pytest.mark.parametrize("weight", [10.0, 0.5])
@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_the_zero_one_penalty_is_the_mean_distance_from_a_half(kind: Any, weight: float) -> None:
    alphas = random_alphas()
    config = fair_darts.Config(penalty=kind, penalty_weight=weight)
    found = penalty_of(fair_darts.build(config), alphas, at())
    weights = [logistic(value) for value in entries(alphas)]
    each = [abs(p - 0.5) ** (2 if kind == "l2" else 1) for p in weights]
    assert found.item() == pytest.approx(-weight * sum(each) / len(each), abs=1e-13)
    gradients = torch.autograd.grad(found, list(alphas.values()))
    for alpha, gradient in zip(alphas.values(), gradients, strict=True):
        for value, slope in zip(alpha.flatten().tolist(), gradient.flatten().tolist(), strict=True):
            p = logistic(value)
            outer = 2 * (p - 0.5) if kind == "l2" else math.copysign(1.0, p - 0.5)
            expected = -weight / len(each) * outer * p * (1 - p)
            assert slope == pytest.approx(expected, abs=1e-13)
            # Down the gradient is away from a half.
            assert slope * value < 0


def test_the_defaults_are_the_published_ones() -> None:
    config = fair_darts.Config()
    assert (config.penalty, config.penalty_weight, config.threshold) == ("l2", 10.0, 0.85)
    assert beta_darts.Config().lambda_max == 50.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FAIR | {"penalty_weight": -1.0}, "penalty_weight must be a finite number >= 0, got -1.0"),
        (FAIR | {"penalty_weight": float("nan")}, "penalty_weight must be a finite number >= 0"),
        (FAIR | {"penalty": "l1", "penalty_weight": 0.0}, "penalty has no effect"),
        (FAIR | {"threshold": 1.0}, r"threshold must be in \[0, 1\), got 1.0"),
        (FAIR | {"threshold": -0.1}, r"threshold must be in \[0, 1\), got -0.1"),
        (BETA | {"lambda_max": -1.0}, "lambda_max must be a finite number >= 0, got -1.0"),
        (BETA | {"lambda_max": float("inf")}, "lambda_max must be a finite number >= 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        small_search(settings)


def choose(space: Space, op_weights: OpWeights, threshold: float = 0.85) -> Any:
    selection = fair_darts.build(fair_darts.Config(threshold=threshold)).selection
    assert selection is not None
    assert selection.at_end is None
    return selection.each_epoch(space, op_weights)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # none, skip, 1x1, 3x3, pool.
        ([0.1, 0.2, 0.9, 0.3, 0.88], "nor_conv_1x1"),
        ([0.1, 0.2, 0.84, 0.3, 0.4], "none"),
        ([0.1, 0.2, 0.3, 0.86, 0.4], "nor_conv_3x3"),
        # As in the authors' code, the threshold itself is enough.
        ([0.1, 0.85, 0.3, 0.2, 0.4], "skip_connect"),
        ([0.95, 0.9, 0.3, 0.2, 0.4], "none"),
        ([0.9, 0.95, 0.3, 0.2, 0.4], "skip_connect"),
        ([0.9, 0.2, 0.3, 0.2, 0.4], "none"),
        # Weights that are one another's neighbours: no softmax goes before the threshold.
        ([0.99, 0.992, 0.991, 0.99, 0.99], "skip_connect"),
    ],
)
def test_an_edge_without_a_strong_operation_gets_none(row: list[float], expected: str) -> None:
    space = space_of(SPACES["nasbench201"])
    weak = [0.1, 0.2, 0.3, 0.4, 0.5]
    for edge in range(6):
        rows = [weak] * 6
        rows[edge] = row
        given = torch.tensor(rows, dtype=torch.float64)
        before = given.clone()
        chosen = choose(space, {"cell": given})
        space.check(chosen)
        by_edge = {(e.source, e.target): e.operation for e in chosen.cell("cell").edges}
        found = [by_edge[pair] for pair in space.edges["cell"]]
        assert found == ["none"] * edge + [expected] + ["none"] * (5 - edge)
        assert torch.equal(given, before)


def test_a_threshold_of_zero_is_the_rule_of_the_space() -> None:
    space = space_of(SPACES["nasbench201"])
    op_weights = {"cell": torch.rand(6, 5, generator=torch.Generator().manual_seed(0))}
    assert choose(space, op_weights, 0.0) == space.discretize(op_weights)
    assert choose(space, op_weights, 0.999) != space.discretize(op_weights)


@pytest.mark.parametrize("name", ["darts", "darts_per_cell"])
def test_where_edges_are_of_a_fixed_number_the_threshold_changes_nothing(name: str) -> None:
    space = space_of(SPACES[name])
    source = torch.Generator().manual_seed(0)
    op_weights = {
        cell: 0.8 * torch.rand(shape, generator=source)
        for cell, shape in space.alpha_shapes().items()
    }
    assert choose(space, op_weights) == space.discretize(op_weights)
    space.check(choose(space, op_weights))


def test_a_search_takes_the_methods_own_selection() -> None:
    trial = small_search(FAIR, precision="float64")
    # All op weights start at one half.
    assert {edge.operation for edge in trial.genotype.cell("cell").edges} == {"none"}
    with torch.no_grad():
        trial.alphas["cell"][2, 3] = 2.0  # sigmoid 0.88
        trial.alphas["cell"][1, 3] = 1.5  # sigmoid 0.82
    trial.op_weights = trial._bilevel.relaxed(trial._bilevel.point(0))
    chosen = trial._by_each_epoch(trial._selection).cell("cell").edges
    assert [e.operation for e in chosen].count("none") == 5
    (kept,) = [(e.source, e.target) for e in chosen if e.operation != "none"]
    assert kept == trial.space.edges["cell"][2]


# beta-DARTS.


@pytest.mark.parametrize(
    ("epoch", "epochs", "weight"), [(0, 100, 0.0), (1, 100, 0.5), (99, 100, 49.5), (25, 50, 25.0)]
)
def test_beta_decay_is_the_mean_logsumexp_of_the_edges(
    epoch: int, epochs: int, weight: float
) -> None:
    alphas = random_alphas()
    method = beta_darts.build(beta_darts.Config())
    found = penalty_of(method, alphas, at(epoch, epochs))
    rows = [row for alpha in alphas.values() for row in alpha.tolist()]
    each = [math.log(sum(math.exp(value) for value in row)) for row in rows]
    assert found.item() == pytest.approx(weight * sum(each) / 7, abs=1e-12)
    assert method.log(at(epoch, epochs)) == {"penalty_weight": pytest.approx(weight)}
    # Its gradient is the softmax, so that it pulls on the largest alphas most.
    for alpha in alphas.values():
        (gradient,) = torch.autograd.grad(found, alpha, retain_graph=True)
        expected = weight / 7 * plain_softmax(alpha.detach())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    doubled = beta_darts.build(beta_darts.Config(lambda_max=100.0))
    assert penalty_of(doubled, alphas, at(epoch, epochs)).item() == pytest.approx(2 * found.item())


# In a search.


def plain_zero_one(power: int) -> Callable[[OpWeights], Tensor]:
    def penalty(alphas: OpWeights) -> Tensor:
        each = [
            (value.sigmoid() - 0.5).abs() ** power
            for alpha in alphas.values()
            for value in alpha.flatten()
        ]
        return -10.0 * torch.stack(each).sum() / len(each)

    return penalty


def plain_beta(weight: float) -> Callable[[OpWeights], Tensor]:
    def penalty(alphas: OpWeights) -> Tensor:
        each = [row.exp().sum().log() for alpha in alphas.values() for row in alpha]
        return weight * torch.stack(each).sum() / len(each)

    return penalty


def penalty_at(settings: dict[str, Any], epoch: int) -> Callable[[OpWeights], Tensor]:
    if settings["name"] == "beta_darts":
        return plain_beta(50.0 * epoch / 3)
    return plain_zero_one(1 if settings.get("penalty") == "l1" else 2)


@pytest.mark.parametrize(
    ("settings", "space"),
    [
        (FAIR, "nasbench201"),
        (FAIR | {"penalty": "l1"}, "nasbench201"),
        (FAIR, "darts"),
        (BETA, "nasbench201"),
        (BETA, "darts"),
    ],
    ids=str,
)
def test_steps_equal_those_of_a_plain_search(settings: dict[str, Any], space: str) -> None:
    trial, other, free = (
        small_search(given, space=space, precision="float64", batch_size=6)
        for given in (settings, settings, without_penalty(settings))
    )
    relax = torch.sigmoid if settings["name"] == "fair_darts" else plain_softmax
    plain = PlainSearch(trial, relax=relax)
    for epoch in range(3):
        train_batch, val_batch = other._data.next_batches()
        plain.alpha_step(val_batch, penalty_at(settings, epoch))
        op_weights = plain.op_weights()
        expected = plain.weight_step(epoch, train_batch, op_weights)
        found = one_step(trial, epoch, *trial._data.next_batches())
        # The training loss is the cross entropy alone.
        assert found["train_loss"].item() == pytest.approx(expected, abs=1e-10)
        relaxed = trial._bilevel.relaxed(trial._bilevel.point(epoch))
        for name, matrix in op_weights.items():
            torch.testing.assert_close(relaxed[name], matrix.detach(), rtol=0, atol=1e-10)
        plain.assert_equal(trial)
        one_step(free, epoch, *free._data.next_batches())
    for name, alpha in trial.alphas.items():
        assert (alpha - free.alphas[name]).abs().max() > 0.01


def without_penalty(settings: dict[str, Any]) -> dict[str, Any]:
    key = {"beta_darts": "lambda_max", "fair_darts": "penalty_weight"}[settings["name"]]
    return {"name": settings["name"], key: 0.0}


def test_beta_darts_is_darts_in_its_first_epoch_and_where_its_weight_is_zero() -> None:
    beta, free, darts = (
        small_search(method, precision="float64")
        for method in (BETA, without_penalty(BETA), "darts")
    )
    for trial in (beta, free, darts):
        trial.run_epoch()
    assert not bilevel_differences(beta, darts)
    beta.run_epoch()
    for trial in (free, darts):
        trial.run()
    assert not bilevel_differences(free, darts)
    assert "/alphas/cell" in bilevel_differences(beta, darts)


def bilevel_differences(first: SearchTrial, second: SearchTrial) -> list[str]:
    left, right = (flat(trial.state_dict()["bilevel"]) for trial in (first, second))
    return [
        path
        for path, leaf in left.items()
        if not (torch.equal(leaf, right[path]) if isinstance(leaf, Tensor) else leaf == right[path])
    ]


@pytest.mark.parametrize("settings", [FAIR, BETA], ids=str)
def test_alphas_that_rest_are_not_penalised(settings: dict[str, Any]) -> None:
    trial = small_search(settings | {"alpha_start": 2})
    calls = watch_penalty(trial)
    before = trial.alphas["cell"].detach().clone()
    for _ in range(2):
        trial.run_epoch()
    assert calls == []
    assert torch.equal(trial.alphas["cell"], before)
    trial.run_epoch()
    # Once a step, at the epoch of the search and not of the alphas.
    assert calls == [2] * trial.steps_per_epoch
    assert not torch.equal(trial.alphas["cell"], before)


def watch_penalty(trial: SearchTrial) -> list[int]:
    calls: list[int] = []
    penalty = trial.method.penalty
    assert penalty is not None

    def noted(alphas: OpWeights, point: SearchPoint) -> Tensor:
        calls.append(point.epoch)
        return penalty(alphas, point)

    trial._bilevel.method = dataclasses.replace(trial.method, penalty=noted)
    return calls


def test_validation_measures_the_cross_entropy_alone() -> None:
    losses = []
    for settings in (FAIR, without_penalty(FAIR)):
        trial = small_search(settings, precision="float64", alpha_lr=1e-12)
        with torch.no_grad():
            trial.alphas["cell"].fill_(2.0)
        losses.append(trial.run_epoch()["val_loss"])
    # The penalty is -1.5 nats here.
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
