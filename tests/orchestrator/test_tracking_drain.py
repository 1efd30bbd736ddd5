from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from orchestrator import tracking_drain, tracking_follow, tracking_send
from orchestrator.ledger import Row
from orchestrator.outbox import epoch_record, offset_file, start_record
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from orchestrator.tracking_follow import follow
from orchestrator.tracking_runs import RunRefusedError, StoreDownError
from orchestrator.tracking_view import flat_params
from tests.orchestrator.fake_driver import BEGIN, Driver, make_row, make_study
from tests.orchestrator.memory_store import DOWN, KilledError, MemoryStore

URI = "memory:"


@pytest.fixture(autouse=True)
def plain_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a cell takes longer than all the rest; test_tracking.py draws."""

    def write(folder: Path, row: Row) -> None:
        (folder / "curves.json").write_text(str(len(row.curve)))

    monkeypatch.setattr(tracking_send, "write_artifacts", write)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


ROWS = [make_row(0), make_row(0, alpha_gradient="unrolled"), make_row(1)]
RETRAIN = make_row(0, stage="retrain", genotype_hash=ROWS[0].genotype_hash)
CUT = make_row(4)


def eventful(study: Study) -> list[Callable[[], None]]:
    """Return the events of a study that was killed, resumed, and left with a row unfinished."""
    driver = Driver(study)
    first, second, third = ROWS
    diverged = make_row(2, status="diverged", genotype=None, genotype_hash=None)
    stopped = make_row(3, status="stopped", stop={"epoch": 2, "reason": "asha"})
    return [
        driver.begin,
        lambda: driver.run(first),
        lambda: driver.start(second),
        lambda: driver.epoch(second, 1),
        lambda: driver.checkpoint(second, 1),
        driver.begin,  # the driver was killed and came back; epochs 1 and 2 are done again
        lambda: driver.start(second),
        lambda: driver.epoch(second, 1),
        lambda: driver.epoch(second, 2),
        lambda: driver.finish(second),  # the record of epoch 3 was lost
        lambda: driver.run(third),
        lambda: driver.run(diverged),
        lambda: driver.run(stopped),
        lambda: driver.run(RETRAIN),
        lambda: driver.start(CUT),
        lambda: driver.epoch(CUT, 1),
        lambda: driver.checkpoint(CUT, 1),
        lambda: driver.end("interrupted"),
    ]


def drained(study: Study) -> MemoryStore:
    store = MemoryStore()
    Drain(study, store, URI).send()
    return store


def test_every_row_is_one_run_with_the_status_it_ended_with(study: Study) -> None:
    for event in eventful(study):
        event()
    shown = drained(study).picture()
    statuses = {run["tags"]["status"]: run["status"] for key, run in shown.items()}
    assert len(shown) == 1 + len(ROWS) + 4
    assert statuses == {
        "finished": "FINISHED",
        "stopped": "FINISHED",
        "diverged": "FAILED",
        "interrupted": "KILLED",
    }
    assert shown["study"]["status"] == "KILLED"
    second = shown[ROWS[1].key]
    values = {step: v for (name, step), v in second["metrics"].items() if "val_loss" in name}
    assert values == {1: 1.1, 2: 0.55, 3: pytest.approx(1.1 / 3)}


def test_searches_and_their_retraining_name_each_other(study: Study) -> None:
    for event in eventful(study):
        event()
    shown = drained(study).picture()
    retrain_note = shown[RETRAIN.key]["tags"]["mlflow.note.content"]
    # CUT, of seed 4, has the genotype of seed 1: only the two searches of seed 0 and the diverged
    # and stopped ones that have its hash are named. Seed 3 has that of seed 0 (three operations).
    for name in ("darts · seed 0", "darts unrolled · seed 0", "darts · seed 3"):
        assert f"[{name}]" in retrain_note
    assert "seed 1" not in retrain_note
    # 1 - 0.5 exp(-0.9) after three epochs
    assert "test accuracy 0.7967" in shown[ROWS[0].key]["tags"]["mlflow.note.content"]
    assert "[0.7967]" in shown["study"]["tags"]["mlflow.note.content"]


def test_sending_after_each_event_equals_sending_at_the_end(study: Study, tmp_path: Path) -> None:
    store = MemoryStore()
    drain = Drain(study, store, URI)
    with study.hold():  # a live driver: nothing is settled before its time
        for event in eventful(study):
            event()
            drain.send()
    drain.send()
    assert store.picture() == drained(study_without_offset(study)).picture()


def test_no_point_of_a_row_is_given_twice(study: Study) -> None:
    driver, store = Driver(study), MemoryStore()
    drain = Drain(study, store, URI)
    row = ROWS[0]
    with study.hold():
        for event in (
            driver.begin,
            lambda: driver.start(row),
            *(partial(driver.epoch, row, epoch) for epoch in range(1, row.epochs_done + 1)),
            lambda: driver.finish(row),
            lambda: driver.end("finished"),
        ):
            event()
            drain.send()
    (run_id,) = (key for key, run in store.all.items() if run.tags.get("nas.key") == row.key)
    of_row = [point for point in store.given if point[0] == run_id]
    assert len(of_row) > 3 * row.epochs_done
    assert len(of_row) == len(set(of_row))


def test_every_run_has_the_params_of_its_row(study: Study) -> None:
    for event in eventful(study):
        event()
    shown = drained(study).picture()
    for row in (*ROWS, RETRAIN, CUT):
        assert shown[row.key]["params"] == flat_params(row)


def test_a_row_whose_artifacts_were_refused_is_sent_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for event in eventful(study):
        event()
    expected = drained(study_without_offset(study)).picture()
    store = MemoryStore()

    def refuse(*_: object) -> None:
        raise RunRefusedError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(store, "upload", refuse)
        Drain(study, store, "other:").send()
    assert store.picture() != expected
    Drain(study, store, "other:").rebuild()
    assert store.picture()[ROWS[0].key] == expected[ROWS[0].key]


def test_a_row_that_has_ended_takes_four_requests_and_its_dataset(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    driver.run(ROWS[0])
    one = drained(study).calls
    driver.run(ROWS[1])
    assert drained(study_without_offset(study)).calls - one == 5


def study_without_offset(study: Study) -> Study:
    offset_file(study.outbox).unlink(missing_ok=True)
    return study


def test_a_drain_killed_at_any_call_and_begun_again_loses_and_doubles_nothing(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_drain, "BATCH_BYTES", 4000)
    for event in eventful(study):
        event()
    straight = drained(study)
    expected = straight.picture()
    for kill_at in range(straight.calls):
        for after in (False, True):
            study_without_offset(study)
            store = MemoryStore()
            store.kill_at, store.after = kill_at, after
            with pytest.raises(KilledError):
                Drain(study, store, URI).send()
            Drain(study, store, URI).send()
            assert store.picture() == expected, (kill_at, after)


def test_an_outage_at_any_call_is_survived_by_the_same_drain(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_drain, "BATCH_BYTES", 4000)
    for event in eventful(study):
        event()
    straight = drained(study)
    for kill_at in range(straight.calls):
        study_without_offset(study)
        store = MemoryStore()
        store.kill_at, store.after, store.error = kill_at, True, DOWN
        drain = Drain(study, store, URI)
        with pytest.raises(StoreDownError):
            drain.send()
        drain.send()
        assert store.picture() == straight.picture(), kill_at


def test_any_suffix_of_the_outbox_may_be_sent_again(study: Study) -> None:
    for event in eventful(study):
        event()
    store = drained(study)
    expected = store.picture()
    lines = study.outbox.read_bytes().splitlines(keepends=True)
    for first in range(len(lines)):
        study.outbox.write_bytes(b"".join(lines[first:]))
        study_without_offset(study)
        Drain(study, store, URI).send()
        assert store.picture() == expected, first


def test_a_rebuild_equals_what_was_sent_live_and_may_be_repeated(study: Study) -> None:
    for event in eventful(study):
        event()
    expected = drained(study).picture()
    rebuilt = MemoryStore()
    assert Drain(study, rebuilt, "other:").rebuild() == 6
    assert rebuilt.picture() == expected
    calls = rebuilt.calls
    Drain(study, rebuilt, "other:").rebuild()
    assert rebuilt.picture() == expected
    assert rebuilt.calls - calls < calls / 4  # what is there is not sent again
    assert Drain(study, rebuilt, "other:").send() == 0


def test_a_rebuild_without_an_outbox_has_every_row(study: Study) -> None:
    for event in eventful(study):
        event()
    expected = drained(study).picture()
    shutil.rmtree(study.outbox.parent)
    rebuilt = MemoryStore()
    Drain(study, rebuilt, URI).rebuild()
    assert rebuilt.picture() == expected


def test_a_rebuild_over_a_store_filled_live_doubles_no_point(study: Study) -> None:
    for event in eventful(study):
        event()
    store = drained(study)
    expected = store.picture()
    for run in store.all.values():
        run.tags.pop("nas.row", None)  # as if every row had changed since
    Drain(study, store, URI).rebuild()
    assert store.picture() == expected


def test_a_row_whose_record_was_lost_is_sent_when_the_driver_is_gone(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    driver.start(ROWS[0])
    study.ledger.write(ROWS[0])
    with study.hold():
        store = drained(study)
        assert store.picture()[ROWS[0].key]["status"] == "RUNNING"
    Drain(study, store, URI).send()
    assert store.picture()[ROWS[0].key]["status"] == "FINISHED"


def test_a_resumed_study_opens_its_run_again_and_goes_on_with_its_rows(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    driver.start(ROWS[0])
    store = drained(study)  # nobody holds the study: the driver was killed
    assert {run["status"] for run in store.picture().values()} == {"KILLED"}
    drain = Drain(study, store, URI)
    with study.hold():
        driver.begin()
        driver.start(ROWS[0])
        drain.send()
        assert {run["status"] for run in store.picture().values()} == {"RUNNING"}
    driver.finish(ROWS[0])
    driver.end()
    drain.send()
    assert {run["status"] for run in store.picture().values()} == {"FINISHED"}
    assert len(store.all) == 2


def test_what_a_driver_does_not_go_on_with_is_interrupted_though_it_runs(study: Study) -> None:
    driver = Driver(study)
    store = MemoryStore()
    drain = Drain(study, store, URI)
    with study.hold():
        driver.begin()
        driver.start(ROWS[0])
        driver.start(ROWS[1])
        drain.send()
        driver.begin()
        driver.start(ROWS[1])
        drain.send()
        shown = store.picture()
    assert shown[ROWS[0].key]["status"] == "KILLED"
    assert shown[ROWS[1].key]["status"] == shown["study"]["status"] == "RUNNING"


def test_a_finished_row_that_a_resumed_driver_replays_stays_finished(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    driver.run(ROWS[0])
    driver.end()
    store = drained(study)
    expected = store.picture()[ROWS[0].key]
    with study.hold():
        driver.begin()
        driver.outbox.append(start_record(ROWS[0], BEGIN + 50))
        driver.epoch(ROWS[0], 1)
        Drain(study, store, URI).send()
        assert store.picture()[ROWS[0].key] == expected


def test_a_stopped_row_that_goes_on_is_the_same_run(study: Study) -> None:
    driver = Driver(study)
    short = make_row(0, epochs=3)
    stopped = replace(short, status="stopped", curve=short.curve[:2], epochs_done=2)
    driver.begin()
    driver.run(stopped)
    driver.end()
    store = drained(study)
    driver.begin()
    driver.start(short)
    driver.epoch(short, 3)
    driver.finish(short)
    driver.end()
    Drain(study, store, URI).send()
    run = store.picture()[short.key]
    assert (run["status"], run["tags"]["status"]) == ("FINISHED", "finished")
    assert [s for n, s in sorted(run["metrics"]) if n == "search/val_loss"] == [1, 2, 3]


def test_a_store_that_was_wiped_is_filled_anew(study: Study) -> None:
    for event in eventful(study):
        event()
    expected = drained(study).picture()
    assert offset_file(study.outbox).exists()
    assert drained(study).picture() == expected


def test_a_run_deleted_by_a_person_holds_up_nothing_else(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    driver.start(ROWS[0])
    store = MemoryStore()
    drain = Drain(study, store, URI)
    with study.hold():
        drain.send()
        store.deleted = {"run1"}
        driver.finish(ROWS[0])
        driver.run(ROWS[1])
        drain.send()
    assert store.picture()[ROWS[1].key]["status"] == "FINISHED"


def test_torn_and_foreign_lines_are_put_aside(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    driver.run(ROWS[0])
    with study.outbox.open("ab") as file:
        file.write(b'{"k":"epoch","key":"0')
    driver = Driver(study, BEGIN + 60)  # opened again after the crash
    with study.outbox.open("ab") as file:
        file.write(b'{"k":"row"}\n[1]\n\xff\n\n')
    driver.run(ROWS[1])
    driver.end()
    shown = drained(study).picture()
    assert {run["status"] for run in shown.values()} == {"FINISHED"}
    assert len(shown) == 3
    bad = study.outbox.with_suffix(".bad").read_bytes().splitlines()
    assert bad == [b'{"k":"epoch","key":"0', b'{"k":"row"}', b"[1]", b"\xff"]


def test_a_line_that_is_still_being_written_waits(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    store = MemoryStore()
    drain = Drain(study, store, URI)
    with study.hold():
        assert drain.send() == 1
        with study.outbox.open("ab") as file:
            file.write(b'{"k":"study_end",')
        assert drain.send() == 0
        with study.outbox.open("ab") as file:
            file.write(b'"status":"finished","t":5}\n')
        assert drain.send() == 1
    assert store.picture()["study"]["status"] == "FINISHED"


def test_two_drains_at_once_make_one_run_a_row(study: Study) -> None:
    store = MemoryStore()
    driver = Driver(study)
    stop = threading.Event()

    def send() -> None:
        drain = Drain(study, store, URI)
        while not stop.is_set():
            drain.send()
        drain.send()

    with study.hold():
        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        driver.begin()
        for row in ROWS:
            driver.run(row)
            time.sleep(0.05)
        driver.end()
        stop.set()
        for thread in threads:
            thread.join()
    shown = store.picture()
    assert len(shown) == 1 + len(ROWS)
    assert {run["status"] for run in shown.values()} == {"FINISHED"}


def test_an_outbox_that_was_replaced_by_a_shorter_one_is_read(study: Study) -> None:
    driver = Driver(study)
    driver.begin()
    for row in ROWS:
        driver.run(row)
    store = drained(study)
    study.outbox.unlink()
    driver = Driver(study, BEGIN + 99)
    driver.begin()
    with study.hold():
        Drain(study, store, URI).send()
    assert store.picture()["study"]["status"] == "RUNNING"


def test_metrics_that_are_not_finite_are_left_out(study: Study) -> None:
    entry = {**ROWS[0].curve[0], "val_loss": float("nan"), "train_loss": float("inf")}
    record = epoch_record(ROWS[0].key, "search", entry, BEGIN)
    assert set(record["m"]) == {
        "search/val_accuracy",
        "search/train_accuracy",
        "search/skip_share",
        "search/alpha_entropy",
    }


def test_the_drain_process_outlives_a_killed_driver_by_one_last_look(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_follow, "_POLL_S", 0.02)
    driver = Driver(study)
    driver.begin()
    driver.run(ROWS[0])
    driver.start(ROWS[1])
    store = MemoryStore()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    codes: list[int] = []

    def run() -> None:
        codes.append(follow(study, lambda: Drain(study, store, URI), process.pid))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.2)
    assert not codes
    driver.epoch(ROWS[1], 1)
    process.kill()
    process.wait()
    thread.join(timeout=10)
    assert codes == [0]
    shown = store.picture()
    assert shown[ROWS[1].key]["status"] == "KILLED"
    assert ("search/val_loss", 1) in shown[ROWS[1].key]["metrics"]
    assert shown["study"]["tags"]["status"] == "interrupted"


def test_the_drain_process_waits_for_a_store_and_gives_up_after_the_driver(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_follow, "_POLL_S", 0.01)
    monkeypatch.setattr(tracking_follow, "_GRACE_S", 0.3)
    Driver(study).begin()
    attempts: list[float] = []

    def connect() -> Drain:
        attempts.append(time.monotonic())
        raise DOWN

    assert follow(study, connect, None) == 1
    waits = [after - before for before, after in itertools.pairwise(attempts)]
    assert len(attempts) < 10  # it backs off
    assert waits[-1] > 2 * waits[0]
    assert follow(study, lambda: Drain(study, MemoryStore(), URI), None) == 0
