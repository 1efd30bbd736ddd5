"""Reference supernets: plain, op by op, in NCHW. The oracle of the engine and its speed baseline.

Every edge runs every candidate operation by itself and a Python sum weighs the outputs, as in the
usual public implementations. Nothing here is shared with the engine but torch and the records that
say what is mixed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.reference.cells import (
    CellExtras,
    CellOfEdges,
    Halve,
    MixedOp,
    relu_conv_norm,
)
from spaces.core.mixed_cell import MixedCell
from spaces.core.mixture import PLAIN, Mixture, Structure
from spaces.core.source_mix import SourceMix
from spaces.core.supernet import Supernet

NASBENCH201_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
DARTS_OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class NasBench201Cell(CellOfEdges):
    stride = 1
    pre = ()

    def __init__(self, c: int, structure: Structure) -> None:
        super().__init__()
        self.edges = [(source, target) for target in range(1, 4) for source in range(target)]
        self.mixed = nn.ModuleList(
            MixedOp(NASBENCH201_OPS, c, 1, False, structure) for _ in self.edges
        )

    def forward(self, x: Tensor, weights: Tensor, extras: CellExtras | None = None) -> Tensor:
        return self.run([x], weights, extras)[-1]


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.a = relu_conv_norm(c_in, c_out, 3, 2, affine=True)
        self.b = relu_conv_norm(c_out, c_out, 3, 1, affine=True)
        self.down = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(c_in, c_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(x) + self.b(self.a(x))


class NasBench201Reference(nn.Module):
    def __init__(
        self, c: int, n: int, in_channels: int, classes: int, structure: Structure = PLAIN
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        )
        layers: list[nn.Module] = []
        for stage in range(3):
            width = c * 2**stage
            if stage:
                layers.append(Residual(width // 2, width))
            layers += [NasBench201Cell(width, structure) for _ in range(n)]
        self.layers = nn.ModuleList(layers)
        self.last = nn.Sequential(nn.BatchNorm2d(4 * c), nn.ReLU())
        self.classifier = nn.Linear(4 * c, classes)

    def forward(
        self,
        images: Tensor,
        op_weights: dict[str, Tensor],
        extras: Mixture | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        x = self.stem(images)
        place = 0
        for layer in self.layers:
            if isinstance(layer, Residual):
                x = layer(x)
                continue
            weights = op_weights["cell"]
            weights = weights[place] if weights.dim() == 3 else weights
            x = layer(x, weights, extras and CellExtras(extras, ("cell", place), generator))
            place += 1
        return self.classifier(self.last(x).mean((2, 3)))


class DartsCell(CellOfEdges):
    def __init__(
        self,
        c_before: int,
        c_last: int,
        c: int,
        reduces: bool,
        shrunk: bool,
        names: tuple[str, ...] | list[tuple[str, ...]],
        structure: Structure,
    ) -> None:
        super().__init__()
        self.reduces = reduces
        self.stride = 2 if reduces else 1
        self.pre0 = Halve(c_before, c) if shrunk else relu_conv_norm(c_before, c, 1, 1, False)
        self.pre1 = relu_conv_norm(c_last, c, 1, 1, False)
        self.edges = [(source, target) for target in range(2, 6) for source in range(target)]
        self.mixed = nn.ModuleList(
            MixedOp(of_edge, c, 2 if reduces and source < 2 else 1, True, structure)
            for (source, _), of_edge in zip(
                self.edges, names if isinstance(names, list) else [names] * 14, strict=True
            )
        )

    def forward(
        self, before: Tensor, last: Tensor, weights: Tensor, extras: CellExtras | None = None
    ) -> Tensor:
        nodes = self.run([self.pre0(before), self.pre1(last)], weights, extras)
        return torch.cat(nodes[2:], dim=1)


class DartsReference(nn.Module):
    def __init__(
        self,
        c: int,
        cells: int,
        in_channels: int,
        classes: int,
        names: tuple[str, ...] | dict[str, list[tuple[str, ...]]] = DARTS_OPS,
        structure: Structure = PLAIN,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 3 * c, 3, padding=1, bias=False), nn.BatchNorm2d(3 * c)
        )
        before, last, width, shrunk = 3 * c, 3 * c, c, False
        layers = []
        for index in range(cells):
            reduces = index in (cells // 3, 2 * cells // 3)
            width = 2 * width if reduces else width
            kind = "reduction" if reduces else "normal"
            own = names[kind] if isinstance(names, dict) else names
            layers.append(DartsCell(before, last, width, reduces, shrunk, own, structure))
            before, last, shrunk = last, 4 * width, reduces
        self.layers = nn.ModuleList(layers)
        self.classifier = nn.Linear(last, classes)

    def forward(
        self,
        images: Tensor,
        op_weights: dict[str, Tensor],
        extras: Mixture | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        before = last = self.stem(images)
        seen = {"normal": 0, "reduction": 0}
        for cell in self.layers:
            name = "reduction" if cell.reduces else "normal"
            weights = op_weights[name]
            weights = weights[seen[name]] if weights.dim() == 3 else weights
            of_cell = extras and CellExtras(extras, (name, seen[name]), generator)
            seen[name] += 1
            before, last = last, cell(before, last, weights, of_cell)
        return self.classifier(last.mean((2, 3)))


Part = tuple[str, Tensor, slice, Tensor]


def matched(engine: Supernet, reference: nn.Module) -> Iterator[Part]:
    """Yield (name, engine tensor, rows of it, reference tensor) for every weight and statistic."""
    trunk = engine.trunk
    yield from _conv("stem", trunk.stem.convolution, reference.stem[0])
    yield from _norm("stem", trunk.stem.batch_norm, reference.stem[1])
    for index, (ours, theirs) in enumerate(zip(trunk.layers, reference.layers, strict=True)):
        name = f"layers.{index}"
        if isinstance(theirs, Residual):
            for block, plain in ((ours.first, theirs.a), (ours.second, theirs.b)):
                yield from _conv_norm(name, block, plain)
            yield from _conv(name, ours.shortcut, theirs.down[1])
            continue
        projections = (theirs.pre0, theirs.pre1) if isinstance(theirs, DartsCell) else theirs.pre
        if projections:
            for ours_in, theirs_in in zip(
                trunk.projections[index].projections, projections, strict=True
            ):
                match = _halve if isinstance(theirs_in, Halve) else _conv_norm
                yield from match(f"{name}.projection", ours_in, theirs_in)
        yield from _cell(name, ours, theirs)
    if trunk.head.batch_norm is not None:
        yield from _norm("head", trunk.head.batch_norm, reference.last[0])
    for what in ("weight", "bias"):
        ours, theirs = getattr(trunk.head.classifier, what), getattr(reference.classifier, what)
        yield f"classifier.{what}", ours, slice(None), theirs


def copy_weights(engine: Supernet, reference: nn.Module) -> None:
    """Copy weights and running statistics of an engine supernet into the reference."""
    copied = set()
    with torch.no_grad():
        for _, ours, rows, theirs in matched(engine, reference):
            theirs.copy_(ours[rows])
            copied.add(theirs)
    left = [
        name
        for name, value in (*reference.named_parameters(), *reference.named_buffers())
        if value not in copied and "num_batches" not in name
    ]
    if left:
        raise AssertionError(f"not copied: {left}")


def _cell(name: str, ours: MixedCell, theirs: nn.Module) -> Iterator[Part]:
    for mix in ours.mixes:
        for position, row in enumerate(mix.rows):
            names = mix.operations[position]
            for op_name, plain in zip(names, theirs.mixed[row].ops, strict=True):
                yield from _operation(f"{name}.{row}.{op_name}", mix, position, op_name, plain)
            if hasattr(mix, "auxiliary_skips"):
                auxiliary = mix.auxiliary_skips[position]
                yield from _halve(f"{name}.{row}.auxiliary", auxiliary, theirs.mixed[row].auxiliary)


def _operation(
    name: str, mix: SourceMix, position: int, op_name: str, plain: nn.Module
) -> Iterator[Part]:
    if op_name in mix.pool_norms:
        yield from _norm(name, mix.pool_norms[op_name], plain[1])
    elif op_name in mix.dense:
        rows = slice(position * mix.channels, (position + 1) * mix.channels)
        block = mix.dense[op_name]
        yield f"{name}.weight", block.convolution.weight, rows, plain[1].weight
        yield from _norm(name, block.batch_norm, plain[2], rows)
    elif op_name in mix.edge_operations:
        # The edges that have an operation hold its modules, in the order of the edges.
        index = sum(op_name in names for names in mix.operations[:position])
        ours = mix.edge_operations[op_name][index]
        if isinstance(plain, Halve):
            yield from _halve(name, ours, plain)
        elif op_name.startswith("nor_conv"):
            yield from _conv_norm(name, ours, plain)
        elif op_name.startswith("dil"):
            yield from _depthwise(name, ours, plain)
        else:
            yield from _depthwise(name, ours.first, plain[:4])
            yield from _depthwise(name, ours.second, plain[4:])


def _depthwise(name: str, ours: nn.Module, plain: nn.Sequential) -> Iterator[Part]:
    yield from _conv(f"{name}.depthwise", ours.depthwise, plain[1])
    yield from _conv(f"{name}.pointwise", ours.pointwise, plain[2])
    yield from _norm(name, ours.batch_norm, plain[3])


def _conv_norm(name: str, ours: nn.Module, plain: nn.Sequential) -> Iterator[Part]:
    yield from _conv(name, ours.convolution, plain[1])
    yield from _norm(name, ours.batch_norm, plain[2])


def _halve(name: str, ours: nn.Module, plain: Halve) -> Iterator[Part]:
    yield from _conv(f"{name}.even", ours.even, plain.even)
    yield from _conv(f"{name}.odd", ours.odd, plain.odd)
    yield from _norm(name, ours.batch_norm, plain.bn)


def _conv(name: str, ours: nn.Conv2d, plain: nn.Conv2d) -> Iterator[Part]:
    yield f"{name}.weight", ours.weight, slice(None), plain.weight


def _norm(
    name: str, ours: nn.Module, plain: nn.BatchNorm2d, rows: slice = slice(None)
) -> Iterator[Part]:
    for what in ("weight", "bias", "running_mean", "running_var"):
        if getattr(plain, what) is not None:
            yield f"{name}.{what}", getattr(ours, what), rows, getattr(plain, what)
