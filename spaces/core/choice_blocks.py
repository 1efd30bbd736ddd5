"""The supernet of NAS-Bench-1Shot1: choice blocks, whose inputs and outputs are weighted too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.errors import SpaceError
from spaces.core.layers import BatchNorm, ConvNorm, Head, Source, convolution
from spaces.core.layout import CellLayer, Layout
from spaces.core.mixture import Mixture, Norm
from spaces.core.vertex_network import ConvNormReLU, max_pool

OPERATIONS, OUTPUT, INPUTS = "operations", "output", "inputs_{}"
"""Names of the op weights: of operations, of what is joined, of what leads into a block."""


@dataclass(frozen=True)
class Weighted:
    """Factors of some things that are added up.

    Attributes:
        factors: `(n,)`.
        active: Which of them are there at all; None is all.
    """

    factors: Tensor
    active: Sequence[bool] | None

    def terms(self, things: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return each thing times its factor; None where it is absent or not active."""
        return [
            None if thing is None or not self.has(index) else factor * thing
            for index, (factor, thing) in enumerate(zip(self.factors.unbind(), things, strict=True))
        ]

    def has(self, index: int) -> bool:
        """Say whether a thing is active."""
        return self.active is None or self.active[index]


class ChoiceBlock(nn.Module):
    """Max pooling, 3x3 and 1x1 convolution of the block's input, mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3x3 = ConvNormReLU(channels, channels, 3, affine=False)
        self.conv1x1 = ConvNormReLU(channels, channels, 1, affine=False)

    def forward(self, x: Tensor, weights: Weighted, norm: Norm) -> Tensor | None:
        """Map `(B, C, H, W)` to `(B, C, H, W)`, or to None where no operation is active."""
        outputs = [
            max_pool(x) if weights.has(0) else None,
            self.conv3x3(x, norm) if weights.has(1) else None,
            self.conv1x1(x, norm) if weights.has(2) else None,
        ]
        return _added(weights.terms(outputs))


class ChoiceCell(nn.Module):
    """A cell of choice blocks.

    A block adds up a 1x1 projection of the cell's input of its own and all earlier blocks, weighted
    where the space leaves a choice of inputs, and mixes the three operations. With weights w the
    output is w_0 projection(input) + concatenation of w_i block_i.
    """

    def __init__(self, blocks: int, layer: CellLayer) -> None:
        super().__init__()
        self.channels, self.stride = layer.channels, layer.stride
        width = layer.channels * blocks
        # The projections of all blocks, then that of the output: one matrix product for all.
        self.projection = convolution(layer.input_channels[0], 2 * width, 1, stride=1)
        self.projection_norm = BatchNorm(2 * width, affine=False)
        self.blocks = nn.ModuleList(ChoiceBlock(layer.channels) for _ in range(blocks))

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
                sources = weights[name][0].terms(sources)
            total = _added(sources)
            operations = weights[OPERATIONS][index]
            outputs.append(None if total is None else block(total, operations, norm))
        first, *joined = weights[OUTPUT][0].terms([projected[:, width:], *outputs])
        if any(part is not None for part in joined):
            nothing = torch.zeros_like(own[0])
            whole = torch.cat([nothing if part is None else part for part in joined], 1)
            first = whole if first is None else first + whole
        return torch.zeros_like(projected[:, width:]) if first is None else first


def _added(terms: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


class ChoiceSupernet(nn.Module):
    """The over-parameterised network of NAS-Bench-1Shot1: weights and statistics, nothing else.

    It is called as `Supernet` is. A mixture can have op weights and `active`, and nothing more.

    Args:
        shapes: Of the op weights, by name.
        blocks: Choice blocks in a cell.
        layout: How cells are stacked; one of stride 2 has its input pooled.

    Source:
        Zela, Siems & Hutter, NAS-Bench-1Shot1, ICLR 2020, and the authors' code
        (optimizers/darts/model_search.py): 2x2 max pooling with padding, which gives 17 and 9
        pixels from 32; no norm after a pooling candidate; ReLU, 1x1 convolution and norm before
        the classifier. Differs: norms of the cells have no weights of their own, as in the other
        supernets, and running statistics move by 0.1 a batch (our reading). The code of
        SmoothDARTS weighs block i by the weight of block i - 1, and the last weight has no effect
        there; here, as in the authors' own, every block has its own.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], blocks: int, layout: Layout) -> None:
        super().__init__()
        self.shapes, self.layout = dict(shapes), layout
        cells = [layer for layer in layout.layers if isinstance(layer, CellLayer)]
        self.stem = ConvNormReLU(layout.in_channels, layout.stem_channels, 3, affine=True)
        self.cells = nn.ModuleList(ChoiceCell(blocks, layer) for layer in cells)
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
            mixture: Op weights and, optionally, what of them is active; by name, of the shapes of
                the space or with an axis of cells before.
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
            x = cell(x, self._of_cell(mixture, place), norm)
        return self.head(self.postprocess(Source(x), norm), norm)

    def _of_cell(self, mixture: Mixture, place: int) -> dict[str, tuple[Weighted, ...]]:
        found = {}
        for name, (rows, _) in self.shapes.items():
            factors = _at(mixture.op_weights[name], place)
            active: Sequence[Sequence[bool] | None] = [None] * rows
            if mixture.active is not None:
                active = _at(mixture.active[name], place).tolist()
            found[name] = tuple(
                Weighted(*row) for row in zip(factors.unbind(), active, strict=True)
            )
        return found

    def _check(self, mixture: Mixture, norm: Norm) -> None:
        if norm not in get_args(Norm):
            raise SpaceError(f"norm must be one of {get_args(Norm)}, got {norm!r}.")
        for what in ("edge_weights", "offsets", "skip_scale"):
            if getattr(mixture, what) is not None:
                raise SpaceError(f"This supernet has blocks and no edges: {what} must be None.")
        if mixture.skip_dropout:
            raise SpaceError(
                "This supernet has no skip connections: skip_dropout must be 0, got "
                f"{mixture.skip_dropout}."
            )
        for what in ("op_weights", "active"):
            tensors: Mapping[str, Tensor] | None = getattr(mixture, what)
            if tensors is None:
                continue
            for name, shape in self.shapes.items():
                if name not in tensors:
                    raise SpaceError(f"{what} must have '{name}', got {list(tensors)}.")
                got = tuple(tensors[name].shape)
                if got not in (shape, (len(self.cells), *shape)):
                    raise SpaceError(
                        f"{what}['{name}'] must have shape {shape} or "
                        f"{(len(self.cells), *shape)}, got {got}."
                    )


def _at(values: Tensor, place: int) -> Tensor:
    return values[place] if values.dim() == 3 else values
