"""Tensors that lie one after the other in one storage, so that they can be read as one for free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Joined:
    """Weights or statistics of several layers, seen as one tensor; what they are does not change.

    The layers keep their tensors, under their names and with their values; only where these lie
    changes. Layers that were moved or copied have storages of their own again, which the next call
    joins anew.

    Args:
        layers: What has the tensors.
        name: Of a parameter or buffer of each; they are equal but for their first size.
    """

    def __init__(self, layers: Sequence[nn.Module], name: str) -> None:
        self._layers = list(layers)
        self._name = name
        self._whole: Tensor | None = None

    def __call__(self) -> Tensor:
        """Return all tensors, one after the other, differentiable in each of them."""
        # Asked for each time: a module that is moved gets new buffers.
        parts: list[Tensor] = [getattr(layer, self._name) for layer in self._layers]
        whole = self._whole
        if whole is None or not _lie_in(whole, parts):
            whole = self._whole = _joined(parts)
        if torch.is_grad_enabled() and parts[0].requires_grad:
            return _Join.apply(whole, *parts)
        return whole


def _lie_in(whole: Tensor, parts: Sequence[Tensor]) -> bool:
    place = whole.untyped_storage().data_ptr()
    return all(part.untyped_storage().data_ptr() == place for part in (parts[0], parts[-1]))


@torch.no_grad()
def _joined(parts: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([part.detach() for part in parts])
    for part, piece in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.set_(piece)
    return whole


class _Join(torch.autograd.Function):
    """The whole, as a function of its parts: no copy forwards, and views of the gradient back."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, *parts: Tensor) -> Tensor:
        ctx.sizes = [len(part) for part in parts]
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *gradients[0].split(ctx.sizes)
