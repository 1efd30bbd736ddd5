"""The operations of the shipped spaces."""

from __future__ import annotations

from torch import nn

from spaces.core.operations import build_operation

SOURCE = (
    "Liu et al., DARTS, ICLR 2019; Dong & Yang, NAS-Bench-201, ICLR 2020; Zela et al., ICLR 2020"
)
EXPORTS = {
    "none": "No connection.",
    "noise": "Standard normal noise in place of the node, drawn anew in every pass.",
    "skip_connect": "The node itself; at stride 2 two shifted 1x1 convolutions and a norm.",
    "max_pool_3x3": "Largest of 3x3 pixels.",
    "avg_pool_3x3": "Mean of 3x3 pixels, padding left out.",
    "nor_conv_1x1": "ReLU, 1x1 convolution, norm.",
    "nor_conv_3x3": "ReLU, 3x3 convolution, norm.",
    "sep_conv_3x3": "Twice ReLU, 3x3 depthwise and 1x1 convolution, norm.",
    "sep_conv_5x5": "Twice ReLU, 5x5 depthwise and 1x1 convolution, norm.",
    "dil_conv_3x3": "ReLU, 3x3 depthwise convolution of dilation 2 and 1x1 convolution, norm.",
    "dil_conv_5x5": "ReLU, 5x5 depthwise convolution of dilation 2 and 1x1 convolution, norm.",
}


def build(name: str, channels: int, *, stride: int, affine: bool) -> nn.Module:
    """Return the module that the engine runs."""
    return build_operation(name, channels, stride=stride, affine=affine)
