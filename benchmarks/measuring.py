"""How things are measured: side by side, in turns, with counts that no busy machine can blur."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], Any]

_MATRIX = 1024
_COPIED_BYTES = 128 * 2**20
_MEMORY = "[memory]"  # how the profiler calls what is allocated and freed


@dataclass(frozen=True)
class Times:
    """Seconds of one case.

    Attributes:
        seconds: Of each round.
    """

    seconds: tuple[float, ...]

    @property
    def least(self) -> float:
        """The least of all rounds: what the work takes where nothing disturbs it."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.seconds)


def clock(device: torch.device) -> float:
    """Return a time in seconds: of this process's CPU, or of the wall once a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def interleaved(
    cases: Mapping[str, Work], rounds: int, device: torch.device, *, warm_up: int = 1
) -> dict[str, Times]:
    """Return the times of several pieces of work, run in turns.

    Args:
        cases: By name.
        rounds: How often each is timed.
        device: Where they run.
        warm_up: Rounds before that do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(warm_up + rounds):
        for name, work in cases.items():
            start = clock(device)
            work()
            if index >= warm_up:
                seconds[name].append(clock(device) - start)
            else:
                clock(device)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def count_kernels(work: Work, device: torch.device) -> int:
    """Return how many kernels a piece of work launches.

    On a GPU these are the device's own; on a CPU the operators that call no other.
    """
    if device.type == "cuda":
        with _silent_errors(), profile(activities=[ProfilerActivity.CUDA]) as seen:
            work()
            clock(device)
        return sum(event.device_type.name == "CUDA" for event in seen.events() or [])
    with _silent_errors(), profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    # Torch's own tree of events takes longer than what it is of; an operator that calls another
    # ends after the next one has begun.
    spans = sorted(
        (each.start_thread_id(), each.start_ns(), -each.duration_ns())
        for each in _recorded(seen)
        if each.name().startswith("aten::")
    )
    after = [*spans[1:], (-1, 0, 0)]
    return sum(
        later[0] != thread or later[1] >= start - length
        for (thread, start, length), later in zip(spans, after, strict=True)
    )


def _recorded(seen: profile) -> Any:
    return seen.profiler.kineto_results.events()  # type: ignore[union-attr]


class _Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that run, without those that only look at memory or reserve it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        looks = bool(returns) and all(
            value.alias_info is not None and not value.alias_info.is_write for value in returns
        )
        name = func._schema.name.removeprefix("aten::")
        self.count += not looks and name not in _WITHOUT_WORK
        return func(*args, **(kwargs or {}))


_WITHOUT_WORK = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
)


def count_launches(work: Work) -> int:
    """Return how many operators with work of their own a piece of work calls, on a CPU.

    A GPU launches at least one kernel for each, and none for the views that `count_kernels` counts
    besides on a CPU.
    """
    with _Launches() as seen:
        work()
    return int(seen.count)


@contextlib.contextmanager
def _silent_errors() -> Iterator[None]:
    # The profiler's C++ side writes of its start and stop, whatever its log level.
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def saved_bytes(forward: Work, weights: Sequence[Tensor]) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, weights apart.

    Args:
        forward: Runs the pass and returns what holds its graph.
        weights: Tensors that do not count.
    """
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}
    tensors: list[Tensor] = []  # so that no storage is used twice while we count

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def peak_bytes(work: Work, device: torch.device) -> int:
    """Return how many bytes more than before it a piece of work holds at its peak.

    What counts is what torch allocates, on a CPU as on a GPU: neither the weights and states that
    were there before, nor the process around them.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _silent_errors(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    changes = sorted(
        (each.start_ns(), each.nbytes()) for each in _recorded(seen) if each.name() == _MEMORY
    )
    held = itertools.accumulate(int(change) for _, change in changes)
    return max(held, default=0)


@dataclass(frozen=True)
class Floor:
    """What the machine can do, measured in the same run.

    Attributes:
        flops: Multiplications and additions a second, of a large float32 matrix product.
        bytes: Bytes read and written a second, of a large copy.
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, moved_bytes: float) -> float:
        """Return the time that no implementation of so much work can go below."""
        return max(flops / self.flops, moved_bytes / self.bytes)


def measure_floor(device: torch.device, rounds: int = 3) -> Floor:
    """Measure the matrix products and the copies of a device."""
    left = torch.randn(_MATRIX, _MATRIX, device=device)
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    cases: dict[str, Work] = {"product": lambda: left @ left, "copy": lambda: target.copy_(source)}
    times = interleaved(cases, rounds, device)
    return Floor(2 * _MATRIX**3 / times["product"].least, 2 * _COPIED_BYTES / times["copy"].least)
