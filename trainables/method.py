"""The Method record: a search method as pure functions. The defaults are first-order DARTS.

A method holds no state and draws random numbers only from the generator it is given, so that a
search can be stopped and resumed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spaces.core.mixture import Norm
from trainables.implicit import Alphas, AlphaStep, BilevelProblem, first_order

OpWeights = dict[str, Tensor]
TrainLoss = Callable[[OpWeights, Norm], Tensor]
AlphaGradient = Callable[[BilevelProblem, "SearchPoint"], AlphaStep]


@dataclass(frozen=True)
class SearchPoint:
    """Where a search is when it asks its method.

    Attributes:
        epoch: Epochs done, 0 in the first one.
        epochs: Epochs of the whole search.
        generator: Random numbers of the method, on the device of the alphas. State of the trial.
        train_loss: Loss of this step's training batch at given op weights and norm mode, at the
            current weights. Every call of one step draws the same random numbers inside the
            network. Differentiate it with respect to the op weights alone
            (`torch.autograd.grad(loss, ...)`): weight gradients are not wanted and cost time.
            None outside a training step.
    """

    epoch: int
    epochs: int
    generator: torch.Generator
    train_loss: TrainLoss | None = None

    @property
    def progress(self) -> float:
        """Share of the search done at the start of this epoch: epoch / epochs, in [0, 1)."""
        return self.epoch / self.epochs


def linear(start: float, end: float, at: SearchPoint) -> float:
    """Return start + (end - start) * epoch / epochs, with epochs counted from 0.

    The end would be reached one epoch past the last, as in the authors' code of SDARTS.
    """
    return start + (end - start) * at.progress


def softmax(alphas: Alphas, _at: SearchPoint) -> OpWeights:
    """Return the softmax of each row of alphas.

    Args:
        alphas: Logits, each `(num_edges, num_ops)`.

    Source:
        Liu et al., DARTS, ICLR 2019, Eq. 2.
    """
    return {name: torch.softmax(alpha, dim=-1) for name, alpha in alphas.items()}


def first_order_gradient(problem: BilevelProblem, _at: SearchPoint) -> AlphaStep:
    """Return the first-order alpha gradient: `implicit.first_order` as a method's field."""
    return first_order(problem)


def log_nothing(_at: SearchPoint) -> Mapping[str, float]:
    """Return no values of a method's own."""
    return {}


@dataclass(frozen=True)
class Method:
    """A differentiable search method.

    Attributes:
        relax: Alphas to op weights, differentiably; must not change the alphas.
        alpha_gradient: One alpha step to the gradients that the alpha optimizer applies.
        perturb: Op weights to those that the weight step alone sees. None leaves them as they are.
            What it returns is detached; the alphas are not touched by the weight step.
        log: Values of the method's own for the curve of an epoch, such as a radius.
        alpha_start: Epochs at the start in which the weights are trained and the alphas rest, as a
            share of the search, in [0, 1); if it is not 0, they are at least one. A number of
            epochs where the experiment gives one.
        genotype_of: Which epoch's genotype is the result. "best_epoch" is that of the highest
            validation accuracy among those in which the alphas were trained; ties to the earlier.
    """

    relax: Callable[[Alphas, SearchPoint], OpWeights] = softmax
    alpha_gradient: AlphaGradient = first_order_gradient
    perturb: Callable[[OpWeights, SearchPoint], OpWeights] | None = None
    log: Callable[[SearchPoint], Mapping[str, float]] = log_nothing
    alpha_start: float | int = 0.0
    genotype_of: Literal["last_epoch", "best_epoch"] = "last_epoch"

    def first_alpha_epoch(self, epochs: int) -> int:
        """Return the epoch, counted from 0, in which the alphas begin to move."""
        if isinstance(self.alpha_start, int):
            return self.alpha_start
        return max(1, round(self.alpha_start * epochs)) if self.alpha_start else 0
