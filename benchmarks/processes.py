"""CPU seconds of a command and of all that it started, by what they are for. Linux only."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PERIOD_S = 0.5
KINDS = ("driver", "workers", "ray", "mlflow")
"""Of a study: its command, the processes of trials, the rest of Ray, and what fills MLflow."""


class CpuWatch:
    """Follows the CPU seconds of a process and of its descendants in a thread.

    A process that has ended keeps what it had when it was last seen, half a second before at most.

    Args:
        root: Id of the process: the driver of a study.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._kinds: dict[int, str] = {}
        self._seconds: dict[int, float] = {}
        self._over_time: list[tuple[float, dict[int, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> CpuWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, first: float, last: float) -> dict[str, float]:
        """Return the CPU seconds of each kind between two unix times, as far as they are known."""
        if not self._over_time:
            return {}
        before, after = (self._near(moment) for moment in (first, last))
        return {kind: after[kind] - before[kind] for kind in KINDS}

    def workers(self) -> int:
        """Return how many processes of trials there were."""
        return sum(kind == "workers" for kind in self._kinds.values())

    def _near(self, moment: float) -> dict[str, float]:
        spent = min(self._over_time, key=lambda each: abs(each[0] - moment))[1]
        # By what a process turned out to be: a worker has another name before it has work.
        sums = dict.fromkeys(KINDS, 0.0)
        for pid, seconds in spent.items():
            sums[self._kinds[pid]] += seconds
        return sums

    def _follow(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self._look()

    def _look(self) -> None:
        parents: dict[int, int] = {}
        seconds: dict[int, float] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                # The name, in brackets, may hold spaces and brackets itself.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
                seconds[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
        if not parents:
            return
        for pid, spent in seconds.items():
            if self._is_ours(pid, parents):
                self._kinds[pid] = self._kind(pid)
                self._seconds[pid] = spent
        self._over_time.append((time.time(), dict(self._seconds)))

    def _is_ours(self, pid: int, parents: dict[int, int]) -> bool:
        seen = pid
        while seen in parents:
            if seen == self._root:
                return True
            seen = parents[seen]
        return False

    def _kind(self, pid: int) -> str:
        if pid == self._root:
            return "driver"
        known = self._kinds.get(pid, "ray")
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "orchestrator.tracking" in words:
                return "mlflow"
            if words.startswith("ray::") and "Trainable" in words:
                return "workers"
        return known


def drains(study: Path) -> list[psutil.Process]:
    """Return the processes that fill MLflow from a study."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "orchestrator.tracking" in line and str(study) in line:
            found.append(process)
    return found


def wait_for_drains(study: Path, most_s: float) -> float:
    """Wait until MLflow has all of a study; return the seconds that this took."""
    start = time.monotonic()
    while drains(study) and time.monotonic() - start < most_s:
        time.sleep(0.2)
    return time.monotonic() - start
