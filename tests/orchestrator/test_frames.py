"""A study as data frames and figures: types, what is missing, what is running, what it imports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import orchestrator
from orchestrator import Study
from orchestrator.errors import StudyError
from orchestrator.ledger import write_row
from spaces.core.genotype import Genotype
from spaces.core.text import parse
from tests.orchestrator.fake_study import CELL, fill, make_study, search_row

CONV = parse(CELL.format("nor_conv_3x3")).hash
UNROLLED = "darts alpha_gradient=unrolled"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    fill(made)
    return made


def test_the_package_opens_studies_and_imports_nothing_heavy() -> None:
    heavy = "('ray', 'mlflow', 'pandas', 'torch', 'matplotlib', 'yaml', 'optuna')"
    code = (
        "import sys, orchestrator\n"
        "print([m for m in sys.modules if m.startswith('orchestrator.')])\n"
        "from orchestrator import Study\n"
        f"print(Study.__name__, [m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["[]", "Study []"]
    with pytest.raises(AttributeError, match="has no attribute 'Stduy'"):
        _ = orchestrator.Stduy


def test_trials_have_typed_columns(study: Study) -> None:
    frame = study.trials()
    assert len(frame) == 8
    assert frame.index.name == "key"
    kinds = {
        "stage": "category", "status": "category", "label": "category", "method": "category",
        "seed": "Int64", "epochs_done": "Int64", "params": "Int64", "genotype_epoch": "Int64",
        "val_accuracy": "float64", "test_accuracy": "float64", "time_s": "float64",
        "genotype_hash": "string", "reason": "string", "resumed_elsewhere": "boolean",
    }  # fmt: skip
    assert {name: str(frame[name].dtype) for name in kinds} == kinds
    for name in ("started", "ended"):
        assert isinstance(frame[name].dtype, pd.DatetimeTZDtype)
    assert frame["started"].min() == pd.Timestamp(1000, unit="s", tz="UTC")
    means = frame[frame.status == "finished"].groupby("label", observed=True)["val_accuracy"].mean()
    # (0.90 + 0.92 + 0.94) / 3 and (0.91 + 0.95) / 2: the retrainings have no val accuracy.
    assert means["darts"] == pytest.approx(0.92)
    assert means[UNROLLED] == pytest.approx(0.93)


def test_what_a_row_lacks_is_missing_and_a_failed_row_is_there(study: Study) -> None:
    frame = study.trials()
    searches, retrains = frame[frame.stage == "search"], frame[frame.stage == "retrain"]
    assert searches["test_accuracy"].isna().all()
    assert retrains["val_accuracy"].isna().all()
    assert retrains["params"].tolist() == [12345, 12345]
    (diverged,) = frame[frame.status == "diverged"].itertuples()
    assert diverged.reason == "the loss was no longer finite"
    assert len(study.trials("search")) == 6


def test_settings_that_differ_are_columns_of_numbers(study: Study, tmp_path: Path) -> None:
    made = make_study(tmp_path / "others")
    for seed, (rate, kind) in enumerate([(0.1, "rbf"), (0.01, "flat")]):
        method = {"name": "ms_darts", "kernel": kind, "bandwidth": rate}
        settings = {"method": method, "search": {"epochs": 3, "weight_lr": rate}}
        drawn = {"search.weight_lr": rate}
        config_id = f"{seed:010x}"
        row = search_row("darts", seed, [0.5], settings=settings, params=drawn, config_id=config_id)
        made.ledger.write(row)
    frame = made.trials()
    assert frame["search.weight_lr"].tolist() == [0.1, 0.01]
    assert frame["method.bandwidth"].dtype == "float64"
    assert str(frame["method.kernel"].dtype) == "category"
    assert "search.epochs" not in frame  # the same everywhere
    assert made.trials(every_setting=True)["search.epochs"].tolist() == [3, 3]
    # One label, two configurations: what was drawn tells them apart.
    assert list(frame["label"]) == ["darts weight_lr=0.1", "darts weight_lr=0.01"]


def test_a_metric_called_like_a_fact_of_the_row_takes_nothing_away(tmp_path: Path) -> None:
    made = make_study(tmp_path / "studies")
    curve = [{"epoch": 1, "val_accuracy": 0.5, "stage": 2, "seed": 9}]
    made.ledger.write(search_row("p_darts", 4, [], curve=curve))
    for frame in (made.trials(), made.curves()):
        assert (frame["stage"][0:1].item(), frame["seed"][0:1].item()) == ("search", 4)
        assert frame["metric.stage"][0:1].item() == 2


def test_running_rows_are_there_and_interrupted_without_a_driver(study: Study) -> None:
    row = search_row("darts", 7, [0.3, 0.4], status="running", ended=None)
    write_row(study.checkpoints / row.key / "row.json", row)
    assert study.trials().loc[row.key, "status"] == "interrupted"
    assert study.trials().loc[row.key, "val_accuracy"] == 0.4
    assert pd.isna(study.trials().loc[row.key, "ended"])
    with study.hold():
        assert study.trials().loc[row.key, "status"] == "running"
        assert set(study.curves().query("key == @row.key")["status"]) == {"running"}


def test_curves_are_long(study: Study) -> None:
    frame = study.curves("search")
    assert len(frame) == 5 * 3 + 1
    assert str(frame["epoch"].dtype) == "Int64"
    mean = frame[frame.status == "finished"].groupby(["label", "epoch"], observed=True)
    assert mean["val_accuracy"].mean()["darts", 1] == pytest.approx(0.5)
    assert set(frame["genotype_hash"]) > {CONV}


def test_a_genotype_knows_who_found_it(study: Study) -> None:
    frame = study.genotypes()
    first = frame.iloc[0]
    assert (first.name, first["found"], first["labels"]) == (CONV, 3, ("darts",))
    assert len(first["keys"]) == 3
    assert (first["best_val_accuracy"], first["retrained"]) == (0.94, 1)
    assert first["mean_test_accuracy"] == pytest.approx(0.971)
    assert first["params"] == 12345
    assert isinstance(first["genotype"], Genotype)
    assert first["genotype"].hash == CONV


def test_a_study_without_rows_has_frames_of_the_same_columns(tmp_path: Path) -> None:
    made = make_study(tmp_path / "studies")
    assert list(made.trials().columns[:2]) == ["stage", "status"]
    assert made.trials().empty
    assert made.curves().empty
    assert made.genotypes().empty
    with pytest.raises(StudyError, match="no row of study tiny has 'val_accuracy'"):
        made.plot.curves()
    with pytest.raises(StudyError, match="has found no genotype"):
        made.plot.genotype()
    with pytest.raises(StudyError, match="no finished row"):
        made.plot.seeds()
    with pytest.raises(StudyError, match="no genotype with accuracy and cost"):
        made.plot.pareto()


def test_figures_are_drawn_of_any_study(study: Study, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    for number, figure in enumerate(
        (
            study.plot.curves(),
            study.plot.curves("test_accuracy", stage="retrain"),
            study.plot.curves(labels=["darts"]),
            study.plot.seeds(),
            study.plot.genotype(),
            study.plot.genotype(CONV),
            study.plot.pareto(),
        )
    ):
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{number}.png")
    lines = study.plot.curves(labels=["darts"]).axes[0].get_lines()
    # Three thin seeds and their mean, in percent.
    assert lines[-1].get_ydata().tolist() == pytest.approx([50.0, 70.0, 92.0])


def test_a_figure_of_what_is_not_there_says_what_is(study: Study) -> None:
    with pytest.raises(StudyError, match=r"has 'val_acuracy' in.*Did you mean 'val_accuracy'"):
        study.plot.curves("val_acuracy")
    with pytest.raises(StudyError, match=r"no configuration 'dart'.*Did you mean 'darts'"):
        study.plot.curves(labels=["dart"])
    with pytest.raises(StudyError, match="has found no genotype 123; it has"):
        study.plot.genotype("123")
    with pytest.raises(StudyError, match="tiny has no oracle"):
        study.plot.regret()


def test_one_unfinished_row_can_be_drawn(tmp_path: Path) -> None:
    made = make_study(tmp_path / "studies")
    made.ledger.write(replace(search_row("a", 0, [0.5, 0.6]), status="failed", error="x\nKeyError"))
    (line,) = made.plot.curves().axes[0].get_lines()
    assert line.get_ydata().tolist() == pytest.approx([50.0, 60.0])
    assert made.trials().iloc[0]["reason"] == "KeyError"
