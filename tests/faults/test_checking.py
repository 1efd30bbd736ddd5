"""The campaign's own eyes: whatever is lost, doubled or wrong, it must see."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import campaign, checking
from benchmarks.faults.campaign import Round, summary
from benchmarks.faults.checking import Reference, Verdict, check
from benchmarks.faults.studies import BLOCKS, CONFIGURATIONS, EPOCHS, SEEDS, RoundStudy, Times
from orchestrator import tracking

Rows = dict[str, dict[str, Any]]


def entry(epoch: int, seed: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "val_accuracy": 0.1 * epoch + 0.01 * seed,
        "genotype_hash": f"{epoch:012d}",
        "epoch_time_s": 0.5,
        "ended": 100.0 + epoch,
    }


class Undisturbed:
    """What every search of these tests has, without running one."""

    def prepare(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Nothing has to be begun."""

    def curve(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        curve = [entry(epoch, row["seed"]) for epoch in range(1, EPOCHS + 1)]
        times = ("epoch_time_s", "ended")
        return [{k: v for k, v in each.items() if k not in times} for each in curve]


def whole_rows() -> Rows:
    """Rows of a complete study: in each block one configuration was stopped after an epoch."""
    rows: Rows = {}
    for block in range(BLOCKS):
        for number in range(CONFIGURATIONS):
            for seed in SEEDS:
                key = f"{block}{number}{seed}".rjust(16, "a")
                epochs = 1 if number == 0 else EPOCHS
                rows[key] = {
                    "key": key,
                    "status": "stopped" if number == 0 else "finished",
                    "config_id": f"{block}{number}",
                    "block": block,
                    "seed": seed,
                    "curve": [entry(epoch, seed) for epoch in range(1, epochs + 1)],
                    "genotype_hash": f"{epochs:012d}",
                    "epochs_done": epochs,
                    "ended": 200.0,
                }
    return rows


class Left:
    """What a round has left in its folder and in MLflow."""

    def __init__(self, folder: Path, uri: str, study_id: str) -> None:
        self.uri, self.study_id = uri, study_id
        self.study = RoundStudy("r", folder, folder / "logs", address="-", uri=uri, seed=0)
        self.rows = whole_rows()
        self.struck: list[Times] = []
        self.destroyed: set[str] = set()
        known = {
            "time": 300.0,
            "searcher": {
                "complete": [f"{b}{n}" for b in range(BLOCKS) for n in range(1, CONFIGURATIONS)],
                "pruned": BLOCKS,
            },
            "scheduler": {"rungs": [[4.0, 6], [2.0, 6], [1.0, 8]]},
        }
        self.known: dict[str, Any] = known
        self.study.path.mkdir(parents=True)
        (self.study.path / "study.json").write_text(json.dumps({"id": study_id}))

    def look(self) -> Verdict:
        for part in ("ledger", "ray/search"):
            (self.study.path / part).mkdir(parents=True, exist_ok=True)
        for key, row in self.rows.items():
            (self.study.path / "ledger" / f"{key}.json").write_text(json.dumps(row))
        (self.study.path / "ray" / "search" / "known.json").write_text(json.dumps(self.known))
        reference: Any = Undisturbed()
        return check(self.study, reference, self.uri, self.struck, self.destroyed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a run of a study `whole`, and of each of its rows."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    tracking.prepare_store(uri)
    fill(uri, "whole", whole_rows())
    return uri


def fill(uri: str, study_id: str, rows: Rows) -> dict[str, str]:
    """Give a store the runs of a study; return their ids by key."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    place = client.create_experiment(study_id)
    made = {}
    for key, curve in [("", []), *((key, row["curve"]) for key, row in rows.items())]:
        tags = {"nas.study_id": study_id} | ({"nas.key": key} if key else {})
        run_id = client.create_run(place, tags=tags).info.run_id
        points = [
            Metric("search/val_accuracy", each["val_accuracy"], 0, each["epoch"]) for each in curve
        ]
        if points:
            client.log_batch(run_id, points)
        client.set_terminated(run_id)
        made[key] = run_id
    return made


@pytest.fixture
def left(tmp_path: Path, store: str) -> Left:
    return Left(tmp_path, store, "whole")


def test_undisturbed_searches_are_the_same_in_processes_of_their_own() -> None:
    settings = {
        "space": {"name": "nasbench201", "channels": 2, "cells_per_stage": 1},
        "dataset": {"name": "digits"},
        "method": {"name": "darts"},
        "search": {"epochs": 1, "batch_size": 256},
    }
    rows = [{"settings": settings, "seed": seed} for seed in (0, 1)]
    beside, here = Reference(), Reference()
    beside.prepare(rows)
    found = [beside.curve(row) for row in rows]
    beside.close()
    assert found == [here.curve(row) for row in rows]
    assert found[0] != found[1]
    assert [entry["epoch"] for entry in found[0]] == [1]


def test_a_complete_study_passes(left: Left) -> None:
    verdict = left.look()
    assert verdict.holds, verdict
    assert verdict.knew
    assert verdict.redone == 0


FIRST, LAST = "a" * 13 + "000", "a" * 13 + "131"
Harm = Callable[[Rows], object]


def set_value(key: str, value: float) -> Harm:
    return lambda rows: rows[key]["curve"][0].update(val_accuracy=value)


def lose_an_epoch(rows: Rows) -> None:
    del rows[LAST]["curve"][1]
    rows[LAST]["epochs_done"] = EPOCHS - 1


def double_a_seed(rows: Rows) -> None:
    rows["b" * 16] = {**copy.deepcopy(rows[LAST]), "key": "b" * 16}


def one_configuration_more(rows: Rows) -> None:
    for seed in SEEDS:
        key = f"{seed}".rjust(16, "c")
        rows[key] = {**copy.deepcopy(rows[LAST]), "key": key, "config_id": "new", "seed": seed}


@pytest.mark.parametrize(
    ("harm", "where"),
    [
        (lambda rows: rows.pop(LAST), "lost"),
        (lambda rows: [rows.pop(key) for key in list(rows) if key[-3:-1] == "13"], "lost"),
        (double_a_seed, "doubled"),
        (one_configuration_more, "doubled"),
        (set_value(LAST, 0.123), "wrong"),
        (set_value(FIRST, 0.123), "wrong"),
        (lose_an_epoch, "wrong"),
        (lambda rows: rows[LAST].update(status="failed"), "wrong"),
        (lambda rows: rows[FIRST].update(status="finished"), "wrong"),
        (lambda rows: rows[LAST].update(genotype_hash="0" * 12), "wrong"),
    ],
)
def test_a_ledger_that_is_not_as_it_should_be_is_seen(left: Left, harm: Harm, where: str) -> None:
    harm(left.rows)
    assert getattr(left.look(), where)


@pytest.mark.parametrize(
    "change",
    [
        {"searcher": {"complete": [], "pruned": 2}},
        {"searcher": {"complete": ["01", "02", "03", "11", "12", "13"], "pruned": 1}},
        {"scheduler": {"rungs": [[1.0, 7], [2.0, 6]]}},
        {"scheduler": {"rungs": [[1.0, 8], [2.0, 5]]}},
    ],
)
def test_a_searcher_or_scheduler_that_has_forgotten_is_seen(
    left: Left, change: dict[str, Any]
) -> None:
    left.known |= change
    verdict = left.look()
    assert verdict.wrong
    assert verdict.knew is False


def test_a_list_of_lost_trials_has_no_searcher_to_know_them(left: Left) -> None:
    left.known["searcher"] = None
    verdict = left.look()
    assert verdict.holds
    assert verdict.knew is None
    left.known["scheduler"] = {"rungs": [[1.0, 7], [2.0, 6]]}
    assert left.look().knew is False


def test_what_an_older_driver_knew_is_no_finding(left: Left) -> None:
    left.known = {"time": 150.0, "searcher": {"complete": [], "pruned": 0}, "scheduler": {}}
    verdict = left.look()
    assert verdict.holds
    assert verdict.knew is None


@pytest.mark.parametrize(
    "name",
    [f"checkpoints/{LAST}/row.json", f"checkpoints/{LAST}/state.pt", "ledger/.row.json.k3j4h5"],
)
def test_what_was_left_behind_is_seen(left: Left, name: str) -> None:
    path = left.study.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    assert [each for each in left.look().wrong if "left behind" in each]


def test_the_state_of_a_stopped_row_is_none_of_it(left: Left) -> None:
    path = left.study.path / "checkpoints" / FIRST / "state.pt"
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert left.look().holds


@pytest.fixture
def lingering(left: Left) -> Iterator[subprocess.Popen[bytes]]:
    code = "import time  # orchestrator\nprint(flush=True)\ntime.sleep(60)"
    environment = {**os.environ, "NAS_ROOT": str(left.study.root)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_that_goes_on_is_seen(
    left: Left, lingering: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_PATIENCE_S", 0.5)
    assert [each for each in left.look().wrong if "still running" in each]


def test_epochs_that_were_computed_again_are_counted(left: Left) -> None:
    left.struck = [{(LAST, 1): 101.0, (LAST, 2): 90.0, (FIRST, 1): 90.0}]
    left.destroyed = {FIRST}
    verdict = left.look()
    assert (verdict.redone, verdict.destroyed) == (1, 1)


@pytest.mark.parametrize(
    "harm", ["no run", "no study", "two runs", "running", "an epoch twice", "a stranger"]
)
def test_a_store_that_is_not_as_it_should_be_is_seen(tmp_path: Path, store: str, harm: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    study_id = f"{harm}-{time.time_ns()}"
    made = fill(store, study_id, whole_rows())
    place = client.get_run(made[LAST]).info.experiment_id
    tags = {"nas.study_id": study_id, "nas.key": LAST}
    if harm == "no run":
        client.delete_run(made[LAST])
    elif harm == "no study":
        client.delete_run(made[""])
    elif harm == "two runs":
        client.set_terminated(client.create_run(place, tags=tags).info.run_id)
    elif harm == "running":
        client.update_run(made[LAST], status="RUNNING")
    elif harm == "an epoch twice":
        client.log_metric(made[LAST], "search/val_accuracy", 0.5, timestamp=7, step=2)
    else:
        other = client.create_run(place, tags=tags | {"nas.key": "f" * 16})
        client.set_terminated(other.info.run_id)
    verdict = Left(tmp_path, store, study_id).look()
    assert not verdict.holds, harm
    assert (bool(verdict.lost), bool(verdict.doubled)) == (harm[:2] == "no", harm == "two runs")


def a_round(number: int, **changes: Any) -> Round:
    given: dict[str, Any] = {
        "seed": 3,
        "round": number,
        "faults": ["driver"],
        "said": ["killed the driver"],
        "resumes": 1,
        "codes": [-9, 0],
        "recovery_s": [7.0],
        "wall_s": 30.0,
    }
    return Round(**given | changes)


def test_a_campaign_is_summed_up_by_kind() -> None:
    rounds = [
        a_round(0),
        a_round(1, faults=["driver", "node"], recovery_s=[9.0, None], lost=["x", "v"], redone=2),
        a_round(2, faults=["driver"], recovery_s=[20.0], wrong=["y", "z"], doubled=["w"]),
    ]
    found = summary(rounds)
    assert (found["rounds"], found["lost"], found["doubled"], found["wrong"]) == (3, 2, 1, 2)
    assert found["faults"] == {"driver": 3, "node": 1}
    assert found["recovery_s"] == {"driver": {"median": 9.0, "most": 20.0, "times": 3}}
    assert found["redone_epochs"] == 2


def test_a_campaign_goes_on_after_the_rounds_of_its_record(tmp_path: Path) -> None:
    record = tmp_path / "rounds.jsonl"
    ran: list[int] = []

    class Field:
        def run(self, number: int) -> Round:
            ran.append(number)
            return a_round(number)

    field: Any = Field()
    assert [each.round for each in campaign.play(field, 2, record=record)] == [0, 1]
    assert [each.round for each in campaign.play(field, 3, record=record)] == [0, 1, 2]
    assert ran == [0, 1, 2]
    assert campaign.read(record) == [a_round(number) for number in range(3)]


def test_recovery_is_that_of_the_last_trial_that_ran() -> None:
    before = {("a", 1): 10.0, ("b", 1): 11.0, ("c", 4): 12.0}
    final = {**before, ("a", 2): 21.0, ("b", 2): 25.0, ("b", 3): 30.0, ("d", 1): 90.0}
    assert campaign._recovery(final, 20.0, before, {"a", "b"}) == 5.0
    assert campaign._recovery(final, 20.0, before, {"c"}) is None
