"""What a supernet mixes by: the op weights of its edges, and how its norms behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Norm = Literal["batch", "batch_and_update", "running"]
"""Statistics of the batch norms: of the batch; of the batch, updating the running ones; running."""

Form = Literal["edge", "wide", "plain"]
"""How a supernet runs the same operations: shared and edge by edge, which is the fastest on a CPU;
joined to few and wide calls, for a GPU; one by one with nothing shared, to compare with."""


@dataclass(frozen=True)
class Mixture:
    """Weights by which a supernet mixes the candidate operations of its edges.

    An edge e gives its target, where x is its source and o runs over the active operations,
        edge_weight_e (sum_o op_weight_eo o(x) + offset_e + skip_scale auxiliary_e(x)).
    All but the op weights may be None, meaning that the term or factor is absent, at no cost.
    Tensors are by cell type and start with `num_edges`, or with `(num_cells, num_edges)`: then each
    cell of the type has its own, in network order.

    Attributes:
        op_weights: `(..., num_ops)`. Any finite values: being on the simplex is the promise of a
            relaxation, not a condition.
        edge_weights: `(...)`, factor of all that an edge gives its target, the channels that bypass
            its operations included.
        active: Boolean, `(..., num_ops)`, on the CPU. An inactive operation is not executed and
            enters as 0 whatever its op weight.
        offsets: `(...)`, added to every entry of what the candidate operations of an edge give.
        skip_scale: 0-dimensional or a number, factor of the auxiliary skip branch of every edge;
            None leaves the branch out. Needs `Structure.auxiliary_skip`.
        skip_dropout: Probability of dropping an entry of a skip connection's output, [0, 1), on
            each edge by itself. The others are scaled by 1 / (1 - p). Only where the stride is 1,
            and not where the norms run on running statistics.

    Raises:
        ValueError: `skip_dropout` is out of range.

    Source:
        edge_weights: Xu et al., PC-DARTS, ICLR 2020, https://arxiv.org/abs/1907.05737. offsets:
        Dong & Yang, GDAS, CVPR 2019, https://arxiv.org/abs/1910.04465, and its authors' code.
        skip_scale: Chu et al., DARTS-, ICLR 2021, https://arxiv.org/abs/2009.01027. skip_dropout:
        Chen et al., P-DARTS, ICCV 2019, https://arxiv.org/abs/1904.12760, and its authors' code.
    """

    op_weights: Mapping[str, Tensor]
    edge_weights: Mapping[str, Tensor] | None = None
    active: Mapping[str, Tensor] | None = None
    offsets: Mapping[str, Tensor] | None = None
    skip_scale: Tensor | float | None = None
    skip_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.skip_dropout < 1:
            raise ValueError(f"skip_dropout must be in [0, 1), got {self.skip_dropout}.")


@dataclass(frozen=True)
class Structure:
    """What a supernet is made of besides the candidate operations of its space.

    Attributes:
        partial_channels: K: the candidate operations of an edge see the first 1/K of a node's
            channels. The others bypass them, through a 2x2 max pool where the edge has stride 2;
            then the channels are shuffled in K groups.
        auxiliary_skip: Whether every edge has a second skip connection beside its candidates: its
            source, or a FactorizedReduce of it at stride 2.

    Raises:
        ValueError: `partial_channels` is below 1.

    Source:
        partial_channels: Xu et al., PC-DARTS, ICLR 2020, https://arxiv.org/abs/1907.05737, and its
        authors' code. auxiliary_skip: Chu et al., DARTS-, ICLR 2021,
        https://arxiv.org/abs/2009.01027.
    """

    partial_channels: int = 1
    auxiliary_skip: bool = False

    def __post_init__(self) -> None:
        if self.partial_channels < 1:
            raise ValueError(f"partial_channels must be >= 1, got {self.partial_channels}.")


PLAIN = Structure()
"""Candidate operations on all channels, and nothing else."""
