"""The figure of accuracy against parameters and multiply-adds, with its Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.plots import COLOURS, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.cost_report import Axis, CostView, Point

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_TITLES = {"params": "parameters", "macs": "multiply-adds for one image"}
_OTHERS, _DARK = "#999999", "#333333"
_UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"), (1.0, ""))


def scatter(shown: CostView, path: Path, *, ylabel: str) -> None:
    """Write the figure of `scatter_figure` as PNG and SVG."""
    save(scatter_figure(shown, ylabel=ylabel), path)


def scatter_figure(shown: CostView, *, ylabel: str) -> Figure:
    """Draw a panel for each cost: a point for each genotype, a colour and a marker for each label.

    Points of the front have a ring and are joined by a line of steps: what lies on it, or below
    and to the right of it, is no more accurate and no cheaper. Points over a limit are hollow, the
    limit is a dashed line.

    Args:
        shown: At least one point.
        ylabel: What the accuracies are; they are drawn as percent.
    """
    labels = list(dict.fromkeys(point.label for point in shown.points))
    figure = new_figure(10.5, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    axes: tuple[Axis, ...] = ("params", "macs")
    for panel, axis in zip(panels, axes, strict=True):
        _panel(panel, shown, axis, labels)
    panels[0].set_ylabel(ylabel)
    handles: dict[str, Any] = {}
    for panel in panels:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = list(handles)
    columns = 1 if max(map(len, names)) > 40 else min(3, len(names))
    figure.legend(
        [*handles.values()], names, frameon=False, loc="outside lower center", ncols=columns
    )
    return figure


def _panel(panel: Any, shown: CostView, axis: Axis, labels: Sequence[str]) -> None:
    limit = getattr(shown.limits, f"max_{axis}", None)
    values = [getattr(point, axis) for point in shown.points]
    scale, unit = next((each for each in _UNITS if max(values) >= each[0]), _UNITS[-1])
    front = shown.front(axis)
    panel.step(
        [getattr(point, axis) / scale for point in front],
        [100 * point.mean for point in front],
        where="post",
        color=_DARK,
        linewidth=1.2,
        marker="o",
        markersize=13,
        markerfacecolor="none",
        zorder=1,
        label="Pareto front",
    )
    for index, label in enumerate(labels):
        points = [point for point in shown.points if point.label == label]
        points.sort(key=lambda point: bool(point.over))  # the legend shows the first
        few = index < len(COLOURS)
        _points(
            panel,
            points,
            axis,
            scale,
            colour=COLOURS[index] if few else _OTHERS,
            marker=MARKERS[index] if few else ".",
            name=label if few else ("others" if index == len(COLOURS) else None),
        )
    if limit is not None:
        panel.axvline(limit / scale, color=_DARK, linestyle="--", linewidth=1, label="limit")
    if any(point.over for point in shown.points):
        panel.scatter([], [], s=46, c="white", edgecolors=_DARK, label="over a limit")
    if len({point.mean for point in shown.points}) == 1:
        middle = 100 * shown.points[0].mean
        panel.set_ylim(middle - 1, middle + 1)
    panel.set_xlabel(f"{_TITLES[axis]}{', ' + unit if unit else ''}")
    panel.margins(0.1)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#e5e5e5", linewidth=0.6)
    panel.set_axisbelow(True)


def _points(
    panel: Any,
    points: Sequence[Point],
    axis: Axis,
    scale: float,
    *,
    colour: str,
    marker: str,
    name: str | None,
) -> None:
    panel.scatter(
        [getattr(point, axis) / scale for point in points],
        [100 * point.mean for point in points],
        s=46,
        c=["white" if point.over else colour for point in points],
        edgecolors=colour,
        linewidths=1.3,
        marker=marker,
        label=name,
        zorder=2,
    )
