"""Accuracy against cost: the Pareto fronts of a study, and which genotypes are over its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import costs, pareto_plot
from orchestrator.document import Block, Grid, Heading, Paragraph, Picture
from orchestrator.results import by_label, row_label, show_count
from orchestrator.statistics import Summary, show_share, summarize

if TYPE_CHECKING:
    from orchestrator.experiment import Limits
    from orchestrator.ledger import Row

COLUMNS = ("method", "genotype", "n", "accuracy %, mean [95 %]", "params", "macs", "front of")
OVER_COLUMNS = ("method", "seed", "genotype", "params", "macs", "over")
Axis = Literal["params", "macs"]
AXES: tuple[Axis, ...] = ("params", "macs")


@dataclass(frozen=True)
class Point:
    """A genotype with its accuracy and its cost.

    Attributes:
        label: As in the table of results; several methods that found it are joined by " + ".
        genotype_hash: Its hash.
        seeds: Seeds that the accuracy is of: of its retrainings, or of the search.
        accuracy: Mean over them and its interval, shares.
        params, macs: Of its evaluation network.
        over: Limits that it is over.
        fronts: Costs on whose front it is: no other point has as much accuracy for as little, with
            one of the two better.
    """

    label: str
    genotype_hash: str
    seeds: tuple[int, ...]
    accuracy: Summary
    params: int
    macs: int
    over: tuple[str, ...] = ()
    fronts: tuple[Axis, ...] = ()

    @property
    def mean(self) -> float:
        """Mean accuracy, a share."""
        return self.accuracy.mean or 0.0


@dataclass(frozen=True)
class CostView:
    """What a report has of costs.

    Attributes:
        accuracy: Of what the points' accuracies are: "test" of retrainings, or "val" of supernets
            in a study that has retrained nothing.
        points: Every genotype that has accuracy and cost.
        over: Finished searches whose genotype is over a limit, with those limits; "unknown" where
            the genotype has no such network.
        limits: The study's limits, or None.
        network: Words for the evaluation network, or several; empty where nothing is counted.
    """

    accuracy: Literal["test", "val"]
    points: tuple[Point, ...]
    over: tuple[tuple[Row, tuple[str, ...]], ...] = ()
    limits: Limits | None = None
    network: str = ""

    def front(self, axis: Axis) -> list[Point]:
        """Return the points of a front, the cheapest first."""
        found = [point for point in self.points if axis in point.fronts]
        return sorted(found, key=lambda point: (getattr(point, axis), -point.mean))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {
            "accuracy": self.accuracy,
            "network": self.network or None,
            "limits": None if self.limits is None else self.limits.model_dump(),
            "points": [asdict(point) for point in self.points],
            "over_the_limits": [
                {
                    "key": row.key,
                    "label": row_label(row),
                    "seed": row.seed,
                    "genotype_hash": row.genotype_hash,
                    "params": (row.evaluation or {}).get("params"),
                    "macs": (row.evaluation or {}).get("macs"),
                    "over": over,
                }
                for row, over in self.over
            ],
        }


def view(rows: Sequence[Row], limits: Limits | None) -> CostView:
    """Return accuracies and costs of what a study's rows hold.

    Args:
        rows: Rows of both stages; of the retrainings only those that count.
        limits: The study's.
    """
    searches = costs.found(rows)
    sizes = [row.evaluation for row in searches if row.evaluation is not None]
    tested = _tested(rows)
    return CostView(
        accuracy="test" if tested else "val",
        points=_with_fronts(_judged(tested or _searched(searches), limits)),
        over=tuple(
            (row, over)
            for row in searches
            if limits is not None and (over := _over(row.evaluation, limits))
        ),
        limits=limits,
        network=" or ".join(dict.fromkeys(costs.describe(size) for size in sizes)),
    )


def dominates(one: Point, other: Point, axis: Axis) -> bool:
    """Return whether `one` is as accurate and as cheap as `other`, and better in one of the two."""
    mine, others = (-one.mean, getattr(one, axis)), (-other.mean, getattr(other, axis))
    return mine != others and mine[0] <= others[0] and mine[1] <= others[1]


def blocks(shown: CostView, folder: Path) -> list[Block]:
    """Return the sections of a report, with their plot in `folder`; nothing without costs."""
    return [*_limit_blocks(shown), *_pareto_blocks(shown, folder)]


def _pareto_blocks(shown: CostView, folder: Path) -> list[Block]:
    if not shown.points:
        return []
    path = folder / "pareto.png"
    said = (
        "test accuracy, mean over retrainings"
        if shown.accuracy == "test"
        else "val accuracy of the supernet"
    )
    pareto_plot.scatter(shown, path, ylabel=f"{said}, %")
    on_front = {id(point): point for axis in AXES for point in shown.front(axis)}.values()
    lines = sorted(on_front, key=lambda point: (point.params, point.macs, -point.mean))
    text = (
        "On a front: no other genotype is at least as accurate and as cheap, and better in one of "
        "the two. "
    )
    if shown.accuracy == "val":
        text += (
            "Nothing has been retrained: the accuracy is that of the supernet on the validation "
            "split, which says little of the genotype's own network. "
        )
    if shown.network:
        text += f"Costs are those of {shown.network}, auxiliary head excluded."
    return [
        Heading("Accuracy and cost"),
        Picture(path, "Accuracy against parameters and multiply-adds; the line joins the front."),
        Grid(COLUMNS, [_cells(point) for point in lines], COLUMNS[2:6]),
        Paragraph(text.strip()),
    ]


def _cells(point: Point) -> tuple[str, ...]:
    n = point.accuracy.n
    return (
        point.label,
        point.genotype_hash,
        str(n),
        show_share(point.accuracy) if n > 1 else f"{100 * point.mean:.2f}",
        show_count(point.params),
        show_count(point.macs),
        " and ".join(point.fronts),
    )


def _limit_blocks(shown: CostView) -> list[Block]:
    if shown.limits is None:
        return []
    words = {"params": "parameters", "macs": "multiply-adds"}
    most = [
        f"{getattr(shown.limits, f'max_{axis}'):,.0f} {words[axis]}"
        for axis in AXES
        if getattr(shown.limits, f"max_{axis}") is not None
    ]
    text = f"At most {' and '.join(most)}" + (f" in {shown.network}." if shown.network else ".")
    if not shown.over:
        return [Heading("Limits"), Paragraph(f"{text} No genotype found is over them.")]
    lines = [
        (
            row_label(row),
            str(row.seed),
            row.genotype_hash or "–",
            show_count((row.evaluation or {}).get("params")),
            show_count((row.evaluation or {}).get("macs")),
            ", ".join(over),
        )
        for row, over in shown.over
    ]
    return [
        Heading("Limits"),
        Paragraph(
            f"{text} Over them, and so not retrained; the next best that keeps them takes the "
            "place:"
        ),
        Grid(OVER_COLUMNS, lines, OVER_COLUMNS[3:5]),
    ]


def _over(cost: dict[str, Any] | None, limits: Limits) -> tuple[str, ...]:
    return ("unknown",) if cost is None else limits.over(cost)


def _tested(rows: Sequence[Row]) -> list[Point]:
    """Return one point for each retrained genotype."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.stage == "retrain" and row.status == "finished" and row.genotype_hash is not None:
            groups.setdefault(row.genotype_hash, []).append(row)
    found = []
    for genotype_hash, group in groups.items():
        tests = {
            row.seed: value for row in group if (value := row.value("test_accuracy")) is not None
        }
        params, macs = (group[-1].value(axis) for axis in AXES)
        if tests and params is not None and macs is not None:
            label = " + ".join(dict.fromkeys(row_label(row) for row in group))
            accuracy = summarize(list(tests.values()))
            found.append(
                Point(label, genotype_hash, tuple(tests), accuracy, int(params), int(macs))
            )
    return found


def _searched(searches: Sequence[Row]) -> list[Point]:
    """Return one point for each search."""
    return [
        Point(
            label,
            row.genotype_hash or "",
            (row.seed,),
            summarize([value]),
            row.evaluation["params"],
            row.evaluation["macs"],
        )
        for label, group in by_label(searches).items()
        for row in group
        if row.evaluation is not None and (value := row.value("val_accuracy")) is not None
    ]


def _judged(points: Sequence[Point], limits: Limits | None) -> list[Point]:
    if limits is None:
        return list(points)
    return [Point(**{**vars(point), "over": limits.over(vars(point))}) for point in points]


def _with_fronts(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(
        Point(
            **{
                **vars(point),
                "fronts": tuple(
                    axis
                    for axis in AXES
                    if not any(dominates(other, point, axis) for other in points)
                ),
            }
        )
        for point in points
    )
