"""Operations that come from plug-ins: how one is built, checked and run by the engine."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spaces.core import plugins
from spaces.core.errors import SpaceError
from spaces.core.layers import Source
from spaces.core.mixture import Norm

_CHANNELS = 4
_SIDES = (8, 7)
# What has a mode of its own, or draws from the global generator.
_FORBIDDEN = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
)


class OwnOperation(nn.Module):
    """What a plug-in's `build` returned, called as the shipped operations are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, source: Source, norm: Norm) -> Tensor:
        """Map a source `(B, C, H, W)` to `(B, C, H', W')`."""
        return self.module(source.raw, norm)


def build_own(name: str, channels: int, *, stride: int, affine: bool) -> OwnOperation:
    """Return an operation of a plug-in.

    Args:
        name: Name of the operation.
        channels: Channels in and out.
        stride: 1 or 2.
        affine: Whether its batch norms have weights of their own.

    Raises:
        UnknownPluginError: There is none of that name.
        SpaceError: The plug-in does not keep the contract; the message says where.
    """
    path = plugins.describe("operations", name).path
    _check(name, path, path.stat().st_mtime_ns)
    return _built(name, path, channels, stride=stride, affine=affine)


def _built(name: str, path: Path, channels: int, *, stride: int, affine: bool) -> OwnOperation:
    module = plugins.load("operations", name)
    try:
        built = module.build(name, channels, stride=stride, affine=affine)
    except Exception as error:  # a user's file may raise anything
        raise SpaceError(
            f"{path}: build({name!r}, {channels}, stride={stride}, affine={affine}) must return a "
            f"torch module, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(built, nn.Module):
        raise SpaceError(f"{path}: build must return a torch module, got {built!r}.")
    for part in built.modules():
        if isinstance(part, _FORBIDDEN):
            raise SpaceError(
                f"{path}: the operation '{name}' must have no {type(part).__name__}, which keeps a "
                "mode or draws from the global generator. For a norm take "
                "spaces.core.layers.BatchNorm, whose mode is given with the call."
            )
    return OwnOperation(built)


@lru_cache(maxsize=256)
def _check(name: str, path: Path, _mtime_ns: int) -> None:
    """Run an operation once on small images, so that a wrong one is known before a search."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for stride in (1, 2):
            for affine in (False, True):
                operation = _built(name, path, _CHANNELS, stride=stride, affine=affine)
                for side in _SIDES:
                    _check_run(name, path, operation, side, stride)


def _check_run(name: str, path: Path, operation: OwnOperation, side: int, stride: int) -> None:
    images = torch.randn(2, _CHANNELS, side, side)
    where = f"{path}: the operation '{name}' at stride {stride}"
    try:
        with torch.no_grad():
            first, second = (operation(Source(images), "batch") for _ in range(2))
    except Exception as error:  # likewise
        raise SpaceError(
            f"{where} must map images {tuple(images.shape)} by forward(x, norm), got "
            f"{type(error).__name__}: {error}"
        ) from error
    smaller = -(-side // stride)
    expected = (2, _CHANNELS, smaller, smaller)
    got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
    if got != expected:
        raise SpaceError(f"{where} must map {tuple(images.shape)} to {expected}, got {got}.")
    if not torch.equal(first, second):
        raise SpaceError(
            f"{where} must give the same twice: it may neither draw at random nor keep a state "
            "that a pass changes."
        )
