"""DARTS-: the schedule of the auxiliary skip, a second plain search, and that genotypes lack it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spaces.core.errors import PluginSettingsError
from spaces.core.mixture import Mixture, Structure
from tests.trainables.plain_search import PlainSearch, note_mixtures, one_step
from tests.trainables.searches import small_search
from tests.trainables.test_passes import counted
from trainables.method import Method, SearchPoint
from trainables.methods.darts_minus import Config, build
from trainables.probes import alone, one_hot, probe_gap
from trainables.settings import DiscretizationGap

pytestmark = pytest.mark.usefixtures("tiny_plugins")

MINUS: dict[str, Any] = {"name": "darts_minus"}


def scale(method: Method, epoch: int, epochs: int) -> float:
    at = SearchPoint(epoch, epochs, torch.Generator())
    assert method.skip_scale is not None
    found = method.skip_scale(at)
    assert method.log(at) == {"skip_scale": found}
    return found


@pytest.mark.parametrize(
    ("epoch", "epochs", "linear", "cosine"),
    [
        (0, 50, 1.0, 1.0),
        (25, 50, 0.5, 0.5),
        (10, 50, 0.8, (1 + math.cos(math.pi / 5)) / 2),
        # As published: 0.02 in the last trained epoch of 50, one epoch before it would be 0.
        (49, 50, 0.02, (1 - math.cos(math.pi / 50)) / 2),
        (2, 3, 1 / 3, 0.25),
        (99, 100, 0.01, (1 - math.cos(math.pi / 100)) / 2),
    ],
)
def test_the_skip_fades_over_the_epochs(
    epoch: int, epochs: int, linear: float, cosine: float
) -> None:
    for start in (1.0, 0.5):
        for schedule, expected in (("linear", linear), ("cosine", cosine)):
            method = build(Config(schedule=schedule, scale_start=start))  # type: ignore[arg-type]
            assert scale(method, epoch, epochs) == pytest.approx(start * expected, abs=1e-12)
    assert scale(build(Config()), epoch, epochs) == pytest.approx(linear, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_skip_that_is_never_there_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"scale_start must be > 0, got {value!r}"):
        Config(scale_start=value)
    with pytest.raises(PluginSettingsError, match="scale_start must be > 0"):
        small_search(MINUS | {"scale_start": value})


@pytest.mark.parametrize(
    ("settings", "space"),
    [
        (MINUS, "nasbench201"),
        (MINUS, "darts"),
        (MINUS | {"schedule": "cosine", "scale_start": 0.6}, "nasbench201"),
    ],
    ids=str,
)
def test_steps_equal_those_of_a_plain_search(settings: dict[str, Any], space: str) -> None:
    trial, other = (
        small_search(settings, space=space, precision="float64", batch_size=6) for _ in range(2)
    )
    plain = PlainSearch(trial, structure=Structure(auxiliary_skip=True))
    mixtures = note_mixtures(trial)
    start = settings.get("scale_start", 1.0)
    for epoch in range(3):
        share = 1 - epoch / 3
        if "schedule" in settings:
            share = (1 + math.cos(math.pi * epoch / 3)) / 2
        train_batch, val_batch = other._data.next_batches()
        plain.alpha_step(val_batch, skip_scale=start * share)
        op_weights = plain.op_weights()
        expected = plain.weight_step(epoch, train_batch, op_weights, skip_scale=start * share)

        mixtures.clear()
        found = one_step(trial, epoch, *trial._data.next_batches())
        assert found["train_loss"].item() == pytest.approx(expected, abs=1e-10)
        assert [m.skip_scale for m in mixtures] == [pytest.approx(start * share, abs=1e-12)] * 2
        for name, matrix in op_weights.items():
            seen = mixtures[-1].op_weights[name]
            torch.testing.assert_close(seen, matrix.detach(), rtol=0, atol=1e-10)
        plain.assert_equal(trial)
    darts = small_search(space=space, precision="float64", batch_size=6)
    for epoch in range(3):
        one_step(darts, epoch, *darts._data.next_batches())
    moved = [(darts.alphas[n] - alpha).abs().max() for n, alpha in trial.alphas.items()]
    assert max(moved) > 1e-3


def test_a_step_costs_what_one_of_darts_does(monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, backwards = counted(small_search(MINUS, batch_size=6), 0, monkeypatch)
    assert forwards == Counter(batch_and_update=2)
    assert backwards == Counter(alphas=1, weights=1)


def test_the_supernet_is_measured_with_the_skip_of_its_epoch() -> None:
    trial = small_search(MINUS)
    mixtures = note_mixtures(trial)
    for epoch in range(3):
        mixtures.clear()
        entry = trial.run_epoch()
        assert entry["skip_scale"] == pytest.approx(1 - epoch / 3)
        # Training and validation passes alike.
        assert len(mixtures) > 4
        assert {m.skip_scale for m in mixtures} == {entry["skip_scale"]}


def test_selection_is_that_of_the_op_weights() -> None:
    trial = small_search(MINUS, space="darts", precision="float64")
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in trial.alphas.values():
            alpha.copy_(torch.randn(alpha.shape, generator=source))
    trial.op_weights = trial._bilevel.relaxed(trial._bilevel.point(0))
    strengths = trial._bilevel.strengths(trial.op_weights, trial._bilevel.point(0))
    op_weights = {n: torch.softmax(alpha.detach(), -1) for n, alpha in trial.alphas.items()}
    for name, matrix in op_weights.items():
        torch.testing.assert_close(strengths[name], matrix)
    assert trial._by_each_epoch(trial._selection) == trial.space.discretize(op_weights)


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_a_genotype_alone_has_no_auxiliary_skip(
    monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    trial = small_search(MINUS, space=space, precision="float64", batch_size=6)
    bilevel = trial._bilevel
    at = bilevel.point(1)
    whole = bilevel.mixture(bilevel.relaxed(at), at)
    assert whole.skip_scale == pytest.approx(2 / 3)
    single = alone(trial.space, trial.genotype, whole)
    assert single.skip_scale is None

    # The numbers, too: a reference that has the branch is never asked to run it.
    plain = PlainSearch(trial, structure=Structure(auxiliary_skip=True))
    hot = one_hot(trial.space, trial.genotype, bilevel.relaxed(at))
    images, labels = next(trial._data.validation())

    def loss(**mixed: Any) -> Tensor:
        logits = plain.net(images, hot, Mixture(hot, **mixed))
        return functional.cross_entropy(logits, labels)

    with torch.no_grad():
        found = bilevel.loss_on(single, (images, labels), "batch")
        torch.testing.assert_close(found, loss(), rtol=0, atol=1e-10)
        assert (found - loss(skip_scale=2 / 3)).abs() > 1e-6

    measured: list[Mixture] = []
    evaluate = bilevel.evaluate

    def noted(mixture: Mixture, *args: Any) -> Tensor:
        measured.append(mixture)
        return evaluate(mixture, *args)

    monkeypatch.setattr(bilevel, "evaluate", noted)
    probe_gap(
        bilevel, trial._data, at, DiscretizationGap(), space=trial.space, genotype=trial.genotype
    )
    assert [m.skip_scale for m in measured] == [pytest.approx(2 / 3), None]
