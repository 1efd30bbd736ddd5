"""The reference of described spaces: any cells in any stack, op by op, written down by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.reference.cells import CellExtras, CellOfEdges, Halve, MixedOp, relu_conv_norm
from benchmarks.reference.supernets import Residual
from spaces.core.mixture import PLAIN, Mixture, Structure


class Plain(NamedTuple):
    """A cell type: (source, target, operations) of its edges, and the nodes that are joined."""

    num_inputs: int
    edges: Sequence[tuple[int, int, tuple[str, ...]]]
    joined: Sequence[int]


class Placed(NamedTuple):
    """A cell in the stack: (channels, stride) of the projection of each input, if it has any."""

    kind: str
    channels: int
    stride: int
    inputs: Sequence[tuple[int, int]]


class DescribedCell(CellOfEdges):
    def __init__(self, plain: Plain, placed: Placed, pool_norm: bool, structure: Structure) -> None:
        super().__init__()
        c, self.stride = placed.channels, placed.stride
        self.plain = plain
        self.pre = nn.ModuleList(
            relu_conv_norm(c_in, c, 1, 1, False) if stride == 1 else Halve(c_in, c)
            for c_in, stride in placed.inputs
        )
        self.edges = [(source, target) for source, target, _ in plain.edges]
        self.mixed = nn.ModuleList(
            MixedOp(names, c, self.stride if s < plain.num_inputs else 1, pool_norm, structure)
            for s, _, names in plain.edges
        )

    def forward(self, states: list[Tensor], weights: Tensor, extras: CellExtras | None) -> Tensor:
        inputs = [pre(x) for pre, x in zip(self.pre, states, strict=True)] if self.pre else states
        nodes = self.run([*inputs], weights, extras)
        return torch.cat([nodes[node] for node in self.plain.joined], dim=1)


class DescribedReference(nn.Module):
    def __init__(
        self,
        kinds: dict[str, Plain],
        stack: Sequence[Placed | tuple[int, int]],
        *,
        stem: int,
        features: int,
        classes: int = 5,
        final_norm: bool = False,
        pool_norm: bool = True,
        structure: Structure = PLAIN,
    ) -> None:
        super().__init__()
        self.kinds, self.stack = kinds, stack
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)
        )
        self.layers = nn.ModuleList(
            DescribedCell(kinds[item.kind], item, pool_norm, structure)
            if isinstance(item, Placed)
            else Residual(*item)
            for item in stack
        )
        self.last = nn.Sequential(nn.BatchNorm2d(features), nn.ReLU()) if final_norm else None
        self.classifier = nn.Linear(features, classes)

    def forward(
        self,
        images: Tensor,
        op_weights: dict[str, Tensor],
        extras: Mixture | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        num_inputs = next(iter(self.kinds.values())).num_inputs
        states = [self.stem(images)] * num_inputs
        seen = dict.fromkeys(self.kinds, 0)
        for item, layer in zip(self.stack, self.layers, strict=True):
            if isinstance(item, Placed):
                place = seen[item.kind]
                seen[item.kind] += 1
                weights = op_weights[item.kind]
                weights = weights[place] if weights.dim() == 3 else weights
                of_cell = extras and CellExtras(extras, (item.kind, place), generator)
                out = layer(states, weights, of_cell)
            else:
                out = layer(states[-1])
            states = [*states[1:], out]
        x = states[-1] if self.last is None else self.last(states[-1])
        return self.classifier(x.mean((2, 3)))
