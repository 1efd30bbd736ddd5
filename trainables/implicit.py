r"""Gradients of the validation loss with respect to the alphas, with and without implicit terms.

They all have the form g1 - A P(H) v: g1 = dL_val/dalpha, v = dL_val/dw, A = d2 L_tr / dalpha dw,
H = d2 L_tr / dw2. First order has P = 0, the unrolled one xi I at shifted weights, the amended one
eta H, the Neumann one gamma sum_{k=0..K} (I - gamma H)^k.

Notation: w the weights, alpha the alphas, L_tr and L_val the losses on this step's two batches, xi
the weight learning rate. Every function here leaves weights and alphas as it found them, even after
an error, and reads and writes no `.grad`.

Norm rule: a pass at the trial's own weights uses "batch_and_update", as in the authors' code; a
pass at displaced weights uses "batch" and updates nothing. The authors' finite-difference probes do
update the running statistics: a stated departure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from spaces.core.mixture import Norm

Alphas = dict[str, Tensor]
AlphaLoss = Callable[[Alphas, Norm], Tensor]
Product = Callable[["BilevelProblem", Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""(problem, v, targets): d2 L_tr / dtargets dw times v, one tensor per target."""


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


@dataclass(frozen=True)
class AlphaStep:
    """What an alpha gradient found in one step.

    Attributes:
        gradients: One per cell type, in the shape of its alphas.
        measured: Scalars on the device, whose mean over the steps of an epoch is logged; the same
            names in every step.
    """

    gradients: Alphas
    measured: Mapping[str, Tensor] = field(default_factory=dict)


def first_order(problem: BilevelProblem) -> AlphaStep:
    """Return the gradient of L_val in alpha at the current weights: one pass, xi = 0.

    Source:
        Liu et al., DARTS, ICLR 2019, section 2.3 with xi = 0.
    """
    loss = problem.val_loss(problem.alphas, "batch_and_update")
    # Targets are named so that autograd computes no weight gradient in an alpha pass.
    targets = list(problem.alphas.values())
    found = torch.autograd.grad(loss, targets, materialize_grads=True)
    return AlphaStep(dict(zip(problem.alphas, found, strict=True)))


def unrolled(problem: BilevelProblem, product: Product) -> AlphaStep:
    r"""Return the gradient of L_val in alpha through one virtual step of the weights.

    With w' = w - xi (momentum * buffer + grad_w L_tr(w, alpha) + weight_decay * w) it is
        grad_alpha L_val(w', alpha) - xi d2_{alpha,w} L_tr(w, alpha) v,
    where v = grad_{w'} L_val(w', alpha).

    Args:
        problem: The alpha step.
        product: Product of second derivatives of L_tr with v: `by_difference` or `exactly`.

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
    mixed = product(problem, vector, list(problem.alphas.values()))
    gradients = torch._foreach_sub(list(direct), mixed, alpha=problem.weight_lr)
    return AlphaStep(dict(zip(names, gradients, strict=True)))


def amended(
    problem: BilevelProblem, product: Product, *, eta: float, weight_decay: float
) -> AlphaStep:
    r"""Return g1 - eta A H v: the inverse of H in the implicit gradient replaced by eta H.

    With g1 and v from one pass of L_val at the current weights, u = H v and s = A u are two
    products on the same training batch; the gradient is g1 - eta s.

    The authors argue that <eta A H v, A H^-1 v> >= 0, an angle below 90 degrees to the exact
    implicit term. It is no law: it holds if A'A commutes with a positive definite H, and mostly if
    H is well conditioned; H = diag(1, 10), A = [2, -1], v = (1, 1) gives -15.2.

    Args:
        problem: The alpha step.
        product: `by_difference` or `exactly`, for both products.
        eta: Amending coefficient; 0 gives the first order, at the cost of the products.
        weight_decay: L2 penalty taken as part of L_tr, which adds weight_decay * v to H v.

    Returns:
        Gradients, and measured `amended_angle`, the angle between them and g1 in degrees, over the
        alphas of all cell types together.

    Source:
        Bi et al., Stabilizing DARTS with Amended Gradient Estimation, arXiv 1910.11831; the order
        of the products and their finite differences as in public code that cites it (AdversarialNAS
        architect.py). The sign's condition is our own reading.
    """
    direct, vector = _validation_gradients(problem)
    along = _hessian_times(vector, problem, product, weight_decay)
    mixed = product(problem, along, list(problem.alphas.values()))
    gradients = list(torch._foreach_sub(direct, mixed, alpha=eta))
    angle = angle_between(gradients, direct)
    return AlphaStep(
        dict(zip(problem.alphas, gradients, strict=True)), {"amended_angle": torch.rad2deg(angle)}
    )


def neumann(
    problem: BilevelProblem,
    product: Product,
    *,
    gamma: float,
    terms: int,
    weight_decay: float,
    stop_on_negative_curvature: bool = False,
) -> AlphaStep:
    r"""Return g1 - A P(H) v with P(H) = gamma sum_{k=0..K} (I - gamma H)^k: a short Neumann series.

    With g1 and v from one pass of L_val at the current weights, u_0 = v, u_k+1 = u_k - gamma H u_k
    and s = u_0 + ... + u_K, it is g1 - gamma A s: K products with H and one with A, all on the same
    training batch. By differences that is 3 + 2K passes.

    If H is positive definite and 0 < gamma < 2 / lam_max, P(H) is so too, and along an eigenvector
    of eigenvalue lam it differs from H^-1 by the share (1 - gamma lam)^(K + 1): nearly all of it
    where gamma lam is small. In weight space <P v, H^-1 v> is then positive; behind A that is no
    law, as with `amended`. Without these conditions neither sign nor accuracy is claimed: along
    negative curvature, which networks have, the terms grow.

    Args:
        problem: The alpha step.
        product: `by_difference` or `exactly`, for all products.
        gamma: Step of the series, in the unit of the weight learning rate; 0 gives the first order,
            at the cost of the products.
        terms: K, the terms beyond v. 0 gives g1 - gamma A v; -1, the empty sum, is `first_order`.
        weight_decay: L2 penalty taken as part of L_tr, which adds weight_decay * u to H u.
        stop_on_negative_curvature: Whether the sum ends with the first u_k of u_k' H u_k < 0. The
            passes are those of the whole series: to end early the host would have to wait.

    Returns:
        Gradients, and, if K >= 1, measured `neumann_negative_curvature`: the share of the K terms
        u_0 to u_K-1 with u' H u < 0, weight decay included where it is in H. Left-out terms count
        as well, so that it means the same whether the sum stops or not.

    Source:
        Zhang et al., iDARTS, ICML 2021, arXiv 2106.10784, with K = 2 and gamma the weight learning
        rate, and the authors' code (architect_hess.py, and a notebook for NAS-Bench-201), whose H
        has no weight decay and which never stops. Departures: that code differentiates twice for
        H u and takes A s by a difference, here one `product` does both; it draws a batch of its own
        for the products; it shifts the weights by r s / ||v||, here the shift has length r; and it
        takes the shift back with v in the place of s, which leaves noise in the weights on purpose,
        here they come back bit for bit. Its diagonal stand-in for H (architect_approx.py) is left
        out.
    """
    if terms < 0:
        return first_order(problem)
    direct, vector = _validation_gradients(problem)
    term, total = vector, vector
    negative: list[Tensor] = []
    for _ in range(terms):
        along = _hessian_times(term, problem, product, weight_decay)
        parts = torch._foreach_mul(term, along)
        negative.append(torch.stack([part.sum() for part in parts]).sum() < 0)
        term = list(torch._foreach_sub(term, along, alpha=gamma))
        longer = list(torch._foreach_add(total, term))
        if stop_on_negative_curvature:
            # A choice on the device, and no factor of 0: what is left out may have overflowed.
            stopped = torch.stack(negative).any()
            longer = [torch.where(stopped, a, b) for a, b in zip(total, longer, strict=True)]
        total = longer
    mixed = product(problem, total, list(problem.alphas.values()))
    gradients = torch._foreach_sub(direct, mixed, alpha=gamma)
    share = {"neumann_negative_curvature": torch.stack(negative).double().mean()} if terms else {}
    return AlphaStep(dict(zip(problem.alphas, gradients, strict=True)), share)


def angle_between(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the angle in radians between two lists of tensors read as two vectors.

    It is exact for small angles too, where the arc cosine of float32 would give 0 or 3e-4; 0 where
    a vector is zero.
    """
    a = torch.cat([part.detach().double().flatten() for part in first])
    b = torch.cat([part.detach().double().flatten() for part in second])
    a, b = (x / x.norm().clamp_min(torch.finfo(x.dtype).tiny) for x in (a, b))
    return 2.0 * torch.atan2((a - b).norm(), (a + b).norm())


def by_difference(
    problem: BilevelProblem,
    vector: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    radius: float,
) -> list[Tensor]:
    r"""Return d2 L_tr / dtargets dw times v by a central difference: two passes.

    With R = radius / ||v|| it is
        [grad_targets L_tr(w + R v, alpha) - grad_targets L_tr(w - R v, alpha)] / (2 R).

    Args:
        problem: The alpha step.
        vector: v, one tensor per weight, of its shape.
        targets: The alphas for A v, the weights for H v.
        radius: L2 length of the shift of the weights, in weight units. The authors' 0.01 is far
            from the limit where the network has kinks; see `exactly`.

    Returns:
        One product per target, of its shape; zero where v is.

    Source:
        Liu et al., DARTS, ICLR 2019, Eq. 8, and the authors' code. Some ports multiply by R where
        they should divide by it.
    """
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(vector))))
    scale = radius / length.clamp_min(torch.finfo(length.dtype).tiny)
    shift = torch._foreach_mul(list(vector), scale)
    with displaced(problem.weights) as move:
        move(shift, 1.0)
        above = _training_gradients(problem, targets)
        move(shift, -1.0)
        below = _training_gradients(problem, targets)
    return list(torch._foreach_div(torch._foreach_sub(above, below), 2.0 * scale))


def exactly(
    problem: BilevelProblem, vector: Sequence[Tensor], targets: Sequence[Tensor]
) -> list[Tensor]:
    """Return d2 L_tr / dtargets dw times v by differentiating twice.

    Args:
        problem: The alpha step.
        vector: v, one tensor per weight, of its shape; treated as a constant.
        targets: The alphas for A v, the weights for H v.

    Returns:
        One product per target, of its shape.
    """
    loss = problem.train_loss(problem.alphas, "batch")
    gradients = torch.autograd.grad(
        loss, list(problem.weights), create_graph=True, materialize_grads=True
    )
    pairs = zip(gradients, vector, strict=True)
    inner = torch.stack([(gradient * part).sum() for gradient, part in pairs]).sum()
    if not inner.requires_grad:
        return [torch.zeros_like(target) for target in targets]
    return list(torch.autograd.grad(inner, list(targets), materialize_grads=True))


def product_of(name: Literal["difference", "exact"], radius: float) -> Product:
    """Return the product of a plug-in's settings: `by_difference` with its radius, or `exactly`."""
    return exactly if name == "exact" else partial(by_difference, radius=radius)


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


def _validation_gradients(problem: BilevelProblem) -> tuple[list[Tensor], list[Tensor]]:
    loss = problem.val_loss(problem.alphas, "batch_and_update")
    targets = [*problem.alphas.values(), *problem.weights]
    found = torch.autograd.grad(loss, targets, materialize_grads=True)
    return list(found[: len(problem.alphas)]), list(found[len(problem.alphas) :])


def _hessian_times(
    vector: list[Tensor], problem: BilevelProblem, product: Product, weight_decay: float
) -> list[Tensor]:
    along = product(problem, vector, list(problem.weights))
    if weight_decay:
        along = list(torch._foreach_add(along, vector, alpha=weight_decay))
    return along


def _training_gradients(problem: BilevelProblem, targets: Sequence[Tensor]) -> list[Tensor]:
    loss = problem.train_loss(problem.alphas, "batch")
    return list(torch.autograd.grad(loss, list(targets), materialize_grads=True))
