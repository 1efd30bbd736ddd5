"""Accuracy against hours: what each configuration cost, with what came to nothing counted too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import plots
from orchestrator.document import Block, Grid, Heading, Paragraph, Picture
from orchestrator.results import Result, by_label
from orchestrator.statistics import Summary, show_share, show_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.ledger import Row

Unit = Literal["gpu_hours", "cpu_hours"]
_WORDS: dict[Unit, str] = {"gpu_hours": "GPU", "cpu_hours": "CPU core"}


@dataclass(frozen=True)
class Hours:
    """What a configuration cost, in hours of a GPU or of a CPU core.

    Attributes:
        label: As in the table of results.
        finished, wasted: Of its rows that finished, and of those that did not.
        retrained: Of the retrainings of genotypes that it found, whole where several share one.
        accuracy: Of the table of results.
        test: Whether that is a test accuracy.
    """

    label: str
    finished: float
    wasted: float
    retrained: float
    accuracy: Summary
    test: bool

    @property
    def total(self) -> float:
        """All of it."""
        return self.finished + self.wasted + self.retrained


def unit_of(rows: Sequence[Row]) -> Unit:
    """Return what hours are of: GPUs where any row had one."""
    used = any((row.cost.get("gpu_hours") or 0) > 0 for row in rows)
    return "gpu_hours" if used else "cpu_hours"


def hours(rows: Sequence[Row], unit: Unit) -> float:
    """Return the hours of rows."""
    return sum(float(row.cost.get(unit) or 0.0) for row in rows)


def tabulate(rows: Sequence[Row], results: Sequence[Result]) -> list[Hours]:
    """Return what each line of the table of results cost, in its order."""
    unit = unit_of(rows)
    searching = any(row.stage == "search" for row in rows)
    stage = "search" if searching else "retrain"
    groups = by_label([row for row in rows if row.stage == stage])
    retrains = [row for row in rows if row.stage == "retrain"] if searching else []
    found = []
    for result in results:
        group = groups.get(result.label)
        if group is None:
            continue  # what a rule chose later cost no search of its own
        own = {row.genotype_hash for row in group if row.genotype_hash}
        test = result.test.n > 0
        found.append(
            Hours(
                label=result.label,
                finished=hours([row for row in group if row.status == "finished"], unit),
                wasted=hours([row for row in group if row.status != "finished"], unit),
                retrained=hours([row for row in retrains if row.genotype_hash in own], unit),
                accuracy=result.test if test else result.accuracy,
                test=test,
            )
        )
    return found


def blocks(rows: Sequence[Row], results: Sequence[Result], folder: Path) -> list[Block]:
    """Return the section of a report; nothing where no hours are known.

    Args:
        rows: Rows of the ledger.
        results: Lines of the table of results.
        folder: The report's folder.
    """
    lines = [line for line in tabulate(rows, results) if line.total > 0]
    if not lines:
        return []
    word = _WORDS[unit_of(rows)]
    heads = ("configuration", "finished", "not finished", "retraining", "in all", "accuracy %")
    grid = Grid(
        heads,
        [
            (
                line.label,
                *(
                    show_time(3600 * value)
                    for value in (line.finished, line.wasted, line.retrained, line.total)
                ),
                show_share(line.accuracy),
            )
            for line in lines
        ],
        heads[1:],
    )
    wasted = sum(line.wasted for line in lines)
    simulated = any(row.simulated for row in rows)
    share = 100 * wasted / sum(line.total for line in lines)
    text = (
        f"{'Simulated hours' if simulated else 'Hours'} of a {word}. Not finished: what stopped, "
        f"diverged, failed or ran out of memory, {share:.1f} % of all. The retraining of a "
        "genotype that several configurations found counts with each. Accuracy is that of "
        "retrainings on the test split, and where there are none of the validation split."
    )
    found: list[Block] = [Heading("Accuracy and hours")]
    if len([line for line in lines if line.accuracy.mean is not None]) > 1:
        path = folder / "hours.png"
        plots.save(_figure(lines, word), path)
        found.append(
            Picture(
                path,
                f"Accuracy against {word} hours in all, 95 % interval where there are seeds "
                "enough; hollow: val accuracy, nothing retrained.",
            )
        )
    return [*found, grid, Paragraph(text)]


def _figure(lines: Sequence[Hours], word: str) -> Figure:
    figure = plots.new_figure(8.0, 4.2)
    axes: Any = figure.add_subplot()
    for place, line in enumerate(lines):
        if line.accuracy.mean is None:
            continue
        known = place < plots.MOST_LABELS
        colour = plots.COLOURS[place] if known else "#999999"
        x, mean = line.total, 100 * line.accuracy.mean
        if line.accuracy.low is not None and line.accuracy.high is not None:
            ends = [100 * line.accuracy.low, 100 * line.accuracy.high]
            axes.plot([x, x], ends, color=colour, linewidth=1.4, alpha=0.6, zorder=1)
        axes.plot(
            [x], [mean], "o", color=colour, markersize=7 if known else 4,
            markerfacecolor=colour if line.test else "none", markeredgewidth=1.5,
            label=line.label if known else ("others" if place == plots.MOST_LABELS else None),
        )  # fmt: skip
    totals = [line.total for line in lines]
    if max(totals) > 30 * min(totals):
        axes.set_xscale("log")
    axes.set_xlabel(f"{word} hours, what did not finish and retraining included")
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, loc="outside right upper")
    return figure
