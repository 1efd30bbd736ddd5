"""Finite values that stand for what is not: worse than any that a trial can report.

With them in a curve neither a scheduler, a searcher nor JSON has to know of divergence.
"""

from __future__ import annotations

WORST_LOSS = 1e3
"""Nats."""


def worst_value(metric: str) -> float:
    """Return the worst value of a metric: `WORST_LOSS` of a loss, 0 of a share."""
    return WORST_LOSS if metric.endswith("_loss") else 0.0
