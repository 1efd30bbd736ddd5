"""Reduced DARTS cells of R-DARTS, in which DARTS collapses."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.core import darts_cells
from spaces.core.darts_space import DartsSpace
from spaces.core.layout import CellTopology
from spaces.core.space import Evaluation, Space

SOURCE = "Zela et al.: Understanding and Robustifying Differentiable Architecture Search, ICLR 2020, arXiv 1909.09656"  # noqa: E501
EXPORTS = {
    "s1": "S1 of R-DARTS: DARTS cells with two operations an edge, from a fixed table.",
    "s2": "S2 of R-DARTS: DARTS cells with skip connection and 3x3 separable convolution.",
    "s3": "S3 of R-DARTS: DARTS cells with none, skip connection and 3x3 separable convolution.",
    "s4": "S4 of R-DARTS: DARTS cells with noise and 3x3 separable convolution.",
}

_UNIFORM = {
    "s2": ("skip_connect", "sep_conv_3x3"),
    "s3": ("none", "skip_connect", "sep_conv_3x3"),
    "s4": ("noise", "sep_conv_3x3"),
}

_MAX, _AVG, _SKIP = "max_pool_3x3", "avg_pool_3x3", "skip_connect"
_SEP3, _DIL3, _DIL5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"
# The authors' code, src/spaces.py: edges into node 2, then 3, 4 and 5, each from lower to higher.
_S1 = {
    darts_cells.NORMAL: (
        (_SKIP, _DIL3),
        (_SKIP, _DIL5),
        (_SKIP, _DIL5),
        (_SKIP, _SEP3),
        (_SKIP, _DIL3),
        (_MAX, _SKIP),
        (_SKIP, _SEP3),
        (_SKIP, _SEP3),
        (_SKIP, _DIL3),
        (_SKIP, _SEP3),
        (_MAX, _SKIP),
        (_SKIP, _DIL3),
        (_DIL3, _DIL5),
        (_DIL3, _DIL5),
    ),
    darts_cells.REDUCTION: (
        (_MAX, _AVG),
        (_MAX, _DIL3),
        (_MAX, _AVG),
        (_MAX, _AVG),
        (_SKIP, _DIL5),
        (_MAX, _AVG),
        (_MAX, _SEP3),
        (_SKIP, _DIL3),
        (_SKIP, _DIL5),
        (_MAX, _AVG),
        (_MAX, _AVG),
        (_SKIP, _DIL5),
        (_SKIP, _DIL5),
        (_SKIP, _DIL5),
    ),
}


@dataclass(frozen=True)
class Config:
    """Size of the supernet.

    Attributes:
        channels: Channels of the first cell; each reduction doubles them.
        cells: Number of cells; those at a third and at two thirds are reductions.

    Raises:
        ValueError: A value is out of range.
    """

    channels: int = 16
    cells: int = 8

    def __post_init__(self) -> None:
        if self.channels < 2:
            raise ValueError(f"channels must be >= 2, got {self.channels}.")
        if self.cells < 3:
            raise ValueError(
                f"cells must be >= 3, so that both cell types occur, got {self.cells}."
            )


class ReducedDarts(DartsSpace):
    """DARTS cells with fewer candidate operations.

    The evaluation network is that for CIFAR-10, of 36 channels for S1 and S3 and 16 for S2 and S4,
    which are recalled of R-DARTS and not checked (DARTS-PT takes 36); other data sets have others
    (`retrain.protocol: s1_s4_cifar`). The authors' evaluation script has 16 channels and 8 cells
    for its default.

    Source:
        Zela et al., ICLR 2020, and their code (src/spaces.py, src/evaluation/args.py).
    """

    def __init__(self, name: str, config: Config) -> None:
        super().__init__(name, config, tuple(topology(name, cell) for cell in _S1))
        channels = 16 if name in ("s2", "s4") else 36
        self.evaluation = Evaluation(channels=channels, cells=20, classes=10)


def topology(space: str, cell: str) -> CellTopology:
    """Return the edges and candidates of a cell type of one of the spaces."""
    if space in _UNIFORM:
        return darts_cells.topology_of(cell, _UNIFORM[space])
    every = tuple(dict.fromkeys(name for names in _S1[cell] for name in names))
    return darts_cells.topology_of(cell, every, _S1[cell])


def build(config: Config, name: str) -> Space:
    """Return the space of that name at these settings."""
    return ReducedDarts(name, config)
