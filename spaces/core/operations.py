"""Candidate operations: each maps a source node `(B, C, H, W)` to `(B, C, H', W')`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core import plugins
from spaces.core.draws import Draws
from spaces.core.errors import SpaceError, near_miss
from spaces.core.genotype import NONE
from spaces.core.layers import (
    BatchNorm,
    ConvNorm,
    FactorizedReduce,
    PointwiseConv,
    Source,
    from_phases,
)
from spaces.core.mixture import Norm
from spaces.core.own_operation import build_own

NOISE = "noise"
PARAMETER_FREE = frozenset({NONE, NOISE, "skip_connect", "max_pool_3x3", "avg_pool_3x3"})


class Skip(nn.Module):
    """The source itself."""

    def forward(self, source: Source, norm: Norm) -> Tensor:  # noqa: ARG002 (one call for all)
        """Return the source, `(B, C, H, W)`."""
        return source.raw


class Pool(nn.Module):
    """3x3 pooling; the average leaves the padding out."""

    def __init__(self, kind: str, *, stride: int) -> None:
        super().__init__()
        self.kind = kind
        self.stride = stride

    def forward(self, source: Source, norm: Norm) -> Tensor:  # noqa: ARG002 (one call for all)
        """Return the pooled source, `(B, C, H', W')`."""
        return pool(source.raw, self.kind, self.stride)


class Noise(nn.Module):
    """Standard normal noise in place of the source, drawn anew in every pass, in evaluation too.

    Source:
        Zela et al., ICLR 2020, and their code (src/operations.py, NoiseOp).
    """

    def __init__(self, *, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(
        self,
        source: Source,
        norm: Norm,  # noqa: ARG002 (one call for all)
        generator: torch.Generator | Draws | None = None,
    ) -> Tensor:
        """Return noise of the size of the source at the stride, `(B, C, H', W')`."""
        return noise_like(source.raw[:, :, :: self.stride, :: self.stride], generator)


def noise_like(x: Tensor, generator: torch.Generator | Draws | None) -> Tensor:
    """Return standard normal noise like `x`, `(B, C, H, W)`, in channels_last.

    Raises:
        SpaceError: There is no generator: the global one is never drawn from.
    """
    if not isinstance(generator, torch.Generator):
        raise SpaceError(f"The operation '{NOISE}' needs a generator, got {generator!r}.")
    batch, channels, height, width = x.shape
    shape = (batch, height, width, channels)  # channels_last, like the images
    draws = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    return draws.permute(0, 3, 1, 2)


class DepthwiseStage(nn.Module):
    """Depthwise convolution, 1x1 convolution, batch norm: half a separable convolution."""

    def __init__(self, channels: int, kernel: int, *, stride: int, affine: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )
        self.pointwise = PointwiseConv(channels, channels)
        self.batch_norm = BatchNorm(channels, affine=affine)

    def forward(self, source: Source, norm: Norm, scale: Tensor | None = None) -> Tensor:
        """Map a source `(B, C, H, W)` to `(B, C, H', W')`."""
        return self._rest(self.depthwise(source.rectified), norm, scale)

    def _rest(self, x: Tensor, norm: Norm, scale: Tensor | None) -> Tensor:
        return self.batch_norm(self.pointwise(x), norm, scale)


class DilatedConv(DepthwiseStage):
    """Depthwise convolution of dilation 2, 1x1 convolution, batch norm.

    With dilation 2 even and odd rows and columns never meet, so that the same kernel without
    dilation runs on the four phases of the image. That is several times as fast: CPU libraries have
    no depthwise backward kernel with dilation and fall back to one for dense convolutions. What
    follows looks at pixels one by one, or at all of them, so that an image may stay in its phases
    until it is needed whole.
    """

    def __init__(self, channels: int, kernel: int, *, stride: int, affine: bool) -> None:
        super().__init__(channels, kernel, stride=1, affine=affine)
        self.stride = stride

    def in_phases(self, source: Source, norm: Norm, scale: Tensor | None = None) -> Tensor:
        """Map a source `(B, C, H, W)` of even sides to phases `(4 B, C, H / 2, W / 2)`."""
        return self._rest(self.depthwise(source.phases), norm, scale)

    def forward(self, source: Source, norm: Norm, scale: Tensor | None = None) -> Tensor:
        """Map a source `(B, C, H, W)` to `(B, C, H', W')`."""
        if self.stride == 2:
            # At stride 2 every window lies in the first phase.
            return self._rest(self.depthwise(source.rectified[:, :, ::2, ::2]), norm, scale)
        if source.has_phases:
            return from_phases(self.in_phases(source, norm, scale))
        weight = self.depthwise.weight
        padding = 2 * (weight.shape[-1] // 2)
        x = functional.conv2d(
            source.rectified, weight, padding=padding, dilation=2, groups=weight.shape[0]
        )
        return self._rest(x, norm, scale)


class SeparableConv(nn.Module):
    """Two depthwise separable convolutions, the stride in the first."""

    def __init__(self, channels: int, kernel: int, *, stride: int, affine: bool) -> None:
        super().__init__()
        self.first = DepthwiseStage(channels, kernel, stride=stride, affine=affine)
        self.second = DepthwiseStage(channels, kernel, stride=1, affine=affine)

    def forward(self, source: Source, norm: Norm, scale: Tensor | None = None) -> Tensor:
        """Map a source `(B, C, H, W)` to `(B, C, H', W')`."""
        return self.second(Source(self.first(source, norm)), norm, scale)


def pool(x: Tensor, operation: str, stride: int) -> Tensor:
    """Pool `(B, C, H, W)` over 3x3 windows with padding 1, to `(B, C, H', W')`."""
    if operation == "max_pool_3x3":
        return functional.max_pool2d(x, 3, stride, 1)
    return functional.avg_pool2d(x, 3, stride, 1, count_include_pad=False)


def is_pool(operation: str) -> bool:
    """Say whether an operation is a pooling."""
    return operation in {"max_pool_3x3", "avg_pool_3x3"}


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return Skip() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


_BUILDERS: Mapping[str, Callable[[int, int, bool], nn.Module]] = {
    "skip_connect": _skip,
    "max_pool_3x3": lambda _, stride, __: Pool("max_pool_3x3", stride=stride),
    "avg_pool_3x3": lambda _, stride, __: Pool("avg_pool_3x3", stride=stride),
    NOISE: lambda _, stride, __: Noise(stride=stride),
    "nor_conv_1x1": lambda c, stride, a: ConvNorm(c, c, 1, stride=stride, affine=a),
    "nor_conv_3x3": lambda c, stride, a: ConvNorm(c, c, 3, stride=stride, affine=a),
    "sep_conv_3x3": lambda c, stride, a: SeparableConv(c, 3, stride=stride, affine=a),
    "sep_conv_5x5": lambda c, stride, a: SeparableConv(c, 5, stride=stride, affine=a),
    "dil_conv_3x3": lambda c, stride, a: DilatedConv(c, 3, stride=stride, affine=a),
    "dil_conv_5x5": lambda c, stride, a: DilatedConv(c, 5, stride=stride, affine=a),
}


def build_operation(name: str, channels: int, *, stride: int, affine: bool) -> nn.Module:
    """Build an operation other than `none`, a plug-in's too; called as `operation(source, norm)`.

    Args:
        name: Name of the operation.
        channels: Channels in and out.
        stride: 1 or 2.
        affine: Whether its batch norms have weights of their own.

    Raises:
        SpaceError: There is no such operation, or a plug-in's does not keep the contract.
    """
    if name not in _BUILDERS:
        known = plugins.available("operations")
        if name not in known or name == NONE:
            raise SpaceError(f"There is no operation '{name}'.{near_miss(name, known)}")
        return build_own(name, channels, stride=stride, affine=affine)
    return _BUILDERS[name](channels, stride, affine)


def without_weights(name: str) -> bool:
    """Say whether an operation has no weights at stride 1, where a collapsed search takes it."""
    if name in PARAMETER_FREE or name in _BUILDERS:
        return name in PARAMETER_FREE
    return not list(build_own(name, 2, stride=1, affine=False).parameters())
