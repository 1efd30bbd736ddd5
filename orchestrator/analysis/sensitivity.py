"""What a study's outcome depends on: curves, pairs, importance and the robust region, together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.analysis.frame import Factor, StudyFrame
from orchestrator.analysis.importance import (
    BOOTSTRAPS,
    Importance,
    doubts,
    importances,
    sobol_indices,
)
from orchestrator.analysis.responses import HeatMap, Response, heat_map, response
from orchestrator.analysis.robust import RobustRegion, robust_region
from orchestrator.analysis.surrogate import (
    Dependence,
    dependence,
    interactions,
    points_of,
    predicted,
)

MOST_PAIRS = 6
"""Most heat maps: those of the pairs of the factors that matter most by permutation."""


@dataclass(frozen=True)
class Sensitivity:
    """What `nas sensitivity` shows.

    Attributes:
        study, metric, maximize, share, simulated, design: As in `StudyFrame`.
        configurations: Configurations with a value.
        seeds: Fewest and most seeds of one of them.
        outcomes: Number of rows by outcome.
        responses: The one-factor curve of each factor.
        maps: Heat maps of pairs of factors.
        importances: Of every estimator and factor.
        predicted: Share of the variance that forests predict for unseen configurations, or None.
        dependences: Partial dependence on each factor, on a forest.
        interactions: Share of the forest's variance of each pair of factors together.
        robust: The robust region, or None for one seed each.
        said: Sentences on what can and cannot be read from it.
    """

    study: str
    metric: str
    maximize: bool
    share: bool
    simulated: bool
    design: str
    configurations: int
    seeds: tuple[int, int]
    outcomes: dict[str, int]
    responses: tuple[Response, ...]
    maps: tuple[HeatMap, ...]
    importances: tuple[Importance, ...]
    predicted: float | None
    dependences: tuple[Dependence, ...]
    interactions: dict[tuple[str, str], float]
    robust: RobustRegion | None
    said: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON; of partial dependences the means alone."""
        head = {key: getattr(self, key) for key in ("study", "metric", "maximize", "simulated")}
        return {
            **head,
            "design": self.design or None,
            "configurations": self.configurations,
            "seeds": list(self.seeds),
            "outcomes": self.outcomes,
            "responses": {
                each.factor.short: [asdict(level) for level in each.levels]
                for each in self.responses
            },
            "maps": [
                {
                    "rows": {each.first.short: list(each.rows)},
                    "columns": {each.second.short: list(each.columns)},
                    "cells": [[asdict(cell) for cell in line] for line in each.cells],
                }
                for each in self.maps
            ],
            "importances": [asdict(each) for each in self.importances],
            "predicted": self.predicted,
            "dependences": {
                each.factor.short: {"at": list(each.at), "mean": list(each.mean)}
                for each in self.dependences
            },
            "interactions": [
                {"pair": list(pair), "share": share} for pair, share in self.interactions.items()
            ],
            "robust": None if self.robust is None else asdict(self.robust),
            "said": list(self.said),
        }


def analyse(
    frame: StudyFrame,
    params: Sequence[str] | None = None,
    *,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> Sensitivity:
    """Return the sensitivity of a study's metric to what varies in it.

    Args:
        frame: The study; a running one has fewer configurations.
        params: Names of the settings to look at; None looks at all that vary.
        bootstraps: Draws for the intervals of importances.
        seed: Of forests and draws.

    Raises:
        StudyError: A name of `params` does not vary in the study.
    """
    chosen = frame.factors if params is None else tuple(frame.factor(name) for name in params)
    chosen = tuple(dict.fromkeys(chosen))
    points = points_of(frame, chosen)
    score = predicted(points, seed)
    found = importances(points, bootstraps=bootstraps, seed=seed)
    found += sobol_indices(frame, points, seed)
    per_configuration = [len(values) for values in points.seeds]
    seeds = (min(per_configuration, default=0), max(per_configuration, default=0))
    order = _most_important(chosen, found)
    pairs = list(itertools.combinations(order, 2))[:MOST_PAIRS]
    region = robust_region(frame, points)
    return Sensitivity(
        study=frame.study,
        metric=frame.metric,
        maximize=frame.maximize,
        share=frame.share,
        simulated=frame.simulated,
        design=frame.design,
        configurations=len(points.y),
        seeds=seeds,
        outcomes=frame.counts,
        responses=tuple(response(frame, factor) for factor in chosen),
        maps=tuple(heat_map(frame, *pair) for pair in pairs),
        importances=tuple(found),
        predicted=score,
        dependences=tuple(dependence(frame, points, seed) if len(chosen) else ()),
        interactions=interactions(points, seed),
        robust=region,
        said=(*_facts(frame, chosen, seeds, region), *doubts(points, found, score)),
    )


def _most_important(factors: Sequence[Factor], found: Sequence[Importance]) -> list[Factor]:
    worth = {each.factor: each.value for each in found if each.estimator == "permutation"}
    return sorted(factors, key=lambda factor: -worth.get(factor.short, 0.0))


def _facts(
    frame: StudyFrame,
    factors: Sequence[Factor],
    seeds: tuple[int, int],
    region: RobustRegion | None,
) -> list[str]:
    said = []
    if frame.simulated:
        said.append("SIMULATED: nothing was trained; an effect seen here is made up or chance.")
    lost = {key: n for key, n in frame.counts.items() if key not in ("finished", "collapsed")}
    if lost:
        listed = ", ".join(f"{n} {key}" for key, n in lost.items())
        said.append(f"Without a value, and in no mean: {listed} of {len(frame.table)} rows.")
    if seeds[1] == 1:
        said.append("One seed each: no interval, and no telling a setting from a lucky seed.")
    for factor in factors:
        if factor.aliases:
            others = " and ".join(factor.aliases)
            said.append(f"{factor.short} and {others} change together: their parts cannot be told.")
    if region is not None and region.inside == region.of and region.of > 1:
        said.append("All configurations are within one standard error of the best.")
    return said
