"""A study's oracle: asked for in its experiment, seen by its report and MLflow and nobody else."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import planning, tracking_send
from orchestrator.config import check_oracle, load_experiment
from orchestrator.errors import ConfigError
from orchestrator.factors import configurations, label
from orchestrator.ledger import Row
from orchestrator.oracle import StudyOracle, of_study
from orchestrator.oracle_report import blocks, view
from orchestrator.report import write_report
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from orchestrator.tracking_view import digest, view_of
from spaces.core.text import parse
from tests.orchestrator.fake_driver import Driver, make_row
from tests.orchestrator.fake_study import make_study, retrain_row, search_row
from tests.orchestrator.memory_store import MemoryStore
from tests.spaces.tables import CONV, cell201, columns201, write

BARE = """
name: judged
space: {name: nasbench201, channels: 4, cells_per_stage: 1}
dataset: digits
seeds: [0, 1, 2]
method: darts
search: {epochs: 3, batch_size: 32}
"""
# The table says 40 % and 9 more for each 3x3 convolution, so that the best has 94 %.
BEST = 0.94


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(columns201(), tmp_path_factory.mktemp("tables") / "nb201.parquet")


@pytest.fixture(scope="module")
def oracle(table: Path) -> StudyOracle:
    settings = {"name": "nasbench201", "path": str(table), "dataset": "cifar10"}
    return StudyOracle(settings, {"name": "nasbench201", "channels": 4, "cells_per_stage": 1})


def asking(table: Path) -> str:
    return f"{BARE}oracle: {{name: nasbench201, path: {table}}}\n"


def form(convolutions: int) -> dict[str, Any]:
    """Return the genotype of so many 3x3 convolutions and skip connections otherwise."""
    text = cell201((CONV,) * convolutions + ("skip_connect",) * (6 - convolutions))
    return parse(text).to_json()


def searched(label: str, seed: int, *convolutions: int, **changes: Any) -> Row:
    """Return a search whose genotypes have so many 3x3 convolutions after each epoch."""
    curve = [
        {"epoch": epoch, "val_accuracy": 0.5, "epoch_time_s": 4.0, "genotype": form(count)}
        for epoch, count in enumerate(convolutions, 1)
    ]
    values: dict[str, Any] = {"curve": curve, "genotype": form(convolutions[-1])}
    return search_row(label, seed, [0.5] * len(convolutions), **{**values, **changes})


def refused(path: Path, text: str, *overrides: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_experiment(path, overrides)
    return str(error.value)


# The experiment file


def test_a_path_is_sought_beside_the_file(table: Path, tmp_path: Path) -> None:
    (tmp_path / "near.parquet").symlink_to(table)
    file = tmp_path / "a.yaml"
    file.write_text(asking(Path("near.parquet")))
    assert load_experiment(file).oracle == {
        "name": "nasbench201",
        "path": str(tmp_path / "near.parquet"),
        "dataset": "cifar10",
    }
    file.write_text(f"{BARE}oracle: none\n")
    assert load_experiment(file).oracle is None


@pytest.mark.parametrize(
    ("oracle", "message"),
    [
        ("{name: nasbench201, path: no.parquet}", "oracle.path must be an existing path, got 'no"),
        ("nasbench201", "oracle.path must be given"),
        ("{name: nasbench2, path: a.yaml}", "Did you mean 'nasbench201'?"),
        ("{name: nasbench201, path: a.yaml, data: x}", "oracle.data is not a setting"),
        (
            "{name: nasbench101, path: a.yaml}",
            "oracle nasbench101 is a table of the space nasbench1shot1*, and this experiment "
            "searches nasbench201",
        ),
    ],
)
def test_a_wrong_oracle_is_refused(oracle: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path / "a.yaml", f"{BARE}oracle: {oracle}\n")


def test_one_space_of_several_that_the_table_is_not_of_is_enough(
    table: Path, tmp_path: Path
) -> None:
    both = "space={grid: [{name: nasbench201}, {name: darts}]}"
    message = refused(tmp_path / "a.yaml", asking(table), both)
    assert "this experiment searches darts" in message
    assert "searches nasbench201" not in message


@pytest.mark.parametrize("metric", ["oracle/test_regret", "oracle/test_accuracy"])
def test_the_oracle_is_no_tuning_metric(metric: str, table: Path, tmp_path: Path) -> None:
    message = refused(tmp_path / "a.yaml", asking(table), f"tune.metric={metric}")
    assert "tune.metric cannot be of the oracle" in message
    message = refused(tmp_path / "a.yaml", asking(table), "tune.metric=oracle_test_accuracy")
    assert "must be one of oracle/test_accuracy, oracle/test_regret to be of the oracle" in message


def test_a_broken_table_is_known_before_the_search(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    broken = write({"arch": ["|none~0|"], "accuracy": [1.0]}, tmp_path / "broken.csv")
    file.write_text(asking(broken))
    with pytest.raises(ConfigError, match=r"judged: oracle.path: .* no column 'cifar10_test'"):
        check_oracle(load_experiment(file))


def test_the_oracle_enters_no_key_and_nothing_that_a_trial_is_given(
    table: Path, tmp_path: Path
) -> None:
    units = []
    for text in (BARE, asking(table)):
        (tmp_path / "a.yaml").write_text(text)
        experiment = load_experiment(tmp_path / "a.yaml")
        found = configurations(experiment)
        known = planning.identity(experiment, plugins_digest=None)
        units.append(planning.search_units(experiment, found, known, label(found)))
    assert experiment.oracle is not None
    assert units[0] == units[1]


# What it says of rows


def test_regret_is_to_the_best_of_the_table(oracle: StudyOracle) -> None:
    row = searched("darts", 0, 0, 4, 2)
    truths = oracle.by_epoch(row)
    assert {epoch: truth.test_accuracy for epoch, truth in truths.items()} == pytest.approx(
        {1: 0.40, 2: 0.76, 3: 0.58}
    )
    assert [truth.test_regret for truth in truths.values()] == pytest.approx([0.54, 0.18, 0.36])
    own = oracle.of_row(row)
    assert own == truths[3]
    assert own is not None
    # Better are the cells of 3, 4, 5 and 6 convolutions: 20 * 64 + 15 * 16 + 6 * 4 + 1.
    assert (own.rank, own.size) == (1546, 15625)


def test_what_the_table_does_not_have_is_left_out(oracle: StudyOracle) -> None:
    row = searched("darts", 0, 1, 2)
    other = parse("|nor_conv_3x3~0|+|none~0|none~1|", "nasbench201").to_json()
    row = replace(row, curve=[row.curve[0], {**row.curve[1], "genotype": other}], genotype=other)
    assert list(oracle.by_epoch(row)) == [1]
    assert oracle.of_row(row) is None
    shown = view([row], oracle, "")
    (line,) = shown.lines
    assert (line.asked, line.found, line.regrets) == (1, {}, {})
    assert line.cells() == ("darts", "0 of 1", "–", "–", "–", "–")


def test_a_line_has_the_mean_of_its_finished_seeds(oracle: StudyOracle) -> None:
    rows = [searched("darts", seed, 6, count) for seed, count in enumerate((3, 4, 5))]
    rows.append(searched("darts", 3, 0, status="diverged"))
    (line,) = view(rows, oracle, "").lines
    # Regrets 27, 18 and 9 points: mean 18, s = 9, half width 4.3027 * 9 / sqrt(3) = 22.36.
    assert line.test_regret.mean == pytest.approx(0.18)
    assert line.test_regret.high == pytest.approx(0.18 + 4.3027 * 0.09 / math.sqrt(3), abs=1e-5)
    assert line.cells()[:4] == ("darts", "3", "76.00 [53.64, 98.36]", "18.00 [0.00, 40.36]")
    # Better than 3, 4 and 5 convolutions: 15 * 16 + 6 * 4 + 1, 6 * 4 + 1 and 1 cells.
    assert line.cells()[4:] == ("26", "2 and 266")
    assert {s: len(curve) for s, curve in line.regrets.items()} == {0: 2, 1: 2, 2: 2}
    assert line.regrets[0] == pytest.approx([0.0, 0.27])


def test_a_genotype_that_is_not_the_last_epochs_is_the_one_judged(oracle: StudyOracle) -> None:
    row = searched("darts", 0, 5, 1, genotype=form(5), genotype_epoch=1)
    (line,) = view([row], oracle, "").lines
    assert line.found[0].test_accuracy == pytest.approx(0.85)
    assert line.regrets[0][-1] == pytest.approx(0.45)


def test_a_later_choice_has_a_line_without_a_curve(oracle: StudyOracle) -> None:
    chosen = {"label": "strength", "genotype": form(6), "genotype_hash": "a" * 12}
    row = searched("darts", 0, 1, 2, selections={"strength": chosen})
    own, later = view([row], oracle, "").lines
    assert own.regrets
    assert later.label == "darts select=strength"
    assert later.found[0].test_regret == 0.0
    assert later.regrets == {}


# The report


@pytest.fixture
def study(table: Path, tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies", asking(table))
    for seed, count in enumerate((3, 4, 5)):
        made.ledger.write(searched("darts", seed, 6, count))
    made.ledger.write(retrain_row("none", 0, 0.9))
    return made


def test_the_report_has_true_accuracies_and_a_plot(study: Study) -> None:
    report = write_report(study)
    text = report.markdown.read_text()
    assert "| darts | 3 | 76.00 [53.64, 98.36] | 18.00 [0.00, 40.36] | 26 | 2 and 266 |" in text
    assert "searches on digits found, by the table nasbench201 cifar10" in text
    assert "the table's 15,625 architectures" in text
    assert (study.report / "oracle_regret.png").stat().st_size > 10_000
    table = json.loads(report.table.read_text())["oracle"]
    assert (table["oracle"], table["reason"]) == ("nasbench201 cifar10", None)
    (line,) = table["rows"]
    assert line["test_regret_by_epoch"]["2"] == pytest.approx([0.0, 0.09])
    assert line["seeds"]["2"]["rank"] == 2
    assert line["seeds"]["2"]["params"] == 73_306 + 5 * 243_040


def test_a_study_without_an_oracle_says_nothing_of_one(tmp_path: Path) -> None:
    made = make_study(tmp_path / "studies")
    made.ledger.write(searched("darts", 0, 6, 3))
    report = write_report(made)
    assert "True accuracy" not in report.markdown.read_text()
    assert json.loads(report.table.read_text())["oracle"] is None


def moved(study: Study, path: str) -> Study:
    """Return the study with another path of its oracle's table."""
    text = study.experiment_file.read_text()
    (old,) = (line for line in text.splitlines() if line.startswith("  path:"))
    study.experiment_file.write_text(text.replace(old, f"  path: {path}"))
    return Study.open(study.path)


def test_a_lost_table_is_said_in_one_line_and_the_report_goes_on(study: Study) -> None:
    lost = moved(study, "/lost.parquet")
    report = write_report(lost)
    text = report.markdown.read_text()
    assert "Left out what the oracle nasbench201 says: " in text
    assert "got '/lost.parquet': there is no such file. Correct oracle.path in" in text
    assert "## Results" in text
    _, reason = of_study(lost)
    assert len(reason.splitlines()) == 1
    assert json.loads(report.table.read_text())["oracle"]["reason"] == reason


def test_genotypes_that_the_table_lacks_are_counted(oracle: StudyOracle, tmp_path: Path) -> None:
    other = parse("|nor_conv_3x3~0|+|none~0|none~1|", "nasbench201").to_json()
    rows = [searched("darts", 0, 3), searched("darts", 1, 4, genotype=other)]
    (_, _, paragraph, _) = blocks(view(rows, oracle, ""), tmp_path)
    assert "does not have 1 of the genotypes." in str(paragraph)
    # A table that has none of them says so rather than nothing.
    bare = replace(rows[1], curve=[])
    (_, grid, paragraph) = blocks(view([bare], oracle, ""), tmp_path)
    assert "0 of 1" in str(grid)
    assert "does not have 1 of the genotypes." in str(paragraph)
    assert blocks(view([], oracle, ""), tmp_path) == []


# MLflow


def points(row: Row, oracle: StudyOracle | None) -> dict[tuple[str, int], tuple[float, int]]:
    totals = view_of(row, "study", "parent", oracle).totals
    return {(p.metric, p.step): (p.value, p.t) for p in totals if p.metric.startswith("oracle/")}


def test_a_run_has_each_epochs_truth_at_its_time_and_the_final_one(oracle: StudyOracle) -> None:
    row = searched("darts", 0, 6, 3, started=1000.0, ended=1010.0)
    found = points(row, oracle)
    assert found == {
        ("oracle/test_accuracy", 1): (pytest.approx(0.94), 1_004_000),
        ("oracle/test_regret", 1): (0.0, 1_004_000),
        ("oracle/test_accuracy", 2): (pytest.approx(0.67), 1_008_000),
        ("oracle/test_regret", 2): (pytest.approx(0.27), 1_008_000),
        ("oracle/final_test_accuracy", 2): (pytest.approx(0.67), 1_010_000),
        ("oracle/final_test_regret", 2): (pytest.approx(0.27), 1_010_000),
        ("oracle/final_rank", 2): (266.0, 1_010_000),
    }
    assert view_of(row, "study", "parent", oracle).tags["oracle"] == "nasbench201 cifar10"
    # The genotype of the first epoch, where a method takes that of its best one.
    earlier = points(replace(row, genotype=form(6), genotype_epoch=1), oracle)
    assert earlier[("oracle/final_test_regret", 2)] == (0.0, 1_010_000)
    assert earlier[("oracle/test_regret", 2)] == (pytest.approx(0.27), 1_008_000)
    assert points(row, None) == {}
    assert "oracle" not in view_of(row, "study", "parent").tags
    assert points(retrain_row("none", 0, 0.9), oracle) == {}


def test_a_row_is_sent_again_where_an_oracle_came_or_changed(oracle: StudyOracle) -> None:
    row = searched("darts", 0, 6, 3)
    other = StudyOracle.__new__(StudyOracle)
    other.digest = "0" * 16
    assert len({digest(row), digest(row, oracle), digest(row, other)}) == 3
    retrained = retrain_row("none", 0, 0.9)
    assert digest(retrained) == digest(retrained, oracle)


def test_the_data_set_changes_what_is_sent_and_the_path_does_not(
    oracle: StudyOracle, tmp_path: Path
) -> None:
    columns = columns201()
    path = write({**columns, "cifar100_test": columns["cifar10_test"]}, tmp_path / "two.parquet")
    settings = {"name": "nasbench201", "path": str(path)}
    space = {"name": "nasbench201"}
    assert StudyOracle({**settings, "dataset": "cifar10"}, space).digest == oracle.digest
    assert StudyOracle({**settings, "dataset": "cifar100"}, space).digest != oracle.digest


@pytest.fixture
def plain_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a cell takes longer than all the rest."""
    monkeypatch.setattr(tracking_send, "write_artifacts", lambda folder, row: None)


def shown(study: Study, store: MemoryStore, key: str) -> dict[tuple[str, int], float]:
    metrics = store.picture()[key]["metrics"]
    return {place: v for place, v in metrics.items() if place[0].startswith("oracle/")}


@pytest.mark.usefixtures("plain_artifacts")
def test_a_rebuild_gives_what_the_drain_gave(table: Path, tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies", asking(table))
    row = make_row(0)
    driver, live, rebuilt = Driver(study), MemoryStore(), MemoryStore()
    drain = Drain(study, live, "live:")
    with study.hold():
        driver.begin()
        driver.start(row)
        driver.epoch(row, 1)
        drain.send()
        # Nothing of the table before the search has ended.
        assert shown(study, live, row.key) == {}
        driver.epoch(row, 2)
        driver.epoch(row, 3)
        driver.finish(row)
        driver.end("finished")
    drain.send()
    found = shown(study, live, row.key)
    # fake_driver's genotype of seed 0 has 3x3 convolutions alone: the best cell.
    assert found[("oracle/test_accuracy", 2)] == pytest.approx(BEST)
    assert {step for name, step in found if name == "oracle/test_regret"} == {1, 2, 3}
    Drain(study, rebuilt, "rebuilt:").rebuild()
    assert rebuilt.picture() == live.picture()


@pytest.mark.usefixtures("plain_artifacts")
def test_a_lost_table_is_logged_once_and_the_rows_are_sent(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    lost, store = moved(study, "/lost.parquet"), MemoryStore()
    with caplog.at_level(logging.WARNING):
        assert Drain(lost, store, "memory:").rebuild() == 4
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "left out what the oracle nasbench201 says"
    ]
    assert len(store.picture()) == 5


@pytest.mark.usefixtures("plain_artifacts")
def test_a_table_that_is_found_again_is_sent_by_a_rebuild(study: Study, table: Path) -> None:
    store = MemoryStore()
    Drain(moved(study, "/lost.parquet"), store, "memory:").rebuild()
    key = study.rows("search")[0].key
    assert shown(study, store, key) == {}
    Drain(moved(study, str(table)), store, "memory:").rebuild()
    assert shown(study, store, key)[("oracle/test_regret", 1)] == 0.0


def varied(table: Path, root: Path) -> Study:
    """Return a study of four radii, whose cells are the better the larger the radius."""
    study = make_study(root / "studies", asking(table))
    for place, radius in enumerate((0.1, 0.2, 0.3, 0.4)):
        for seed in range(3):
            row = searched(
                f"darts radius={radius}", seed, place, config_id=f"{place:010x}",
                key=f"{10 * place + seed:016x}", block=place,
                settings={"method": {"name": "darts", "radius": radius}},
                params={"method.radius": radius},
            )  # fmt: skip
            study.ledger.write(row)
    return study


def test_a_report_shows_what_settings_do_to_true_accuracy_first(
    table: Path, tmp_path: Path
) -> None:
    study = varied(table, tmp_path)
    markdown = write_report(study).markdown.read_text(encoding="utf-8")
    section = markdown.partition("## Sensitivity")[2].partition("\n## ")[0]
    truth, _, own = section.partition("### Val accuracy")
    assert "### True test accuracy" in truth
    assert "sensitivity-oracle-responses.png" in truth
    assert "1 of 4 configurations are within one standard error of the best" in truth
    assert "radius=0.4" in truth
    assert "sensitivity-responses.png" in own
    assert f"`nas sensitivity {study.name}`" in own


def test_without_its_table_a_report_shows_the_sensitivity_of_its_own_metric(
    table: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(table.read_bytes())
    study = varied(moved, tmp_path)
    moved.unlink()
    markdown = write_report(study).markdown.read_text(encoding="utf-8")
    section = markdown.partition("## Sensitivity")[2].partition("\n## ")[0]
    assert "###" not in section
    assert "sensitivity-responses.png" in section
    assert "oracle" not in section
