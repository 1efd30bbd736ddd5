"""The gradient of the validation loss at the current weights: DARTS of first order."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.method import AlphaGradient, first_order_gradient

SOURCE = "Liu, Simonyan, Yang: DARTS, ICLR 2019, arXiv 1806.09055, section 2.3 with xi = 0"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """First order has no settings."""


def build(_config: Config) -> AlphaGradient:
    """Return the alpha gradient."""
    return first_order_gradient
