"""Where the panels of a drawing stand: below each other, or many in a grid of good proportions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_IN_ONE_COLUMN = 2  # so many are drawn below each other at full size
_GRID_SCALE = 0.6
_GRID_ASPECT = 1.25  # width over height that a grid comes near


@dataclass(frozen=True)
class Panel:
    """A panel: where its upper left corner is and how large it is, in inches."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Grid:
    """Panels in reading order, row by row, each as wide as any other.

    Attributes:
        columns: Panels in a row.
        scale: Size of what is in a panel, 1 for full size.
        width: Of all columns together, in inches.
        heights: Of every row, in inches.
    """

    columns: int
    scale: float
    width: float
    heights: tuple[float, ...]

    def panels(self, count: int, top: float) -> Iterator[Panel]:
        """Return the first `count` panels, from the height `top` downwards."""
        width = self.width / self.columns
        for index in range(count):
            row, column = divmod(index, self.columns)
            if row and not column:
                top -= self.heights[row - 1]
            yield Panel(column * width, top, width, self.heights[row])


def arrange(sizes: Sequence[tuple[float, float]], least_width: float) -> Grid:
    """Return one column for two panels, and for more the grid that is nearest to good proportions.

    Args:
        sizes: (width, height) of every panel at full size, in inches.
        least_width: Of the whole drawing, in inches.
    """
    if len(sizes) <= _IN_ONE_COLUMN:
        return _grid(sizes, least_width, columns=1, scale=1.0)
    grids = [
        _grid(sizes, least_width, columns=columns, scale=_GRID_SCALE)
        for columns in range(1, len(sizes) + 1)
    ]
    return min(grids, key=lambda grid: abs(math.log(grid.width / sum(grid.heights) / _GRID_ASPECT)))


def _grid(
    sizes: Sequence[tuple[float, float]], least_width: float, *, columns: int, scale: float
) -> Grid:
    width = columns * scale * max(width for width, _ in sizes)
    heights = [scale * height for _, height in sizes]
    rows = [max(heights[first : first + columns]) for first in range(0, len(sizes), columns)]
    return Grid(columns, scale, max(least_width, width), tuple(rows))
