"""Whether one method is better than another: paired tests over seeds, and what they cannot tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.analysis.intervals import Interval
from orchestrator.statistics import MIN_SEEDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000
"""More seeds than these are not advised; the difference is taken to be too small to matter."""

_EXACT = 20_000
_RESAMPLES = 9_999
Test = Literal["permutation", "wilcoxon", "t"]
Verdict = Literal["higher", "lower", "cannot be told apart", "too few seeds", "equal"]
Values = Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """Two methods over seeds.

    Attributes:
        first, second: What is compared.
        n: Pairs, or the values of both.
        paired: Whether values of the same seed are compared.
        difference: Mean of first less second, with its t-interval (Welch's where not paired).
        effect: Standardised difference: of paired values the mean difference in its own standard
            deviations, else Hedges' g. None where it is not defined.
        superiority: Share of pairs in which the first one has the higher value, ties counting half.
        test: "permutation" (of signs where paired, else of values), "wilcoxon", "t" or "none".
        p: Of the two-sided test, or None where there are too few seeds for one.
        p_holm: The same after Holm's correction for all comparisons made together.
        verdict: "higher" or "lower": the first against the second, where both the corrected test
            and the interval say so. "too few seeds": the test could not have said so, whatever the
            values. "equal": all differences are zero.
        more_seeds: Further seeds with which a difference as large as the one seen would be told
            with 80 % probability; 0 where it is told, None where that is not known or above
            `MOST_SEEDS`.
    """

    first: str
    second: str
    n: tuple[int, int]
    paired: bool
    difference: Interval
    effect: float | None
    superiority: float | None
    test: Literal["permutation", "wilcoxon", "t", "none"]
    p: float | None
    p_holm: float | None = None
    verdict: Verdict = "cannot be told apart"
    more_seeds: int | None = None


def compare(
    groups: Mapping[str, Values],
    *,
    test: Test = "permutation",
    alpha: float = ALPHA,
    against: str | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every two groups, or every one with `against`, and correct for their number.

    Values are paired where two groups have `MIN_SEEDS` seeds in common or more; values of other
    seeds are left out of such a pair.

    Args:
        groups: Value by seed, of each method.
        test: "permutation", of Welch's t where values are not paired; "wilcoxon", of paired values
            alone; or "t", Student's or Welch's, which takes differences to be normal and so can
            tell with fewer seeds.
        alpha: Probability of telling apart any two that are equal.
        against: A group that all others are compared with.
        seed: Of random permutations, drawn where there are too many for all of them.

    Raises:
        ValueError: `against` is no group, or a value is not finite.
    """
    if against is not None and against not in groups:
        raise ValueError(f"against must be one of {', '.join(groups)}, got {against!r}.")
    for name, values in groups.items():
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"values of {name} must be finite, got {list(values.values())!r}.")
    if against is None:
        pairs = list(itertools.combinations(groups, 2))
    else:
        pairs = [(name, against) for name in groups if name != against]
    found = [
        _compare(one, other, groups[one], groups[other], test=test, seed=seed)
        for one, other in pairs
    ]
    corrected = holm([each.p for each in found])
    # Where a test was not made, nothing could have been told by chance either.
    made = sum(each.p is not None for each in found)
    return [
        _judged(replace(each, p_holm=p), _sample(each, groups), made, alpha)
        for each, p in zip(found, corrected, strict=True)
    ]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's method; those that are None are not counted."""
    # Written out: statsmodels' own collects garbage at each call, which takes a tenth of a second.
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None for _ in ps]
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[place] = highest
    return corrected


def fewest_pairs(alpha: float = ALPHA, comparisons: int = 1) -> int:
    """Return the fewest pairs with which a test of signs or ranks can get below alpha.

    With n pairs the least two-sided p-value is 2 / 2^n; Holm's correction multiplies the least of
    several by their number.
    """
    return math.floor(1 + math.log2(comparisons / alpha)) + 1


def _compare(
    one: str, other: str, first: Values, second: Values, *, test: Test, seed: int
) -> Comparison:
    import numpy as np

    shared = sorted(set(first) & set(second))
    paired = len(shared) >= MIN_SEEDS
    if paired:
        a, b = (np.array([values[each] for each in shared]) for values in (first, second))
    else:
        a, b = (np.array(list(values.values()), dtype=float) for values in (first, second))
    enough = min(len(a), len(b)) >= MIN_SEEDS
    p, used = _test(a, b, paired, test, seed) if enough else (None, "none")
    return Comparison(
        first=one,
        second=other,
        n=(len(a), len(b)),
        paired=paired,
        difference=_difference(a, b, paired),
        effect=_effect(a, b, paired) if enough else None,
        superiority=_superiority(a, b, paired) if len(a) and len(b) else None,
        test=used,  # type: ignore[arg-type]
        p=p,
    )


def _sample(found: Comparison, groups: Mapping[str, Values]) -> tuple[Any, Any]:
    import numpy as np

    first, second = groups[found.first], groups[found.second]
    seeds = sorted(set(first) & set(second)) if found.paired else None
    return tuple(
        np.array([values[each] for each in (seeds or values)]) for values in (first, second)
    )  # type: ignore[return-value]


def _test(
    a: NDArray[np.float64], b: NDArray[np.float64], paired: bool, test: Test, seed: int
) -> tuple[float, str]:
    import numpy as np
    from scipy import stats

    if (paired and not np.any(a - b)) or (np.ptp(np.r_[a, b]) == 0):
        return 1.0, test if paired or test == "t" else "permutation"
    if paired and test == "wilcoxon":
        # "pratt" keeps seeds without a difference; exact where there are none and no ties.
        return float(stats.wilcoxon(a - b, zero_method="pratt").pvalue), "wilcoxon"
    if test == "t":
        found = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
        return float(found.pvalue), "t"
    rng = np.random.default_rng(seed)
    if paired:
        many = 2 ** len(a) > _EXACT
        found = stats.permutation_test(
            (a - b,),
            lambda d, axis: d.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=_RESAMPLES if many else np.inf,
            rng=rng,
        )
        return float(found.pvalue), "permutation"
    many = math.comb(len(a) + len(b), len(a)) > _EXACT
    found = stats.permutation_test(
        (a, b),
        _welch,
        permutation_type="independent",
        vectorized=True,
        n_resamples=_RESAMPLES if many else np.inf,
        rng=rng,
    )
    return float(found.pvalue), "permutation"


def _welch(a: Any, b: Any, axis: int) -> Any:
    """Return Welch's t: unlike the difference of means it keeps its level at unequal spreads."""
    import numpy as np

    difference = a.mean(axis=axis) - b.mean(axis=axis)
    error = a.var(axis=axis, ddof=1) / a.shape[axis] + b.var(axis=axis, ddof=1) / b.shape[axis]
    return difference / np.sqrt(np.maximum(error, np.finfo(float).tiny))


def _difference(a: NDArray[np.float64], b: NDArray[np.float64], paired: bool) -> Interval:
    import numpy as np
    from scipy import stats

    n = min(len(a), len(b))
    if n == 0:
        return Interval(0)
    mean = float(a.mean() - b.mean())
    if n < MIN_SEEDS:
        return Interval(n, mean)
    if paired:
        error, freedom = float((a - b).std(ddof=1)) / math.sqrt(n), float(n - 1)
    else:
        parts = np.array([each.var(ddof=1) / len(each) for each in (a, b)])
        error = math.sqrt(float(parts.sum()))
        below = float((parts**2 / (np.array([len(a), len(b)]) - 1)).sum())
        freedom = float(parts.sum()) ** 2 / below if below else float(len(a) + len(b) - 2)
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Interval(n, mean, mean - half, mean + half, "t")


def _effect(a: NDArray[np.float64], b: NDArray[np.float64], paired: bool) -> float | None:
    if paired:
        spread = float((a - b).std(ddof=1))
        return float((a - b).mean()) / spread if spread else None
    freedom = len(a) + len(b) - 2
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / freedom
    if not pooled:
        return None
    small = 1 - 3 / (4 * freedom - 1)  # Hedges' correction of Cohen's d
    return float(small * (a.mean() - b.mean()) / math.sqrt(pooled))


def _superiority(a: NDArray[np.float64], b: NDArray[np.float64], paired: bool) -> float:
    import numpy as np

    signs = np.sign(a - b) if paired else np.sign(a[:, None] - b[None, :])
    return float((1 + signs.mean()) / 2)


def _judged(
    found: Comparison, sample: tuple[Any, Any], comparisons: int, alpha: float
) -> Comparison:
    """Return a comparison with its verdict and how many more seeds it would take."""
    low, high = found.difference.low, found.difference.high
    if found.p is None or found.p_holm is None or low is None or high is None:
        return replace(found, verdict="too few seeds", more_seeds=None)
    if low == high == 0:
        return replace(found, verdict="equal", more_seeds=None)
    if found.p_holm < alpha and not low <= 0 <= high:
        return replace(found, verdict="higher" if low > 0 else "lower", more_seeds=0)
    able = _least_p(found) * comparisons < alpha
    needed = _seeds_needed(found, sample, alpha / comparisons)
    return replace(
        found,
        verdict="cannot be told apart" if able else "too few seeds",
        more_seeds=None if needed is None else max(needed - min(found.n), 1),
    )


def _least_p(found: Comparison) -> float:
    """Return the least p-value that a test of so many values can have."""
    if found.test == "t":
        return 0.0
    if found.paired:
        return float(2.0 ** (1 - found.n[0]))
    return min(1.0, 2 / math.comb(sum(found.n), found.n[0]))


def _seeds_needed(found: Comparison, sample: tuple[Any, Any], alpha: float) -> int | None:
    """Return with how many seeds the difference seen would be told apart with 80 % probability."""
    a, b = sample
    spread = (a - b).std(ddof=1) if found.paired else math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    size = abs(float(found.difference.estimate or 0.0))
    least = fewest_pairs(alpha) if found.paired else fewest_each(alpha)
    least = MIN_SEEDS if found.test == "t" else least
    if size == 0:
        return None
    if spread == 0:
        return least
    return _by_power(size / float(spread), found.paired, alpha, least)


def fewest_each(alpha: float = ALPHA) -> int:
    """Return the fewest values of each of two groups with which a permutation can get below alpha.

    With n each the least two-sided p-value is 2 / C(2 n, n).
    """
    n = 2
    while 2 / math.comb(2 * n, n) >= alpha:
        n += 1
    return n


def _by_power(effect: float, paired: bool, alpha: float, least: int) -> int | None:
    """Return the fewest pairs, or values of each, from `least` on with a power of `POWER`."""
    from scipy.stats import norm
    from statsmodels.stats.power import TTestIndPower, TTestPower

    power = TTestPower() if paired else TTestIndPower()

    def told(n: int) -> bool:
        settings: dict[str, Any] = {"nobs" if paired else "nobs1": n}
        # Where the effect is huge it is not a number, and certain.
        return not power.power(effect, alpha=alpha, **settings) < POWER

    # The normal approximation is a few too few; from there on one by one.
    z = float(norm.ppf(1 - alpha / 2) + norm.ppf(POWER))
    guess = (1 if paired else 2) * (z / effect) ** 2
    if guess > MOST_SEEDS:
        return None
    n = max(least, 2, math.floor(guess))
    while not told(n) and n <= MOST_SEEDS:
        n += 1
    return n if n <= MOST_SEEDS else None
