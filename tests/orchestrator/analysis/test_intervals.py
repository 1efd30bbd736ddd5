"""Intervals: their coverage in a simulation, and what is too few or no interval at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.analysis.intervals import BCA_FROM, Interval, bca, mean_interval

DRAWS = 1000


def coverage(draw: Any, mean: float, draws: int = DRAWS, **settings: Any) -> float:
    """Return the share of draws whose interval holds the mean that they were drawn with."""
    hits = 0
    for number in range(draws):
        found = mean_interval(draw(np.random.default_rng([7, number])), seed=number, **settings)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= mean <= found.high
    return hits / draws


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_of_few_seeds_covers_what_it_says(n: int) -> None:
    # Binomial noise of 1,000 draws at 95 %: 0.7 points, so that 93 to 97 % is three of them.
    assert 0.93 <= coverage(lambda rng: rng.normal(1.0, 2.0, n), 1.0) <= 0.97


def test_the_interval_of_many_seeds_covers_what_it_says_for_skewed_values() -> None:
    found = coverage(lambda rng: rng.beta(8, 2, 60), 0.8)
    assert 0.93 <= found <= 0.97


def test_a_bootstrap_of_few_seeds_would_not() -> None:
    # Why it is not the default below `BCA_FROM`.
    assert coverage(lambda rng: rng.normal(1.0, 2.0, 5), 1.0, 200, method="bca") < 0.9


def test_the_method_follows_the_number_of_values() -> None:
    values = np.random.default_rng(0).normal(size=BCA_FROM).tolist()
    assert mean_interval(values).method == "bca"
    assert mean_interval(values[:-1]).method == "t"
    assert mean_interval(values, method="t").method == "t"
    assert mean_interval(values[:2]) == Interval(2, sum(values[:2]) / 2)
    assert mean_interval([]) == Interval(0)


def test_the_bootstrap_of_a_mean_is_near_the_t_interval_where_both_hold() -> None:
    values = np.random.default_rng(1).normal(size=400).tolist()
    by_t, by_bca = mean_interval(values, method="t"), mean_interval(values, method="bca")
    assert by_t.half_width is not None
    assert by_bca.low == pytest.approx(by_t.low, abs=0.1 * by_t.half_width)
    assert by_bca.high == pytest.approx(by_t.high, abs=0.1 * by_t.half_width)


def test_equal_values_have_an_interval_without_width() -> None:
    assert bca([0.5] * 60, lambda a, axis=-1: a.mean(axis=axis)) == (0.5, 0.5)
    assert mean_interval([0.5] * 5) == Interval(5, 0.5, 0.5, 0.5, "t")


def test_ends_are_cut_where_asked_for() -> None:
    values = [0.0, 1.0, 1.0]
    assert (mean_interval(values, bounds=(0, 1)).low, mean_interval(values).low) == (
        0,
        pytest.approx(
            2 / 3 - 4.302652729911275 / 3
        ),  # t of 2 degrees of freedom, s / sqrt(3) = 1/3
    )


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        mean_interval([0.5, math.inf, 0.1])
