"""First order plus the implicit term with eta H in the place of the inverse of H."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.implicit import amended, product_of
from trainables.method import AlphaGradient

SOURCE = "Bi et al.: Stabilizing DARTS with Amended Gradient Estimation, arXiv 1910.11831"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of the amended gradient; those of `amended_darts`.

    Attributes:
        eta: Amending coefficient. The default is that of public code which cites the paper.
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


def build(config: Config) -> AlphaGradient:
    """Return the alpha gradient."""
    product = product_of(config.product, config.probe_radius)
    return lambda problem, _at: amended(
        problem,
        product,
        eta=config.eta,
        weight_decay=problem.weight_decay if config.decay_in_hessian else 0.0,
    )
