r"""Gradients of the validation loss with respect to the alphas: first order and unrolled.

Notation: w the weights, alpha the alphas, L_tr and L_val the losses on this step's two batches, xi
the weight learning rate. Every function here leaves weights and alphas as it found them, even after
an error, and reads and writes no `.grad`.

Norm rule: a pass at the trial's own weights uses "batch_and_update", as in the authors' code; a
pass at displaced weights uses "batch" and updates nothing. The authors' finite-difference probes do
update the running statistics: a stated departure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from spaces.core.mixture import Norm

Alphas = dict[str, Tensor]
AlphaLoss = Callable[[Alphas, Norm], Tensor]
MixedProduct = Callable[["BilevelProblem", Sequence[Tensor]], Alphas]


@dataclass(frozen=True)
class BilevelProblem:
    """One alpha step, as an alpha gradient sees it.

    Attributes:
        alphas: Logits, leaves that require a gradient, each `(num_edges, num_ops)`.
        weights: Network weights, leaves that require a gradient, any shapes.
        momentum_buffers: Momentum of the weight optimizer, one per weight; None before its first
            step.
        train_loss: Loss on this step's training batch at the weights as they are when it is called.
            Every call of one step draws the same random numbers, so that differences of two calls
            measure no noise.
        val_loss: Likewise on the validation batch.
        weight_lr: Learning rate of the weight optimizer in this epoch.
        weight_momentum: Its momentum.
        weight_decay: Its L2 penalty.
    """

    alphas: Alphas
    weights: Sequence[Tensor]
    momentum_buffers: Sequence[Tensor | None]
    train_loss: AlphaLoss
    val_loss: AlphaLoss
    weight_lr: float
    weight_momentum: float
    weight_decay: float


def first_order(problem: BilevelProblem) -> Alphas:
    """Return the gradient of L_val in alpha at the current weights: one pass, xi = 0.

    Returns:
        One gradient per cell type, in the shape of its alphas.

    Source:
        Liu et al., DARTS, ICLR 2019, section 2.3 with xi = 0.
    """
    loss = problem.val_loss(problem.alphas, "batch_and_update")
    return _gradients(loss, problem.alphas)


def unrolled(problem: BilevelProblem, mixed_product: MixedProduct) -> Alphas:
    r"""Return the gradient of L_val in alpha through one virtual step of the weights.

    With w' = w - xi (momentum * buffer + grad_w L_tr(w, alpha) + weight_decay * w) it is
        grad_alpha L_val(w', alpha) - xi d2_{alpha,w} L_tr(w, alpha) v,
    where v = grad_{w'} L_val(w', alpha).

    Args:
        problem: The alpha step.
        mixed_product: Product of the mixed second derivative of L_tr with v: `mixed_difference` or
            `mixed_exact`.

    Returns:
        One gradient per cell type, in the shape of its alphas.

    Source:
        Liu et al., DARTS, ICLR 2019, section 2.3, and the authors' code (cnn/architect.py), which
        adds momentum and weight decay to the virtual step. As there, the virtual step is neither
        clipped nor of Nesterov's form, whatever the real weight step is.
    """
    names = list(problem.alphas)
    train_loss = problem.train_loss(problem.alphas, "batch_and_update")
    step = _virtual_step(
        problem, torch.autograd.grad(train_loss, list(problem.weights), materialize_grads=True)
    )
    with displaced(problem.weights) as move:
        move(step, -problem.weight_lr)
        val_loss = problem.val_loss(problem.alphas, "batch")
        found = torch.autograd.grad(
            val_loss,
            [*problem.alphas.values(), *problem.weights],
            materialize_grads=True,
        )
    direct, vector = found[: len(names)], found[len(names) :]
    mixed = mixed_product(problem, vector)
    return {
        name: gradient - problem.weight_lr * mixed[name]
        for name, gradient in zip(names, direct, strict=True)
    }


def mixed_difference(problem: BilevelProblem, vector: Sequence[Tensor], *, radius: float) -> Alphas:
    r"""Return d2_{alpha,w} L_tr(w, alpha) v by a central difference: two passes.

    With R = radius / ||v|| it is
        [grad_alpha L_tr(w + R v, alpha) - grad_alpha L_tr(w - R v, alpha)] / (2 R).

    Args:
        problem: The alpha step.
        vector: v, one tensor per weight, of its shape.
        radius: L2 length of the shift of the weights, in weight units. The authors' 0.01 is far
            from the limit where the network has kinks; see `mixed_exact`.

    Returns:
        One product per cell type; zero where v is.

    Source:
        Liu et al., DARTS, ICLR 2019, Eq. 8, and the authors' code. Some ports multiply by R where
        they should divide by it.
    """
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(vector))))
    scale = radius / length.clamp_min(torch.finfo(length.dtype).tiny)
    shift = torch._foreach_mul(list(vector), scale)
    with displaced(problem.weights) as move:
        move(shift, 1.0)
        above = _gradients(problem.train_loss(problem.alphas, "batch"), problem.alphas)
        move(shift, -1.0)
        below = _gradients(problem.train_loss(problem.alphas, "batch"), problem.alphas)
    return {name: (above[name] - below[name]) / (2.0 * scale) for name in above}


def mixed_exact(problem: BilevelProblem, vector: Sequence[Tensor]) -> Alphas:
    """Return d2_{alpha,w} L_tr(w, alpha) v by differentiating twice.

    Args:
        problem: The alpha step.
        vector: v, one tensor per weight, of its shape; treated as a constant.

    Returns:
        One product per cell type.
    """
    loss = problem.train_loss(problem.alphas, "batch")
    gradients = torch.autograd.grad(
        loss, list(problem.weights), create_graph=True, materialize_grads=True
    )
    pairs = zip(gradients, vector, strict=True)
    inner = torch.stack([(gradient * part).sum() for gradient, part in pairs]).sum()
    if not inner.requires_grad:
        return {name: torch.zeros_like(alpha) for name, alpha in problem.alphas.items()}
    return _gradients(inner, problem.alphas)


@contextmanager
def displaced(weights: Sequence[Tensor]) -> Iterator[Callable[[Sequence[Tensor], float], None]]:
    """Shift weights for as long as the context lasts; they come back bit for bit.

    Args:
        weights: Leaves, changed in place. A graph built on them before a shift can no longer be
            differentiated.

    Yields:
        `move(shift, scale)`, which sets the weights to their values at entry plus scale * shift.
    """
    kept = [weight.detach().clone() for weight in weights]
    values = [weight.detach() for weight in weights]

    def move(shift: Sequence[Tensor], scale: float) -> None:
        torch._foreach_copy_(values, kept)
        torch._foreach_add_(values, list(shift), alpha=scale)

    try:
        yield move
    finally:
        # Not by subtracting the shift: rounding would let the weights drift a little every step.
        torch._foreach_copy_(values, kept)


def _virtual_step(problem: BilevelProblem, gradients: Sequence[Tensor]) -> list[Tensor]:
    values = [weight.detach() for weight in problem.weights]
    step = list(torch._foreach_add(list(gradients), values, alpha=problem.weight_decay))
    pairs = zip(step, problem.momentum_buffers, strict=True)
    return [
        part if buffer is None else part.add(buffer, alpha=problem.weight_momentum)
        for part, buffer in pairs
    ]


def _gradients(loss: Tensor, alphas: Alphas) -> Alphas:
    # Targets are named so that autograd computes no weight gradient in an alpha pass.
    found = torch.autograd.grad(loss, list(alphas.values()), materialize_grads=True)
    return dict(zip(alphas, found, strict=True))
