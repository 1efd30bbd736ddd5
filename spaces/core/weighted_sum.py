"""Weighted sums of feature maps, in few passes over the data and differentiable twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _WeightedSum(torch.autograd.Function):
    """Sum of weight times feature, plus a plain sum.

    Autograd's own product would write out gradient times feature to sum it up for the weight's
    gradient; here that is one inner product. The backward is made of differentiable operations, so
    that exact second derivatives work.
    """

    @staticmethod
    def forward(ctx: Any, num_weighted: int, *tensors: Tensor) -> Tensor:
        weights, features = tensors[:num_weighted], tensors[num_weighted : 2 * num_weighted]
        plain = tensors[2 * num_weighted :]
        ctx.num_weighted, ctx.num_plain = num_weighted, len(plain)
        ctx.save_for_backward(*weights, *features)
        if len(plain) > 1:
            total = plain[0] + plain[1]
        elif plain:
            total = plain[0].clone(memory_format=torch.preserve_format)
        else:
            total = weights[0] * features[0]
        for feature in plain[2:]:
            total += feature
        first = 0 if plain else 1
        for weight, feature in zip(weights[first:], features[first:], strict=True):
            total.addcmul_(weight, feature)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        count = ctx.num_weighted
        saved = ctx.saved_tensors  # asked for once: a cell may have to run again for it
        weights, features = saved[:count], saved[count:]
        needs = ctx.needs_input_grad[1:]
        for_weights = [
            _inner(gradient, feature) if needed else None
            for feature, needed in zip(features, needs[:count], strict=True)
        ]
        for_features = [
            weight * gradient if needed else None
            for weight, needed in zip(weights, needs[count : 2 * count], strict=True)
        ]
        return None, *for_weights, *for_features, *([gradient] * ctx.num_plain)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.bfloat16:
        # It is the gradient of an op weight: a sum of eight bits would tell little of it.
        a, b = a.float(), b.float()
    return torch.dot(_flat(a), _flat(b))


def _flat(x: Tensor) -> Tensor:
    # In channels_last this is a view.
    return x.permute(0, 2, 3, 1).reshape(-1)


def weighted_sum(terms: Sequence[tuple[Tensor, Tensor]], plain: Sequence[Tensor]) -> Tensor:
    """Return the sum of weight times feature over `terms`, plus the sum of `plain`.

    Args:
        terms: (0-dimensional weight, feature `(B, C, H, W)`).
        plain: Features, each `(B, C, H, W)`. There must be at least one tensor in all.
    """
    weights = [weight for weight, _ in terms]
    features = [feature for _, feature in terms]
    return _WeightedSum.apply(len(terms), *weights, *features, *plain)
