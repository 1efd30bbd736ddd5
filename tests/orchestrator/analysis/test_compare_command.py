"""`nas compare`: what it says of studies with failures, of few seeds, of several studies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.analysis.comparison_plots import comparison_figures, ranks_figure
from orchestrator.analysis.frame import study_frame
from orchestrator.analysis.method_comparison import compare_methods
from orchestrator.errors import StudyError
from orchestrator.study import Study
from tests.orchestrator.fake_study import YAML, fill, make_study, retrain_row, search_row

UNROLLED = "darts alpha_gradient=unrolled"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    fill(made)
    return made


def many(study: Study, n: int, shift: float, label: str = "other", **changes) -> None:
    for seed in range(n):
        accuracies = [0.5, 0.6, 0.8 + 0.01 * (seed % 4) + shift]
        study.ledger.write(search_row(label, seed, accuracies, **changes))


def nas(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_rows_that_did_not_finish_are_apart_and_their_hours_are_wasted(study: Study) -> None:
    study.ledger.write(
        search_row(
            UNROLLED, 3, [0.2], status="failed", block=1, cost={"time_s": 36.0, "cpu_hours": 0.01}
        )
    )
    frame = study_frame(study)
    assert frame.counts == {"finished": 5, "diverged": 1, "failed": 1}
    shown = compare_methods([frame])
    second = next(group for group in shown.groups if group.name == UNROLLED)
    assert second.values == {0: 0.91, 1: 0.95}
    assert second.outcomes == {"finished": 2, "diverged": 1, "failed": 1}
    assert (second.asked, second.hours, second.wasted) == (4, 0.01, 0.01)
    assert shown.unit == "CPU"
    letter = second.letter
    assert f"{letter} lacks 1 diverged, 1 failed of 4 rows: its mean is of the rest." in shown.said
    assert any("No interval and no test for fewer than 3 seeds" in line for line in shown.said)


def test_a_collapsed_search_counts_and_is_named(study: Study) -> None:
    row = search_row("darts", 7, [0.5, 0.6, 0.4])
    row.curve[-1]["collapsed"] = 1
    study.ledger.write(row)
    frame = study_frame(study)
    assert frame.counts["collapsed"] == 1
    group = next(g for g in compare_methods([frame]).groups if g.name == "darts")
    assert group.values[7] == 0.4
    assert group.outcomes["collapsed"] == 1


def test_one_seed_is_not_ranked(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    study.ledger.write(search_row("darts", 0, [0.1, 0.2, 0.3]))
    study.ledger.write(search_row("other", 0, [0.1, 0.2, 0.9], block=1))
    shown = compare_methods([study_frame(study)])
    assert [group.name for group in shown.groups] == ["darts", "other"]  # as in the file
    assert not shown.ranked
    assert shown.ranks is None
    assert [pair.verdict for pair in shown.pairs] == ["too few seeds"]
    assert "Not ranked: 2 of 2 lines have fewer than two seeds" in shown.said[0]


def test_what_differs_clearly_is_told_and_what_does_not_is_not(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    many(study, 8, 0.0, "a")
    many(study, 8, -0.2, "b", block=1)
    shown = compare_methods([study_frame(study)])
    assert [pair.verdict for pair in shown.pairs] == ["higher"]
    many(study, 8, 0.0, "c", block=2)
    third = compare_methods([study_frame(study)], against="a")
    assert {pair.first: pair.verdict for pair in third.pairs} == {"b": "lower", "c": "equal"}


def test_the_worth_of_genotypes_is_that_of_their_retrainings(study: Study) -> None:
    study.ledger.write(retrain_row("nor_conv_3x3", 1, 0.973))
    frame = study_frame(study, "retrain_accuracy")
    shown = compare_methods([frame])
    values = {group.name: group.values for group in shown.groups}
    assert values["darts"][0] == pytest.approx((0.971 + 0.973) / 2)
    assert values[UNROLLED][1] == pytest.approx(0.982)


def test_a_rule_that_chose_later_is_a_line_of_its_own_that_cost_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    for seed in range(3):
        row = search_row("darts", seed, [0.5, 0.6, 0.7], cost={"cpu_hours": 1.0})
        chosen = {"settings": {"name": "operation_strength", "batches": 4}, "label": "os",
                  "genotype": row.genotype, "genotype_hash": row.genotype_hash}  # fmt: skip
        row.selections["os"] = chosen
        study.ledger.write(row)
    shown = compare_methods([study_frame(study)])
    assert {g.name: (len(g.values), g.hours) for g in shown.groups} == {
        "darts": (3, 3.0),
        "darts select=os": (3, 0.0),
    }


def test_two_studies_are_compared_by_their_seeds(study: Study, tmp_path: Path) -> None:
    other = make_study(tmp_path / "studies", YAML.replace("name: tiny", "name: more"))
    many(other, 3, 0.0, "darts")
    frames = [study_frame(study), study_frame(other)]
    shown = compare_methods(frames)
    assert {group.name for group in shown.groups} == {"tiny: darts", UNROLLED, "more: darts"}
    whole = compare_methods(frames, by="study")
    assert {group.name for group in whole.groups} == {"tiny", "more"}
    assert whole.pairs[0].paired
    with pytest.raises(StudyError, match="study tiny is named twice"):
        compare_methods([frames[0], frames[0]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metric", "val_acuracy"), "has the metric 'val_acuracy'. Did you mean 'val_accuracy'?"),
        (("--metric", "oracle_test"), "has no oracle/test_accuracy: its experiment names no orac"),
        (("--by", "bandwidth"), "study tiny does not vary 'bandwidth'. Nothing varies in it."),
        (("--against", "drats"), "--against must be one of the lines"),
    ],
)
def test_what_is_not_there_is_said(
    words: tuple[str, ...], message: str, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = nas(capsys, "compare", str(study.path), *words)
    assert code == 2
    assert message in err


def test_no_row_and_too_many_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "studies")
    code, _, err = nas(capsys, "compare", str(study.path))
    assert (code, "has no row yet: there is nothing to compare" in err) == (2, True)
    for number in range(13):
        study.ledger.write(search_row(f"darts lr={number}", 0, [0.5]))
    code, _, err = nas(capsys, "compare", str(study.path))
    assert code == 2
    assert "at most 12 lines can be compared with each other, got 13 by label. Say --by" in err


def test_the_table_the_json_and_the_figures(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = nas(capsys, "compare", str(study.path), "-o", str(tmp_path / "figures"))
    assert code == 0
    assert "val accuracy, %" in out
    assert "92.00 [87.03, 96.97]" in out
    # The name is long: it stands above the table, which so fits into 80 columns.
    assert all(len(line) <= 80 for line in out.splitlines() if "[" in line)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "means.png", "best_of_k.png", "cost.png"
    }  # fmt: skip
    code, out, _ = nas(capsys, "compare", str(study.path), "--json")
    document = json.loads(out)
    assert code == 0
    assert document["groups"][0]["values"]["0"] == 0.91
    assert document["pairs"][0]["verdict"] == "too few seeds"


def test_figures_of_one_line_and_of_none_with_a_value(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    study.ledger.write(search_row("darts", 0, [0.3], status="failed"))
    shown = compare_methods([study_frame(study)])
    assert set(comparison_figures(shown)) == {"means", "best_of_k", "cost"}
    for figure in (*comparison_figures(shown).values(), ranks_figure(shown)):
        figure.canvas.draw()
    many(study, 4, 0.0)
    for figure in comparison_figures(compare_methods([study_frame(study)])).values():
        figure.canvas.draw()
