"""Means and intervals: closed forms, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.statistics import (
    Summary,
    show_bytes,
    show_share,
    show_time,
    summarize,
)


def test_the_t_interval_has_its_closed_form() -> None:
    # Two degrees of freedom have the quantile in closed form: t = (2 p - 1) sqrt(2 / (4 p (1 - p)))
    # with p = 0.975. The values have mean 0.5 and standard deviation 0.1.
    p = 0.975
    t = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    half = t * 0.1 / math.sqrt(3)
    summary = summarize([0.4, 0.5, 0.6])
    assert summary.mean == pytest.approx(0.5)
    assert summary.low == pytest.approx(0.5 - half, rel=1e-9)
    assert summary.high == pytest.approx(0.5 + half, rel=1e-9)


def test_confidence_widens_the_interval() -> None:
    # The quantile at p = 0.75 with two degrees of freedom is sqrt(2 / 3) by the same formula.
    summary = summarize([0.4, 0.5, 0.6], confidence=0.5)
    assert summary.high == pytest.approx(0.5 + math.sqrt(2 / 3) * 0.1 / math.sqrt(3), rel=1e-9)


def test_shares_are_cut_at_their_ends() -> None:
    wide = [0.0, 1.0, 1.0]
    assert summarize(wide).high == 1.0
    assert summarize(wide).low == 0.0
    free = summarize(wide, bounds=None)
    assert free.high is not None
    assert free.high > 1.0


@pytest.mark.parametrize(("values", "mean"), [([], None), ([0.5], 0.5), ([0.4, 0.6], 0.5)])
def test_few_seeds_have_no_interval(values: list[float], mean: float | None) -> None:
    assert summarize(values) == Summary(len(values), mean)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=20))
def test_the_mean_lies_in_its_interval(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.mean is not None
    assert summary.low is not None
    assert summary.high is not None
    assert summary.low <= summary.mean + 1e-12
    assert summary.mean <= summary.high + 1e-12


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5])
def test_a_wrong_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must be in"):
        summarize([0.5], confidence=confidence)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        summarize([0.5, math.nan])


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (Summary(0), "–"),
        (Summary(1, 0.9123), "91.23 [–]"),
        (Summary(3, 0.9, 0.875, 0.925), "90.00 [87.50, 92.50]"),
    ],
)
def test_shares_are_shown_as_percent(summary: Summary, text: str) -> None:
    assert show_share(summary) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.inf, "–"),
        (1.24, "1.2 s"),
        (41.4, "41 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (3600 * 76, "3 d 4 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float | None, text: str) -> None:
    assert show_time(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (12_340, "12.3 kB"), (5 * 10**9, "5.0 GB"), (10**13, "10.0 TB")],
)
def test_sizes_have_decimal_units(count: int, text: str) -> None:
    assert show_bytes(count) == text
