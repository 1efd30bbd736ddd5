"""DARTS: normal and reduction cell of 4 nodes and 14 edges, 8 operations (7 without none)."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.core import darts_cells
from spaces.core.darts_space import DartsSpace
from spaces.core.space import Space

SOURCE = "Liu, Simonyan & Yang, DARTS, ICLR 2019, https://arxiv.org/abs/1806.09055"


@dataclass(frozen=True)
class Config:
    """Size of the supernet and its candidate operations.

    Attributes:
        channels: Channels of the first cell; each reduction doubles them.
        cells: Number of cells; those at a third and at two thirds are reductions.
        operations: 8 with `none` among the candidates, 7 without it.

    Raises:
        ValueError: A value is out of range.
    """

    channels: int = 16
    cells: int = 8
    operations: int = 8

    def __post_init__(self) -> None:
        if self.channels < 2:
            raise ValueError(f"channels must be >= 2, got {self.channels}.")
        if self.cells < 3:
            raise ValueError(
                f"cells must be >= 3, so that both cell types occur, got {self.cells}."
            )
        if self.operations not in (7, 8):
            raise ValueError(f"operations must be 7 or 8, got {self.operations}.")


class Darts(DartsSpace):
    """The cell space of DARTS."""

    def __init__(self, name: str, config: Config) -> None:
        cell_types = (darts_cells.NORMAL, darts_cells.REDUCTION)
        topologies = tuple(darts_cells.topology(cell, config.operations) for cell in cell_types)
        super().__init__(name, config, topologies)


def build(config: Config, name: str) -> Space:
    """Return the space at these settings."""
    return Darts(name, config)
