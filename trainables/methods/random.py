"""Random search: the best of random genotypes in a supernet trained by them, or any one of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch

from spaces.core.genotype import Genotype
from spaces.core.space import Space
from trainables.errors import MethodError
from trainables.implicit import Alphas
from trainables.method import Method, OpWeights, SearchPoint, softmax
from trainables.probes import one_hot
from trainables.selecting import Selected, Selection, TrainedSupernet

SOURCE = "Li, Talwalkar: Random Search and Reproducibility for Neural Architecture Search, UAI 2019, arXiv 1902.07638"  # noqa: E501
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of random search.

    Attributes:
        share_weights: Whether a supernet is trained, one random genotype a step, and judges
            candidates; without it the result is one genotype a seed, drawn uniformly, and nothing
            is trained.
        candidates: Genotypes that are drawn and judged after the search.
        candidate_batches: Validation batches that judge each of them, from the first.
        finalists: How many of the best are judged on the whole validation split; all, where there
            are no more candidates.
        norm: Statistics of the batch norms of all judgements; the running ones belong to a mixture
            of genotypes.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    share_weights: bool = True
    candidates: int = 1000
    candidate_batches: int = 1
    finalists: int = 10
    norm: Literal["batch", "running"] = "batch"

    def __post_init__(self) -> None:
        for name in ("candidates", "candidate_batches", "finalists"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)!r}.")
        if self.share_weights:
            return
        for field in fields(Config):
            value = getattr(self, field.name)
            if field.name != "share_weights" and value != field.default:
                raise ValueError(
                    f"{field.name} has no effect without share_weights; leave it out, "
                    f"got {value!r}."
                )


def uniform_genotype(space: Space, generator: torch.Generator) -> Genotype:
    """Return a genotype of independent uniform scores.

    All orders of independent equal scores are equally likely, so that every operation is the
    strongest of its edge with the same probability, and so is every choice of edges into a node:
    every genotype of the space is equally likely, isomorphic ones counted apart.

    Args:
        space: The space.
        generator: Drawn from once per cell type, in order.
    """
    scores = {
        name: torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        for name, shape in space.alpha_shapes().items()
    }
    return space.discretize(scores)


def draw_genotype(alphas: Alphas, at: SearchPoint) -> OpWeights:
    """Return the op weights of a uniform genotype, 1 for its operations and 0 elsewhere.

    Args:
        alphas: Each `(num_edges, num_ops)`; only shape, precision and device are used.
        at: Its generator is drawn from once per cell type, in order.
    """
    space = _space(at)
    return one_hot(space, uniform_genotype(space, at.generator), alphas)


def start_genotype(alphas: Alphas, at: SearchPoint) -> OpWeights:
    """Return the op weights of the genotype that the alphas stand for, 1 and 0.

    The alphas rest, so that the curve is that of one uniform genotype; it is not the result.
    """
    space = _space(at)
    return one_hot(space, space.discretize(softmax(alphas, at)), alphas)


def _space(at: SearchPoint) -> Space:
    if at.space is None:
        raise MethodError("Random search draws genotypes of a space, and there is none here.")
    return at.space


def select(supernet: TrainedSupernet, *, config: Config) -> Selected:
    """Return the best of many uniform genotypes, by the weights of the supernet.

    All are judged by the same few validation batches, the best of them by the whole split: by
    accuracy, equal ones by loss, then in the order of their draw. The curve ends with the accuracy
    of the winner; it is the largest of many and so a little too high.

    Returns:
        Scores are 1 for the operations of the winner and 0 elsewhere.

    Source:
        Li and Talwalkar, UAI 2019. The two rounds are from memory; numbers of candidates, batches
        and finalists, ties and the norm are our reading.
    """
    space, like = supernet.space, supernet.op_weights()
    drawn = [uniform_genotype(space, supernet.at.generator) for _ in range(config.candidates)]

    def badness(genotype: Genotype, batches: int | None) -> tuple[float, float]:
        op_weights = one_hot(space, genotype, like)
        loss, accuracy = supernet.evaluate(op_weights, config.norm, batches=batches)
        return -accuracy, loss

    # sorted and min keep the order of equals.
    ranked = sorted(drawn, key=lambda genotype: badness(genotype, config.candidate_batches))
    judged = [(badness(genotype, None), genotype) for genotype in ranked[: config.finalists]]
    (badly, loss), best = min(judged, key=lambda pair: pair[0])
    scores = {name: m.double().cpu() for name, m in one_hot(space, best, like).items()}
    return Selected(best, scores, {"val_accuracy": -badly, "val_loss": loss})


def build(config: Config) -> Method:
    """Return the method.

    Without shared weights the genotype is that of the alphas as they are drawn: independent and of
    one distribution, they give every genotype the same chance, as `uniform_genotype` says. The
    softmax changes no order within an edge, and edges remain alike.
    """
    if not config.share_weights:
        return Method(alphas="at_start", trains=False)
    return Method(
        relax=draw_genotype,
        mean=start_genotype,
        sampled="dropped",
        alphas="at_start",
        selection=Selection(at_end=partial(select, config=config)),
    )
