"""Studies that are killed, cut off from MLflow, or started side by side: nothing lost or doubled.

Each test runs the real command line on a real Ray. The uninterrupted study is run once and is what
the others are compared with, bit for bit.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.study import Study
from tests.orchestrator import drive
from trainables.search import TIME_FIELDS, SearchTrial

# One after the other, also where tests run side by side: each run of Ray fills the machine.


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[None]:
    """Keep the paths of Ray's sockets short."""
    with drive.short_ray_folder():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_folder: None) -> Path:
    """A root folder with a study `s` that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    file = drive.write_experiment(root, "s")
    assert drive.finish(drive.nas("run", file, root=root), root) == 0, log(root)
    return root


def log(root: Path) -> str:
    return (root / "nas.log").read_text(errors="replace")[-4000:]


def runs(root: Path) -> list[tuple[str | None, str]]:
    """Return (row key, status) of every run in the store; the study's own key is None."""
    with sqlite3.connect(root / "mlflow.db") as store:
        return store.execute(
            "select tags.value, runs.status from runs left join tags"
            " on tags.run_uuid = runs.run_uuid and tags.key = 'nas.key'"
        ).fetchall()


def check_complete(root: Path, whole: Path) -> None:
    """Each row once in ledger, report and MLflow, equal to the uninterrupted ones."""
    expected = drive.results(whole / "s")
    assert drive.results(root / "s") == expected
    kept = [(key, status) for key, status in runs(root) if key is not None]
    assert sorted(key for key, _ in kept) == sorted(expected)
    assert {status for _, status in runs(root)} == {"FINISHED"}
    assert len(runs(root)) == len(expected) + 1
    reads = (root / "s" / "test_reads.jsonl").read_text().splitlines()
    retrained = [row["key"] for row in drive.rows(root / "s") if row["stage"] == "retrain"]
    assert sorted(json.loads(line)["key"] for line in reads) == sorted(retrained)
    table = json.loads((root / "s" / "report" / "table.json").read_text())
    assert table


def test_the_uninterrupted_study_is_complete(whole: Path) -> None:
    check_complete(whole, whole)
    rows = drive.rows(whole / "s")
    assert [row["stage"] for row in rows].count("search") == 4
    assert all(row["status"] == "finished" for row in rows)
    assert len({row["genotype_hash"] for row in rows if row["stage"] == "retrain"}) >= 1


def test_a_finished_study_is_resumed_without_running_anything(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "s" / "ledger").glob("*.json")}
    assert drive.finish(drive.nas("resume", "s", root=whole), whole) == 0, log(whole)
    assert {p: p.stat().st_mtime_ns for p in (whole / "s" / "ledger").glob("*.json")} == before
    check_complete(whole, whole)


def test_rows_equal_searches_outside_ray(whole: Path) -> None:
    for row in Study.open("s", whole).rows("search"):
        settings = {kind: row.settings[kind] for kind in ("space", "dataset", "method", "search")}
        alone = SearchTrial(**settings, seed=row.seed)
        alone.run()
        ignore = {*TIME_FIELDS, "ended"}
        assert [{k: v for k, v in e.items() if k not in ignore} for e in row.curve] == [
            {k: v for k, v in e.items() if k not in ignore} for e in alone.curve
        ]
        assert row.genotype_hash == alone.genotype.hash


def test_ctrl_c_then_a_killed_driver_with_torn_ray_state_lose_nothing(
    tmp_path: Path, whole: Path
) -> None:
    study = tmp_path / "s"
    process = drive.nas("run", drive.write_experiment(tmp_path, "s"), root=tmp_path)
    drive.wait_for(lambda: list(study.glob("checkpoints/*/state.pt")), tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    assert drive.finish(process, tmp_path) == 130, log(tmp_path)
    assert "nas resume s" in log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    assert "RUNNING" not in {status for _, status in runs(tmp_path)}
    before = len(drive.rows(study))

    process = drive.nas("resume", "s", root=tmp_path)
    drive.wait_for(lambda: len(drive.rows(study)) > before, tmp_path)
    drive.kill_group(process)
    assert len(drive.rows(study)) < len(drive.rows(whole / "s"))
    for path in (study / "ray").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert drive.finish(drive.nas("resume", "s", root=tmp_path), tmp_path) == 0, log(tmp_path)
    check_complete(tmp_path, whole)


def test_a_killed_worker_continues_bit_for_bit_with_mlflow_down_all_along(
    tmp_path: Path, whole: Path
) -> None:
    # Port 9 of loopback answers nobody.
    more = "mlflow: {tracking_uri: 'http://127.0.0.1:9'}\n"
    file = drive.write_experiment(tmp_path, "s", more=more)
    process = drive.nas("run", file, root=tmp_path)
    state = drive.wait_for(lambda: list((tmp_path / "s").glob("checkpoints/*/state.pt")), tmp_path)
    assert state
    for pid in drive.wait_for(lambda: drive.workers(process), tmp_path):
        os.kill(pid, signal.SIGKILL)
    assert drive.finish(process, tmp_path) == 0, log(tmp_path)
    assert "If MLflow is down, later: nas sync s" in log(tmp_path)
    assert drive.results(tmp_path / "s") == drive.results(whole / "s")
    assert not (tmp_path / "mlflow.db").exists()
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert drive.finish(drive.nas("sync", "s", "--uri", store, root=tmp_path), tmp_path) == 0
    check_complete(tmp_path, whole)


def test_two_studies_started_at_once_on_a_new_store_complete(tmp_path: Path) -> None:
    started = []
    for name in ("a", "b"):
        more = "ray: {cpus: 1}\nkeep: best_1\n"
        file = drive.write_experiment(tmp_path, name, epochs=1, more=more)
        drive.without_retraining(file)
        started.append(drive.nas("run", file, root=tmp_path))
    assert [drive.finish(process, tmp_path) for process in started] == [0, 0], log(tmp_path)
    for name in ("a", "b"):
        searches = drive.rows(tmp_path / name)
        best = max(searches, key=lambda row: row["curve"][-1]["val_accuracy"])
        (kept,) = (tmp_path / name).glob("checkpoints/*/final.pt")
        assert kept.parent.name in {
            row["key"]
            for row in searches
            if row["curve"][-1]["val_accuracy"] == best["curve"][-1]["val_accuracy"]
        }
    found = runs(tmp_path)
    assert {status for _, status in found} == {"FINISHED"}
    keys = {row["key"] for name in ("a", "b") for row in drive.rows(tmp_path / name)}
    assert {key for key, _ in found if key} == keys


def test_a_running_study_is_not_started_twice(tmp_path: Path, ray_folder: None) -> None:
    file = drive.write_experiment(tmp_path, "s", epochs=1)
    process = drive.nas("run", file, root=tmp_path)
    try:
        drive.wait_for(lambda: (tmp_path / "s" / "study.json").exists(), tmp_path)
        second = drive.nas("resume", "s", root=tmp_path)
        assert drive.finish(second, tmp_path) == 2
        assert "is running" in log(tmp_path)
    finally:
        drive.kill_group(process)
