"""Spaces of one normal and one reduction cell in the stack of DARTS, whatever the candidates."""

from __future__ import annotations

import math

from torch import Tensor

from spaces.core import darts_cells
from spaces.core.genotype import Cell, Genotype
from spaces.core.layout import Layout
from spaces.core.space import Evaluation, Space
from spaces.core.text import format_darts, parse


class DartsSpace(Space):
    """A space of two DARTS cells; its settings have `channels` and `cells`."""

    evaluation = Evaluation(channels=36, cells=20, classes=10)
    has_auxiliary = True
    has_imagenet_stem = True

    @property
    def num_choices(self) -> int:
        """Number of genotypes."""
        return math.prod(darts_cells.num_choices(topology) for topology in self.topologies)

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
        return darts_cells.selectable(self.operations_of(name, 0))

    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Keep the two strongest edges into every node, each with its strongest operation.

        The strength of an edge is its largest op weight other than that of `none`; ties go to the
        lower index, of edges as of operations.
        """
        return darts_cells.choose_cell(name, self.topology(name), op_weights)

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
