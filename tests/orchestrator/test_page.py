"""The HTML page: valid, self-contained, escaped, quick and small, and alive in a browser."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import html5lib
import pytest

from orchestrator import Study
from orchestrator.document import (
    Card,
    Fact,
    Facts,
    Gallery,
    Grid,
    Heading,
    Notice,
    Paragraph,
    Picture,
    to_html,
    to_markdown,
)
from orchestrator.errors import StudyError
from orchestrator.page import bars, inline_svg, sections
from orchestrator.report import write_report
from tests import browser
from tests.orchestrator.fake_study import YAML, fill, make_study, retrain_row, search_row

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    fill(made)
    return made


def parsed(text: str) -> Any:
    """Return the tree of a page that has no error of syntax."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def page_of(study: Study) -> str:
    return write_report(study).html.read_text(encoding="utf-8")


def alone(root: Path, *rows: Any, text: str = YAML) -> Study:
    """Return a study with these rows alone."""
    made = make_study(root / "studies", text)
    for row in rows:
        made.ledger.write(row)
    return made


def test_a_page_is_valid_and_names_each_thing_once(study: Study) -> None:
    tree = parsed(page_of(study))
    names = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(names) == len(set(names))
    links = {a.get("href", "") for a in tree.iter("a")}
    assert links <= {f"#{name}" for name in names}
    assert "#best-genotypes" in links


def test_a_page_asks_for_nothing(study: Study) -> None:
    text = page_of(study)
    tree = parsed(text)
    places = [v for e in tree.iter() for k, v in e.items() if k in ("src", "href", "data")]
    assert all(place.startswith(("#", "data:")) for place in places)
    style = "".join(element.text or "" for element in tree.iter("style"))
    assert "@import" not in style
    assert "url(" not in style.replace("url(#", "")
    assert "fetch(" not in text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [search_row("a", 0, [0.5])],
        [search_row("a", 0, [0.5]), search_row("b", 0, [0.5], block=1)],
        [search_row("a", 0, [], status="failed", error="Traceback\nKeyError: 1", genotype=None)],
        [search_row("a", 0, [0.1], status="diverged"), search_row("a", 1, [0.2], status="stopped")],
        [retrain_row("none", 0, 0.9)],
        [search_row("a", seed, [0.5, 0.5]) for seed in range(4)],
    ],
    ids=["empty", "one", "two-equal", "failed", "unfinished", "retrained", "constant"],
)
def test_a_page_of_little_is_valid(rows: list[Any], tmp_path: Path) -> None:
    study = alone(tmp_path, *rows)
    text = page_of(study)
    tree = parsed(text)
    assert len(list(tree.iter("h1"))) == 1
    for row in rows:
        assert row.status == "finished" or "Rows that did not finish" in text


def test_what_users_write_is_text(tmp_path: Path) -> None:
    text = YAML + f"question: {json.dumps(EVIL)}\n"
    hostile = search_row(f"a {EVIL}", 0, [0.5, 0.6])
    failed = search_row(f"b {EVIL}", 0, [0.2], status="failed", block=1, error=f"x\nError: {EVIL}")
    named = replace(hostile, environment={"git": EVIL, "versions": {EVIL: EVIL}})
    stopped = search_row("c", 0, [0.2], status="stopped", stop={"epoch": 1, "reason": EVIL})
    other = search_row(f"d {EVIL}", 0, [0.3], block=3)
    study = alone(tmp_path, named, failed, stopped, other, text=text)
    page = page_of(study)
    tree = parsed(page)
    assert len(list(tree.iter("script"))) == 1
    assert not list(tree.iter("img"))
    assert not [e for e in tree.iter() for name in e if str(name).startswith("on")]
    assert "alert(1)" in "".join(tree.itertext())


def test_the_question_and_the_settings_that_differ_are_shown(tmp_path: Path) -> None:
    text = YAML + "question: Does a larger learning rate help?\n"
    rows = [
        search_row(
            f"darts lr={rate}", 0, [0.5], settings={"search": {"weight_lr": rate, "epochs": 3}},
            config_id=f"{place:010x}", key=f"{place:016x}", block=place,
        )
        for place, rate in enumerate((0.1, 0.2))
    ]  # fmt: skip
    study = alone(tmp_path, *rows, text=text)
    markdown = write_report(study).markdown.read_text(encoding="utf-8")
    assert "\nDoes a larger learning rate help?\n" in markdown
    assert "| configuration | search.weight_lr |" in markdown
    assert "| darts lr=0.2 | 0.2 |" in markdown


def test_genotypes_say_how_often_and_where_they_were_found(study: Study) -> None:
    markdown = write_report(study).markdown.read_text(encoding="utf-8")
    assert "Found by 3 of 5 finished searches." in markdown
    assert "Found by: darts seed 0, darts seed 1, darts seed 2." in markdown
    assert "Test accuracy: 97.10 %, mean of 1 retraining." in markdown


def test_hours_count_what_did_not_finish(tmp_path: Path) -> None:
    def row(seed: int, hours: float, **changes: Any) -> Any:
        cost = {"time_s": 3600 * hours, "gpu_hours": hours, "cpu_hours": 8 * hours}
        return search_row("a", seed, [0.5], cost=cost, **changes)

    retrained = retrain_row("nor_conv_3x3", 0, 0.9, cost={"time_s": 7200.0, "gpu_hours": 2.0})
    study = alone(tmp_path, row(0, 3.0), row(1, 1.0, status="failed"), retrained)
    markdown = write_report(study).markdown.read_text(encoding="utf-8")
    assert "| a | 3 h 00 min | 1 h 00 min | 2 h 00 min | 6 h 00 min | 90.00 [–] |" in markdown
    assert "16.7 % of all" in markdown  # 1 of 6 hours
    assert "- GPU time: 6 h 00 min (17 % not finished)" in markdown


def test_collapsed_searches_are_listed(tmp_path: Path) -> None:
    curve = [
        {"epoch": n, "val_accuracy": 0.9, "collapsed": int(n > 1), "skip_share": n / 4}
        for n in (1, 2, 3)
    ]
    rows = [search_row("a", 0, [], curve=curve), search_row("a", 1, [0.5])]
    markdown = write_report(alone(tmp_path, *rows)).markdown.read_text(encoding="utf-8")
    _, _, listed = markdown.partition("## Collapsed searches")
    assert re.search(r"\| a \| 0 \| [0-9a-f]{12} \| 75 \| 90.00 \| 2 \|", listed)
    assert "| a | 1 |" not in listed.partition("## Settings")[0]


def test_intervals_are_drawn_on_one_scale() -> None:
    grid = Grid(
        ("a", "b"), [("x", "1"), ("y", "3"), ("z", "–")], ("b",), [(1, 0, 2), (3, None, None), None]
    )
    first, second, none = (str(each) for each in bars(grid))
    # From 0 to 3 over 118 of 130 units: 1 is at 6 + 118 / 3 = 45.3, 3 at the end.
    assert 'cx="45.3"' in first
    assert 'd="M6.0 9.0H84.7"' in first
    assert 'cx="124.0"' in second
    assert "interval" not in second
    assert none == ""


def test_drawings_do_not_share_names_and_keep_no_fixed_ink() -> None:
    svg = '<?xml?><!DOCTYPE x><svg width="10pt" height="5pt" viewBox="0 0 10 5"><!-- <b> -->'
    svg += (
        '<g id="a"><path d="M 1.23456 2.5" style="stroke: #000000; clip-path: url(#a)"/></g></svg>'
    )
    text = inline_svg(svg, "b.c")
    assert text.startswith('<svg style="max-width:10pt" viewBox')
    assert 'id="b-c-a"' in text
    assert "url(#b-c-a)" in text
    assert "currentColor" in text
    assert 'd="M 1.2 2.5"' in text
    assert "<b>" not in text


def test_headings_of_one_name_have_anchors_of_their_own() -> None:
    found = sections([Heading("T", 1), Notice("n"), Heading("A b"), Heading("A  b"), Heading("–")])
    assert [(each.title, each.name) for each in found[1:]] == [
        ("A b", "a-b"), ("A  b", "a-b-"), ("–", "section"),
    ]  # fmt: skip
    assert found[0].blocks == [Notice("n")]


def test_every_kind_of_block_is_shown(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    picture = Picture(tmp_path / "a.png", "cap<")
    blocks = [
        Heading("T<", 1),
        Facts([Fact("n", "3", "m<")]),
        Gallery([Card(picture, ["f<"], "s", ["i<"])]),
    ]
    text = to_html(blocks, "t<")
    words = "".join(parsed(text).find("body").itertext())
    for word in ("T<", "3", "m<", "cap<", "f<", "i<"):
        assert word in words


def test_commands_within_a_text_are_set_apart_and_nothing_else_is(tmp_path: Path) -> None:
    texts = ["`nas <b>` says *so*", "a ` alone", "``", EVIL + "`x`"]
    blocks = [Heading("T", 1), *(Paragraph(text) for text in texts), Notice("`y`")]
    body = parsed(to_html(blocks, "t")).find("body")
    assert [element.text for element in body.iter("code")] == ["nas <b>", "x", "y"]
    assert [["".join(p.itertext()) for p in body.iter("p")][place] for place in (0, 1, 3)] == [
        "nas <b> says *so*", "a ` alone", EVIL + "x",
    ]  # fmt: skip
    written = to_markdown(blocks, tmp_path)
    assert "`nas <b>` says \\*so\\*" in written
    assert "a \\` alone" in written


def test_what_varies_and_what_can_be_told_apart_have_sections(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    for place, rate in enumerate((0.1, 0.2, 0.3, 0.4)):
        for seed in range(3):
            row = search_row(
                f"darts lr={rate}", seed, [0.5 + rate + 0.001 * seed], config_id=f"{place:010x}",
                key=f"{10 * place + seed:016x}", block=place,
                settings={"search": {"weight_lr": rate}}, params={"search.weight_lr": rate},
            )  # fmt: skip
            study.ledger.write(row)
    report = write_report(study)
    markdown = report.markdown.read_text(encoding="utf-8")
    parsed(report.html.read_text(encoding="utf-8"))
    told = markdown.partition("## What can be told apart")[2].partition("\n## ")[0]
    assert told.count("| darts lr=") >= 6  # every two of four
    assert "+10.00 [" in told or "-10.00 [" in told or "−10.00 [" in told
    sensitivity = markdown.partition("## Sensitivity")[2].partition("\n## ")[0]
    assert "sensitivity-responses.png" in sensitivity
    assert "1 of 4 configurations are within one standard error of the best" in sensitivity
    assert "weight_lr=0.4" in sensitivity


def test_a_sweep_that_was_mostly_stopped_has_a_page(tmp_path: Path) -> None:
    rows = [
        search_row(
            f"darts {place}", 0, [0.5], key=f"{place:016x}", config_id=f"{place:010x}",
            status="finished" if place < 3 else "stopped",
        )
        for place in range(20)
    ]  # fmt: skip
    assert "told apart" not in page_of(alone(tmp_path, *rows))


@pytest.mark.parametrize("error", [StudyError, ValueError, ZeroDivisionError])
def test_a_section_that_fails_leaves_the_others(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some_numbers(study: Any, rows: Any, folder: Any) -> list[Any]:
        raise error("not with these rows")

    monkeypatch.setattr("orchestrator.report.SECTIONS", (some_numbers,))
    markdown = write_report(alone(tmp_path, search_row("darts", 0, [0.5]))).markdown.read_text()
    assert "The section on some numbers is left out: not with these rows" in markdown
    assert "## Settings" in markdown


def test_a_page_of_500_trials_is_small_and_soon_made(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    for number in range(500):
        rate = 0.001 * (1 + number // 4)
        settings = {"search": {"weight_lr": rate}}
        status = "finished" if number % 4 < 2 else "stopped"
        values = [0.5 + 0.0001 * ((number * 7 + epoch) % 997) for epoch in range(27)]
        row = search_row(
            f"darts weight_lr={rate:.3f}", number % 4, values, status=status, settings=settings,
            key=f"{number:016x}", config_id=f"{number // 4:010x}", block=number // 4,
        )  # fmt: skip
        study.ledger.write(row, durable=False)
    write_report(study)  # imports and fonts are paid for once
    begun = time.process_time()
    report = write_report(study)
    assert time.process_time() - begun < 10
    assert report.html.stat().st_size < 3_000_000


def test_a_page_lives_in_a_browser(study: Study, tmp_path: Path) -> None:
    report = write_report(study)
    with browser.page() as page:
        page.size(1200, 900)
        page.open(report.html.as_uri())
        assert page.requests == [report.html.as_uri()]
        # A click on a head sorts by it, the best mean first after two.
        head = "document.querySelectorAll('#results th')[2]"
        first = "document.querySelector('#results tbody td').textContent"
        page.run(f"{head}.querySelector('button').click()")
        assert page.run(first) == "darts"
        assert page.run(f"{head}.getAttribute('aria-sort')") == "ascending"
        page.run(f"{head}.querySelector('button').click()")
        assert page.run(first) == "darts alpha_gradient=unrolled"
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.run(background)
        page.colours("dark")
        assert page.run(background) != light
        page.colours("dark", "print")
        assert page.run(background) == "rgb(255, 255, 255)"
        assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        page.colours("light")
        page.size(400, 800)
        assert page.run("document.documentElement.scrollWidth") <= 400
        assert page.requests == [report.html.as_uri()]
        assert page.errors == []
