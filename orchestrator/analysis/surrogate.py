"""A random forest of what configurations are worth: partial dependence, and pairs that interact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.frame import Factor, StudyFrame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TREES = 60
FOLDS = 5
FEWEST = 8
"""Fewest configurations that a forest is grown of."""

_MOST_CURVES = 60
_POINTS = 24


@dataclass(frozen=True)
class Points:
    """Configurations as numbers: one line each, the mean over their seeds.

    Attributes:
        factors: What the columns are.
        x: `(configurations, factors)`: numbers, their logarithm to base 10 where `log`, places
            among the levels of a category; a value below all others where the setting is missing.
        y: `(configurations,)`: mean over seeds, turned so that more is better.
        seeds: Values of each configuration by seed, turned likewise.
        ids: Their config_id.
    """

    factors: tuple[Factor, ...]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    seeds: tuple[tuple[float, ...], ...]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Dependence:
    """Partial dependence on one factor: what the forest says while it moves and others stay.

    Attributes:
        factor: What moves.
        at: Its values.
        mean: Mean over configurations, in the unit of the metric.
        curves: `(configurations, values)`, one each.
    """

    factor: Factor
    at: tuple[Any, ...]
    mean: tuple[float, ...]
    curves: NDArray[np.float64]


def points_of(frame: StudyFrame, factors: Sequence[Factor] | None = None) -> Points:
    """Return the configurations of a frame that have a value, as numbers."""
    import numpy as np

    chosen = tuple(frame.factors if factors is None else factors)
    sign = 1.0 if frame.maximize else -1.0
    groups = list(frame.used.groupby("config_id", sort=False))
    x = np.array(
        [[encode(each, group[each.name].iloc[0]) for each in chosen] for _, group in groups]
    ).reshape(len(groups), len(chosen))
    seeds = tuple(tuple(sign * float(v) for v in group["value"]) for _, group in groups)
    y = np.array([np.mean(values) for values in seeds])
    return Points(chosen, x, y, seeds, tuple(str(name) for name, _ in groups))


def encode(factor: Factor, value: Any) -> float:
    """Return a value of a factor as a number, a missing one below all others."""
    import numpy as np
    import pandas as pd

    missing = pd.isna(value)
    if factor.kind == "category":
        return -1.0 if missing else float(factor.levels.index(value))
    levels = np.log10(factor.levels) if factor.log else np.asarray(factor.levels, dtype=float)
    if missing:
        return float(levels[0] - 0.25 * max(levels[-1] - levels[0], 1e-9))
    return float(np.log10(value)) if factor.log else float(value)


def grow(x: NDArray[np.float64], y: NDArray[np.float64], seed: int, trees: int = TREES) -> Any:
    """Return a forest fitted to points."""
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(n_estimators=trees, random_state=seed, n_jobs=1).fit(x, y)


def folds(ids: Sequence[str], count: int, seed: int) -> list[NDArray[np.int64]]:
    """Return places of points in folds, all with the same id in the same fold."""
    import numpy as np

    names = sorted(set(ids))
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[name]: place % count for place, name in enumerate(order)}
    numbers = np.array([fold_of[each] for each in ids])
    return [np.flatnonzero(numbers == fold) for fold in range(count)]


def predicted(points: Points, seed: int = 0) -> float | None:
    """Return the share of the variance of configurations that forests predict for unseen ones.

    Below 0 they predict worse than the mean does. None for fewer than `FEWEST` configurations, or
    where all are worth the same.
    """
    import numpy as np

    if len(points.y) < FEWEST or np.ptp(points.y) == 0 or not points.factors:
        return None
    error = 0.0
    for fold in folds(points.ids, FOLDS, seed):
        rest = np.setdiff1d(np.arange(len(points.y)), fold)
        found = grow(points.x[rest], points.y[rest], seed).predict(points.x[fold])
        error += float(((points.y[fold] - found) ** 2).sum())
    return 1 - error / float(((points.y - points.y.mean()) ** 2).sum())


def dependence(frame: StudyFrame, points: Points, seed: int = 0) -> list[Dependence]:
    """Return the partial dependence on each factor; nothing for fewer than `FEWEST` points."""
    import numpy as np

    if len(points.y) < FEWEST:
        return []
    forest, sign = grow(points.x, points.y, seed), 1.0 if frame.maximize else -1.0
    rng = np.random.default_rng(seed)
    base = points.x[rng.permutation(len(points.x))[:_MOST_CURVES]]
    found = []
    for place, factor in enumerate(points.factors):
        at = _values(factor)
        lines = np.repeat(base[:, None, :], len(at), axis=1)
        lines[:, :, place] = [encode(factor, value) for value in at]
        curves = sign * forest.predict(lines.reshape(-1, base.shape[1])).reshape(lines.shape[:2])
        means = tuple(float(value) for value in curves.mean(axis=0))
        found.append(Dependence(factor, at, means, curves))
    return found


def interactions(points: Points, seed: int = 0) -> dict[tuple[str, str], float]:
    """Return the share of a forest's variance that is of each pair of factors together.

    That of f_ab - f_a - f_b, where f are partial dependences at the points: what moving both does
    beyond moving each (Friedman and Popescu, 2008, whose H divides by the variance of f_ab).
    """
    import numpy as np

    if len(points.y) < FEWEST or len(points.factors) < 2:
        return {}
    forest = grow(points.x, points.y, seed)
    rng = np.random.default_rng(seed)
    base = points.x[rng.permutation(len(points.x))[:_MOST_CURVES]]
    total = float(forest.predict(base).var())
    if total == 0:
        return {}

    def partial(*moved: int) -> NDArray[np.float64]:
        lines = np.repeat(base[None], len(base), axis=0)
        for place in moved:
            lines[:, :, place] = base[:, place][:, None]
        values = forest.predict(lines.reshape(-1, base.shape[1])).reshape(len(base), len(base))
        centred: NDArray[np.float64] = values.mean(axis=1) - values.mean()
        return centred

    alone = [partial(place) for place in range(len(points.factors))]
    found = {}
    for one in range(len(alone)):
        for other in range(one + 1, len(alone)):
            beyond = partial(one, other) - alone[one] - alone[other]
            names = (points.factors[one].short, points.factors[other].short)
            found[names] = float(beyond.var()) / total
    return found


def _values(factor: Factor) -> tuple[Any, ...]:
    import numpy as np

    if factor.kind == "category" or len(factor.levels) <= _POINTS:
        return factor.levels
    low, high = factor.levels[0], factor.levels[-1]
    spread = np.geomspace(low, high, _POINTS) if factor.log else np.linspace(low, high, _POINTS)
    return tuple(float(value) for value in spread)
