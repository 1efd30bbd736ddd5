"""The gradient through one virtual step of the weights: DARTS of second order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.implicit import product_of, unrolled
from trainables.method import AlphaGradient

SOURCE = "Liu, Simonyan, Yang: DARTS, ICLR 2019, arXiv 1806.09055, section 2.3"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of the unrolled gradient.

    Attributes:
        product: "difference", a central difference as in the authors' code, or "exact", by
            differentiating twice.
        probe_radius: L2 length of the difference's shift of the weights.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    product: Literal["difference", "exact"] = "difference"
    probe_radius: float = 0.01

    def __post_init__(self) -> None:
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
    return lambda problem, _at: unrolled(problem, product)
