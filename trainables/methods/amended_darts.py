"""Amended-DARTS: the alpha gradient has an implicit term, eta H in the place of H's inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spaces.core import plugins
from trainables.method import Method

SOURCE = "Bi et al.: Stabilizing DARTS with Amended Gradient Estimation, arXiv 1910.11831"
RESULTS_VERSION = 1
PROVIDES = ("alpha_gradient",)


@dataclass(frozen=True)
class Config:
    """Settings of Amended-DARTS; those of the alpha gradient `amended`.

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


def build(config: Config) -> Method:
    """Return the method.

    H and A are those of the training loss at the clean op weights, also where a perturbation is
    combined with it; see `trainables.implicit.amended` for what is known of the term's sign.
    """
    return Method(alpha_gradient=plugins.load("alpha_gradients", "amended").build(config))
