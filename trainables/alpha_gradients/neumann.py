"""First order plus the implicit term with a Neumann series in the place of the inverse of H."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.implicit import AlphaStep, BilevelProblem, neumann, product_of
from trainables.method import AlphaGradient, SearchPoint

SOURCE = (
    "Zhang et al.: iDARTS: Differentiable Architecture Search with Stochastic Implicit Gradients, "
    "ICML 2021, arXiv 2106.10784"
)
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of the Neumann gradient; those of `idarts` but for its `weight_steps`.

    Attributes:
        terms: Terms of the series beyond the first, each a product with H. 0 leaves the first
            alone, -1 is first order.
        gamma: Step of the series; None is the weight learning rate of the epoch, as in the paper.
        product: "difference", central differences, or "exact", by differentiating twice.
        probe_radius: L2 length of each difference's shift of the weights.
        decay_in_hessian: Whether the weight decay counts as part of the training loss.
        stop_on_negative_curvature: Whether the series ends at the first term u with u'Hu < 0. The
            published code goes on.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    terms: int = 2
    gamma: float | None = None
    product: Literal["difference", "exact"] = "difference"
    probe_radius: float = 0.01
    decay_in_hessian: bool = False
    stop_on_negative_curvature: bool = False

    def __post_init__(self) -> None:
        if self.terms < -1:
            raise ValueError(f"terms must be >= -1, got {self.terms!r}.")
        if self.gamma is not None and not 0 <= self.gamma < float("inf"):
            raise ValueError(f"gamma must be a finite number >= 0, got {self.gamma!r}.")
        if not 0 < self.probe_radius < float("inf"):
            raise ValueError(f"probe_radius must be > 0, got {self.probe_radius!r}.")
        if self.product == "exact" and self.probe_radius != 0.01:
            raise ValueError(
                f"probe_radius has no effect with product exact; leave it out, "
                f"got {self.probe_radius!r}."
            )


def build(config: Config) -> AlphaGradient:
    """Return the alpha gradient."""
    product = product_of(config.product, config.probe_radius)

    def gradient(problem: BilevelProblem, _at: SearchPoint) -> AlphaStep:
        return neumann(
            problem,
            product,
            gamma=problem.weight_lr if config.gamma is None else config.gamma,
            terms=config.terms,
            weight_decay=problem.weight_decay if config.decay_in_hessian else 0.0,
            stop_on_negative_curvature=config.stop_on_negative_curvature,
        )

    return gradient
