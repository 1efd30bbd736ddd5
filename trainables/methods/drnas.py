"""DrNAS: op weights are drawn from a Dirichlet distribution, whose concentration is learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F  # noqa: N812

from trainables.implicit import Alphas
from trainables.method import Method, OpWeights, SearchPoint

SOURCE = "Chen et al.: DrNAS: Dirichlet Neural Architecture Search, ICLR 2021, arXiv 2006.10355"
RESULTS_VERSION = 1

_LEAST = 1e-12
"""Least concentration: elu(alpha) + 1 rounds to 0 below -17 in float32, and 0 has no draws."""


@dataclass(frozen=True)
class Config:
    """Settings of DrNAS.

    Attributes:
        reg: What pulls the concentrations to 1, the uniform distribution on the simplex. "none";
            "l2", the squares of the alphas, which are 0 there; "kl", the divergence from it. The
            published l2 of 1e-3 is nothing but weight decay of the alphas, which every search has
            by `search.alpha_weight_decay`, 1e-3 by default: "none" with that default is published
            DrNAS. Both penalties come on top of the decay: set it to 0 to have them alone.
        reg_scale: Factor of the penalty; the published one, tuned for l2.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    reg: Literal["none", "l2", "kl"] = "none"
    reg_scale: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.reg_scale < float("inf"):
            raise ValueError(f"reg_scale must be a finite number >= 0, got {self.reg_scale!r}.")
        if self.reg == "none" and self.reg_scale != 1e-3:
            raise ValueError(
                f"reg_scale has no effect with reg none; leave it out, got {self.reg_scale!r}."
            )


def concentrations(alpha: Tensor) -> Tensor:
    """Return elu(alpha) + 1: exp(alpha) up to 0, 1 + alpha above, and at least 1e-12.

    Args:
        alpha: Logits, any shape.
    """
    return (F.elu(alpha) + 1.0).clamp_min(_LEAST)


def draw_dirichlet(alphas: Alphas, at: SearchPoint) -> OpWeights:
    r"""Return op weights p ~ Dirichlet(beta) on every edge, beta = elu(alpha) + 1.

    The gradient is pathwise, that of torch's `Dirichlet.rsample`, which takes no generator:
        dp_i / dbeta_j = g_j (delta_ij - p_i),
    g_j the derivative of p_j along which the others are rescaled, `torch._dirichlet_grad`. Only
    first derivatives in the alphas are right: g and p count as constants in the second.

    Args:
        alphas: Logits, each `(num_edges, num_ops)`; not changed.
        at: Its generator is drawn from once per cell type, in order.

    Source:
        Chen et al., ICLR 2021, and the authors' code, one draw a pass. Their progressive learning
        with partial channels is not part of this method.
    """
    drawn: OpWeights = {}
    for name, alpha in alphas.items():
        beta = concentrations(alpha)
        fixed = beta.detach()
        sample = torch._sample_dirichlet(fixed, generator=at.generator)
        total = fixed.sum(dim=-1, keepdim=True).expand_as(fixed)
        # 0 forwards; what autograd sees of it is g dbeta.
        shift = torch._dirichlet_grad(sample, fixed, total) * (beta - fixed)
        drawn[name] = sample + shift - sample * shift.sum(dim=-1, keepdim=True)
    return drawn


def mean_weights(alphas: Alphas, _at: SearchPoint) -> OpWeights:
    """Return the mean of the distribution, beta over its sum on each edge.

    Its largest entry is that of the alphas. The paper's rule among edges, where genotypes have
    fewer of them, is not known to us: they go by their largest mean op weight.
    """
    found = {name: concentrations(alpha) for name, alpha in alphas.items()}
    return {name: beta / beta.sum(dim=-1, keepdim=True) for name, beta in found.items()}


def regularization(alphas: Alphas, _at: SearchPoint, *, config: Config) -> Tensor:
    r"""Return the penalty of the alpha step, in nats, summed over all edges of all cell types.

    "l2": reg_scale / 2 sum alpha^2, whose gradient is that of weight decay reg_scale. That this is
    what l2 means is our reading. "kl": reg_scale sum KL(Dirichlet(beta) || Dirichlet(1)); that it
    is summed and not averaged, and in this direction, is our reading as well.
    """
    if config.reg == "l2":
        terms = [alpha.square().sum() / 2.0 for alpha in alphas.values()]
    else:
        terms = []
        for alpha in alphas.values():
            beta = concentrations(alpha)
            learned = Dirichlet(beta, validate_args=False)
            uniform = Dirichlet(torch.ones_like(beta), validate_args=False)
            terms.append(kl_divergence(learned, uniform).sum())
    return config.reg_scale * torch.stack(terms).sum()


def build(config: Config) -> Method:
    """Return the method.

    The genotype is that of the mean op weights, at which validation accuracy is measured too.
    """
    return Method(
        relax=draw_dirichlet,
        mean=mean_weights,
        penalty=None if config.reg == "none" else partial(regularization, config=config),
    )
