"""A metric of the oracle: refused unless allowed, shown by the driver alone, said everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import runner, simulating, tracking
from orchestrator.commands_study import study_state
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment
from orchestrator.ledger import Row, write_row
from orchestrator.oracle_metric import OracleMetric, filled
from orchestrator.report import write_report
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from tests.orchestrator import here
from tests.orchestrator.fake_study import make_study, search_row
from tests.orchestrator.memory_store import MemoryStore
from tests.orchestrator.test_oracle import form
from tests.orchestrator.test_simulate import Quiet
from tests.spaces.tables import columns201, write

ASKED = """
name: led
space: {{name: nasbench201, channels: 2, cells_per_stage: 1}}
dataset: digits
seeds: [0, 1]
method: darts
search: {{epochs: 9, batch_size: 64, weight_lr: {{loguniform: [0.001, 0.1]}}}}
oracle: {{name: nasbench201, path: {table}}}
retrain: {{epochs: 2, channels: 2, cells: 1, batch_size: 64, top_k: 1}}
tune:
  num_samples: 20
  searcher: optuna
  scheduler: {{name: asha, grace_epochs: 1, reduction_factor: 3}}
"""
ALLOWED = "tune.allow_oracle_metric=true"
ACCURACY = (ALLOWED, "tune.metric=oracle/test_accuracy", "retrain.by=oracle/test_accuracy")
REGRET = (ALLOWED, "tune.metric=oracle/test_regret", "retrain.by=oracle/test_regret")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # What is best on validation is worst on test.
    columns = columns201()
    columns["cifar10_val"] = [100.0 - value for value in columns["cifar10_test"]]
    return write(columns, tmp_path_factory.mktemp("tables") / "nb201.parquet")


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the outbox as it is: the drain is a process of its own."""
    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
    monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)


def load(table: Path, folder: Path, *overrides: str) -> Experiment:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "led.yaml").write_text(ASKED.format(table=table))
    return load_experiment(folder / "led.yaml", overrides)


def run(table: Path, folder: Path, *overrides: str) -> Study:
    made = simulating.simulated(load(table, folder, *overrides), ray=False)
    runner.run_study(made, folder / "studies", command="test", reporter=Quiet())
    return Study.open(made.name, folder / "studies")


def convolutions(row: Row) -> int:
    """Return the 3x3 convolutions of a genotype: the made-up test accuracy grows with them."""
    return str(row.genotype).count("nor_conv_3x3")


# The experiment file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.metric=oracle/test_accuracy"], "tune.metric cannot be of the oracle"),
        (["retrain.by=oracle/test_regret"], "retrain.by cannot be of the oracle"),
        ([*ACCURACY, "oracle=none"], "tune.metric 'oracle/test_accuracy' needs an oracle"),
        ([ALLOWED], "tune.allow_oracle_metric has no effect"),
        ([*REGRET, "tune.mode=max"], "tune.mode must be min for oracle/test_regret"),
        ([ALLOWED, "tune.metric=test_accuracy"], "must be of the validation split"),
    ],
)
def test_what_is_not_allowed_or_has_no_effect_is_refused(
    overrides: list[str], message: str, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(table, tmp_path, *overrides)


def test_an_allowed_metric_has_its_own_direction(table: Path, tmp_path: Path) -> None:
    assert load(table, tmp_path, *ACCURACY).tune.mode == "max"
    assert load(table, tmp_path, *REGRET).tune.mode == "min"


# What the driver shows


@pytest.fixture
def study(table: Path, tmp_path: Path) -> Study:
    text = ASKED.format(table=table)
    text += "  allow_oracle_metric: true\n  metric: oracle/test_accuracy\n"
    return make_study(tmp_path / "studies", text)


def searched(seed: int, *counts: int, **changes: Any) -> Row:
    curve = [
        {"epoch": epoch, "val_accuracy": 0.5, "genotype": form(count)}
        for epoch, count in enumerate(counts, 1)
    ]
    changes = {"curve": curve, "genotype": form(counts[-1]), **changes}
    return search_row("darts", seed, [0.5] * len(counts), **changes)


def config(*rows: Row) -> dict[str, Any]:
    return {"unit": {"rows": {str(row.seed): row.key for row in rows}}}


def test_a_result_gets_the_mean_of_its_seeds_at_its_epoch(study: Study) -> None:
    ended, begun = searched(0, 1, 2), searched(1, 5, 6, 4)
    study.ledger.write(ended)
    write_row(study.checkpoints / begun.key / "row.json", replace(begun, status="running"))
    metric = OracleMetric(study, "oracle/test_accuracy")

    def shown(epoch: int) -> float:
        result: dict[str, Any] = {"epoch": epoch}
        metric.add(config(ended, begun), result)
        return result["oracle/test_accuracy"]

    # 40 % and 9 more for each convolution.
    assert shown(1) == pytest.approx(0.40 + 0.09 * 3)
    assert shown(2) == pytest.approx(0.40 + 0.09 * 4)
    assert shown(3) == pytest.approx(0.40 + 0.09 * 3)  # the one that has ended stands at its end


@pytest.mark.parametrize(
    ("metric", "worst"), [("oracle/test_accuracy", 0.0), ("oracle/test_regret", 1.0)]
)
def test_what_has_no_value_counts_as_the_worst(metric: str, worst: float, study: Study) -> None:
    lost = searched(0, 6, status="diverged")
    study.ledger.write(lost)
    unknown = searched(1, 6)
    result: dict[str, Any] = {"epoch": 1}
    OracleMetric(study, metric).add(config(lost, unknown), result)
    assert result[metric] == worst


def test_rows_are_filled_for_those_who_rank_and_kept_as_they_are(study: Study) -> None:
    row = searched(0, 1, 6)
    study.ledger.write(row)
    (found,) = filled(study, study.rows())
    assert found.value("oracle/test_accuracy") == pytest.approx(0.94)
    assert [entry["oracle/test_accuracy"] for entry in found.curve] == pytest.approx([0.49, 0.94])
    assert all("oracle" not in key for entry in study.rows()[0].curve for key in entry)
    summary = study.summary()
    assert summary.best_value == pytest.approx(0.94)


# Whole studies


@pytest.fixture(scope="module")
def led(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Study]:
    """Studies that differ in their metric alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "start_drain", lambda study, uri: None)
        patch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
        ways: Mapping[str, tuple[str, ...]] = {"val": (), "accuracy": ACCURACY, "regret": REGRET}
        return {
            name: run(table, tmp_path_factory.mktemp(name), *overrides)
            for name, overrides in ways.items()
        }


def last(study: Study, status: str) -> list[int]:
    return [convolutions(row) for row in study.rows("search") if row.status == status]


@pytest.mark.parametrize("way", ["accuracy", "regret"])
def test_scheduler_and_retraining_follow_the_oracle(led: dict[str, Study], way: str) -> None:
    """Searches keep what is best on validation, so that the first epoch alone has a choice."""
    study = led[way]
    first = {
        status: [
            str(row.curve[0]["genotype"]).count("nor_conv_3x3")
            for row in study.rows("search")
            if row.status == status
        ]
        for status in ("finished", "stopped")
    }
    mean = {status: sum(counts) / len(counts) for status, counts in first.items()}
    assert mean["finished"] > mean["stopped"]
    (retrained,) = study.rows("retrain")
    assert convolutions(retrained) == max(last(study, "finished"))
    # By validation accuracy it is the other way round.
    (by_val,) = led["val"].rows("retrain")
    assert convolutions(by_val) == min(last(led["val"], "finished"))


def test_accuracy_and_regret_lead_to_the_same(led: dict[str, Study]) -> None:
    outcomes = [
        {row.key: (row.status, row.epochs_done) for row in led[way].rows()}
        for way in ("accuracy", "regret")
    ]
    assert outcomes[0] == outcomes[1]
    assert {row.key for row in led["val"].rows()} != set(outcomes[0])


def test_it_is_said_in_every_output(led: dict[str, Study]) -> None:
    study = led["regret"]
    said = "LED BY TEST ACCURACIES of the table nasbench201 cifar10"
    report = write_report(study)
    assert said in report.markdown.read_text()
    assert "that of the seed with the least regret in the oracle's table" in (
        report.markdown.read_text()
    )
    asked = ["tune.metric oracle/test_regret", "retrain.by oracle/test_regret"]
    assert json.loads(report.table.read_text())["oracle_metric"] == asked
    state = study_state(study)
    assert state["oracle_metric"] == asked
    assert said in state["notices"][1]
    assert state["best"] == pytest.approx(
        min(0.94 - 0.40 - 0.09 * convolutions(row) for row in study.rows("search")), abs=1e-6
    )
    store = MemoryStore()
    Drain(study, store, "memory:").rebuild()
    for stored in store.all.values():
        assert stored.tags["oracle_metric"] == ", ".join(asked)
        assert said in stored.tags["mlflow.note.content"]
    assert study_state(led["val"])["oracle_metric"] is None
    assert "LED BY" not in write_report(led["val"]).markdown.read_text()


def test_a_resume_runs_nothing_again(led: dict[str, Study]) -> None:
    study = led["accuracy"]
    before = sorted(path.name for path in (study.path / "ledger").iterdir())
    outcome = runner.resume_study(study, command="", reporter=Quiet())
    assert not outcome.interrupted
    assert sorted(path.name for path in (study.path / "ledger").iterdir()) == before


def test_ray_is_shown_the_metric_too(table: Path, tmp_path: Path, nas_here: here.Nas) -> None:
    load(table, tmp_path)
    overrides = (*REGRET, "tune.max_concurrent=1", "seeds=[0]", "ray.address=auto")
    settings = [word for override in overrides for word in ("--set", override)]
    code, said = nas_here("simulate", tmp_path / "led.yaml", *settings, root=tmp_path)
    assert code == 0, said
    study = Study.open("led-simulated", tmp_path)
    rows = study.rows("search")
    assert len(rows) == 20
    assert {row.status for row in rows} == {"finished", "stopped"}
    (retrained,) = study.rows("retrain")
    assert convolutions(retrained) == max(last(study, "finished"))
    # One trial after the other is the same on Ray as without: searcher and scheduler were told so.
    alone = run(table, tmp_path / "alone", *overrides)
    assert {row.key: (row.status, row.epochs_done) for row in alone.rows()} == {
        row.key: (row.status, row.epochs_done) for row in study.rows()
    }
