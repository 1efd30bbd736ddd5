"""How much each setting matters: several estimators side by side, each with its interval.

No single number says it. Functional ANOVA asks which settings explain all configurations, PED-ANOVA
which decide whether a configuration is among the best tenth, a permutation what a forest's
prediction of unseen configurations loses without a setting, its interactions included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.frame import StudyFrame
from orchestrator.analysis.intervals import percentiles
from orchestrator.analysis.surrogate import FEWEST, FOLDS, Points, folds, grow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BOOTSTRAPS = 12
ENOUGH = 10
"""Configurations for each factor below which a sample is called small."""

SAID = {
    "fanova": "share of the variance over all configurations that is of the setting alone",
    "ped_anova": "relative part in what tells the best tenth from the rest",
    "permutation": "share of the variance that is lost without it, interactions included",
    "sobol_first": "share of the variance that is of the setting alone (SALib)",
    "sobol_total": "share of the variance that it takes part in (SALib)",
}
_TREES = 30
_DRAWN = 128
_ALONG = 24
_SHUFFLES = 3


@dataclass(frozen=True)
class Importance:
    """What one estimator says of one factor.

    Attributes:
        estimator: One of `SAID`.
        factor: Short name of the factor.
        value: Its estimate; a share of the variance, or of all factors for PED-ANOVA.
        low, high: 95 % interval over bootstrap draws of configurations and their seeds; None
            without draws.
    """

    estimator: str
    factor: str
    value: float
    low: float | None = None
    high: float | None = None


def importances(points: Points, *, bootstraps: int = BOOTSTRAPS, seed: int = 0) -> list[Importance]:
    """Return the importance of every factor by three estimators.

    Args:
        points: Configurations; fewer than `FEWEST`, or all worth the same, give nothing.
        bootstraps: Draws of configurations and, of each, its seeds. 0 gives no intervals.
        seed: Of forests and draws.
    """
    import numpy as np

    if len(points.y) < FEWEST or np.ptp(points.y) == 0 or not points.factors:
        return []
    estimators: Mapping[str, Callable[[Points, int], NDArray[np.float64]]] = {
        "fanova": _fanova,
        "ped_anova": _ped_anova,
        "permutation": _permutation,
    }
    found = {name: estimate(points, seed) for name, estimate in estimators.items()}
    draws: dict[str, list[NDArray[np.float64]]] = {name: [] for name in estimators}
    rng = np.random.default_rng(seed)
    for number in range(bootstraps):
        drawn = _redrawn(points, rng)
        if np.ptp(drawn.y) == 0:
            continue
        for name, estimate in estimators.items():
            draws[name].append(estimate(drawn, seed + number + 1))
    lines = []
    for name, values in found.items():
        drawn_values = np.array(draws[name])
        for place, factor in enumerate(points.factors):
            ends: tuple[float | None, float | None] = (None, None)
            if len(drawn_values) > 1:
                ends = percentiles(drawn_values[:, place])
            lines.append(Importance(name, factor.short, float(values[place]), *ends))
    return lines


def sobol_indices(frame: StudyFrame, points: Points, seed: int = 0) -> list[Importance]:
    """Return Sobol indices where the study's design is made for them and every point has run.

    Of several blocks the indices of the first are returned.
    """
    import numpy as np

    if not frame.design_points:
        return []
    ids = frame.design_points[0]
    worth = dict(zip(points.ids, points.y, strict=True))
    names = [each.short for each in points.factors if each.name in frame.design_factors]
    if any(each not in worth for each in ids) or len(names) != len(frame.design_factors):
        return []
    from SALib.analyze import sobol

    values = np.array([worth[each] for each in ids])
    if np.ptp(values) == 0:
        return []
    count = len(names)
    problem = {"num_vars": count, "names": names, "bounds": [[0.0, 1.0]] * count}
    found = sobol.analyze(problem, values, calc_second_order=False, num_resamples=500, seed=seed)
    order = {name: place for place, name in enumerate(frame.design_factors)}
    by_path = {each.short: order[each.name] for each in points.factors if each.short in names}
    lines = []
    for name, key in (("sobol_first", "S1"), ("sobol_total", "ST")):
        for short in names:
            place = by_path[short]
            value, half = float(found[key][place]), float(found[f"{key}_conf"][place])
            lines.append(Importance(name, short, value, value - half, value + half))
    return lines


def doubts(points: Points, found: Sequence[Importance], score: float | None) -> list[str]:
    """Return sentences on what the importances cannot say: small samples, disagreement, noise."""
    count, wide = len(points.y), len(points.factors)
    if not wide:
        return ["Nothing varies: there is nothing to be sensitive to."]
    if not found:
        return [
            f"No importance: {count} configurations with a value, and {FEWEST} that differ are "
            "needed."
        ]
    said = []
    if count < ENOUGH * wide:
        said.append(
            f"Small sample: {count} configurations for {wide} settings. Below {ENOUGH * wide} the "
            "estimates below can be chance; read the curves with their intervals."
        )
    if score is not None and score <= 0:
        said.append(
            "Forests predict unseen configurations no better than their mean does: no setting is "
            "seen to matter, and importances are noise."
        )
    tops = {}
    for estimator in dict.fromkeys(each.estimator for each in found):
        mine = [each for each in found if each.estimator == estimator]
        tops[estimator] = max(mine, key=lambda each: each.value).factor
    if wide > 1 and len(set(tops.values())) > 1:
        listed = ", ".join(f"{factor} by {name}" for name, factor in tops.items())
        said.append(
            f"The estimators disagree on what matters most: {listed}. They ask different "
            "questions; none is the importance."
        )
    inert = [
        each.factor for each in found
        if each.estimator == "permutation" and each.low is not None and each.low <= 0
    ]  # fmt: skip
    if inert and (score is None or score > 0):
        said.append(f"Not told from no effect: {', '.join(inert)}.")
    return said


def _redrawn(points: Points, rng: np.random.Generator) -> Points:
    """Return configurations drawn with replacement, each with its seeds drawn likewise."""
    import numpy as np

    places = rng.integers(len(points.y), size=len(points.y))
    y = []
    for place in places:
        values = np.array(points.seeds[place])
        y.append(values[rng.integers(len(values), size=len(values))].mean())
    ids = tuple(points.ids[place] for place in places)
    return Points(points.factors, points.x[places], np.array(y), (), ids)


def _fanova(points: Points, seed: int) -> NDArray[np.float64]:
    """Return, by factor, the variance of a forest's mean along it over the forest's variance.

    Means are over the other settings drawn independently, so that it is the forest and not the
    sample that is taken apart. Optuna's own goes through all pairs of leaves, which takes seconds
    where this takes a tenth; the difference is the noise of `_DRAWN` draws.

    Source:
        Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing Hyperparameter
        Importance, ICML 2014.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    count, wide = points.x.shape
    forest = grow(points.x, points.y, seed, _TREES)
    drawn = np.column_stack(
        [points.x[rng.integers(count, size=_DRAWN), place] for place in range(wide)]
    )
    total = float(forest.predict(drawn).var())
    found = np.zeros(wide)
    for place in range(wide if total > 0 else 0):
        at = np.quantile(points.x[:, place], (np.arange(_ALONG) + 0.5) / _ALONG, method="nearest")
        lines = np.repeat(drawn[None], _ALONG, axis=0)
        lines[:, :, place] = at[:, None]
        means = forest.predict(lines.reshape(-1, wide)).reshape(_ALONG, _DRAWN).mean(axis=1)
        found[place] = means.var() / total
    return found


def _ped_anova(points: Points, seed: int) -> NDArray[np.float64]:
    """Return Optuna's PED-ANOVA of every factor, shares of 1.

    Source:
        Watanabe, Bansal and Hutter, PED-ANOVA: Efficiently Quantifying Hyperparameter Importance
        in Arbitrary Subspaces, IJCAI 2023.
    """
    import numpy as np
    import optuna

    del seed  # it draws nothing

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {}
    columns: list[int] = []
    for place, factor in enumerate(points.factors):
        column = points.x[:, place]
        if np.ptp(column) == 0:
            continue
        columns.append(place)
        if factor.kind == "category":
            texts = [str(int(value)) for value in sorted(set(column))]
            distributions[str(place)] = optuna.distributions.CategoricalDistribution(texts)
        else:
            ends = float(column.min()), float(column.max())
            distributions[str(place)] = optuna.distributions.FloatDistribution(*ends)
    found = np.zeros(len(points.factors))
    if not columns:
        return found
    study = optuna.create_study(direction="maximize")
    trials = []
    for line, value in zip(points.x, points.y, strict=True):
        params = {
            str(place): str(int(line[place]))
            if points.factors[place].kind == "category"
            else float(line[place])
            for place in columns
        }
        trials.append(
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
        )
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental features, and scarce samples: said by doubts
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), normalize=True
        )
    for name, share in shares.items():
        found[int(name)] = share
    return np.nan_to_num(found)


def _permutation(points: Points, seed: int) -> NDArray[np.float64]:
    """Return, by factor, half the mean squared change of unseen predictions over the variance.

    The loss of a forest's prediction of unseen configurations when a column is shuffled is twice
    the total Sobol index times the variance, where the forest is right.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    count, wide = points.x.shape
    losses = np.zeros(wide)
    for fold in folds(points.ids, FOLDS, seed):
        rest = np.setdiff1d(np.arange(count), fold)
        if len(rest) == 0 or len(fold) == 0:
            continue
        forest = grow(points.x[rest], points.y[rest], seed, _TREES)
        unseen = points.x[fold]
        variants = np.repeat(unseen[None], 1 + wide * _SHUFFLES, axis=0)
        for place in range(wide):
            for shuffle in range(_SHUFFLES):
                # From all points: of a small fold there would be little to shuffle.
                drawn = points.x[rng.integers(count, size=len(fold)), place]
                variants[1 + place * _SHUFFLES + shuffle, :, place] = drawn
        values = forest.predict(variants.reshape(-1, wide)).reshape(len(variants), len(fold))
        errors = ((values - points.y[fold]) ** 2).sum(axis=1)
        losses += (errors[1:].reshape(wide, _SHUFFLES) - errors[0]).mean(axis=1)
    return losses / (2 * count * points.y.var())
