"""The search's own setting: size, optimizer, regularisation and augmentation of the supernet."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Bi et al., Stabilizing DARTS with Amended Gradient Estimation, arXiv 1910.11831"
SOURCES = {"consistent": "the paper's consistency of search and re-training, in our reading"}


@dataclass(frozen=True)
class Config:
    """What the protocol sets; SOURCES says where each value is from."""

    consistent: bool = True
