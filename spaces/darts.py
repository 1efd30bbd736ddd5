"""DARTS: normal and reduction cell of 4 nodes and 14 edges, 8 operations (7 without none)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spaces.core import darts_cells
from spaces.core.genotype import Cell, Genotype
from spaces.core.layout import Layout
from spaces.core.space import Evaluation, Space
from spaces.core.text import format_darts, parse

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


class Darts(Space):
    """The cell space of DARTS."""

    evaluation = Evaluation(channels=36, cells=20, classes=10)
    has_auxiliary = True
    has_imagenet_stem = True

    def __init__(self, name: str, config: Config) -> None:
        cell_types = (darts_cells.NORMAL, darts_cells.REDUCTION)
        topologies = tuple(darts_cells.topology(cell, config.operations) for cell in cell_types)
        super().__init__(name, config, topologies)

    def search_size(self) -> tuple[int, int]:
        """Return channels of the first cell and number of cells of the supernet."""
        return self.config.channels, self.config.cells

    def with_cells(self, cells: int) -> Space:
        """Return the space with another number of cells of its supernet."""
        return self._with_settings(cells=cells)

    def supernet_layout(self, in_channels: int, num_classes: int) -> Layout:
        """Return the stack of cells of the search."""
        names = darts_cells.kinds(self.config.cells)
        return darts_cells.stack(in_channels, num_classes, self.config.channels, names)

    def network_layout(
        self, in_channels: int, num_classes: int, *, channels: int, cells: int, auxiliary: bool
    ) -> Layout:
        """Return the same stack at another size, with or without the auxiliary head."""
        names = darts_cells.kinds(cells)
        return darts_cells.stack(in_channels, num_classes, channels, names, auxiliary=auxiliary)

    def selectable(self, name: str) -> list[int]:
        """Return all columns but that of `none`."""
        return darts_cells.selectable(self.operations[name])

    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Keep the two strongest edges into every node, each with its strongest operation.

        The strength of an edge is its largest op weight other than that of `none`; ties go to the
        lower index, of edges as of operations.
        """
        return darts_cells.choose_cell(name, self.operations[name], op_weights)

    def check_cell(self, cell: Cell) -> None:
        """Raise SpaceError unless two edges lead into each of nodes 2 to 5."""
        darts_cells.check_cell(cell, self.name)

    def parse(self, text: str) -> Genotype:
        """Read `Genotype(normal=[...], normal_concat=..., reduce=[...], ...)`, or JSON."""
        genotype = parse(text, self.name)
        self.check(genotype)
        return genotype

    def format(self, genotype: Genotype) -> str:
        """Write `Genotype(normal=[...], normal_concat=..., reduce=[...], ...)`."""
        self.check(genotype)
        return format_darts(genotype)


def build(config: Config, name: str) -> Space:
    """Return the space at these settings."""
    return Darts(name, config)
