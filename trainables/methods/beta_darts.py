"""beta-DARTS: the alpha step is penalised by the logsumexp of each edge's alphas, ever more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainables.implicit import Alphas
from trainables.method import Method, SearchPoint, linear

SOURCE = (
    "Ye et al.: beta-DARTS: Beta-Decay Regularization for Differentiable Architecture Search, "
    "CVPR 2022, arXiv 2203.01665"
)
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of beta-DARTS.

    Attributes:
        lambda_max: Weight of the penalty that the linear growth from 0 would reach after the last
            epoch. The default is that of the authors' code, over 100 epochs.

    Raises:
        ValueError: The value is out of range.
    """

    lambda_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 <= self.lambda_max < float("inf"):
            raise ValueError(f"lambda_max must be a finite number >= 0, got {self.lambda_max!r}.")


def beta_decay(alphas: Alphas, at: SearchPoint, *, config: Config) -> Tensor:
    """Return lambda_t mean_e logsumexp_o(alpha_eo), in nats.

    Args:
        alphas: Logits, each `(num_edges, num_ops)`; the mean is over the edges of all cell types.
        at: Its epoch gives lambda_t.

    Source:
        Ye et al., CVPR 2022, and the authors' code (optimizers/darts/architect.py). One mean over
        all cell types is our reading: their code takes that of a single one.
    """
    edges = torch.cat([torch.logsumexp(alpha, dim=-1) for alpha in alphas.values()])
    return linear(0.0, config.lambda_max, at) * edges.mean()


def log_weight(at: SearchPoint, *, config: Config) -> Mapping[str, float]:
    """Return lambda_t of this epoch."""
    return {"penalty_weight": linear(0.0, config.lambda_max, at)}


def build(config: Config) -> Method:
    """Return the method."""
    return Method(
        penalty=partial(beta_decay, config=config), log=partial(log_weight, config=config)
    )
