"""The table of a study and its report, from rows whose numbers are worked out by hand."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator import glance, plots, report
from orchestrator.document import (
    Code,
    Facts,
    Grid,
    Heading,
    Paragraph,
    Picture,
    to_html,
    to_markdown,
)
from orchestrator.report import update_report, write_report
from orchestrator.results import COLUMNS, caption, document, tabulate
from orchestrator.study import Study
from spaces.core.text import parse
from tests.orchestrator.fake_study import (
    CELL,
    RETRAIN,
    fill,
    make_study,
    retrain_row,
    search_row,
)
from trainables.settings import RetrainSettings

UNROLLED = "darts alpha_gradient=unrolled"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    fill(made)
    return made


def test_a_line_has_the_mean_of_its_finished_seeds_alone(study: Study) -> None:
    unrolled, darts = tabulate(study.rows())
    # (0.91 + 0.95) / 2 = 0.93 is more than (0.90 + 0.92 + 0.94) / 3 = 0.92, so it comes first.
    assert (unrolled.label, unrolled.accuracy.n, unrolled.asked) == (UNROLLED, 2, 3)
    assert unrolled.accuracy.mean == pytest.approx(0.93)
    assert unrolled.cells()[1] == "2 of 3"
    assert darts.accuracy.mean == pytest.approx(0.92)
    # s = 0.02 and n = 3: half width 4.3027 * 0.02 / sqrt(3) = 0.0497.
    assert darts.cells()[2] == "92.00 [87.03, 96.97]"
    assert darts.search_s == pytest.approx(11.0)  # mean of 10, 11 and 12 s


def test_the_genotype_is_that_of_the_best_seed_with_its_test_accuracy(study: Study) -> None:
    unrolled, darts = tabulate(study.rows())
    assert darts.genotype_hash == parse(CELL.format("nor_conv_3x3")).hash
    assert darts.cells()[3] == "97.10"
    assert unrolled.test_accuracies == {0: 0.982}


def test_among_equal_seeds_the_retrained_genotype_is_meant() -> None:
    rows = [
        search_row("darts", 0, [0.9], operation="none"),
        search_row("darts", 1, [0.9], operation="skip_connect"),
        retrain_row("skip_connect", 0, 0.98),
    ]
    (result,) = tabulate(rows)
    assert result.test.mean == 0.98
    (untested,) = tabulate(rows[:2])
    assert untested.genotype_hash == parse(CELL.format("none")).hash


def test_one_seed_is_not_ranked_and_has_a_dash() -> None:
    rows = [search_row("a", 0, [0.5]), search_row("b", 0, [0.9], block=1)]
    results = tabulate(rows)
    assert [result.label for result in results] == ["a", "b"]  # the order of the experiment
    assert results[0].cells()[2] == "50.00 [–]"
    assert any("does not rank" in line for line in caption(results))


def test_stopped_and_failed_rows_count_as_asked_and_not_in_the_mean() -> None:
    rows = [
        search_row("a", 0, [0.5, 0.6, 0.7]),
        search_row("a", 1, [0.99], status="stopped"),
        search_row("a", 2, [], status="failed"),
    ]
    (result,) = tabulate(rows)
    assert (result.accuracy.n, result.asked, result.accuracy.mean) == (1, 3, 0.7)


def test_a_label_without_a_finished_row_is_a_line_of_dashes() -> None:
    (result,) = tabulate([search_row("a", 0, [], status="failed")])
    assert result.cells() == ("a", "0 of 1", "–", "–", "–", "–", "–", "–")


def test_configurations_with_one_label_are_told_apart_by_what_was_drawn() -> None:
    rows = [
        search_row("darts", 0, [0.5], config_id=key, key=key * 2, params={"search.lr": value})
        for key, value in (("aaaaaaaa", 0.123456), ("bbbbbbbb", 0.5))
    ]
    assert [result.label for result in tabulate(rows)] == ["darts lr=0.1235", "darts lr=0.5"]
    same = [replace(row, params={}) for row in rows]
    assert {result.label for result in tabulate(same)} == {"darts (aaaaaaaa)", "darts (bbbbbbbb)"}


def test_retrainings_with_other_settings_do_not_enter_the_table() -> None:
    longer = asdict(RetrainSettings(epochs=9))
    rows = [
        search_row("darts", 0, [0.9]),
        retrain_row("nor_conv_3x3", 0, 0.97),
        retrain_row("nor_conv_3x3", 0, 0.99, settings=longer),
    ]
    assert tabulate(rows, RETRAIN)[0].test_accuracies == {0: 0.97}
    assert tabulate(rows, longer)[0].test_accuracies == {0: 0.99}


def test_a_study_that_only_retrains_has_a_line_a_genotype() -> None:
    rows = [retrain_row("none", seed, 0.9 + seed / 100) for seed in (0, 1, 2)]
    (result,) = tabulate(rows)
    assert (result.test.n, result.asked) == (3, 3)
    assert result.test.mean == pytest.approx(0.91)


def test_a_study_that_only_retrains_has_a_report(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    filled = make_study(tmp_path / "others")
    fill(filled)
    (row, *_) = filled.rows("retrain")
    study.ledger.write(row)
    report = write_report(study)
    assert str(row.genotype_hash) in report.markdown.read_text()


def test_the_table_is_plain_json_with_every_seed(study: Study) -> None:
    table = json.loads(json.dumps(document(tabulate(study.rows())), allow_nan=False))
    assert table["rows"][1]["val_accuracies"] == {"0": 0.9, "1": 0.92, "2": 0.94}
    assert "t-interval" in table["interval"]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_report_holds_all_of_a_study(study: Study) -> None:
    failed = search_row("sdarts_rs", 0, [0.2], status="failed", block=2)
    study.ledger.write(replace(failed, error="Traceback ...\nRuntimeError: <no luck>\n"))
    stop = {"epoch": 1, "reason": "scheduler asha"}
    study.ledger.write(search_row("sdarts_rs", 1, [0.2], status="stopped", block=2, stop=stop))
    study.ledger.write(
        replace(search_row("sdarts_rs", 2, [0.2, 0.3, 0.4], block=2), resumed_elsewhere=True)
    )
    study.test_reads.write_text('{"key": 1}\n{"key": 2}\n')
    report = write_report(study)
    text = report.markdown.read_text()
    for part in (
        "# Study tiny",
        "| " + " | ".join(COLUMNS),
        "RuntimeError: \\<no luck>",
        "scheduler asha at epoch 1",
        "diverged",
        "name: unrolled",
        "2.15.0",
        "nas run tiny.yaml",
        "--name tiny-again",
        "read 2 times",
        "Resumed on another machine type",
        "0.012 M",
        "![",
    ):
        assert part in text, part
    assert "**" not in text  # nothing is bold
    for path in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (study.report / path).stat().st_size > 1000


def test_the_page_needs_no_other_file(study: Study) -> None:
    report = write_report(study)
    page = _Links()
    page.feed(report.html.read_text())
    assert all(source.startswith(("#", "data:")) for source in page.sources)
    # Curves, best of k, Pareto fronts and two genotypes, and the bars of two lines and their pair.
    assert page.tags.count("svg") == 5 + 3
    assert page.tags.count("script") == 1
    assert not {"b", "strong"} & set(page.tags)


def test_the_report_of_a_study_without_rows_says_so(tmp_path: Path) -> None:
    report = write_report(make_study(tmp_path / "studies"))
    assert "No row has ended yet" in report.markdown.read_text()
    assert json.loads(report.table.read_text())["rows"] == []


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ('{"stage": "search", "total": 40}', "of 40"),
        ('{"stage": "retrain", "total": 40}', None),
        ('{"stage": "search", "total": 1}', None),
        ('{"stage": "search", "total": "40"}', None),
        ("torn", None),
        ("[40]", None),
    ],
)
def test_a_study_that_is_not_complete_says_of_how_many(
    study: Study, progress: str, shown: str | None
) -> None:
    rows = list(study.rows())
    count = sum(row.stage == "search" for row in rows)
    study.progress.write_text(progress)
    (facts,) = glance.blocks(study, [row for row in rows if row.stage == "search"], [])
    assert isinstance(facts, Facts)
    assert facts.facts[0].value.endswith(shown or f"of {count}")


def test_writing_a_report_twice_gives_the_same_bytes(study: Study) -> None:
    first = write_report(study).html.read_bytes()
    assert write_report(study).html.read_bytes() == first


def test_bands_are_the_intervals_of_every_epoch_that_all_seeds_reached() -> None:
    means, low, high = plots.mean_and_band([[10, 40], [10, 50], [10, 60, 90]], (0.0, 100.0))
    assert means == pytest.approx([10.0, 50.0])
    # 4.30265 * 0.1 / sqrt(3) = 0.24841; no spread in the first epoch.
    assert low == pytest.approx([10.0, 50 - 24.841], abs=1e-3)
    assert high == pytest.approx([10.0, 50 + 24.841], abs=1e-3)
    assert plots.mean_and_band([[10], [30]], None) == (pytest.approx([20.0]), None, None)


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    blocks = [
        Heading("a<b", 1),
        Paragraph("*x* <script>"),
        Grid(("c|d",), [("1|2",)]),
        Code("```\n</pre>", "s<"),
    ]
    page = to_html(blocks, "t<")
    assert page.count("<script>") == 1  # its own
    assert page.count("</pre>") == 1
    text = to_markdown(blocks, tmp_path)
    assert "\\*x\\* \\<script>" in text
    assert "| c\\|d |" in text
    assert "````\n```" in text


def test_a_picture_is_relative_in_markdown(tmp_path: Path) -> None:
    picture = Picture(tmp_path / "images" / "a.png", "cap")
    assert to_markdown([picture], tmp_path) == "![cap](images/a.png)\n"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often a report was made; pictures, which take long, are left out."""
    made: list[int] = []

    def counting(*_: Any) -> Any:
        made.append(1)
        return [Paragraph(f"page {len(made)}")], "title"

    monkeypatch.setattr(report, "build", counting)
    return made


def test_a_report_that_shows_all_there_is_is_not_made_again(study: Study, drawn: list[int]) -> None:
    first = update_report(study)
    page = first.html.read_bytes()
    again = update_report(study)
    assert len(drawn) == 1
    assert again == first
    assert first.html.read_bytes() == page
    write_report(study)  # whoever asks for it has it made
    assert len(drawn) == 2


@pytest.mark.parametrize(
    "change",
    ["row", "again", "removed", "partial", "settings", "page", "markdown", "table", "torn"],
)
def test_a_report_is_made_again_where_anything_has_changed(
    change: str, study: Study, drawn: list[int]
) -> None:
    written = update_report(study)
    one = sorted((study.path / "ledger").glob("*.json"))[0]
    partial = study.path / "checkpoints" / one.stem / "row.json"
    file = {"page": written.html, "markdown": written.markdown, "table": written.table}
    if change == "row":
        study.ledger.write(search_row("darts", 7, [0.99]))
    elif change == "again":  # the same row, as a trial leaves it that has run again
        os.utime(one, ns=(1, 1))
    elif change == "removed":
        one.unlink()
    elif change == "partial":
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(one.read_bytes())
    elif change == "settings":
        with study.experiment_file.open("a") as settings:
            settings.write("# another day\n")
    elif change == "torn":
        written.table.write_bytes(written.table.read_bytes()[:-9])
    else:
        file[change].unlink()
    update_report(study)
    assert len(drawn) == 2
    assert all(path.is_file() for path in file.values())
    update_report(study)
    assert len(drawn) == 2


def test_a_report_cut_off_while_it_was_written_is_made_again(
    study: Study, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    update_report(study)
    study.ledger.write(search_row("darts", 7, [0.99]))
    with monkeypatch.context() as broken:
        broken.setattr(report, "to_markdown", _no_room)
        with pytest.raises(OSError, match="no room"):
            update_report(study)
    update_report(study)
    assert len(drawn) == 3


def test_a_row_that_comes_while_a_report_is_made_is_in_the_next(
    study: Study, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = study.path / "checkpoints" / ("0" * 16) / "row.json"
    partial.parent.mkdir(parents=True)

    def slow(*_: Any) -> Any:
        partial.write_text("{}")  # counted nowhere, so that the file alone tells
        return [], "title"

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(report, "build", slow)
        write_report(study)
    update_report(study)
    assert len(drawn) == 1


def _no_room(*_: Any) -> str:
    raise OSError("no room")


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_band_ends_where_values_do(bounds: tuple[float, float] | None) -> None:
    series = {"a": [[0.0, 1.0], [0.0, 0.9], [0.6, 1.0]]}
    figure = plots.curve_figure(series, ylabel="share", percent=False, bounds=bounds)
    (band,) = figure.axes[0].collections
    ends = band.get_paths()[0].vertices[:, 1]
    inside = ends.min() >= 0.0 and ends.max() <= 1.0
    assert inside == (bounds is not None)


@pytest.mark.parametrize(("counted", "shown"), [(True, "a  (n = 2)"), (False, "a")])
def test_labels_say_of_how_many_seeds_they_are(counted: bool, shown: str) -> None:
    figure = plots.curve_figure({"a": [[0.5], [0.6]]}, ylabel="accuracy", counted=counted)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [shown]
