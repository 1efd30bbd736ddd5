"""Studies in processes of their own, for tests that kill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from trainables.search import TIME_FIELDS

TINY = """
name: {name}
space: {{name: nasbench201, channels: 2, cells_per_stage: 1}}
dataset: digits
seeds: [0, 1]
method: {{grid: [{{name: darts}}, {{name: sdarts_rs}}]}}
search: {{epochs: {epochs}, batch_size: 256, alpha_lr: 0.02}}
retrain: {{epochs: 2, channels: 2, cells: 1, batch_size: 256}}
"""


@contextlib.contextmanager
def short_ray_folder() -> Iterator[None]:
    """Have Ray work in a folder near the root: the paths of Unix sockets are limited."""
    before = os.environ.get("RAY_TMPDIR")
    with tempfile.TemporaryDirectory(
        prefix="nas", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        os.environ["RAY_TMPDIR"] = folder
        yield
        del os.environ["RAY_TMPDIR"]
        if before is not None:
            os.environ["RAY_TMPDIR"] = before


def write_experiment(folder: Path, name: str, epochs: int = 3, more: str = "") -> Path:
    """Write a study of four small searches and at most two retrainings."""
    file = folder / f"{name}.yaml"
    file.write_text(TINY.format(name=name, epochs=epochs) + more)
    return file


def without_retraining(file: Path) -> None:
    """Change a small study so that it only searches."""
    lines = file.read_text().splitlines()
    kept = ["retrain: null" if line.startswith("retrain:") else line for line in lines]
    file.write_text("\n".join(kept) + "\n")


def nas(*arguments: str | Path, root: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line in a process group of its own."""
    log = (root / "nas.log").open("ab")
    clean = {name: value for name, value in os.environ.items() if name != "NAS_PLUGINS"}
    environment = {**clean, "NAS_ROOT": str(root), "NO_COLOR": "1", **options.pop("env", {})}
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            **options,
        )


def finish(process: subprocess.Popen[bytes], root: Path, timeout_s: float = 240) -> int:
    """Wait for a command; on a time-out show what it printed."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise AssertionError((root / "nas.log").read_text(errors="replace")[-4000:]) from None


def wait_for(what: Callable[[], Any], root: Path, timeout_s: float = 180) -> Any:
    """Wait until `what` returns something true, and return it."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    log = root / "nas.log"
    raise AssertionError(log.read_text(errors="replace")[-4000:] if log.exists() else "no log")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a driver and all that it started, as the loss of a machine would."""
    with_children = [process.pid]
    with contextlib.suppress(psutil.NoSuchProcess):
        with_children += [child.pid for child in psutil.Process(process.pid).children(True)]
    for pid in with_children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(30)


def kill_driver(process: subprocess.Popen[bytes]) -> list[int]:
    """SIGKILL a driver alone; return the processes that it leaves, so that a test can end them."""
    children = [child.pid for child in psutil.Process(process.pid).children(True)]
    process.kill()
    process.wait(30)
    return children


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of a driver in which trials run."""
    found = []
    for child in psutil.Process(process.pid).children(True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "Study" in title:
            found.append(child.pid)
    return found


def rows(study: Path) -> list[dict[str, Any]]:
    """Return the ledger's rows as plain JSON."""
    return [json.loads(path.read_text()) for path in sorted((study / "ledger").glob("*.json"))]


def results(study: Path) -> dict[str, Any]:
    """Return what must not depend on interruptions: curves without times, genotypes, statuses."""
    ignore = {*TIME_FIELDS, "ended"}
    return {
        row["key"]: (
            row["status"],
            row["genotype_hash"],
            row["genotypes"],
            [{k: v for k, v in entry.items() if k not in ignore} for entry in row["curve"]],
        )
        for row in rows(study)
    }
