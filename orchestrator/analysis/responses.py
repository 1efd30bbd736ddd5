"""What was measured at each value of a setting, and of two: means over seeds, with intervals."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.frame import Factor, StudyFrame
from orchestrator.analysis.intervals import Interval, mean_interval

if TYPE_CHECKING:
    import pandas as pd

MOST_LEVELS = 12
"""More values of a number than these are put together into `BINS` of about as many rows."""

BINS = 8
MISSING = "not set"


@dataclass(frozen=True)
class Level:
    """A value of a factor, or a range of values.

    Attributes:
        text: As tables show it.
        at: Where it stands on an axis: the value, the middle of its range, or a place.
        configurations: How many have it.
        mean: Mean over seeds, that of a seed being over configurations; with its interval.
        lost: Rows that have it and no value: failed, diverged, stopped or unfinished.
    """

    text: str
    at: float
    configurations: int
    mean: Interval
    lost: int


@dataclass(frozen=True)
class Response:
    """A one-factor curve; other settings are averaged over."""

    factor: Factor
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class HeatMap:
    """Means over seeds for every pair of values of two factors.

    Attributes:
        first, second: The factors: rows and columns.
        rows, columns: Texts of their values.
        cells: Row by row; an `Interval` of n = 0 where nothing was measured.
    """

    first: Factor
    second: Factor
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Interval, ...], ...]


def response(frame: StudyFrame, factor: Factor) -> Response:
    """Return the one-factor curve of a factor."""
    found = []
    for text, at, table in _levels(frame, factor):
        used = table[table["value"].notna()]
        found.append(
            Level(
                text=text,
                at=at,
                configurations=int(table["config_id"].nunique()),
                mean=_over_seeds(used, frame),
                lost=int(len(table) - len(used)),
            )
        )
    return Response(factor, tuple(found))


def heat_map(frame: StudyFrame, first: Factor, second: Factor) -> HeatMap:
    """Return the means of every pair of values of two factors."""
    rows, columns = _levels(frame, first), _levels(frame, second)
    cells = []
    for _, _, table in rows:
        line = []
        for _, _, other in columns:
            both = table[table.index.isin(other.index) & table["value"].notna()]
            line.append(_over_seeds(both, frame))
        cells.append(tuple(line))
    texts = tuple(tuple(text for text, _, _ in each) for each in (rows, columns))
    return HeatMap(first, second, texts[0], texts[1], tuple(cells))


def _over_seeds(used: pd.DataFrame, frame: StudyFrame) -> Interval:
    if not len(used):
        return Interval(0)
    by_seed = used.groupby("seed")["value"].mean()
    return mean_interval([float(value) for value in by_seed], bounds=frame.bounds)


def _levels(frame: StudyFrame, factor: Factor) -> list[tuple[str, float, pd.DataFrame]]:
    """Return values of a factor, or ranges of them, each with the lines that have it."""
    import numpy as np

    table, column = frame.table, frame.table[factor.name]
    found: list[tuple[str, float, pd.DataFrame]] = []
    if factor.kind == "category":
        for place, level in enumerate(factor.levels):
            found.append((str(level), float(place), table[column == level]))
        if column.isna().any():
            found.append((MISSING, float(len(found)), table[column.isna()]))
        return found
    if len(factor.levels) <= MOST_LEVELS:
        return [(show(level), float(level), table[column == level]) for level in factor.levels]
    ends = np.quantile(column.dropna(), np.linspace(0, 1, BINS + 1))
    for low, high in itertools.pairwise(ends):
        last = high == ends[-1]
        within = (column >= low) & ((column <= high) if last else (column < high))
        if not within.any():
            continue
        middle = float(np.sqrt(low * high)) if factor.log else float((low + high) / 2)
        found.append((f"{show(low)} to {show(high)}", middle, table[within]))
    return found


def show(value: Any) -> str:
    """Return a value of a setting in few characters."""
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
