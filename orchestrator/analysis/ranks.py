"""How often each method would be first, second, ... if the study were repeated with new seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.statistics import MIN_SEEDS

DRAWS = 4000


@dataclass(frozen=True)
class Ranks:
    """Ranks of the mean over seeds, 1 being the best.

    Attributes:
        names: The methods.
        n: Seeds that were drawn from, of each.
        paired: Whether seeds were drawn for all methods together.
        shares: `shares[i][r]`: share of draws in which method i has rank r + 1; equal means share
            their ranks.
    """

    names: tuple[str, ...]
    n: tuple[int, ...]
    paired: bool
    shares: tuple[tuple[float, ...], ...]

    def mean_rank(self, index: int) -> float:
        """Return the mean rank of a method."""
        return sum((rank + 1) * share for rank, share in enumerate(self.shares[index]))


def rank_distribution(
    groups: Mapping[str, Mapping[int, float]],
    *,
    maximize: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
) -> Ranks | None:
    """Return the ranks of bootstrap means; None for fewer than two methods, or too few seeds.

    Seeds are drawn with replacement: the same ones for all methods where they have `MIN_SEEDS` in
    common, else for each on its own.

    Args:
        groups: Value by seed, of each method.
        maximize: Whether more is better.
        draws: Bootstrap draws.
        seed: Of the draws.
    """
    import numpy as np

    if len(groups) < 2 or min(map(len, groups.values())) < MIN_SEEDS:
        return None
    rng = np.random.default_rng(seed)
    shared = sorted(set.intersection(*(set(values) for values in groups.values())))
    paired = len(shared) >= MIN_SEEDS
    means = np.empty((len(groups), draws))
    picks = rng.integers(len(shared), size=(draws, len(shared))) if paired else None
    counts = []
    for place, values in enumerate(groups.values()):
        array = np.array([values[each] for each in (shared if paired else values)])
        counts.append(len(array))
        drawn = rng.integers(len(array), size=(draws, len(array))) if picks is None else picks
        means[place] = array[drawn].mean(axis=1)
    means = np.round(-means if maximize else means, 12)  # sums in another order are equal
    # Rank 1 to k, ties sharing: below + ... of equal ones each takes an equal share.
    below = (means[:, None, :] > means[None, :, :]).sum(axis=1)
    equal = (means[:, None, :] == means[None, :, :]).sum(axis=1)
    shares = np.zeros((len(groups), len(groups)))
    for rank in range(len(groups)):
        shares[:, rank] = (((below <= rank) & (rank < below + equal)) / equal).mean(axis=1)
    return Ranks(
        tuple(groups), tuple(counts), paired, tuple(tuple(map(float, line)) for line in shares)
    )
