"""What one node gives: every candidate operation of all edges that leave it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from spaces.core.layers import BatchNorm, ConvNorm, FactorizedReduce, Source
from spaces.core.mixture import Form, Norm
from spaces.core.operations import NOISE, DilatedConv, build_operation, is_pool, noise_like, pool
from spaces.core.own_operation import OwnOperation
from spaces.core.plain_mix import run_plainly
from spaces.core.wide_mix import WideMix

_DENSE = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


@dataclass(frozen=True)
class EdgeScales:
    """What one edge is mixed by, in the forms in which it is used, edge weight included.

    Attributes:
        scalars: Op weights, one 0-dimensional tensor for each operation.
        vectors: The same, each repeated to `(C,)`, contiguous.
        active: Whether each operation is executed; None for all.
        edge_weight: Factor of what bypasses the operations, 0-dimensional; None for 1.
        offset: What is added to every entry, 0-dimensional; None for nothing.
        skip: Factor of the auxiliary skip branch, as scalar and as vector; None for no branch.
    """

    scalars: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]
    active: Sequence[bool] | None = None
    edge_weight: Tensor | None = None
    offset: Tensor | None = None
    skip: tuple[Tensor, Tensor] | None = None

    def runs(self, column: int) -> bool:
        """Say whether an operation is executed."""
        return self.active is None or self.active[column]


@dataclass(frozen=True)
class CellScales(Sequence[EdgeScales]):
    """What the edges of a cell are mixed by, one by one and as one tensor.

    Attributes:
        edges: One for each edge.
        scalars: Op weights of all edges, edge weights included, `(num_edges * num_ops,)`.
        vectors: The same, each repeated, `(num_edges * num_ops, C)`.
    """

    edges: tuple[EdgeScales, ...]
    scalars: Tensor
    vectors: Tensor

    def __getitem__(self, edge: Any) -> Any:
        return self.edges[edge]

    def __len__(self) -> int:
        return len(self.edges)


@dataclass(frozen=True)
class Draws:
    """All that is random in a pass.

    Attributes:
        generator: Source of the randomness, on the device of the images; None where there is none.
        skip_dropout: Probability of dropping an entry of a skip connection, [0, 1).
    """

    generator: torch.Generator | None
    skip_dropout: float = 0.0

    def drop(self, x: Tensor) -> Tensor:
        """Return `x`, `(B, C, H, W)`, with random entries zeroed and none rescaled."""
        batch, channels, height, width = x.shape
        shape = (batch, height, width, channels)  # channels_last, like the images
        draws = torch.rand(shape, generator=self.generator, device=x.device)
        return x.masked_fill((draws < self.skip_dropout).permute(0, 3, 1, 2), 0.0)


NO_DRAWS = Draws(None)


@dataclass(frozen=True)
class EdgeOutputs:
    """Outputs of one edge, or of all edges that enter a node; they are to be summed.

    Attributes:
        plain: Images, each `(B, C, H, W)`.
        phased: Images in phases, each `(4 B, C, H / 2, W / 2)`; only their sum is put together.
        weighted: Images with a 0-dimensional factor, (factor, image).
    """

    plain: list[Tensor] = field(default_factory=list)
    phased: list[Tensor] = field(default_factory=list)
    weighted: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def extend(self, other: EdgeOutputs) -> None:
        """Take in the outputs of another edge."""
        self.plain.extend(other.plain)
        self.phased.extend(other.phased)
        self.weighted.extend(other.weighted)


class SourceMix(nn.Module):
    """All candidate operations of all edges that leave one node.

    Args:
        operations: Candidate operations of each edge that leaves the node: the columns of its row.
        rows: Rows of the op weights, one for each of these edges.
        channels: Channels of a node that the operations see.
        stride: 1 or 2.
        pool_norm: Whether pooling is followed by a batch norm.

    Attributes:
        form: How the operations are run; the weights are the same for all.
    """

    form: Form = "edge"

    def __init__(
        self,
        operations: Sequence[Sequence[str]],
        rows: Sequence[int],
        channels: int,
        *,
        stride: int,
        pool_norm: bool,
    ) -> None:
        super().__init__()
        self._wide: WideMix | None = None
        self.rows = tuple(rows)
        self.channels = channels
        self.stride = stride
        self.operations = tuple(tuple(names) for names in operations)
        # Those that any edge has, in the order in which they come, with the edges that have it:
        # their index, and its column in their rows.
        self.candidates: dict[str, list[tuple[int, int]]] = {}
        for index, names in enumerate(operations):
            for column, name in enumerate(names):
                self.candidates.setdefault(name, []).append((index, column))
        self.pools = tuple(name for name in self.candidates if is_pool(name))
        self.skips = stride == 1 and "skip_connect" in self.candidates
        self.pool_norms = nn.ModuleDict(
            {name: BatchNorm(channels, affine=False) for name in self.pools if pool_norm}
        )
        self.dense = nn.ModuleDict(
            {
                name: ConvNorm(
                    channels, len(self.rows) * channels, kernel, stride=stride, affine=False
                )
                for name, kernel in _DENSE.items()
                if self._on_all_edges(name)
            }
        )
        shared = {"none", NOISE, *self.pools, *self.dense, *(["skip_connect"] * self.skips)}
        self.edge_operations = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    build_operation(name, channels, stride=stride, affine=False)
                    for names in operations
                    if name in names
                )
                for name in self.candidates
                if name not in shared
            }
        )

    def _on_all_edges(self, name: str) -> bool:
        # In one column of all edges it is one wide convolution; elsewhere one for each edge.
        pairs = self.candidates.get(name, ())
        return len(pairs) == len(self.rows) and len({column for _, column in pairs}) == 1

    def add_auxiliary_skips(self) -> None:
        """Give every edge the weights of its auxiliary skip branch; at stride 1 it has none."""
        if self.stride == 2:
            self.auxiliary_skips = nn.ModuleList(
                FactorizedReduce(self.channels, self.channels, affine=False) for _ in self.rows
            )

    def forward(
        self,
        source: Source,
        scales: CellScales,
        norm: Norm,
        draws: Draws = NO_DRAWS,
    ) -> list[EdgeOutputs]:
        """Return the outputs of each edge.

        Args:
            source: The node.
            scales: Of every edge of the cell.
            norm: Which batch-norm statistics.
            draws: Edges draw in the order of `rows`: noise first, then the dropout of skips.
        """
        mine = [scales[row] for row in self.rows]
        outputs = [EdgeOutputs() for _ in mine]
        if self.form == "plain":
            run_plainly(self, source, mine, norm, outputs, draws)
        elif self.form == "wide" and _all_run(mine):
            self._run_widely(source, mine, scales, norm, outputs, draws)
        else:
            self._run_noise(source, mine, outputs, draws)
            self._run_linear(source, mine, norm, outputs, draws)
            self._run_dense(source, mine, norm, outputs)
            self._run_edge_operations(source, mine, norm, outputs)
        for index, (into, scale) in enumerate(zip(outputs, mine, strict=True)):
            if scale.skip is not None:
                scalar, vector = scale.skip
                if self.stride == 1:
                    into.weighted.append((scalar, source.raw))
                else:
                    into.plain.append(self.auxiliary_skips[index](source, norm, vector))
        return outputs

    def _run_widely(
        self,
        source: Source,
        mine: Sequence[EdgeScales],
        scales: CellScales,
        norm: Norm,
        outputs: Sequence[EdgeOutputs],
        draws: Draws,
    ) -> None:
        wide = self._wide = self._wide or WideMix(self)
        self._run_noise(source, mine, outputs, draws)
        total: Tensor | None = None
        if wide.joins_linear and draws.skip_dropout == 0:
            total = wide.linear(source, scales, norm)
        else:
            self._run_linear(source, mine, norm, outputs, draws)
        found = wide.convolutions(source, scales, norm, outputs)
        if found is not None:
            total = found if total is None else total + found
        if total is not None:
            wide.share_out(total, outputs)
        self._run_edge_operations(source, mine, norm, outputs, without=wide.joined)

    def _run_dense(
        self,
        source: Source,
        mine: Sequence[EdgeScales],
        norm: Norm,
        outputs: Sequence[EdgeOutputs],
    ) -> None:
        wide: Tensor | None = None
        for name, convolution in self.dense.items():
            column = self.operations[0].index(name)
            for start, stop in _runs([scale.runs(column) for scale in mine]):
                scale = torch.cat([scale.vectors[column] for scale in mine[start:stop]])
                if stop - start == len(mine):
                    output = convolution(source, norm, scale)
                    wide = output if wide is None else wide + output
                else:
                    rows = slice(start * self.channels, stop * self.channels)
                    some = cast(ConvNorm, convolution).on_rows(source, norm, scale, rows)
                    self._share_out(some, outputs[start:stop])
        if wide is not None:
            self._share_out(wide, outputs)

    def _share_out(self, images: Tensor, outputs: Sequence[EdgeOutputs]) -> None:
        for into, part in zip(outputs, images.split(self.channels, 1), strict=True):
            into.plain.append(part)

    def _run_edge_operations(
        self,
        source: Source,
        mine: Sequence[EdgeScales],
        norm: Norm,
        outputs: Sequence[EdgeOutputs],
        without: Collection[str] = (),
    ) -> None:
        for name in self.edge_operations:
            if name in without:
                continue
            operations = cast(nn.ModuleList, self.edge_operations[name])
            for (index, column), operation in zip(self.candidates[name], operations, strict=True):
                into, scale = outputs[index], mine[index]
                if not scale.runs(column):
                    continue
                if isinstance(operation, OwnOperation):
                    into.weighted.append((scale.scalars[column], operation(source, norm)))
                    continue
                vector = scale.vectors[column]
                if self.stride == 1 and source.has_phases and isinstance(operation, DilatedConv):
                    into.phased.append(operation.in_phases(source, norm, vector))
                else:
                    into.plain.append(operation(source, norm, vector))

    def _run_noise(
        self,
        source: Source,
        mine: Sequence[EdgeScales],
        outputs: Sequence[EdgeOutputs],
        draws: Draws,
    ) -> None:
        like = source.raw[:, :, :: self.stride, :: self.stride]
        for index, column in self.candidates.get(NOISE, ()):
            if mine[index].runs(column):
                drawn = noise_like(like, draws.generator)
                outputs[index].weighted.append((mine[index].scalars[column], drawn))

    def _run_linear(
        self,
        source: Source,
        mine: Sequence[EdgeScales],
        norm: Norm,
        outputs: Sequence[EdgeOutputs],
        draws: Draws,
    ) -> None:
        # Pools and the skip are the same on all edges, which only have to weigh them.
        for name in (*self.pools, *(["skip_connect"] * self.skips)):
            taking = [pair for pair in self.candidates[name] if mine[pair[0]].runs(pair[1])]
            if not taking:
                continue
            feature = source.raw if name == "skip_connect" else pool(source.raw, name, self.stride)
            if name in self.pool_norms:
                feature = self.pool_norms[name](feature, norm)
            for index, column in taking:
                scalar = mine[index].scalars[column]
                if name == "skip_connect" and draws.skip_dropout > 0:
                    kept = scalar / (1.0 - draws.skip_dropout)
                    outputs[index].weighted.append((kept, draws.drop(feature)))
                else:
                    outputs[index].weighted.append((scalar, feature))


def _all_run(mine: Sequence[EdgeScales]) -> bool:
    return all(scale.active is None or all(scale.active) for scale in mine)


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    # (start, stop) of every run of True.
    edges = [index for index, (a, b) in enumerate(pairwise([False, *flags, False])) if a != b]
    return zip(edges[::2], edges[1::2], strict=True)
