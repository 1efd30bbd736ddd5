"""Expected best of k: against all subsets, and what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from orchestrator.analysis.best_of import expected_best

VALUES = [0.3, 0.9, 0.5, 0.5, 0.1, 0.7]


@pytest.mark.parametrize("maximize", [True, False])
def test_it_is_the_mean_over_all_subsets(maximize: bool) -> None:
    best = max if maximize else min
    for k, found in enumerate(expected_best(VALUES, maximize=maximize), start=1):
        subsets = [best(subset) for subset in itertools.combinations(VALUES, k)]
        assert found == pytest.approx(math.fsum(subsets) / len(subsets), abs=1e-12)


def test_the_best_may_be_chosen_by_something_else() -> None:
    # Chosen by validation, judged by test; the two equal ones are chosen equally often.
    val, test = [0.9, 0.8, 0.8, 0.1], [0.5, 0.7, 0.3, 0.9]
    for k, found in enumerate(expected_best(test, val), start=1):
        expected = []
        for subset in itertools.combinations(range(4), k):
            most = max(val[i] for i in subset)
            chosen = [test[i] for i in subset if val[i] == most]
            # A subset with one of two equal ones stands for both: their mean is what it is worth.
            tied = [test[i] for i in range(4) if val[i] == most]
            expected.append(sum(chosen) / len(chosen) if len(tied) == 1 else sum(tied) / len(tied))
        assert found == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_it_is_unbiased_for_new_runs() -> None:
    # The largest of k uniform numbers has the mean k / (k + 1).
    rng = np.random.default_rng(0)
    found = np.mean([expected_best(rng.uniform(size=6).tolist()) for _ in range(4000)], axis=0)
    assert found == pytest.approx([k / (k + 1) for k in range(1, 7)], abs=0.01)


def test_many_runs_are_no_problem() -> None:
    found = expected_best(np.arange(2000).tolist())
    assert found[0] == pytest.approx(999.5)
    assert found[-1] == pytest.approx(1999)
    assert found == sorted(found)


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="one number a run, got 2 and 1"):
        expected_best([0.1, 0.2], [0.3])
    with pytest.raises(ValueError, match="got 0 and 0"):
        expected_best([])
