"""What several tests of spaces share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spaces.core import plugins
from spaces.core.genotype import Genotype
from spaces.core.network import Network
from spaces.core.operations import Pool
from spaces.core.source_mix import SourceMix
from spaces.core.space import Space
from spaces.core.supernet import Supernet


def space_of(settings: str | dict[str, Any]) -> Space:
    """Return a space by the settings of an experiment file."""
    name, config = plugins.make_config("spaces", settings)
    return plugins.load("spaces", name).build(config, name)


def one_hot(space: Space, genotype: Genotype, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return op weights that are 1 where the genotype has an operation, and 0 elsewhere."""
    op_weights = {}
    for name, shape in space.alpha_shapes().items():
        op_weights[name] = torch.zeros(shape, dtype=dtype)
        for edge in genotype.cell(name).edges:
            row = space.edges[name].index((edge.source, edge.target))
            column = space.operations_of(name, row).index(edge.operation)
            op_weights[name][row, column] = 1.0
    return op_weights


class _PoolThenNorm(nn.Module):
    """In the DARTS space the supernet normalises after pooling; the published network does not."""

    def __init__(self, pool: Pool, norm: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.norm = norm

    def forward(self, source: Any, norm: Any) -> torch.Tensor:
        return self.norm(self.pool(source, norm), norm)


def give_weights(supernet: Supernet, network: Network) -> None:
    """Copy the supernet's weights of the operations that a network kept into the network.

    Norms of the network have weights of their own, which stay 1, and 0 for the bias.
    """
    ours, theirs = supernet.trunk, network.trunk
    with torch.no_grad():
        theirs.stem.load_state_dict(ours.stem.state_dict())
        theirs.head.load_state_dict(ours.head.state_dict())
        theirs.projections.load_state_dict(ours.projections.state_dict(), strict=False)
        for mixed, cell in zip(ours.layers, theirs.layers, strict=True):
            if not hasattr(cell, "edges"):
                cell.load_state_dict(mixed.state_dict())
                continue
            rows = mixed.topology.edges
            for index, edge in enumerate(cell.edges):
                mix = mixed.mixes[mixed.place_of_mix[edge.source]]
                position = mix.rows.index(rows.index((edge.source, edge.target)))
                state = _state(mix, edge.operation, position)
                cell.operations[index].load_state_dict(state, strict=False)
                if edge.operation in mix.pool_norms:
                    cell.operations[index] = _PoolThenNorm(
                        cell.operations[index], mix.pool_norms[edge.operation]
                    )


def _state(mix: SourceMix, operation: str, position: int) -> dict[str, torch.Tensor]:
    if operation in mix.dense:
        rows = slice(position * mix.channels, (position + 1) * mix.channels)
        return {name: value[rows] for name, value in mix.dense[operation].state_dict().items()}
    if operation in mix.edge_operations:
        index = sum(operation in names for names in mix.operations[:position])
        return mix.edge_operations[operation][index].state_dict()
    return {}
