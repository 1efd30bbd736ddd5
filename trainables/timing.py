"""Time and memory of a trial, measured without making a GPU wait."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


class Stopwatch:
    """Mean duration of a piece of work that is repeated.

    On a GPU the laps are marked by events in the stream and read only when `mean` is asked for, so
    that measuring adds no synchronisation to a step.

    Args:
        device: Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Measure the work inside the context."""
        if self._device.type == "cuda":
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            yield
            pair[1].record()
            self._events.append(pair)
        else:
            start = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - start)

    def mean(self) -> float:
        """Return the mean lap in seconds, waiting for the device; 0 without a lap."""
        if self._events:
            torch.cuda.synchronize(self._device)
            self._seconds += [first.elapsed_time(last) / 1e3 for first, last in self._events]
            self._events.clear()
        return sum(self._seconds) / max(1, len(self._seconds))


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the peak, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of memory in bytes.

    On a GPU: of torch's allocations since `reset_peak_memory`. On a CPU: of the whole process since
    its start, which other trials of the process have a part in.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts in `ru_maxrss` what the process was before it became this program, too.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
