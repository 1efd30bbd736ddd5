from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import StudyError
from orchestrator.holding import locked
from orchestrator.ledger import write_row
from orchestrator.study import Study, check_name, studies, studies_root
from tests.orchestrator.fake_driver import make_row, make_study

HOLD = """
import sys, time
from orchestrator.study import Study
with Study.open(sys.argv[1]).hold():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_study_is_opened_by_name_and_by_path_as_it_was_made(tmp_path: Path) -> None:
    made = make_study(tmp_path, "first")
    for opened in (
        Study.open("first", tmp_path),
        Study.open(tmp_path / "first"),
        Study.open(str(tmp_path / "first"), "elsewhere"),
    ):
        assert opened.path == made.path
        assert (opened.id, opened.name, opened.created) == (made.id, "first", made.created)
        assert opened.command == "nas run fake.yaml"
        assert opened.experiment == made.experiment
    assert len(made.id) == 32
    assert make_study(tmp_path, "second").id != made.id
    assert studies(tmp_path) == ("first", "second")


def test_a_missing_study_is_explained(tmp_path: Path) -> None:
    make_study(tmp_path, "quickstart")
    with pytest.raises(StudyError, match=r"no study 'quickstrat'.*Did you mean 'quickstart'"):
        Study.open("quickstrat", tmp_path)
    with pytest.raises(StudyError, match=r"It has no study.*--root or NAS_ROOT"):
        Study.open("quickstart", tmp_path / "empty")


def test_a_study_that_exists_is_not_made_again(tmp_path: Path) -> None:
    study = make_study(tmp_path, "first")
    study.ledger.write(make_row())
    with pytest.raises(StudyError, match=r"exists already.*nas resume first"):
        make_study(tmp_path, "first")
    assert len(Study.open("first", tmp_path).rows()) == 1


def test_a_study_whose_making_was_cut_off_is_made_again(tmp_path: Path) -> None:
    study = make_study(tmp_path, "first")
    (study.path / "study.json").unlink()
    with pytest.raises(StudyError, match="no study"):
        Study.open("first", tmp_path)
    assert make_study(tmp_path, "first").id != study.id


def test_a_folder_that_is_no_study_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(StudyError, match=r"is not a study \(it holds thesis.tex\)"):
        make_study(tmp_path, "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "name", ["", "..", ".", "../up", "a/b", "/abs", ".hidden", "a b", "x" * 101, "mlflow-artifacts"]
)
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="a study's name must be"):
        check_name(name)
    with pytest.raises(StudyError):
        Study.open(name or "-", tmp_path)


def test_a_root_that_cannot_be_written_to_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot write the study folder.*--root"):
        make_study(tmp_path / "file")


def test_the_root_is_the_argument_else_the_environment_else_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_ROOT", raising=False)
    assert studies_root() == tmp_path / "studies"
    monkeypatch.setenv("NAS_ROOT", "other")
    assert studies_root() == tmp_path / "other"
    assert studies_root("given") == tmp_path / "given"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "must hold command, created, format, id, name"),
        ('{"format": 2, "id": "", "name": "", "created": "", "command": ""}', "format 2.*Update"),
    ],
)
def test_a_damaged_or_newer_study_is_explained(tmp_path: Path, text: str, message: str) -> None:
    study = make_study(tmp_path, "first")
    (study.path / "study.json").write_text(text)
    with pytest.raises(StudyError, match=message):
        Study.open("first", tmp_path)


def test_a_study_is_held_by_one_process_until_it_is_killed(tmp_path: Path) -> None:
    study = make_study(tmp_path, "first")
    assert study.holder() is None
    command = [sys.executable, "-c", HOLD, str(study.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        holder = study.holder()
        assert holder is not None
        assert holder.pid == process.pid
        running = pytest.raises(StudyError, match=rf"study first is running \(pid {process.pid}, ")
        with running, study.hold():
            pass
        assert holder == study.holder()
        process.kill()
    assert study.holder() is None
    with study.hold():
        assert study.holder() is not None
    assert study.holder() is None


def test_looking_who_holds_a_study_does_not_keep_a_driver_out(tmp_path: Path) -> None:
    study = make_study(tmp_path, "first")
    with (study.path / "lock").open("rb") as look:
        fcntl.flock(look, fcntl.LOCK_SH)  # what `holder` has for an instant
        timer = threading.Timer(0.05, fcntl.flock, (look, fcntl.LOCK_UN))
        timer.start()
        with study.hold():
            assert study.holder() is not None
        timer.join()


def test_a_lock_for_short_work_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time, pathlib\nfrom orchestrator.holding import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n print('on', flush=True); time.sleep(0.3)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        begun = time.monotonic()
        with locked(path):
            assert time.monotonic() - begun > 0.1


def test_the_summary_counts_rows_and_finds_the_best_that_ended_well(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    best = make_row(1, curve=[{"epoch": 1, "val_accuracy": 0.6}])
    lucky = make_row(2, status="diverged", curve=[{"epoch": 1, "val_accuracy": 0.9}])
    worse = make_row(3, status="stopped", curve=[{"epoch": 1, "val_accuracy": 0.5}])
    retrained = make_row(0, stage="retrain", curve=[{"epoch": 1, "val_accuracy": 0.99}])
    for row in (best, lucky, worse, retrained):
        study.ledger.write(row)
    for row in (make_row(7, status="running"), make_row(1, status="running")):
        write_row(study.checkpoints / row.key / "row.json", row)
    (study.checkpoints / "broken").mkdir()
    (study.checkpoints / "broken" / "row.json").write_text("{")
    summary = study.summary()
    assert summary.counts == {
        "search": {"finished": 1, "diverged": 1, "stopped": 1, "interrupted": 1},
        "retrain": {"finished": 1},
    }
    assert (summary.best, summary.best_value) == (best, 0.6)
    assert summary.holder is None
    with study.hold():
        assert study.summary().counts["search"]["running"] == 1
    assert [row.seed for row in study.partial_rows()] == [7]


def test_rows_and_curves_come_as_data_frames(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    rows = [make_row(0, params={"search.weight_lr": 0.1}), make_row(1)]
    for row in rows:
        study.ledger.write(row)
    frame, curves = study.frame("search"), study.curves()
    assert list(frame["seed"]) == [0, 1]
    assert frame["search.weight_lr"][0] == 0.1
    assert frame["val_loss"][0] == pytest.approx(1.1 / 3)
    assert frame["time_s"][1] == 12.0
    assert len(curves) == 6
    assert "genotype" not in curves
    assert list(curves[curves["seed"] == 1]["epoch"]) == [1, 2, 3]
    assert len(study.frame("retrain")) == 0


def test_the_record_of_a_study_is_plain_json(tmp_path: Path) -> None:
    record = json.loads((make_study(tmp_path).path / "study.json").read_text())
    assert set(record) == {"format", "id", "name", "created", "command"}
    assert record["format"] == 1


def test_a_begun_row_that_cannot_be_read_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(tmp_path)
    row = make_row(0, status="running")
    path = study.checkpoints / row.key / "row.json"
    for content in (b"[" * 100_000, b"{}", path.name.encode()):
        write_row(path, row)
        opened = Study.open(study.path)
        assert opened.partial_rows() == [row]
        path.write_bytes(content)
        caplog.clear()
        assert opened.partial_rows() == []
        assert opened.partial_rows() == []
        assert caplog.text.count(f"{path} is no row") == 1
    write_row(path, make_row(1, status="running"))
    assert study.partial_rows() == []  # that of another search


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    (study.path / "lock").unlink()
    (study.path / "lock").mkdir()
    with pytest.raises(StudyError, match=r"lock is a folder"), study.hold():
        pass
    with pytest.raises(StudyError, match=r"lock is a folder"):
        study.holder()
