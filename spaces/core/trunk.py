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
    ImageNetStem,
    ResidualBlock,
    Source,
    Stem,
)
from spaces.core.layout import CellLayer, Layout
from spaces.core.layout import Stem as StemName
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
        DARTS authors' code, cnn/model.py: AuxiliaryHeadCIFAR for features of 8x8, and after the
        ImageNet stem AuxiliaryHeadImageNet for 7x7, which has no norm after its second convolution
        (the authors keep it so, as in the paper's experiments). Differs for other sizes, which the
        originals cannot take: they are averaged to 2x2.
    """

    def __init__(self, channels: int, num_classes: int, stem: StemName = "cifar") -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 128, 1, bias=False)
        self.first_norm = BatchNorm(128, affine=True)
        self.second = nn.Conv2d(128, 768, 2, bias=False)
        self.second_norm = BatchNorm(768, affine=True) if stem == "cifar" else None
        self.classifier = nn.Linear(768, num_classes)
        self.published_size, self.stride = (8, 3) if stem == "cifar" else (7, 2)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """Map features `(B, C, H, W)` to logits `(B, num_classes)`."""
        x = functional.relu(x)
        if x.shape[-2:] == (self.published_size, self.published_size):
            x = functional.avg_pool2d(x, 5, self.stride)
        else:
            x = functional.adaptive_avg_pool2d(x, 2)
        x = self.second(functional.relu(self.first_norm(self.first(x), norm)))
        if self.second_norm is not None:
            x = self.second_norm(x, norm)
        return self.classifier(functional.relu(x).flatten(1))


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
        self.stem: Stem | ImageNetStem
        if layout.stem == "imagenet":
            self.stem = ImageNetStem(layout.in_channels, layout.stem_channels)
        else:
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
            self.auxiliary = AuxiliaryHead(channels, layout.num_classes, layout.stem)

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
        images = images.contiguous(memory_format=torch.channels_last)
        # Two cells read each output: a shared Source rectifies it once.
        states = self._first_inputs(images, norm)
        features = states[-1].raw
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

    def _first_inputs(self, images: Tensor, norm: Norm) -> list[Source]:
        """Return the inputs of the first cell."""
        if isinstance(self.stem, ImageNetStem):
            return list(self.stem(images, norm))
        num_inputs = max(
            len(layer.input_channels)
            for layer in self.layout.layers
            if isinstance(layer, CellLayer)
        )
        return [Source(self.stem(images, norm))] * num_inputs
