"""Unrolled DARTS over noisy logits: a method that draws random numbers when it relaxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from trainables.implicit import Alphas, AlphaStep, BilevelProblem, by_difference, unrolled
from trainables.method import Method, OpWeights, SearchPoint

SOURCE = "made here"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Standard deviation of the noise."""

    scale: float = 1.0


def relax(alphas: Alphas, at: SearchPoint, *, config: Config) -> OpWeights:
    """Return the softmax of noisy alphas."""
    noisy = {
        name: alpha + config.scale * torch.empty_like(alpha).normal_(generator=at.generator)
        for name, alpha in alphas.items()
    }
    return {name: torch.softmax(matrix, dim=-1) for name, matrix in noisy.items()}


def gradient(problem: BilevelProblem, _at: SearchPoint) -> AlphaStep:
    """Return the unrolled gradient."""
    return unrolled(problem, partial(by_difference, radius=0.01))


def build(config: Config) -> Method:
    """Return the method."""
    return Method(relax=partial(relax, config=config), alpha_gradient=gradient)
