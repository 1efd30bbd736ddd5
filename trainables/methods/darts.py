"""DARTS: softmax over operations, alpha steps of first order or through an unrolled weight step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from trainables.alpha_gradients import (
    Alphas,
    BilevelProblem,
    mixed_difference,
    mixed_exact,
    unrolled,
)
from trainables.method import Method, SearchPoint

SOURCE = "Liu, Simonyan, Yang: DARTS, ICLR 2019, arXiv 1806.09055"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of DARTS.

    Attributes:
        alpha_gradient: "first_order"; "unrolled", the second order with a finite difference as in
            the authors' code; "unrolled_exact", the second order by differentiating twice.
        probe_radius: L2 length of the finite difference's shift of the weights, of "unrolled" only.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    alpha_gradient: Literal["first_order", "unrolled", "unrolled_exact"] = "first_order"
    probe_radius: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.probe_radius < float("inf"):
            raise ValueError(f"probe_radius must be > 0, got {self.probe_radius!r}.")
        if self.alpha_gradient != "unrolled" and self.probe_radius != 0.01:
            raise ValueError(
                f"probe_radius has no effect with alpha_gradient {self.alpha_gradient}; "
                f"leave it out, got {self.probe_radius!r}."
            )


def unrolled_gradient(problem: BilevelProblem, _at: SearchPoint, *, config: Config) -> Alphas:
    """Return the second-order alpha gradient with the product that `config` asks for."""
    if config.alpha_gradient == "unrolled_exact":
        return unrolled(problem, mixed_exact)
    return unrolled(problem, partial(mixed_difference, radius=config.probe_radius))


def build(config: Config) -> Method:
    """Return the method."""
    if config.alpha_gradient == "first_order":
        return Method()
    return Method(alpha_gradient=partial(unrolled_gradient, config=config))
