"""Trying many random files of every kind, reproducibly."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzzing.checkpoints import Checkpoints
from benchmarks.fuzzing.experiments import Experiments
from benchmarks.fuzzing.genotypes import Genotypes
from benchmarks.fuzzing.outboxes import Outboxes
from benchmarks.fuzzing.outcomes import Kind, Tally
from benchmarks.fuzzing.studies import Studies

KINDS: dict[str, tuple[Callable[[Path], Kind], float]] = {
    Experiments.name: (Experiments, 0.42),
    Genotypes.name: (Genotypes, 0.28),
    Studies.name: (Studies, 0.16),
    Outboxes.name: (Outboxes, 0.11),
    Checkpoints.name: (Checkpoints, 0.03),
}
"""Kinds of files, and the share of the inputs that each gets: those that take long get few."""

_ROUND = 500  # inputs that Hypothesis draws at a time; it keeps all of a round in memory


def run(inputs: int, start: int, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Tally]:
    """Try inputs of every kind, one kind after the other.

    Args:
        inputs: How many in all, at least; every kind gets one or more.
        start: Seed; equal seeds draw equal inputs.
        kinds: Those that are tried, with as many inputs as they have among all.

    Yields:
        What the inputs of a kind came to.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    for make, share in (KINDS[name] for name in kinds):
        with tempfile.TemporaryDirectory(prefix="nas-fuzz") as folder:
            yield tally(make(Path(folder)), max(1, round(inputs * share)), start)


def tally(kind: Kind, inputs: int, start: int) -> Tally:
    """Try inputs of one kind and count how they end."""
    counts = Tally(kind.name)
    while counts.inputs < inputs:
        _round(kind, counts, min(_ROUND, inputs - counts.inputs), start)
        start += 1_000_003  # another stream, which no other seed below a million begins with
    return counts


def _round(kind: Kind, counts: Tally, inputs: int, start: int) -> None:
    @seed(start)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.inputs())
    def try_one(item: Any) -> None:
        counts.add(kind, item, time.process_time)

    try_one()
