"""SDARTS-RS: the weight step sees op weights with uniform noise, whose radius grows over epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from trainables.method import Method, OpWeights, SearchPoint, linear
from trainables.simplex import clamp_and_rescale, uniform_noise

SOURCE = "Chen, Hsieh: Stabilizing DARTS via Perturbation-based Regularization, ICML 2020, arXiv 2002.05283"  # noqa: E501
RESULTS_VERSION = 1
PROVIDES = ("perturb",)


@dataclass(frozen=True)
class Config:
    """Settings of SDARTS-RS.

    Attributes:
        radius_start: Half-width of the noise on op weights in the first epoch.
        radius_max: Half-width that the linear growth would reach after the last epoch.

    Raises:
        ValueError: A value is negative or not finite, or the radius would shrink.
    """

    radius_start: float = 0.03
    radius_max: float = 0.3

    def __post_init__(self) -> None:
        for name in ("radius_start", "radius_max"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be >= 0, got {value!r}.")
        if self.radius_max < self.radius_start:
            raise ValueError(
                f"radius_max must be >= radius_start ({self.radius_start!r}), "
                f"got {self.radius_max!r}."
            )


def add_uniform_noise(op_weights: OpWeights, at: SearchPoint, *, config: Config) -> OpWeights:
    """Add noise from U[-radius, radius] to every entry and rescale each row onto the simplex.

    Because the projection comes last, an entry can move further than the radius, and the noise that
    is left is biased towards uniform rows.

    Args:
        op_weights: On the simplex, each `(num_edges, num_ops)`; not changed.
        at: Its generator is drawn from once per cell type, in order.

    Source:
        Chen and Hsieh, ICML 2020, and the authors' code (attacker/perturb.py, `Random_alpha`).
    """
    radius = linear(config.radius_start, config.radius_max, at)
    perturbed: OpWeights = {}
    for name, matrix in op_weights.items():
        perturbed[name] = clamp_and_rescale(matrix + uniform_noise(matrix, radius, at.generator))
    return perturbed


def log_radius(at: SearchPoint, *, config: Config) -> Mapping[str, float]:
    """Return the radius of this epoch."""
    return {"radius": linear(config.radius_start, config.radius_max, at)}


def build(config: Config) -> Method:
    """Return the method."""
    return Method(
        perturb=partial(add_uniform_noise, config=config),
        log=partial(log_radius, config=config),
    )
