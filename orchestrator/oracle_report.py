"""What a study's oracle says of its searches: a table, a plot of regret by epoch, plain JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import plots
from orchestrator.document import Block, Grid, Heading, Paragraph, Picture
from orchestrator.ledger import Row, with_selections
from orchestrator.results import by_label
from orchestrator.statistics import Summary, show_share, summarize

if TYPE_CHECKING:
    from orchestrator.oracle import StudyOracle, Truth

COLUMNS = (
    "method",
    "seeds",
    "true test accuracy %, mean [95 %]",
    "regret, points, mean [95 %]",
    "rank, median",
    "rank, best and worst",
)


@dataclass(frozen=True)
class Line:
    """One line: what the finished searches of a configuration found, by the table.

    Attributes:
        label: As in the table of results.
        asked: Finished searches.
        found: By seed, what the table says of the search's genotype; without those it lacks.
        regrets: By seed, the regret after each epoch; only searches whose every epoch has one.
        test_accuracy, test_regret: Mean over seeds and its interval, shares.
    """

    label: str
    asked: int
    found: dict[int, Truth]
    regrets: dict[int, list[float]]
    test_accuracy: Summary
    test_regret: Summary

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the line, in the order of `COLUMNS`."""
        n = len(self.found)
        ranks = sorted(truth.rank for truth in self.found.values())
        return (
            self.label,
            str(n) if n == self.asked else f"{n} of {self.asked}",
            show_share(self.test_accuracy),
            show_share(self.test_regret),
            f"{statistics.median(ranks):,.0f}" if ranks else "–",
            f"{ranks[0]:,} and {ranks[-1]:,}" if ranks else "–",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of every seed beside their means and intervals."""
        return {
            "label": self.label,
            "asked": self.asked,
            "seeds": {str(seed): asdict(truth) for seed, truth in self.found.items()},
            "test_accuracy": asdict(self.test_accuracy),
            "test_regret": asdict(self.test_regret),
            "test_regret_by_epoch": {str(seed): list(v) for seed, v in self.regrets.items()},
        }


@dataclass(frozen=True)
class OracleView:
    """What a report has of its study's oracle.

    Attributes:
        title: Name of the oracle and what of it is looked up; empty where there is none.
        reason: Why there are no lines, in one line; empty where nothing is wrong.
        lines: One for each label that has finished searches.
        datasets: What these searched on.
        simulated: Whether the searches are simulated, in the same table.
    """

    title: str = ""
    reason: str = ""
    lines: tuple[Line, ...] = ()
    datasets: tuple[str, ...] = ()
    simulated: bool = False

    def to_json(self) -> dict[str, Any] | None:
        """Return it as plain JSON; None where the study has no oracle."""
        if not self.title and not self.reason:
            return None
        rows = [line.to_json() for line in self.lines]
        head = {"oracle": self.title or None, "reason": self.reason or None}
        return {**head, "simulated": self.simulated, "rows": rows}


def view(rows: Sequence[Row], oracle: StudyOracle | None, reason: str) -> OracleView:
    """Return what the oracle says of the finished searches among `rows`."""
    if oracle is None:
        return OracleView(reason=reason)
    searches = with_selections([row for row in rows if row.stage == "search"])
    searched = {row.config_id for row in rows}
    lines = []
    for label, group in by_label(searches).items():
        finished = [row for row in group if row.status == "finished"]
        if finished:
            # What a rule chose later has the curve of its search, which has a line of its own.
            own = finished[0].config_id in searched
            lines.append(_line(label, finished, oracle, by_epoch=own))
    datasets = tuple(dict.fromkeys(row.dataset for row in searches))
    simulated = any(row.simulated for row in searches)
    return OracleView(oracle.title, lines=tuple(lines), datasets=datasets, simulated=simulated)


def blocks(shown: OracleView, folder: Path) -> list[Block]:
    """Return the section of a report, with its plot in `folder`; nothing without an oracle."""
    if shown.reason:
        return [Heading("True accuracy"), Paragraph(_sentence(shown.reason))]
    if not shown.lines:
        return []
    sizes = sorted({truth.size for line in shown.lines for truth in line.found.values()})
    said = " or ".join(f"{size:,} " for size in sizes)
    lacking = sum(line.asked - len(line.found) for line in shown.lines)
    found: list[Block] = [
        Heading("True accuracy"),
        Grid(COLUMNS, [line.cells() for line in shown.lines], COLUMNS[2:]),
        Paragraph(
            f"Of the genotypes that the {_searches(shown)} found, by the table {shown.title}, "
            f"whose authors trained every architecture; {_seen(shown)}. Regret is the best test "
            f"accuracy of the table's {said}architectures less that of the genotype; ranks are "
            "among them, 1 being the best."
            + (f" The table does not have {lacking} of the genotypes." if lacking else "")
        ),
    ]
    series = {line.label: list(line.regrets.values()) for line in shown.lines if line.regrets}
    if series:
        few = dict(list(series.items())[: plots.MOST_LABELS])
        path = folder / "oracle_regret.png"
        what = "simulated regret" if shown.simulated else "regret"
        plots.curves(few, path, ylabel=f"{what} in true test accuracy, points", legend="best")
        text = "Regret of the genotype after each epoch: mean over seeds, 95 % interval shaded."
        if len(series) > len(few):
            text += f" The first {len(few)} lines of the table."
        found.append(Picture(path, text))
    return found


def _line(label: str, rows: Sequence[Row], oracle: StudyOracle, *, by_epoch: bool) -> Line:
    truths = {row.seed: truth for row in rows if (truth := oracle.of_row(row)) is not None}
    curves = {row.seed: oracle.by_epoch(row) for row in rows if by_epoch}
    regrets = {
        row.seed: [truth.test_regret for truth in curves[row.seed].values()]
        for row in rows
        if by_epoch and row.curve and len(curves[row.seed]) == len(row.curve)
    }
    return Line(
        label=label,
        asked=len(rows),
        found=truths,
        regrets=regrets,
        test_accuracy=summarize([truth.test_accuracy for truth in truths.values()]),
        test_regret=summarize([truth.test_regret for truth in truths.values()]),
    )


def _searches(shown: OracleView) -> str:
    if shown.simulated:
        return "simulated searches"  # on no images
    return f"searches on {', '.join(shown.datasets)}"


def _seen(shown: OracleView) -> str:
    if shown.simulated:
        return "the searches have seen its validation accuracies alone"
    return "no search has seen it"


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]
