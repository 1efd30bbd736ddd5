"""Keep the operations and edges of largest op weight, as the space's own rule says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from spaces.core.genotype import Genotype
from spaces.core.space import Space

SOURCE = "Liu, Simonyan, Yang: DARTS, ICLR 2019, section 2.4"


@dataclass(frozen=True)
class Config:
    """Magnitude selection has no settings."""


def select(space: Space, op_weights: Mapping[str, Tensor]) -> Genotype:
    """Return the genotype of the largest op weights."""
    return space.discretize(op_weights)


def build(_config: Config) -> Callable[[Space, Mapping[str, Tensor]], Genotype]:
    """Return the selection rule."""
    return select
