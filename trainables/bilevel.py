"""The bilevel step: an alpha step on a validation batch, then a weight step on a training batch.

`Bilevel` is all that a step reads and writes: weights, alphas, both optimizers, the generators of
the method and of the network. It knows no dataset, no epoch loop and no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces.core.mixture import Mixture, Norm
from spaces.core.supernet import Supernet
from trainables.implicit import Alphas, BilevelProblem
from trainables.method import Method, OpWeights, SearchPoint
from trainables.settings import SearchSettings
from trainables.state import DTYPES, cloned, make_generator, purpose_seed
from trainables.timing import Stopwatch

Batch = tuple[Tensor, Tensor]
"""Images (B, C, H, W) and labels (B,)."""

ALPHA_SCALE = 1e-3
"""Standard deviation of the alphas at the start, as in the DARTS authors' code."""


class Bilevel:
    """The state of a bilevel search and the steps that change it.

    Args:
        supernet: Moved to `device` and to the precision of the settings.
        alpha_shapes: `(num_edges, num_ops)` by cell type.
        method: What relaxes, perturbs and differentiates.
        settings: Optimizers, clipping, precision and number of epochs.
        seed: Seed of the trial.
        device: Where everything lives.

    Attributes:
        alphas: Logits by cell type, leaves.
        weights: Parameters of the supernet.
    """

    def __init__(
        self,
        supernet: Supernet,
        alpha_shapes: Mapping[str, tuple[int, int]],
        method: Method,
        settings: SearchSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        dtype = DTYPES[settings.precision]
        self.supernet = supernet.to(device=device, dtype=dtype)
        self.weights = list(self.supernet.parameters())
        self.method, self.settings, self.seed, self.device = method, settings, seed, device
        source = make_generator(seed, "alphas")
        self.alphas: Alphas = {}
        for name, shape in alpha_shapes.items():
            draws = ALPHA_SCALE * torch.randn(shape, generator=source, dtype=torch.float64)
            self.alphas[name] = draws.to(device, dtype).requires_grad_()
        # One for the method's draws, one for draws inside the network: an attack rewinds the second
        # while it goes on drawing from the first.
        self.generators = {
            purpose: make_generator(seed, purpose, device) for purpose in ("method", "network")
        }
        self.fixed: OpWeights = {}
        self._constant_lr: float | None = None
        self._make_optimizers()

    def _make_optimizers(self) -> None:
        settings = self.settings
        self.weight_optimizer = torch.optim.SGD(
            self.weights,
            lr=settings.weight_lr,
            momentum=settings.weight_momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            foreach=True,
        )
        self.alpha_optimizer = torch.optim.Adam(
            list(self.alphas.values()),
            lr=settings.alpha_lr,
            betas=(settings.alpha_beta1, settings.alpha_beta2),
            weight_decay=settings.alpha_weight_decay,
            foreach=True,
        )

    def renew_optimizers(self, lr_share: float) -> None:
        """Start both optimizers anew, the weights' at a constant share of the first rate.

        Until the next `load_state_dict`; not part of the state: it is for what follows a search.
        """
        self._constant_lr = lr_share * self.settings.weight_lr
        self._make_optimizers()

    def fix(self, cell: str, edge: int, operation: int) -> None:
        """Give an edge one operation of op weight 1, whatever the alphas; see `renew_optimizers`.

        Args:
            cell: Cell type.
            edge, operation: Row and column of its op weights.
        """
        if cell not in self.fixed:
            self.fixed[cell] = torch.full_like(self.alphas[cell].detach(), float("nan"))
        self.fixed[cell][edge] = 0.0
        self.fixed[cell][edge, operation] = 1.0

    def _relax(self, alphas: Alphas, at: SearchPoint) -> OpWeights:
        return self._with_fixed(self.method.relax(alphas, at))

    def _with_fixed(self, op_weights: OpWeights) -> OpWeights:
        if not self.fixed:
            return op_weights
        return op_weights | {
            name: torch.where(fixed.isnan(), op_weights[name], fixed)
            for name, fixed in self.fixed.items()
        }

    @property
    def first_alpha_epoch(self) -> int:
        """Epoch, counted from 0, in which the alphas begin to move."""
        return self.method.first_alpha_epoch(self.settings.epochs)

    def point(self, epoch: int) -> SearchPoint:
        """Return where the search is in `epoch`, counted from 0."""
        return SearchPoint(epoch, self.settings.epochs, self.generators["method"])

    def weight_lr(self, epoch: int) -> float:
        """Return the learning rate of the weights in `epoch`, counted from 0.

        A cosine from weight_lr in epoch 0 towards weight_lr_min, which it would reach one epoch
        past the last, as torch's CosineAnnealingLR with T_max = epochs.
        """
        settings = self.settings
        if self._constant_lr is not None:
            return self._constant_lr
        cosine = (1.0 + math.cos(math.pi * epoch / settings.epochs)) / 2.0
        return settings.weight_lr_min + (settings.weight_lr - settings.weight_lr_min) * cosine

    def step(
        self,
        at: SearchPoint,
        train_batch: Batch,
        val_batch: Batch,
        clocks: tuple[Stopwatch, Stopwatch],
    ) -> dict[str, Tensor]:
        """Take one alpha step and one weight step, timed by one clock each.

        In the first epochs of some methods the alphas rest and the alpha step is left out.

        Returns:
            Scalars on the device: those of `weight_step` and what the alpha gradient measured.
        """
        measured: dict[str, Tensor] = {}
        if at.epoch >= self.first_alpha_epoch:
            with clocks[0].lap():
                measured |= self.alpha_step(at, train_batch, val_batch)
        with clocks[1].lap():
            return self.weight_step(at, train_batch) | measured

    def alpha_step(
        self, at: SearchPoint, train_batch: Batch, val_batch: Batch
    ) -> Mapping[str, Tensor]:
        """Update the alphas; the weights stay bit for bit, whatever probes the gradient makes.

        Returns:
            What the alpha gradient measured, scalars on the device.
        """
        rewind = self._rewinder("method", "network")

        def loss_on(batch: Batch) -> Callable[[Alphas, Norm], Tensor]:
            def loss(alphas: Alphas, norm: Norm) -> Tensor:
                rewind()
                return self._loss(self._relax(alphas, at), batch, norm)[0]

            return loss

        state = self.weight_optimizer.state
        problem = BilevelProblem(
            alphas=self.alphas,
            weights=self.weights,
            momentum_buffers=[state[w].get("momentum_buffer") for w in self.weights],
            train_loss=loss_on(train_batch),
            val_loss=loss_on(val_batch),
            weight_lr=self.weight_lr(at.epoch),
            weight_momentum=self.settings.weight_momentum,
            weight_decay=self.settings.weight_decay,
        )
        found = self.method.alpha_gradient(problem, at)
        for name, alpha in self.alphas.items():
            alpha.grad = found.gradients[name]
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad()
        return found.measured

    def weight_step(self, at: SearchPoint, batch: Batch) -> dict[str, Tensor]:
        """Update the weights at the op weights that the method lets them see.

        Returns:
            Scalars on the device: `train_loss` in nats, `train_accuracy` as a share, and, where the
            method perturbs, `perturb_distance`, the largest change of an op weight.
        """
        op_weights, distance = self._seen_by_weights(at, batch)
        loss, logits = self._loss(op_weights, batch, "batch_and_update")
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        if self.settings.gradient_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.weights, self.settings.gradient_clip, foreach=True)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.weight_lr(at.epoch)
        self.weight_optimizer.step()
        self.weight_optimizer.zero_grad()
        correct = (logits.argmax(dim=1) == batch[1]).double().mean()
        measured = {"train_loss": loss.detach(), "train_accuracy": correct}
        return measured if distance is None else measured | {"perturb_distance": distance}

    @torch.no_grad()
    def relaxed(self, at: SearchPoint) -> OpWeights:
        """Return the method's op weights at the current alphas, without a graph."""
        return self._relax(self.alphas, at)

    @torch.no_grad()
    def evaluate(self, op_weights: OpWeights, batches: Iterable[Batch], norm: Norm) -> Tensor:
        """Return the mean loss in nats and the share of correct answers: float64 `(2,)`."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        count = 0
        for batch in batches:
            loss, logits = self._loss(op_weights, batch, norm)
            correct = (logits.argmax(dim=1) == batch[1]).sum()
            sums += torch.stack([loss.double() * len(batch[1]), correct.double()])
            count += len(batch[1])
        return sums / count

    def loss_on(self, op_weights: OpWeights, batch: Batch, norm: Norm) -> Tensor:
        """Return the mean cross entropy of a batch in nats, with a graph."""
        return self._loss(op_weights, batch, norm)[0]

    def loss_at_alphas(self, at: SearchPoint, batch: Batch, norm: Norm) -> Tensor:
        """Return the loss of a batch at the current alphas, with a graph to them."""
        return self._loss(self._relax(self.alphas, at), batch, norm)[0]

    @contextmanager
    def draws_kept(self, *purposes: str) -> Iterator[None]:
        """Draw afterwards what would be drawn without this: probes change no result.

        Args:
            purposes: "method" or "network"; none are both.
        """
        rewind = self._rewinder(*(purposes or self.generators))
        try:
            yield
        finally:
            rewind()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything a step depends on besides its batches."""
        return cloned(
            {
                "supernet": self.supernet.state_dict(),
                "alphas": self.alphas,
                "weight_optimizer": self.weight_optimizer.state_dict(),
                "alpha_optimizer": self.alpha_optimizer.state_dict(),
                "device": self.device.type,
                "generators": {name: g.get_state() for name, g in self.generators.items()},
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, which is copied.

        The generators of a state from another kind of device cannot be continued; they start anew,
        from the seed and the state's own draws.
        """
        self.fixed = {}
        if self._constant_lr is not None:
            self._constant_lr = None
            self._make_optimizers()
        # torch's optimizers would keep the tensors of the state as their own.
        state = cloned(state)
        self.supernet.load_state_dict(state["supernet"])
        with torch.no_grad():
            for name, alpha in self.alphas.items():
                alpha.copy_(state["alphas"][name])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        for purpose, generator in self.generators.items():
            stored = state["generators"][purpose].cpu()
            if state["device"] == self.device.type:
                generator.set_state(stored)
            else:
                digest = int(stored.long().sum())
                generator.manual_seed(purpose_seed(self.seed, f"{purpose} after {digest}"))

    def load_final(self, supernet: Mapping[str, Tensor], alphas: Mapping[str, Tensor]) -> None:
        """Take weights, statistics and alphas; optimizers and generators stay as they are."""
        self.supernet.load_state_dict(dict(supernet))
        with torch.no_grad():
            for name, alpha in self.alphas.items():
                alpha.copy_(alphas[name])

    def _seen_by_weights(self, at: SearchPoint, batch: Batch) -> tuple[OpWeights, Tensor | None]:
        clean = self.relaxed(at)
        if self.method.perturb is None:
            return clean, None
        rewind = self._rewinder("network")

        def train_loss(op_weights: OpWeights, norm: Norm) -> Tensor:
            rewind()
            return self._loss(op_weights, batch, norm)[0]

        found = self._with_fixed(self.method.perturb(clean, replace(at, train_loss=train_loss)))
        perturbed = {name: matrix.detach() for name, matrix in found.items()}
        moved = [(perturbed[name] - clean[name]).abs().amax() for name in clean]
        return perturbed, torch.stack(moved).amax()

    def _loss(self, op_weights: OpWeights, batch: Batch, norm: Norm) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy in nats and the logits `(B, num_classes)`."""
        generator = self.generators["network"]
        logits = self.supernet(batch[0], Mixture(op_weights), norm=norm, generator=generator)
        return F.cross_entropy(logits, batch[1]), logits

    def _rewinder(self, *purposes: str) -> Callable[[], None]:
        """Return a function after which the generators draw again what they would draw now.

        A finite difference between two passes with different draws would measure the noise.
        """
        kept = [(self.generators[name], self.generators[name].get_state()) for name in purposes]

        def rewind() -> None:
            for generator, state in kept:
                generator.set_state(state)

        return rewind
