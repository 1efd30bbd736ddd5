"""GDAS: every pass runs one drawn operation an edge, by straight-through Gumbel samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from trainables.implicit import Alphas
from trainables.method import Method, OpWeights, SearchPoint, softmax

SOURCE = "Dong, Yang: Searching for a Robust Neural Architecture in Four GPU Hours, CVPR 2019, arXiv 1910.04465"  # noqa: E501
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of GDAS.

    Attributes:
        tau_max: Temperature in the first epoch.
        tau_min: Temperature in the last epoch; in between it falls linearly.
        unsampled: How the operations that are not drawn enter an edge's output. "scalars", the
            authors' `forward_gdas`: as the number 0 that is their straight-through weight, added to
            every entry, so that they have a gradient of their own. "dropped", their
            `forward_gdas_v1`: not at all.

    Raises:
        ValueError: A temperature is not positive and finite, or it would grow.
    """

    tau_max: float = 10.0
    tau_min: float = 0.1
    unsampled: Literal["scalars", "dropped"] = "scalars"

    def __post_init__(self) -> None:
        for name in ("tau_max", "tau_min"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}.")
        if self.tau_max < self.tau_min:
            raise ValueError(
                f"tau_max must be >= tau_min ({self.tau_min!r}), got {self.tau_max!r}."
            )


def temperature(at: SearchPoint, *, config: Config) -> float:
    """Return tau_max - (tau_max - tau_min) * epoch / (epochs - 1), with epochs counted from 0.

    Unlike `method.linear` it reaches its end in the last epoch. A single epoch has tau_max.
    """
    share = at.epoch / max(1, at.epochs - 1)
    return config.tau_max - (config.tau_max - config.tau_min) * share


def draw_one_hot(alphas: Alphas, at: SearchPoint, *, config: Config) -> OpWeights:
    r"""Return one drawn operation an edge: one-hot forwards, a tempered softmax backwards.

    With Gumbel noise g = -log(e), e ~ Exp(1), and tau the temperature of the epoch,
        p = softmax((log_softmax(alpha) + g) / tau),    h = one_hot(argmax p) - sg(p) + p,
    where sg stops the gradient: h is one-hot, dh = dp. An operation is drawn with probability
    softmax(alpha), whatever tau.

    Args:
        alphas: Logits, each `(num_edges, num_ops)`; not changed. Rows of a space without edges are
            drawn alike, so that a block has one of its inputs in a pass (our reading).
        at: Its generator is drawn from once per cell type, in order.

    Source:
        Dong and Yang, CVPR 2019, and the authors' code (AutoDL-Projects, search_model_gdas.py).
        Differs: the authors draw again until no entry is infinite or not a number. Here nothing
        of that sort can be drawn, because exponentials are kept above 0; to look would stop a GPU
        in every pass.
    """
    tau = temperature(at, config=config)
    drawn: OpWeights = {}
    for name, alpha in alphas.items():
        waits = torch.empty_like(alpha).exponential_(generator=at.generator)
        gumbel = -waits.clamp_min(torch.finfo(alpha.dtype).tiny).log()
        soft = torch.softmax((torch.log_softmax(alpha, dim=-1) + gumbel) / tau, dim=-1)
        # In this order what is not drawn is exactly 0, and what is drawn 1 but for rounding.
        drawn[name] = one_hot_of_largest(soft.detach()) - soft.detach() + soft
    return drawn


def one_hot_of_largest(matrix: Tensor) -> Tensor:
    """Return 1 at the largest entry of each row, the first of equals, and 0 elsewhere."""
    return torch.zeros_like(matrix).scatter_(-1, matrix.argmax(dim=-1, keepdim=True), 1.0)


def path_of_largest(op_weights: OpWeights) -> OpWeights:
    """Return the path on which the validation accuracy is measured: the argmax of every edge.

    All edges stay in it, also where genotypes have fewer of them; `none` can be on it (our
    reading).
    """
    return {name: one_hot_of_largest(matrix) for name, matrix in op_weights.items()}


def log_temperature(at: SearchPoint, *, config: Config) -> Mapping[str, float]:
    """Return the temperature of this epoch."""
    return {"tau": temperature(at, config=config)}


def build(config: Config) -> Method:
    """Return the method; the genotype is that of softmax(alpha), by the rule of the space.

    Every pass draws anew; passes of one alpha step that are compared with each other draw equally.
    Published: tau from 10 to 0.1.
    """
    return Method(
        relax=partial(draw_one_hot, config=config),
        mean=softmax,
        shown=path_of_largest,
        sampled=config.unsampled,
        log=partial(log_temperature, config=config),
    )
