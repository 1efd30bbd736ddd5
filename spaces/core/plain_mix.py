"""What leaves a node one operation at a time: nothing is shared, joined or folded into a norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from spaces.core.layers import BatchNorm, ConvNorm, Source
from spaces.core.mixture import Norm
from spaces.core.operations import NOISE, noise_like, pool

if TYPE_CHECKING:
    from spaces.core.source_mix import Draws, EdgeOutputs, EdgeScales, SourceMix


def run_plainly(
    mix: SourceMix,
    source: Source,
    mine: Sequence[EdgeScales],
    norm: Norm,
    outputs: Sequence[EdgeOutputs],
    draws: Draws,
) -> None:
    """Add the output of every operation of every edge, times its op weight, to that edge's outputs.

    Args:
        mix: The operations; its weights, statistics and draws are used as by any other form.
        source: The node.
        mine: Of each edge that leaves it.
        norm: Which batch-norm statistics.
        outputs: Of each of these edges.
        draws: Edges draw noise first, then the dropout of skips, operation by operation.
    """
    # In the order in which the other forms draw.
    shared = [NOISE, *mix.pools, *(["skip_connect"] * mix.skips)]
    names = [*(name for name in shared if name in mix.candidates), *mix.dense, *mix.edge_operations]
    for name in names:
        first = True
        for place, (index, column) in enumerate(mix.candidates[name]):
            if not mine[index].runs(column):
                continue
            # A pool's norm is one for all edges, whose statistics move once in a pass.
            mode: Norm = "batch" if norm == "batch_and_update" and not first else norm
            first = False
            weight = mine[index].scalars[column]
            x = _output(mix, name, place, source.raw, norm, mode, draws)
            if name == "skip_connect" and mix.skips and draws.skip_dropout > 0:
                x = draws.drop(x) / (1.0 - draws.skip_dropout)
            outputs[index].plain.append(weight * x)


def _output(
    mix: SourceMix, name: str, place: int, raw: Tensor, norm: Norm, shared_norm: Norm, draws: Draws
) -> Tensor:
    if name == NOISE:
        return noise_like(raw[:, :, :: mix.stride, :: mix.stride], draws.generator)
    if name in mix.pools:
        x = pool(raw, name, mix.stride)
        if name in mix.pool_norms:
            x = cast(BatchNorm, mix.pool_norms[name])(x, shared_norm)
        return x
    if name in mix.dense:
        rows = slice(place * mix.channels, (place + 1) * mix.channels)
        layer = cast(ConvNorm, mix.dense[name])
        return layer.on_rows(Source(raw), norm, None, rows)
    if name in mix.edge_operations:
        operation = cast(nn.ModuleList, mix.edge_operations[name])[place]
        return operation(Source(raw), norm)
    return raw
