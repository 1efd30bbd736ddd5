"""DARTS: softmax over operations, alpha and weight steps in turn; first order by default."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.method import Method

SOURCE = "Liu, Simonyan, Yang: DARTS, ICLR 2019, arXiv 1806.09055"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """DARTS has no settings of its own; `alpha_gradient: unrolled` gives the second order."""


def build(_config: Config) -> Method:
    """Return the method."""
    return Method()
