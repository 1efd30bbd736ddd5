"""What a rule is that watches a search and may end it before its last epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainables.bilevel import Bilevel
from trainables.method import SearchPoint
from trainables.search_data import SearchData


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
    """

    due: Callable[[int, int], bool]
    measure: Callable[[Bilevel, SearchData, SearchPoint], float]
    verdict: Callable[[Sequence[tuple[int, float]], int], tuple[dict[str, float], int | None]]
    name: str
