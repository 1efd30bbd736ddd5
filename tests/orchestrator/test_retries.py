"""What is tried again after a failure, by its kind, and what is not; trials that hang."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import config, plan_runner, sweep
from orchestrator.errors import ConfigError
from orchestrator.failures import node_died
from orchestrator.ledger import Row, write_row
from orchestrator.monitor import Monitor
from orchestrator.watchdog import QUIET_S, Watchdog
from tests.orchestrator import drive, here
from tests.orchestrator.test_monitor import DIED, KEY, monitor, ray_config, unit

__all__ = ["monitor"]  # a fixture

NODE = (
    "Failure # 1 (occurred at ...)\nThe actor died unexpectedly before finishing this task.\n"
    "The actor died because its node has died. Node Id: 1c8d\n"
    "\tthe actor's node was terminated unexpectedly: health check failed"
)


def test_the_loss_of_a_node_is_told_from_the_death_of_a_process() -> None:
    assert node_died(NODE)
    assert not node_died(DIED)
    assert not node_died(NODE + "\nFailure # 2 (occurred at ...)\nValueError: bad")


def test_a_node_that_is_lost_costs_no_retry(monitor: Monitor) -> None:
    seen = 0
    for _ in monitor.rounds(2):
        seen += 1
        monitor.lost = {KEY: (ray_config(), NODE if seen <= 5 else DIED)}
        assert seen < 20
    assert seen == 5 + 3


def test_tune_is_told_that_the_loss_of_a_node_is_no_failure(tmp_path: Path) -> None:
    def ignore(*_: Any) -> None:
        pass

    callback = sweep.make_callback(on_result=ignore, on_end=ignore, on_tick=ignore)
    for text, counted in ((NODE, 1), (DIED, 2)):
        (tmp_path / "error.txt").write_text(text)
        data = SimpleNamespace(num_failures=2, invalidate_cache=lambda: None)
        error = str(tmp_path / "error.txt")
        trial = SimpleNamespace(error_file=error, run_metadata=data, config=ray_config())
        callback.on_trial_recover(iteration=1, trials=[trial], trial=trial)
        assert data.num_failures == counted


def test_a_row_that_diverged_is_not_run_again(monitor: Monitor) -> None:
    names = {"method": "darts", "space": "x", "dataset": "digits"}
    row = Row(KEY, "search", "diverged", config_id="c" * 10, seed=0, started=1.0, **names)
    monitor.study.ledger.write(row)
    later = Monitor(monitor.study, monitor.outbox, monitor.reporter, "search", [unit()], 1, 0.0)
    assert later.ended(unit())
    later.on_end(ray_config(), {}, None)
    assert monitor.study.ledger.read(KEY) == row


def test_a_traceback_is_kept_with_the_epochs_before_it(monitor: Monitor) -> None:
    names = {"method": "darts", "space": "x", "dataset": "digits"}
    part = Row(KEY, "search", "running", config_id="c" * 10, seed=0, started=1.0, **names)
    part = Row.from_json({**part.to_json(), "curve": [{"epoch": 1}], "epochs_done": 1})
    write_row(monitor.study.checkpoints / KEY / "row.json", part)
    monitor.on_end(ray_config(), {}, "Failure # 1\nTraceback ...\nValueError: bad")
    row = monitor.study.ledger.read(KEY)
    assert row is not None
    assert (row.status, row.epochs_done) == ("failed", 1)
    assert "ValueError: bad" in str(row.error)


def test_a_trial_that_was_silent_to_the_end_has_failed_for_that(monitor: Monitor) -> None:
    monitor.on_timeout(ray_config(), 61.0)
    monitor.on_end(ray_config(), {}, DIED)
    assert not monitor.is_lost(unit())
    row = monitor.study.ledger.read(KEY)
    assert row is not None
    assert row.status == "failed"
    assert "No epoch was reported for 61 s" in str(row.error)


def test_a_trial_that_spoke_again_is_not_blamed_for_its_silence(monitor: Monitor) -> None:
    monitor.on_timeout(ray_config(), 61.0)
    monitor.on_result(ray_config(), {"seeds": {"0": {"epoch": 1}}})
    monitor.on_end(ray_config(), {}, DIED)
    assert monitor.is_lost(unit())


class Watched:
    """A watchdog with a clock that is set, and all that it does."""

    def __init__(self, timeout_s: float | None) -> None:
        self.now, self.told, self.ended, self.killed = 0.0, list[str](), list[float](), list[str]()
        self.dog = Watchdog(
            timeout_s,
            self.told.append,
            lambda config, silent_s: self.ended.append(silent_s),
            lambda trial: self.killed.append(trial.trial_id),
            lambda: self.now,
        )
        self.trials = [
            SimpleNamespace(trial_id=name, status="RUNNING", config=ray_config()) for name in "ab"
        ]

    def at(self, now: float, *heard: int) -> Watched:
        self.now = now
        for index in heard:
            self.dog.heard(self.trials[index])
        self.dog.look([trial for trial in self.trials if trial.status == "RUNNING"])
        return self


def test_only_a_trial_that_is_silent_for_too_long_is_ended_and_once() -> None:
    watched = Watched(60.0).at(0.0).at(50.0, 0).at(60.0)
    assert not watched.killed
    watched.at(61.0)
    assert (watched.killed, watched.ended) == (["b"], [61.0])
    assert "darts seed 0 has reported no epoch for" in watched.told[0]
    watched.at(62.0)
    assert watched.killed == ["b"]
    # It waits for resources, and its time begins with its next start.
    watched.trials[1].status = "PENDING"
    watched.at(200.0, 0)
    watched.trials[1].status = "RUNNING"
    watched.at(259.0, 0).at(300.0, 0)
    assert watched.killed == ["b"]


def test_without_a_limit_long_silence_is_said_once_and_nothing_ended() -> None:
    watched = Watched(None).at(0.0).at(100.0, 0, 1).at(QUIET_S + 50.0)
    assert not watched.told
    for now in range(150, 1101, 50):
        watched.at(float(now), 0)
    assert not watched.told
    watched.at(1101.0).at(1102.0)
    assert len(watched.told) == 1
    assert "tune.trial_timeout" in watched.told[0]
    assert not watched.killed
    watched.at(1103.0, 1).at(20_000.0)
    assert len(watched.told) == 3


def test_the_limit_must_be_positive(tmp_path: Path) -> None:
    file = drive.write_experiment(tmp_path, "m")
    assert config.load_experiment(file, ["tune.trial_timeout=90"]).tune.trial_timeout == 90
    with pytest.raises(ConfigError, match=r"tune\.trial_timeout must be > 0, got 0"):
        config.load_experiment(file, ["tune.trial_timeout=0"])


STUCK = '''"""DARTS whose first process hangs in its second epoch."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainables.method import Method, softmax

SOURCE = "a test"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    mark: str = ""


def relax(alphas, at, *, config):
    if at.epoch == 1 and not Path(config.mark).exists():
        Path(config.mark).write_text("hangs")
        time.sleep(600)
    return softmax(alphas, at)


def build(config):
    return Method(relax=partial(relax, config=config))
'''


def test_a_trial_that_hangs_is_started_again_from_its_state(
    nas_here: here.Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = tmp_path / "mine" / "methods", tmp_path / "mark"
    folder.mkdir(parents=True)
    (folder / "stuck.py").write_text(STUCK)
    mark.write_text("not yet")  # a dry build of the method must not hang
    file = drive.write_experiment(
        tmp_path, "s", epochs=3, more=f"tune: {{trial_timeout: 500}}\n{here.ON_RAY}"
    )
    drive.without_retraining(file)
    mark.unlink()

    def clock() -> float:
        # Hours pass for the driver as soon as the trial hangs.
        return time.monotonic() + 1000.0 * mark.exists()

    monkeypatch.setattr(plan_runner, "Watchdog", lambda *args: Watchdog(*args, clock=clock))
    words = ["--set", f"method={{name: stuck, mark: {mark}}}", "--set", "seeds=[0]"]
    code, out = nas_here("--plugins", tmp_path / "mine", "run", file, *words, root=tmp_path)
    assert code == 0, out
    assert "its process is ended, and started again" in out
    (row,) = drive.rows(tmp_path / "s")
    assert (row["status"], row["epochs_done"]) == ("finished", 3)
