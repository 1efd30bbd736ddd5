"""Numbers as the tables of analyses show them."""

from __future__ import annotations

from orchestrator.analysis.intervals import Interval


def show_value(value: float | None, share: bool, digits: int = 2) -> str:
    """Return a value, a share as percent; a dash for None."""
    if value is None:
        return "–"
    return f"{100 * value:.{digits}f}" if share else f"{value:.4g}"


def show_interval(interval: Interval, share: bool, *, sign: bool = False) -> str:
    """Return "91.23 [90.10, 92.36]"; a dash for what there are too few values for."""
    if interval.estimate is None:
        return "–"
    plus = "+" if sign else ""

    def shown(value: float) -> str:
        return f"{100 * value:{plus}.2f}" if share else f"{value:{plus}.4g}"

    if interval.low is None or interval.high is None:
        return f"{shown(interval.estimate)} [–]"
    return f"{shown(interval.estimate)} [{shown(interval.low)}, {shown(interval.high)}]"


def show_p(p: float | None) -> str:
    """Return a p-value: "0.031", "< 0.001"; a dash for None."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def unit_of(metric: str, share: bool) -> str:
    """Return what a column or an axis calls a metric: "val accuracy, %"."""
    name = metric.replace("/", " ").replace("_", " ")
    return f"{name}, %" if share else name
