"""What a supernet mixes by: the op weights of its edges, and how its norms behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Norm = Literal["batch", "batch_and_update", "running"]
"""Statistics of the batch norms: of the batch; of the batch, updating the running ones; running."""


@dataclass(frozen=True)
class Mixture:
    """Weights by which a supernet mixes the candidate operations of its edges.

    Attributes:
        op_weights: By cell type, `(num_edges, num_ops)`, shared by all cells of the type, or
            `(num_cells, num_edges, num_ops)`, one set for each cell of the type in network order.
            Any finite values: being on the simplex is the promise of a relaxation, not a condition.
    """

    op_weights: Mapping[str, Tensor]
