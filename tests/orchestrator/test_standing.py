"""`nas status` of a long sweep: costs with the wasted ones apart, speed, failures by cause."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.ledger import Row, write_row
from orchestrator.standing import lines, standing
from orchestrator.study import Study
from tests.orchestrator.fake_driver import make_row, make_study

NOW = 1_800_000_000.0


def row(seed: int, status: str = "finished", *, ended: float = NOW, **changes: object) -> Row:
    cost = {"time_s": 1800.0, "cpu_hours": 2.0, "gpu_hours": 0.5}
    made = make_row(seed, status=status, cost=cost, started=ended - 1800.0, ended=ended)
    return replace(made, **changes)


def test_costs_are_sums_and_the_wasted_ones_are_apart() -> None:
    rows = [row(0), row(1, "stopped"), row(2, "failed"), row(3, "oom"), row(4, "diverged")]
    found = standing(rows, [replace(row(5), cost={"time_s": 3600.0})], NOW)
    assert (found.useful.rows, found.useful.trial_hours, found.useful.gpu_hours) == (2, 1.0, 1.0)
    assert (found.wasted.rows, found.wasted.cpu_hours) == (3, 6.0)
    assert (found.begun.rows, found.begun.trial_hours) == (1, 1.0)


def test_speed_is_of_the_last_hour_or_of_what_has_been() -> None:
    old = [row(seed, ended=NOW - 7200.0) for seed in range(5)]
    found = standing([*old, row(5), row(6, ended=NOW - 3000.0)], [], NOW)
    assert (found.recent_rows, found.rows_per_hour) == (2, 2.0)
    young = standing([row(0), row(1)], [], NOW)
    assert young.rows_per_hour == pytest.approx(4.0)  # two in the half hour since it began
    assert standing(old, [], NOW).rows_per_hour is None
    assert standing([], [], NOW).rows_per_hour is None


def test_failures_of_one_cause_are_one_line_with_an_example() -> None:
    errors = [
        "Traceback\n  File x\nRuntimeError: size 3 of /a/b/c.py at 0x7f11 is wrong",
        "Traceback\n  File y\nRuntimeError: size 45 of /d/e.py at 0x7aaa is wrong\n\n",
        "Traceback\nValueError: other",
    ]
    rows = [row(seed, "failed", error=error) for seed, error in enumerate(errors)]
    rows += [row(7, "diverged"), row(8, "failed", error=None), row(9)]
    first, *rest = standing(rows, [], NOW).failures
    assert (first.rows, first.said) == (2, "RuntimeError: size 3 of /a/b/c.py at 0x7f11 is wrong")
    assert first.cause == "RuntimeError: size * of * at * is wrong"
    assert first.key == rows[0].key
    assert {failure.said for failure in rest} == {
        "ValueError: other",
        "the loss became infinite or NaN",
        "no error was recorded",
    }


def test_many_causes_and_long_errors_are_cut() -> None:
    words = ["alpha", "beta", "gamma", "delta", "eps", "zeta", "eta", "theta", "iota", "kappa"]
    rows = [row(i, "failed", error=f"{word} {'x' * 500}") for i, word in enumerate(words)]
    shown = lines(standing(rows, [], NOW))
    assert len([head for head in shown if not head.strip() or head == "failures"]) == 9
    assert "and 2 other causes" in list(shown.values())
    assert max(map(len, shown.values())) < 300


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    made.ledger.write(row(0))
    made.ledger.write(row(1, "failed", error="Traceback\nValueError: bad"))
    part = replace(row(2), status="running", ended=None)
    write_row(made.checkpoints / part.key / "row.json", part)
    return made


def nas(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code
    return capsys.readouterr().out


def test_status_shows_it_and_has_it_as_json(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    out = nas(capsys, "status", str(study.path))
    assert "cost         0.5 trial hours, 2 CPU hours, 0.5 GPU hours in 1 rows" in out
    assert "wasted       0.5 trial hours" in out
    assert "1 failed: ValueError: bad (darts, seed 1, ledger/" in out
    state = json.loads(nas(capsys, "status", str(study.path), "--json"))
    assert state["standing"]["wasted"]["gpu_hours"] == 0.5
    assert state["standing"]["failures"][0]["rows"] == 1


def test_a_study_is_watched_until_its_driver_leaves(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = (
        "import sys, time; from orchestrator.study import Study\n"
        "with Study.open(sys.argv[1]).hold():\n    print('held', flush=True); time.sleep(1.5)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(study.path)], stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        out = nas(capsys, "status", str(study.path), "--watch", "--every", "0.5")
    states = [line for line in out.splitlines() if line.startswith("study ")]
    assert len(states) > 1
    assert "(running)" in states[0]
    assert "(incomplete)" in states[-1]
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "--watch"])
    assert ended.value.code == 2
