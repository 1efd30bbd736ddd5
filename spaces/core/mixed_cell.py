"""A cell of the supernet: what its edges give, summed at its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.errors import SpaceError
from spaces.core.layers import Source, from_phases
from spaces.core.layout import CellLayer, CellTopology
from spaces.core.mixture import Norm, Structure
from spaces.core.source_mix import NO_DRAWS, CellScales, Draws, EdgeOutputs, SourceMix
from spaces.core.weighted_sum import weighted_sum


class MixedCell(nn.Module):
    """A cell whose every edge runs all candidate operations, weighed by op weights.

    Raises:
        SpaceError: The cell's channels do not allow the structure.
    """

    def __init__(self, topology: CellTopology, layer: CellLayer, structure: Structure) -> None:
        super().__init__()
        _check(topology, layer, structure)
        self.topology = topology
        self.stride = layer.stride
        self.partial_channels = structure.partial_channels
        self.mixed_channels = layer.channels // structure.partial_channels
        self.mixes = nn.ModuleList()
        self.place_of_mix: dict[int, int] = {}  # of a node, if any edge leaves it
        for node in range(topology.num_nodes):
            rows = [row for row, (source, _) in enumerate(topology.edges) if source == node]
            if rows:
                mix = SourceMix(
                    [topology.of_edge(row) for row in rows],
                    rows,
                    self.mixed_channels,
                    stride=layer.stride if node < topology.num_inputs else 1,
                    pool_norm=topology.pool_norm,
                )
                self.place_of_mix[node] = len(self.mixes)
                self.mixes.append(mix)

    def forward(
        self,
        inputs: Sequence[Source],
        scales: CellScales,
        norm: Norm,
        draws: Draws = NO_DRAWS,
    ) -> Tensor:
        """Run the cell.

        Args:
            inputs: Input nodes, each `(B, C, H, W)`.
            scales: What every edge is mixed by, at the channels that operations see.
            norm: Which batch-norm statistics.
            draws: What is random; edges draw source by source, in the order of nodes.

        Returns:
            Concatenation of the output nodes, `(B, out_channels, H', W')`.
        """
        nodes = list(inputs)
        arriving = [EdgeOutputs() for _ in range(self.topology.num_nodes)]
        bypassing = [EdgeOutputs() for _ in arriving]
        for node in range(self.topology.num_nodes):
            if node >= len(nodes):
                nodes.append(self._node(node, arriving[node], bypassing[node], scales, inputs))
            if node not in self.place_of_mix:
                continue
            mix = cast(SourceMix, self.mixes[self.place_of_mix[node]])
            source = nodes[node]
            if self.partial_channels > 1:
                source, bypass = self._split(source.raw, mix.stride)
                for row in mix.rows:
                    into, weight = bypassing[self.topology.edges[row][1]], scales[row].edge_weight
                    if weight is None:
                        into.plain.append(bypass)
                    else:
                        into.weighted.append((weight, bypass))
            for row, outputs in zip(mix.rows, mix(source, scales, norm, draws), strict=True):
                arriving[self.topology.edges[row][1]].extend(outputs)
        outputs = [nodes[node].raw for node in self.topology.concat]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)

    def _split(self, x: Tensor, stride: int) -> tuple[Source, Tensor]:
        # What the operations see, and what bypasses them, at the size of their outputs.
        mixed, bypass = x.split([self.mixed_channels, x.shape[1] - self.mixed_channels], 1)
        if stride == 2:
            # ceil_mode keeps odd sides in step with the operations.
            bypass = functional.max_pool2d(bypass, 2, 2, ceil_mode=True)
        # Dense, so that the kernels that read them several times need no copies of their own.
        return Source(_dense(mixed)), _dense(bypass)

    def _node(
        self,
        node: int,
        arriving: EdgeOutputs,
        bypassing: EdgeOutputs,
        scales: CellScales,
        inputs: Sequence[Source],
    ) -> Source:
        plain = arriving.plain
        if arriving.phased:
            plain.append(from_phases(weighted_sum([], arriving.phased)))
        if plain or arriving.weighted:
            total = weighted_sum(arriving.weighted, plain)
        else:
            # Every space gives all nodes of a cell the size of its strided inputs.
            like = inputs[0].raw[:, : self.mixed_channels, :: self.stride, :: self.stride]
            total = torch.zeros_like(like, memory_format=torch.channels_last)
        offsets = [
            scale.offset
            for (_, target), scale in zip(self.topology.edges, scales, strict=True)
            if target == node and scale.offset is not None
        ]
        if offsets:
            total = total + torch.stack(offsets).sum()
        if self.partial_channels > 1:
            total = shuffled(total, weighted_sum(bypassing.weighted, bypassing.plain))
        return Source(total)


def shuffled(mixed: Tensor, bypass: Tensor) -> Tensor:
    """Concatenate and shuffle channels in groups as large as the first.

    With C / K channels of the first and K groups in all, output channel j K + g is channel j of
    group g. This is the same for all edges, so that it is done once for their sum.

    Args:
        mixed: `(B, C / K, H, W)`.
        bypass: `(B, C - C / K, H, W)`.

    Returns:
        `(B, C, H, W)`.
    """
    groups = [part.permute(0, 2, 3, 1) for part in (mixed, *bypass.split(mixed.shape[1], 1))]
    return torch.stack(groups, -1).flatten(-2).permute(0, 3, 1, 2)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def check_structure(layer: CellLayer, structure: Structure) -> None:
    """Raise SpaceError unless a cell can be built with a structure."""
    parts = structure.partial_channels
    if parts > 1 and structure.auxiliary_skip:
        raise SpaceError(
            "A supernet cannot have both partial channels and an auxiliary skip: no method says "
            "which channels the branch sees. Use one of the two."
        )
    if layer.channels % parts:
        raise SpaceError(
            f"partial_channels must divide the channels of every cell, got {parts} for "
            f"{layer.channels} channels of cell '{layer.cell}'. Choose other channels."
        )


def _check(topology: CellTopology, layer: CellLayer, structure: Structure) -> None:
    check_structure(layer, structure)
    parts = structure.partial_channels
    halves = "skip_connect" in topology.operations or structure.auxiliary_skip
    if halves and layer.stride == 2 and layer.channels // parts < 2:
        raise SpaceError(
            f"The operations of cell '{layer.cell}' must see at least 2 channels to halve the "
            f"image without losing pixels, got {layer.channels} channels / {parts} partial "
            "channels. Use more channels or a smaller partial_channels."
        )
