"""What the driver makes of a trial's end: lost processes, errors, early stops."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import config
from orchestrator.monitor import Monitor
from orchestrator.outbox import Outbox
from orchestrator.progress import Progress
from orchestrator.study import Study
from orchestrator.units import Unit
from tests.orchestrator import drive
from tests.orchestrator.fake_study import make_study

DIED = (
    "Failure # 1 (occurred at ...)\nValueError: bad\nFailure # 2 (...)\nThe actor died unexpectedly"
)
BROKE = "Failure # 1 (occurred at ...)\nThe actor died\nFailure # 2 (...)\nValueError: bad"
KEY = "a" * 16


class Silent:
    """A reporter that keeps the last progress."""

    def __init__(self) -> None:
        self.last: Progress | None = None

    def update(self, progress: Progress) -> None:
        self.last = progress

    def message(self, text: str) -> None:
        raise AssertionError(text)

    def close(self) -> None:
        raise AssertionError("closed")


@pytest.fixture
def monitor(tmp_path: Path) -> Monitor:
    experiment = config.load_experiment(drive.write_experiment(tmp_path, "m"))
    study = Study.create(tmp_path / "studies", experiment, "test")
    return Monitor(study, Outbox(study.outbox), Silent(), "search", [unit()], 1, 0.0)


def unit() -> Unit:
    settings = {"method": {"name": "darts"}, "space": {"name": "x"}, "dataset": {"name": "digits"}}
    return Unit("search", settings, {0: KEY}, "c" * 10, 0, {}, "darts", 4)


def ray_config() -> dict[str, Any]:
    return unit().ray_config("study", "cpu")


def test_a_lost_process_is_run_again_before_its_row_is_given_up(monitor: Monitor) -> None:
    monitor.on_end(ray_config(), {}, DIED)
    assert monitor.is_lost(unit())
    assert not monitor.ended(unit())
    assert monitor.study.ledger.keys() == []
    monitor.give_up()
    row = monitor.study.ledger.read(KEY)
    assert row is not None
    assert (row.status, row.seed, row.method) == ("failed", 0, "darts")
    assert "actor died" in str(row.error)
    assert not monitor.is_lost(unit())


def test_an_error_of_its_own_is_a_failed_row_at_once(monitor: Monitor) -> None:
    monitor.on_end(ray_config(), {}, BROKE)
    assert not monitor.is_lost(unit())
    assert monitor.ended(unit())
    row = monitor.study.ledger.read(KEY)
    assert row is not None
    assert row.status == "failed"
    # A later run of the driver takes it up again.
    later = Monitor(monitor.study, monitor.outbox, Silent(), "search", [unit()], 1, 0.0)
    assert not later.ended(unit())


def test_an_end_without_error_is_an_early_stop(monitor: Monitor) -> None:
    monitor.on_end(ray_config(), {"training_iteration": 2}, None)
    row = monitor.study.ledger.read(KEY)
    assert row is not None
    assert row.status == "stopped"
    assert row.stop == {"epoch": 2, "reason": "stopped by Tune"}
    monitor.on_tick(running=0)
    assert isinstance(monitor.reporter, Silent)
    assert monitor.reporter.last is not None
    assert (monitor.reporter.last.done, monitor.reporter.last.stopped) == (1, 1)


def test_rows_of_before_count_as_done_once(monitor: Monitor, tmp_path: Path) -> None:
    monitor.on_end(ray_config(), {}, BROKE)
    rows = list(monitor.study.rows("search"))
    later = Monitor(monitor.study, monitor.outbox, Silent(), "search", [], 2, 0.0)
    later.add_rows(rows)
    later.add_rows(rows)
    later.on_tick(0)
    assert isinstance(later.reporter, Silent)
    assert later.reporter.last is not None
    assert (later.reporter.last.done, later.reporter.last.failed) == (1, 1)
    assert later.reporter.last.total == 2


def test_the_time_left_knows_that_a_scheduler_stops_most(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    units = [replace(unit(), rows={0: f"{n:016x}"}, epochs=12) for n in range(20)]
    reporter = Silent()
    watch = Monitor(study, Outbox(study.outbox), reporter, "search", units, 20, 0.0)

    def epoch(number: int, epoch: int) -> None:
        entry = {"epoch": epoch, "ended": 1.0}
        watch.on_result(units[number].ray_config("study", "cpu"), {"seeds": {"0": entry}})

    def left() -> float | None:
        watch.stage_started = time.time() - 30.0
        watch.on_tick(1)
        assert reporter.last is not None
        return reporter.last.left_s

    assert left() is None
    epoch(0, 1)
    assert left() == pytest.approx(30 / 1 * (11 + 19 * 12), rel=0.01)  # nothing is known yet
    for number in range(10):
        for each in range(number == 0, 2):
            epoch(number, each + 1)
        watch.on_end(units[number].ray_config("study", "cpu"), {"training_iteration": 2}, None)
    assert watch.ran == 20
    # Nothing says yet that the row which runs is stopped later than others, then it does.
    epoch(10, 1)
    assert left() == pytest.approx(30 / 21 * (9 * 2 + 1), rel=0.01)
    epoch(10, 2)
    epoch(10, 3)
    assert left() == pytest.approx(30 / 23 * (9 * 2 + 9), rel=0.01)
    failed = units[11].ray_config("study", "cpu")
    watch.on_end(failed, {"training_iteration": 0}, BROKE)  # says nothing of the others
    assert left() == pytest.approx(30 / 23 * (8 * 2 + 9), rel=0.01)


def test_nothing_is_said_of_the_time_left_where_a_row_has_all_epochs_and_no_end(
    monitor: Monitor,
) -> None:
    for epoch in range(1, 5):
        monitor.on_result(ray_config(), {"seeds": {"0": {"epoch": epoch, "ended": 1.0}}})
        assert (monitor._left() is None) is (epoch == 4)


RAN_OUT = "Failure # 1 (occurred at ...)\nOutOfMemoryError: no room"


@pytest.mark.parametrize("seed", range(5))
def test_what_a_tick_says_is_what_the_rows_are(tmp_path: Path, seed: int) -> None:
    study = make_study(tmp_path / "studies")
    units = [replace(unit(), rows={0: f"{n:016x}"}, epochs=4) for n in range(12)]
    reporter = Silent()
    watch = Monitor(study, Outbox(study.outbox), reporter, "search", units, 12, 0.0)
    rng = random.Random(seed)
    seen = set()
    for _ in range(60):
        chosen = rng.choice([each for each in units if each.rows[0] in watch.keys])
        known = watch.epochs.get(chosen.rows[0], 0)
        trial = chosen.ray_config("study", "cpu")
        match rng.choice(["epoch", "epoch", "epoch", "stopped", "error", "oom", "again", "left"]):
            case "epoch":
                watch.on_result(trial, {"seeds": {"0": {"epoch": known + 1, "ended": 1.0}}})
            case "again":
                watch.reopen(units)
            case "left":
                if len(watch.keys) > 9:
                    watch.leave_out({chosen.rows[0]} - watch.statuses.keys())
            case how:
                error = {"stopped": None, "error": BROKE, "oom": RAN_OUT}[how]
                watch.on_end(trial, {"training_iteration": known}, error)
        watch.on_tick(0)
        last = reporter.last
        assert last is not None
        statuses = list(watch.statuses.values())
        seen.update(statuses)
        assert last.done == len(statuses)
        assert last.stopped == statuses.count("stopped")
        assert last.failed == statuses.count("failed") + statuses.count("oom")
        open_keys = watch.keys - watch.statuses.keys()
        assert watch.begun == {key for key in open_keys if watch.epochs.get(key)}
        assert watch.own.keys() == {k for k, s in watch.statuses.items() if s == "stopped"}
        assert watch.own_epochs == sum(watch.own.values())
    assert seen == {"stopped", "failed", "oom"}
