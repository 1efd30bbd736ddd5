"""Searches that end before their last epoch: the rule by itself, and in a search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces.core.errors import PluginSettingsError
from tests.trainables.searches import differences, small_search
from trainables.early_stopping import eigenvalue
from trainables.early_stopping.eigenvalue import Config, build, every, verdict
from trainables.errors import StateError
from trainables.probes import alpha_hessian, hessian_values
from trainables.search import SearchTrial
from trainables.stored import open_final

pytestmark = pytest.mark.usefixtures("tiny_plugins")

EAGER = {"name": "eigenvalue", "window": 1, "delta": 1, "every": 1, "start": 1}


def measured(values: Sequence[float], between: int) -> list[tuple[int, float]]:
    return [(index * between, value) for index, value in enumerate(values)]


def plain_rule(values: list[float], epochs_done: int) -> int | None:
    """The published rule at its settings, epoch by epoch: every 2, window 5, delta 4, start 10."""
    averages: dict[int, float] = {}
    for count in range(5, len(values) + 1):
        middle = 2 * (count - 1) - 4
        averages[middle] = sum(values[count - 5 : count]) / 5
    now = epochs_done - 4
    before = now - 8
    if before < 10 or before not in averages:
        return None
    return before if averages[now] / averages[before] > 1.3 else None


def test_the_first_possible_end_is_epoch_22_with_the_genotype_of_10() -> None:
    growing = [1.5**index for index in range(25)]
    ends = []
    for count in range(1, 26):
        logged, target = verdict(measured(growing[:count], 2), 50, config=Config())
        assert target == plain_rule(growing[:count], 2 * (count - 1))
        assert ("eigenvalue_growth" in logged) == (count >= 9)
        if target is not None:
            ends.append((2 * (count - 1), target))
    assert ends[0] == (22, 10)


@pytest.mark.parametrize("bump", range(25))
def test_it_agrees_with_the_published_rule_wherever_the_eigenvalue_jumps(bump: int) -> None:
    values = [1.0 + 0.01 * index + (2.0 if index == bump else 0.0) for index in range(25)]
    for count in range(1, 26):
        _, target = verdict(measured(values[:count], 2), 50, config=Config())
        assert target == plain_rule(values[:count], 2 * (count - 1)), count


def test_growth_is_a_ratio_of_means_and_must_exceed_the_factor() -> None:
    config = Config(window=2, delta=2, start=0)
    values = measured([1.0, 3.0, 5.0, 7.0], 1)
    assert verdict(values, 10, config=replace(config, factor=2.99)) == (
        {"eigenvalue_growth": 3.0},
        0,
    )
    assert verdict(values, 10, config=replace(config, factor=3.0))[1] is None
    assert verdict(measured([-1.0, -3.0, 5.0, 7.0], 1), 10, config=config) == ({}, None)


def test_epochs_keep_their_published_share() -> None:
    assert every(Config(), 50) == 2
    assert every(Config(), 100) == 4
    assert every(Config(), 15) == 1
    assert every(Config(every=3), 50) == 3
    rule = build(Config())
    assert [epoch for epoch in range(9) if rule.due(epoch, 100)] == [0, 4, 8]


def ended(**changes: Any) -> SearchTrial:
    """A search that the rule ends: any growth at all is too much."""
    rule = EAGER | {"factor": 1e-9} | changes
    trial = small_search({"name": "darts", "early_stop": rule}, epochs=8, alpha_lr=0.3)
    trial.run()
    return trial


def test_a_search_ends_with_the_genotype_of_the_epoch_that_the_rule_names() -> None:
    trial = ended()
    assert trial.finished
    assert not trial.diverged
    # Measured after epochs 1, 2 and 3: the first target that is not before `start` is epoch 2.
    assert len(trial.curve) == trial.epoch == 3
    assert trial.stopped_at == trial.genotype_epoch == 2
    assert trial.genotype.hash == trial.curve[1]["genotype_hash"]
    assert [entry["stopped_early"] for entry in trial.curve] == [0, 0, 1]
    assert "op_weights" in trial.curve[-1]
    assert trial.chooses_epoch


def test_the_value_is_the_hessian_of_the_state_after_the_epoch() -> None:
    trial = ended()
    batch = next(trial._data.validation())
    bilevel = trial._bilevel
    decay = trial.settings.alpha_weight_decay
    hessian = alpha_hessian(bilevel, bilevel.point(2), batch, "batch", weight_decay=decay)
    expected = hessian_values(hessian)["hessian_eigenvalue"]
    assert trial.curve[-1]["early_stop_eigenvalue"] == pytest.approx(expected, rel=1e-6)


def test_the_rule_changes_nothing_of_a_search_that_it_does_not_end() -> None:
    rule = EAGER | {"factor": 1e9}
    watched = small_search({"name": "darts", "early_stop": rule}, epochs=4)
    plain = small_search("darts", epochs=4)
    watched.run()
    plain.run()
    assert not watched.chooses_epoch
    assert watched.genotype_epoch == 4
    for mine, other in zip(watched.curve, plain.curve, strict=True):
        for name in ("train_loss", "val_loss", "genotype_hash"):
            assert mine[name] == other[name]


def test_an_ended_search_is_resumed_as_ended_and_one_under_way_ends_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is measured is tested below; here a cheaper number of the state takes its place.
    monkeypatch.setattr(
        eigenvalue,
        "probe_hessian",
        lambda bilevel, *_: {"hessian_eigenvalue": float(bilevel.weights[0].detach().abs().sum())},
    )
    straight = ended()
    rule = EAGER | {"factor": 1e-9}
    for epochs in range(4):
        cut = small_search({"name": "darts", "early_stop": rule}, epochs=8, alpha_lr=0.3)
        for _ in range(epochs):
            cut.run_epoch()
        resumed = small_search({"name": "darts", "early_stop": rule}, epochs=8, alpha_lr=0.3)
        resumed.load_state_dict(cut.state_dict())
        assert resumed.finished == (epochs == 3)
        resumed.run()
        assert differences(straight, resumed) == []
        assert resumed.stopped_at == 2


def test_its_final_state_has_the_genotype_that_was_chosen(tmp_path: Path) -> None:
    trial = ended()
    torch.save(trial.final_state(), tmp_path / "final.pt")
    assert json.loads(trial.final_state()["genotype"]) == trial.curve[1]["genotype"]
    assert open_final(tmp_path / "final.pt", device="cpu").genotype.hash == trial.genotype.hash


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "ms_darts"}, "genotype_of best_epoch"),
        ({"name": "darts", "select": "operation_strength"}, "looks at the supernet"),
        ({"name": "p_darts", "added_cells": [0, 0, 0]}, "stages"),
        (
            {"name": "darts", "fixed_alphas": True, "select": "perturbation"},
            "alphas of darts are not trained",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(method: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginSettingsError, match=words):
        small_search(method | {"early_stop": EAGER}, epochs=6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factor": 0}, "factor must be > 0"),
        ({"window": 0}, "window must be >= 1"),
        ({"delta": 0}, "delta must be >= 1"),
        ({"every": 0}, "every must be >= 1"),
        ({"start": -1}, "start must be >= 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    rule = {"name": "eigenvalue"} | settings
    with pytest.raises(PluginSettingsError, match=words):
        small_search({"name": "darts", "early_stop": rule})


def test_it_is_the_largest_algebraic_eigenvalue(monkeypatch: pytest.MonkeyPatch) -> None:
    hessian = torch.diag(torch.tensor([-5.0, 1.0], dtype=torch.float64))
    monkeypatch.setattr("trainables.probes.alpha_hessian", lambda *_, **__: hessian)
    trial = small_search("darts")
    measure = build(Config()).measure
    assert measure(trial._bilevel, trial._data, trial._bilevel.point(0)) == pytest.approx(1.0)


def test_what_is_before_the_alphas_move_does_not_count() -> None:
    rule = EAGER | {"factor": 1e-9, "start": 0}
    method = {"name": "darts", "early_stop": rule, "alpha_start": 4}
    trial = small_search(method, epochs=8, alpha_lr=0.3)
    trial.run()
    with_value = [entry["epoch"] for entry in trial.curve if "early_stop_eigenvalue" in entry]
    assert with_value == [5, 6]
    assert trial.genotype_epoch == 5


def test_a_rule_that_could_never_end_the_search_is_refused() -> None:
    with pytest.raises(PluginSettingsError, match="could never end this search"):
        small_search({"name": "darts", "early_stop": "eigenvalue"}, epochs=8)
    small_search({"name": "darts", "early_stop": "eigenvalue"}, epochs=13)
    late = {"name": "darts", "early_stop": "eigenvalue", "alpha_start": 10}
    with pytest.raises(PluginSettingsError, match="could never end this search"):
        small_search(late, epochs=13)


def test_a_rule_for_the_supernet_is_refused_where_that_is_of_a_later_epoch(tmp_path: Path) -> None:
    trial = ended()
    torch.save(trial.final_state(), tmp_path / "final.pt")
    for each in (trial, open_final(tmp_path / "final.pt", device="cpu")):
        with pytest.raises(StateError, match="stopped early for its genotype of epoch 2"):
            each.select({"name": "operation_strength"})
