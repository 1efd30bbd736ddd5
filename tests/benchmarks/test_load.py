"""What `nas bench load` and `nas bench faults` say of what they saw, without running a study."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from benchmarks import load, snapshots
from benchmarks.faults import campaign
from benchmarks.faults.campaign import Round
from benchmarks.load import Follower, Sample
from benchmarks.snapshots import Snapshot
from orchestrator.cli import app
from orchestrator.config import load_experiment
from orchestrator.outbox import Offset, Outbox, study_record, write_offset
from spaces.core.errors import NasError


def samples(cpu_s: Sequence[float]) -> list[Sample]:
    """A sweep that ends 10 trials a second; `cpu_s` is what each of them costs the driver."""
    found, spent = [], 1.0
    for second in range(len(cpu_s) // 10 + 1):
        ended = 10 * second
        spent = 1.0 + sum(cpu_s[:ended])
        found.append(Sample(100.0 + second, ended, spent, 10**8 + 1000 * ended, 5, 50 * second))
    return found


def test_a_trial_s_cost_is_that_between_the_first_and_the_last_end() -> None:
    after = [Sample(400.0, 200, 90.0, 2 * 10**8, 5, 0), Sample(401.0, 200, 91.0, 10**8, 5, 0)]
    found = load._driver([*samples([0.02] * 200), *after])
    assert found["wall_per_trial_s"] == pytest.approx(0.1)
    assert found["driver_cpu_per_trial_s"] == pytest.approx(0.02)
    assert found["driver_cpu_by_part_s"] == pytest.approx([0.02] * 5)
    assert found["driver_bytes_per_trial"] == pytest.approx(1000)
    assert found["driver_peak_bytes"] == 2 * 10**8


def test_a_cost_that_grows_is_seen_by_parts() -> None:
    parts = load._driver(samples([0.01] * 110 + [0.05] * 100))["driver_cpu_by_part_s"]
    assert parts[0] == pytest.approx(0.01)
    assert parts[-1] == pytest.approx(0.05)


def study_of(root: Path, rows: int) -> Path:
    """A folder with rows in its ledger and events of which half are in the store."""
    study = root / "bench"
    (study / "ledger").mkdir(parents=True)
    for number in range(rows):
        (study / "ledger" / f"{number:016x}.json").write_text("{}")
    outbox = study / "outbox" / "events.jsonl"
    with Outbox(outbox) as made:
        for _ in range(rows):
            made.append(study_record(1.0))
    half = outbox.stat().st_size // 2
    write_offset(outbox, Offset(uri="a", parent="p", position=half, writer="w"))
    return study


def test_a_study_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, 20)
    (study / "ledger" / ".tmp-row").touch()  # one that is being written
    sends = [psutil.Process()]
    monkeypatch.setattr(load, "drains", lambda of: sends if of == study else [])
    with Follower(os.getpid(), study) as follower:
        time.sleep(1.5)
    seen = follower.samples[-1]
    assert seen.ended == 20
    assert seen.sent == (study / "outbox" / "events.jsonl").stat().st_size // 2
    assert seen.driver_bytes > 10**6
    assert seen.drain_bytes > 10**6


def test_rows_in_the_store_are_counted_beside_the_sweep_and_after_it(tmp_path: Path) -> None:
    study = study_of(tmp_path, 20)
    whole = (study / "outbox" / "events.jsonl").stat().st_size
    # A row a second comes in from second 2 on, in twos; the sweep is over after eight.
    shares = [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10]
    seen = [
        Sample(100.0 + second, min(20, 2 * second + 4), 1.0, 1, 7, whole * share // 20)
        for second, share in enumerate(shares)
    ]
    found = load._tracking(seen, study, 119.0)
    assert found["sent_beside"] == pytest.approx(0.5)
    assert found["sent_per_s_beside"] == pytest.approx(4 / 5, rel=0.05)  # of seconds 2 to 7
    assert found["sent_per_s"] == pytest.approx(18 / 17, rel=0.01)  # after the first two
    assert found["drain_peak_bytes"] == 7
    nothing = load._tracking([Sample(100.0, 20, 1.0, 1, 7, 0)], study, 110.0)
    assert nothing["sent_per_s_beside"] is None
    assert nothing["sent_beside"] == 0
    assert nothing["sent_per_s"] == pytest.approx(2)  # all twenty after its end


def test_snapshots_are_told_with_the_longest_and_the_last(tmp_path: Path) -> None:
    file = tmp_path / "snapshots.jsonl"
    assert load._snapshots(snapshots.read(file)) == {}
    made = [Snapshot(0.1, 100, 5), Snapshot(0.5, 900, 9), Snapshot(0.2, 800, 10)]
    file.write_text("".join(json.dumps(asdict(each)) + "\n" for each in made))
    found = load._snapshots(snapshots.read(file))
    assert found["snapshots"] == 3
    assert (found["snapshot_most_s"], found["snapshot_last_s"]) == (0.5, 0.2)
    assert found["snapshots_s"] == pytest.approx(0.8)
    assert found["state_file_bytes"] == 900


def test_a_sweep_that_fails_is_said_without_a_traceback(tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"
    table.write_text("no table")
    with pytest.raises(NasError, match="nas simulate of the sweep failed with exit code 2"):
        CliRunner().invoke(
            app, ["bench", "load", "--trials", "10", "--table", str(table)], catch_exceptions=False
        )


@pytest.mark.parametrize("simulated", [False, True])
def test_what_is_run_is_a_valid_study_and_its_row_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: bool
) -> None:
    ran = []

    def run(words: Sequence[str], root: Path, study: Path) -> list[Sample]:
        experiment = load_experiment(Path(words[1]))
        ran.append((words[0], experiment.tune.num_samples, experiment.name))
        study_of(root, 200).rename(root / "made")
        (root / "made").rename(study)
        return samples([0.02] * 200)

    monkeypatch.setattr(load, "_run", run)
    table = tmp_path / "table.parquet"
    table.write_text("")
    more = ["--table", str(table)] if simulated else []
    result = CliRunner().invoke(app, ["bench", "load", "--trials", "200", *more, "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert ran == [("simulate" if simulated else "run", 200, "bench")]
    assert row["trials"] == 200
    assert row["driver_cpu_by_part_s"] == pytest.approx([0.02] * 5)
    shown = CliRunner().invoke(app, ["bench", "load", "--trials", "200", *more]).stdout
    assert "20 ms of CPU a trial; by fifths of the sweep 20, 20, 20, 20, 20 ms" in shown


def test_what_cannot_be_run_is_refused() -> None:
    for options in (["--trials", "5"], ["--trials", "x"], ["--table", "no such"]):
        result = CliRunner().invoke(app, ["bench", "load", *options])
        assert result.exit_code != 0
        assert options[0] in str(result.exception)


class Field:
    """A campaign whose rounds are given."""

    kinds = ("driver", "node")
    server = type("Server", (), {"database": "sqlite"})()

    def __init__(self, seed: int, **_: Any) -> None:
        self.seed = seed

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, number: int) -> Round:
        lost = ["a has no seed 1"] if number == 1 else []
        return Round(
            seed=self.seed, round=number, faults=["driver"], said=["killed the driver"],
            resumes=1, codes=[-9, 0], recovery_s=[4.0], wall_s=20.0, lost=lost,
        )  # fmt: skip


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "Campaign", Field)


def test_a_campaign_that_lost_something_says_what_and_fails(field: None) -> None:
    good = CliRunner().invoke(app, ["bench", "faults", "--rounds", "1"])
    assert good.exit_code == 0
    assert "all there  killed the driver; going on after 4.0 s" in good.stdout
    assert "left out here: worker, partition" in good.stdout
    bad = CliRunner().invoke(app, ["bench", "faults", "--rounds", "2"])
    assert bad.exit_code == 1
    assert "1 FINDINGS" in bad.stdout
    assert "a has no seed 1" in bad.stdout
    found = CliRunner().invoke(app, ["bench", "faults", "--rounds", "2", "--seed", "4", "--json"])
    assert found.exit_code == 1
    (row,) = json.loads(found.stdout)
    assert (row["rounds"], row["lost"], row["doubled"], row["wrong"]) == (2, 1, 0, 0)
    assert row["seed"] == 4


def test_a_record_of_another_campaign_is_refused(field: None, tmp_path: Path) -> None:
    record = tmp_path / "rounds.jsonl"
    options = ["bench", "faults", "--rounds", "1", "--record", str(record)]
    assert CliRunner().invoke(app, [*options, "--seed", "1"]).exit_code == 0
    assert "seed 1" in str(CliRunner().invoke(app, [*options, "--seed", "2"]).exception)
    record.write_text("nothing\n")
    assert "no record" in str(CliRunner().invoke(app, options).exception)
    assert "--kinds" in str(
        CliRunner().invoke(app, ["bench", "faults", "--rounds", "1", "--kinds", "x"]).exception
    )
