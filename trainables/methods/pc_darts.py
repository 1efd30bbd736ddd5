"""PC-DARTS: operations see 1/K of the channels; the edges into a node share trained weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spaces.core.mixture import Structure
from trainables.errors import MethodError
from trainables.implicit import Alphas
from trainables.method import Method, OpWeights, SearchPoint

SOURCE = (
    "Xu et al.: PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search, "
    "ICLR 2020, arXiv 1907.05737"
)
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Settings of PC-DARTS.

    Attributes:
        partial_channels: K: the operations of an edge see the first 1/K of a node's channels. It
            must divide the channels of every cell; with 1 the edge weights are all that is left.

    Raises:
        ValueError: The value is out of range.
    """

    partial_channels: int = 4

    def __post_init__(self) -> None:
        if self.partial_channels < 1:
            raise ValueError(f"partial_channels must be >= 1, got {self.partial_channels!r}.")


def softmax_per_node(edge_alphas: Alphas, at: SearchPoint) -> OpWeights:
    """Return the softmax of edge logits over the edges that enter the same node.

    An edge that enters its node alone has weight 1, whatever its logit, and so has every row of a
    space without edges, whose inputs of blocks have trained weights of their own.

    Args:
        edge_alphas: By cell type, `(num_edges,)`, rows in the order of the space's edges.
        at: Its space says where the edges lead.

    Source:
        Xu et al., ICLR 2020, and the authors' code (model_search.py), for the edges of DARTS; what
        becomes of it in other spaces is our reading.
    """
    if at.space is None:
        raise MethodError("PC-DARTS weighs the edges of a space, and there is none here.")
    weights: OpWeights = {}
    for name, logits in edge_alphas.items():
        rows = range(len(logits))
        edges = at.space.edges[name] if at.space.has_edges else [(row, row) for row in rows]
        elsewhere = _elsewhere(tuple(target for _, target in edges), logits.device)
        among = logits.expand(len(edges), -1).masked_fill(elsewhere, -torch.inf)
        weights[name] = torch.softmax(among, dim=-1).diagonal()
    return weights


@lru_cache(maxsize=64)
def _elsewhere(targets: tuple[int, ...], device: torch.device) -> Tensor:
    # Made once: a copy to a GPU in every pass would make it wait.
    ends = torch.tensor(targets)
    return (ends[:, None] != ends).to(device)


def build(config: Config) -> Method:
    """Return the method: alphas and edge logits rest in the first 15 of 50 epochs.

    Edges and operations compete by edge weight times op weight, at selection as in the supernet.
    A perturbation combined with it moves the op weights and leaves the edge weights alone.
    """
    return Method(
        relax_edges=softmax_per_node,
        structure=Structure(partial_channels=config.partial_channels),
        alpha_start=15 / 50,
    )
