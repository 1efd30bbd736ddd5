"""Figures of a sensitivity study: curves, heat maps, partial dependence, importance, pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.analysis.comparison_plots import legend_above, new_figure, plain_axes
from orchestrator.analysis.frame import Factor
from orchestrator.analysis.responses import HeatMap, Response
from orchestrator.analysis.sensitivity import Sensitivity
from orchestrator.analysis.surrogate import Dependence
from orchestrator.analysis.tables import unit_of
from orchestrator.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 3
_MOST_TEXT = 9
_WIDE_TEXT = 24  # letters side by side below a panel
_PALE = "#56B4E9"
_ESTIMATORS = {
    "fanova": "fANOVA",
    "ped_anova": "PED-ANOVA",
    "permutation": "permutation",
    "sobol_first": "Sobol, first order",
    "sobol_total": "Sobol, total",
}


def responses_figure(shown: Sensitivity) -> Figure:
    """Draw the mean over seeds, with its interval, against each factor; others averaged over."""
    figure, panels = _panels(len(shown.responses))
    for place, (axes, each) in enumerate(zip(panels, shown.responses, strict=False)):
        _draw_response(axes, each, shown, COLOURS[0])
        if place % _COLUMNS == 0:
            axes.set_ylabel(unit_of(shown.metric, shown.share))
    return figure


def dependence_figure(shown: Sensitivity) -> Figure:
    """Draw a forest's prediction along each factor: one thin line a configuration, and the mean."""
    figure, panels = _panels(len(shown.dependences))
    for place, (axes, each) in enumerate(zip(panels, shown.dependences, strict=False)):
        _draw_dependence(axes, each, 100.0 if shown.share else 1.0)
        if place % _COLUMNS == 0:
            axes.set_ylabel(f"predicted {unit_of(shown.metric, shown.share)}")
    return figure


def heat_map_figure(each: HeatMap, shown: Sensitivity) -> Figure:
    """Draw the means of two factors, and beside them half the length of their intervals."""
    import numpy as np

    scale = 100.0 if shown.share else 1.0
    means = [[cell.estimate for cell in line] for line in each.cells]
    halves = [[cell.half_width for cell in line] for line in each.cells]
    figure = new_figure(10.5, 1.9 + 0.42 * max(len(each.rows), 4))
    sides = figure.subplots(1, 2)
    titles = (f"mean of {unit_of(shown.metric, shown.share)}", "half of its 95 % interval")
    for axes, grid, title, colours in zip(
        sides, (means, halves), titles, ("viridis", "magma"), strict=True
    ):
        values = np.array([[np.nan if v is None else scale * v for v in line] for line in grid])
        _draw_grid(figure, axes, values.reshape(len(each.rows), len(each.columns)), colours)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(each.columns)), each.columns, fontsize=8)
        if max(map(len, each.columns), default=0) > 6:
            axes.tick_params(axis="x", rotation=40)
        axes.set_yticks(range(len(each.rows)), each.rows, fontsize=8)
        axes.set_xlabel(each.second.short)
        axes.set_ylabel(each.first.short)
    return figure


def importance_figure(shown: Sensitivity) -> Figure:
    """Draw every estimator's importance of each factor, with its interval."""
    names = list(dict.fromkeys(each.factor for each in shown.importances))
    estimators = list(dict.fromkeys(each.estimator for each in shown.importances))
    figure = new_figure(8.0, 1.4 + 0.16 * max(len(names), 1) * max(len(estimators), 3))
    axes = figure.add_subplot()
    if not names:
        return _empty(figure, axes, "too few configurations for importances")
    worth = {each.factor: each.value for each in shown.importances
             if each.estimator == "permutation"}  # fmt: skip
    names.sort(key=lambda name: -worth.get(name, 0.0))
    step = 0.8 / len(estimators)
    for row, estimator in enumerate(estimators):
        mine = {each.factor: each for each in shown.importances if each.estimator == estimator}
        for place, name in enumerate(names):
            if name not in mine:
                continue
            at, found = place - 0.4 + step * (row + 0.5), mine[name]
            label = _ESTIMATORS[estimator] if place == 0 else None
            axes.barh(at, found.value, 0.9 * step, color=COLOURS[row], label=label)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [at, at], color="#222222", linewidth=1.2)
    axes.axvline(0.0, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("importance: share of the variance (PED-ANOVA: share of all settings)")
    plain_axes(axes, "x")
    legend_above(figure, [_ESTIMATORS[each] for each in estimators])
    return figure


def interactions_figure(shown: Sensitivity) -> Figure:
    """Draw what each pair of factors does together beyond each alone."""
    import numpy as np

    names = list(dict.fromkeys(name for pair in shown.interactions for name in pair))
    figure = new_figure(2.6 + 0.75 * max(len(names), 3), 1.8 + 0.55 * max(len(names), 3))
    axes = figure.add_subplot()
    if not names:
        return _empty(figure, axes, "no pair to look at")
    values = np.full((len(names), len(names)), np.nan)
    for (one, other), share in shown.interactions.items():
        values[names.index(one), names.index(other)] = 100 * share
        values[names.index(other), names.index(one)] = 100 * share
    _draw_grid(figure, axes, values, "viridis", digits=2)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("variance of a forest by pairs, %", fontsize=10)
    return figure


def sensitivity_figures(shown: Sensitivity) -> dict[str, Figure]:
    """Return all figures of a sensitivity study, by the name of their file."""
    figures: dict[str, Figure] = {}
    if shown.responses:
        figures["responses"] = responses_figure(shown)
    for each in shown.maps:
        name = f"map_{each.first.short}_{each.second.short}".replace(".", "_")
        figures[name] = heat_map_figure(each, shown)
    if shown.dependences:
        figures["dependence"] = dependence_figure(shown)
    if shown.importances:
        figures["importance"] = importance_figure(shown)
    if shown.interactions:
        figures["interactions"] = interactions_figure(shown)
    return figures


def _panels(count: int) -> tuple[Figure, list[Any]]:
    columns = max(1, min(_COLUMNS, count))
    rows = max(1, -(-count // columns))
    figure = new_figure(1.2 + 3.4 * columns, 3.2 * rows)
    # One scale for all: what matters little is then seen to.
    panels = [
        axes for line in figure.subplots(rows, columns, squeeze=False, sharey=True) for axes in line
    ]
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def _draw_response(axes: Any, each: Response, shown: Sensitivity, colour: str) -> None:
    scale = 100.0 if shown.share else 1.0
    known = [level for level in each.levels if level.mean.estimate is not None]
    at = [level.at for level in known]
    means = [scale * (level.mean.estimate or 0.0) for level in known]
    number = each.factor.kind == "number"
    axes.plot(at, means, "o-" if number else "o", color=colour, linewidth=1.6, markersize=5)
    for level in known:
        if level.mean.low is not None and level.mean.high is not None:
            ends = [scale * level.mean.low, scale * level.mean.high]
            axes.plot([level.at, level.at], ends, color=colour, linewidth=1.2)
    lost = {level.at: f"{level.lost} without" for level in each.levels if level.lost}
    upright = sum(map(len, lost.values())) > _WIDE_TEXT
    for at_level, text in lost.items():  # what has no value is said where it would stand
        axes.annotate(
            text, (at_level, 0.02), xycoords=("data", "axes fraction"), ha="center", va="bottom",
            fontsize=7, color="#B00020", rotation=90 if upright else 0,
        )  # fmt: skip
    _axis(axes, each.factor, [level.text for level in each.levels])


def _draw_dependence(axes: Any, each: Dependence, scale: float) -> None:
    number = each.factor.kind == "number"
    at = list(each.at) if number else list(range(len(each.at)))
    for curve in each.curves:
        axes.plot(at, scale * curve, color=_PALE, linewidth=0.6, alpha=0.4)
    means = [scale * value for value in each.mean]
    axes.plot(at, means, color="#222222", linewidth=2.2, marker=None if number else "o")
    _axis(axes, each.factor, [str(value) for value in each.at])


def _axis(axes: Any, factor: Factor, texts: list[str]) -> None:
    from matplotlib.ticker import (
        FixedLocator,
        FormatStrFormatter,
        LogLocator,
        NullFormatter,
        NullLocator,
    )

    axes.set_xlabel(factor.short)
    plain_axes(axes)
    if factor.kind == "category":
        axes.set_xticks(range(len(texts)), texts, fontsize=8)
        axes.set_xlim(-0.5, max(len(texts), 1) - 0.5)
        if max(map(len, texts), default=0) * len(texts) > _WIDE_TEXT:
            axes.tick_params(axis="x", rotation=40)
        return
    if factor.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # or a decade may have no number
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if 1 < len(factor.levels) <= _MOST_TEXT - 2:
        axes.xaxis.set_major_locator(FixedLocator(list(factor.levels)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(list(factor.levels), [f"{level:g}" for level in factor.levels], fontsize=8)


def _draw_grid(figure: Figure, axes: Any, values: Any, colours: str, digits: int = 3) -> None:
    import numpy as np
    from matplotlib import colormaps

    known = values[np.isfinite(values)]
    painted = colormaps[colours].with_extremes(bad="#dddddd")
    image = axes.imshow(values, cmap=painted, aspect="auto")
    if len(known):
        figure.colorbar(image, ax=axes, shrink=0.9)
    middle = (known.min() + known.max()) / 2 if len(known) else 0.0
    if max(values.shape) > _MOST_TEXT:
        return
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = f"{value:.{digits}g}" if np.isfinite(value) else "–"
        dark = np.isfinite(value) and value < middle
        axes.text(
            column, row, text, ha="center", va="center", fontsize=7,
            color="#ffffff" if dark else "#000000",
        )  # fmt: skip


def _empty(figure: Figure, axes: Any, text: str) -> Figure:
    axes.text(0.5, 0.5, text, ha="center", va="center")
    axes.set_axis_off()
    return figure
