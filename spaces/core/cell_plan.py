"""One cell type of a described space: its graph, and what a genotype keeps of it. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spaces.core.genotype import NONE
from spaces.core.layout import CellTopology


@dataclass(frozen=True)
class CellPlan:
    """One cell type of a described space.

    Attributes:
        topology: Its edges and operations; edges are in the order of targets, then of sources.
        keep: Edges kept into each inner node, in order.
        keeps_all: Whether every edge is kept; `none` can then be chosen as any other operation.
    """

    topology: CellTopology
    keep: tuple[int, ...]
    keeps_all: bool

    @property
    def inner(self) -> range:
        """The inner nodes."""
        return range(self.topology.num_inputs, self.topology.num_inputs + len(self.keep))

    def rows_into(self, node: int) -> list[int]:
        """Return the rows of the edges that lead into a node."""
        return [row for row, (_, target) in enumerate(self.topology.edges) if target == node]

    @property
    def selectable(self) -> list[int]:
        """Columns that a genotype can have."""
        operations = self.topology.of_edge(0)  # `none` is in the same column of all edges
        return [i for i, name in enumerate(operations) if self.keeps_all or name != NONE]

    @property
    def num_choices(self) -> int:
        """Number of cells: edges kept into every node, each with an operation."""
        per_edge = len(self.selectable)
        return math.prod(
            math.comb(len(self.rows_into(node)), kept) * per_edge**kept
            for node, kept in zip(self.inner, self.keep, strict=True)
        )
