"""Figures of a study. Drawn with matplotlib's file back-end: no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.statistics import MIN_SEEDS, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#555555")
"""Okabe and Ito's palette, told apart also by readers who do not see red and green."""

MOST_LABELS = len(COLOURS)
_FEW_LABELS = 4


def curves(
    series: Mapping[str, Sequence[Sequence[float]]], path: Path, *, ylabel: str, **options: Any
) -> None:
    """Write the figure of `curve_figure` as PNG and SVG; see there for the options."""
    save(curve_figure(series, ylabel=ylabel, **options), path)


def curve_figure(
    series: Mapping[str, Sequence[Sequence[float]]],
    *,
    ylabel: str,
    stopped: Sequence[Sequence[float]] = (),
    epochs: Sequence[int] | None = None,
    percent: bool = True,
    bounds: tuple[float, float] | None = None,
    counted: bool = True,
    legend: str | None = None,
) -> Figure:
    """Draw the mean over seeds with its interval, one colour per label, against the epoch.

    Args:
        series: For each label one curve per finished seed.
        ylabel: What the values are.
        stopped: Curves of rows that did not finish; thin and grey.
        epochs: Of the values of every curve; None is from epoch 1 on.
        percent: Whether the values are shares, drawn as percent and within 0 to 100.
        bounds: Ends of what the values can be, beyond which no interval is drawn.
        counted: Whether labels say of how many seeds they are.
        legend: Where it stands; None is below curves that rise to 100 %, else where there is room.
    """
    from matplotlib.ticker import MaxNLocator

    # With many labels single curves would hide the means, and a legend within all of it.
    crowded = len(series) > _FEW_LABELS
    figure = new_figure(11.0 if crowded else 8.0, 4.6)
    axes = figure.add_subplot()
    scale = 100.0 if percent else 1.0
    ends = (0.0, 100.0) if percent else bounds
    for curve in stopped:
        values = [scale * value for value in curve]
        axes.plot(_epochs(curve, epochs), values, color="#aaaaaa", linewidth=0.8, zorder=1)
    for (label, seeds), colour in zip(series.items(), COLOURS, strict=False):
        scaled = [[scale * value for value in curve] for curve in seeds]
        text = f"{label}  (n = {len(seeds)})" if counted else label
        _draw_label(axes, text, scaled, colour, epochs, ends, alone=not crowded)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if crowded:
        figure.legend(frameon=False, loc="outside right upper")
    elif series:
        axes.legend(frameon=False, loc=legend or ("lower right" if percent else "best"))
    return figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches that no window belongs to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, for Markdown, and beside it as SVG, for pages.

    The SVG has text as text and no background, so that a page can show it in its own colours.

    Args:
        figure: The figure.
        path: The PNG to write; folders are made.
    """
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    # The salt makes the names inside an SVG the same each time.
    with rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        about = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(path.with_suffix(".svg"), metadata=about, transparent=True)


def mean_and_band(
    seeds: Sequence[Sequence[float]], bounds: tuple[float, float] | None
) -> tuple[list[float], list[float] | None, list[float] | None]:
    """Return mean, low and high over seeds of every epoch that all of them reached.

    Args:
        seeds: One curve each.
        bounds: Ends that the interval is cut at; None cuts nothing.

    Returns:
        The mean, and the ends of its interval, or None for fewer than `MIN_SEEDS` seeds.
    """
    summaries = [summarize(values, bounds=bounds) for values in zip(*seeds, strict=False)]
    means = [summary.mean for summary in summaries if summary.mean is not None]
    if len(seeds) < MIN_SEEDS:
        return means, None, None
    low = [summary.low for summary in summaries if summary.low is not None]
    high = [summary.high for summary in summaries if summary.high is not None]
    return means, low, high


def _draw_label(
    axes: Any,
    label: str,
    seeds: Sequence[Sequence[float]],
    colour: str,
    epochs: Sequence[int] | None,
    bounds: tuple[float, float] | None,
    *,
    alone: bool,
) -> None:
    for curve in seeds if alone else ():
        axes.plot(_epochs(curve, epochs), curve, color=colour, linewidth=0.6, alpha=0.45)
    means, low, high = mean_and_band(seeds, bounds)
    # A marker at one epoch, where a line would have no length.
    marker = "o" if len(means) == 1 else None
    at = _epochs(means, epochs)
    axes.plot(at, means, color=colour, linewidth=2, label=label, marker=marker)
    if low is not None and high is not None:
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def _epochs(curve: Sequence[float], epochs: Sequence[int] | None) -> Sequence[int]:
    return range(1, len(curve) + 1) if epochs is None else epochs[: len(curve)]
