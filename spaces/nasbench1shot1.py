"""NAS-Bench-1Shot1: choice blocks with weighted inputs and outputs; cells of NAS-Bench-101."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spaces.core import graph101
from spaces.core.choice_blocks import INPUTS, OPERATIONS, OUTPUT, ChoiceSupernet
from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, Genotype
from spaces.core.graph101 import CONV1X1, CONV3X3, MAX_POOL, Graph, Matrix
from spaces.core.layout import CellLayer, Layout
from spaces.core.mixture import Structure
from spaces.core.space import Evaluation, Space
from spaces.core.text import format_nasbench101, parse
from spaces.core.vertex_network import VertexNetwork

SOURCE = "Zela, Siems & Hutter, NAS-Bench-1Shot1, ICLR 2020, https://arxiv.org/abs/2001.10422"
EXPORTS = ("nasbench1shot1_1", "nasbench1shot1_2", "nasbench1shot1_3")

_CANDIDATES = (MAX_POOL, CONV3X3, CONV1X1)
_CELL = "cell"
_PARENTS = {
    "nasbench1shot1_1": (1, 2, 2, 2, 2),
    "nasbench1shot1_2": (1, 1, 2, 2, 3),
    "nasbench1shot1_3": (1, 1, 1, 2, 2, 2),
}
"""How many of the nodes before it lead into each block and, last, into the output."""

Parents = tuple[tuple[int, ...], ...]
"""Nodes that lead into each block and, last, into the output: 0 is the input, i block i."""


@dataclass(frozen=True)
class Config:
    """Size of the supernet.

    Attributes:
        channels: Channels of the stem and of a choice block in the first cells; pooling doubles
            those of the blocks.
        cells: Number of cells; the input of those at a third and at two thirds is pooled.

    Raises:
        ValueError: A value is out of range.
    """

    channels: int = 16
    cells: int = 9

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be >= 1, got {self.channels}.")
        if self.cells < 3:
            raise ValueError(f"cells must be >= 3, one for each size of image, got {self.cells}.")


class NasBench1Shot1(Space):
    """A space of NAS-Bench-1Shot1.

    Op weights are "operations", `(blocks, 3)`; "output", `(1, blocks + 1)`, of the cell's input and
    of every block; and for each block with a choice of inputs "inputs_i", `(1, i)`, of the cell's
    input and of every block before. A method relaxes, perturbs and trains all of them, row by row.

    A genotype is the NAS-Bench-101 cell that remains when all that does not lead to the output is
    cut off. Its one cell has a node for each vertex, input and output included, and every edge
    carries the operation of the node it leads to, those into the output "output": so isomorphic
    cells have one hash. Where random genotypes are drawn, every choice of parents and operations
    is equally likely, and a cell that several choices lead to is more likely than others.

    Source:
        Zela et al., ICLR 2020, and the authors' code. Differs: ties go to the lower index.
    """

    has_auxiliary = False
    has_edges = False
    evaluation = Evaluation(channels=128, cells=9, classes=10)
    parameter_free = frozenset({MAX_POOL, graph101.OUTPUT})
    skip_operation = None

    def __init__(self, name: str, config: Config) -> None:
        super().__init__(name, config, ())
        self.num_parents = _PARENTS[name]
        self.blocks = len(self.num_parents) - 1
        nodes = (graph101.INPUT, *(f"block_{index}" for index in range(1, self.blocks + 1)))
        self.cell_types = (_CELL,)
        self.operations = {OPERATIONS: _CANDIDATES, OUTPUT: nodes}
        self.parents = {OUTPUT: self.num_parents[-1]}
        for node in range(1, self.blocks + 1):
            if self.num_parents[node - 1] < node:
                self.operations[INPUTS.format(node)] = nodes[:node]
                self.parents[INPUTS.format(node)] = self.num_parents[node - 1]

    @property
    def column101(self) -> str:
        """Which column of the table of NAS-Bench-101 marks the cells of the space."""
        return f"in_1shot1_s{self.name[-1]}"

    @property
    def num_choices(self) -> int:
        """Number of choices of parents and operations; several can lead to one cell."""
        parents = (math.comb(node, kept) for node, kept in enumerate(self.num_parents, start=1))
        return math.prod(parents) * len(_CANDIDATES) ** self.blocks

    def parent_choices(self) -> Iterator[Parents]:
        """Yield every choice of parents."""
        return itertools.product(
            *(
                itertools.combinations(range(node), kept)
                for node, kept in enumerate(self.num_parents, start=1)
            )
        )

    def alpha_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shapes of operations, output and inputs."""
        return {
            name: (self.blocks if name == OPERATIONS else 1, len(columns))
            for name, columns in self.operations.items()
        }

    def search_size(self) -> tuple[int, int]:
        """Return channels of the first cell's output and number of cells of the supernet."""
        return self.config.channels * self.blocks, self.config.cells

    def with_cells(self, cells: int) -> Space:
        """Return the space with another number of cells of its supernet."""
        return self._with_settings(cells=cells)

    def supernet_layout(self, in_channels: int, num_classes: int) -> Layout:
        """Return the stack of the search; stride 2 is a cell whose input is pooled."""
        channels, cells = self.config.channels, self.config.cells
        return _stack(in_channels, num_classes, channels, self.blocks, cells)

    def network_layout(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int,
        cells: int,
        auxiliary: bool,  # noqa: ARG002 (refused by build_network)
    ) -> Layout:
        """Return the stack of NAS-Bench-101, whose channels are those of the cells' outputs."""
        if cells < 3:
            raise SpaceError(f"cells must be >= 3, one for each size of image, got {cells}.")
        return _stack(in_channels, num_classes, channels, 1, cells)

    def make_supernet(self, layout: Layout, structure: Structure) -> nn.Module:
        """Return the supernet of choice blocks."""
        return ChoiceSupernet(self.alpha_shapes(), self.blocks, layout, structure)

    def make_network(self, genotype: Genotype, layout: Layout) -> nn.Module:
        """Return the NAS-Bench-101 network of a genotype.

        Where vertices cannot share the channels evenly their order decides which are wider: it is
        the canonical one, so that isomorphic genotypes have one cost, that of the benchmark.
        """
        cell = graph101.of_canonical(*graph101.canonical(*self.cell101(genotype)))
        return VertexNetwork(*cell, layout)

    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Refuse: no op weights by themselves are a cell. `discretize` takes all of them."""
        raise SpaceError(
            f"'{self.name}' chooses its cell from {list(self.operations)} together, not from "
            f"'{name}', {tuple(op_weights.shape)}, alone: use discretize."
        )

    def choose_cells(self, op_weights: Mapping[str, Tensor]) -> tuple[Cell, ...]:
        """Return the cell of the strongest operations and parents, cut back to what it needs.

        Each block has its strongest operation; as many parents as the space says lead into each
        block and into the output, those of the largest weights. Ties go to the lower index.
        """
        return (graph101.to_cell(_CELL, *self._chosen(op_weights)),)

    def check_cell(self, cell: Cell) -> None:
        """Raise SpaceError unless the cell is one of NAS-Bench-101 and has a place in the space."""
        operations, adjacency = graph101.of_cell(cell)
        self._place(operations, adjacency)

    def check(self, genotype: Genotype) -> None:
        """Raise SpaceError, with what is wrong, where a genotype is not one of this space."""
        names = [cell.name for cell in genotype.cells]
        if genotype.space != self.name or names != [_CELL]:
            super().check(genotype)
        self.check_cell(genotype.cells[0])

    def cell101(self, genotype: Genotype) -> Graph:
        """Return the NAS-Bench-101 cell of a genotype.

        Returns:
            Operations of its inner vertices, in the genotype's order, and its adjacency matrix,
            input and output included.
        """
        return graph101.of_cell(genotype.cell(_CELL))

    def one_hot(self, genotype: Genotype, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return op weights that are 1 for operations and parents of the genotype, and 0 elsewhere.

        The vertices of the genotype are given to blocks: those that `like` chooses, where it stands
        for this genotype, and the first that have as many parents elsewhere. All weights of the
        other blocks are 0.

        Args:
            genotype: The architecture.
            like: Op weights, whose precision and device are taken too.
        """
        operations, adjacency = self.cell101(genotype)
        values = {name: matrix.detach().cpu() for name, matrix in like.items()}
        chosen = self._chosen(values)
        if graph101.pruned(*chosen) == (operations, adjacency):
            place = graph101.connected(chosen[1])[1:-1]
        else:
            place = self._place(operations, adjacency)
        found = {name: torch.zeros(shape) for name, shape in self.alpha_shapes().items()}
        nodes = (0, *place, self.blocks + 1)
        for vertex, node in enumerate(nodes[1:-1], start=1):
            found[OPERATIONS][node - 1, _CANDIDATES.index(operations[vertex - 1])] = 1.0
        for x, y in itertools.combinations(range(len(nodes)), 2):
            name = OUTPUT if y == len(nodes) - 1 else INPUTS.format(nodes[y])
            if adjacency[x][y] and name in found:
                found[name][0, nodes[x]] = 1.0
        return {name: matrix.to(like[name]) for name, matrix in found.items()}

    def parse(self, text: str) -> Genotype:
        """Read `ModelSpec(matrix=[[...], ...], ops=['input', ..., 'output'])`, or JSON."""
        genotype = parse(text, self.name)
        self.check(genotype)
        return genotype

    def format(self, genotype: Genotype) -> str:
        """Write `ModelSpec(matrix=[[...], ...], ops=['input', ..., 'output'])`."""
        self.check(genotype)
        return format_nasbench101(*self.cell101(genotype))

    def graph(self, parents: Parents, operations: Sequence[str]) -> Graph:
        """Return a choice of parents and operations as a graph of all blocks, nothing cut off."""
        size = self.blocks + 2
        matrix = [[0] * size for _ in range(size)]
        for node, sources in enumerate(parents, start=1):
            for source in sources:
                matrix[source][node] = 1
        return tuple(operations), tuple(tuple(row) for row in matrix)

    def _chosen(self, op_weights: Mapping[str, Tensor]) -> Graph:
        best = op_weights[OPERATIONS].argmax(1).tolist()
        parents = []
        for node, kept in enumerate(self.num_parents, start=1):
            name = OUTPUT if node > self.blocks else INPUTS.format(node)
            if name not in self.operations:
                parents.append(tuple(range(node)))
                continue
            order = op_weights[name][0].sort(descending=True, stable=True).indices
            parents.append(tuple(order[:kept].tolist()))
        return self.graph(tuple(parents), [_CANDIDATES[index] for index in best])

    def _place(self, operations: tuple[str, ...], adjacency: Matrix) -> tuple[int, ...]:
        """Return the first blocks that the vertices of a pruned cell can be, in their order."""
        last = len(adjacency) - 1
        parents = [sum(row[vertex] for row in adjacency) for vertex in range(last + 1)]
        edges = [(x, y) for x, y in itertools.combinations(range(last), 2) if adjacency[x][y]]
        for place in itertools.permutations(range(1, self.blocks + 1), last - 1):
            nodes = (0, *place)
            wanted = [self.num_parents[node - 1] for node in (*place, self.blocks + 1)]
            if parents[1:] == wanted and all(nodes[x] < nodes[y] for x, y in edges):
                return place
        raise SpaceError(
            f"{format_nasbench101(operations, adjacency)} is no cell of '{self.name}', whose "
            f"blocks have {self.num_parents[:-1]} parents and whose output has "
            f"{self.num_parents[-1]}."
        )


def _stack(in_channels: int, num_classes: int, channels: int, blocks: int, cells: int) -> Layout:
    layers = []
    width = before = channels
    for index in range(cells):
        pools = index in (cells // 3, 2 * cells // 3)
        width = 2 * width if pools else width
        stride = 2 if pools else 1
        layers.append(CellLayer(_CELL, width, (before,), (), stride, width * blocks))
        before = width * blocks
    return Layout(in_channels, num_classes, channels, tuple(layers), final_norm=False)


def build(config: Config, name: str) -> Space:
    """Return the space at these settings."""
    return NasBench1Shot1(name, config)
