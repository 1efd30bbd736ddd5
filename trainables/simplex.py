"""Op weights near the simplex: noise around them, and the way back onto it, row by row."""

from __future__ import annotations

import torch
from torch import Tensor


def clamp_and_rescale(matrix: Tensor) -> Tensor:
    """Return rows that are not negative and sum to one, by clamping and dividing by the sum.

    Each row is clamped to [0, 1]; a row that becomes all zero gets 1 at the largest entry it had
    before the clamp; the row is divided by its sum. This is not the Euclidean projection: it keeps
    the ratios of what is left, [0.9, 0.3] -> [0.75, 0.25].

    Args:
        matrix: Any finite values, `(..., num_ops)`.

    Returns:
        A new tensor of the same shape.

    Source:
        SmoothDARTS, `clip` of the search models.
    """
    clamped = matrix.clamp(0.0, 1.0)
    columns = torch.arange(matrix.shape[-1], device=matrix.device)
    # Not F.one_hot: it reads its argument on the host, which stops a GPU in every step.
    largest = (columns == matrix.argmax(dim=-1, keepdim=True)).to(matrix.dtype)
    empty = clamped.sum(dim=-1, keepdim=True) == 0
    filled = torch.where(empty, largest, clamped)
    return filled / filled.sum(dim=-1, keepdim=True)


def uniform_noise(matrix: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Return independent draws from U[-radius, radius], in the shape and type of `matrix`."""
    return torch.empty_like(matrix).uniform_(-radius, radius, generator=generator)
