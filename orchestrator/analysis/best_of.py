"""Expected best of k runs: what a "best of 4" is worth, from all runs that there were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def expected_best(
    values: Sequence[float], by: Sequence[float] | None = None, *, maximize: bool = True
) -> list[float]:
    r"""Return the expected value of the best of k = 1 ... n runs.

    With values in rising order x_(1) ... x_(n), the mean over all subsets of k of their largest is
        sum_i x_(i) C(i - 1, k - 1) / C(n, k),
    which is unbiased for the best of k new runs, for each k <= n. Drawing with replacement, as is
    often done, is biased downwards.

    Args:
        values: One finite number a run.
        by: What the best is chosen by, one number a run, as validation accuracy where `values` are
            test accuracies. None chooses by the values themselves. Runs that are equal in it are
            equally likely to be chosen.
        maximize: Whether more of what is chosen by is better.

    Raises:
        ValueError: `by` has another length, or there is no value.
    """
    import numpy as np

    array = np.asarray(values, dtype=float)
    keys = array if by is None else np.asarray(by, dtype=float)
    if len(array) == 0 or keys.shape != array.shape:
        raise ValueError(
            f"values and by must have one number a run, got {len(array)} and {len(keys)}."
        )
    keys = keys if maximize else -keys
    order = np.argsort(keys, kind="stable")
    ranked, keys = array[order], keys[order]
    starts = np.flatnonzero(np.r_[True, np.diff(keys) != 0])
    sizes = np.diff(np.r_[starts, len(keys)])
    tied = np.repeat(np.add.reduceat(ranked, starts) / sizes, sizes)
    return [float(_weights(len(array), k) @ tied) for k in range(1, len(array) + 1)]


def _weights(n: int, k: int) -> NDArray[np.float64]:
    """Return C(i - 1, k - 1) / C(n, k) for i = 1 ... n, in logarithms so that large n go too."""
    import numpy as np
    from scipy.special import gammaln

    i = np.arange(1, n + 1, dtype=float)
    found = np.zeros(n)
    at = i[i >= k]
    log_of = gammaln(at) - gammaln(k) - gammaln(at - k + 1)
    log_all = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    found[k - 1 :] = np.exp(log_of - log_all)
    return found / found.sum()
