"""Stops by signal and by request: in order, kept, and with an exit code that says by what."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, runner, simulated_loop, stopping, tracking
from orchestrator.holding import Holder, is_holder
from orchestrator.monitor import Monitor
from orchestrator.stopping import REQUEST, StoppedError, Stopping
from orchestrator.study import Study
from tests.orchestrator import drive, here
from tests.orchestrator.fake_driver import make_row, make_study
from tests.orchestrator.test_simulate import PLAIN, Quiet, experiment, outcomes
from tests.spaces.tables import columns201, write

HOLD = (
    "import sys, time; from orchestrator.study import Study; from orchestrator.stopping import *\n"
    "study = Study.open(sys.argv[1])\n"
    "with study.hold(), Stopping(study.path) as stop:\n"
    "    print('held', flush=True)\n"
    "    try:\n"
    "        while True:\n"
    "            time.sleep(0.05); stop.look() if sys.argv[2] == 'look' else None\n"
    "    except StoppedError as error:\n"
    "        print(error, flush=True)\n"
)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    made.ledger.write(make_row(0))
    return made


def driver(study: Study, looks: str = "look") -> subprocess.Popen[str]:
    """Start a process that holds a study as a driver does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(study.path), looks], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def nas(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_study_that_does_not_run_is_said_not_to(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = nas(capsys, "stop", str(study.path))
    assert code == 0
    assert "is not running" in out
    assert "1 rows, 0 begun" in out
    assert not (study.path / REQUEST).exists()


def test_a_driver_on_this_host_is_stopped_by_signal(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    with driver(study, "does not look") as process:
        code, out, _ = nas(capsys, "stop", str(study.path), "--json")
        assert process.communicate()[0] == "nas stop\n"  # and not SIGTERM, which asks for a requeue
    assert code == 0
    assert {"stopped": True, "signalled": True, "rows": 1}.items() <= json.loads(out).items()
    assert not (study.path / REQUEST).exists()


def test_a_driver_elsewhere_is_stopped_by_the_file_alone(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with driver(study) as process:
        monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
        code, out, _ = nas(capsys, "stop", str(study.path), "--json")
        assert process.communicate()[0] == "nas stop\n"
    assert code == 0
    assert json.loads(out)["signalled"] is False


def test_a_driver_that_does_not_answer_is_named(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with driver(study, "does not look") as process:
        monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
        code, _, err = nas(capsys, "stop", str(study.path), "--wait", "0.3")
        process.kill()
    assert code == 1
    assert f"still runs (pid {process.pid} on " in err


def test_a_process_that_has_the_number_by_now_is_left_alone(study: Study) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as stranger:
        earlier = Holder(stranger.pid, socket.gethostname(), "then", time.time() - 1000.0)
        assert not is_holder(earlier)
        assert not stopping.request(study, earlier)
        assert stranger.poll() is None
        stranger.kill()


def test_a_request_to_an_earlier_driver_does_not_stop_this_one(study: Study) -> None:
    with driver(study) as process:
        holder = study.holder()
        assert holder is not None
        process.kill()
    before = replace(holder, since="2020-01-01 00:00:00")
    with study.hold(), Stopping(study.path) as stop:
        (study.path / REQUEST).write_text(json.dumps({"holder": asdict(before)}))
        stop.look()
        (study.path / REQUEST).write_bytes(b"torn")
        stop.look()
        assert stop.reason is None
        (study.path / REQUEST).write_text(json.dumps({"holder": asdict(study.holder() or before)}))
        with pytest.raises(StoppedError):
            stop.look()
    assert not (study.path / REQUEST).exists()


def test_tune_is_told_and_handlers_are_put_back(study: Study) -> None:
    told: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(n) for n in numbers]
    with study.hold(), Stopping(study.path) as stop:
        own = signal.getsignal(signal.SIGINT)

        def tune() -> None:
            for number in (signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, lambda number, _: told.append(number))  # as Tune does
            stop.take_over()
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(StoppedError), stop.of_tune():
            tune()
        assert told == [signal.SIGTERM, signal.SIGINT]
        assert stop.reason == "SIGTERM"
        assert signal.getsignal(signal.SIGINT) == own
        with pytest.raises(StoppedError, match="SIGTERM"), stop.of_tune():
            pytest.fail("a study that is to stop must not start another stage")
    after = [signal.getsignal(n) for n in numbers]
    assert after == before


def test_outside_the_main_thread_no_handler_is_touched(study: Study) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    def look() -> None:
        with Stopping(study.path) as stop, stop.of_tune():
            stop.take_over()
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 75, "Stopped by SIGTERM"),
        (signal.SIGUSR1, 75, "Stopped by SIGUSR1"),
        (None, 130, "Stopped by nas stop"),
    ],
)
def test_a_simulated_study_that_is_stopped_keeps_its_rows_and_goes_on(
    number: signal.Signals | None,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = columns201()
    columns["cifar10_val"] = [100.0 - value for value in columns["cifar10_test"]]
    table = write(columns, tmp_path / "nb201.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
    monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
    experiment(table, tmp_path, PLAIN)
    study = tmp_path / "studies" / "planned-simulated"
    tick = Monitor.on_tick

    def on_tick(self: Monitor, running: int) -> None:
        tick(self, running)
        if len(self.study.ledger.keys()) < 3:
            return
        if number is not None:
            os.kill(os.getpid(), number)
            return
        holder = self.study.holder()
        assert holder is not None
        (study / REQUEST).write_text(json.dumps({"holder": asdict(holder)}))

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "on_tick", on_tick)
        patch.setattr(simulated_loop, "_TICK_S", 0.0)
        got, _, err = nas(capsys, "simulate", "planned.yaml", "--no-ray")
    assert (got, said in err) == (code, True), err
    assert "nas resume planned-simulated" in err
    cut = Study.open(study)
    assert 3 <= len(cut.rows("search")) < 6
    assert not cut.rows("retrain")
    kept = outcomes(cut)
    runner.resume_study(cut, command="", reporter=Quiet())
    assert len(cut.rows("search")) == 6
    assert kept.items() <= outcomes(cut).items()


def test_a_study_on_ray_that_slurm_ends_is_gone_on_with(nas_here: here.Nas, tmp_path: Path) -> None:
    file = drive.write_experiment(tmp_path, "s", epochs=3, more=here.ON_RAY)
    drive.without_retraining(file)
    study = tmp_path / "s"
    sent: list[int] = []

    def watch() -> None:
        if not sent and list(study.glob("checkpoints/*/state.pt")):
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    code, out = nas_here("run", file, "--set", "seeds=[0]", root=tmp_path, watch=watch)
    assert (code, "Stopped by SIGTERM. Go on with: nas resume s" in out) == (75, True), out
    assert len(drive.rows(study)) < 2
    assert not [row for row in drive.rows(study) if row["status"] in ("failed", "stopped")]
    code, out = nas_here("resume", "s", root=tmp_path)
    assert code == 0, out
    assert [row["status"] for row in drive.rows(study)] == ["finished"] * 2
