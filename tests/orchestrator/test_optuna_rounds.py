"""An Optuna sweep whose trials are lost before they run: they run again in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator import config, plan_runner, runner, tracking
from orchestrator.ledger import Row
from orchestrator.study import Study
from tests.orchestrator.test_monitor import BROKE, DIED
from tests.orchestrator.test_retries import NODE

YAML = """
name: s
space: {name: nasbench201, channels: 2, cells_per_stage: 1}
dataset: digits
method: darts
search: {epochs: 2, weight_lr: {loguniform: [0.01, 0.1]}}
retrain: null
tune: {num_samples: 3, searcher: optuna, max_failures: 1}
"""
Fate = Callable[[int, int], str | None]


class Silent:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def update(self, progress: Any) -> None:
        pass

    def message(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None:
        pass


def finish(study: Study, unit: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the rows of a unit that has run."""
    for seed, key in unit["rows"].items():
        row = Row(
            key, "search", "finished", unit["config_id"], int(seed), "darts", "nasbench201",
            "digits", block=unit["block"], params=unit["params"], label=unit["label"],
            settings=settings, curve=[{"epoch": e, "val_accuracy": 0.5} for e in (1, 2)],
            epochs_done=2, epochs_total=2, started=time.time(), ended=time.time(),
        )  # fmt: skip
        study.ledger.write(row)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what runs the study: its rounds, as lists of configurations, and its outcome.

    What becomes of a trial is said by its place and that of its round: the error of its process, or
    None, which is its end.
    """

    def run(fate: Fate, *overrides: str) -> tuple[list[list[str]], Any, Study]:
        rounds: list[list[str]] = []

        def run_plan(plans: Any, monitor: Any, plan: Any) -> None:
            rounds.append([])
            for index in range(plan.new):
                name = f"trial-{len(rounds)}-{index}"
                given = plan.searcher.suggest(name)
                if given == Searcher.FINISHED:
                    break
                unit = given["unit"]
                rounds[-1].append(unit["config_id"])
                error = fate(len(rounds), index)
                if error is None:
                    finish(plans.study, unit, {"search": given["search"]})
                last = {"training_iteration": 2, "val_accuracy": 0.5, "ended": True}
                monitor.on_end(given, {} if error else last, error)
                plan.searcher.on_trial_complete(name, None if error else last, error is not None)

        monkeypatch.setattr(plan_runner.PlanRunner, "run_plan", run_plan)
        monkeypatch.setattr(runner._Driver, "_count_costs", lambda driver: None)
        monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
        monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
        file = tmp_path / "s.yaml"
        file.write_text(YAML)
        experiment = config.load_experiment(file, overrides)
        outcome = runner.run_study(experiment, tmp_path, command="t", reporter=Silent())
        return rounds, outcome, Study.open("s", tmp_path)

    return run


def test_what_was_lost_runs_again_and_nothing_is_drawn_in_its_place(run: Any) -> None:
    rounds, outcome, study = run(lambda number, index: DIED if (number, index) == (1, 1) else None)
    assert rounds[1:] == [[rounds[0][1]]]
    assert len(set(rounds[0])) == 3
    assert (outcome.finished, outcome.failed, outcome.interrupted) == (3, 0, False)
    assert {row.config_id for row in study.rows()} == set(rounds[0])


def test_what_is_lost_again_and_again_has_failed(run: Any) -> None:
    rounds, outcome, study = run(lambda number, index: DIED if number > 1 or index == 1 else None)
    assert rounds[1:] == [[rounds[0][1]]]  # tune.max_failures: 1
    assert (outcome.finished, outcome.failed, outcome.interrupted) == (2, 1, False)
    (failed,) = [row for row in study.rows() if row.status == "failed"]
    assert failed.config_id == rounds[0][1]


def test_the_loss_of_a_node_is_free(run: Any) -> None:
    rounds, outcome, _ = run(lambda number, index: NODE if number < 5 and index == 0 else None)
    assert rounds[1:] == [[rounds[0][0]]] * 4
    assert outcome.finished == 3


def test_an_error_of_its_own_is_not_a_loss(run: Any) -> None:
    fates = {(1, 0): BROKE, (1, 1): DIED}
    rounds, outcome, _ = run(lambda number, index: fates.get((number, index)))
    assert rounds[1:] == [[rounds[0][1]]]
    assert (outcome.finished, outcome.failed) == (2, 1)


def test_a_scheduler_sees_those_that_ended_again(run: Any) -> None:
    fates = {(1, 0): BROKE, (1, 1): DIED}
    asha = "tune.scheduler={name: asha, max_epochs: 2, grace_epochs: 1, reduction_factor: 3}"
    rounds, outcome, study = run(lambda number, index: fates.get((number, index)), asha)
    assert [set(each) for each in rounds[1:]] == [{rounds[0][1], rounds[0][2]}]
    assert (outcome.finished, outcome.failed) == (2, 1)
    assert len(study.rows()) == 3
