"""What a study's searches say about themselves: decided or not, collapsed or not, how curved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.ledger import Row
from orchestrator.statistics import Summary, summarize

PROBES = {
    "hessian_eigenvalue": "largest eigenvalue of the alpha Hessian",
    "discretization_gap": "discretization gap, share",
    "skip_share": "share of skip connections",
}
"""Curves of a search that are drawn besides its accuracy, and how an axis calls them."""

COLUMNS = (
    "method",
    "searches",
    "skip share, mean [95 %]",
    "collapsed",
    "undecided",
    "top-1 margin",
    "logit range",
    "alpha Hessian eigenvalue, mean [95 %]",
)


@dataclass(frozen=True)
class Diagnosis:
    """One line: the finished searches of a configuration, after their last epoch.

    Attributes:
        label: As in the table of results.
        n: Finished searches.
        skip_share: Share of skip connections in the genotype.
        collapsed: Searches whose normal cell has degenerated.
        undecided: Searches whose top-1 margin is below the spread of the op weights over seeds;
            None for fewer than two seeds, or without stored op weights.
        margin: Mean top-1 margin of the op weights.
        logit_range: Mean of the largest difference between two logits of an edge.
        eigenvalue: Largest eigenvalue of the alpha Hessian at the last epoch, where measured.
    """

    label: str
    n: int
    skip_share: Summary
    collapsed: int
    undecided: int | None
    margin: float | None
    logit_range: float | None
    eigenvalue: Summary

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the line, in the order of `COLUMNS`."""
        return (
            self.label,
            str(self.n),
            _show(self.skip_share),
            f"{self.collapsed} of {self.n}",
            "–" if self.undecided is None else f"{self.undecided} of {self.n}",
            "–" if self.margin is None else f"{self.margin:.3f}",
            "–" if self.logit_range is None else f"{self.logit_range:.2f}",
            _show(self.eigenvalue),
        )


def diagnose(groups: Mapping[str, Sequence[Row]]) -> list[Diagnosis]:
    """Return one line for each label that has finished searches.

    Args:
        groups: Search rows by label.
    """
    found = []
    for label, group in groups.items():
        rows = [row for row in group if row.status == "finished" and row.curve]
        if not rows:
            continue
        last = [row.curve[-1] for row in rows]
        chosen = [row.curve[(row.genotype_epoch or len(row.curve)) - 1] for row in rows]
        margins = _numbers(last, "top1_margin")
        ranges = _numbers(last, "alpha_range")
        found.append(
            Diagnosis(
                label=label,
                n=len(rows),
                skip_share=summarize(_numbers(chosen, "skip_share")),
                collapsed=sum(entry.get("collapsed") == 1 for entry in chosen),
                undecided=_undecided(last),
                margin=sum(margins) / len(margins) if margins else None,
                logit_range=sum(ranges) / len(ranges) if ranges else None,
                eigenvalue=summarize(_numbers(last, "hessian_eigenvalue"), bounds=None),
            )
        )
    return found


def spread(seeds: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation over seeds of an op weight, mean over all op weights.

    Args:
        seeds: The op weights of each seed, flat, in the same order; two seeds or more.
    """
    deviations = []
    for values in zip(*seeds, strict=True):
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        deviations.append(math.sqrt(variance))
    return math.fsum(deviations) / len(deviations)


def probed(
    groups: Mapping[str, Sequence[Row]], name: str
) -> tuple[list[int], dict[str, list[list[float]]]]:
    """Return the epochs at which every finished search has a value, and the values by label.

    A search that was stopped early is left out: its last measurement is at an epoch of its own.

    Returns:
        Epochs in order, and for each label one list of values per search, in the same order.
    """
    curves: dict[str, list[dict[int, float]]] = {}
    for label, group in groups.items():
        for row in group:
            points = {
                int(entry["epoch"]): float(entry[name])
                for entry in row.curve
                if isinstance(entry.get(name), int | float) and "epoch" in entry
            }
            if row.status == "finished" and points and not row.curve[-1].get("stopped_early"):
                curves.setdefault(label, []).append(points)
    every = [set(points) for seeds in curves.values() for points in seeds]
    epochs = sorted(set.intersection(*every)) if every else []
    values = {
        label: [[points[epoch] for epoch in epochs] for points in seeds]
        for label, seeds in curves.items()
    }
    return epochs, values


def _undecided(last: Sequence[Mapping[str, object]]) -> int | None:
    flat = []
    for entry in last:
        op_weights = entry.get("op_weights")
        if not isinstance(op_weights, Mapping):
            return None
        flat.append([value for rows in op_weights.values() for value in _leaves(rows)])
    if len(flat) < 2:
        return None
    margins = _numbers(last, "top1_margin")
    if not margins:
        return None  # no alphas were trained
    between = spread(flat)
    return sum(margin < between for margin in margins)


def _leaves(node: object) -> list[float]:
    if isinstance(node, list):
        return [value for inner in node for value in _leaves(inner)]
    return [float(node)] if isinstance(node, int | float) else []


def _numbers(entries: Sequence[Mapping[str, object]], name: str) -> list[float]:
    values = (entry.get(name) for entry in entries)
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _show(summary: Summary) -> str:
    if summary.mean is None:
        return "–"
    if summary.low is None or summary.high is None:
        return f"{summary.mean:.3f}"
    return f"{summary.mean:.3f} [{summary.low:.3f}, {summary.high:.3f}]"
