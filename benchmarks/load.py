"""What thousands of trials cost the driver, the disk and MLflow, and whether it grows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks import snapshots
from benchmarks.processes import drains, wait_for_drains
from benchmarks.snapshots import Snapshot
from benchmarks.sweep import experiment_text
from orchestrator.outbox import end_of_records, read_offsets

_SIMULATED = """
name: bench
space: {{name: nasbench201, channels: 16, cells_per_stage: 5}}
dataset: digits
seeds: [0]
method: darts
search: {{epochs: {epochs}, batch_size: 64, weight_lr: {{loguniform: [0.01, 0.1]}}}}
oracle: {{name: nasbench201, path: '{table}'}}
retrain: null
tune:
  num_samples: {trials}
  searcher: random
  scheduler: {{name: asha, grace_epochs: 1, reduction_factor: 3}}
  max_concurrent: {at_once}
"""
_PERIOD_S = 1.0
_DRAIN_S = 3600.0
_PARTS = 5
_SNAPSHOTS = "snapshots.jsonl"


class SweepError(RuntimeError):
    """A sweep that is measured did not end well."""


@dataclass
class Sample:
    """What a running study looked like at a moment.

    Attributes:
        time: Unix time, seconds.
        ended: Rows in the ledger.
        driver_cpu_s: CPU seconds that the driver has used.
        driver_bytes: Its resident memory.
        drain_bytes: That of the process that fills MLflow.
        sent: Bytes of the outbox that are in MLflow.
    """

    time: float
    ended: int
    driver_cpu_s: float
    driver_bytes: int
    drain_bytes: int
    sent: int


@dataclass
class Follower:
    """Takes samples of a study in a thread; a context manager.

    Attributes:
        driver: Process id of its command.
        study: Its folder, which may not be there yet.
        samples: What was seen, in order.
    """

    driver: int
    study: Path
    samples: list[Sample] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Follower:
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(self.driver)
            while not self._stop.wait(_PERIOD_S):
                with contextlib.suppress(OSError):
                    self.samples.append(self._look(driver))

    def _look(self, driver: psutil.Process) -> Sample:
        used = driver.cpu_times()
        return Sample(
            time=time.time(),
            ended=ended(self.study),
            driver_cpu_s=used.user + used.system,
            driver_bytes=driver.memory_info().rss,
            drain_bytes=sum(each.memory_info().rss for each in drains(self.study)),
            sent=sent(self.study),
        )


def ended(study: Path) -> int:
    """Return the rows in the ledger of a study."""
    with contextlib.suppress(OSError), os.scandir(study / "ledger") as entries:
        return sum(entry.name.endswith(".json") for entry in entries)
    return 0


def sent(study: Path) -> int:
    """Return the bytes of the outbox of a study that are in its store."""
    offsets = read_offsets(study / "outbox" / "events.jsonl").values()
    return max((offset.position for offset in offsets), default=0)


def measure(
    *,
    trials: int,
    epochs: int,
    table: Path | None,
    concurrent: int | None = None,
    told: Callable[[str], None],
) -> dict[str, Any]:
    """Return the row of a sweep of so many trials in a folder of its own.

    The sweep's own messages are those of its command, on standard error.

    Args:
        trials: Number of searches.
        epochs: Of each, at most.
        table: Table of NAS-Bench-201 in which searches are looked up; None searches really.
        concurrent: Trials at once; None is as many as there are cores.
        told: Is given a line when the sweep is over and MLflow is waited for.

    Raises:
        SweepError: The command of the sweep failed; it has said why.
    """
    at_once = concurrent or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="nas") as folder:
        root = Path(folder)
        file = root / "bench.yaml"
        if table is None:
            file.write_text(experiment_text(trials=trials, epochs=epochs, at_once=at_once))
            words = ["run", str(file)]
        else:
            text = _SIMULATED.format(trials=trials, epochs=epochs, at_once=at_once, table=table)
            file.write_text(text)
            words = ["simulate", str(file)]
        study = root / ("bench" if table is None else "bench-simulated")
        start = time.time()
        samples = _run(words, root, study)
        over = time.time()
        told(f"{trials} trials took {over - start:.0f} s; waiting for MLflow")
        sent_after_s = wait_for_drains(study, _DRAIN_S)
        return {
            "case": f"load {'simulated' if table else 'real'} trials={trials} epochs={epochs}",
            "speedup": None,
            "trials": ended(study),
            "at_once": at_once,
            "wall_s": over - start,
            **_driver(samples),
            **_snapshots(snapshots.read(root / _SNAPSHOTS)),
            **_tracking(samples, study, over + sent_after_s),
            "sent_after_s": sent_after_s,
            "ledger_bytes": _size(study / "ledger") / max(1, ended(study)),
            "outbox_bytes": _size(study / "outbox") / max(1, ended(study)),
            "ray_bytes": _size(study / "ray"),
            "files": sum(1 for path in study.rglob("*") if path.is_file()),
            "store_bytes": _size(root / "mlflow.db"),
        }


def _run(words: Sequence[str], root: Path, study: Path) -> list[Sample]:
    noted = ["-m", "benchmarks.snapshots", str(root / _SNAPSHOTS)]
    command = [sys.executable, *noted, *words, "--root", str(root)]
    environment = {**os.environ, "NO_COLOR": "1"}
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as running,
        Follower(running.pid, study) as follower,
    ):
        try:
            status = running.wait()
        finally:
            running.terminate()  # it is not to go on without us
    if status:
        raise SweepError(f"nas {words[0]} of the sweep failed with exit code {status}.")
    return follower.samples


def _driver(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what a trial costs the driver, in the first fifth of all trials and in the last.

    Returns:
        `wall_per_trial_s`, `driver_cpu_per_trial_s`: means over all trials;
        `driver_cpu_by_part_s`: of each fifth; `driver_peak_bytes`: its memory at most.
    """
    active = [each for each in samples if each.ended]
    if len(active) < 2:
        return {}
    first, last = active[0], active[-1]
    trials = max(1, last.ended - first.ended)
    # The end of the last trial, not of the report.
    end = next(each for each in active if each.ended == last.ended)
    edges = [first.ended + trials * part / _PARTS for part in range(_PARTS + 1)]
    marks = [next(each for each in active if each.ended >= edge) for edge in edges]
    parts = [
        (b.driver_cpu_s - a.driver_cpu_s) / max(1, b.ended - a.ended) for a, b in pairwise(marks)
    ]
    return {
        "wall_per_trial_s": (end.time - first.time) / trials,
        "driver_cpu_per_trial_s": (end.driver_cpu_s - first.driver_cpu_s) / trials,
        "driver_cpu_by_part_s": parts,
        "driver_peak_bytes": max(each.driver_bytes for each in samples),
        "driver_bytes_per_trial": (end.driver_bytes - first.driver_bytes) / trials,
    }


def _snapshots(found: Sequence[Snapshot]) -> dict[str, Any]:
    """Return what Tune's snapshots cost: each, and all of them together."""
    if not found:
        return {}
    return {
        "snapshots": len(found),
        "snapshot_last_s": found[-1].seconds,
        "snapshot_most_s": max(each.seconds for each in found),
        "snapshots_s": sum(each.seconds for each in found),
        "state_file_bytes": max(each.bytes for each in found),
    }


def _tracking(samples: Sequence[Sample], study: Path, over: float) -> dict[str, Any]:
    """Return how fast rows came into MLflow: beside the sweep, and after its first batch."""
    whole = end_of_records(study / "outbox" / "events.jsonl")
    if not whole or not samples:
        return {}
    rows = ended(study)
    per_row = whole / max(1, rows)
    began = next((each for each in samples if each.sent), samples[-1])
    # While trials ran: a drain that has one of two cores to itself says nothing of that.
    running = [each for each in samples if each.sent and each.ended < rows]
    seconds = running[-1].time - running[0].time if running else 0.0
    rest = (whole - began.sent) / per_row  # what was sent before `began` took unknown time
    beside = (running[-1].sent - running[0].sent) / per_row / seconds if seconds else None
    return {
        "sent_beside": samples[-1].sent / whole,
        "sent_per_s": rest / (over - began.time) if rest else None,
        "sent_per_s_beside": beside,
        "drain_peak_bytes": max(each.drain_bytes for each in samples),
    }


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
