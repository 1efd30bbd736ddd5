"""Means and intervals over seeds, the same everywhere: in tables, in the report and in plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_SEEDS = 3
"""Fewest seeds an interval is given for: for two, Student's t stretches it to 12.7 errors."""

METHOD = "95 % Student t-interval of the mean over seeds"


@dataclass(frozen=True)
class Summary:
    """Mean over seeds, with its interval where there are seeds enough for one.

    Attributes:
        n: Number of values.
        mean: Their mean, or None for n = 0.
        low, high: Ends of the interval, or None for n < `MIN_SEEDS`.
    """

    n: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def summarize(
    values: Sequence[float],
    *,
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Summary:
    r"""Return the mean of `values` and its Student t-interval over seeds.

    The interval is mean +- t s / sqrt(n), with s the standard deviation with n - 1 in its
    denominator and t the (1 + confidence) / 2 quantile of Student's t with n - 1 degrees of
    freedom. It is the interval of the mean over searches repeated with new seeds, not of a single
    search.

    Args:
        values: One finite number per seed.
        confidence: Coverage of the interval, in (0, 1).
        bounds: Ends that the interval is cut at, (0, 1) for shares; None cuts nothing.

    Raises:
        ValueError: A value is not finite, or `confidence` is outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}.")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values must be finite, got {list(values)!r}.")
    n = len(values)
    if n == 0:
        return Summary(0)
    mean = math.fsum(values) / n
    if n < MIN_SEEDS:
        return Summary(n, mean)
    # Imported here: scipy.stats takes most of a second, which `nas --help` need not wait for.
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    low, high = mean - half, mean + half
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Summary(n, mean, low, high)


def show_share(summary: Summary) -> str:
    """Return a share as percent: "91.23 [90.10, 92.36]"; a dash for what n does not allow."""
    if summary.mean is None:
        return "–"
    if summary.low is None or summary.high is None:
        return f"{100 * summary.mean:.2f} [–]"
    return f"{100 * summary.mean:.2f} [{100 * summary.low:.2f}, {100 * summary.high:.2f}]"


def show_time(seconds: float | None) -> str:
    """Return a duration as people say it: "41 s", "3 min 05 s", "2 h 10 min", "3 d 4 h"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def show_bytes(count: int) -> str:
    """Return a size with a decimal unit: "12.3 MB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
