"""Two studies compared: paired by seed, never across what was trained and what was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import html5lib
import pytest

from orchestrator import Study, cli
from orchestrator.comparison_report import compare, write_comparison
from orchestrator.errors import StudyError
from tests.orchestrator.fake_study import YAML, fill, make_study, search_row


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    first = make_study(tmp_path / "studies")
    fill(first)
    longer = YAML.replace("name: tiny", "name: longer").replace("epochs: 3", "epochs: 5")
    second = make_study(tmp_path / "studies", longer)
    for seed, value in enumerate((0.93, 0.951, 0.969)):
        second.ledger.write(search_row("darts", seed, [0.5, 0.7, value]))
    second.ledger.write(search_row("ms_darts", 0, [0.5]))
    return [first, second]


def test_differences_are_paired_by_seed() -> None:
    first = {"a": {0: 0.5, 1: 0.6, 2: 0.7, 9: 0.1}, "b": {0: 0.5}, "c": {0: 0.1, 1: 0.2, 2: 0.4}}
    second = {"a": {0: 0.51, 1: 0.62, 2: 0.73}, "b": {0: 0.9}, "c": {0: 0.2, 1: 0.1, 2: 0.4}}
    a, b, c = compare(first, second)
    assert a.paired == (0, 1, 2)
    assert a.difference.mean == pytest.approx(0.02)
    # s = 0.01, n = 3: 4.3027 * 0.01 / sqrt(3) = 0.0248, so zero is in it.
    assert a.difference.low == pytest.approx(0.02 - 0.02484, abs=1e-4)
    assert a.verdict == "cannot be told apart"
    assert b.verdict == "fewer than 3 shared seeds say nothing"
    assert c.verdict == "cannot be told apart"
    (clear,) = compare({"a": {0: 0.5, 1: 0.5, 2: 0.5}}, {"a": {0: 0.6, 1: 0.61, 2: 0.6}})
    assert clear.verdict == "the second is higher"
    (other,) = compare({"a": {0: 0.6, 1: 0.61, 2: 0.6}}, {"a": {0: 0.5, 1: 0.5, 2: 0.5}})
    assert other.verdict == "the first is higher"
    (alone,) = compare({"a": {0: 0.5}}, {})
    assert alone.cells()[4] == "only one study has it"


def test_the_comparison_is_written(studies: list[Study]) -> None:
    written = write_comparison(studies)
    text = written.markdown.read_text(encoding="utf-8")
    for part in (
        "# Studies tiny and longer",
        # Differences 0.03, 0.031 and 0.029: s = 0.001, half width 0.00248.
        "| 3.00 [2.75, 3.25] | 3 | the second is higher |",
        "| search.epochs | 3 | 5 |",
        "| ms_darts | – | 50.00 [–] (n = 1) | – | 0 | only one study has it |",
        "both found 1",
    ):
        assert part in text, part
    page = written.html.read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(page)
    table = json.loads((written.html.parent / "table.json").read_text())
    assert table["search"][0]["verdict"] == "the second is higher"
    assert written.html.parent == studies[0].report / "with-longer"


def test_two_studies_without_rows_can_be_compared(tmp_path: Path) -> None:
    one = make_study(tmp_path / "studies")
    other = make_study(tmp_path / "studies", YAML.replace("name: tiny", "name: other"))
    assert (
        "None: the two experiments say the same."
        in write_comparison([one, other]).markdown.read_text()
    )


def test_what_cannot_be_compared_is_refused(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudyError, match="two studies are compared, got tiny twice"):
        write_comparison([studies[0], studies[0]])
    monkeypatch.setattr(Study, "simulated", property(lambda self: self.name == "longer"))
    with pytest.raises(StudyError, match="longer is simulated and the other study is not"):
        write_comparison(studies)


def test_the_command_compares_and_says_so(
    studies: list[Study], capsys: pytest.CaptureFixture[str]
) -> None:
    def report(*words: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", *words, "--root", str(studies[0].root)])
        return int(ended.value.code or 0), capsys.readouterr()

    code, printed = report("tiny", "longer")
    assert code == 0
    assert "the second is higher" in printed.out
    assert "with-longer/report.html" in printed.out
    code, printed = report("tiny", "longer", "--json")
    assert json.loads(printed.out)["search"][0]["label"] == "darts"
    code, printed = report("tiny", "--html")
    assert printed.out.strip().endswith("tiny/report/report.html")
    code, printed = report("tiny", "longer", "tiny")
    assert code == 2
    assert "two to compare, got 3" in printed.err
    code, printed = report("tiny", "longer", "--serve")
    assert code == 2
    assert "--serve shows one study" in printed.err
