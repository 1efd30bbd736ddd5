"""What a trial costs beyond its search: many short trials through the whole stack."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import worker_costs
from benchmarks.processes import KINDS, CpuWatch, wait_for_drains
from orchestrator.ledger import Ledger, Row

_EXPERIMENT = """
name: bench
space: {{name: nasbench201, channels: 4, cells_per_stage: 1}}
dataset: digits
seeds: [0]
method: darts
search: {{epochs: {epochs}, batch_size: 64, weight_lr: {{loguniform: [0.01, 0.1]}}}}
retrain: null
tune:
  num_samples: {trials}
  searcher: random
  max_concurrent: {at_once}
  per_trial: {{cpus: {cpus}}}
"""
_OF_WORKERS = 4
_REPORT_S = 60.0


def experiment_text(*, trials: int, epochs: int, at_once: int) -> str:
    """Return the experiment of so many short searches; more at once than cores share them."""
    cpus = min(1.0, (os.cpu_count() or 1) / at_once)
    return _EXPERIMENT.format(trials=trials, epochs=epochs, at_once=at_once, cpus=cpus)


def measure(*, trials: int, epochs: int, concurrent: int | None = None) -> dict[str, Any]:
    """Return the row of a sweep that was run in a folder of its own.

    Overhead is what the cores were busy or idle with beside searching, from the first trial's start
    to the last one's end: (wall seconds times trials at once - seconds of all searches) / trials.
    Another program on the machine makes it longer; CPU seconds say less of waiting, and depend less
    on others.

    Args:
        trials: Number of searches.
        epochs: Of each; three take about a second on a core.
        concurrent: Trials at once; None is as many as fit.
    """
    at_once = concurrent or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="nas", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        file = root / "bench.yaml"
        file.write_text(experiment_text(trials=trials, epochs=epochs, at_once=at_once))
        start, end, watch = _run(file, root)
        study = root / "bench"
        wait_for_drains(study, _REPORT_S)  # it sends the report, from and into this folder
        rows = list(Ledger(study / "ledger").iterate())
        files = {
            "row_bytes": study / "ledger",
            "outbox_bytes": study / "outbox",
            "state_bytes": study / "checkpoints",
        }
        sizes = {name: _size(path) / len(rows) for name, path in files.items()}
    searching = sum(float(row.cost["time_s"]) for row in rows)
    first = min(row.started for row in rows)
    last = max(float(row.ended or row.started) for row in rows)
    known = watch.between(first, last)
    cpu = {f"{kind}_cpu_s": known[kind] / len(rows) if known else None for kind in KINDS}
    of_worker = worker_costs.measure(
        experiment_text(trials=_OF_WORKERS + 1, epochs=epochs, at_once=1), trials=_OF_WORKERS
    )
    beside = [value for kind, value in cpu.items() if not kind.startswith("workers")]
    worker_cpu = of_worker["setup_cpu_s"] + of_worker["recording_cpu_s"]
    return {
        "case": f"sweep trials={trials} epochs={epochs} at_once={at_once}",
        "speedup": None,
        "trials": len(rows),
        "trials_per_hour": 3600 * len(rows) / (last - first),
        "overhead_per_trial_s": ((last - first) * at_once - searching) / len(rows),
        "overhead_cpu_s": worker_cpu + sum(v for v in beside if v is not None) if known else None,
        "search_s": searching / len(rows),
        **_timeline(rows, at_once),
        **cpu,
        **of_worker,
        **sizes,
        "workers": watch.workers() or None,
        "start_s": first - start,
        "end_s": end - last,
    }


def _run(file: Path, root: Path) -> tuple[float, float, CpuWatch]:
    """Run an experiment; return the unix times of start and end, and what was seen meanwhile."""
    start = time.time()
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(file), "--root", str(root)]
    environment = {**os.environ, "NO_COLOR": "1"}
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as running,
        CpuWatch(running.pid) as watch,
    ):
        try:
            status = running.wait()
        finally:
            running.terminate()  # it is not to go on without us
    if status:
        raise subprocess.CalledProcessError(status, command)
    return start, time.time(), watch


def _timeline(rows: Sequence[Row], at_once: int) -> dict[str, float]:
    """Return wall seconds of a trial's overhead, of medians, as the rows' own times tell them.

    Returns:
        `setup_s`: from a trial's start to its first epoch; `first_setup_s`: the same for the first
        trials of all workers, who import; `recording_s`: between its epochs and up to its end;
        `hand_over_s`: from an end to the start that follows it.
    """
    rows = sorted(rows, key=lambda row: row.started)
    setups, recordings = [], []
    for row in rows:
        ended = [float(entry["ended"]) for entry in row.curve]
        first = ended[0] - float(row.curve[0]["epoch_time_s"])
        searching = sum(float(entry["epoch_time_s"]) for entry in row.curve)
        setups.append(first - row.started)
        recordings.append(float(row.ended or ended[-1]) - first - searching)
    # The trial that starts next takes the place of the one that ended first.
    ends = sorted(float(row.ended or row.started) for row in rows)
    starts = [row.started for row in rows[at_once:]]
    gaps = [start - end for start, end in zip(starts, ends, strict=False)]
    return {
        "setup_s": statistics.median(setups[at_once:] or setups),
        "first_setup_s": max(setups[:at_once]),
        "recording_s": statistics.median(recordings),
        "hand_over_s": statistics.median(gaps) if gaps else 0.0,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
