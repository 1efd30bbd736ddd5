"""Figures of a comparison: means, expected best of k, ranks, accuracy against hours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.method_comparison import MethodComparison
from orchestrator.analysis.tables import unit_of
from orchestrator.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X<>hp"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that no window will ever show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any, grid: str = "y") -> None:
    """Take away what says nothing, and draw faint lines along one direction."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def legend_above(figure: Figure, names: Sequence[str]) -> None:
    """Put a legend above all axes, in as many columns as fit, and make room for its lines."""
    width, height = figure.get_size_inches()
    if not any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        return
    columns = max(1, min(len(names), int(width * 11 / (max(map(len, names), default=1) + 6))))
    lines = -(-len(names) // columns)
    figure.set_size_inches(width, height + 0.2 * (lines - 1))
    figure.legend(frameon=False, loc="outside upper center", ncols=columns)


def means_figure(shown: MethodComparison) -> Figure:
    """Draw each line's seeds, mean and interval."""
    figure = new_figure(8.0, 1.1 + 0.42 * len(shown.groups))
    axes = figure.add_subplot()
    scale = 100.0 if shown.share else 1.0
    for place, group in enumerate(shown.groups):
        colour = _colour(place)
        values = [scale * value for value in group.values.values()]
        axes.scatter(values, [place] * len(values), s=14, color=colour, alpha=0.5, linewidths=0)
        mean = group.mean
        if mean.low is not None and mean.high is not None:
            axes.plot([scale * mean.low, scale * mean.high], [place, place], color=colour, lw=2)
        if mean.estimate is not None:
            axes.plot(scale * mean.estimate, place, "D", color=colour, markersize=6)
    names = [f"{group.name}  (n = {len(group.values)})" for group in shown.groups]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(unit_of(shown.metric, shown.share))
    plain_axes(axes, "x")
    return figure


def best_of_figure(shown: MethodComparison) -> Figure:
    """Draw the expected best of k against k, and against the hours of so many runs."""
    figure = new_figure(10.0, 4.4)
    by_number, by_hours = figure.subplots(1, 2, sharey=True)
    scale = 100.0 if shown.share else 1.0
    for place, group in enumerate(shown.groups):
        if not group.best_of:
            continue
        marker, colour = _MARKERS[place % len(_MARKERS)], _colour(place)
        values = [scale * value for value in group.best_of]
        ks = range(1, len(values) + 1)
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.6}
        by_number.plot(ks, values, label=group.name, **style)
        by_hours.plot([k * (group.hours_per_seed or 0.0) for k in ks], values, **style)
    by_number.set_xlabel("k, runs that the best is taken of")
    by_number.set_ylabel(f"expected best, {unit_of(shown.metric, shown.share)}")
    by_hours.set_xlabel(f"{shown.unit} hours of k runs, wasted ones included")
    for axes in (by_number, by_hours):
        plain_axes(axes)
    by_number.xaxis.get_major_locator().set_params(integer=True)
    legend_above(figure, [group.name for group in shown.groups])
    return figure


def cost_figure(shown: MethodComparison) -> Figure:
    """Draw the mean and its interval against the hours that one value took."""
    figure = new_figure(8.0, 4.4)
    axes = figure.add_subplot()
    scale = 100.0 if shown.share else 1.0
    for place, group in enumerate(shown.groups):
        mean = group.mean
        if mean.estimate is None or group.hours_per_seed is None:
            continue
        bars = None
        if mean.low is not None and mean.high is not None:
            bars = [[scale * (mean.estimate - mean.low)], [scale * (mean.high - mean.estimate)]]
        axes.errorbar(
            group.hours_per_seed,
            scale * mean.estimate,
            yerr=bars,
            fmt=_MARKERS[place % len(_MARKERS)],
            color=_colour(place),
            capsize=3,
            label=group.name,
        )
    axes.set_xlabel(f"{shown.unit} hours for one finished seed, wasted ones included")
    axes.set_ylabel(unit_of(shown.metric, shown.share))
    plain_axes(axes)
    legend_above(figure, [group.name for group in shown.groups])
    return figure


def ranks_figure(shown: MethodComparison) -> Figure:
    """Draw how often each line would have each rank; an empty figure says why there is none."""
    figure = new_figure(8.0, 1.3 + 0.42 * len(shown.groups))
    axes = figure.add_subplot()
    if shown.ranks is None:
        axes.text(0.5, 0.5, "too few seeds, or methods, for ranks", ha="center", va="center")
        axes.set_axis_off()
        return figure
    from matplotlib import colormaps

    colours = colormaps["viridis"]
    count = len(shown.ranks.names)
    for place, shares in enumerate(shown.ranks.shares):
        left = 0.0
        for rank, share in enumerate(shares):
            colour = colours(rank / max(count - 1, 1))
            label = f"rank {rank + 1}" if place == 0 else None
            axes.barh(place, 100 * share, left=100 * left, color=colour, label=label)
            left += share
    axes.set_yticks(range(count), shown.ranks.names)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of bootstrap draws of the seeds, %")
    plain_axes(axes, "x")
    legend_above(figure, [f"rank {rank + 1}" for rank in range(count)])
    return figure


def comparison_figures(shown: MethodComparison) -> dict[str, Figure]:
    """Return all figures of a comparison, by the name of their file."""
    figures = {"means": means_figure(shown), "best_of_k": best_of_figure(shown)}
    figures["cost"] = cost_figure(shown)
    if shown.ranks is not None:
        figures["ranks"] = ranks_figure(shown)
    return figures


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
