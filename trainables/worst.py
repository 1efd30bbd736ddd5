"""Finite values that stand for what is not: worse than any that a trial can report.

With them in a curve neither a scheduler, a searcher nor JSON has to know of divergence.
"""

from __future__ import annotations

WORST_LOSS = 1e3
"""Nats."""


def worst_value(metric: str) -> float:
    """Return the worst value: `WORST_LOSS` of a loss, 1 of a regret, 0 of any other share."""
    if metric.endswith("_loss"):
        return WORST_LOSS
    return 1.0 if metric.endswith("_regret") else 0.0
