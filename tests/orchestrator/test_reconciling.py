"""`nas sync`: every way in which folder and store can differ is found, and cured once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator import cli, tracking
from orchestrator.reconciling import STUDY, compare, mend_runs, repair
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from tests.orchestrator.fake_driver import Driver, make_row, make_study
from tests.orchestrator.memory_store import MemoryStore

DONE, OTHER, FAILED = make_row(0), make_row(1), make_row(2, status="failed", error="E")
BEGUN = make_row(3)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    driver = Driver(made)
    driver.begin()
    for row in (DONE, OTHER, FAILED):
        driver.run(row)
    driver.start(BEGUN)
    driver.epoch(BEGUN, 1)
    driver.checkpoint(BEGUN, 1)
    driver.end("interrupted")
    return made


@pytest.fixture
def store(study: Study) -> MemoryStore:
    filled = MemoryStore()
    Drain(study, filled, "memory").send()
    return filled


def run_of(store: MemoryStore, key: str) -> str:
    (found,) = [
        run_id
        for run_id, run in store.all.items()
        if run.tags.get("nas.key", STUDY) == key and run_id not in store.deleted
    ]
    return found


def found(study: Study, store: MemoryStore) -> list[tuple[str, str]]:
    return sorted((finding.kind, finding.key) for finding in compare(study, store))


def twice(store: MemoryStore, key: str) -> None:
    run = store.all[run_of(store, key)]
    run_id = store.create("1", run.name, run.start, run.tags)
    store.all[run_id].points = set(list(run.points)[:2])
    store.all[run_id].tags["nas.row"] = "earlier"


def lost(store: MemoryStore, key: str) -> None:
    store.all[run_of(store, key)].tags = {"nas.study_id": "gone for good", "nas.key": "gone"}


def half(store: MemoryStore, key: str) -> None:
    run = store.all[run_of(store, key)]
    del run.tags["nas.row"]
    run.points = set()


def left_running(store: MemoryStore, key: str) -> None:
    store.all[run_of(store, key)].status = "RUNNING"


DEFECTS: dict[str, tuple[Callable[[MemoryStore, str], None], str]] = {
    "lost": (lost, "missing"),
    "deleted": (lambda store, key: store.deleted.add(run_of(store, key)), "deleted"),
    "twice": (twice, "doubled"),
    "left running": (left_running, "running"),
    "half sent": (half, "outdated"),
}


def test_what_was_sent_agrees_and_is_not_touched(study: Study, store: MemoryStore) -> None:
    assert not found(study, store)
    before, calls = store.picture(), store.calls
    assert repair(study, store, "memory") == ([], [])
    assert store.picture() == before
    assert store.calls - calls <= 6  # nothing but questions


@pytest.mark.parametrize("key", [DONE.key, FAILED.key, BEGUN.key], ids=["done", "failed", "begun"])
@pytest.mark.parametrize("defect", [name for name in DEFECTS if name != "half sent"])
def test_a_defect_of_a_run_is_named_and_cured(
    defect: str, key: str, study: Study, store: MemoryStore
) -> None:
    whole = store.picture()
    spoil, kind = DEFECTS[defect]
    spoil(store, key)
    assert found(study, store) == [(kind, key)]
    spoilt = dict(store.all)
    compare(study, store)
    assert store.all == spoilt
    first, left = repair(study, store, "memory")
    assert [(f.kind, f.key) for f in first][:1] == [(kind, key)]
    assert not left
    mended = store.picture()  # it raises where a row has two runs
    mended.pop("gone", None)
    assert set(mended) == set(whole)
    assert mended[key]["status"] == whole[key]["status"]
    assert mended[key]["metrics"] == whole[key]["metrics"]
    assert repair(study, store, "memory") == ([], [])


def test_a_run_that_was_sent_in_part_is_completed(study: Study, store: MemoryStore) -> None:
    whole = store.picture()
    half(store, DONE.key)
    assert found(study, store) == [("outdated", DONE.key)]
    assert not repair(study, store, "memory")[1]
    assert store.picture() == whole


def test_of_two_runs_the_one_that_shows_the_row_is_kept(study: Study, store: MemoryStore) -> None:
    good = run_of(store, DONE.key)
    twice(store, DONE.key)
    # An older one that shows less: it came first, and goes all the same.
    older = dict(reversed(list(store.all.items())))
    store.all = older
    repair(study, store, "memory")
    assert run_of(store, DONE.key) == good


def test_a_deleted_run_keeps_its_id_and_is_not_made_again(study: Study, store: MemoryStore) -> None:
    run_id = run_of(store, DONE.key)
    store.deleted.add(run_id)
    assert [f.kind for f in mend_runs(study, store)] == ["deleted"]
    Drain(study, store, "memory").send()
    assert run_of(store, DONE.key) == run_id


def test_a_changed_row_is_sent_again(study: Study, store: MemoryStore) -> None:
    study.ledger.write(make_row(0, label="another label"))
    assert found(study, store) == [("outdated", DONE.key)]
    assert not repair(study, store, "memory")[1]
    assert store.picture()[DONE.key]["tags"]["label"] == "another label"


def test_a_run_without_a_row_is_said_and_left(study: Study, store: MemoryStore) -> None:
    (study.ledger.folder / f"{DONE.key}.json").unlink()
    assert found(study, store) == [("unknown", DONE.key)]
    first, left = repair(study, store, "memory")
    assert [f.kind for f in first] == [f.kind for f in left] == ["unknown"]
    assert store.picture()[DONE.key]["status"] == "FINISHED"


def test_what_runs_now_is_no_difference(study: Study, store: MemoryStore) -> None:
    with study.hold():
        for run_id in (run_of(store, BEGUN.key), run_of(store, STUDY)):
            store.all[run_id].status = "RUNNING"
        assert not found(study, store)
        left_running(store, DONE.key)
        assert found(study, store) == [("running", DONE.key)]


def test_the_run_of_the_study_is_looked_at_too(study: Study, store: MemoryStore) -> None:
    left_running(store, STUDY)
    assert found(study, store) == [("running", STUDY)]
    repair(study, store, "memory")
    assert store.picture()[STUDY]["status"] != "RUNNING"
    empty = MemoryStore()
    kinds = {kind for kind, _ in found(study, empty)}
    assert kinds == {"missing"}
    assert not empty.all


def test_the_command_on_a_real_store(
    tmp_path: Path, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = tracking.default_uri(study.root)

    def sync(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["sync", str(study.path), *words])
        return int(ended.value.code or 0), capsys.readouterr().out

    code, out = sync("--check", "--json")
    assert (code, len(json.loads(out)["found"])) == (1, 4)
    assert not (study.root / "mlflow.db").exists()
    code = "import sys; from orchestrator.tracking import prepare_store; prepare_store(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, uri], check=True)
    assert sync()[0] == 0
    assert sync("--check") == (0, f"fake and {uri} agree.\n")
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    runs = {
        run.data.tags.get("nas.key"): run for run in client.search_runs([experiment.experiment_id])
    }
    client.delete_run(runs[DONE.key].info.run_id)
    client.create_run(experiment.experiment_id, tags=dict(runs[OTHER.key].data.tags))
    client.update_run(runs[FAILED.key].info.run_id, "RUNNING")
    code, out = sync("--check")
    assert code == 1
    assert "1 rows whose run was deleted" in out
    assert "1 runs beside another one" in out
    assert "1 runs that are shown running" in out
    code, out = sync()
    assert (code, out.count("; repaired")) == (0, 3), out
    assert sync("--check")[0] == 0
    assert client.get_run(runs[DONE.key].info.run_id).info.lifecycle_stage == "active"
    shutil.rmtree(tmp_path / "studies")
