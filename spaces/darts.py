"""DARTS: normal and reduction cell of 4 nodes and 14 edges, 8 operations (7 without none)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spaces.core.errors import SpaceError
from spaces.core.genotype import NONE, Cell, EdgeChoice, Genotype
from spaces.core.layout import CellLayer, CellTopology, Layout
from spaces.core.space import Evaluation, Space
from spaces.core.text import format_darts, parse

SOURCE = "Liu, Simonyan & Yang, DARTS, ICLR 2019, https://arxiv.org/abs/1806.09055"

_NODES = range(2, 6)
_EDGES = tuple((source, target) for target in _NODES for source in range(target))
_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
_STEM_MULTIPLIER = 3


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

    def __init__(self, name: str, config: Config) -> None:
        operations = _OPERATIONS[-config.operations :]
        topologies = tuple(
            CellTopology(cell, 2, _EDGES, operations, tuple(_NODES), pool_norm=True)
            for cell in ("normal", "reduction")
        )
        super().__init__(name, config, topologies)

    def supernet_layout(self, in_channels: int, num_classes: int) -> Layout:
        """Return the stack of cells of the search."""
        return _layout(in_channels, num_classes, self.config.channels, self.config.cells)

    def network_layout(
        self, in_channels: int, num_classes: int, *, channels: int, cells: int, auxiliary: bool
    ) -> Layout:
        """Return the same stack at another size, with or without the auxiliary head."""
        if channels < 2:
            raise SpaceError(f"channels must be >= 2, got {channels}.")
        return _layout(in_channels, num_classes, channels, cells, auxiliary=auxiliary)

    def selectable(self, name: str) -> list[int]:
        """Return all columns but that of `none`."""
        return [index for index, op in enumerate(self.operations[name]) if op != NONE]

    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Keep the two strongest edges into every node, each with its strongest operation.

        The strength of an edge is its largest op weight other than that of `none`; ties go to the
        lower index, of edges as of operations.
        """
        operations = self.operations[name]
        columns = self.selectable(name)
        strength, best = op_weights[:, columns].max(1)
        # argmax, unlike max, is documented to return the first of several maxima.
        best = op_weights[:, columns].argmax(1)
        strengths = strength.tolist()
        kept = []
        for node in _NODES:
            rows = [row for row, (_, target) in enumerate(_EDGES) if target == node]
            for row in sorted(rows, key=lambda row: (-strengths[row], row))[:2]:
                operation = operations[columns[int(best[row])]]
                kept.append(EdgeChoice(*_EDGES[row], operation))
        return Cell(name, tuple(kept), tuple(_NODES))

    def check_cell(self, cell: Cell) -> None:
        """Raise SpaceError unless two edges lead into each of nodes 2 to 5."""
        targets = [edge.target for edge in cell.edges]
        if targets != [node for node in _NODES for _ in range(2)]:
            raise SpaceError(
                f"Cell '{cell.name}' of '{self.name}' must have two edges into each of the nodes "
                f"2 to 5, got edges into {targets}."
            )

    def parse(self, text: str) -> Genotype:
        """Read `Genotype(normal=[...], normal_concat=..., reduce=[...], ...)`, or JSON."""
        genotype = parse(text, self.name)
        self.check(genotype)
        return genotype

    def format(self, genotype: Genotype) -> str:
        """Write `Genotype(normal=[...], normal_concat=..., reduce=[...], ...)`."""
        self.check(genotype)
        return format_darts(genotype)


def _layout(
    in_channels: int, num_classes: int, channels: int, cells: int, *, auxiliary: bool = False
) -> Layout:
    stem = _STEM_MULTIPLIER * channels
    reductions = (cells // 3, 2 * cells // 3)
    layers = []
    before, last, width, shrunk = stem, stem, channels, False
    for index in range(cells):
        reduces = index in reductions
        width = 2 * width if reduces else width
        out = width * len(_NODES)
        layers.append(
            CellLayer(
                cell="reduction" if reduces else "normal",
                channels=width,
                input_channels=(before, last),
                input_strides=(2 if shrunk else 1, 1),
                stride=2 if reduces else 1,
                out_channels=out,
            )
        )
        before, last, shrunk = last, out, reduces
    after = reductions[1] if auxiliary else None
    return Layout(in_channels, num_classes, stem, tuple(layers), False, after)


def build(config: Config, name: str) -> Space:
    """Return the space at these settings."""
    return Darts(name, config)
