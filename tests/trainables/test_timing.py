"""The stopwatch and the peak of memory."""

from __future__ import annotations

import pytest
import torch

from trainables import timing
from trainables.timing import Stopwatch, peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")


def test_the_mean_is_that_of_the_laps(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(readings))
    watch = Stopwatch(CPU)
    assert watch.mean() == 0.0
    for _ in range(2):
        with watch.lap():
            pass
    assert watch.mean() == (1.0 + 3.0) / 2


class FakeEvent:
    """A CUDA event on a clock that the test sets."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.time = float("nan")

    def record(self) -> None:
        self.time = FakeEvent.now

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.time - self.time) * 1e3


def test_a_gpu_is_waited_for_only_when_the_mean_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    watch = Stopwatch(torch.device("cuda"))
    for seconds in (2.0, 4.0):
        with watch.lap():
            FakeEvent.now += seconds
    assert waits == []
    assert watch.mean() == pytest.approx(3.0)
    assert watch.mean() == pytest.approx(3.0)
    assert len(waits) == 1


def test_the_peak_of_the_process_is_in_bytes() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    block = torch.ones(40_000_000, dtype=torch.float64)  # 320 MB, touched
    # torch alone takes more than 50 MB; a value in KiB would be below.
    assert before > 50e6
    assert peak_memory_bytes(CPU) >= block.numel() * 8
