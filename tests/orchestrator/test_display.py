"""What is drawn, and where it goes."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import cli, display
from orchestrator.commands_run import show_results
from orchestrator.oracle import Truth
from orchestrator.oracle_report import Line, OracleView
from orchestrator.progress import Estimate, Progress, TrialPlan
from orchestrator.results import Result
from orchestrator.statistics import Summary
from tests.orchestrator.fake_study import YAML, make_study, search_row

PROGRESS = Progress(
    "search",
    total=9,
    done=4,
    running=2,
    failed=1,
    best=0.9512,
    best_label="darts [unrolled]",
    elapsed_s=41.0,
    left_s=52.0,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_progress_line_has_everything() -> None:
    line = display.progress_line(replace(PROGRESS, stopped=3))
    assert line == (
        "search  4/9 done, 2 running, 1 failed, 3 stopped · best val 95.12 % (darts [unrolled])"
        " · 41 s, about 52 s left"
    )


def test_plain_lines_come_when_rows_end_or_time_has_passed() -> None:
    now = [0.0]
    stream = io.StringIO()
    reporter = display.PlainReporter(stream, period_s=10.0, clock=lambda: now[0])
    reporter.update(PROGRESS)
    now[0] = 5.0
    reporter.update(replace(PROGRESS, elapsed_s=46.0))  # nothing ended, 5 s: silence
    assert len(stream.getvalue().splitlines()) == 1
    now[0] = 6.0
    reporter.update(replace(PROGRESS, done=5))
    now[0] = 16.0
    reporter.update(replace(PROGRESS, done=5))  # 10 s later
    assert len(stream.getvalue().splitlines()) == 3


def test_a_closed_reporter_is_silent() -> None:
    stream = io.StringIO()
    reporter = display.PlainReporter(stream)
    reporter.message("one line")
    reporter.close()
    reporter.update(PROGRESS)
    reporter.message("another")
    assert stream.getvalue() == "one line\n"


def test_the_live_display_shows_both_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    reporter = display.reporter(stream)
    assert isinstance(reporter, display.RichReporter)
    reporter.update(PROGRESS)
    reporter.message("kept [line]")
    reporter.update(replace(PROGRESS, stage="retrain", total=3, done=1))
    reporter.close()
    reporter.close()
    reporter.update(PROGRESS)
    text = stream.getvalue()
    for part in ("4/9 done", "1/3 done", "kept [line]", "95.12 %", "darts [unrolled]", "52 s left"):
        assert part in text
    assert "\x1b[32m" in text  # green


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    reporter = display.reporter(stream)
    reporter.update(PROGRESS)
    reporter.close()
    assert "4/9 done" in stream.getvalue()
    assert "\x1b[32m" not in stream.getvalue()


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_anything_but_a_terminal_gets_plain_lines(
    stream: io.StringIO, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", term)
    assert isinstance(display.reporter(stream), display.PlainReporter)


def test_a_table_in_a_pipe_has_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    display.say_table(
        display.table(("name", "n"), [(long, "1"), ("[bold]y", "22")], numeric=("n",))
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["name", "n"], [long, "1"], ["[bold]y", "22"]]
    assert not any(line.endswith(" ") for line in lines)


def test_json_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    display.say_json({"a": "é"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": "é"}
    assert err == ""


def test_a_dry_run_says_trials_resources_time_and_disk() -> None:
    estimate = Estimate(
        trials=[TrialPlan("darts", 0, "abc"), TrialPlan("darts", 1, "abc", cached=True)],
        cpus_per_trial=1,
        gpus_per_trial=0.25,
        cluster_cpus=8,
        cluster_gpus=1,
        concurrent=4,
        seconds_per_epoch={"darts": 2.0},
        total_s=125.0,
        disk_bytes=3_000_000,
        retrain="1 genotype, 5 epochs",
        notes=["a note"],
    )
    text = "\n".join(display.estimate_lines(estimate))
    assert "2 searches, 1 to run, 1 already in the ledger" in text
    assert "1 CPUs and 0.25 GPUs a trial; there are 8 CPUs and 1 GPUs: 4 at a time" in text
    for part in ("2.0 s  darts", "1 genotype, 5 epochs", "2 min 05 s", "3.0 MB", "a note"):
        assert part in text
    assert text.endswith("Nothing was started.")
    assert "engine " not in text


def test_a_dry_run_says_how_steps_are_run_and_why() -> None:
    def lines(**engines: str) -> list[str]:
        estimate = Estimate([], 1, 0, 1, 0, 1, {}, 1.0, 1, engines=engines)
        return [line for line in display.estimate_lines(estimate) if line.startswith("engine")]

    assert lines(darts="eager: because", gdas="eager: because") == ["engine     eager: because"]
    assert lines(darts="graph: so", gdas="eager: it draws") == [
        "engine     graph: so (darts)",
        "engine     eager: it draws (gdas)",
    ]


def test_an_outline_has_a_line_a_value() -> None:
    document = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": "text", "f": None, "g": [{"h": [True]}]}
    assert display.outline(document) == [
        "a:",
        "  b: 1",
        "  c: {}",
        "d: [1, 2]",
        "e: text",
        "f: null",
        "g:",
        "  - {h: [true]}",
    ]


def test_a_finished_stage_has_no_time_left_and_retraining_shows_the_test_split() -> None:
    done = replace(PROGRESS, stage="retrain", metric="test_accuracy", done=9, running=0)
    line = display.progress_line(done)
    assert "best test 95.12 %" in line
    assert line.endswith(" · 41 s")


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("val_accuracy", 0.9512, "best val 95.12 %"),
        ("val_loss", 0.16234, "best val_loss 0.1623"),
        ("oracle/test_accuracy", 0.9437, "best oracle/test 94.37 %"),
        ("oracle/test_regret", 0.401, "best oracle/test_regret 40.10 %"),
        ("hessian_eigenvalue", 12.0, "best hessian_eigenvalue 12"),
    ],
)
def test_only_shares_are_shown_in_percent(metric: str, value: float, shown: str) -> None:
    line = display.progress_line(replace(PROGRESS, metric=metric, best=value))
    assert f"{shown} (" in line


def test_nas_status_shows_a_loss_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = "tune: {metric: val_loss, mode: min}\n"
    made = make_study(tmp_path / "studies", YAML.replace("search:", tune + "search:"))
    curve = [{"epoch": 1, "val_accuracy": 0.9, "val_loss": 0.16234}]
    made.ledger.write(search_row("darts", 0, [0.9], curve=curve))
    with pytest.raises(SystemExit):
        cli.main(["status", made.name, "--root", str(made.root)])
    assert "0.1623 val_loss  darts, seed 0" in capsys.readouterr().out


def test_of_thousands_of_lines_the_best_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    count = 300
    order = [index * 7 % count for index in range(count)]
    found = [
        Result(f"line {n}", "darts", 1, accuracy=Summary(n=1, mean=n / 1000), searched=True)
        for n in order
    ]
    truth = Truth(0.9, 0.01, 3, 10, 0.8, None, None, None)
    lines = [
        Line(f"line {n}", 1, {0: truth}, {}, Summary(n=1, mean=0.9), Summary(n=1, mean=0.01))
        for n in order
    ]
    report = SimpleNamespace(results=found, oracle=OracleView("table", lines=tuple(lines)))
    show_results(report)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "The best 20 of 300; all are in the report." in said
    best = [f"line {n}" for n in range(count - 1, count - 21, -1)]
    assert re.findall(r"line \d+", said) == best + best  # both tables
    report.results, report.oracle = found[:200], OracleView("table", lines=tuple(lines[:200]))
    show_results(report)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "The best" not in said
    planned = [f"line {n}" for n in order[:200]]
    assert re.findall(r"line \d+", said) == planned + planned
