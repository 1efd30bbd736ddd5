"""The supernet engine: one code path per source node, no search state, no globals.

What makes it fast on a CPU: channels_last; `none` costs nothing; ReLU, pooling and its batch norm
run once per source node and not once per edge; dense convolutions of one size that leave a node run
as one; dilated convolutions run without dilation on the phases of the image; op weights enter as
the weight of the operation's last batch norm, so that mixing costs no pass over the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor, nn

from spaces.core.errors import SpaceError
from spaces.core.layers import BatchNorm, ConvNorm, Source, from_phases
from spaces.core.layout import CellLayer, CellTopology, Layout
from spaces.core.mixture import Mixture, Norm
from spaces.core.operations import DilatedConv, build_operation, is_pool, pool
from spaces.core.trunk import Trunk
from spaces.core.weighted_sum import weighted_sum

_DENSE = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


@dataclass(frozen=True)
class EdgeScales:
    """Op weights of one edge in the two forms in which they are used.

    Attributes:
        scalars: One 0-dimensional tensor for each operation.
        vectors: The same, each repeated to `(C,)`, contiguous.
    """

    scalars: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]


def edge_scales(op_weights: Tensor, channels: int) -> tuple[EdgeScales, ...]:
    """Split op weights `(num_edges, num_ops)` into one `EdgeScales` for each edge."""
    num_edges, num_ops = op_weights.shape
    # One copy for all: an expanded scalar as a norm's weight gives NaN gradients on the CPU.
    repeated = op_weights.reshape(-1).repeat_interleave(channels).view(num_edges, num_ops, channels)
    return tuple(
        EdgeScales(scalars.unbind(), vectors.unbind())
        for scalars, vectors in zip(op_weights.unbind(), repeated.unbind(), strict=True)
    )


@dataclass(frozen=True)
class EdgeOutputs:
    """Weighted outputs of one edge, or of all edges that enter a node.

    Attributes:
        plain: Images, each `(B, C, H, W)`.
        phased: Images in phases, each `(4 B, C, H / 2, W / 2)`; only their sum is put together.
    """

    plain: list[Tensor]
    phased: list[Tensor]


class SourceMix(nn.Module):
    """All candidate operations of all edges that leave one node.

    Args:
        operations: Candidate operations, the columns of the op weights.
        rows: Rows of the op weights, one for each edge that leaves the node.
        channels: Channels of a node.
        stride: 1 or 2.
        pool_norm: Whether pooling is followed by a batch norm.
    """

    def __init__(
        self,
        operations: Sequence[str],
        rows: Sequence[int],
        channels: int,
        *,
        stride: int,
        pool_norm: bool,
    ) -> None:
        super().__init__()
        self.rows = tuple(rows)
        self.channels = channels
        self.stride = stride
        self.operations = tuple(operations)
        self.pools = tuple(name for name in operations if is_pool(name))
        self.skips = stride == 1 and "skip_connect" in operations
        self.pool_norms = nn.ModuleDict(
            {name: BatchNorm(channels, affine=False) for name in self.pools if pool_norm}
        )
        self.dense = nn.ModuleDict(
            {
                name: ConvNorm(
                    channels, len(self.rows) * channels, kernel, stride=stride, affine=False
                )
                for name, kernel in _DENSE.items()
                if name in operations
            }
        )
        shared = {"none", *self.pools, *self.dense, *(["skip_connect"] * self.skips)}
        self.edge_operations = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    build_operation(name, channels, stride=stride, affine=False) for _ in self.rows
                )
                for name in operations
                if name not in shared
            }
        )

    def linear_terms(self, source: Source, norm: Norm) -> list[tuple[int, Tensor]]:
        """Return (column, feature) of what edges only have to weigh: the pools and the skip."""
        terms = []
        for name in self.pools:
            feature = pool(source.raw, name, self.stride)
            if name in self.pool_norms:
                feature = self.pool_norms[name](feature, norm)
            terms.append((self.operations.index(name), feature))
        if self.skips:
            terms.append((self.operations.index("skip_connect"), source.raw))
        return terms

    def forward(
        self, source: Source, scales: Sequence[EdgeScales], norm: Norm
    ) -> list[EdgeOutputs]:
        """Return, for each edge, the weighted outputs of its convolutions."""
        outputs = [EdgeOutputs([], []) for _ in self.rows]
        wide: Tensor | None = None
        for name, convolution in self.dense.items():
            column = self.operations.index(name)
            scale = torch.cat([scales[row].vectors[column] for row in self.rows])
            output = convolution(source, norm, scale)
            wide = output if wide is None else wide + output
        if wide is not None:
            for into, part in zip(outputs, wide.split(self.channels, 1), strict=True):
                into.plain.append(part)
        for name in self.edge_operations:
            column = self.operations.index(name)
            operations = cast(nn.ModuleList, self.edge_operations[name])
            for into, row, operation in zip(outputs, self.rows, operations, strict=True):
                scale = scales[row].vectors[column]
                if self.stride == 1 and source.has_phases and isinstance(operation, DilatedConv):
                    into.phased.append(operation.in_phases(source, norm, scale))
                else:
                    into.plain.append(operation(source, norm, scale))
        return outputs


class MixedCell(nn.Module):
    """A cell whose every edge runs all candidate operations, weighed by op weights."""

    def __init__(self, topology: CellTopology, layer: CellLayer) -> None:
        super().__init__()
        self.topology = topology
        self.mixes = nn.ModuleList()
        for node in range(topology.num_nodes):
            rows = [row for row, (source, _) in enumerate(topology.edges) if source == node]
            if rows:
                mix = SourceMix(
                    topology.operations,
                    rows,
                    layer.channels,
                    stride=layer.stride if node < topology.num_inputs else 1,
                    pool_norm=topology.pool_norm,
                )
                self.mixes.append(mix)

    def forward(self, inputs: Sequence[Source], scales: Sequence[EdgeScales], norm: Norm) -> Tensor:
        """Run the cell.

        Args:
            inputs: Input nodes, each `(B, C, H, W)`.
            scales: Op weights of every edge, at this cell's channels.
            norm: Which batch-norm statistics.

        Returns:
            Concatenation of the output nodes, `(B, out_channels, H', W')`.
        """
        nodes = list(inputs)
        arriving = [EdgeOutputs([], []) for _ in range(self.topology.num_nodes)]
        weighted: list[list[tuple[Tensor, Tensor]]] = [[] for _ in arriving]
        for node in range(self.topology.num_nodes):
            if node >= len(nodes):
                plain, phased = arriving[node].plain, arriving[node].phased
                if phased:
                    plain.append(from_phases(weighted_sum([], phased)))
                nodes.append(Source(weighted_sum(weighted[node], plain)))
            if node >= len(self.mixes):
                continue
            mix = cast(SourceMix, self.mixes[node])
            terms = mix.linear_terms(nodes[node], norm)
            for row, outputs in zip(mix.rows, mix(nodes[node], scales, norm), strict=True):
                target = self.topology.edges[row][1]
                arriving[target].plain.extend(outputs.plain)
                arriving[target].phased.extend(outputs.phased)
                weighted[target].extend(
                    (scales[row].scalars[column], feature) for column, feature in terms
                )
        outputs = [nodes[node].raw for node in self.topology.concat]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


class Supernet(nn.Module):
    """Over-parameterised network: weights and running statistics, and nothing else.

    A pass is a function of (weights, running statistics, mixture, images): alphas live outside.
    """

    def __init__(self, topologies: Sequence[CellTopology], layout: Layout) -> None:
        super().__init__()
        self.topologies = {topology.name: topology for topology in topologies}
        self.trunk = Trunk(layout, lambda layer: MixedCell(self.topologies[layer.cell], layer))
        cells = [layer for layer in layout.layers if isinstance(layer, CellLayer)]
        self.num_cells = {
            name: sum(layer.cell == name for layer in cells) for name in self.topologies
        }
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        mixture: Mixture,
        *,
        norm: Norm = "batch",
        generator: torch.Generator | None = None,  # noqa: ARG002 (no operation is random yet)
    ) -> Tensor:
        """Classify images.

        Args:
            images: `(B, in_channels, H, W)`.
            mixture: Op weights of every cell type.
            norm: Statistics of the batch norms: "batch", "batch_and_update" or "running".
            generator: Source of all randomness inside the network.

        Returns:
            Logits, `(B, num_classes)`.

        Raises:
            SpaceError: The mixture has a wrong shape, or there is no such `norm`.
        """
        self._check(mixture, norm)
        shared: dict[tuple[str, int], tuple[EdgeScales, ...]] = {}
        seen = dict.fromkeys(self.topologies, 0)

        def run_cell(cell: nn.Module, layer: CellLayer, inputs: Sequence[Source]) -> Tensor:
            op_weights = mixture.op_weights[layer.cell]
            if op_weights.dim() == 3:
                scales = edge_scales(op_weights[seen[layer.cell]], layer.channels)
                seen[layer.cell] += 1
            else:
                key = (layer.cell, layer.channels)
                if key not in shared:
                    shared[key] = edge_scales(op_weights, layer.channels)
                scales = shared[key]
            return cell(inputs, scales, norm)

        return self.trunk(images, norm, run_cell)[0]

    def _check(self, mixture: Mixture, norm: Norm) -> None:
        if norm not in get_args(Norm):
            raise SpaceError(f"norm must be one of {get_args(Norm)}, got {norm!r}.")
        for name, topology in self.topologies.items():
            shape = (len(topology.edges), len(topology.operations))
            if name not in mixture.op_weights:
                raise SpaceError(
                    f"op_weights must have the cell type '{name}', got {list(mixture.op_weights)}."
                )
            got = tuple(mixture.op_weights[name].shape)
            if got not in (shape, (self.num_cells[name], *shape)):
                raise SpaceError(
                    f"op_weights['{name}'] must have shape {shape} or "
                    f"{(self.num_cells[name], *shape)}, got {got}."
                )
