"""What tells a decided search from an undecided one, and a collapsed one from both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spaces.core.genotype import Genotype
from spaces.core.space import Space
from trainables.worst import worst_value


def entropy(op_weights: Mapping[str, Tensor]) -> Tensor:
    """Return the entropy of an edge's op weights in nats, mean over all edges of all cell types.

    Args:
        op_weights: Not negative, each `(..., num_ops)`.
    """
    each = [torch.special.entr(matrix).sum(dim=-1).flatten() for matrix in op_weights.values()]
    return torch.cat(each).mean()


def logit_range(alphas: Mapping[str, Tensor]) -> Tensor:
    """Return the largest difference between two logits of one edge, over all edges.

    Args:
        alphas: Logits, each `(..., num_ops)`.
    """
    return torch.stack([(a.amax(dim=-1) - a.amin(dim=-1)).amax() for a in alphas.values()]).amax()


def top1_margin(op_weights: Mapping[str, Tensor]) -> Tensor:
    """Return the lead of an edge's largest op weight over its second, mean over all edges.

    A margin below the spread over seeds says that the search has not decided yet.

    Args:
        op_weights: Each `(..., num_ops)` with num_ops >= 2.
    """
    pairs = [matrix.topk(2, dim=-1).values for matrix in op_weights.values()]
    return torch.cat([(pair[..., 0] - pair[..., 1]).flatten() for pair in pairs]).mean()


ALPHA_DIAGNOSTICS = ("alpha_entropy", "alpha_range", "top1_margin")
"""Names of the values of `alpha_diagnostics`."""


@torch.no_grad()
def alpha_diagnostics(alphas: Mapping[str, Tensor], op_weights: Mapping[str, Tensor]) -> Tensor:
    """Return entropy, logit range and top-1 margin as one float64 tensor, to be read at once."""
    values = [entropy(op_weights), logit_range(alphas), top1_margin(op_weights)]
    return torch.stack(values).double()


def worst_of(
    metrics: Mapping[str, float], alphas: Mapping[str, Tensor], op_weights: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return what stands in the curve of a search for the epoch in which it diverged.

    Args:
        metrics: What was measured in that epoch; the names are kept.
        alphas, op_weights: Of the last good state, whose diagnostics are given.

    Returns:
        The worst loss and 0 for everything else that was measured: finite, so that schedulers,
        searchers and JSON can take it.
    """
    worst = {name: worst_value(name) for name in metrics}
    decided = alpha_diagnostics(alphas, op_weights).tolist()
    return worst | dict(zip(ALPHA_DIAGNOSTICS, decided, strict=True))


def genotype_diagnostics(space: Space, genotype: Genotype) -> dict[str, float]:
    """Return skip_count, skip_share (0-1) and collapsed (0 or 1)."""
    return {
        "skip_count": skip_count(space, genotype),
        "skip_share": skip_share(space, genotype),
        "collapsed": int(collapsed(space, genotype)),
    }


def skip_count(space: Space, genotype: Genotype) -> int:
    """Return how many kept edges of all cells are skip connections."""
    return sum(
        edge.operation == space.skip_operation for cell in genotype.cells for edge in cell.edges
    )


def skip_share(space: Space, genotype: Genotype) -> float:
    """Return the share of kept edges that are skip connections, 0-1."""
    return skip_count(space, genotype) / sum(len(cell.edges) for cell in genotype.cells)


def collapsed(space: Space, genotype: Genotype) -> bool:
    """Return whether the normal cells have degenerated.

    They have if more than half of their kept edges are skip connections, or if none has weights to
    train. Which cells count is for `Space.normal_cells` to say; where there are several, they are
    judged together, so that one cell of skips among others that learn is no collapse.
    """
    edges = [edge for cell in space.normal_cells(genotype) for edge in cell.edges]
    skips = sum(edge.operation == space.skip_operation for edge in edges)
    trainable = any(edge.operation not in space.parameter_free for edge in edges)
    return 2 * skips > len(edges) or not trainable
