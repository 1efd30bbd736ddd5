"""`retrain.budget_hours`: retrainings are started while measured epochs say that they fit.

The budget is in trial hours: the sum of the time of all retrain rows of the study, whatever runs
side by side. What does not fit is left out, which is no error; `budget.json` in the study folder
says what it was, and a later run with more hours runs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import json_files
from orchestrator.ledger import Row, replace_file
from orchestrator.units import Unit

FILE = "budget.json"


@dataclass(frozen=True)
class LeftOut:
    """A retraining that was not started.

    Attributes:
        key: Its ledger key.
        label: What found its genotype.
        genotype_hash: What it would have trained.
        seed: Its seed.
        hours: Trial hours that it would take, by the epochs that were measured.
    """

    key: str
    label: str
    genotype_hash: str
    seed: int
    hours: float


@dataclass(frozen=True)
class Spending:
    """How a study stands to its budget, in trial hours."""

    budget_hours: float
    used_hours: float
    left_out: tuple[LeftOut, ...]

    def __str__(self) -> str:
        """Say it in a sentence."""
        seeds: dict[tuple[str, str], list[int]] = {}
        for item in self.left_out:
            seeds.setdefault((item.label, item.genotype_hash), []).append(item.seed)
        named = ", ".join(
            f"{label} ({genotype}) seed {' '.join(map(str, own))}"
            for (label, genotype), own in seeds.items()
        )
        return (
            f"{len(self.left_out)} retrainings were left out for retrain.budget_hours "
            f"{self.budget_hours:g}, of which {self.used_hours:.3g} are used: {named}."
        )


class Budget:
    """What the retrainings of a study have used, epoch by epoch, and whether another one fits.

    Args:
        hours: Trial hours in all.
        units: Retrainings that are planned: their epochs are what others are judged by.
        rows: What the study has of retrainings, ended or not; all of their time counts.
    """

    def __init__(self, hours: float, units: Sequence[Unit], rows: Iterable[Row]) -> None:
        self.hours = hours
        self._planned = {key: unit for unit in units for key in unit.rows.values()}
        self._times: dict[str, dict[int, float]] = {}
        for row in rows:
            for place, entry in enumerate(row.curve, start=1):
                self.note(row.key, {"epoch": place, **entry})

    def note(self, key: str, entry: Mapping[str, Any]) -> None:
        """Take note of an epoch; one that is reported again counts once."""
        times = self._times.setdefault(key, {})
        times[int(entry["epoch"])] = float(entry.get("epoch_time_s", 0.0))

    @property
    def used_s(self) -> float:
        """Seconds that have been used."""
        return sum(sum(times.values()) for times in self._times.values())

    def left_s(self, unit: Unit) -> float | None:
        """Return the seconds that a unit still takes, or None where nothing has been measured.

        An epoch is taken to last as those of the same genotype do in the mean, else as all do.
        """
        same: list[float] = []
        every: list[float] = []
        for key, times in self._times.items():
            other = self._planned.get(key)
            if other is None:
                continue
            every += times.values()
            if other.extra["genotype_hash"] == unit.extra["genotype_hash"]:
                same += times.values()
        known = same or every
        if not known:
            return None
        epochs = sum(
            max(0, unit.epochs - len(self._times.get(key, {}))) for key in unit.rows.values()
        )
        return epochs * sum(known) / len(known)

    def fits(self, unit: Unit, running: Iterable[Unit] = ()) -> bool | None:
        """Return whether a unit may start beside those that run.

        None where that cannot be told before one of them has run an epoch. Where nothing runs and
        nothing has been measured it may: its epochs are then the measure.
        """
        beside = list(running)
        times = [self.left_s(each) for each in (unit, *beside)]
        if None in times:
            return None if beside else self.used_s < self.hours * 3600
        return self.used_s + sum(time or 0.0 for time in times) <= self.hours * 3600

    def spending(self, left_out: Sequence[Unit]) -> Spending:
        """Return how the study stands, with the units that were not started."""
        return Spending(
            self.hours,
            self.used_s / 3600,
            tuple(
                LeftOut(
                    key=key,
                    label=unit.label,
                    genotype_hash=str(unit.extra["genotype_hash"]),
                    seed=seed,
                    hours=(self.left_s(unit) or 0.0) / len(unit.rows) / 3600,
                )
                for unit in left_out
                for seed, key in unit.rows.items()
            ),
        )


def write_spending(study: Path, spending: Spending | None) -> None:
    """Write how a study stands into its folder, or remove that where nothing was left out."""
    if spending is None or not spending.left_out:
        (study / FILE).unlink(missing_ok=True)
    else:
        replace_file(study / FILE, json.dumps(asdict(spending), indent=2).encode())


def read_spending(study: Path) -> Spending | None:
    """Return what was left out of a study, or None where nothing was."""
    try:
        form = json_files.parse((study / FILE).read_bytes())
        left_out = tuple(LeftOut(**item) for item in form["left_out"])
        return Spending(float(form["budget_hours"]), float(form["used_hours"]), left_out)
    except (OSError, ValueError, TypeError, KeyError):  # never written, or damaged
        return None
