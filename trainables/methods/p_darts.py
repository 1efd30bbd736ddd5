"""P-DARTS: stages of growing depth and fewer operations, with dropout on skip connections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from spaces.core.genotype import Cell, Genotype
from spaces.core.space import Space
from trainables.method import Method, SearchPoint
from trainables.selecting import Selection
from trainables.stages import Stage

SOURCE = "Chen, Xie, Wu, Tian: Progressive Differentiable Architecture Search, ICCV 2019, arXiv 1904.12760"  # noqa: E501
RESULTS_VERSION = 1

_REST = 10 / 25
_DECAY = 0.2 * 25


@dataclass(frozen=True)
class Config:
    """Settings of P-DARTS; the defaults are those of the authors' code in the DARTS space.

    Attributes:
        added_cells: Cells that each stage has more than the space says (per stage of NAS-Bench-201,
            where nothing is published). The published depths 5, 11 and 17 need a space of 5 cells.
        operations: Operations that an edge keeps in each stage after the first.
        skip_dropout: First probability of dropping an entry of a skip connection, for each stage.
        max_skips: Skip connections in a normal cell of the genotype, at most.

    Raises:
        ValueError: A value is out of range, or the lists do not have a value for each stage.
    """

    added_cells: tuple[int, ...] = (0, 6, 12)
    operations: tuple[int, ...] = (5, 3)
    skip_dropout: tuple[float, ...] = (0.1, 0.4, 0.7)
    max_skips: int = 2

    def __post_init__(self) -> None:
        if not self.added_cells:
            raise ValueError("added_cells must have a number for each stage, got none.")
        for name, count in (("skip_dropout", 0), ("operations", 1)):
            expected = len(self.added_cells) - count
            if len(getattr(self, name)) != expected:
                raise ValueError(
                    f"{name} must have {expected} values for {len(self.added_cells)} stages "
                    f"(those of added_cells), got {len(getattr(self, name))}."
                )
        for value in self.operations:
            if value < 1:
                raise ValueError(f"operations must be >= 1, got {value!r}.")
        if list(self.operations) != sorted(self.operations, reverse=True):
            raise ValueError(f"operations must not grow, got {list(self.operations)}.")
        for rate in self.skip_dropout:
            if not 0 <= rate < 1:
                raise ValueError(f"skip_dropout must be in [0, 1), got {rate!r}.")
        if self.max_skips < 0:
            raise ValueError(f"max_skips must be >= 0, got {self.max_skips!r}.")


def stages(epochs: int, *, config: Config) -> tuple[Stage, ...]:
    """Return the stages of a search of so many epochs, as equal in length as can be."""
    count = len(config.added_cells)
    ends = [epochs * (index + 1) // count for index in range(count)]
    kept = (None, *config.operations)
    return tuple(
        Stage(end - start, cells, operations)
        for start, end, cells, operations in zip(
            [0, *ends], ends, config.added_cells, kept, strict=False
        )
    )


def skip_dropout(at: SearchPoint, *, config: Config, rest: int | None) -> float:
    """Return the probability of this epoch: linear while the alphas rest, then exponential.

    With t epochs of T done in the stage and the alphas moving from t = r, it is
    rate (T - t - 1) / T before r and rate exp(-5 (t - r) / T) from r on: for the published T = 25
    and r = 10, exp(-0.2 (t - 10)).

    Args:
        at: Where the search is.
        config: Settings.
        rest: r, where the experiment gives it; None is the published share.
    """
    rate, done, total = config.skip_dropout[at.stage], at.stage_epoch, at.stage_epochs
    start = max(1, round(_REST * total)) if rest is None else rest
    if done < start:
        return rate * (total - done - 1) / total
    return rate * math.exp(-_DECAY * (done - start) / total)


def restrict_skips(space: Space, op_weights: Mapping[str, Tensor], *, max_skips: int) -> Genotype:
    """Return the genotype of the largest op weights with at most so many skips in a normal cell.

    While a normal cell has more, the weakest of its skip connections loses its op weight, and the
    genotype is taken anew: its edge gets the next operation, or another edge takes its place.

    Args:
        space: The space.
        op_weights: By cell type, `(num_edges, num_ops)`; not changed.
        max_skips: Largest number.
    """
    left = {name: matrix.detach().clone() for name, matrix in op_weights.items()}
    while True:
        genotype = space.discretize(left)
        for cell in space.normal_cells(genotype):
            rows = _skips(space, cell)
            if len(rows) > max_skips:
                weakest = min(rows, key=lambda place: float(left[cell.name][place]))
                # Below everything that an edge can have: it is never chosen again.
                left[cell.name][weakest] = -1.0
                break
        else:
            return genotype


def _skips(space: Space, cell: Cell) -> list[tuple[int, int]]:
    # Row and column of the skip connections of a cell.
    return [
        space.place_of(cell.name, edge)
        for edge in cell.edges
        if edge.operation == space.skip_operation
    ]


def log_schedule(at: SearchPoint, *, config: Config, rest: int | None) -> Mapping[str, float]:
    """Return the probability of this epoch."""
    return {
        "skip_dropout": skip_dropout(at, config=config, rest=rest),
        "stage": float(at.stage + 1),
    }


def build(config: Config) -> Method:
    """Return the method: weights and alphas start anew in every stage, the alphas rest at first.

    The published search has 75 epochs, 25 a stage, of which the alphas rest for 10. Between two
    stages each edge loses its operations of least op weight, `none` among the others. The radius of
    a perturbation put into it grows over all stages together: the sources do not say.
    """
    rest = getattr(config, "alpha_start", None)
    return Method(
        stages=partial(stages, config=config),
        skip_dropout=partial(skip_dropout, config=config, rest=rest),
        log=partial(log_schedule, config=config, rest=rest),
        alpha_start=_REST,
        selection=Selection(each_epoch=partial(restrict_skips, max_skips=config.max_skips)),
    )
