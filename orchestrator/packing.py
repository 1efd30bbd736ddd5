"""What share of a GPU a trial gets where the experiment leaves it open (`per_trial.gpus: auto`).

Shares are bookkeeping of Ray's, nothing caps memory by them. So each kind of trial is measured
before it starts, and gets the smallest share 1/n of which n fit into the memory of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator import memory
from orchestrator.experiment import Experiment
from orchestrator.kinds import kind_of
from orchestrator.statistics import show_bytes
from orchestrator.units import Unit

# A process on a GPU has code and buffers of its own there besides what torch allocates. No figure
# of ours is behind the size: it is taken to be on the safe side.
PROCESS_BYTES = 700_000_000
# Predictions are meant to be within a fifth.
MARGIN = 1.2
MOST_SHARING = 16
"""Trials that share a GPU at most: more of them gain nothing once its cores are busy."""

_MOST_GENOTYPES = 8

Measured = tuple[Sequence[int | None], int | None]
Measure = Callable[[Sequence[Mapping[str, Any]]], Measured]
"""Gives the peaks of some requests (see `memory.peaks`) and the memory of the smallest GPU."""


def share_of(peak: int | None, there: int | None) -> float:
    """Return the share of a GPU for a trial: 1/n in steps of 1e-4, which is how Ray counts.

    Args:
        peak: Bytes that torch allocates at the trial's peak; None where it could not be measured.
        there: Bytes of a GPU; None where there is none to be asked.

    Returns:
        1.0 where a byte count is missing, or where not even one trial fits.
    """
    if peak is None or there is None:
        return 1.0
    fitting = int(there // (MARGIN * peak + PROCESS_BYTES))
    return int(10_000 / min(max(1, fitting), MOST_SHARING)) / 10_000


class Packing:
    """Shares of the trials of a study; each kind of trial is measured once, when it is first met.

    Args:
        measure: See `Measure`.
        told: Called with a sentence for each share that was found.

    Attributes:
        there: Bytes of a GPU, once that is known.
    """

    def __init__(self, measure: Measure, told: Callable[[str], None]) -> None:
        self._measure = measure
        self._told = told
        self._peaks: dict[tuple[str, str], int | None] = {}
        self.there: int | None = None

    def share(self, unit: Unit) -> float:
        """Return the share of a GPU that a unit gets."""
        self.measure([unit])
        return share_of(self.peak(unit), self.there)

    def least(self, units: Sequence[Unit]) -> float:
        """Return the smallest share of some units, which says how many may run side by side."""
        self.measure(units)
        return min((self.share(unit) for unit in units), default=1.0)

    def measure(self, units: Sequence[Unit]) -> None:
        """Measure what has not been, all in one process.

        Of many genotypes that are trained in one way eight are measured; the others are taken to
        need as much as the largest of those.
        """
        new: dict[tuple[str, str], Unit] = {}
        count: dict[str, int] = {}
        for kind in self._peaks:
            count[kind[0]] = count.get(kind[0], 0) + 1
        for unit in units:
            kind = kind_of(unit)
            if kind in self._peaks or kind in new or count.get(kind[0], 0) >= _MOST_GENOTYPES:
                continue
            count[kind[0]] = count.get(kind[0], 0) + 1
            new[kind] = unit
        if not new:
            return
        requests = [
            {"stage": unit.stage, "config": unit.ray_config("", "cuda")} for unit in new.values()
        ]
        peaks, self.there = self._measure(requests)
        self._peaks |= dict(zip(new, peaks, strict=True))
        for unit in new.values():
            self._told(self._sentence(unit))

    def peak(self, unit: Unit) -> int | None:
        """Return the bytes that a unit needs, or None where they could not be measured."""
        kind = kind_of(unit)
        if kind in self._peaks:
            return self._peaks[kind]
        alike = [peak for (rough, _), peak in self._peaks.items() if rough == kind[0]]
        return None if None in alike else max((p for p in alike if p is not None), default=None)

    def _sentence(self, unit: Unit) -> str:
        peak, there = self.peak(unit), self.there
        name = f"gpus: auto, {unit.label or unit.stage}"
        if peak is None or there is None:
            return f"{name}: its memory could not be measured, so it has a GPU to itself"
        sharing = round(1 / share_of(peak, there))
        return (
            f"{name}: {sharing} on a GPU, each {show_bytes(peak)} at its peak of the "
            f"{show_bytes(there)} there are"
        )


@dataclass(frozen=True)
class Weighed:
    """What a dry run knows of the memory of its trials.

    Attributes:
        gpus: GPUs of a trial: the smallest share where they differ.
        peaks: Bytes of a trial at its peak, by label.
        there: Bytes of the machine or of a GPU, or None.
        notes: Sentences on the shares that were found.
    """

    gpus: float
    peaks: Mapping[str, int]
    there: int | None
    notes: Sequence[str] = field(default_factory=list)


def make_packing(experiment: Experiment, told: Callable[[str], None]) -> Packing | None:
    """Return what finds the shares of an experiment's trials; None where it says them itself."""
    if experiment.tune.per_trial.gpus != "auto":
        return None
    return Packing(lambda requests: memory.peaks_on_gpu(requests, experiment.ray.address), told)


def weigh(experiment: Experiment, units: Sequence[Unit]) -> Weighed:
    """Measure what the units of an experiment need."""
    notes: list[str] = []
    packing = make_packing(experiment, notes.append)
    if packing is None:
        device = "cuda" if experiment.tune.per_trial.on_gpu else "cpu"
        peaks = memory.by_label(units, device)
        return Weighed(experiment.tune.per_trial.most_gpus, peaks, memory.there(experiment))
    least = packing.least(units)
    found = {unit.label: packing.peak(unit) for unit in units}
    peaks = {label: peak for label, peak in found.items() if peak is not None}
    return Weighed(least, peaks, packing.there, notes)
