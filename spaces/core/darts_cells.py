"""What the spaces of DARTS cells share: the cell's graph, its operations, its rule, the stack."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from spaces.core.errors import SpaceError
from spaces.core.genotype import NONE, Cell, EdgeChoice
from spaces.core.layout import CellLayer, CellTopology, Layout

NORMAL, REDUCTION = "normal", "reduction"

_NODES = range(2, 6)
_KEPT = 2
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


def topology(name: str, num_ops: int) -> CellTopology:
    """Return the cell of 4 nodes and 14 edges, with 8 operations or the last 7, without `none`."""
    return topology_of(name, last_operations(num_ops))


def last_operations(num_ops: int) -> tuple[str, ...]:
    """Return the 8 operations, or the last 7 of them, without `none`."""
    return _OPERATIONS[-num_ops:]


def topology_of(
    name: str,
    operations: Sequence[str],
    by_edge: Sequence[tuple[str, ...]] | None = None,
    *,
    nearest: bool = False,
) -> CellTopology:
    """Return the cell of 4 nodes and 14 edges with other candidates, of all edges or of each.

    Args:
        name: Cell type.
        operations: Candidate operations of all edges; with `by_edge` all that any edge has.
        by_edge: Those of each edge.
        nearest: Whether it has only the 8 edges from the two nodes before each node.
    """
    own = None if by_edge is None else tuple(by_edge)
    edges = tuple(edge for edge in _EDGES if not nearest or edge[1] - edge[0] <= _KEPT)
    return CellTopology(name, 2, edges, tuple(operations), tuple(_NODES), True, own)


def selectable(operations: Sequence[str]) -> list[int]:
    """Return all columns but that of `none`."""
    return [index for index, operation in enumerate(operations) if operation != NONE]


def choose_cell(
    name: str, topology: CellTopology, op_weights: Tensor, *, keep_all: bool = False
) -> Cell:
    """Keep the two strongest edges into every node, each with its strongest operation.

    The strength of an edge is its largest op weight other than that of `none`; ties go to the
    lower index, of edges as of operations.

    Args:
        name: Cell type.
        topology: Whose candidate operations the columns of the op weights are.
        op_weights: `(num_edges, num_ops)`; only their order matters.
        keep_all: Whether to keep every edge instead.
    """
    columns = selectable(topology.of_edge(0))  # `none` is a candidate of all edges or of none
    strength, best = op_weights[:, columns].max(1)
    # argmax, unlike max, is documented to return the first of several maxima.
    best = op_weights[:, columns].argmax(1)
    strengths = strength.tolist()
    kept = []
    for node in _NODES:
        rows = [row for row, (_, target) in enumerate(topology.edges) if target == node]
        strongest = sorted(rows, key=lambda row: (-strengths[row], row))
        for row in strongest if keep_all else strongest[:_KEPT]:
            operation = topology.of_edge(row)[columns[int(best[row])]]
            kept.append(EdgeChoice(*topology.edges[row], operation))
    return Cell(name, tuple(kept), tuple(_NODES))


def num_choices(topology: CellTopology, *, keep_all: bool = False) -> int:
    """Return the number of cells: two edges into every node, each with an operation but `none`.

    Args:
        topology: Edges and candidates.
        keep_all: Whether every edge is kept instead of two.
    """
    per_edge = len(selectable(topology.of_edge(0)))
    targets = [target for _, target in topology.edges]
    arriving = [targets.count(node) for node in _NODES]
    if keep_all:
        return per_edge ** sum(arriving)
    return math.prod(math.comb(count, _KEPT) * per_edge**_KEPT for count in arriving)


def keeps_all(cell: Cell) -> bool:
    """Say whether a cell has all 14 edges, and not two into every node."""
    return len(cell.edges) == len(_EDGES)


def check_cell(cell: Cell, space: str, *, keep_all: bool = False) -> None:
    """Raise SpaceError unless two edges lead into each of nodes 2 to 5, or all 14 edges do."""
    targets = [edge.target for edge in cell.edges]
    if keep_all:
        if tuple((edge.source, edge.target) for edge in cell.edges) != _EDGES:
            raise SpaceError(
                f"Cell '{cell.name}' of '{space}' must have each of the 14 edges once, got edges "
                f"into {targets}."
            )
        return
    if targets != [node for node in _NODES for _ in range(2)]:
        raise SpaceError(
            f"Cell '{cell.name}' of '{space}' must have two edges into each of the nodes "
            f"2 to 5, got edges into {targets}."
        )


def kinds(cells: int) -> tuple[str, ...]:
    """Return the kind of each cell of a stack: those at a third and at two thirds reduce."""
    reductions = _reductions(cells)
    return tuple(REDUCTION if index in reductions else NORMAL for index in range(cells))


def stack(
    in_channels: int,
    num_classes: int,
    channels: int,
    names: Sequence[str],
    *,
    auxiliary: bool = False,
) -> Layout:
    """Return the stack of cells of DARTS, of a supernet as of a network.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        channels: Channels of the first cell; each reduction doubles them.
        names: Cell type of each cell, in order; which of them reduce is a matter of place alone.
        auxiliary: Whether an auxiliary head follows the second reduction.

    Raises:
        SpaceError: There is one channel alone, which a reduction cannot be built for.
    """
    if channels < 2:
        raise SpaceError(f"channels must be >= 2, got {channels}.")
    stem = _STEM_MULTIPLIER * channels
    layers = []
    before, last, width, shrunk = stem, stem, channels, False
    for name, kind in zip(names, kinds(len(names)), strict=True):
        reduces = kind == REDUCTION
        width = 2 * width if reduces else width
        out = width * len(_NODES)
        layers.append(
            CellLayer(
                cell=name,
                channels=width,
                input_channels=(before, last),
                input_strides=(2 if shrunk else 1, 1),
                stride=2 if reduces else 1,
                out_channels=out,
            )
        )
        before, last, shrunk = last, out, reduces
    after = _reductions(len(names))[1] if auxiliary else None
    return Layout(in_channels, num_classes, stem, tuple(layers), False, after)


def _reductions(cells: int) -> tuple[int, int]:
    return cells // 3, 2 * cells // 3
