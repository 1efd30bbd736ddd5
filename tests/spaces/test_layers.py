"""Layers whose form depends on their sizes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from spaces.core.layers import HalvingConv


@pytest.mark.parametrize("side", [1, 7, 8])
@pytest.mark.parametrize("in_channels", [1, 2, 4, 7, 8, 9])
def test_a_halving_is_the_convolution_of_stride_two(in_channels: int, side: int) -> None:
    torch.manual_seed(0)
    like = nn.Conv2d(in_channels, 6, 1, stride=2, bias=False, dtype=torch.float64)
    layer = HalvingConv(in_channels, 6).double()
    layer.load_state_dict(like.state_dict())
    x = torch.randn(3, in_channels, side, side, dtype=torch.float64, requires_grad=True)
    expected, found = like(x), layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, check_stride=False)
    into = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, like.weight), into)
    torch.testing.assert_close(torch.autograd.grad(found, (x, layer.weight), into), wanted)


_MANY = """
import torch
from spaces.core.layers import halving
torch.set_num_threads(1)
kept = []
for step in range(60):
    x = torch.randn(24, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(2, 4, 1, 1, requires_grad=True)
    halving(x, weight).sum().backward()
    kept.append(torch.empty(17 + step))
    if step % 3 == 0:
        kept.pop(0)
"""


def test_gradients_of_few_channels_leave_other_memory_alone() -> None:
    # As on a CPU without AVX-512, where torch's own convolution breaks the heap here.
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONMALLOC": "malloc"}
    found = subprocess.run(
        [sys.executable, "-c", _MANY], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr
