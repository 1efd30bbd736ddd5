"""NAS-Bench-201: one cell of 4 nodes and 6 edges, 5 operations, 3 stages."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, EdgeChoice, Genotype
from spaces.core.layout import CellLayer, CellTopology, Layout, ResidualLayer
from spaces.core.space import Evaluation, Space
from spaces.core.text import format_nasbench201, parse

SOURCE = "Dong & Yang, NAS-Bench-201, ICLR 2020, https://arxiv.org/abs/2001.00326"

_TOPOLOGY = CellTopology(
    name="cell",
    num_inputs=1,
    edges=((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
    operations=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    concat=(3,),
    pool_norm=False,
)


@dataclass(frozen=True)
class Config:
    """Size of the supernet.

    Attributes:
        channels: Channels of the first stage; each further stage has twice as many.
        cells_per_stage: Cells of each of the three stages.

    Raises:
        ValueError: A value is out of range.
    """

    channels: int = 16
    cells_per_stage: int = 5

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be >= 1, got {self.channels}.")
        if self.cells_per_stage < 1:
            raise ValueError(f"cells_per_stage must be >= 1, got {self.cells_per_stage}.")


class NasBench201(Space):
    """The cell space of NAS-Bench-201."""

    evaluation = Evaluation(channels=16, cells=5, classes=10)
    has_auxiliary = False

    def __init__(self, name: str, config: Config) -> None:
        super().__init__(name, config, (_TOPOLOGY,))

    @property
    def num_choices(self) -> int:
        """Number of cells: one of five operations on each of six edges."""
        edges, operations = _TOPOLOGY.shape
        return operations**edges

    def search_size(self) -> tuple[int, int]:
        """Return channels of the first stage and cells of each stage of the supernet."""
        return self.config.channels, self.config.cells_per_stage

    def with_cells(self, cells: int) -> Space:
        """Return the space with another number of cells in each stage of its supernet."""
        return self._with_settings(cells_per_stage=cells)

    def supernet_layout(self, in_channels: int, num_classes: int) -> Layout:
        """Return three stages of cells with residual blocks between them."""
        return _layout(in_channels, num_classes, self.config.channels, self.config.cells_per_stage)

    def network_layout(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int,
        cells: int,
        auxiliary: bool,  # noqa: ARG002 (refused by build_network)
    ) -> Layout:
        """Return the same stack: supernet and evaluation network differ in the cell alone."""
        return _layout(in_channels, num_classes, channels, cells)

    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Return the cell with the strongest of all five operations on every edge."""
        best = op_weights.argmax(1).tolist()
        edges = tuple(
            EdgeChoice(source, target, _TOPOLOGY.operations[index])
            for (source, target), index in zip(_TOPOLOGY.edges, best, strict=True)
        )
        return Cell(name, edges, _TOPOLOGY.concat)

    def check_cell(self, cell: Cell) -> None:
        """Raise SpaceError unless the cell has each of the six edges once and node 3 as output."""
        got = [(edge.source, edge.target) for edge in cell.edges]
        if sorted(got) != sorted(_TOPOLOGY.edges) or cell.concat != _TOPOLOGY.concat:
            raise SpaceError(
                f"A cell of '{self.name}' must have each of the edges {list(_TOPOLOGY.edges)} once "
                f"('none' included) and the output node 3, got {got} and {list(cell.concat)}."
            )

    def parse(self, text: str) -> Genotype:
        """Read `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, or JSON."""
        genotype = parse(text, self.name)
        self.check(genotype)
        return genotype

    def format(self, genotype: Genotype) -> str:
        """Write `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
        self.check(genotype)
        return format_nasbench201(genotype)


def _layout(in_channels: int, num_classes: int, channels: int, cells: int) -> Layout:
    layers: list[CellLayer | ResidualLayer] = []
    for stage in range(3):
        width = channels * 2**stage
        if stage:
            layers.append(ResidualLayer(width // 2, width))
        layers.extend([CellLayer("cell", width, (width,), (), 1, width)] * cells)
    return Layout(in_channels, num_classes, channels, tuple(layers), final_norm=True)


def build(config: Config, name: str) -> Space:
    """Return the space at these settings."""
    return NasBench201(name, config)
