"""Figures of a study. Drawn with matplotlib's file back-end: no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.statistics import MIN_SEEDS, summarize

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#555555")
"""Okabe and Ito's palette, told apart also by readers who do not see red and green."""

MOST_LABELS = len(COLOURS)


def curves(
    series: Mapping[str, Sequence[Sequence[float]]],
    path: Path,
    *,
    ylabel: str,
    stopped: Sequence[Sequence[float]] = (),
) -> None:
    """Draw the mean over seeds with its interval, one colour per label, against the epoch.

    Args:
        series: For each label one curve per finished seed: shares, from epoch 1 on.
        path: PNG to write.
        ylabel: What the values are.
        stopped: Curves of rows that did not finish; thin and grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.0, 4.6), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in stopped:
        axes.plot(_epochs(curve), _percent(curve), color="#aaaaaa", linewidth=0.8, zorder=1)
    for (label, seeds), colour in zip(series.items(), COLOURS, strict=False):
        _draw_label(axes, f"{label}  (n = {len(seeds)})", seeds, colour)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if series:
        axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def mean_and_band(
    seeds: Sequence[Sequence[float]],
) -> tuple[list[float], list[float] | None, list[float] | None]:
    """Return mean, low and high over seeds of every epoch that all of them reached, in percent.

    Returns:
        The mean, and the ends of its interval, or None for fewer than `MIN_SEEDS` seeds.
    """
    summaries = [summarize(values) for values in zip(*seeds, strict=False)]
    means = [100 * summary.mean for summary in summaries if summary.mean is not None]
    if len(seeds) < MIN_SEEDS:
        return means, None, None
    low = [100 * summary.low for summary in summaries if summary.low is not None]
    high = [100 * summary.high for summary in summaries if summary.high is not None]
    return means, low, high


def _draw_label(axes: Any, label: str, seeds: Sequence[Sequence[float]], colour: str) -> None:
    for curve in seeds:
        axes.plot(_epochs(curve), _percent(curve), color=colour, linewidth=0.6, alpha=0.45)
    means, low, high = mean_and_band(seeds)
    # A marker at one epoch, where a line would have no length.
    marker = "o" if len(means) == 1 else None
    axes.plot(_epochs(means), means, color=colour, linewidth=2, label=label, marker=marker)
    if low is not None and high is not None:
        axes.fill_between(_epochs(means), low, high, color=colour, alpha=0.15, linewidth=0)


def _epochs(curve: Sequence[float]) -> range:
    return range(1, len(curve) + 1)


def _percent(curve: Sequence[float]) -> list[float]:
    return [100 * value for value in curve]
