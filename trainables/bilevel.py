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

from spaces.core.mixture import PLAIN, Mixture, Norm
from spaces.core.space import Space
from spaces.core.supernet import Supernet
from trainables.implicit import Alphas, BilevelProblem
from trainables.method import Method, OpWeights, SearchPoint
from trainables.settings import SearchSettings
from trainables.stages import Place
from trainables.state import DTYPES, cloned, make_generator, purpose_seed
from trainables.timing import Stopwatch

Batch = tuple[Tensor, Tensor]
"""Images (B, C, H, W) and labels (B,)."""

_OF_EDGES = "/edges"
_SAMPLED = 0.5

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
        space: For methods that ask where they are in it.
        place: The stage that this is the supernet of; None is a search of a single one.

    Attributes:
        alphas: Logits of operations by cell type, leaves.
        edge_alphas: Logits of edges by cell type, `(num_edges,)`, leaves; empty where the method
            has none.
        logits: Both, as the alpha optimizer has them.
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
        space: Space | None = None,
        place: Place | None = None,
    ) -> None:
        dtype = DTYPES[settings.precision]
        self.supernet = supernet.to(device=device, dtype=dtype)
        self.weights = list(self.supernet.parameters())
        self.method, self.settings, self.seed, self.device = method, settings, seed, device
        self.space = space
        self.place = place or Place(0, 0, settings.epochs)
        self._num_ops = {name: shape[-1] for name, shape in alpha_shapes.items()}
        self._active = self.place.active(self._num_ops)
        if self.place.columns is not None:
            alpha_shapes = {n: (len(c), c.shape[1]) for n, c in self.place.columns.items()}
        suffix = self.place.suffix
        scale = 0.0 if method.alphas == "zero" else ALPHA_SCALE

        def drawn(shapes: Mapping[str, tuple[int, ...]], purpose: str) -> Alphas:
            source = make_generator(seed, purpose + suffix)
            return {
                name: (scale * torch.randn(shape, generator=source, dtype=torch.float64))
                .to(device, dtype)
                .requires_grad_()
                for name, shape in shapes.items()
            }

        self.alphas = drawn(alpha_shapes, "alphas")
        edges = {name: shape[:1] for name, shape in alpha_shapes.items()}
        self.edge_alphas = {} if method.relax_edges is None else drawn(edges, "edge alphas")
        self.logits = self.alphas | {
            f"{name}{_OF_EDGES}": alpha for name, alpha in self.edge_alphas.items()
        }
        # One for the method's draws, one for draws inside the network: an attack rewinds the second
        # while it goes on drawing from the first.
        self.generators = {
            purpose: make_generator(seed, purpose + suffix, device)
            for purpose in ("method", "network")
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
            list(self.logits.values()),
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
            shape = len(self.alphas[cell]), self._num_ops[cell]
            self.fixed[cell] = self.alphas[cell].detach().new_full(shape, float("nan"))
        self.fixed[cell][edge] = 0.0
        self.fixed[cell][edge, operation] = 1.0

    def drop(self, cell: str, edge: int) -> None:
        """Take an edge away: op weights 0, in all cells of the type; see `renew_optimizers`."""
        self.fix(cell, edge, 0)
        self.fixed[cell][edge] = 0.0

    def mean(self, logits: Alphas, at: SearchPoint) -> OpWeights:
        """Return the op weights that logits stand for, without draws; fixed edges stay so."""
        relax = self.method.mean or self.method.relax
        return self._whole(relax(self._of_operations(logits), at))

    def _drawn(self, logits: Alphas, at: SearchPoint) -> OpWeights:
        return self.method.relax(self._of_operations(logits), at)

    def _whole(self, op_weights: OpWeights) -> OpWeights:
        """Return op weights of all operations: 0 where a stage has none left, fixed edges fixed."""
        return self._with_fixed(self.place.whole(op_weights, self._num_ops))

    def _of_operations(self, logits: Alphas) -> Alphas:
        return {name: logits[name] for name in self.alphas}

    def edge_weights(self, logits: Alphas, at: SearchPoint) -> OpWeights | None:
        """Return the edge weights that logits stand for; None where the method has none."""
        if self.method.relax_edges is None:
            return None
        return self.method.relax_edges(
            {name: logits[f"{name}{_OF_EDGES}"] for name in self.alphas}, at
        )

    @torch.no_grad()
    def strengths(self, op_weights: OpWeights, at: SearchPoint) -> OpWeights:
        """Return by what edges and operations compete: op weights times edge weights."""
        edges = self.edge_weights(self.logits, at)
        if edges is None:
            return op_weights
        return {name: matrix * edges[name].unsqueeze(-1) for name, matrix in op_weights.items()}

    def mixture(
        self, op_weights: OpWeights, at: SearchPoint, logits: Alphas | None = None
    ) -> Mixture:
        """Return what a measurement mixes by: op weights as given, the rest as the method has it.

        Args:
            op_weights: By cell type, of any values.
            at: Where the search is.
            logits: Those of the edge weights, with a graph to them; None is the search's own,
                without.
        """
        if logits is None:
            with torch.no_grad():
                edges = self.edge_weights(self.logits, at)
        else:
            edges = self.edge_weights(logits, at)
        if self.method.structure != PLAIN:
            # What an edge has besides its operations goes with the last of them.
            present = {n: (q != 0).any(dim=-1).to(q.dtype) for n, q in op_weights.items()}
            edges = present if edges is None else {n: edges[n] * present[n] for n in edges}
        scale = self.method.skip_scale
        return Mixture(
            op_weights, edges, self._active, skip_scale=None if scale is None else scale(at)
        )

    def shown(self, op_weights: OpWeights, at: SearchPoint) -> Mixture:
        """Return what validation accuracy is measured at, from the mean op weights."""
        if self.method.shown is None:
            return self.mixture(op_weights, at)
        return self._training_mixture(self.method.shown(op_weights), at)

    def _training_mixture(
        self, op_weights: OpWeights, at: SearchPoint, logits: Alphas | None = None
    ) -> Mixture:
        mixture = self.mixture(op_weights, at, logits)
        if self.method.skip_dropout is not None:
            mixture = replace(mixture, skip_dropout=self.method.skip_dropout(at))
        if self.method.sampled is None:
            return mixture
        runs = {name: matrix.detach() > _SAMPLED for name, matrix in op_weights.items()}
        offsets = None
        if self.method.sampled == "scalars":
            offsets = {n: q.masked_fill(runs[n], 0.0).sum(dim=-1) for n, q in op_weights.items()}
        # Which operations run is for the host to know: a GPU has to be waited for.
        return replace(
            mixture, active={name: mask.cpu() for name, mask in runs.items()}, offsets=offsets
        )

    def _with_fixed(self, op_weights: OpWeights) -> OpWeights:
        if not self.fixed:
            return op_weights
        return op_weights | {
            name: torch.where(fixed.isnan(), op_weights[name], fixed)
            for name, fixed in self.fixed.items()
        }

    @property
    def first_alpha_epoch(self) -> int:
        """Epoch of the search, counted from 0, in which the alphas of this stage begin to move."""
        return self.place.start + self.method.first_alpha_epoch(self.place.epochs)

    def point(self, epoch: int) -> SearchPoint:
        """Return where the search is in `epoch`, counted from 0."""
        return SearchPoint(
            epoch,
            self.settings.epochs,
            self.generators["method"],
            space=self.space,
            stage=self.place.index,
            stage_epoch=epoch - self.place.start,
            stage_epochs=self.place.epochs,
        )

    def weight_lr(self, epoch: int) -> float:
        """Return the learning rate of the weights in `epoch`, counted from 0.

        A cosine from weight_lr in epoch 0 towards weight_lr_min, which it would reach one epoch
        past the last, as torch's CosineAnnealingLR with T_max = epochs; anew in each stage.
        """
        settings = self.settings
        if self._constant_lr is not None:
            return self._constant_lr
        done = (epoch - self.place.start) / self.place.epochs
        cosine = (1.0 + math.cos(math.pi * done)) / 2.0
        return settings.weight_lr_min + (settings.weight_lr - settings.weight_lr_min) * cosine

    def step(
        self,
        at: SearchPoint,
        train_batch: Batch,
        val_batch: Batch,
        clocks: tuple[Stopwatch, Stopwatch],
    ) -> dict[str, Tensor]:
        """Take one alpha step and one weight step, timed by one clock each.

        In the first epochs of some methods the alphas rest and the alpha step is left out; others
        take it before some of the weight steps only. A method that does not train is measured.

        Returns:
            Scalars on the device: those of `weight_step` and what the alpha gradient measured.
        """
        measured: dict[str, Tensor] = {}
        if not self.method.trains:
            with clocks[1].lap(), torch.no_grad():
                loss, logits = self._loss(self.mixture(self.relaxed(at), at), train_batch, "batch")
                correct = (logits.argmax(dim=1) == train_batch[1]).double().mean()
                return {"train_loss": loss, "train_accuracy": correct}
        if at.epoch >= self.first_alpha_epoch and at.step % self.method.weight_steps == 0:
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
            def loss(logits: Alphas, norm: Norm) -> Tensor:
                rewind()
                drawn = self._whole(self._drawn(logits, at))
                return self._loss(self._training_mixture(drawn, at, logits), batch, norm)[0]

            return loss

        on_validation = loss_on(val_batch)

        def penalized(logits: Alphas, norm: Norm) -> Tensor:
            loss = on_validation(logits, norm)
            if self.method.penalty is None:
                return loss
            return loss + self.method.penalty(self._of_operations(logits), at)

        state = self.weight_optimizer.state
        problem = BilevelProblem(
            alphas=self.logits,
            weights=self.weights,
            momentum_buffers=[state[w].get("momentum_buffer") for w in self.weights],
            train_loss=loss_on(train_batch),
            val_loss=penalized,
            weight_lr=self.weight_lr(at.epoch),
            weight_momentum=self.settings.weight_momentum,
            weight_decay=self.settings.weight_decay,
        )
        found = self.method.alpha_gradient(problem, at)
        for name, alpha in self.logits.items():
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
        mixture = self._training_mixture(op_weights, at)
        loss, logits = self._loss(mixture, batch, "batch_and_update")
        gradients = torch.autograd.grad(
            loss,
            self.weights,
            allow_unused=True,
            # Momentum and decay go on for the weights of operations that were not drawn.
            materialize_grads=self.method.sampled is not None,
        )
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
        """Return the method's mean op weights at the current alphas, without a graph."""
        return self.mean(self.logits, at)

    @torch.no_grad()
    def evaluate(self, mixture: Mixture, batches: Iterable[Batch], norm: Norm) -> Tensor:
        """Return the mean loss in nats and the share of correct answers: float64 `(2,)`.

        Where most operations have op weight 0, as in a genotype, they are not run.
        """
        used = {name: (q != 0).cpu() for name, q in mixture.op_weights.items()}
        if sum(int(mask.sum()) for mask in used.values()) <= 0.5 * sum(
            mask.numel() for mask in used.values()
        ):
            mixture = replace(mixture, active=used)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        count = 0
        for batch in batches:
            loss, logits = self._loss(mixture, batch, norm)
            correct = (logits.argmax(dim=1) == batch[1]).sum()
            sums += torch.stack([loss.double() * len(batch[1]), correct.double()])
            count += len(batch[1])
        return sums / count

    def loss_on(self, mixture: Mixture, batch: Batch, norm: Norm) -> Tensor:
        """Return the mean cross entropy of a batch in nats, with a graph."""
        return self._loss(mixture, batch, norm)[0]

    def loss_at_alphas(self, at: SearchPoint, batch: Batch, norm: Norm) -> Tensor:
        """Return the loss of a batch at the mean op weights, with a graph to all logits."""
        mixture = self.mixture(self.mean(self.logits, at), at, self.logits)
        return self._loss(mixture, batch, norm)[0]

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
                "alphas": self.logits,
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
            for name, alpha in self.logits.items():
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
            for name, alpha in self.logits.items():
                alpha.copy_(alphas[name])

    def _seen_by_weights(self, at: SearchPoint, batch: Batch) -> tuple[OpWeights, Tensor | None]:
        with torch.no_grad():
            drawn = self._drawn(self.logits, at)
        clean = self._whole(drawn)
        if self.method.perturb is None:
            return clean, None
        rewind = self._rewinder("network")

        def train_loss(op_weights: OpWeights, norm: Norm) -> Tensor:
            rewind()
            mixture = self._training_mixture(self._whole(op_weights), at)
            return self._loss(mixture, batch, norm)[0]

        # A perturbation moves the operations that are left, and no others.
        found = self._whole(self.method.perturb(drawn, replace(at, train_loss=train_loss)))
        perturbed = {name: matrix.detach() for name, matrix in found.items()}
        moved = [(perturbed[name] - clean[name]).abs().amax() for name in clean]
        return perturbed, torch.stack(moved).amax()

    def _loss(self, mixture: Mixture, batch: Batch, norm: Norm) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy in nats and the logits `(B, num_classes)`."""
        generator = self.generators["network"]
        logits = self.supernet(batch[0], mixture, norm=norm, generator=generator)
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
