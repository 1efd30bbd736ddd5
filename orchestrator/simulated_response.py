"""Made-up effects of hyperparameters on simulated searches, none unless one is asked for by name.

With one a sensitivity analysis or an adaptive searcher can be rehearsed against a known answer. It
changes how many architectures a search draws, and never an accuracy: those stay the table's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.dimensions import Dimension

NONE = "none"
MOST_DRAWS = 10

SAID = {
    "middle": (
        "each epoch draws 1 to 10 cells, the more the nearer the drawn numbers of a configuration "
        "lie to the middle of their ranges"
    ),
}
"""What each response does, in the words of a notice."""


def draws(response: str, dimensions: Sequence[Dimension], params: Mapping[str, Any]) -> int:
    """Return how many architectures a search of a configuration draws in each epoch.

    "middle": 1 + 9 q, rounded, where q is the mean over the drawn numbers of 1 - |2 u - 1| and u
    the place of a number in its range, from 0 to 1, in the logarithm of a loguniform one.

    Args:
        response: Name of the response.
        dimensions: What is drawn in the block.
        params: What was drawn, by name.
    """
    if response == NONE:
        return 1
    places = [_place(each, params[each.name]) for each in dimensions if _is_drawn(each, params)]
    if not places:
        return 1
    near = [1.0 - abs(2.0 * place - 1.0) for place in places]
    return 1 + round((MOST_DRAWS - 1) * math.fsum(near) / len(near))


def _is_drawn(dimension: Dimension, params: Mapping[str, Any]) -> bool:
    return dimension.kind != "choice" and dimension.name in params


def _place(dimension: Dimension, value: float) -> float:
    low, high = dimension.args
    if dimension.kind == "loguniform":
        low, high, value = math.log(low), math.log(high), math.log(value)
    elif dimension.kind == "randint":
        high -= 1  # excluded
    return float((value - low) / (high - low)) if high > low else 0.5
