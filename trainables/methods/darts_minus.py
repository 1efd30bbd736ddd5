"""DARTS-: every edge has a second skip connection, whose factor fades out over the search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from spaces.core.mixture import Structure
from trainables.method import Method, SearchPoint, linear

SOURCE = (
    "Chu et al.: DARTS-: Robustly Stepping out of Performance Collapse Without Indicators, "
    "ICLR 2021, arXiv 2009.01027"
)
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of DARTS-.

    Attributes:
        schedule: How the factor of the auxiliary skip falls from `scale_start` in the first epoch
            towards 0, which it would reach one epoch past the last.
        scale_start: Factor of the auxiliary skip in the first epoch.

    Raises:
        ValueError: A value is out of range.
    """

    schedule: Literal["linear", "cosine"] = "linear"
    scale_start: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale_start < float("inf"):
            raise ValueError(f"scale_start must be > 0, got {self.scale_start!r}.")


def scale_at(at: SearchPoint, *, config: Config) -> float:
    """Return b_t, the factor of the auxiliary skip in this epoch.

    With t epochs done of T it is scale_start (1 - t / T), so 0.02 in the last of 50 epochs, or
    scale_start (1 + cos(pi t / T)) / 2.

    Source:
        Chu et al., ICLR 2021, and the authors' code (src/utils.py, `DecayScheduler`), whose third
        schedule, `slow_cosine`, is left out.
    """
    if config.schedule == "linear":
        return linear(config.scale_start, 0.0, at)
    return config.scale_start * (1.0 + math.cos(math.pi * at.progress)) / 2.0


def log_scale(at: SearchPoint, *, config: Config) -> Mapping[str, float]:
    """Return the factor of the auxiliary skip in this epoch."""
    return {"skip_scale": scale_at(at, config=config)}


def build(config: Config) -> Method:
    """Return the method.

    The auxiliary skip belongs to the supernet alone. A genotype never has it, and it takes no part
    in the choice: op weights are those of DARTS.
    """
    return Method(
        skip_scale=partial(scale_at, config=config),
        structure=Structure(auxiliary_skip=True),
        log=partial(log_scale, config=config),
    )
