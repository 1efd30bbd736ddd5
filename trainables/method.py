"""The Method record: a search method as pure functions. The defaults are first-order DARTS.

A method holds no state and draws random numbers only from the generator it is given, so that a
search can be stopped and resumed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from spaces.core.mixture import PLAIN, Norm, Structure
from spaces.core.space import Space
from trainables.implicit import Alphas, AlphaStep, BilevelProblem, first_order
from trainables.stages import Stage

if TYPE_CHECKING:
    from trainables.selecting import Selection
    from trainables.watching import EarlyStop

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
        space: The space that is searched: edges and operations of each cell type.
        step: Training steps done in this epoch.
        stage: Index of the stage, of a search that has several.
        stage_epoch, stage_epochs: Epochs done in the stage, and its length.
    """

    epoch: int
    epochs: int
    generator: torch.Generator
    train_loss: TrainLoss | None = None
    space: Space | None = None
    step: int = 0
    stage: int = 0
    stage_epoch: int = 0
    stage_epochs: int = 1

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
        relax: Alphas to op weights, differentiably; must not change the alphas. It may draw, once
            for every pass.
        mean: What the op weights are without draws, of which the genotype is taken and everything
            is measured; None is `relax`, which then must not draw.
        shown: Those at which the supernet's validation accuracy is measured, from the mean ones;
            None is the mean ones themselves.
        relax_edges: Logits of edges, each `(num_edges,)`, to edge weights; None is a supernet
            without them. They are trained with the alphas.
        sampled: Whether a training pass runs only the operations of op weight above one half, and
            how the others enter: "dropped" not at all, "scalars" as the numbers that their op
            weights are, added to every entry of an edge's output. None runs all.
        simplex: Whether rows of op weights sum to one. Perturbations rescale them to that.
        skip_scale: Coefficient of the auxiliary skip of every edge; None is a supernet without.
        skip_dropout: Probability of dropping an entry of a skip connection in training passes.
        structure: How the supernet's edges are built.
        stages: Epochs of the search to its stages, of which each has a supernet of its own; None is
            a single one.
        penalty: Added to the validation loss of the alpha step, in nats.
        alpha_gradient: One alpha step to the gradients that the alpha optimizer applies.
        perturb: Op weights to those that the weight step alone sees. None leaves them as they are.
            What it returns is detached; the alphas are not touched by the weight step.
        log: Values of the method's own for the curve of an epoch, such as a radius.
        alphas: "trained"; "at_start", where they keep the values they are drawn with; or "zero".
        trains: Whether there are training steps at all.
        weight_steps: Weight steps that follow each alpha step, counted anew in each epoch.
        alpha_start: Epochs at the start in which the weights are trained and the alphas rest, as a
            share of the search, in [0, 1); if it is not 0, they are at least one. A number of
            epochs where the experiment gives one. Of each stage, where there are several.
        genotype_of: Which epoch's genotype is the result. "best_epoch" is that of the highest
            validation accuracy among those in which the alphas were trained; ties to the earlier.
        selection: The method's own reading of its op weights, in the place of `magnitude`.
        early_stop: What may end the search before its last epoch.
    """

    relax: Callable[[Alphas, SearchPoint], OpWeights] = softmax
    mean: Callable[[Alphas, SearchPoint], OpWeights] | None = None
    shown: Callable[[OpWeights], OpWeights] | None = None
    relax_edges: Callable[[OpWeights, SearchPoint], OpWeights] | None = None
    sampled: Literal["dropped", "scalars"] | None = None
    simplex: bool = True
    skip_scale: Callable[[SearchPoint], float] | None = None
    skip_dropout: Callable[[SearchPoint], float] | None = None
    structure: Structure = PLAIN
    stages: Callable[[int], tuple[Stage, ...]] | None = None
    penalty: Callable[[Alphas, SearchPoint], Tensor] | None = None
    alpha_gradient: AlphaGradient = first_order_gradient
    perturb: Callable[[OpWeights, SearchPoint], OpWeights] | None = None
    log: Callable[[SearchPoint], Mapping[str, float]] = log_nothing
    alphas: Literal["trained", "at_start", "zero"] = "trained"
    trains: bool = True
    weight_steps: int = 1
    alpha_start: float | int = 0.0
    genotype_of: Literal["last_epoch", "best_epoch"] = "last_epoch"
    selection: Selection | None = None
    early_stop: EarlyStop | None = None

    def stages_of(self, epochs: int) -> tuple[Stage, ...]:
        """Return the stages of a search of so many epochs, at least one."""
        return (Stage(epochs),) if self.stages is None else self.stages(epochs)

    def first_alpha_epoch(self, epochs: int) -> int:
        """Return the epoch, counted from 0, in which the alphas begin to move."""
        if self.alphas != "trained":
            return epochs
        if isinstance(self.alpha_start, int):
            return self.alpha_start
        return max(1, round(self.alpha_start * epochs)) if self.alpha_start else 0
