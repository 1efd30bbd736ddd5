"""Layers that supernets and discrete networks share; a norm's mode is an argument of the call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.mixture import Norm

MOMENTUM = 0.1
EPSILON = 1e-5
_FEWEST_CHANNELS = 8


class BatchNorm(nn.Module):
    """Batch norm whose mode, and optionally whose weight, is given with the call.

    It keeps no count of batches: with a fixed momentum the count changes nothing, and in a supernet
    it would cost one kernel for every norm.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(
        self, x: Tensor, norm: Norm, scale: Tensor | None = None, rows: slice | None = None
    ) -> Tensor:
        """Normalise `x`, `(B, C, H, W)`.

        Args:
            x: Input, `(B, C, H, W)`.
            norm: Which statistics.
            scale: Weight `(C,)` in place of the layer's own. It must be contiguous: an expanded
                scalar (stride 0) gives NaN gradients on the CPU.
            rows: The layer's channels that `x` consists of, for a layer that is not affine; None
                for all. The statistics of the others stay as they are.

        Returns:
            Normalised input, `(B, C, H, W)`.
        """
        weight = self.weight if scale is None else scale
        updates, uses = norm == "batch_and_update", norm == "running"
        mean = self.running_mean if updates or uses else None
        var = self.running_var if updates or uses else None
        if rows is not None and mean is not None and var is not None:
            mean, var = mean[rows], var[rows]  # views: an update reaches the buffers
        return functional.batch_norm(x, mean, var, weight, self.bias, not uses, MOMENTUM, EPSILON)


class Source:
    """A node's output with its rectified form, computed once for all edges that leave the node."""

    # No cached_property: it holds a lock in Python 3.11, at which torch.compile gives up.
    def __init__(self, raw: Tensor) -> None:
        self.raw = raw
        self._rectified: Tensor | None = None
        self._phases: Tensor | None = None

    @property
    def rectified(self) -> Tensor:
        """ReLU of the output, `(B, C, H, W)`."""
        if self._rectified is None:
            self._rectified = functional.relu(self.raw)
        return self._rectified

    @property
    def has_phases(self) -> bool:
        """Whether height and width are even."""
        return self.raw.shape[2] % 2 == 0 and self.raw.shape[3] % 2 == 0

    @property
    def phases(self) -> Tensor:
        """The four phases of the rectified output, `(4 B, C, H / 2, W / 2)`."""
        if self._phases is None:
            self._phases = to_phases(self.rectified)
        return self._phases


def to_phases(x: Tensor) -> Tensor:
    """Split `(B, C, H, W)` into every second row and column, `(4 B, C, H / 2, W / 2)`."""
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    phases = pixels.permute(2, 4, 0, 1, 3, 5).reshape(-1, height // 2, width // 2, channels)
    return phases.permute(0, 3, 1, 2)


def from_phases(x: Tensor) -> Tensor:
    """Undo `to_phases`: `(4 B, C, H / 2, W / 2)` to `(B, C, H, W)`."""
    batch, channels, height, width = x.shape
    phases = x.permute(0, 2, 3, 1).reshape(2, 2, batch // 4, height, width, channels)
    pixels = phases.permute(2, 3, 0, 4, 1, 5).reshape(-1, 2 * height, 2 * width, channels)
    return pixels.permute(0, 3, 1, 2)


class PointwiseConv(nn.Conv2d):
    """1x1 convolution of stride 1, without a bias, as the matrix product that it is.

    In channels_last the pixels are the rows of a matrix already; on a CPU this is 1.1 to 1.4 times
    as fast as the convolution, forward and backward.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, channels, H, W)`."""
        return _pointwise(x, self.weight)


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)


class HalvingConv(nn.Conv2d):
    """1x1 convolution of stride 2, without a bias."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, channels, ceil(H / 2), ceil(W / 2))`."""
        return halving(x, self.weight)


def halving(x: Tensor, weight: Tensor) -> Tensor:
    """Return the 1x1 convolution of stride 2 of `(B, C, H, W)`, at any number of channels.

    oneDNN's convolution for AVX2 without AVX-512 (3.13.3, of torch 2.15) writes beyond its memory
    in the gradient of the weight where pixels of channels_last have less than eight channels: the
    process dies, or worse. There the pixels are picked first.
    """
    if weight.shape[1] < _FEWEST_CHANNELS:
        return functional.conv2d(x[:, :, ::2, ::2], weight)
    return functional.conv2d(x, weight, stride=2)


def convolution(in_channels: int, channels: int, kernel: int, *, stride: int) -> nn.Conv2d:
    """Build a convolution without a bias that keeps the size at stride 1."""
    if kernel == 1 and stride == 1:
        return PointwiseConv(in_channels, channels)
    if kernel == 1 and stride == 2:
        return HalvingConv(in_channels, channels)
    return nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class ConvNorm(nn.Module):
    """Convolution of the rectified source, then batch norm."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, *, stride: int, affine: bool
    ) -> None:
        super().__init__()
        self.convolution = convolution(in_channels, channels, kernel, stride=stride)
        self.batch_norm = BatchNorm(channels, affine=affine)

    def forward(self, source: Source, norm: Norm, scale: Tensor | None = None) -> Tensor:
        """Map a source `(B, C, H, W)` to `(B, channels, H', W')`."""
        return self.batch_norm(self.convolution(source.rectified), norm, scale)

    def on_rows(self, source: Source, norm: Norm, scale: Tensor | None, rows: slice) -> Tensor:
        """Map a source `(B, C, H, W)` to some of the layer's channels, for no work on the others.

        Args:
            source: Node that the layer reads.
            norm: Which statistics.
            scale: Weight of those channels, contiguous; None is 1.
            rows: The channels. The layer must not be affine.
        """
        weight = self.convolution.weight[rows]
        if isinstance(self.convolution, PointwiseConv):
            x = _pointwise(source.rectified, weight)
        elif isinstance(self.convolution, HalvingConv):
            x = halving(source.rectified, weight)
        else:
            stride, padding = self.convolution.stride[0], weight.shape[-1] // 2
            x = functional.conv2d(source.rectified, weight, stride=stride, padding=padding)
        return self.batch_norm(x, norm, scale, rows)


class FactorizedReduce(nn.Module):
    """Halve height and width without losing pixels: two shifted 1x1 convolutions of stride 2.

    Source:
        DARTS authors' code, cnn/operations.py. Differs where a side is odd: the shifted image is
        padded by a row and a column of zeros, there the original has no answer.
    """

    def __init__(self, in_channels: int, channels: int, *, affine: bool) -> None:
        super().__init__()
        half = channels // 2
        self.even = HalvingConv(in_channels, half)
        self.odd = HalvingConv(in_channels, channels - half)
        self.batch_norm = BatchNorm(channels, affine=affine)

    def forward(self, source: Source, norm: Norm, scale: Tensor | None = None) -> Tensor:
        """Map a source `(B, C, H, W)` to `(B, channels, ceil(H / 2), ceil(W / 2))`."""
        x = source.rectified
        halves = self.even(x), self.odd(shifted_by_one(x))
        return self.batch_norm(torch.cat(halves, 1), norm, scale)


def shifted_by_one(x: Tensor) -> Tensor:
    """Return `(B, C, H, W)` without its first row and column, padded to even sides by zeros."""
    height, width = x.shape[-2:]
    shifted = x[:, :, 1:, 1:]
    if height % 2 or width % 2:
        shifted = functional.pad(shifted, (0, width % 2, 0, height % 2))
    return shifted


class ResidualBlock(nn.Module):
    """Residual block of stride 2 between two stages of NAS-Bench-201.

    Source:
        Dong & Yang, NAS-Bench-201, ICLR 2020, and its authors' code.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(in_channels, channels, 3, stride=2, affine=True)
        self.second = ConvNorm(channels, channels, 3, stride=1, affine=True)
        self.shortcut = PointwiseConv(in_channels, channels)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """Map `(B, C, H, W)` to `(B, channels, ceil(H / 2), ceil(W / 2))`."""
        inner = self.second(Source(self.first(Source(x), norm)), norm)
        # ceil_mode changes nothing at even sides and keeps odd ones in step with the convolution.
        return self.shortcut(functional.avg_pool2d(x, 2, 2, ceil_mode=True)) + inner


class Stem(nn.Module):
    """3x3 convolution of the images and batch norm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.batch_norm = BatchNorm(channels, affine=True)

    def forward(self, images: Tensor, norm: Norm) -> Tensor:
        """Map images `(B, in_channels, H, W)` to `(B, channels, H, W)`."""
        return self.batch_norm(self.convolution(images), norm)


class ImageNetStem(nn.Module):
    """Three 3x3 convolutions of stride 2, the first of half the channels, each with batch norm.

    Source:
        DARTS authors' code, cnn/model.py, NetworkImageNet.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.first = nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False)
        self.first_norm = BatchNorm(half, affine=True)
        self.second = ConvNorm(half, channels, 3, stride=2, affine=True)
        self.third = ConvNorm(channels, channels, 3, stride=2, affine=True)

    def forward(self, images: Tensor, norm: Norm) -> tuple[Source, Source]:
        """Map images `(B, in_channels, H, W)` to the first cell's two inputs.

        Returns:
            `(B, channels, ceil(H / 4), ceil(W / 4))` and `(B, channels, ceil(H / 8), ceil(W / 8))`.
        """
        halved = Source(self.first_norm(self.first(images), norm))
        earlier = Source(self.second(halved, norm))
        return earlier, Source(self.third(earlier, norm))


class Head(nn.Module):
    """Optional batch norm and ReLU, global average pooling and the linear classifier."""

    def __init__(self, channels: int, num_classes: int, *, final_norm: bool) -> None:
        super().__init__()
        self.batch_norm = BatchNorm(channels, affine=True) if final_norm else None
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """Map features `(B, C, H, W)` to logits `(B, num_classes)`."""
        if self.batch_norm is not None:
            x = functional.relu(self.batch_norm(x, norm))
        return self.classifier(x.mean((2, 3)))
