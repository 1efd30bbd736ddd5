"""The epochs of a block of seeds: one after the other, or side by side on the streams of a GPU.

A search of few channels leaves a GPU idle most of the time. Side by side, step i of every search is
launched before step i + 1 of any, each on a stream of its own, and nothing waits for a stream until
the epoch is over. Searches share nothing: weights, generators, recorded graphs and their memory are
each one's own, so that each finds what it finds alone.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch  # at run time only where there is a stream: simulated trials do without

Entry = dict[str, Any]
Run = Callable[[], Entry]


class Runs(Protocol):
    """What a block needs of any trial."""

    def run_epoch(self) -> Entry:
        """Run one epoch and return its entry of the curve."""
        ...


@runtime_checkable
class InSteps(Runs, Protocol):
    """A trial whose epoch can be run a step at a time."""

    device: torch.device

    def epoch_in_steps(self) -> Generator[None, None, Entry]:
        """Run one epoch; stops after each step and returns the entry of the curve."""
        ...


class Streams:
    """A stream of a GPU for every seed; on a CPU, which has none, work is done where it is asked.

    torch has few streams and hands them out in turns, so that these are made once.
    """

    def __init__(self) -> None:
        self._streams: dict[int, torch.cuda.Stream] = {}

    def on(self, seed: int, device: torch.device) -> AbstractContextManager[Any]:
        """Return a context in which a seed's work goes to its stream."""
        if device.type != "cuda":
            return nullcontext()
        import torch

        if seed not in self._streams:
            self._streams[seed] = torch.cuda.Stream(device)
        return torch.cuda.stream(self._streams[seed])

    def fork(self, seed: int, device: torch.device) -> None:
        """Have a seed's stream wait for what the current one was given: its state and images."""
        if device.type == "cuda":
            import torch

            current = torch.cuda.current_stream(device)
            with self.on(seed, device):
                self._streams[seed].wait_stream(current)

    def join(self, seed: int, device: torch.device) -> None:
        """Have the current stream, which reads the results, wait for a seed's."""
        if device.type == "cuda":
            import torch

            torch.cuda.current_stream(device).wait_stream(self._streams[seed])


class Block:
    """Runs the next epoch of several trials.

    Args:
        side_by_side: Whether steps are taken in turns; None does so on a GPU. On a CPU it would
            only have the searches push each other out of the caches.
    """

    def __init__(self, *, side_by_side: bool | None = None) -> None:
        self._side_by_side = side_by_side
        self._streams = Streams()

    def epochs(self, trials: Mapping[int, Runs]) -> Iterator[tuple[int, Run]]:
        """Yield every seed with the function that runs its epoch, or tells how it went.

        One after the other an epoch is run when its function is called. Side by side all of them
        have been run; a seed that failed is given out at once, and its function raises the error,
        while the others go on.
        """
        together = {seed: trial for seed, trial in trials.items() if self._runs_beside(trial)}
        if len(together) < 2:
            together = {}
        trials = {seed: trial for seed, trial in trials.items() if seed not in together}
        if together:
            yield from self._beside(together)  # type: ignore[arg-type]  # by `_runs_beside`
        for seed, trial in trials.items():
            yield seed, trial.run_epoch

    def _runs_beside(self, trial: Runs) -> bool:
        if not isinstance(trial, InSteps) or self._side_by_side is False:
            return False
        return bool(self._side_by_side) or trial.device.type == "cuda"

    def _beside(self, trials: dict[int, InSteps]) -> Iterator[tuple[int, Run]]:
        """Run the epochs in turns; seeds that fail are taken out of `trials`."""
        start, waited, number = time.perf_counter(), 0.0, len(trials)
        for seed in trials:
            self._streams.fork(seed, trials[seed].device)
        runs = {seed: trials[seed].epoch_in_steps() for seed in trials}
        entries: dict[int, Entry] = {}
        while runs:
            for seed in list(runs):
                try:
                    with self._streams.on(seed, trials[seed].device):
                        entry = _advanced(runs[seed])
                except (MemoryError, RuntimeError) as error:
                    given = time.perf_counter()
                    del runs[seed], trials[seed]
                    # What its frames and its graphs hold is memory that the others may need.
                    traceback.clear_frames(error.__traceback__)
                    yield seed, partial(_raise, error)
                    gc.collect()
                    waited += time.perf_counter() - given
                    continue
                if entry is not None:
                    entries[seed] = entry
                    del runs[seed]
        for seed in entries:
            self._streams.join(seed, trials[seed].device)
        # Each one's share of the time, so that the sum of all is what the machine was busy for.
        share = (time.perf_counter() - start - waited) / number
        for seed, entry in entries.items():
            entry["epoch_time_s"] = share
            yield seed, partial(_given, entry)


def _given(entry: Entry) -> Entry:
    return entry


def _advanced(run: Generator[None, None, Entry]) -> Entry | None:
    """Take the next step; return the entry once the epoch is over."""
    try:
        next(run)
    except StopIteration as over:
        entry: Entry = over.value
        return entry
    return None


def _raise(error: Exception) -> Entry:
    raise error
