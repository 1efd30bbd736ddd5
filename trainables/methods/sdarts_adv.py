"""SDARTS-ADV: the weight step sees op weights moved by an attack that raises the training loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from trainables.errors import MethodError
from trainables.method import Method, OpWeights, SearchPoint, linear
from trainables.simplex import clamp_and_rescale, uniform_noise

SOURCE = "Chen, Hsieh: Stabilizing DARTS via Perturbation-based Regularization, ICML 2020, arXiv 2002.05283"  # noqa: E501
RESULTS_VERSION = 1
PROVIDES = ("perturb",)


@dataclass(frozen=True)
class Config:
    """Settings of SDARTS-ADV.

    Attributes:
        radius_start: Half-width of the attack's box around the op weights in the first epoch.
        radius_max: Half-width that the linear growth would reach after the last epoch.
        steps: Sign steps of the attack, each of length 2 radius / steps.
        random_start: Whether the attack starts at a random point of the box.

    Raises:
        ValueError: A value is out of range, or the radius would shrink.
    """

    radius_start: float = 0.03
    radius_max: float = 0.3
    steps: int = 7
    random_start: bool = True

    def __post_init__(self) -> None:
        for name in ("radius_start", "radius_max"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be >= 0, got {value!r}.")
        if self.radius_max < self.radius_start:
            raise ValueError(
                f"radius_max must be >= radius_start ({self.radius_start!r}), "
                f"got {self.radius_max!r}."
            )
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps!r}.")


def attack(op_weights: OpWeights, at: SearchPoint, *, config: Config) -> OpWeights:
    """Return op weights of a higher training loss, found by projected sign-gradient ascent.

    From a random start, `steps` times: a step along the sign of the gradient, back into the box,
    back onto the simplex. The network runs on its running statistics all along. If the loss at the
    end is lower than at the clean op weights, all cell types together stay clean.

    The projection onto the simplex comes last, so that an entry can end far outside the box.
    K + 2 forwards and K backwards, to the op weights alone; the authors' code computes weight
    gradients too and throws them away.

    Args:
        op_weights: On the simplex, each `(num_edges, num_ops)`; not changed.
        at: In a training step; its generator is drawn from once per cell type, in order.

    Source:
        Chen and Hsieh, ICML 2020, and the authors' code (attacker/perturb.py, `Linf_PGD_alpha`).
        Draws inside the network are equal in all passes of an attack, where theirs are fresh.
    """
    if at.train_loss is None:
        raise MethodError("SDARTS-ADV attacks the loss of a training step, and there is none here.")
    radius = linear(config.radius_start, config.radius_max, at)
    length = 2.0 * radius / config.steps
    moved = dict(op_weights)
    if config.random_start:
        for name, matrix in op_weights.items():
            moved[name] = clamp_and_rescale(matrix + uniform_noise(matrix, radius, at.generator))
    for _ in range(config.steps):
        leaves = [matrix.detach().requires_grad_() for matrix in moved.values()]
        loss = at.train_loss(dict(zip(moved, leaves, strict=True)), "running")
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for (name, clean), leaf, gradient in zip(
            op_weights.items(), leaves, gradients, strict=True
        ):
            shift = leaf.detach() + length * gradient.sign() - clean
            moved[name] = clamp_and_rescale(clean + shift.clamp(-radius, radius))
    with torch.no_grad():
        # Chosen on the device: to ask the host would stop a GPU in every step.
        found = at.train_loss(moved, "running") >= at.train_loss(op_weights, "running")
    return {name: torch.where(found, moved[name], clean) for name, clean in op_weights.items()}


def log_radius(at: SearchPoint, *, config: Config) -> Mapping[str, float]:
    """Return the radius of this epoch."""
    return {"radius": linear(config.radius_start, config.radius_max, at)}


def build(config: Config) -> Method:
    """Return the method."""
    return Method(perturb=partial(attack, config=config), log=partial(log_radius, config=config))
