"""Searches in stages: each with a supernet of its own, deeper, with fewer operations an edge."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spaces.core.errors import SpaceError
from spaces.core.space import Space


@dataclass(frozen=True)
class Stage:
    """One stage of a search; weights and alphas start anew in each.

    Attributes:
        epochs: Its length; the learning rate's cosine and the alphas' rest are within it.
        added_cells: Cells that its supernet has more than the space says (per stage of
            NAS-Bench-201).
        operations: Operations that an edge keeps in it, at most; None is all.
    """

    epochs: int
    added_cells: int = 0
    operations: int | None = None


@dataclass(frozen=True)
class Place:
    """Where in its stages a search is.

    Attributes:
        index: Of the stage, from 0.
        start: Its first epoch, counted from 0.
        epochs: Its length.
        columns: By cell type, the operations each edge has left, `(num_edges, kept)`, int64 on the
            CPU, ascending; None is all.
    """

    index: int
    start: int
    epochs: int
    columns: Mapping[str, Tensor] | None = None

    @property
    def suffix(self) -> str:
        """What tells the generators of this stage from those of the first."""
        return f" of stage {self.index + 1}" if self.index else ""

    def active(self, num_ops: Mapping[str, int]) -> dict[str, Tensor] | None:
        """Return which operations are left, `(num_edges, num_ops)`, on the CPU; None is all."""
        if self.columns is None:
            return None
        return {
            name: torch.zeros(len(columns), num_ops[name], dtype=torch.bool).scatter(
                1, columns, value=True
            )
            for name, columns in self.columns.items()
        }


def filled(
    op_weights: dict[str, Tensor], columns: Mapping[str, Tensor], num_ops: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return op weights of all operations, `(num_edges, num_ops)`, 0 where one is gone.

    Args:
        op_weights: Of those that are left, `(num_edges, kept)`.
        columns: Which these are, int64 of that shape, on the same device.
        num_ops: How many there are in all, by cell type.
    """
    return {
        name: matrix.new_zeros(len(matrix), num_ops[name]).scatter(1, columns[name], matrix)
        for name, matrix in op_weights.items()
    }


def kept_columns(
    op_weights: Mapping[str, Tensor], count: int, *, whole: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the `count` operations of largest op weight on every edge, ascending.

    Args:
        op_weights: Of all operations, `(num_edges, num_ops)`; ties go to the lower index.
        count: How many stay; all where there are no more.
        whole: Names whose rows keep all, because they choose among nodes and not operations.
    """
    found = {}
    for name, matrix in op_weights.items():
        order = matrix.detach().cpu().sort(dim=1, descending=True, stable=True).indices
        kept = order if name in whole else order[:, :count]
        found[name] = kept.sort(dim=1).values
    return found


def space_of(space: Space, stage: Stage) -> Space:
    """Return the space as deep as a stage has it.

    Raises:
        SpaceError: It has no deeper form.
    """
    if stage.added_cells == 0:
        return space
    _, cells = space.search_size()
    if cells + stage.added_cells < 1:
        raise SpaceError(
            f"A stage with {stage.added_cells} cells more has none left: '{space.name}' has "
            f"{cells}."
        )
    return space.with_cells(cells + stage.added_cells)
