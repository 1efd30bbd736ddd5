"""The supernet of NAS-Bench-1Shot1: choice blocks, whose inputs and outputs are weighted too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.errors import SpaceError
from spaces.core.layers import BatchNorm, ConvNorm, Head, Source, convolution
from spaces.core.layout import CellLayer, Layout
from spaces.core.mixed_cell import check_structure, shuffled
from spaces.core.mixture import PLAIN, Mixture, Norm, Structure
from spaces.core.recomputing import recomputed
from spaces.core.vertex_network import ConvNormReLU, max_pool

OPERATIONS, OUTPUT, INPUTS = "operations", "output", "inputs_{}"
"""Names of the op weights: of operations, of what is joined, of what leads into a block."""


@dataclass(frozen=True)
class Weighted:
    """Factors of some things that are added up: what a row of a mixture comes to.

    Attributes:
        factors: `(n,)`.
        active: Which of them are there at all; None is all.
        offset: 0-dimensional, added to every entry of the sum; None is nothing.
        whole: 0-dimensional, factor of all that the row gives, offset and bypass included; None
            is 1.
        skip_scale: Factor of an auxiliary skip connection beside the things; None is without.
    """

    factors: Tensor
    active: Sequence[bool] | None = None
    offset: Tensor | None = None
    whole: Tensor | None = None
    skip_scale: Tensor | float | None = None

    def terms(self, things: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return each thing times its factor; None where it is absent or not active."""
        return [
            None if thing is None or not self.has(index) else factor * thing
            for index, (factor, thing) in enumerate(zip(self.factors.unbind(), things, strict=True))
        ]

    def has(self, index: int) -> bool:
        """Say whether a thing is active."""
        return self.active is None or self.active[index]

    def finished(self, total: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the sum with its offset, times the row's factor.

        Args:
            total: The sum of the terms, None where there are none.
            like: `(B, C, H, W)`, of what shape the sum would be.
        """
        if self.offset is not None:
            total = torch.zeros_like(like) + self.offset if total is None else total + self.offset
        return total if total is None or self.whole is None else self.whole * total


class ChoiceBlock(nn.Module):
    """Max pooling, 3x3 and 1x1 convolution of the block's input, mixed.

    With partial channels they see the first 1/K of the input's; the others bypass them.
    """

    def __init__(self, channels: int, structure: Structure) -> None:
        super().__init__()
        mixed = channels // structure.partial_channels
        self.groups = structure.partial_channels
        self.conv3x3 = ConvNormReLU(mixed, mixed, 3, affine=False)
        self.conv1x1 = ConvNormReLU(mixed, mixed, 1, affine=False)

    def forward(self, x: Tensor, weights: Weighted, norm: Norm) -> Tensor | None:
        """Map `(B, C, H, W)` to `(B, C, H, W)`, or to None where there is nothing to mix."""
        seen, *bypass = x.chunk(self.groups, 1)
        outputs = [
            max_pool(seen) if weights.has(0) else None,
            self.conv3x3(seen, norm) if weights.has(1) else None,
            self.conv1x1(seen, norm) if weights.has(2) else None,
        ]
        terms = weights.terms(outputs)
        if weights.skip_scale is not None:
            terms.append(weights.skip_scale * seen)
        total = weights.finished(_added(terms), seen)
        if not bypass:
            return total
        passed = torch.cat(bypass, 1)
        passed = passed if weights.whole is None else weights.whole * passed
        return shuffled(torch.zeros_like(seen) if total is None else total, passed)


class ChoiceCell(nn.Module):
    """A cell of choice blocks.

    A block adds up a 1x1 projection of the cell's input of its own and all earlier blocks, weighted
    where the space leaves a choice of inputs, and mixes the three operations. With weights w the
    output is w_0 projection(input) + concatenation of w_i block_i.
    """

    def __init__(self, blocks: int, layer: CellLayer, structure: Structure) -> None:
        super().__init__()
        self.channels, self.stride = layer.channels, layer.stride
        width = layer.channels * blocks
        # The projections of all blocks, then that of the output: one matrix product for all.
        self.projection = convolution(layer.input_channels[0], 2 * width, 1, stride=1)
        self.projection_norm = BatchNorm(2 * width, affine=False)
        self.blocks = nn.ModuleList(ChoiceBlock(layer.channels, structure) for _ in range(blocks))

    def forward(self, x: Tensor, weights: Mapping[str, Sequence[Weighted]], norm: Norm) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, blocks * C, H, W)`.

        Args:
            x: Output of the cell before, pooled where this cell halves the image.
            weights: By name, one `Weighted` for each row.
            norm: Which batch-norm statistics.
        """
        projected = functional.relu(self.projection_norm(self.projection(x), norm))
        width = self.channels * len(self.blocks)
        own = projected[:, :width].split(self.channels, 1)
        outputs: list[Tensor | None] = []
        for index, (block, projection) in enumerate(zip(self.blocks, own, strict=True)):
            sources: list[Tensor | None] = [projection, *outputs]
            name = INPUTS.format(index + 1)
            if name in weights:
                row = weights[name][0]
                total = row.finished(_added(row.terms(sources)), projection)
            else:
                total = _added(sources)
            operations = weights[OPERATIONS][index]
            outputs.append(None if total is None else block(total, operations, norm))
        last = weights[OUTPUT][0]
        first, *joined = last.terms([projected[:, width:], *outputs])
        if any(part is not None for part in joined):
            nothing = torch.zeros_like(own[0])
            whole = torch.cat([nothing if part is None else part for part in joined], 1)
            first = whole if first is None else first + whole
        total = last.finished(first, projected[:, width:])
        return torch.zeros_like(projected[:, width:]) if total is None else total


def _added(terms: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


class ChoiceSupernet(nn.Module):
    """The over-parameterised network of NAS-Bench-1Shot1: weights and statistics, nothing else.

    It is called as `Supernet` is, with rows in the place of edges: an edge weight is a factor of
    the sum that a row stands for, and an offset a term of it. Partial channels and an auxiliary
    skip are those of the blocks' operations. There is no skip connection among these, so that
    `skip_dropout` drops nothing.

    Args:
        shapes: Of the op weights, by name.
        blocks: Choice blocks in a cell.
        layout: How cells are stacked; one of stride 2 has its input pooled.
        structure: What the blocks are made of besides their operations.

    Attributes:
        recomputes: Whether cells keep no activations for the backward pass and run again in it.
        calls: What runs `run(cell, ...)` in another way, such as compiled; None runs it as it is.

    Raises:
        SpaceError: The blocks cannot have such a structure.

    Source:
        Zela, Siems & Hutter, NAS-Bench-1Shot1, ICLR 2020, and the authors' code
        (optimizers/darts/model_search.py): 2x2 max pooling with padding, which gives 17 and 9
        pixels from 32; no norm after a pooling candidate; ReLU, 1x1 convolution and norm before
        the classifier. Differs: norms of the cells have no weights of their own, as in the other
        supernets, and running statistics move by 0.1 a batch (our reading). The code of
        SmoothDARTS weighs block i by the weight of block i - 1, and the last weight has no effect
        there; here, as in the authors' own, every block has its own.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        blocks: int,
        layout: Layout,
        structure: Structure = PLAIN,
    ) -> None:
        super().__init__()
        self.recomputes = False
        self.calls: Callable[..., Tensor] | None = None
        self.shapes, self.layout, self.structure = dict(shapes), layout, structure
        cells = [layer for layer in layout.layers if isinstance(layer, CellLayer)]
        for layer in cells:
            check_structure(layer, structure)
        self.stem = ConvNormReLU(layout.in_channels, layout.stem_channels, 3, affine=True)
        self.cells = nn.ModuleList(ChoiceCell(blocks, layer, structure) for layer in cells)
        last = cells[-1]
        self.postprocess = ConvNorm(last.out_channels, last.channels, 1, stride=1, affine=False)
        self.head = Head(last.channels, layout.num_classes, final_norm=False)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        mixture: Mixture,
        *,
        norm: Norm = "batch",
        generator: torch.Generator | None = None,  # noqa: ARG002 (nothing in it is drawn)
    ) -> Tensor:
        """Classify images.

        Args:
            images: `(B, in_channels, H, W)`.
            mixture: Op weights and what goes with them, by name; tensors are of the shapes of the
                space (edge weights and offsets without the last axis), or with an axis of cells
                before.
            norm: Statistics of the batch norms: "batch", "batch_and_update" or "running".
            generator: Not used: nothing in the network is random.

        Returns:
            Logits, `(B, num_classes)`.

        Raises:
            SpaceError: The mixture has a wrong shape or asks for what the supernet does not have,
                or there is no such `norm`.
        """
        self._check(mixture, norm)
        x = self.stem(images.contiguous(memory_format=torch.channels_last), norm)
        for place, cell in enumerate(self.cells):
            if cell.stride == 2:
                x = functional.max_pool2d(x, 2, 2, 1)
            weights = self._of_cell(mixture, place)
            if self.calls is not None and mixture.active is None:
                x = self.calls(_run_raw, cell, x, weights, norm)
                continue
            run = partial(cell, weights=weights, norm=norm)
            x = recomputed(run, [x], cell, None) if self.recomputes else run(x)
        return self.head(self.postprocess(Source(x), norm), norm)

    def _of_cell(self, mixture: Mixture, place: int) -> dict[str, tuple[Weighted, ...]]:
        found = {}
        for name, (rows, _) in self.shapes.items():
            factors = _at(mixture.op_weights[name], place)
            active: Sequence[Sequence[bool] | None] = [None] * rows
            if mixture.active is not None:
                active = _at(mixture.active[name], place).tolist()
            found[name] = tuple(
                Weighted(*row, mixture.skip_scale if name == OPERATIONS else None)
                for row in zip(
                    factors.unbind(),
                    active,
                    _rows(mixture.offsets, name, place, rows),
                    _rows(mixture.edge_weights, name, place, rows),
                    strict=True,
                )
            )
        return found

    def _check(self, mixture: Mixture, norm: Norm) -> None:
        if norm not in get_args(Norm):
            raise SpaceError(f"norm must be one of {get_args(Norm)}, got {norm!r}.")
        if mixture.skip_scale is not None and not self.structure.auxiliary_skip:
            raise SpaceError("skip_scale needs a supernet with an auxiliary skip.")
        cells = len(self.cells)
        for what in ("op_weights", "active", "edge_weights", "offsets"):
            tensors: Mapping[str, Tensor] | None = getattr(mixture, what)
            if tensors is None:
                continue
            for name, whole in self.shapes.items():
                shape = whole if what in ("op_weights", "active") else whole[:1]
                if name not in tensors:
                    raise SpaceError(f"{what} must have '{name}', got {list(tensors)}.")
                got = tuple(tensors[name].shape)
                if got not in (shape, (cells, *shape)):
                    raise SpaceError(
                        f"{what}['{name}'] must have shape {shape} or {(cells, *shape)}, got {got}."
                    )


def _run_raw(
    cell: nn.Module, x: Tensor, weights: Mapping[str, Sequence[Weighted]], norm: Norm
) -> Tensor:
    found: Tensor = cell(x, weights, norm)
    return found


def _rows(
    tensors: Mapping[str, Tensor] | None, name: str, place: int, rows: int
) -> Sequence[Tensor | None]:
    # One value for each row of a cell.
    if tensors is None:
        return [None] * rows
    values = tensors[name]
    return (values[place] if values.dim() == 2 else values).unbind()


def _at(values: Tensor, place: int) -> Tensor:
    return values[place] if values.dim() == 3 else values
