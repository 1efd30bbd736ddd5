"""Validation loss and accuracy around the final alphas, on a plane of two named directions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from spaces.core.mixture import Norm
from trainables.bilevel import Batch
from trainables.errors import MethodError
from trainables.method import OpWeights
from trainables.search import SearchTrial
from trainables.state import make_generator

DIRECTIONS = ("gradient", "random")


@dataclass(frozen=True)
class Landscape:
    """A slice through the loss of a trained supernet, its weights fixed.

    Attributes:
        offsets: Steps along both directions, in the L2 norm of all alphas together; 0 is within.
        loss: Nats; `loss[i][j]` is `offsets[i]` along the gradient and `offsets[j]` along the
            random direction.
        accuracy: Likewise, shares.
        images: Validation images that it was measured on.
        norm: Statistics of the batch norms.
    """

    offsets: list[float]
    loss: list[list[float]]
    accuracy: list[list[float]]
    images: int
    norm: Norm


def landscape(
    trial: SearchTrial,
    *,
    size: int = 11,
    extent: float = 3.0,
    images: int = 1000,
    norm: Norm = "batch",
) -> Landscape:
    """Return the slice around the trial's alphas; the trial is unchanged.

    The first direction is the gradient of the validation loss in the alphas, the second a random
    one from the trial's seed, orthogonal to it and, like it, without the constants of a row that a
    softmax ignores. Both have length 1.

    Args:
        trial: After its search, such as from `trainables.stored.open_final`.
        size: Points along each direction, odd, so that the alphas themselves are one of them.
        extent: Largest step along a direction.
        images: Validation images to measure on, at most; the first ones.
        norm: Statistics of the batch norms.

    Raises:
        ValueError: `size` is even or below 3, or `extent` or `images` is not positive.
        MethodError: The method trains no alphas.
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"size must be odd and >= 3, got {size!r}.")
    if not 0 < extent < float("inf"):
        raise ValueError(f"extent must be > 0, got {extent!r}.")
    if images < 1:
        raise ValueError(f"images must be >= 1, got {images!r}.")
    if trial.method.alphas == "at_start":
        raise MethodError("A landscape is drawn around trained alphas, and this search has none.")
    bilevel = trial._bilevel
    at = bilevel.point(max(0, trial.epoch - 1))
    batches: list[Batch] = []
    for batch in trial._data.validation():
        if sum(len(labels) for _, labels in batches) < images:
            batches.append(batch)
    first, second = directions(trial, batches, norm)
    offsets = torch.linspace(-extent, extent, size, dtype=torch.float64).tolist()
    centre = {name: alpha.detach().clone() for name, alpha in trial.alphas.items()}
    values = []
    for a, b in itertools.product(offsets, offsets):
        moved = {n: alpha + a * first[n] + b * second[n] for n, alpha in centre.items()}
        with torch.no_grad(), bilevel.draws_kept():
            op_weights = bilevel.mean(bilevel.logits | moved, at)
            values.append(bilevel.evaluate(bilevel.mixture(op_weights, at), batches, norm))
    loss, accuracy = torch.stack(values).cpu().view(size, size, 2).unbind(dim=-1)
    count = sum(len(labels) for _, labels in batches)
    return Landscape(offsets, loss.tolist(), accuracy.tolist(), count, norm)


def directions(trial: SearchTrial, batches: list[Batch], norm: Norm) -> tuple[OpWeights, OpWeights]:
    """Return the two directions, by cell type, each of length 1 over all alphas."""
    bilevel = trial._bilevel
    at = bilevel.point(max(0, trial.epoch - 1))
    names = list(trial.alphas)
    alphas = [trial.alphas[name] for name in names]
    gradient = [torch.zeros_like(alpha) for alpha in alphas]
    for batch in batches:
        with bilevel.draws_kept():
            loss = bilevel.loss_at_alphas(at, batch, norm)
            found = torch.autograd.grad(loss, alphas)
        torch._foreach_add_(gradient, found, alpha=float(len(batch[1])))
    source = make_generator(trial.seed, "landscape")
    drawn = [
        torch.randn(alpha.shape, generator=source, dtype=torch.float64).to(alpha)
        for alpha in alphas
    ]
    if _ignores_constants(trial):
        gradient = [part - part.mean(dim=-1, keepdim=True) for part in gradient]
        drawn = [part - part.mean(dim=-1, keepdim=True) for part in drawn]
    first, second = _unit(gradient), drawn
    along = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
    second = _unit([b - along * a for a, b in zip(first, second, strict=True)])
    return dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))


def _ignores_constants(trial: SearchTrial) -> bool:
    """Return whether op weights stay as they are when a constant is added to each row's logits."""
    bilevel = trial._bilevel
    at = bilevel.point(max(0, trial.epoch - 1))
    with torch.no_grad(), bilevel.draws_kept():
        here = bilevel.mean(bilevel.logits, at)
        moved = bilevel.mean({name: alpha + 1.0 for name, alpha in bilevel.logits.items()}, at)
    return all(torch.allclose(here[name], moved[name], atol=1e-5) for name in here)


def _unit(parts: list[Tensor]) -> list[Tensor]:
    length = torch.linalg.vector_norm(torch.stack([part.norm() for part in parts]))
    return [part / length.clamp_min(torch.finfo(part.dtype).tiny) for part in parts]
