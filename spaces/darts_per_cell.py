"""DARTS with an architecture of its own for every cell of the stack, not one for each kind."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from spaces.core import darts_cells
from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, Genotype
from spaces.core.layout import Layout
from spaces.core.operations import without_weights
from spaces.core.space import Evaluation, Space
from spaces.core.text import parse

SOURCE = "Bi et al.: Stabilizing DARTS with Amended Gradient Estimation, arXiv 1910.11831"

_LEAST_CELLS = 3


@dataclass(frozen=True)
class Config:
    """Size of the supernet, which is the depth of its networks too, and candidate operations.

    Attributes:
        channels: Channels of the first cell; each reduction doubles them.
        cells: Number of cells; those at a third and at two thirds are reductions. The default is
            the depth at which DARTS retrains: the paper asks for one depth in search and
            retraining. That this means 20 cells is our reading.
        operations: 8 with `none` among the candidates, 7 without it, or a list of their names: the
            paper's larger space has fewer than DARTS, and which is not known to us.
        edges: "top2" keeps the two strongest edges into every node; "fixed" has those from the two
            nodes before it alone, in the supernet too; "all" keeps all 14. That the paper has these
            three, and which two edges are the fixed ones, is our reading.

    Raises:
        ValueError: A value is out of range.
    """

    channels: int = 16
    cells: int = 20
    operations: int | tuple[str, ...] = 8
    edges: Literal["top2", "fixed", "all"] = field(default="top2", metadata={"later": True})

    def __post_init__(self) -> None:
        if self.channels < 2:
            raise ValueError(f"channels must be >= 2, got {self.channels}.")
        if self.cells < 3:
            raise ValueError(
                f"cells must be >= 3, so that both kinds of cells occur, got {self.cells}."
            )
        if isinstance(self.operations, tuple):
            from spaces.core.cell_edges import read_operations

            read_operations(self.operations, "operations")
            if len({*self.operations} - {"none"}) < 2:
                raise ValueError("operations must leave a choice without none.")
        elif self.operations not in (7, 8):
            raise ValueError(f"operations must be 7, 8 or a list, got {self.operations}.")


def cell_names(cells: int) -> tuple[str, ...]:
    """Return the cell types of a stack, by place from 0 and kind: "cell_0_normal", ..."""
    return tuple(f"cell_{place}_{kind}" for place, kind in enumerate(darts_cells.kinds(cells)))


class DartsPerCell(Space):
    """The stack of DARTS whose every cell is a cell type of its own.

    A genotype has one cell for each cell of the stack, in order, and so says the depth of its
    network. Genotypes of any depth are taken, whatever the depth of this supernet.

    Source:
        Bi et al., arXiv 1910.11831, the larger space, as we read secondary sources. Its edge
        normalisation is that of PC-DARTS, and a matter of the method: `pc_darts` with
        `partial_channels: 1` and the alpha gradient `amended`. Differs: the operations are those of
        DARTS unless listed. The paper has released no text form of genotypes; ours is JSON.
    """

    has_auxiliary = True
    has_imagenet_stem = True

    def __init__(self, name: str, config: Config) -> None:
        operations = config.operations
        if isinstance(operations, int):
            operations = darts_cells.last_operations(operations)
        nearest = config.edges == "fixed"
        super().__init__(
            name,
            config,
            tuple(
                darts_cells.topology_of(cell, operations, nearest=nearest)
                for cell in cell_names(config.cells)
            ),
        )
        every = dict.fromkeys(operations)
        self.parameter_free = frozenset(op for op in every if without_weights(op))
        self.skip_operation = "skip_connect" if "skip_connect" in every else None
        self._keep_all = config.edges == "all"
        # Width and classes are those of DARTS; depth is no choice after the search.
        self.evaluation = Evaluation(channels=36, cells=config.cells, classes=10)

    @property
    def num_choices(self) -> int:
        """Number of genotypes."""
        return math.prod(
            darts_cells.num_choices(topology, keep_all=self._keep_all)
            for topology in self.topologies
        )

    def search_size(self) -> tuple[int, int]:
        """Return channels of the first cell and number of cells of the supernet."""
        return self.config.channels, self.config.cells

    def with_cells(self, cells: int) -> Space:
        """Refuse any other number of cells than its own."""
        if cells != self.config.cells:
            raise SpaceError(
                f"The supernet of '{self.name}' has {self.config.cells} cells and cannot have "
                f"{cells}: every cell has its own alphas: they would change with the depth. Search "
                "in the space 'darts', whose cells share alphas."
            )
        return self

    def supernet_layout(self, in_channels: int, num_classes: int) -> Layout:
        """Return the stack of cells of the search."""
        return darts_cells.stack(in_channels, num_classes, self.config.channels, self.cell_types)

    def network_layout(
        self, in_channels: int, num_classes: int, *, channels: int, cells: int, auxiliary: bool
    ) -> Layout:
        """Return the stack at the depth of a genotype, with or without the auxiliary head."""
        names = cell_names(cells)
        return darts_cells.stack(in_channels, num_classes, channels, names, auxiliary=auxiliary)

    def network_cells(self, genotype: Genotype, cells: int | None) -> int:
        """Return the number of cells of the genotype, and refuse any other."""
        depth = len(genotype.cells)
        if cells not in (None, depth):
            raise SpaceError(
                f"A network of '{self.name}' has as many cells as its genotype, {depth}, because "
                f"every cell has an architecture of its own: cells cannot be {cells}. Leave cells "
                "out; to retrain at another depth, search at that depth."
            )
        return depth

    def normal_cells(self, genotype: Genotype) -> tuple[Cell, ...]:
        """Return all normal cells, which are judged together."""
        kinds = darts_cells.kinds(len(genotype.cells))
        names = cell_names(len(genotype.cells))
        return tuple(
            genotype.cell(name)
            for name, kind in zip(names, kinds, strict=True)
            if kind == darts_cells.NORMAL
        )

    def selectable(self, name: str) -> list[int]:
        """Return all columns but that of `none`."""
        return darts_cells.selectable(self.operations[name])

    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Keep two edges into every node or all, as set, each with its strongest operation.

        The strength of an edge is its largest op weight other than that of `none`; ties go to the
        lower index, of edges as of operations.
        """
        return darts_cells.choose_cell(
            name, self.topology(name), op_weights, keep_all=self._keep_all
        )

    def check(self, genotype: Genotype) -> None:
        """Raise SpaceError, with what is wrong, where a genotype is not one of this space.

        Its cells must be in the order of the stack, with reductions at a third and at two thirds of
        the genotype's own number of cells.
        """
        depth = len(genotype.cells)
        if genotype.space != self.name:
            super().check(genotype)
        self._check_stack([cell.name for cell in genotype.cells])
        if depth == self.config.cells:
            super().check(genotype)
        else:
            DartsPerCell(self.name, replace(self.config, cells=depth)).check(genotype)

    def check_cell(self, cell: Cell) -> None:
        """Raise SpaceError unless two edges, or all, lead into each of nodes 2 to 5."""
        darts_cells.check_cell(cell, self.name, keep_all=self._keep_all)

    def parse(self, text: str) -> Genotype:
        """Read the JSON of `Genotype.to_json`."""
        genotype = parse(text, self.name)
        self.check(genotype)
        return genotype

    def format(self, genotype: Genotype) -> str:
        """Write the JSON of `Genotype.to_json` in one line."""
        self.check(genotype)
        return json.dumps(genotype.to_json())

    def _check_stack(self, got: list[str]) -> None:
        if len(got) < _LEAST_CELLS:
            raise SpaceError(
                f"A genotype of '{self.name}' must have at least {_LEAST_CELLS} cells, one for "
                f"each cell of the stack, got {got}."
            )
        for place, (name, wanted) in enumerate(zip(got, cell_names(len(got)), strict=True)):
            if name != wanted:
                raise SpaceError(
                    f"A genotype of '{self.name}' must have its cells in the order of the stack, "
                    f"with reductions at a third and at two thirds: of {len(got)} cells, cells"
                    f"[{place}] must be '{wanted}', got '{name}'."
                )


def build(config: Config, name: str) -> Space:
    """Return the space at these settings."""
    return DartsPerCell(name, config)


def settings_for(genotype: Genotype) -> dict[str, Any]:
    """Return settings of a space that a genotype is of: its edges, and operations not of DARTS."""
    settings: dict[str, Any] = {}
    if darts_cells.keeps_all(genotype.cells[0]):
        settings["edges"] = "all"
    shipped = darts_cells.last_operations(8)
    used = {edge.operation for cell in genotype.cells for edge in cell.edges}
    if not used <= {*shipped}:
        settings["operations"] = [*shipped, *sorted(used - {*shipped})]
    return settings
