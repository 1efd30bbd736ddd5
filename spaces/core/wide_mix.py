"""What leaves a node in few and wide calls, for devices on which a call costs more than its work.

Depthwise convolutions of one kind run as one with a group for every channel of every edge, all 1x1
convolutions that follow as one with a group for every operation, with one batch norm for all, whose
weight holds the op weights; pools and skip connections reach all edges by one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.joined import Joined
from spaces.core.layers import (
    EPSILON,
    MOMENTUM,
    BatchNorm,
    FactorizedReduce,
    Source,
    halving,
    shifted_by_one,
)
from spaces.core.mixture import Norm
from spaces.core.operations import DepthwiseStage, DilatedConv, SeparableConv, pool

if TYPE_CHECKING:
    from spaces.core.source_mix import CellScales, EdgeOutputs, SourceMix

Unit = tuple[int, int]
"""An operation of an edge: index of the edge among those that leave the node, and its column."""


class WideMix:
    """The operations of a node's edges that are joined; the weights are those of a `SourceMix`.

    Args:
        mix: What is joined. Operations of plug-ins, noise, and convolutions that only some edges
            have in one column are left to it.
    """

    def __init__(self, mix: SourceMix) -> None:
        self._mix = mix
        kinds = {
            kind: [name for name, modules in mix.edge_operations.items() if _all(modules, kind)]
            for kind in (SeparableConv, DilatedConv, FactorizedReduce)
        }
        separable, dilated = kinds[SeparableConv], kinds[DilatedConv]
        self.joined = frozenset([*separable, *dilated, *kinds[FactorizedReduce], *mix.dense])
        firsts = [[cast(SeparableConv, m).first for m in _modules(mix, n)] for n in separable]
        seconds = [[cast(SeparableConv, m).second for m in _modules(mix, n)] for n in separable]
        whole = [[cast(DilatedConv, m) for m in _modules(mix, name)] for name in dilated]
        self._separable = [len(group) for group in firsts]
        # The first stages of separable convolutions share calls with the dilated ones.
        self._first = _Stage([*firsts, *whole], mix.stride) if firsts or whole else None
        self._second = _Stage(seconds, 1) if seconds else None
        self._reduce = [
            _Reduce([cast(FactorizedReduce, m) for m in _modules(mix, name)])
            for name in kinds[FactorizedReduce]
        ]
        self._units = {
            "dilated": _units(mix, dilated),
            "separable": _units(mix, separable),
            "reduce": _units(mix, kinds[FactorizedReduce]),
            "dense": _units(mix, list(mix.dense)),
        }
        self._linear = [*mix.pools, *(["skip_connect"] * mix.skips)]
        # One matrix for all edges, if all have all of it.
        self.joins_linear = bool(self._linear) and all(
            len(mix.candidates[name]) == len(mix.rows) for name in self._linear
        )
        self._places: dict[tuple[str, str, int], Tensor] = {}

    def convolutions(
        self, source: Source, scales: CellScales, norm: Norm, outputs: Sequence[EdgeOutputs]
    ) -> Tensor | None:
        """Run all convolutions.

        Args:
            source: The node.
            scales: Of the cell.
            norm: Which batch-norm statistics.
            outputs: Of each edge; takes what not all edges have.

        Returns:
            Their sums on each edge, `(num_edges, B, H, W, C)`; None where there are none.
        """
        weights = self._gathered(scales)
        sums: list[Tensor] = []
        if self._first is not None:
            self._run_stages(source, weights, norm, sums, outputs)
        for reduce in self._reduce:
            found = reduce(source.rectified, norm, weights["reduce"])
            self._take(found, self._units["reduce"], sums, outputs)
        start = 0
        for convolution in self._mix.dense.values():
            stop = start + len(self._mix.rows) * self._mix.channels
            found = convolution(source, norm, weights["dense"][start:stop])
            sums.append(self._by_edge(found, 1))
            start = stop
        return _added(sums)

    def linear(self, source: Source, scales: CellScales, norm: Norm) -> Tensor:
        """Return what pools and skip connections give each edge, `(num_edges, B, H, W, C)`."""
        mix = self._mix
        features = []
        for name in self._linear:
            feature = source.raw
            if name != "skip_connect":
                feature = pool(feature, name, mix.stride)
            if name in mix.pool_norms:
                feature = mix.pool_norms[name](feature, norm)
            features.append(feature.permute(0, 2, 3, 1))
        units = [(index, dict(mix.candidates[name])[index]) for index in range(len(mix.rows))
                 for name in self._linear]  # fmt: skip
        places = self._placed("linear", units, scales)
        weights = scales.scalars.index_select(0, places).view(len(mix.rows), len(features))
        stacked = torch.stack([feature.reshape(-1) for feature in features])
        return (weights.to(stacked.dtype) @ stacked).view(len(mix.rows), *features[0].shape)

    def share_out(self, sums: Tensor, outputs: Sequence[EdgeOutputs]) -> None:
        """Give every edge its sum of `(num_edges, B, H, W, C)`."""
        for into, part in zip(outputs, sums.unbind(), strict=True):
            into.plain.append(part.permute(0, 3, 1, 2))

    def _run_stages(
        self,
        source: Source,
        weights: dict[str, Tensor],
        norm: Norm,
        sums: list[Tensor],
        outputs: Sequence[EdgeOutputs],
    ) -> None:
        count = sum(self._separable)
        x = source.rectified
        repeated = {n: _repeated(x, n) for n in self._first.sizes} if self._first else {}
        unscaled = x.new_ones(count * self._mix.channels, dtype=weights["dilated"].dtype)
        scale = torch.cat([unscaled, weights["dilated"]]) if count else weights["dilated"]
        if self._first is None:
            return
        found = self._first([repeated[n] for n in self._first.sizes], norm, scale)
        channels = count * self._mix.channels
        inner, dilated = found.split([channels, found.shape[1] - channels], 1)
        if self._units["dilated"]:
            self._take(dilated, self._units["dilated"], sums, outputs)
        if self._second is not None:
            parts = functional.relu(inner).split(
                [n * self._mix.channels for n in self._separable], 1
            )
            found = self._second(parts, norm, weights["separable"])
            self._take(found, self._units["separable"], sums, outputs)

    def _take(
        self,
        found: Tensor,
        units: Sequence[Unit],
        sums: list[Tensor],
        outputs: Sequence[EdgeOutputs],
    ) -> None:
        """Sum up `(B, units * C, H, W)` on each edge, or give it to the edges one by one."""
        edges = [index for index, _ in units]
        every = len(self._mix.rows)
        times = len(units) // every
        if edges == [*range(every)] * times:
            sums.append(self._by_edge(found, times))
            return
        for index, part in zip(edges, found.split(self._mix.channels, 1), strict=True):
            outputs[index].plain.append(part)

    def _by_edge(self, x: Tensor, times: int) -> Tensor:
        edges = len(self._mix.rows)
        parts = x.permute(0, 2, 3, 1).unflatten(3, (times, edges, self._mix.channels))
        summed = parts.squeeze(3) if times == 1 else parts.sum(3)
        return summed.permute(3, 0, 1, 2, 4)

    def _gathered(self, scales: CellScales) -> dict[str, Tensor]:
        """Return the op weights of all units by kind, each repeated for its channels, flat."""
        units = [unit for kind in self._units.values() for unit in kind]
        if not units:
            return {}
        found = scales.vectors.index_select(0, self._placed("vectors", units, scales))
        parts = found.split([len(kind) for kind in self._units.values()])
        return {name: part.flatten() for name, part in zip(self._units, parts, strict=True)}

    def _placed(self, what: str, units: Sequence[Unit], scales: CellScales) -> Tensor:
        """Return where the units stand in a cell's op weights, on their device; made once."""
        num_ops = len(scales.scalars) // len(scales)
        key = what, str(scales.scalars.device), num_ops
        if key not in self._places:
            places = [self._mix.rows[index] * num_ops + column for index, column in units]
            self._places[key] = torch.tensor(places, device=scales.scalars.device)
        return self._places[key]


class _Norm:
    """One batch norm for the channels of several, none of which is affine."""

    def __init__(self, norms: Sequence[BatchNorm]) -> None:
        self._mean = Joined(norms, "running_mean")
        self._var = Joined(norms, "running_var")

    def __call__(self, x: Tensor, norm: Norm, scale: Tensor) -> Tensor:
        updates, uses = norm == "batch_and_update", norm == "running"
        mean, var = (self._mean(), self._var()) if updates or uses else (None, None)
        return functional.batch_norm(x, mean, var, scale, None, not uses, MOMENTUM, EPSILON)


class _Stage:
    """Depthwise convolutions of several kinds, then one grouped 1x1 convolution and one norm."""

    def __init__(self, groups: Sequence[Sequence[DepthwiseStage]], stride: int) -> None:
        self.sizes = [len(group) for group in groups]
        self._stride = stride
        self._depthwise = [Joined([s.depthwise for s in group], "weight") for group in groups]
        self._dilations = [1 + isinstance(group[0], DilatedConv) for group in groups]
        stages = [stage for group in groups for stage in group]
        self._pointwise = Joined([stage.pointwise for stage in stages], "weight")
        self._norm = _Norm([stage.batch_norm for stage in stages])

    def __call__(self, inputs: Sequence[Tensor], norm: Norm, scale: Tensor) -> Tensor:
        parts = []
        for x, join, dilation in zip(inputs, self._depthwise, self._dilations, strict=True):
            weight = join()
            padding = dilation * (weight.shape[-1] // 2)
            parts.append(
                functional.conv2d(x, weight, None, self._stride, padding, dilation, len(weight))
            )
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        x = functional.conv2d(x, self._pointwise(), groups=sum(self.sizes))
        return self._norm(x, norm, scale)


class _Reduce:
    """Halvings of one source for several edges: two dense convolutions and one norm for all."""

    def __init__(self, modules: Sequence[FactorizedReduce]) -> None:
        self._count = len(modules)
        self._even = Joined([module.even for module in modules], "weight")
        self._odd = Joined([module.odd for module in modules], "weight")
        self._norm = _Norm([module.batch_norm for module in modules])

    def __call__(self, x: Tensor, norm: Norm, scale: Tensor) -> Tensor:
        halves = [
            halving(part, join()).permute(0, 2, 3, 1)
            for part, join in ((x, self._even), (shifted_by_one(x), self._odd))
        ]
        # Channels of one edge beside each other, as its norm has them.
        by_edge = [half.unflatten(3, (self._count, -1)) for half in halves]
        whole = torch.cat(by_edge, 4).flatten(3).permute(0, 3, 1, 2)
        return self._norm(whole, norm, scale)


def _repeated(x: Tensor, times: int) -> Tensor:
    if times == 1:
        return x
    pixels = x.permute(0, 2, 3, 1).unsqueeze(3)
    return pixels.expand(-1, -1, -1, times, -1).flatten(3).permute(0, 3, 1, 2)


def _added(sums: Sequence[Tensor]) -> Tensor | None:
    total: Tensor | None = None
    for part in sums:
        total = part if total is None else total + part
    return total


def _all(modules: nn.Module, kind: type[nn.Module]) -> bool:
    return all(isinstance(module, kind) for module in cast(nn.ModuleList, modules))


def _modules(mix: SourceMix, name: str) -> list[nn.Module]:
    return list(cast(nn.ModuleList, mix.edge_operations[name]))


def _units(mix: SourceMix, names: Sequence[str]) -> list[Unit]:
    return [unit for name in names for unit in mix.candidates[name]]
