"""Edges and cells of the reference supernets: op by op, with everything a mixture can say."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.mixture import Mixture, Structure


class CellExtras(NamedTuple):
    """What a cell is mixed by besides its op weights, and which cell it is: (type, place)."""

    mixture: Mixture
    place: tuple[str, int]
    generator: torch.Generator | None


def own(mixture: Mixture, what: str, place: tuple[str, int], dim: int) -> Tensor | None:
    """Return what a mixture says of one cell: shared by its type, or its own."""
    values = getattr(mixture, what)
    if values is None:
        return None
    value = values[place[0]]
    return value[place[1]] if value.dim() > dim else value


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0


def relu_conv_norm(c_in: int, c_out: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(c_out, affine=affine),
    )


def depthwise(c: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(c, c, kernel, stride, padding, dilation, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        nn.BatchNorm2d(c, affine=False),
    ]


class Halve(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        # Odd sides: the shifted image lacks a row and a column of the last windows, which are 0.
        shifted = functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return self.bn(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def operation(name: str, c: int, stride: int, pool_norm: bool) -> nn.Module:
    pools: dict[str, nn.Module] = {
        "max_pool_3x3": nn.MaxPool2d(3, stride, 1),
        "avg_pool_3x3": nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    }
    if name in ("none", "noise"):
        return Zero(stride)  # noise is drawn by the cell, which gives it to its edges
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else Halve(c, c)
    if name in pools:
        norm = [nn.BatchNorm2d(c, affine=False)] if pool_norm else []
        return nn.Sequential(pools[name], *norm)
    kernel = int(name[-1])
    if name.startswith("nor_conv"):
        return relu_conv_norm(c, c, kernel, stride, affine=False)
    if name.startswith("dil_conv"):
        return nn.Sequential(*depthwise(c, kernel, stride, 2))
    return nn.Sequential(*depthwise(c, kernel, stride, 1), *depthwise(c, kernel, 1, 1))


class MixedOp(nn.Module):
    def __init__(
        self, names: tuple[str, ...], c: int, stride: int, pool_norm: bool, structure: Structure
    ) -> None:
        super().__init__()
        self.names = names
        self.stride = stride
        self.parts = structure.partial_channels
        seen = c // self.parts
        self.ops = nn.ModuleList(operation(name, seen, stride, pool_norm) for name in names)
        if structure.auxiliary_skip:
            self.auxiliary = operation("skip_connect", c, stride, pool_norm)

    def forward(self, x: Tensor, weights: Tensor, extras: EdgeExtras | None = None) -> Tensor:
        if extras is None:
            return sum(weight * op(x) for weight, op in zip(weights, self.ops, strict=True))
        seen = x.shape[1] // self.parts
        total = x[:, :seen, :: self.stride, :: self.stride] * 0.0
        for index, (name, op) in enumerate(zip(self.names, self.ops, strict=True)):
            if not extras.active[index]:
                continue
            output = extras.noise if name == "noise" else op(x[:, :seen])
            if name == "skip_connect" and extras.dropped is not None:
                output = output * (~extras.dropped / (1.0 - extras.share))
            total = total + weights[index] * output
        total = total + extras.offset
        if extras.skip_scale is not None:
            total = total + extras.skip_scale * self.auxiliary(x)
        if self.parts > 1:
            rest = x[:, seen:]
            if self.stride == 2:
                rest = functional.max_pool2d(rest, 2, 2, ceil_mode=True)
            total = torch.cat([total, rest], dim=1)
            b, c, h, w = total.shape
            total = total.view(b, self.parts, c // self.parts, h, w).transpose(1, 2)
            total = total.reshape(b, c, h, w)
        return extras.edge_weight * total


class EdgeExtras(NamedTuple):
    """What one edge is mixed by besides its op weights; `dropped` marks entries of its skip."""

    edge_weight: Tensor | float
    active: list[bool]
    offset: Tensor | float
    skip_scale: Tensor | float | None
    dropped: Tensor | None
    share: Tensor | None
    noise: Tensor | None


class CellOfEdges(nn.Module):
    """A cell of mixed operations, one for each edge (source, target)."""

    edges: list[tuple[int, int]]
    mixed: nn.ModuleList

    def run(self, nodes: list[Tensor], weights: Tensor, extras: CellExtras | None) -> list[Tensor]:
        """Append the nodes that edges lead to."""
        per_edge = [None] * len(self.edges) if extras is None else self.split(nodes, extras)
        for target in range(len(nodes), self.edges[-1][1] + 1):
            rows = [row for row, edge in enumerate(self.edges) if edge[1] == target]
            nodes.append(
                sum(
                    self.mixed[row](nodes[self.edges[row][0]], weights[row], per_edge[row])
                    for row in rows
                )
            )
        return nodes

    def split(self, nodes: list[Tensor], extras: CellExtras) -> list[EdgeExtras]:
        mixture, place, generator = extras
        active = own(mixture, "active", place, 2)
        edge_weights = own(mixture, "edge_weights", place, 1)
        offsets = own(mixture, "offsets", place, 1)
        per_edge: list[EdgeExtras] = [None] * len(self.edges)
        # Edges draw source by source, noise first; all that draw have the size of the output.
        shape = nodes[0][:, :, :: self.stride, :: self.stride].shape
        order = sorted(range(len(self.edges)), key=lambda row: self.edges[row])
        noises = self.noises(order, shape, active, generator)
        for row in order:
            op = self.mixed[row]
            on = [True] * len(op.names) if active is None else active[row].tolist()
            dropped = share = None
            if (
                mixture.skip_dropout > 0
                and self.training
                and op.stride == 1
                and "skip_connect" in op.names
                and on[op.names.index("skip_connect")]
            ):
                b, c, h, w = shape
                share = torch.tensor(mixture.skip_dropout, dtype=nodes[0].dtype)
                draws = torch.rand(b, h, w, c // op.parts, generator=generator)
                dropped = (draws < mixture.skip_dropout).permute(0, 3, 1, 2)
            per_edge[row] = EdgeExtras(
                1.0 if edge_weights is None else edge_weights[row],
                on,
                0.0 if offsets is None else offsets[row],
                mixture.skip_scale,
                dropped,
                share,
                noises.get(row),
            )
        return per_edge

    def noises(
        self,
        order: list[int],
        shape: torch.Size,
        active: Tensor | None,
        generator: torch.Generator | None,
    ) -> dict[int, Tensor]:
        # No cell here has both noise and skips that are dropped, so that this may come first.
        drawn = {}
        for row in order:
            names = self.mixed[row].names
            if "noise" in names and (active is None or active[row][names.index("noise")]):
                b, c, h, w = shape
                parts = self.mixed[row].parts
                noise = torch.randn(b, h, w, c // parts, generator=generator, dtype=torch.float64)
                drawn[row] = noise.permute(0, 3, 1, 2)
        return drawn
