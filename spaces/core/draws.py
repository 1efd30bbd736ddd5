"""Uniform numbers drawn before a pass, for networks that cannot draw in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Draws:
    """What a generator would have drawn in a pass, path after path; used up by one pass.

    A compiled network cannot draw from a generator, and of several processes that share a batch
    each needs the numbers of its own rows: both take them from here, the same ones.

    Args:
        paths: Number of draws.
        batch: Images that every draw is for.
        generator: Their source.
        device: Where they are used.
        rows: Which of the images the pass is over.
    """

    def __init__(
        self,
        paths: int,
        batch: int,
        generator: torch.Generator,
        *,
        device: torch.device,
        rows: slice = slice(None),
    ) -> None:
        # One after the other, as a network draws: a block of numbers is another stream on a GPU.
        drawn = [
            torch.rand(batch, 1, 1, 1, generator=generator, device=device) for _ in range(paths)
        ]
        self.values = torch.stack([each[rows] for each in drawn]) if drawn else None
        self.used = 0

    def take(self) -> Tensor:
        """Return the next draw, `(B, 1, 1, 1)`, in [0, 1)."""
        if self.values is None:
            raise IndexError("there are no draws: no part of the network says `num_paths`")
        self.used += 1
        return self.values[self.used - 1]


def num_paths(network: nn.Module) -> int:
    """Return how often a network draws in a pass that drops paths: its parts' `num_paths`."""
    return sum(int(getattr(part, "num_paths", 0)) for part in network.modules())
