"""What `nas bench sweep` and `nas bench scaling` say, and that it is true."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import scaling, sweep, worker_costs
from benchmarks.processes import CpuWatch
from benchmarks.step import Size
from orchestrator.cli import app
from orchestrator.config import load_experiment
from orchestrator.ledger import Row
from orchestrator.study_trial import StudySearch
from orchestrator.sweep import fits

CPU = torch.device("cpu")
TINY = Size(channels=4, cells=1, batch=4, image=8)


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Leave nothing that later tests make out of what is collected."""
    yield
    gc.unfreeze()


def row(key: str, started: float, epochs: list[tuple[float, float]], ended: float) -> Row:
    """Return a row whose epochs ended at such times and took so long."""
    curve = [{"ended": end, "epoch_time_s": took} for end, took in epochs]
    return Row(
        key=key, stage="search", status="finished", config_id=key, seed=0, method="darts",
        space="toy", dataset="digits", curve=curve, started=started, ended=ended,
    )  # fmt: skip


def test_the_times_of_rows_tell_where_a_trial_s_overhead_is() -> None:
    rows = [
        # The first trials of two workers: set-up 5 and 4 s; each then records for 0.5 s.
        row("a", 10.0, [(16.0, 1.0), (17.25, 1.0)], 17.5),
        row("b", 10.0, [(15.0, 1.0), (16.25, 1.0)], 16.5),
        # They follow the trials that ended at 16.5 and 17.5, after 0.25 s each; set-up 0.5 s.
        row("c", 16.75, [(18.25, 1.0), (19.5, 1.0)], 19.75),
        row("d", 17.75, [(19.25, 1.0), (20.5, 1.0)], 20.75),
    ]
    assert sweep._timeline(rows, at_once=2) == {
        "setup_s": 0.5,
        "first_setup_s": 5.0,
        "recording_s": 0.5,
        "hand_over_s": 0.25,
    }


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads Linux's /proc")
def test_cpu_seconds_are_those_of_a_process_and_its_children() -> None:
    # A process of its own: this one may have children of other tests.
    child = "import time\nwhile time.process_time() < 0.8: pass\nprint(1)\ntime.sleep(60)"
    root = (
        "import subprocess, sys, time\n"
        "print(time.process_time(), flush=True)\nsys.stdin.readline()\n"
        "mine = time.process_time()\n"
        f"child = subprocess.Popen([sys.executable, '-uc', {child!r}], stdout=subprocess.PIPE)\n"
        "while time.process_time() < mine + 0.6: pass\n"
        "child.stdout.readline()\n"
        "time.sleep(0.6)\n"  # longer than from one look to the next: all has been seen by then
        "print(time.process_time() - mine, flush=True)\n"
        "sys.stdin.readline()\nchild.kill()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with CpuWatch(process.pid) as watch:
            time.sleep(0.7)
            start = time.time()
            process.stdin.write("go\n")
            process.stdin.flush()
            mine = float(process.stdout.readline())
            end = time.time()
            time.sleep(0.7)
        process.communicate("end\n")
    spent = watch.between(start, end)
    assert 0.7 <= spent["ray"] < 1.2
    assert spent["driver"] == pytest.approx(mine, abs=0.15)
    assert (spent["workers"], spent["mlflow"], watch.workers()) == (0, 0, 0)


@pytest.mark.parametrize(("at_once", "cpus"), [(1, 1.0), (2, 1.0), (4, 0.5), (8, 0.25)])
def test_so_many_trials_fit_at_once(
    at_once: int, cpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    file = tmp_path / "bench.yaml"
    file.write_text(sweep.experiment_text(trials=3, epochs=1, at_once=at_once))
    per_trial = load_experiment(file).tune.per_trial
    assert per_trial.cpus == cpus
    assert fits({"CPU": 2.0}, per_trial.cpus, per_trial.gpus) >= at_once


def run_here(file: Path, root: Path) -> tuple[float, float, CpuWatch]:
    """Run an experiment's trials one after the other in this process, as a worker does."""
    start = time.time()
    worker: StudySearch | None = None
    for config in worker_costs._configs(file, root):
        if worker is None:
            worker = StudySearch(config)
        else:
            worker.reset(config)
        while not worker.train()["done"]:
            pass
    return start, time.time(), CpuWatch(os.getpid())


def test_a_sweep_s_row_holds_times_and_bytes_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_run", run_here)
    monkeypatch.setattr(sweep, "_OF_WORKERS", 2)
    words = ["bench", "sweep", "--trials", "2", "--epochs", "1", "--concurrent", "1", "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    (told,) = json.loads(found.stdout)
    assert told["case"] == "sweep trials=2 epochs=1 at_once=1"
    searching = told["search_s"] * told["trials"]
    wall = 3600 * told["trials"] / told["trials_per_hour"]
    assert told["overhead_per_trial_s"] == pytest.approx((wall - searching) / told["trials"])
    # Nobody watched the processes here; what a worker does is measured all the same.
    assert (told["overhead_cpu_s"], told["driver_cpu_s"], told["workers"]) == (None, None, None)
    assert 0 < told["setup_cpu_s"] < told["import_cpu_s"]
    assert told["recording_cpu_s"] > 0
    assert 500 < told["result_bytes"] < 5_000
    assert 1_000 < told["row_bytes"] < 10_000
    assert told["state_bytes"] > 10_000
    lines = dict(_lines(told))
    assert "to the next trial" in lines[""]
    assert lines["a trial"].startswith("result ")


def _lines(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from orchestrator.commands_bench import _lines as lines

    return lines(told)


def test_a_reused_worker_frees_the_trial_before_and_looks_at_the_rest_once(
    tmp_path: Path,
) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(sweep.experiment_text(trials=3, epochs=1, at_once=1))
    first, second, third = worker_costs._configs(file, tmp_path)
    worker = StudySearch(first)
    for config in (second, third):
        trial = worker.trials[0]
        trial.itself = trial  # type: ignore[attr-defined]
        gone = weakref.ref(trial)
        del trial
        worker.reset(config)
        assert gone() is None
    # What a collection still looks at is little beside what it left.
    assert len(gc.get_objects()) < gc.get_freeze_count() / 10
    worker.cleanup()


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
@pytest.mark.parametrize("over", scaling.OVER)
def test_the_places_of_a_curve_grow_and_meet_the_space(space: str, over: str) -> None:
    base = Size(channels=8, cells=4, batch=8, image=16)
    places = scaling.points(over, space, base)
    values = [place.value for place in places]
    assert values == sorted(set(values))
    assert len(values) > 2
    whole = base.space(space)
    for name, edges in whole.edges.items():
        described = places[-1].space
        last = next(iter(described.edges)) if over in ("ops", "edges") else name
        assert len(described.edges[last]) == len(edges)
        names = set(described.operations_of(last, 0))
        assert names == set(whole.operations_of(name, 0))


def test_curves_of_operations_and_edges_end_at_the_space_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scaling, "_SEEDS", (1, 3))
    monkeypatch.setattr(scaling, "_FACTORS", (1.0,))
    kept = {}
    for over in ("channels", "ops", "edges", "seeds"):
        rows = scaling.measure(over, "nasbench201", "darts", TINY, CPU, rounds=1)
        kept[over] = {row["value"]: row for row in rows}
    same = kept["channels"][4], kept["ops"][5], kept["edges"][6], kept["seeds"][1]
    assert len({row["saved_bytes"] for row in same}) == 1
    assert len({row["pass_flops"] for row in same}) == 1
    assert kept["seeds"][3]["weight_bytes"] == 3 * kept["seeds"][1]["weight_bytes"]
    saved = [row["saved_bytes"] for row in kept["edges"].values()]
    assert saved == sorted(set(saved))


def test_curves_are_shown_and_drawn(tmp_path: Path) -> None:
    size = ("--channels", "4", "--cells", "1", "--batch", "4", "--image-size", "8", "--rounds", "1")
    picture = tmp_path / "curves.png"
    words = ["bench", "scaling", "--over", "image,batch", *size, "--plot", str(picture)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines if line] == [
        *("machine", "image", "8", "16"),
        *("batch", "2", "4", "8"),
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = CliRunner().invoke(app, [*words[:3], "image", *size, "--json"])
    assert [row["value"] for row in json.loads(found.stdout)] == [8, 16]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--over", "chanels"), "got 'chanels'. Did you mean 'channels'?"),
        (("--space", "all"), "--space must be one of nasbench201, darts, got 'all'"),
        (("--engine", "eager,graph"), "--engine must be one of auto, eager"),
        (("--plot", "no/such/folder/a.png"), "--plot must be a file in a folder that exists"),
    ],
)
def test_wrong_options_of_curves_are_refused(words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "scaling", *words])
    assert message in str(result.exception)
