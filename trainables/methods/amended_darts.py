"""Amended-DARTS: the alpha gradient has an implicit term, eta H in the place of H's inverse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from trainables.implicit import AlphaStep, BilevelProblem, amended, product_of
from trainables.method import Method, SearchPoint

SOURCE = "Bi et al.: Stabilizing DARTS with Amended Gradient Estimation, arXiv 1910.11831"
RESULTS_VERSION = 1
PROVIDES = ("alpha_gradient",)


@dataclass(frozen=True)
class Config:
    """Settings of Amended-DARTS.

    Attributes:
        eta: Amending coefficient. The default is that of public code which cites the paper; the
            paper's own table was not at hand.
        product: "difference", two central differences, or "exact", by differentiating twice.
        probe_radius: L2 length of each difference's shift of the weights.
        decay_in_hessian: Whether the weight decay counts as part of the training loss.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    eta: float = 0.1
    product: Literal["difference", "exact"] = "difference"
    probe_radius: float = 0.01
    decay_in_hessian: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta must be a finite number >= 0, got {self.eta!r}.")
        if not 0 < self.probe_radius < float("inf"):
            raise ValueError(f"probe_radius must be > 0, got {self.probe_radius!r}.")
        if self.product == "exact" and self.probe_radius != 0.01:
            raise ValueError(
                f"probe_radius has no effect with product exact; leave it out, "
                f"got {self.probe_radius!r}."
            )


def amended_gradient(problem: BilevelProblem, _at: SearchPoint, *, config: Config) -> AlphaStep:
    """Return g1 - eta A H v; see `trainables.implicit.amended` for what is known of its sign.

    H and A are those of the training loss at the clean op weights, also where a perturbation is
    combined with it.
    """
    return amended(
        problem,
        product_of(config.product, config.probe_radius),
        eta=config.eta,
        weight_decay=problem.weight_decay if config.decay_in_hessian else 0.0,
    )


def build(config: Config) -> Method:
    """Return the method."""
    return Method(alpha_gradient=partial(amended_gradient, config=config))
