"""Comparisons: their false positives, closed forms, and what few seeds cannot tell."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.comparing import (
    MOST_SEEDS,
    Comparison,
    Test,
    compare,
    fewest_each,
    fewest_pairs,
    holm,
)
from orchestrator.analysis.ranks import rank_distribution


def seeds(values) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


def one(first, second, **settings) -> Comparison:
    (found,) = compare({"a": first, "b": second}, **settings)
    return found


@pytest.mark.parametrize(
    ("test", "paired"),
    [("permutation", True), ("wilcoxon", True), ("t", True), ("permutation", False), ("t", False)],
)
def test_no_effect_is_found_as_often_as_said(test: Test, paired: bool) -> None:
    rng = np.random.default_rng(3)
    draws, rejected, told = 500, 0, 0
    n = 9 if paired else 5  # 512 signs, 252 divisions
    for _ in range(draws):
        shared = rng.normal(size=n) if paired else np.zeros(n)  # what a seed does to both
        a, b = (seeds(shared + rng.normal(size=n)) for _ in range(2))
        if not paired:
            b = {seed + 100: value for seed, value in b.items()}
        found = one(a, b, test=test)
        assert found.paired == paired
        rejected += (found.p or 0) < 0.05
        told += found.verdict in ("higher", "lower")
    # Exact tests reach 4.7 % and 4.8 %; three standard errors of 500 draws are 2.9 points.
    assert 0.018 <= rejected / draws <= 0.079
    assert told <= rejected


def test_several_comparisons_are_wrong_together_as_rarely_as_one() -> None:
    rng = np.random.default_rng(5)
    draws, wrong = 150, 0
    for _ in range(draws):
        groups = {name: seeds(rng.normal(size=12)) for name in "abcd"}
        wrong += any(each.verdict in ("higher", "lower") for each in compare(groups, test="t"))
    assert wrong / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_a_paired_permutation_is_that_of_all_signs() -> None:
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.5, 0.25])
    found = one(seeds(differences + 1), seeds(np.ones(6)))
    signs = np.array(list(itertools.product((1, -1), repeat=6)))
    means = np.abs((signs * differences).mean(axis=1))
    assert found.p == pytest.approx(float((means >= differences.mean() - 1e-12).mean()))
    assert found.effect == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert found.superiority == pytest.approx(5 / 6)
    half = stats.t.ppf(0.975, 5) * differences.std(ddof=1) / math.sqrt(6)
    assert found.difference.low == pytest.approx(differences.mean() - half)


def test_an_unpaired_comparison_has_welchs_interval() -> None:
    a, b = [1.0, 2.0, 4.0, 3.0], [5.0, 9.0, 7.0]
    found = one(seeds(a), {seed + 10: value for seed, value in seeds(b).items()})
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((welch.low, welch.high))
    # Of the 35 ways to divide, this one and its mirror image are the most extreme: none is better.
    assert found.p == pytest.approx(2 / 35)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = one({0: 1.0, 1: 2.0, 2: 3.5, 9: 100.0}, {0: 0.0, 1: 1.5, 2: 2.0, 8: -100.0})
    assert found.n == (3, 3)
    assert found.paired
    assert found.difference.estimate == pytest.approx(1.0)


def test_pairing_tells_what_the_spread_of_seeds_would_hide() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(scale=10, size=10)
    a, b = seeds(shared + 1 + rng.normal(scale=0.2, size=10)), seeds(shared)
    assert one(a, b).verdict == "higher"
    apart = one(a, {seed + 50: value for seed, value in b.items()})
    assert apart.verdict == "cannot be told apart"


def test_holms_correction_by_hand() -> None:
    # 0.01 * 3, then max(0.03, 0.02 * 2), then max(0.04, 0.03): rising, and None is not counted.
    assert holm([0.03, None, 0.01, 0.02]) == [
        pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)
    ]  # fmt: skip
    assert holm([None, None]) == [None, None]


@pytest.mark.parametrize(("comparisons", "fewest"), [(1, 6), (3, 7), (10, 9), (19, 10)])
def test_the_fewest_pairs_are_those_whose_signs_can_tell(comparisons: int, fewest: int) -> None:
    assert 2 / 2**fewest * comparisons < 0.05 <= 2 / 2 ** (fewest - 1) * comparisons
    assert fewest_pairs(0.05, comparisons) == fewest


def test_the_fewest_values_of_each() -> None:
    # 2 / C(8, 4) = 0.029, 2 / C(6, 3) = 0.1.
    assert fewest_each(0.05) == 4


@pytest.mark.parametrize("n", [0, 1, 2])
def test_two_seeds_tell_nothing(n: int) -> None:
    found = one(seeds([0.9] * n), seeds([0.1] * n))
    assert (found.verdict, found.p, found.p_holm, found.more_seeds) == (
        "too few seeds", None, None, None
    )  # fmt: skip
    assert found.effect is None


def test_five_pairs_are_too_few_however_clear() -> None:
    found = one(seeds([2, 3, 4, 5, 6.5]), seeds([1, 2, 3, 4, 5]))
    assert found.p == pytest.approx(2 / 32)
    assert found.verdict == "too few seeds"
    assert found.more_seeds == 1  # a sixth
    assert one(seeds([2, 3, 4, 5, 6.5]), seeds([1, 2, 3, 4, 5]), test="t").verdict == "higher"


def test_equal_values_are_equal() -> None:
    found = one(seeds([1, 2, 3, 4]), seeds([1, 2, 3, 4]))
    assert (found.verdict, found.p, found.effect, found.superiority) == ("equal", 1.0, None, 0.5)


def test_the_seeds_advised_have_the_power_that_is_said() -> None:
    # An effect of half a standard deviation needs 34 pairs for 80 % (Cohen's tables).
    rng = np.random.default_rng(2)
    noise = rng.normal(size=10)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    found = one(seeds(0.5 + noise), seeds(np.zeros(10)), test="t")
    assert found.effect == pytest.approx(0.5)
    assert found.more_seeds == 34 - 10


def test_a_difference_too_small_to_matter_has_no_advice() -> None:
    noise = np.array([1.0, -1.0] * 5)
    found = one(seeds(0.001 + noise), seeds(np.zeros(10)))
    assert found.verdict == "cannot be told apart"
    assert found.more_seeds is None
    assert MOST_SEEDS == 1000


def test_all_are_compared_with_one() -> None:
    groups = {name: seeds([place, place + 1, place + 3]) for place, name in enumerate("abc")}
    assert [(c.first, c.second) for c in compare(groups, against="b")] == [("a", "b"), ("c", "b")]
    assert len(compare(groups)) == 3
    with pytest.raises(ValueError, match="against must be one of a, b, c, got 'd'"):
        compare(groups, against="d")


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="values of b must be finite"):
        one(seeds([1, 2, 3]), seeds([1, 2, math.nan]))


# Ranks


def test_ranks_of_clear_methods_are_certain_and_equal_ones_share_theirs() -> None:
    groups = {"low": seeds([1, 2, 3]), "high": seeds([11, 12, 13]), "same": seeds([11, 12, 13])}
    found = rank_distribution(groups)
    assert found is not None
    assert found.paired
    assert found.shares[0] == (0, 0, 1)
    assert found.shares[1] == found.shares[2] == (0.5, 0.5, 0)
    assert found.mean_rank(1) == 1.5
    turned = rank_distribution(groups, maximize=False)
    assert turned is not None
    assert turned.shares[0] == (1, 0, 0)


def test_ranks_of_equal_methods_are_even() -> None:
    rng = np.random.default_rng(0)
    groups = {name: {seed + 100 * place: v for seed, v in seeds(rng.normal(size=40)).items()}
              for place, name in enumerate("ab")}  # fmt: skip
    groups = {k: {s: v - np.mean(list(g.values())) for s, v in g.items()}
              for k, g in groups.items()}  # fmt: skip
    found = rank_distribution(groups)
    assert found is not None
    assert not found.paired
    assert found.shares[0][0] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    "groups", [{}, {"a": {0: 1.0, 1: 2.0, 2: 3.0}}, {"a": {0: 1}, "b": {0: 2}}]
)
def test_few_seeds_have_no_ranks(groups) -> None:
    assert rank_distribution(groups) is None
