"""Keep the operations and edges of largest op weight, as the space's own rule says."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.selecting import Selection

SOURCE = "Liu, Simonyan, Yang: DARTS, ICLR 2019, section 2.4"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Magnitude selection has no settings."""


def build(_config: Config) -> Selection:
    """Return the selection rule."""
    return Selection()
