"""iDARTS: the alpha gradient has an implicit term, a Neumann series in the place of H's inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spaces.core import plugins
from trainables.method import Method

SOURCE = (
    "Zhang et al.: iDARTS: Differentiable Architecture Search with Stochastic Implicit Gradients, "
    "ICML 2021, arXiv 2106.10784"
)
RESULTS_VERSION = 1
PROVIDES = ("alpha_gradient",)


@dataclass(frozen=True)
class Config:
    """Settings of iDARTS; those of the alpha gradient `neumann`, and how often it is taken.

    Attributes:
        terms: Terms of the series beyond the first, each a product with H. 0 leaves the first
            alone, -1 is first order.
        gamma: Step of the series; None is the weight learning rate of the epoch, as in the paper.
        product: "difference", central differences, or "exact", by differentiating twice.
        probe_radius: L2 length of each difference's shift of the weights.
        decay_in_hessian: Whether the weight decay counts as part of the training loss.
        stop_on_negative_curvature: Whether the series ends at the first term u with u'Hu < 0. The
            published code goes on.
        weight_steps: Weight steps between two alpha steps. The default is that of the authors' code
            for NAS-Bench-201; theirs for NAS-Bench-1Shot1 takes 5.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    terms: int = 2
    gamma: float | None = None
    product: Literal["difference", "exact"] = "difference"
    probe_radius: float = 0.01
    decay_in_hessian: bool = False
    stop_on_negative_curvature: bool = False
    weight_steps: int = 4

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
        if self.weight_steps < 1:
            raise ValueError(f"weight_steps must be >= 1, got {self.weight_steps!r}.")


def build(config: Config) -> Method:
    """Return the method.

    H and A are those of the training loss at the clean op weights, also where a perturbation is
    combined with it; see `trainables.implicit.neumann` for what is known of the term's sign.
    """
    return Method(
        alpha_gradient=plugins.load("alpha_gradients", "neumann").build(config),
        weight_steps=config.weight_steps,
    )
