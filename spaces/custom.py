"""A space described in the experiment file: nodes, edges, operations, cell types, stack."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from spaces.core.cell_space import described_space
from spaces.core.genotype import NONE

if TYPE_CHECKING:
    from spaces.core.genotype import Cell, Genotype
    from spaces.core.space import Space

SOURCE = "the experiment file; at its defaults the space of Liu et al., DARTS, ICLR 2019"

_ANY_TWO = ("skip_connect", "sep_conv_3x3")


@dataclass(frozen=True)
class Config:
    """The space; the defaults are that of DARTS. Nodes count from 0, the inputs of a cell first.

    Attributes:
        inputs: Cells before it that a cell reads: 1 or 2.
        nodes: Inner nodes of a cell.
        edges: "all" for those from every earlier node, or a list of [from, to] and of
            [from, to, [operation, ...]], whose candidates are its own.
        operations: Candidate operations of every other edge.
        output: "concat" of all inner nodes, or the "last" one.
        keep: Edges that a genotype keeps into each node: one number, one for each inner node, or
            "all". With "all" `none` may be chosen on an edge; else it never is.
        by_type: For a cell type, any of nodes, edges, operations, output and keep that differ.
        cell_types: "kind" for normal and reduction cells, "one" for the same in all places,
            "stage" for one of each stage, that is until the next reduction.
        channels: Channels of the first cell; each reduction doubles them.
        cells: Number of cells.
        reductions: Places, from 0, of the cells at which images are halved, or "thirds" for a third
            and two thirds of all. In a network of another depth they are moved in proportion.
        reduce_by: "cell": that cell has stride 2; "block": a residual block before it halves.
        project_inputs: Whether a 1x1 convolution brings each input to the channels of its cell.
        stem_multiplier: Channels of the stem, in those of the first cell.
        final_norm: Whether a batch norm and a ReLU stand before the classifier.
        pool_norm: Whether the supernet has a batch norm after pooling.
        network_channels: Channels of the first cell of a genotype's network, where `retrain` or a
            command does not give them.
        network_cells: Cells of such a network, likewise.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    inputs: int = 2
    nodes: int = 4
    edges: Literal["all"] | tuple[Any, ...] = "all"
    operations: tuple[str, ...] = (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
    )
    output: Literal["concat", "last"] = "concat"
    keep: Literal["all"] | int | tuple[int, ...] = 2
    by_type: dict[str, dict[str, Any]] | None = None
    cell_types: Literal["kind", "one", "stage"] = "kind"
    channels: int = 16
    cells: int = 8
    reductions: Literal["thirds"] | tuple[int, ...] = "thirds"
    reduce_by: Literal["cell", "block"] = "cell"
    project_inputs: bool = True
    stem_multiplier: int = 3
    final_norm: bool = False
    pool_norm: bool = True
    network_channels: int = 36
    network_cells: int = 20

    def __post_init__(self) -> None:
        # Here, because a Config is read without the rest of its file. It imports no torch.
        from spaces.core.cell_description import Description

        Description(**{field.name: getattr(self, field.name) for field in fields(self)})


def build(config: Config, name: str) -> Space:
    """Return the space at these settings."""
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    return described_space(name, config, **given)


def settings_for(genotype: Genotype) -> dict[str, Any]:
    """Return settings of a space that a genotype is of: its stack, and the operations it has."""
    by_type = {cell.name: _of_cell(cell) for cell in genotype.cells}
    stack = json.loads(genotype.stack) if genotype.stack else {}
    return {**stack, "inputs": genotype.cells[0].num_inputs, "by_type": by_type}


def _of_cell(cell: Cell) -> dict[str, Any]:
    operations = sorted({edge.operation for edge in cell.edges})
    if len(operations) < 2:  # a space must leave a choice
        operations += [name for name in _ANY_TWO if name not in operations][:1]
    inner = range(cell.num_inputs, cell.num_nodes)
    settings: dict[str, Any] = {
        "nodes": len(inner),
        "operations": operations,
        "output": "last" if cell.concat == (inner[-1],) else "concat",
    }
    if NONE in operations:  # it can be chosen only where all edges are kept
        edges = [[edge.source, edge.target] for edge in cell.edges]
        return settings | {"edges": edges, "keep": "all"}
    kept = [sum(edge.target == node for edge in cell.edges) for node in inner]
    return settings | {"edges": "all", "keep": kept}
