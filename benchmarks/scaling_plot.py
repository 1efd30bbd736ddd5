"""The picture of scaling curves: a column for what they are over, time above memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.plots import COLOURS

_LABELS = {
    "channels": "channels",
    "cells": "cells",
    "batch": "images of a batch",
    "image": "side of an image, pixels",
    "seeds": "seeds of a block",
    "ops": "operations of an edge",
    "edges": "edges of a cell",
}
_MEMORY = (("peak_bytes", "peak of a step", "o"), ("saved_bytes", "saved by a pass", "s"))


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, title: str) -> None:
    """Draw curves, all axes logarithmic: a slope of one is in proportion.

    Args:
        curves: Rows of `benchmarks.scaling.measure` by what they are over.
        path: PNG to write.
        title: What was measured, and on what.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(5.0, 0.6 + 2.15 * len(curves))
    figure = Figure(figsize=(width, 4.8), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(curves), sharey="row", sharex="col", squeeze=False)
    for column, (over, rows) in enumerate(curves.items()):
        values = [row["value"] for row in rows]
        time, memory = axes[0][column], axes[1][column]
        for key, style in (("step_median_s", ":"), ("step_s", "-")):
            seconds = [row[key] for row in rows]
            marker = "o" if style == "-" else ""
            label = "least" if style == "-" else "median"
            time.plot(
                values, seconds, style, marker=marker, color=COLOURS[0], label=label, markersize=4
            )
        for (key, label, marker), colour in zip(_MEMORY, COLOURS[1:], strict=False):
            sizes = [row[key] / 1e6 for row in rows]
            memory.plot(values, sizes, marker=marker, color=colour, label=label, markersize=4)
        for each in (time, memory):
            each.set_xscale("log")
            each.set_yscale("log")
            each.set_xticks(values, [str(value) for value in values])
            each.minorticks_off()
            each.spines[["top", "right"]].set_visible(False)
            each.grid(color="#e5e5e5", linewidth=0.6)
        memory.set_xlabel(_LABELS[over])
    _numbers(axes[:, 0])
    axes[0][0].set_ylabel("seconds of a step")
    axes[1][0].set_ylabel("MB")
    axes[0][-1].legend(frameon=False, fontsize="small")
    axes[1][-1].legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path)


def _numbers(left: Iterable[Any]) -> None:
    """Write plain numbers at 1, 2 and 5 of each power of ten of shared vertical axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    for each in left:
        each.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        each.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
