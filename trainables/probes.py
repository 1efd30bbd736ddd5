"""Costly looks at a search: the Hessian in the alphas, and the drop at discretization.

They are off unless asked for, run between epochs on the state as it is, and leave it bit for bit.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from spaces.core.genotype import NONE, Genotype
from spaces.core.mixture import Mixture, Norm
from spaces.core.space import Space
from trainables.bilevel import Batch, Bilevel
from trainables.method import OpWeights, SearchPoint
from trainables.search_data import SearchData
from trainables.settings import DiscretizationGap, Hessian

_REESTIMATION_BATCHES = 50
_TIMED_ROWS = 4


def alpha_hessian(
    bilevel: Bilevel,
    at: SearchPoint,
    batch: Batch,
    norm: Norm,
    *,
    weight_decay: float,
    rows: int | None = None,
) -> Tensor:
    r"""Return the exact joint Hessian of L_val + weight_decay / 2 |alpha|^2 in all logits.

    One forward and, for each alpha, one backward through the gradient.

    Args:
        bilevel: State of the search; not changed.
        at: Where the search is; a relaxation that draws is taken at its mean.
        batch: A validation batch, the same in all epochs, so that curves compare.
        norm: Statistics of the batch norms.
        weight_decay: The alphas' L2 penalty, on the diagonal as in released code.
        rows: How many of the first rows to compute; None is all.

    Returns:
        Float64 on the CPU, `(n, n)` with n alphas of all cell types in order, rows of each, then
        those of edges where the method has them.

    Source:
        Zela et al., Understanding and Robustifying DARTS, ICLR 2020, and Chen & Hsieh, ICML 2020,
        in whose code cell types share one Hessian, off-diagonal blocks included.
    """
    with bilevel.draws_kept():
        alphas = list(bilevel.logits.values())
        loss = bilevel.loss_at_alphas(at, batch, norm)
        penalty = torch.stack([alpha.square().sum() for alpha in alphas]).sum()
        gradients = torch.autograd.grad(
            loss + 0.5 * weight_decay * penalty, alphas, create_graph=True
        )
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        lines = []
        for entry in flat[:rows]:
            found = torch.autograd.grad(entry, alphas, retain_graph=True, materialize_grads=True)
            lines.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(lines).detach().double().cpu()


def hessian_values(hessian: Tensor) -> dict[str, float]:
    """Return what is logged of a Hessian.

    Returns:
        `hessian_eigenvalue`, the largest algebraic eigenvalue, which released code reports: of a
        spectrum {-5, 1} it is 1; `hessian_norm`, the largest absolute one; `hessian_trace`.
    """
    values = torch.linalg.eigvalsh(0.5 * (hessian + hessian.T))
    return {
        "hessian_eigenvalue": values.max().item(),
        "hessian_norm": values.abs().max().item(),
        "hessian_trace": values.sum().item(),
    }


def probe_hessian(
    bilevel: Bilevel, data: SearchData, at: SearchPoint, settings: Hessian
) -> dict[str, float]:
    """Return `hessian_values` on the first validation batch, not augmented."""
    batch = next(data.validation())
    decay = bilevel.settings.alpha_weight_decay
    hessian = alpha_hessian(bilevel, at, batch, settings.norm, weight_decay=decay)
    return hessian_values(hessian)


def time_hessian(bilevel: Bilevel, data: SearchData, at: SearchPoint, settings: Hessian) -> float:
    """Return the seconds of the whole Hessian, from a few of its rows."""
    batch = next(data.validation())
    seconds = []
    for rows in (1, 1 + _TIMED_ROWS):
        start = time.perf_counter()
        alpha_hessian(bilevel, at, batch, settings.norm, weight_decay=0.0, rows=rows)
        seconds.append(time.perf_counter() - start)
    count = sum(alpha.numel() for alpha in bilevel.logits.values())
    return seconds[0] + (count - 1) * max(0.0, seconds[1] - seconds[0]) / _TIMED_ROWS


def one_hot(space: Space, genotype: Genotype, like: OpWeights) -> OpWeights:
    """Return op weights that are 1 where the genotype has an operation, and 0 elsewhere."""
    return space.one_hot(genotype, like)


def alone(space: Space, genotype: Genotype, whole: Mixture) -> Mixture:
    """Return the mixture of a genotype alone: one operation an edge, no auxiliary skip.

    Edges that a method weighs have weight 1 where the genotype has an operation other than `none`
    and 0 elsewhere, for the channels that bypass the operations too.
    """
    op_weights = one_hot(space, genotype, dict(whole.op_weights))
    if whole.edge_weights is None:
        return Mixture(op_weights)
    edges = {}
    for name, matrix in op_weights.items():
        works = [
            [op != NONE for op in space.operations_of(name, edge)] for edge in range(len(matrix))
        ]
        edges[name] = (matrix * torch.tensor(works, device=matrix.device)).amax(dim=-1)
    return Mixture(op_weights, edges)


def probe_gap(
    bilevel: Bilevel,
    data: SearchData,
    at: SearchPoint,
    settings: DiscretizationGap,
    *,
    space: Space,
    genotype: Genotype,
) -> dict[str, float]:
    """Return what the supernet loses on the validation split when its genotype alone is left.

    The running statistics belong to the mixture and would measure a mismatch of statistics; the
    mixture and the genotype are measured on those of the batch, or each on re-estimated ones.

    Returns:
        `discretization_gap`, accuracy of the mixture minus that of the genotype, a share, and
        `discretization_gap_loss`, loss of the genotype minus that of the mixture, in nats.
    """
    before = bilevel.state_dict(), data.state_dict()
    try:
        whole = bilevel.mixture(bilevel.relaxed(at), at)
        measured = []
        for mixture in (whole, alone(space, genotype, whole)):
            if settings.statistics == "re_estimated":
                _re_estimate(bilevel, data, mixture)
                norm: Norm = "running"
            else:
                norm = "batch"
            measured.append(bilevel.evaluate(mixture, data.validation(), norm).tolist())
    finally:
        bilevel.load_state_dict(before[0])
        data.load_state_dict(before[1])
    (loss, accuracy), (discrete_loss, discrete_accuracy) = measured
    return {
        "discretization_gap": accuracy - discrete_accuracy,
        "discretization_gap_loss": discrete_loss - loss,
    }


def _re_estimate(bilevel: Bilevel, data: SearchData, mixture: Mixture) -> None:
    with torch.no_grad():
        for _ in range(_REESTIMATION_BATCHES):
            bilevel.loss_on(mixture, data.next_batches()[0], "batch_and_update")
