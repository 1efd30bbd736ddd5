from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from orchestrator import tracking
from orchestrator.sqlite_store import is_half_made
from orchestrator.study import Study
from orchestrator.tracking_location import has_tables
from orchestrator.tracking_runs import RunRefusedError
from orchestrator.tracking_view import Point
from tests.orchestrator import drive
from tests.orchestrator.fake_driver import Driver, make_row, make_study

PREPARE = "import sys; from orchestrator.tracking import prepare_store; prepare_store(sys.argv[1])"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, made by two studies that start at the same moment on a new one."""
    file = tmp_path_factory.mktemp("store") / "new" / "mlflow.db"
    command = [sys.executable, "-c", PREPARE, f"sqlite:///{file}"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    return file


@pytest.fixture
def root(tmp_path: Path, template: Path) -> Path:
    """A folder of studies with an empty store in it."""
    root = tmp_path / "studies"
    root.mkdir()
    shutil.copy(template, root / "mlflow.db")
    return root


def fill(study: Study) -> None:
    """Leave two searches, their retraining, a failed search and an interrupted one."""
    driver = Driver(study)
    driver.begin()
    driver.run(make_row(0))
    driver.run(make_row(0, alpha_gradient="unrolled"))
    driver.run(make_row(0, stage="retrain"))
    failed = make_row(1, status="failed", error="Traceback\nValueError: no", genotype=None)
    driver.run(failed)
    driver.start(make_row(2))
    driver.epoch(make_row(2), 1)
    driver.checkpoint(make_row(2), 1)
    driver.end("interrupted")


def picture(uri: str, study: Study) -> dict[str, dict[str, Any]]:
    """Return what MLflow shows of a study, by run name, with ids and times left out."""
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    runs: list[Run] = client.search_runs([experiment.experiment_id], max_results=1000)
    ids = {run.info.run_id: run.info.run_name for run in runs}
    shown = {}
    for run in runs:
        tags = dict(run.data.tags)
        for run_id, name in ids.items():
            tags = {n: v.replace(run_id, name) for n, v in tags.items()}
        assert run.info.run_name not in shown
        shown[run.info.run_name] = {
            "status": run.info.status,
            "tags": {
                n: v.replace(f"#/experiments/{experiment.experiment_id}", "#")
                for n, v in tags.items()
            },
            "params": run.data.params,
            "metrics": run.data.metrics,
            "artifacts": sorted(f.path for f in client.list_artifacts(run.info.run_id)),
            "points": sum(
                len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics
            ),
        }
    return shown


def test_mlflow_shows_the_study_its_rows_and_what_they_found(root: Path) -> None:
    study = make_study(root, "shown")
    fill(study)
    uri = tracking.default_uri(root)
    # 5 starts, 4 x 3 + 1 epochs, 4 rows, 1 begin, 1 end
    assert tracking.drain(study.path, uri) == 24
    shown = picture(uri, study)
    statuses = {name: run["status"] for name, run in shown.items()}
    assert statuses == {
        "shown": "KILLED",
        "darts · seed 0": "FINISHED",
        "darts unrolled · seed 0": "FINISHED",
        "retrain darts · seed 0": "FINISHED",
        "darts · seed 1": "FAILED",
        "darts · seed 2": "KILLED",
    }
    search = shown["darts unrolled · seed 0"]
    assert search["artifacts"] == ["cell.png", "curves.json", "genotype.json"]
    assert search["params"]["alpha_gradient"] == "unrolled"
    assert search["params"]["alpha_gradient.probe_radius"] == "0.01"
    assert search["tags"]["mlflow.parentRunId"] == "shown"
    assert search["metrics"]["search/val_loss"] == pytest.approx(1.1 / 3)
    # six metrics of three epochs, and time_s, gpu_hours, cpu_hours, peak_memory_bytes
    assert search["points"] == 6 * 3 + 4
    assert shown["darts · seed 1"]["tags"]["error"] == "ValueError: no"
    assert shown["darts · seed 1"]["artifacts"] == ["curves.json"]
    assert shown["shown"]["artifacts"] == ["experiment.yaml", "study.json"]
    drawings = list((root / "mlflow-artifacts" / "shown").glob("*/artifacts/cell.png"))
    assert len(drawings) == 3
    with Image.open(drawings[0]) as drawing:
        assert drawing.width <= 800

    tracking.rebuild(study, uri)
    (study.path / "outbox" / "events.jsonl.offset").unlink()
    assert tracking.drain(study, uri) == 24
    assert picture(uri, study) == shown


def test_a_rebuild_of_a_new_store_shows_the_same(root: Path, template: Path) -> None:
    study = make_study(root, "again")
    fill(study)
    uri = tracking.default_uri(root)
    with study.hold():
        tracking.drain(study, uri)
    tracking.drain(study, uri)
    shown = picture(uri, study)
    other = root / "other.db"
    shutil.copy(template, other)
    assert tracking.rebuild(study.path, f"sqlite:///{other}") == 4
    assert picture(f"sqlite:///{other}", study) == shown


def test_a_run_that_a_person_deleted_is_refused_and_named(root: Path) -> None:
    study = make_study(root, "gone")
    uri = tracking.default_uri(root)
    store = tracking.MlflowStore(uri, study)
    experiment = store.experiment("gone")
    run = store.create(experiment, "x", 1, {})
    MlflowClient(uri, uri).delete_run(run)
    with pytest.raises(RunRefusedError, match="deleted"):
        store.log(run, tags={"a": "b"})
    with pytest.raises(RunRefusedError):
        store.set_status("0" * 32, "FINISHED", 1)


def test_more_than_one_request_takes_is_sent_in_several(root: Path) -> None:
    study = make_study(root, "large")
    uri = tracking.default_uri(root)
    store = tracking.MlflowStore(uri, study)
    run = store.create(store.experiment("large"), "x", 1, {})
    points = [Point("m", float(step), 1000 + step, step) for step in range(2300)]
    params = {f"p{n}": str(n) for n in range(230)}
    tags = {f"t{n}": str(n) for n in range(230)}
    store.log(run, params=params, points=points, tags=tags)
    store.log(run, points=points)  # again: the same points
    assert store.steps(run, ["m"]) == set(range(2300))
    client = MlflowClient(uri, uri)
    data = client.get_run(run).data
    assert data.params == params
    assert tags.items() <= data.tags.items()
    assert len(client.get_metric_history(run, "m")) == 2300


def test_tags_go_with_the_last_request_or_after_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tracking.MlflowStore(tracking.default_uri(root), make_study(root, "order"))
    sizes: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        store._client, "log_batch", lambda _, *of: sizes.append(tuple(map(len, of)))
    )
    points = [Point("m", 1.0, 1000 + step, step) for step in range(900)]
    store.log("run", params={"a": "1"}, points=points, tags={f"t{n}": "" for n in range(130)})
    assert sizes == [(800, 1, 0), (100, 0, 100), (0, 0, 30)]


def test_artifacts_of_a_run_made_here_need_no_question_where_they_go(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, uri = make_study(root, "files"), tracking.default_uri(root)
    made, other = (tracking.MlflowStore(uri, study) for _ in range(2))
    run = made.create(made.experiment("files"), "x", 1, {})
    asked: list[str] = []
    real = other._client.log_artifacts
    monkeypatch.setattr(made._client, "log_artifacts", lambda *_: asked.append("made"))
    monkeypatch.setattr(
        other._client, "log_artifacts", lambda *of: (asked.append("other"), real(*of))
    )
    for store, name in ((made, "a.txt"), (other, "b.txt")):
        folder = tmp_path / name.removesuffix(".txt")
        folder.mkdir()
        (folder / name).write_text("x")
        store.upload(run, folder)
    assert asked == ["other"]
    assert {each.path for each in MlflowClient(uri, uri).list_artifacts(run)} == {"a.txt", "b.txt"}


def test_a_store_that_cannot_be_opened_is_down_and_nothing_is_lost(
    root: Path, tmp_path: Path
) -> None:
    study = make_study(root, "kept")
    fill(study)
    (tmp_path / "file").write_text("")
    (tmp_path / "text.db").write_text("not a database, but long enough to look at" * 99)
    for uri in (f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{tmp_path}/text.db"):
        with pytest.raises(tracking.StoreDownError):
            tracking.drain(study, uri)
    assert tracking.drain(study, tracking.default_uri(root)) == 24


def test_a_deleted_experiment_is_explained(root: Path) -> None:
    study = make_study(root, "trash")
    uri = tracking.default_uri(root)
    client = MlflowClient(uri, uri)
    client.delete_experiment(client.create_experiment("trash"))
    with pytest.raises(tracking.StoreDownError, match=r"'trash' is deleted. Restore it"):
        tracking.drain(study, uri)


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def server(root: Path, port: int) -> Iterator[Path]:
    """Log of an MLflow server that has just been started: it answers some seconds later."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(root / "served")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    log = root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    yield log
    os.killpg(process.pid, signal.SIGTERM)  # the server's workers are processes of their own
    process.wait(timeout=30)


def test_a_server_that_is_down_and_comes_back_gets_everything(
    root: Path, port: int, server: Path
) -> None:
    study = make_study(root, "remote")
    fill(study)
    uri = f"http://127.0.0.1:{port}"
    with pytest.raises(tracking.StoreDownError):
        tracking.drain(study, uri)
    drain = tracking.start_drain(study, uri)
    assert drain.wait(timeout=120) == 0, server.read_text()[-2000:]
    log = (study.logs / "tracking.log").read_text()
    assert "unavailable, the outbox is kept" in log
    assert "is back" in log
    shown = picture(uri, study)
    assert len(shown) == 6
    assert shown["darts · seed 2"]["status"] == "KILLED"
    files = ["cell.png", "curves.json", "genotype.json"]
    assert shown["retrain darts · seed 0"]["artifacts"] == files
    assert list((root / "served").rglob("cell.png"))


def test_the_drain_process_explains_a_missing_study(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracking.main(["--study", str(tmp_path / "none"), "--uri", "sqlite:///x.db"]) == 2
    assert "no study" in caplog.text


def test_the_drain_makes_the_tables_of_a_new_store(tmp_path: Path) -> None:
    study = make_study(tmp_path, "first")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert not has_tables(uri)
    process = tracking.start_drain(study, uri)
    assert drive.wait_for(lambda: has_tables(uri), tmp_path)
    process.terminate()
    process.wait()
    assert MlflowClient(uri).search_experiments()


def tables(file: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(file)) as base:
        found = base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {str(name) for (name,) in found}


def test_a_store_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"
    process = tracking.start_drain(make_study(tmp_path, "first"), uri)
    while process.poll() is None and not file.exists():
        time.sleep(0.001)
    process.kill()  # as soon as there is anything
    process.wait()
    with contextlib.closing(sqlite3.connect(file)) as base:
        assert base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    made = tables(file)
    assert made >= {"experiments", "runs", "trace_info"}
    assert MlflowClient(uri).search_experiments()
    assert made == tables(file)
    assert [
        path.name for path in tmp_path.iterdir() if path.name.startswith(".mlflow.db.new")
    ] == []


def test_what_a_killed_migration_left_is_made_anew_if_it_is_empty(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    tracking.prepare_store(f"sqlite:///{whole}")
    assert not is_half_made(whole)

    def left(name: str, *statements: str) -> Path:
        file = tmp_path / f"{name}.db"
        shutil.copy(whole, file)
        with contextlib.closing(sqlite3.connect(file)) as base:
            for statement in statements:
                base.execute(statement)
            base.commit()
        return file

    torn = left("torn", "DROP TABLE trace_info", "CREATE TABLE _alembic_tmp_metrics (key TEXT)")
    assert is_half_made(torn)
    (tmp_path / ".torn.db.new").write_bytes(b"of a process that was killed")
    tracking.prepare_store(f"sqlite:///{torn}")
    assert tables(torn) == tables(whole)
    assert MlflowClient(f"sqlite:///{torn}").search_experiments()
    assert not (tmp_path / ".torn.db.new").exists()
    assert is_half_made(left("fewer", "DROP TABLE trace_info"))
    assert is_half_made(left("later", "CREATE TABLE _alembic_tmp_runs (key TEXT)"))
    # What has something in it, and what is not MLflow's, is left as it is.
    run = "INSERT INTO runs (run_uuid, lifecycle_stage, experiment_id) VALUES ('r', 'active', 0)"
    assert not is_half_made(left("filled", run, "DROP TABLE trace_info"))
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as base:
        base.execute("CREATE TABLE mine (key TEXT)")
        base.commit()
    assert not is_half_made(foreign)
    foreign.write_bytes(b"no database at all" * 100)
    assert not is_half_made(foreign)


def test_half_made_and_foreign_files_are_no_store(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"
    file.write_bytes(b"")
    assert not has_tables(uri)
    with contextlib.closing(sqlite3.connect(file)) as base:
        base.execute("CREATE TABLE alembic_version (version_num TEXT)")
        base.commit()
    assert not has_tables(uri)
    file.write_bytes(b"no database at all" * 100)
    assert not has_tables(uri)
    assert not has_tables("postgresql://nobody@127.0.0.1/none")


def test_a_process_that_takes_long_is_left_to_itself_without_a_warning() -> None:
    quick = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert not tracking.wait_a_while(quick, 60)
    assert tracking.wait_a_while(subprocess.Popen([sys.executable, "-c", ""]), 60)
    script = "import sys; sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert process.stdin is not None
    stdin, pid = process.stdin, process.pid
    assert not tracking.wait_a_while(process, 0.01)
    del process
    gc.collect()  # a warning here would fail the test
    os.kill(pid, 0)  # and it is there
    stdin.close()
    tracking._GOING_ON.pop().wait(60)
