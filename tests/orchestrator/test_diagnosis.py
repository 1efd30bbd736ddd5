"""Lines of the diagnostics table, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import diagnosis
from orchestrator.diagnosis import diagnose, probed, spread
from orchestrator.report import write_report
from tests.orchestrator.fake_study import make_study, search_row


def row(seed: int, op_weights: list[float], margin: float, **entry: Any) -> Any:
    last = {
        "epoch": 2,
        "val_accuracy": 0.5,
        "skip_share": 0.5,
        "collapsed": 0,
        "alpha_range": 2.0,
        "top1_margin": margin,
        "op_weights": {"cell": [op_weights]},
        **entry,
    }
    first = {"epoch": 1, "val_accuracy": 0.4, "skip_share": 0.25}
    return search_row("darts", seed, [], curve=[first, last])


def test_spread_is_the_mean_of_the_standard_deviations_over_seeds() -> None:
    # Deviations of (0.2, 0.4) and (0.8, 0.6): 0.1 sqrt(2) each, with n - 1 = 1.
    assert spread([[0.2, 0.8], [0.4, 0.6]]) == pytest.approx(0.1 * 2**0.5)


def test_a_search_is_undecided_where_its_margin_is_below_the_spread() -> None:
    # The spread of (0.45, 0.55) and (0.65, 0.35) is 0.1 sqrt(2) = 0.141.
    rows = [row(0, [0.45, 0.55], 0.1), row(1, [0.65, 0.35], 0.12, collapsed=1, skip_share=1.0)]
    (line,) = diagnose({"darts": rows})
    assert (line.n, line.undecided, line.collapsed) == (2, 2, 1)
    assert (line.margin, line.logit_range) == (pytest.approx(0.11), 2.0)
    assert line.skip_share.mean == 0.75
    assert line.eigenvalue.mean is None
    assert line.cells()[3:5] == ("1 of 2", "2 of 2")
    # One seed has no spread; rows of before have no op weights.
    assert diagnose({"darts": rows[:1]})[0].undecided is None
    assert diagnose({"darts": [search_row("a", 0, [0.5]), *rows]})[0].undecided is None
    assert diagnose({"darts": [search_row("a", 0, [], status="failed")]}) == []


def test_the_genotype_is_that_of_its_own_epoch() -> None:
    rows = [row(seed, [0.5, 0.5], 0.1, skip_share=1.0, collapsed=1) for seed in (0, 1)]
    best = [replace(each, genotype_epoch=1) for each in rows]
    (line,) = diagnose({"ms_darts": best})
    assert (line.skip_share.mean, line.collapsed) == (0.25, 0)


def test_probed_takes_the_epochs_that_all_have() -> None:
    def curve(*epochs: int) -> Any:
        entries = [{"epoch": e, "hessian_eigenvalue": float(e)} for e in epochs]
        return search_row("darts", 0, [], curve=entries)

    groups = {
        "a": [curve(2, 4, 5), curve(2, 5)],
        "b": [curve(1, 2, 5)],
        "c": [search_row("c", 0, [0.1])],
    }
    assert probed(groups, "hessian_eigenvalue") == (
        [2, 5],
        {"a": [[2.0, 5.0], [2.0, 5.0]], "b": [[2.0, 5.0]]},
    )
    assert probed({}, "hessian_eigenvalue") == ([], {})


def test_the_report_has_the_table_and_the_curves(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    for seed in (0, 1, 2):
        made = row(seed, [0.45, 0.55], 0.1, hessian_eigenvalue=0.5)
        made.curve[0]["hessian_eigenvalue"] = 0.25
        study.ledger.write(made)
    report = write_report(study)
    text = report.markdown.read_text()
    assert "| " + " | ".join(diagnosis.COLUMNS) in text
    assert "0.500 [0.500, 0.500]" in text
    assert (study.report / "hessian_eigenvalue.png").is_file()
    assert (study.report / "skip_share.png").is_file()
    assert not (study.report / "discretization_gap.png").exists()
