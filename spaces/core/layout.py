"""How a space describes itself to the engine: the edges of its cells and how cells are stacked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from spaces.core.errors import SpaceError

Stem = Literal["cifar", "imagenet"]
"""What stands before the cells: one convolution, or three that make images 8 times smaller."""


@dataclass(frozen=True)
class CellTopology:
    """Edges and candidate operations of one cell type.

    Attributes:
        name: Cell type.
        num_inputs: Number of input nodes, which come first.
        edges: (source, target) of every edge: the rows of the op weights.
        operations: Candidate operations: the columns of the op weights; where edges have candidates
            of their own, all that any edge has.
        concat: Nodes whose outputs are concatenated into the cell's output.
        pool_norm: Whether a pooling candidate of the supernet is followed by a batch norm.
        by_edge: For every edge the candidate operations it has, equally many; None is the same for
            all.
    """

    name: str
    num_inputs: int
    edges: tuple[tuple[int, int], ...]
    operations: tuple[str, ...]
    concat: tuple[int, ...]
    pool_norm: bool
    by_edge: tuple[tuple[str, ...], ...] | None = None

    def of_edge(self, row: int) -> tuple[str, ...]:
        """Return the candidate operations of an edge: the columns of its row of op weights."""
        return self.operations if self.by_edge is None else self.by_edge[row]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (num_edges, num_ops): the shape of the op weights."""
        return len(self.edges), len(self.of_edge(0))

    @property
    def num_nodes(self) -> int:
        """Number of nodes, inputs included."""
        return max(target for _, target in self.edges) + 1


@dataclass(frozen=True)
class CellLayer:
    """One cell in the stack.

    Attributes:
        cell: Cell type.
        channels: Channels of every node.
        input_channels: Channels of each input, as it comes from an earlier layer.
        input_strides: Stride of the projection of each input; empty if inputs are not projected.
        stride: Stride of the edges that leave an input node.
        out_channels: Channels of the output.
    """

    cell: str
    channels: int
    input_channels: tuple[int, ...]
    input_strides: tuple[int, ...]
    stride: int
    out_channels: int


@dataclass(frozen=True)
class ResidualLayer:
    """A residual block with stride 2 between two stages of cells."""

    in_channels: int
    out_channels: int


@dataclass(frozen=True)
class Layout:
    """A whole network: stem, layers, head.

    Attributes:
        in_channels: Channels of the images.
        num_classes: Classes.
        stem_channels: Channels of the stem's last 3x3 convolution.
        layers: Cells and residual blocks in order.
        final_norm: Whether a batch norm and a ReLU come before global pooling.
        auxiliary_after: Index of the layer whose output feeds the auxiliary head, None for no head.
        stem: Which stem, and with it which auxiliary head.
    """

    in_channels: int
    num_classes: int
    stem_channels: int
    layers: tuple[CellLayer | ResidualLayer, ...]
    final_norm: bool
    auxiliary_after: int | None = None
    stem: Stem = "cifar"


def on_imagenet_stem(layout: Layout, channels: int) -> Layout:
    """Return a stack of cells with the ImageNet stem in the place of its own.

    The first cell reads the stem's last two outputs, the earlier of which is twice as large.

    Args:
        layout: A stack whose first two layers are cells of two projected inputs.
        channels: Channels of the first cell, which are those of the stem too.

    Raises:
        SpaceError: There is one cell alone.

    Source:
        DARTS authors' code, cnn/model.py, NetworkImageNet.
    """
    if len(layout.layers) < 2:
        raise SpaceError(f"cells must be >= 2 with the stem of ImageNet, got {len(layout.layers)}.")
    first, second, *rest = layout.layers
    if not (isinstance(first, CellLayer) and isinstance(second, CellLayer)):
        raise TypeError("The ImageNet stem stands before two cells.")
    first = replace(first, input_channels=(channels, channels), input_strides=(2, 1))
    second = replace(second, input_channels=(channels, second.input_channels[1]))
    layers = (first, second, *rest)
    return replace(layout, stem="imagenet", stem_channels=channels, layers=layers)
