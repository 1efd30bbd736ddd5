"""FairDARTS: independent sigmoid op weights and a loss that drives them towards 0 or 1."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from spaces.core.genotype import NONE, Genotype
from spaces.core.space import Space
from trainables.implicit import Alphas
from trainables.method import Method, OpWeights, SearchPoint
from trainables.selecting import Selection

SOURCE = (
    "Chu et al.: Fair DARTS: Eliminating Unfair Advantages in Differentiable Architecture Search, "
    "ECCV 2020, arXiv 1911.12126"
)
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of FairDARTS; the defaults are those of the authors' code.

    Attributes:
        penalty: Distance of the op weights from 1/2 that is rewarded: "l2", the mean square, or
            "l1", the mean absolute value.
        penalty_weight: w01, factor of that distance, in nats.
        threshold: Op weight below which an operation is not kept, where a genotype may have `none`.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    penalty: Literal["l2", "l1"] = "l2"
    penalty_weight: float = 10.0
    threshold: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.penalty_weight < float("inf"):
            raise ValueError(
                f"penalty_weight must be a finite number >= 0, got {self.penalty_weight!r}."
            )
        if self.penalty == "l1" and self.penalty_weight == 0:
            raise ValueError("penalty has no effect with penalty_weight 0; leave it out, got 'l1'.")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {self.threshold!r}.")


def sigmoid(alphas: Alphas, _at: SearchPoint) -> OpWeights:
    """Return the sigmoid of every alpha: op weights in (0, 1) whose rows sum to anything.

    Args:
        alphas: Logits, each `(num_edges, num_ops)`.
    """
    return {name: torch.sigmoid(alpha) for name, alpha in alphas.items()}


def zero_one_penalty(alphas: Alphas, _at: SearchPoint, *, config: Config) -> Tensor:
    """Return -w01 times the distance of the op weights from 1/2, in nats.

    With p = sigmoid(alpha) it is -w01 mean((p - 1/2)^2) or -w01 mean(|p - 1/2|), the mean over all
    entries of all cell types together, those of `none` included.

    Args:
        alphas: Logits, each `(num_edges, num_ops)`.

    Source:
        Chu et al., ECCV 2020, and the authors' code (fairdarts/separate_loss.py, architect.py).
    """
    weights = torch.cat([torch.sigmoid(alpha).flatten() for alpha in alphas.values()])
    half = torch.full_like(weights, 0.5)
    distance = functional.mse_loss if config.penalty == "l2" else functional.l1_loss
    return -config.penalty_weight * distance(weights, half)


def choose(space: Space, op_weights: OpWeights, *, config: Config) -> Genotype:
    """Return the genotype by the space's rule, with `none` on edges that fall below the threshold.

    Args:
        space: Where its genotypes can have `none` on an edge, an edge whose largest op weight is
            below the threshold gets it.
        op_weights: Each `(num_edges, num_ops)`.

    Source:
        Chu et al., ECCV 2020, and the authors' code (fairdarts/utils.py, "threshold_sparse").
        Differs: they leave an edge below the threshold out of a DARTS cell, where genotypes here
        have two edges into every node, whatever the threshold.
    """
    kept = {}
    for name, matrix in op_weights.items():
        kept[name] = matrix
        operations = space.operations_of(name, 0)
        if NONE in operations and operations.index(NONE) in space.selectable(name):
            nothing = torch.zeros_like(matrix)
            nothing[:, operations.index(NONE)] = 1.0
            strong = matrix.amax(dim=-1, keepdim=True) >= config.threshold
            kept[name] = torch.where(strong, matrix, nothing)
    return space.discretize(kept)


def build(config: Config) -> Method:
    """Return the method.

    `alpha_entropy` sums -p log p over the operations of an edge. These p are no distribution: it is
    0 where every operation is decided, at 0 or at 1, but largest at p = 1/e and not at 1/2.

    Source:
        Differs: the alphas start as in DARTS, with standard deviation 1e-3, where the authors' are
        exactly 0 and the penalty's gradient with them.
    """
    return Method(
        relax=sigmoid,
        simplex=False,
        penalty=partial(zero_one_penalty, config=config),
        selection=Selection(each_epoch=partial(choose, config=config)),
    )
