"""The stack that supernets and discrete networks share: stem, layers, head, auxiliary head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.layers import (
    BatchNorm,
    ConvNorm,
    FactorizedReduce,
    Head,
    ResidualBlock,
    Source,
    Stem,
)
from spaces.core.layout import CellLayer, Layout
from spaces.core.mixture import Norm

RunCell = Callable[[nn.Module, CellLayer, Sequence[Source]], Tensor]


class Projection(nn.Module):
    """Bring each input of a cell to the cell's channels and size."""

    def __init__(self, layer: CellLayer, *, affine: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            ConvNorm(channels, layer.channels, 1, stride=1, affine=affine)
            if stride == 1
            else FactorizedReduce(channels, layer.channels, affine=affine)
            for channels, stride in zip(layer.input_channels, layer.input_strides, strict=False)
        )

    def forward(self, inputs: Sequence[Source], norm: Norm) -> Sequence[Source]:
        """Map every input to `(B, C, H, W)`, or return them as they are if none is projected."""
        if not self.projections:
            return inputs
        return [
            Source(projection(source, norm))
            for projection, source in zip(self.projections, inputs, strict=True)
        ]


class AuxiliaryHead(nn.Module):
    """Classifier on features from two thirds of the depth; used in training alone.

    Source:
        DARTS authors' code, cnn/model.py, AuxiliaryHeadCIFAR, for features of 8x8. Differs for
        other sizes, which the original cannot take: they are averaged to 2x2.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 128, 1, bias=False)
        self.first_norm = BatchNorm(128, affine=True)
        self.second = nn.Conv2d(128, 768, 2, bias=False)
        self.second_norm = BatchNorm(768, affine=True)
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """Map features `(B, C, H, W)` to logits `(B, num_classes)`."""
        x = functional.relu(x)
        published = x.shape[-2:] == (8, 8)
        x = functional.avg_pool2d(x, 5, 3) if published else functional.adaptive_avg_pool2d(x, 2)
        x = functional.relu(self.first_norm(self.first(x), norm))
        x = functional.relu(self.second_norm(self.second(x), norm))
        return self.classifier(x.flatten(1))


class Trunk(nn.Module):
    """Stem, layers and head of a layout; what a cell is comes from `build_cell`.

    Args:
        layout: The network.
        build_cell: Makes the module of a cell.
        affine: Whether the projections of cell inputs have affine norms.
    """

    def __init__(
        self,
        layout: Layout,
        build_cell: Callable[[CellLayer], nn.Module],
        *,
        affine: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.stem = Stem(layout.in_channels, layout.stem_channels)
        self.projections = nn.ModuleList()
        self.layers = nn.ModuleList()
        for layer in layout.layers:
            if isinstance(layer, CellLayer):
                self.projections.append(Projection(layer, affine=affine))
                self.layers.append(build_cell(layer))
            else:
                self.projections.append(nn.Identity())
                self.layers.append(ResidualBlock(layer.in_channels, layer.out_channels))
        last = layout.layers[-1].out_channels
        self.head = Head(last, layout.num_classes, final_norm=layout.final_norm)
        self.auxiliary: AuxiliaryHead | None = None
        if layout.auxiliary_after is not None:
            channels = layout.layers[layout.auxiliary_after].out_channels
            self.auxiliary = AuxiliaryHead(channels, layout.num_classes)

    def forward(
        self, images: Tensor, norm: Norm, run_cell: RunCell, *, auxiliary: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Classify images.

        Args:
            images: `(B, in_channels, H, W)`.
            norm: Which batch-norm statistics.
            run_cell: Runs a cell's module on its projected inputs.
            auxiliary: Whether to run the auxiliary head.

        Returns:
            Logits `(B, num_classes)`, and those of the auxiliary head or None.
        """
        features = self.stem(images.contiguous(memory_format=torch.channels_last), norm)
        num_inputs = max(
            len(layer.input_channels)
            for layer in self.layout.layers
            if isinstance(layer, CellLayer)
        )
        # Two cells read each output: a shared Source rectifies it once.
        states = [Source(features)] * num_inputs
        auxiliary_logits = None
        for index, layer in enumerate(self.layout.layers):
            module = self.layers[index]
            if isinstance(layer, CellLayer):
                inputs = self.projections[index](states, norm)
                features = run_cell(module, layer, inputs)
            else:
                features = module(states[-1].raw, norm)
            states = [*states[1:], Source(features)]
            if auxiliary and self.auxiliary is not None and index == self.layout.auxiliary_after:
                auxiliary_logits = self.auxiliary(features, norm)
        return self.head(features, norm), auxiliary_logits
