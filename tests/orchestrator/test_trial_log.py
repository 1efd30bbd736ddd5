"""Logs of trials: what is in them, their size, what may not be in them, and `nas logs`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import cleaning, cli, trial_log
from orchestrator.ledger import Row, read_row, replace_file
from orchestrator.monitor import Monitor
from orchestrator.report import write_report
from orchestrator.study import Study
from orchestrator.study_trial import StudySearch
from orchestrator.trial_log import MOST_BYTES, Hearing, TrialLog, log_file, parse
from tests.orchestrator.fake_driver import make_row, make_study
from tests.orchestrator.test_monitor import BROKE, DIED, KEY, monitor, ray_config
from tests.orchestrator.test_study_trial import KEYS, search_config

__all__ = ["monitor"]  # a fixture


def entries(study: Path, key: str = KEYS["0"]) -> list[dict[str, Any]]:
    file = log_file(study, key)
    return parse(file.read_bytes()) if file.exists() else []


def events(study: Path, key: str = KEYS["0"]) -> list[str]:
    return [entry["event"] for entry in entries(study, key)]


def test_a_search_tells_its_start_its_epochs_and_its_end(tmp_path: Path) -> None:
    block = StudySearch(search_config(tmp_path))
    block.step()
    block.step()
    start, epoch, state, *_, end = found = entries(tmp_path)
    assert [entry["event"] for entry in found] == [
        "started", "epoch", "state", "epoch", "state", "finished",
    ]  # fmt: skip
    assert (start["pid"], start["device"], start["epoch"]) == (os.getpid(), "cpu", 0)
    assert (start["seed"], start["label"], start["epochs"]) == (0, "darts", 2)
    row = block.ledger.read(KEYS["0"])
    assert row is not None
    assert epoch["val_accuracy"] == row.curve[0]["val_accuracy"]
    assert epoch["seconds"] == row.curve[0]["epoch_time_s"]
    assert state["level"] == "debug"
    assert state["bytes"] > 1000
    assert state["seconds"] > 0
    assert (end["level"], end["epoch"]) == ("info", 2)
    assert all(entry["time"].endswith("Z") for entry in found)
    # Reported again from the ledger, nothing happens to it.
    StudySearch(search_config(tmp_path)).step()
    assert entries(tmp_path) == found


def test_a_trial_that_goes_on_says_from_where(tmp_path: Path) -> None:
    StudySearch(search_config(tmp_path)).step()
    part = tmp_path / "checkpoints" / KEYS["0"] / "row.json"
    row = read_row(part)
    assert row is not None
    row.environment["hardware"]["host"] = "lost-host"
    replace_file(part, json.dumps(row.to_json()).encode())
    StudySearch(search_config(tmp_path))
    last = entries(tmp_path)[-1]
    assert (last["event"], last["epoch"], last["before"]) == ("continued", 1, "lost-host")


def test_a_state_that_is_put_aside_is_told(tmp_path: Path) -> None:
    StudySearch(search_config(tmp_path)).step()
    (tmp_path / "checkpoints" / KEYS["0"] / "state.pt").write_bytes(b"torn")
    StudySearch(search_config(tmp_path))
    assert events(tmp_path)[-2:] == ["damaged", "started"]


def test_errors_and_the_lack_of_memory_are_told_with_what_they_said(tmp_path: Path) -> None:
    block = StudySearch(search_config(tmp_path, seeds=(0, 1)))

    def fail(error: Exception) -> dict[str, Any]:
        raise error

    block.trials[0].run_epoch = lambda: fail(torch.OutOfMemoryError("2 GiB"))  # type: ignore[method-assign]
    block.step()
    assert entries(tmp_path)[-1]["level"] == "error"
    assert "2 GiB" in entries(tmp_path)[-1]["text"]
    block.trials[1].run_epoch = lambda: fail(ValueError("bad shape"))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="bad shape"):
        block.step()
    last = entries(tmp_path, KEYS["1"])[-1]
    assert (last["event"], last["level"]) == ("error", "error")
    assert "Traceback" in last["text"]
    assert "ValueError: bad shape" in last["text"]


def test_warnings_are_told_once_each_and_still_shown(tmp_path: Path) -> None:
    block = StudySearch(search_config(tmp_path))
    run, before = block.trials[0].run_epoch, warnings.showwarning

    def warned() -> dict[str, Any]:
        for _ in range(2):
            warnings.warn("of Python", UserWarning, stacklevel=1)
            logging.getLogger("torch.part").warning("of %s", "torch")
        return run()

    block.trials[0].run_epoch = warned  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        # As outside of a test, where the caller's own hook is in place.
        warnings.showwarning = seen = lambda *args: shown.append(args[0])
        block.step()
        block.step()
        assert warnings.showwarning is seen
    assert warnings.showwarning is before
    assert len(shown) == 4
    told = [entry for entry in entries(tmp_path) if entry["event"] == "warning"]
    assert [(entry["category"], entry["text"]) for entry in told] == [
        ("UserWarning", "of Python"),
        ("torch.part", "of torch"),
    ]
    assert logging.getLogger("torch").handlers == [] or not any(
        isinstance(each, trial_log._Handler) for each in logging.getLogger("torch").handlers
    )


def test_a_process_gives_the_same_warning_to_the_log_of_each_of_its_trials(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True):
        warnings.resetwarnings()
        for key in ("a", "b"):
            trial_log.warn_again()
            with Hearing([TrialLog(tmp_path, key)]):
                for _ in range(3):
                    warnings.warn("the same", RuntimeWarning, stacklevel=1)
    assert [events(tmp_path, key) for key in ("a", "b")] == [["warning"], ["warning"]]


def test_a_log_that_cannot_be_written_fails_no_trial(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    block = StudySearch(search_config(tmp_path))
    block.step()
    assert block.step()["done"]
    full = TrialLog(tmp_path / "other", "k")
    full.path.parent.mkdir(parents=True)
    full.path.symlink_to("/dev/full")
    full.write("epoch", epoch=1)  # ENOSPC


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    TrialLog(tmp_path, "k").write("started")
    with log_file(tmp_path, "k").open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:00:0')
    TrialLog(tmp_path, "k").write("continued")
    assert events(tmp_path, "k") == ["started", "continued"]


def test_a_long_log_loses_its_oldest_epochs_first(tmp_path: Path) -> None:
    log = TrialLog(tmp_path, "k")
    log.write("started")
    log.write("error", "error", text="kept")
    count = 0
    while count < 3 * MOST_BYTES // 1000:
        count += 1
        log.write("epoch", epoch=count, text="x" * 900)
        assert log.path.stat().st_size <= MOST_BYTES + 1000
    found = entries(tmp_path, "k")
    assert [entry["event"] for entry in found[:2]] == ["started", "error"]
    epochs = [entry["epoch"] for entry in found[2:]]
    assert epochs == list(range(epochs[0], count + 1))
    assert 1 < epochs[0] < count - 400
    assert not list(log.path.parent.glob(".*"))


def test_errors_alone_cannot_make_it_longer_either(tmp_path: Path) -> None:
    log = TrialLog(tmp_path, "k")
    for index in range(300):
        log.write("error", "error", index=index, text="x" * 50_000)
    assert log.path.stat().st_size <= MOST_BYTES + 10_000
    kept = [entry["index"] for entry in entries(tmp_path, "k")]
    assert kept[0] == 0
    assert kept[-1] == 299
    assert kept[1:] == list(range(kept[1], 300))


def test_two_processes_of_one_trial_write_whole_lines(tmp_path: Path) -> None:
    write = (
        "import sys; from pathlib import Path; from orchestrator.trial_log import TrialLog\n"
        "log = TrialLog(Path(sys.argv[1]), 'k')\n"
        "for i in range(400): log.write('warning', 'warning', who=sys.argv[2], i=i, text='y' * 700)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", write, str(tmp_path), who]) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = log_file(tmp_path, "k").read_bytes().splitlines()
    assert len(lines) == 800
    said = [json.loads(line) for line in lines]
    for who in "ab":
        assert [entry["i"] for entry in said if entry["who"] == who] == list(range(400))


def test_what_is_written_while_a_log_is_shortened_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, zombie = TrialLog(tmp_path, "k"), TrialLog(tmp_path, "k")
    for epoch in range(5):
        log.write("epoch", epoch=epoch, text="x" * 900)
    routine = trial_log._is_routine

    def slow(line: bytes) -> bool:
        monkeypatch.setattr(trial_log, "_is_routine", routine)
        zombie.write("warning", "warning", text="late")
        return routine(line)

    monkeypatch.setattr(trial_log, "_is_routine", slow)
    monkeypatch.setattr(trial_log, "_LEFT_BYTES", 2000)
    trial_log._shorten(log.path)
    found = entries(tmp_path, "k")
    assert found[-1].get("text") == "late"
    assert len(found) == 3


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "tok-123456")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass-word")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    log = TrialLog(tmp_path, "k")
    with pytest.raises(OSError, match="refused"), log.failing():
        raise OSError("refused: tok-123456 at postgresql://ann:s3cret@db/x by pass-word, parallel")
    log.write("started", label="tok-123456", more={"a": "pass-word"})
    text = log.path.read_text()
    assert "refused: *** at postgresql://db/x by ***, parallel" in text
    for secret in ("tok-123456", "s3cret", "pass-word"):
        assert secret not in text


def test_an_epoch_s_lines_take_less_than_a_millisecond(tmp_path: Path) -> None:
    log, numbers = TrialLog(tmp_path, "k"), {"val_accuracy": 0.91234567, "val_loss": 0.31234567}
    begun = time.thread_time()
    for epoch in range(1000):
        with Hearing([log]):
            log.write("epoch", epoch=epoch, seconds=12.345678, **numbers)
            log.write("state", "debug", bytes=123456, seconds=0.012345)
    assert (time.thread_time() - begun) / 1000 < 1e-3


# -- what the driver adds -------------------------------------------------------------------------


def test_the_driver_tells_what_a_worker_cannot(monitor: Monitor) -> None:
    study = monitor.study.path
    monitor.on_retry(ray_config(), f"Failure # 1\nold\n{DIED}")
    monitor.on_end(ray_config(), {}, DIED)
    monitor.give_up()
    found = entries(study, KEY)
    assert [entry["event"] for entry in found] == ["again", "lost", "failed"]
    assert {entry["by"] for entry in found} == {"driver"}
    assert "old" not in found[0]["text"]
    assert "actor died" in found[1]["text"]


def test_an_early_stop_is_told_and_an_error(monitor: Monitor) -> None:
    monitor.on_end(ray_config(), {"training_iteration": 2}, None)
    last = entries(monitor.study.path, KEY)[-1]
    assert (last["event"], last["level"], last["epoch"]) == ("stopped", "info", 2)
    assert last["reason"] == "stopped by Tune"
    monitor.on_end(ray_config(), {}, BROKE)
    assert entries(monitor.study.path, KEY)[-1]["event"] == "failed"


# -- for people -----------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    for seed in (0, 1):
        row: Row = make_row(seed)
        made.ledger.write(row)
        log = TrialLog(made.path, row.key)
        log.write("started", label="darts", seed=seed, epoch=0)
        log.write("state", "debug", bytes=10)
    log.write("error", "error", text="Traceback\n  File x\nValueError: bad")
    return made


def nas(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code, capsys.readouterr().err
    return capsys.readouterr().out


def test_logs_of_a_study_are_one_and_of_a_trial_its_own(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (make_row(seed).key for seed in (0, 1))
    out = nas(capsys, "logs", str(study.path))
    lines = out.splitlines()
    assert len(lines) == 6
    assert f"Z  {first[:8]}  info     started    label darts  seed 0  epoch 0" in lines[0]
    assert lines[-1] == "    ValueError: bad"
    assert "state" in nas(capsys, "logs", str(study.path), "--level", "debug")
    errors = nas(capsys, "logs", str(study.path), "--level", "error")
    assert errors.splitlines()[0].endswith(f"{second[:8]}  error    error")
    own = nas(capsys, "logs", f"{study.path}:{first[:6]}")
    assert len(own.splitlines()) == 1
    assert first[:8] not in own
    assert len(nas(capsys, "logs", str(study.path), "--last", "1").splitlines()) == 4
    document = json.loads(nas(capsys, "logs", str(study.path), "--json", "--level", "debug"))
    assert [entry["event"] for entry in document] == [
        "started", "state", "started", "state", "error",
    ]  # fmt: skip
    assert document[0]["key"] == first


def test_a_key_that_is_none_is_refused(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (f"{study.path}:zz", f"{study.path}:"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["logs", text])
        assert ended.value.code == 2
        assert "0 trials of fake have a key that begins with" in capsys.readouterr().err


def test_logs_are_followed_until_nobody_runs_the_study(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = [object(), object(), None]
    log = TrialLog(study.path, make_row(0).key)

    def holder(_: Study) -> object:
        if len(looks) == 2:
            log.write("epoch", epoch=1)
        if len(looks) == 1:
            replace_file(log.path, log.path.read_bytes())  # shortened
            log.write("finished")
            TrialLog(study.path, "f" * 16).write("started", label="new")
        return looks.pop(0)

    monkeypatch.setattr(Study, "holder", holder)
    monkeypatch.setattr("orchestrator.commands_logs._LOOK_S", 0.01)
    lines = nas(capsys, "logs", str(study.path), "--follow", "--last", "1").splitlines()
    assert [line.split()[4] for line in lines if "Z  " in line] == [
        "error", "epoch", "finished", "started",
    ]  # fmt: skip


def test_failures_name_the_log_and_clean_keeps_it(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    row = make_row(3, status="failed", error="Traceback\nValueError: bad")
    study.ledger.write(row)
    TrialLog(study.path, row.key).write("failed", "error")
    named = f"logs/trials/{row.key}.jsonl"
    other = make_row(2, status="failed", error="Traceback\nTypeError: none")
    study.ledger.write(other)
    out = nas(capsys, "status", str(study.path))
    assert f"ValueError: bad (darts, seed 3, {named})" in out
    assert f"TypeError: none (darts, seed 2, ledger/{other.key}.json)" in out
    state = json.loads(nas(capsys, "status", str(study.path), "--json"))
    assert [failure["log"] for failure in state["standing"]["failures"]] == [None, named]
    assert named in write_report(study).markdown.read_text()
    leftover = study.logs / "trials" / f".{row.key}.jsonl.abcd1234"
    leftover.write_text("half")
    assert leftover in cleaning.clean(study).paths
    assert (study.path / named).is_file()
    assert not leftover.exists()
