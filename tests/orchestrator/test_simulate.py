"""Simulated studies: drawn from a table alone, the same each time, and marked in every output."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import cli, outbox, planning, runner, selecting, simulating, tracking
from orchestrator.config import load_experiment
from orchestrator.dimensions import Dimension
from orchestrator.errors import ConfigError, StudyError
from orchestrator.experiment import Experiment
from orchestrator.factors import configurations, label
from orchestrator.landscapes import find_runs
from orchestrator.monitor import Monitor
from orchestrator.report import write_report
from orchestrator.simulated_loop import run_here
from orchestrator.simulated_response import draws
from orchestrator.study import Study
from orchestrator.sweep import make_scheduler
from orchestrator.tracking_drain import Drain
from spaces.core.text import parse
from tests.orchestrator import drive, here
from tests.orchestrator.fake_study import make_study
from tests.orchestrator.memory_store import MemoryStore
from tests.spaces.tables import columns201, write

PLAIN = """
name: planned
space: {{name: nasbench201, channels: 2, cells_per_stage: 1}}
dataset: digits
seeds: [0, 1, 2]
method: {{grid: [{{name: darts}}, {{name: sdarts_rs}}]}}
search: {{epochs: 4, batch_size: 64}}
oracle: {{name: nasbench201, path: {table}}}
retrain: {{epochs: 2, channels: 2, cells: 1, batch_size: 64}}
"""
DRAWN = """
name: planned
space: {{name: nasbench201, channels: 2, cells_per_stage: 1}}
dataset: digits
method: darts
search: {{epochs: 9, batch_size: 64, weight_lr: {{loguniform: [0.001, 0.1]}}}}
oracle: {{name: nasbench201, path: {table}}}
tune:
  num_samples: 30
  searcher: {searcher}
  scheduler: {scheduler}
"""
ASHA = "{name: asha, grace_epochs: 1, reduction_factor: 3}"


class Quiet:
    """A reporter that keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def update(self, progress: Any) -> None:
        pass

    def message(self, text: str) -> None:
        self.messages.append(text)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The validation accuracy is 2 points below the test's in the made-up table; turned round, so
    # that the best by one is the worst by the other and nobody can mix them up.
    columns = columns201()
    columns["cifar10_val"] = [100.0 - value for value in columns["cifar10_test"]]
    return write(columns, tmp_path_factory.mktemp("tables") / "nb201.parquet")


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the outbox as it is: the drain is a process of its own."""
    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
    monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)


def experiment(table: Path, folder: Path, text: str = PLAIN, *overrides: str, **words: str) -> Any:
    file = folder / "planned.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text.format(table=table, **words))
    return load_experiment(file, overrides)


def simulate(asked: Experiment, root: Path) -> Study:
    """Simulate without Ray."""
    made = simulating.simulated(asked, ray=False)
    runner.run_study(made, root, command="nas simulate planned.yaml", reporter=Quiet())
    return Study.open(made.name, root)


def outcomes(study: Study) -> dict[str, Any]:
    """Return what must be the same however a study was run."""
    return {
        row.key: (row.label, row.status, row.genotype_hash, [timeless(e) for e in row.curve])
        for row in study.rows()
    }


def timeless(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "ended"}


@pytest.fixture(scope="module")
def study(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("module")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "start_drain", lambda study, uri: None)
        patch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
        return simulate(experiment(table, root), root / "studies")


# What a simulated search is


def test_a_search_keeps_the_best_drawn_by_validation_accuracy(study: Study) -> None:
    columns = columns201()
    for row in study.rows("search"):
        numbers = random.Random(int(row.key, 16))
        drawn = [numbers.randrange(15_625) for _ in range(4)]
        accuracies = [1.0 - columns["cifar10_test"][cell] / 100 for cell in drawn]
        best = [max(range(n), key=accuracies.__getitem__) for n in (1, 2, 3, 4)]
        values = [entry["val_accuracy"] for entry in row.curve]
        assert values == pytest.approx([accuracies[place] for place in best])
        cells = [parse(columns["arch"][drawn[place]]) for place in best]
        assert [entry["genotype"] for entry in row.curve] == [cell.to_json() for cell in cells]
        assert row.genotype_hash == cells[-1].hash
        seconds = [columns["cifar10_train_seconds"][cell] for cell in drawn]
        assert row.cost["time_s"] == pytest.approx(sum(seconds))
        assert (row.status, row.epochs_done, row.simulated) == ("finished", 4, True)


def test_a_retraining_is_looked_up_and_its_reading_noted(study: Study) -> None:
    rows = study.rows("retrain")
    assert rows
    for row in rows:
        test = 0.4 + 0.09 * str(row.genotype).count("nor_conv_3x3")
        assert row.value("test_accuracy") == pytest.approx(test)
        assert (row.status, row.simulated, row.epochs_done) == ("finished", True, 1)
    reads = [json.loads(line) for line in study.test_reads.read_text().splitlines()]
    assert [read["key"] for read in reads] == [row.key for row in rows]
    assert all(read["simulated"] for read in reads)


def test_searches_are_given_no_test_accuracy(study: Study) -> None:
    with np.load(study.searchable) as given:
        assert sorted(given) == ["genotypes", "train_seconds", "val_accuracy"]
        assert given["val_accuracy"].max() == pytest.approx(0.6)  # 1 - 0.4; the test's is 0.94


def test_no_torch_is_imported_where_trials_run() -> None:
    code = (
        "import sys, orchestrator.simulated_trial, orchestrator.simulated_loop\n"
        "sys.exit('torch' in sys.modules or 'orchestrator.oracle' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_study_is_simulated_the_same_again(
    study: Study, table: Path, tmp_path: Path
) -> None:
    again = simulate(experiment(table, tmp_path), tmp_path / "studies")
    assert outcomes(again) == outcomes(study)
    assert len({row.genotype_hash for row in again.rows("search")}) == 6  # nor are seeds alike


# Keys and names: never mistaken for what was trained


def search_keys(asked: Experiment, identity: planning.Identity) -> set[str]:
    found = configurations(asked)
    units = planning.search_units(asked, found, identity, label(found))
    return {key for unit in units for key in unit.rows.values()}


def keys(table: Path, root: Path, *overrides: str, ray: bool = False) -> set[str]:
    made = simulating.simulated(experiment(table, root, PLAIN, *overrides), ray=ray)
    identity = simulating.SimulatedStudy(Study.create(root / "s", made, "")).identity(
        plugins_digest=None
    )
    return search_keys(made, identity)


def test_keys_are_of_the_table_and_not_of_the_images(
    study: Study, table: Path, tmp_path: Path
) -> None:
    own = {row.key for row in study.rows("search")}
    asked = experiment(table, tmp_path)
    assert not own & search_keys(asked, planning.identity(asked, plugins_digest=None))
    assert keys(table, tmp_path / "ray", ray=True) == own
    elsewhere = tmp_path / "other.parquet"
    elsewhere.symlink_to(table)
    assert keys(elsewhere, tmp_path / "path") == own
    columns = columns201()
    changed = write(columns, tmp_path / "changed.parquet")
    assert not keys(changed, tmp_path / "changed") & own


def test_a_simulation_says_so_in_its_name_and_labels(study: Study) -> None:
    assert study.name == "planned-simulated"
    assert study.simulated
    assert {row.label for row in study.rows("search")} == {
        "simulated darts",
        "simulated sdarts_rs",
    }
    assert all(row.label.startswith("simulated ") for row in study.rows("retrain"))


def test_a_name_that_says_simulated_is_kept(table: Path, tmp_path: Path) -> None:
    asked = experiment(table, tmp_path).model_copy(update={"name": "simulated-plan"})
    assert simulating.simulated(asked, ray=True).name == "simulated-plan"


def test_real_and_simulated_rows_cannot_come_into_one_study(study: Study, tmp_path: Path) -> None:
    text = study.experiment_file.read_text()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "study.json").write_bytes((study.path / "study.json").read_bytes())
    (copy / "experiment.yaml").write_text(
        text.replace("simulation:\n  ray: false\n  response: none\n", "")
    )
    with pytest.raises(StudyError, match=r"made by `nas simulate`, and its experiment.yaml has no"):
        _ = Study.open(copy).experiment
    record = json.loads((copy / "study.json").read_text())
    del record["simulated"]
    (copy / "study.json").write_text(json.dumps(record))
    (copy / "experiment.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"made by `nas run`, and its experiment.yaml has a"):
        _ = Study.open(copy).experiment


def test_no_cluster_is_looked_for_without_ray(table: Path, tmp_path: Path) -> None:
    asked = experiment(table, tmp_path, PLAIN, "ray.address=127.0.0.1:9")
    assert simulating.simulated(asked, ray=True).ray.address == "127.0.0.1:9"
    assert simulating.simulated(asked, ray=False).ray.address == "local"


# What is shown


def test_report_and_table_say_that_they_are_simulated(study: Study) -> None:
    report = write_report(study)
    text = report.markdown.read_text()
    assert text.startswith("# Simulated study planned-simulated\n\nSIMULATED: nothing was trained.")
    assert "NO hyperparameter, method or setting has an effect" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) >= 6
    assert all(line.endswith(" (simulated)") for line in headings)
    assert "supernet" not in text.split("## Settings")[0]
    assert "the searches have seen its validation accuracies alone" in text
    assert "nas simulate" in text.split("## Reproduce")[1]
    assert "<title>Simulated study planned-simulated</title>" in report.html.read_text()
    document = json.loads(report.table.read_text())
    assert document["simulated"] is True
    assert document["oracle"]["simulated"] is True
    assert "SIMULATED" in document["notices"][0]


Nas = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nas(study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Nas:
    monkeypatch.setenv("NAS_ROOT", str(study.root))

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.parametrize(
    "words", [("report", "planned-simulated"), ("status", "planned-simulated"), ("status",)]
)
def test_commands_say_that_a_study_is_simulated(nas: Nas, words: tuple[str, ...]) -> None:
    code, out, _ = nas(*words)
    assert code == 0
    assert "simulated" in out
    assert words == ("status",) or "SIMULATED: nothing was trained." in out
    _, out, _ = nas(*words, "--json")
    document = json.loads(out)
    assert (document[0] if isinstance(document, list) else document)["simulated"] is True


def test_a_resume_runs_nothing_again_and_says_what_it_is(nas: Nas, study: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study.path / "ledger").iterdir()}
    code, out, err = nas("resume", "planned-simulated")
    assert code == 0
    assert out.startswith("SIMULATED")
    assert "SIMULATED" in err
    assert {path: path.stat().st_mtime_ns for path in (study.path / "ledger").iterdir()} == before


def test_mlflow_has_the_word_in_names_tags_and_descriptions(study: Study) -> None:
    store = MemoryStore()
    Drain(study, store, "memory:").rebuild()
    runs = list(store.all.values())
    assert len(runs) == 1 + len(study.rows())
    for run in runs:
        assert run.tags["simulated"] == "true"
        assert "simulated" in run.name
        assert run.tags["mlflow.note.content"].startswith("SIMULATED: nothing was trained.")
        assert not any(name.endswith("cell.png") for name in run.artifacts)


# A made-up response


def dimension(kind: Any, low: float, high: float) -> Dimension:
    return Dimension("search.x", "search.x", kind, (low, high))


@pytest.mark.parametrize(
    ("kind", "low", "high", "value", "expected"),
    [
        ("uniform", 0.0, 1.0, 0.5, 10),  # the middle
        ("uniform", 0.0, 1.0, 1.0, 1),  # an end
        ("uniform", 0.0, 1.0, 0.25, 5),  # half way, 1 + 4.5, rounded to an even number
        ("loguniform", 0.01, 1.0, 0.1, 10),
        ("loguniform", 0.01, 1.0, 0.5, 4),  # u = 0.8495, q = 0.301, 1 + 2.7
        ("randint", 0, 5, 2, 10),  # of 0, 1, 2, 3, 4
    ],
)
def test_the_middle_of_a_range_draws_more(
    kind: Any, low: float, high: float, value: float, expected: int
) -> None:
    found = draws("middle", [dimension(kind, low, high)], {"search.x": value})
    assert found == expected
    assert draws("none", [dimension(kind, low, high)], {"search.x": value}) == 1
    assert draws("middle", [dimension(kind, low, high)], {}) == 1


def test_a_response_has_its_effect_and_its_name_everywhere(table: Path, tmp_path: Path) -> None:
    asked = experiment(table, tmp_path, DRAWN, searcher="random", scheduler="none")
    made = simulating.simulated(asked, ray=False, response="middle")
    runner.run_study(made, tmp_path / "studies", command="", reporter=Quiet())
    study = Study.open(made.name, tmp_path / "studies")
    rows = study.rows("search")
    far = [row for row in rows if row.settings["simulation"]["draws"] <= 3]
    near = [row for row in rows if row.settings["simulation"]["draws"] >= 8]
    means = [sum(row.curve[0]["val_accuracy"] for row in g) / len(g) for g in (far, near)]
    assert means[1] > means[0] + 0.02
    assert all(row.label.startswith("simulated-middle darts") for row in rows)
    assert not {row.key for row in rows} & {
        row.key for row in simulate(asked, tmp_path / "none").rows()
    }
    report = write_report(study)
    text = report.markdown.read_text()
    assert "The effect of hyperparameters is MADE UP, response 'middle'" in text
    assert "NO hyperparameter" not in text
    assert json.loads(report.table.read_text())["simulated_response"] == "middle"
    store = MemoryStore()
    Drain(study, store, "memory:").rebuild()
    assert {run.tags["simulated_response"] for run in store.all.values()} == {"middle"}
    again = load_experiment(study.experiment_file)
    assert simulating.simulated(again, ray=False).simulation == made.simulation


# Refusals


def test_a_response_that_is_not_known_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--response must be one of none, middle, got 'linear'"):
        simulating.simulated(experiment(table, tmp_path), ray=False, response="linear")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("oracle=none", "planned: nas simulate needs a table"),
        ("tune.metric=val_loss", "tune.metric must be val_accuracy in a simulation"),
        ("retrain.by=val_loss", "retrain.by must be val_accuracy in a simulation"),
    ],
)
def test_what_no_table_has_is_refused(
    override: str, message: str, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulating.simulated(experiment(table, tmp_path, PLAIN, override), ray=True)


def test_a_table_that_nothing_can_be_drawn_from_is_refused(tmp_path: Path) -> None:
    columns = columns201()
    del columns["cifar10_val"], columns["cifar10_train_seconds"]
    bare = experiment(write(columns, tmp_path / "bare.parquet"), tmp_path)
    with pytest.raises(ConfigError, match="no column cifar10_val and no column cifar10_train_sec"):
        simulating.check_table(bare)
    columns = columns201() | {"cifar10_train_seconds": [0.0] * 15_625}
    free = experiment(write(columns, tmp_path / "free.parquet"), tmp_path)
    with pytest.raises(ConfigError, match="must have seconds > 0 in cifar10_train_seconds"):
        simulating.check_table(free)


def test_a_simulation_is_not_run_for_real(nas: Nas, study: Study, tmp_path: Path) -> None:
    code, _, err = nas("run", str(study.experiment_file), "--name", "real")
    assert code == 2
    assert "its section `simulation` says that nothing is trained" in err
    code, _, err = nas("retrain", "all-skip", "--like", "planned-simulated", "--name", "real")
    assert code == 2
    assert "its section `simulation` says that nothing is trained" in err
    assert not (study.root / "real").exists()


def test_nothing_that_needs_a_supernet_is_asked_of_a_simulation(study: Study) -> None:
    with pytest.raises(StudyError, match="is simulated: no supernet was trained"):
        selecting.plan(study, "magnitude")
    with pytest.raises(StudyError, match="is simulated: no supernet was trained"):
        find_runs([study.name], study.root)


def test_a_lost_table_is_named_by_a_resume(study: Study, tmp_path: Path) -> None:
    asked = study.experiment
    lost = asked.model_copy(update={"oracle": {**(asked.oracle or {}), "path": "/lost.parquet"}})
    with pytest.raises(StudyError, match=r"lost.parquet.*Correct oracle.path in"):
        simulating.SimulatedStudy(Study.create(tmp_path, lost, ""))


# Schedulers, searchers, interruptions


class CutError(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_study_that_was_cut_is_resumed_to_what_it_would_have_been(
    searcher: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(
        table,
        tmp_path,
        DRAWN,
        searcher=searcher,
        scheduler=ASHA if searcher == "random" else "none",
    )
    whole = simulate(asked, tmp_path / "whole")
    statuses = [row.status for row in whole.rows("search")]
    assert len(statuses) == 30
    if searcher == "random":
        assert 15 < statuses.count("stopped") < 30
        stopped = [row for row in whole.rows("search") if row.status == "stopped"]
        assert {row.epochs_done for row in stopped} <= {1, 3}
        reason = "scheduler asha"
        assert all(r.stop == {"epoch": r.epochs_done, "reason": reason} for r in stopped)
    seen, on_result = 0, Monitor.on_result

    def cut(self: Monitor, config: dict[str, Any], result: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if seen == 25:
            raise CutError
        on_result(self, config, result)

    monkeypatch.setattr(Monitor, "on_result", cut)
    with pytest.raises(CutError):
        simulate(asked, tmp_path / "cut")
    resumed = Study.open("planned-simulated", tmp_path / "cut")
    assert len(resumed.rows()) < 30
    outcome = runner.resume_study(resumed, command="", reporter=Quiet())
    assert not outcome.interrupted
    assert len(resumed.rows()) == 30
    if searcher == "random":
        assert outcomes(resumed) == outcomes(whole)


def test_the_median_rule_stops_trials_too(table: Path, tmp_path: Path) -> None:
    rule = "{name: median, grace_epochs: 2}"
    made = simulate(
        experiment(table, tmp_path, DRAWN, searcher="random", scheduler=rule), tmp_path / "studies"
    )
    statuses = [row.status for row in made.rows("search")]
    assert 0 < statuses.count("stopped") < 30


class Timed:
    """A block of which every epoch takes as long as its configuration says."""

    def setup(self, config: dict[str, Any]) -> None:
        self.seconds, self.reported = config["seconds"], 0

    def step(self) -> dict[str, Any]:
        self.reported += 1
        entry = {"epoch_time_s": self.seconds}
        done = self.reported == 3
        return {"epoch": self.reported, "seeds": {"0": entry, "1": entry}, "done": done, "value": 0}


class Queue:
    """A searcher of a list."""

    def __init__(self, *seconds: float) -> None:
        self.left, self.completed = list(seconds), list[str]()

    def suggest(self, trial_id: str) -> Any:
        return {"seconds": self.left.pop(0)} if self.left else "FINISHED"

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        pass

    def on_trial_complete(self, trial_id: str, result: Any = None) -> None:
        self.completed.append(trial_id)


def test_trials_report_in_the_order_of_the_simulated_clock() -> None:
    reported: list[tuple[float, int]] = []
    ended: list[float] = []
    searcher = Queue(5.0, 2.0, 1.0)
    clock = run_here(
        Timed,
        searcher,
        make_scheduler({}, 3),
        on_result=lambda config, result: reported.append((config["seconds"], result["epoch"])),
        on_end=lambda config, result, error: ended.append(config["seconds"]),
        on_tick=lambda running: None,
        num_units=3,
        concurrent=2,
        metric="value",
        mode="max",
        time_budget_s=None,
    )
    # Two seeds: epochs end at 10, 20, 30 and at 4, 8, 12; the third begins at 12, its ends are 14,
    # 16 and 18.
    assert reported == [
        (2.0, 1), (2.0, 2), (5.0, 1), (2.0, 3), (1.0, 1), (1.0, 2), (1.0, 3), (5.0, 2), (5.0, 3)
    ]  # fmt: skip
    assert ended == [2.0, 1.0, 5.0]
    assert searcher.completed == ["00000001", "00000002", "00000000"]
    assert clock == 30.0


# On Ray


def marked_runs(store: Path) -> int:
    """Return how many runs of a store say that they are simulated."""
    marked = "select count(*) from tags where key = 'simulated' and value = 'true'"
    with contextlib.closing(sqlite3.connect(store)) as connection:
        try:
            return int(connection.execute(marked).fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def test_a_simulation_that_was_cut_off_is_resumed_on_ray_and_sent_to_mlflow(
    table: Path, tmp_path: Path, nas_here: here.Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # here it goes to MLflow
    experiment(table, tmp_path, DRAWN, searcher="random", scheduler=ASHA)
    file, path = tmp_path / "planned.yaml", tmp_path / "planned-simulated"

    def cut_off() -> None:
        if len(list((path / "ledger").glob("*.json"))) > 5:
            raise KeyboardInterrupt

    code, said = nas_here(
        "simulate", file, "--set", "ray.address=auto", root=tmp_path, watch=cut_off
    )
    assert code == 130, said
    before = drive.rows(path)
    assert 5 < len(before) < 30
    code, more = nas_here("resume", "planned-simulated", root=tmp_path, mlflow=True)
    assert code == 0, more
    rows = drive.rows(path)
    assert len(rows) == 30
    assert all(row["label"].startswith("simulated ") for row in rows)
    finished = {row["key"]: row["curve"] for row in before if row["status"] == "finished"}
    assert finished
    assert finished == {row["key"]: row["curve"] for row in rows if row["key"] in finished}
    # Twice at the start, once at the end.
    assert (said + more).count("SIMULATED: nothing was trained") == 3
    # The drain goes on after the command, and may have made no tables yet.
    drive.wait_for(lambda: marked_runs(tmp_path / "mlflow.db") == 31, tmp_path)


@pytest.mark.parametrize(("alone_s", "seen"), [(0.0, "interrupted"), (60.0, "finished")])
def test_mlflow_is_filled_beside_a_long_simulation_and_after_a_short_one(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone_s: float, seen: str
) -> None:
    found: list[str | None] = []

    def start(study: Study, _: str) -> None:
        found.append(outbox.last_study_status(study.outbox))

    monkeypatch.setattr(tracking, "start_drain", start)
    monkeypatch.setattr(runner, "SIMULATED_ALONE_S", alone_s)
    began = time.monotonic()
    simulate(experiment(table, tmp_path), tmp_path / "studies")
    assert found == [seen]
    assert time.monotonic() - began < 50  # nobody waits for the time to be over


def test_mlflow_is_filled_from_the_start_of_a_study_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: found.append(uri))
    made = make_study(tmp_path / "studies")
    driver = runner._Driver(made, Quiet(), "nas run")
    with outbox.Outbox(made.outbox) as driver.outbox, driver._tracking("sqlite:///x"):
        assert found == ["sqlite:///x"]
    assert found == ["sqlite:///x"]
