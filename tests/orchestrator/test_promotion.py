"""Which genotypes of a study are retrained: the best distinct ones, each once with every seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import planning
from orchestrator.config import load_experiment
from orchestrator.experiment import Experiment
from orchestrator.ledger import Row
from orchestrator.results import caption, tabulate
from spaces.core import plugins
from spaces.core.text import parse
from tests.orchestrator.fake_study import CELL, YAML, retrain_row, search_row

IDENTITY = planning.Identity({"name": "digits", "digest": "d"}, None, None, {})
SPACE = {"name": "nasbench201", "channels": 4, "cells_per_stage": 1}


def experiment(tmp_path: Path, retrain: str) -> Experiment:
    file = tmp_path / "tiny.yaml"
    searched = "method: {grid: [darts, sdarts_rs]}"
    lines = [line for line in YAML.splitlines() if not line.startswith(("method:", "retrain:"))]
    file.write_text("\n".join([*lines, searched, f"retrain: {retrain}"]))
    return load_experiment(file)


def found(method: str, seed: int, operation: str, accuracy: float, loss: float) -> Row:
    """Return a search that ended with an accuracy and a loss."""
    row = search_row(method, seed, [accuracy], operation=operation)
    row.curve[-1]["val_loss"] = loss
    config = plugins.make_config("methods", method)[1]
    filled = plugins.settings_of(method, config)
    row.settings.update({"space": SPACE, "search": {}, "method": filled})
    return row


ROWS = [
    found("darts", 0, "none", 0.90, 0.7),
    found("darts", 1, "skip_connect", 0.95, 0.9),
    found("darts", 2, "skip_connect", 0.94, 0.2),
    found("sdarts_rs", 0, "skip_connect", 0.93, 0.3),
    found("sdarts_rs", 1, "nor_conv_3x3", 0.92, 0.1),
]


def trained(tmp_path: Path, retrain: str) -> list[tuple[str, int, str]]:
    """Return (operation, seed, label) of every retraining, in order."""
    names = ("none", "skip_connect", "nor_conv_3x3")
    operations = {parse(CELL.format(name)).hash: name for name in names}
    units = planning.retrain_units(experiment(tmp_path, retrain), ROWS, IDENTITY)
    assert len({key for unit in units for key in unit.rows.values()}) == len(units)
    return [
        (operations[unit.extra["genotype_hash"]], seed, unit.label)
        for unit in units
        for seed in unit.rows
    ]


def test_equal_genotypes_are_trained_once_with_every_seed(tmp_path: Path) -> None:
    # The best of both methods is the same genotype.
    got = trained(tmp_path, "{epochs: 2, seeds: [0, 7]}")
    assert got == [
        ("skip_connect", 0, "darts + sdarts_rs"),
        ("skip_connect", 7, "darts + sdarts_rs"),
    ]


def test_top_k_counts_distinct_genotypes(tmp_path: Path) -> None:
    # The second search of darts has the genotype of the first, so its second genotype is `none`.
    assert trained(tmp_path, "{epochs: 2, top_k: 2}") == [
        ("skip_connect", 0, "darts + sdarts_rs"),
        ("none", 0, "darts"),
        ("nor_conv_3x3", 0, "sdarts_rs"),
    ]
    names = [name for name, _, _ in trained(tmp_path, "{epochs: 2, top_k: 2, per: study}")]
    assert names == ["skip_connect", "nor_conv_3x3"]


def test_the_best_are_by_accuracy_or_by_loss(tmp_path: Path) -> None:
    least = [name for name, _, _ in trained(tmp_path, "{epochs: 2, by: val_loss}")]
    assert least == ["skip_connect", "nor_conv_3x3"]
    whole = [
        [name for name, _, _ in trained(tmp_path, f"{{epochs: 2, per: study, by: {by}}}")]
        for by in ("val_accuracy", "val_loss")
    ]
    assert whole == [["skip_connect"], ["nor_conv_3x3"]]


@pytest.mark.parametrize(
    ("by", "operation", "test"), [("val_accuracy", "skip_connect", 0.96), ("val_loss", "none", 0.9)]
)
def test_the_table_shows_the_genotype_that_was_retrained(
    by: str, operation: str, test: float
) -> None:
    rows = [
        found("darts", 0, "none", 0.90, 0.1),
        found("darts", 1, "skip_connect", 0.95, 0.9),
        retrain_row("none", 0, 0.9),
        retrain_row("skip_connect", 0, 0.96),
    ]
    (line,) = tabulate(rows, by=by)
    assert line.genotype_hash == parse(CELL.format(operation)).hash
    assert line.test_accuracies == {0: test}
    said = "least validation loss" if by == "val_loss" else "best one"
    assert said in " ".join(caption([line], by))
