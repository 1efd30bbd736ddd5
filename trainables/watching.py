"""What a rule is that watches a search and may end it, or take it back, before its last epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainables.bilevel import Bilevel
from trainables.method import SearchPoint
from trainables.search_data import SearchData


@dataclass(frozen=True)
class GoBack:
    """What a rule may do instead of ending a search: take it back, with more weight decay.

    Attributes:
        weight_decay_factor: What the weight decay of the weights is multiplied by each time.
        max_weight_decay: It never exceeds this; a search that could only go back with more goes on.
        extra_epochs: Epochs further back than the one that the rule names.
        reach: From the number of epochs: how many epochs before the current one a rule may name.
    """

    weight_decay_factor: float
    max_weight_decay: float
    extra_epochs: int
    reach: Callable[[int], int]

    def raised(self, weight_decay: float) -> float | None:
        """Return the next weight decay; None where it would be too large, or no larger."""
        larger = weight_decay * self.weight_decay_factor
        # The last of 3e-4, 9e-4, ... is the limit itself, but for rounding.
        return larger if weight_decay < larger <= self.max_weight_decay * (1 + 1e-9) else None

    def times(self, weight_decay: float) -> int:
        """Return how often a search that starts with this weight decay may go back."""
        count, larger = 0, self.raised(weight_decay)
        while larger is not None:
            count, larger = count + 1, self.raised(larger)
        return count


@dataclass(frozen=True)
class EarlyStop:
    """A rule that measures a search after some epochs and may end it, with an earlier genotype.

    Attributes:
        due: Whether to measure after an epoch, counted from 0, of so many.
        measure: The value, from the search as it is; it must change nothing and draw nothing.
        verdict: From all (epoch, value) so far, oldest first, and the number of epochs: what is
            logged, and the epoch whose genotype is the result if the search ends now, else None.
            Epochs are counted from 0; a value that is not finite is left out.
        name: Under which the value stands in the curve.
        go_back: What to do instead of ending the search; None is to end it.
    """

    due: Callable[[int, int], bool]
    measure: Callable[[Bilevel, SearchData, SearchPoint], float]
    verdict: Callable[[Sequence[tuple[int, float]], int], tuple[dict[str, float], int | None]]
    name: str
    go_back: GoBack | None = None


def descent(curve: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the entries that the last one descends from, itself included, oldest first.

    Where the search went back, the epochs that it took back are left out.

    Args:
        curve: Entries; `schedule_epoch`, from 1, says where in the schedule each is.

    Returns:
        Each with its epoch in the schedule, from 0.
    """
    line: list[tuple[int, Mapping[str, Any]]] = []
    for index, entry in enumerate(curve):
        epoch = entry["schedule_epoch"] - 1 if "schedule_epoch" in entry else index
        while line and line[-1][0] >= epoch:
            line.pop()
        line.append((epoch, entry))
    return line
