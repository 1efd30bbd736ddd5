"""The bilevel step: an alpha step on a validation batch, then a weight step on a training batch.

`Bilevel` is all that a step reads and writes: weights, alphas, both optimizers, the generators of
the method and of the network. It knows no dataset, no epoch loop and no file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces.core.mixture import Mixture, Norm
from spaces.core.recomputing import recompute_cells
from spaces.core.space import Space
from trainables.architecture import Architecture
from trainables.capture import Captured, CaptureError
from trainables.compiled import CompiledCells, CompileError
from trainables.engine import Engine, choose_engine
from trainables.implicit import Alphas, BilevelProblem
from trainables.method import Method, OpWeights, SearchPoint
from trainables.optimizers import alpha_optimizer, load_optimizer, set_rate, weight_optimizer
from trainables.settings import SearchSettings
from trainables.stages import Place
from trainables.state import cloned, make_generator, purpose_seed
from trainables.timing import Stopwatch

_LOG = logging.getLogger(__name__)

_DOUBLE = "double backward"
"""Of what torch says where second derivatives of compiled code are asked for."""

Batch = tuple[Tensor, Tensor]
"""Images (B, C, H, W) and labels (B,)."""


class Bilevel(Architecture):
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
        engine: How steps are run; None leaves it to the settings.

    Attributes:
        weights: Parameters of the supernet.
        engine: How steps are run: another than was asked for where they could not be recorded.
    """

    def __init__(
        self,
        supernet: nn.Module,
        alpha_shapes: Mapping[str, tuple[int, int]],
        method: Method,
        settings: SearchSettings,
        *,
        seed: int,
        device: torch.device,
        space: Space | None = None,
        place: Place | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.engine = engine or choose_engine(settings, device, method, space)
        dtype = self.engine.dtype
        self.supernet = supernet.to(device=device, dtype=dtype)
        use_form = getattr(supernet, "use_form", None)
        if use_form is not None:  # a space may bring a supernet that has one form
            use_form(self.engine.form)
        if settings.checkpointing == "cell":
            recompute_cells(self.supernet)
        self._compiled: CompiledCells | None = None
        self._compiled_steps: set[str] = set()
        if self.engine.name == "compile":
            self._use_compiled()
        self.weights = list(self.supernet.parameters())
        self.settings, self.seed, self.device = settings, seed, device
        super().__init__(
            alpha_shapes,
            method,
            seed=seed,
            device=device,
            dtype=dtype,
            space=space,
            place=place or Place(0, 0, settings.epochs),
        )
        # One for the method's draws, one for draws inside the network: an attack rewinds the second
        # while it goes on drawing from the first.
        self.generators = {
            purpose: make_generator(seed, purpose + self.place.suffix, device)
            for purpose in ("method", "network")
        }
        self._constant_lr: float | None = None
        self._records: dict[str, Captured] = {}
        # One for all graphs of this search and for no other's: see `Captured`.
        self._stream = torch.cuda.Stream(device) if self._is_captured else None
        self._recorded_in = -1
        self._is_recording = False
        self._make_optimizers()

    @property
    def _is_captured(self) -> bool:
        return self.engine.name == "graph" and not self.engine.is_stub

    def _make_optimizers(self) -> None:
        settings, on_gpu = self.settings, self.device.type == "cuda"
        self._records.clear()
        self.weight_optimizer = weight_optimizer(self.weights, settings, on_gpu=on_gpu)
        logits = list(self.logits.values())
        self.alpha_optimizer = alpha_optimizer(logits, settings, on_gpu=on_gpu)

    def renew_optimizers(self, lr_share: float) -> None:
        """Start both optimizers anew, the weights' at a constant share of the first rate.

        Until the next `load_state_dict`; not part of the state: it is for what follows a search.
        """
        self._constant_lr = lr_share * self.settings.weight_lr
        self._make_optimizers()

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

    @property
    def weight_decay(self) -> float:
        """Weight decay of the weights: of the settings, or more where the search went back."""
        return float(self.weight_optimizer.param_groups[0]["weight_decay"])

    def go_back(self, state: Mapping[str, Any], *, weight_decay: float) -> None:
        """Take an earlier state, but for the generators, and go on with another weight decay."""
        generators = {name: g.get_state() for name, g in self.generators.items()}
        self.load_state_dict({**state, "generators": generators, "device": self.device.type})
        for group in self.weight_optimizer.param_groups:
            group["weight_decay"] = weight_decay

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
                measured |= self._run("alpha", self.alpha_step, at, train_batch, val_batch)
        with clocks[1].lap():
            return {**self._run("weight", self.weight_step, at, train_batch), **measured}

    def _run(
        self,
        what: str,
        step: Callable[..., Mapping[str, Tensor]],
        at: SearchPoint,
        *batches: Batch,
    ) -> Mapping[str, Tensor]:
        """Take a step as the engine does, recorded anew in every epoch.

        Within an epoch radii, rates and penalties are numbers that a graph may hold; what else a
        step depends on stays where it is until a state is loaded or an edge decided.
        """
        if self._compiled is not None:
            return self._run_compiled(self._compiled, what, step, at, *batches)
        if self.engine.name != "graph":
            return step(at, *batches)
        if self._recorded_in != at.epoch:
            self._records.clear()
            self._recorded_in = at.epoch
        if what not in self._records:

            def on_tensors(*tensors: Tensor) -> Mapping[str, Tensor]:
                self._is_recording = True
                try:
                    return step(at, *zip(tensors[::2], tensors[1::2], strict=True))
                finally:
                    self._is_recording = False

            sources = list(self.generators.values())
            self._records[what] = Captured(
                on_tensors, self.device, sources, self._changing, self._stream
            )
        try:
            return self._records[what](*(tensor for batch in batches for tensor in batch))
        except CaptureError as error:
            self.engine = self.engine.without_graph(str(error))
            self._records.clear()
            _LOG.warning("Steps are not replayed as graphs but taken one by one: %s.", error)
            return step(at, *batches)

    def _use_compiled(self) -> None:
        if not hasattr(self.supernet, "calls"):
            self._take_one_by_one("its supernet is the space's own, without the attribute `calls`")
            return
        self._compiled = CompiledCells()
        self.supernet.calls = self._compiled  # type: ignore[assignment]

    def _take_one_by_one(self, why: str) -> None:
        self.engine = self.engine.without_graph(f"cells cannot be compiled, because {why}")
        _LOG.warning("Steps: %s.", self.engine)

    def _run_compiled(
        self,
        cells: CompiledCells,
        what: str,
        step: Callable[..., Mapping[str, Tensor]],
        at: SearchPoint,
        *batches: Batch,
    ) -> Mapping[str, Tensor]:
        """Take a step with compiled cells; what cannot be compiled shows in the first of its kind.

        Then it is taken operation by operation, from the state before, and so are all that follow.
        """
        first = what not in self._compiled_steps
        before = self.state_dict() if first else {}
        cells.on = True
        try:
            found = step(at, *batches)
        except (CompileError, RuntimeError) as error:
            if not first or not (isinstance(error, CompileError) or _DOUBLE in str(error)):
                raise
            cells.on = False
            self._compiled = self.supernet.calls = None  # type: ignore[assignment]
            self.load_state_dict(before)
            self._take_one_by_one(str(error).splitlines()[0].rstrip("."))
            return step(at, *batches)
        finally:
            cells.on = False
        self._compiled_steps.add(what)
        return found

    def _changing(self) -> list[Tensor]:
        """Return all tensors that steps change in place."""
        optimizers = self.weight_optimizer, self.alpha_optimizer
        entries = [entry for each in optimizers for entry in each.state.values()]
        kept = [value for e in entries for value in e.values() if isinstance(value, Tensor)]
        own = [*self.supernet.parameters(), *self.supernet.buffers(), *self.logits.values()]
        return own + kept

    def _decided(self, cell: str) -> Tensor:
        self._records.clear()
        return super()._decided(cell)

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
                drawn = self.whole(self.drawn(logits, at))
                mixture = self.training_mixture(drawn, at, logits)
                # Passes at shifted weights: bfloat16 would not see the shift.
                return self._loss(mixture, batch, norm, exact=norm == "batch")[0]

            return loss

        on_validation = loss_on(val_batch)

        def penalized(logits: Alphas, norm: Norm) -> Tensor:
            loss = on_validation(logits, norm)
            if self.method.penalty is None:
                return loss
            return loss + self.method.penalty(self.of_operations(logits), at)

        state = self.weight_optimizer.state
        problem = BilevelProblem(
            alphas=self.logits,
            weights=self.weights,
            momentum_buffers=[state[w].get("momentum_buffer") for w in self.weights],
            train_loss=loss_on(train_batch),
            val_loss=penalized,
            weight_lr=self.weight_lr(at.epoch),
            weight_momentum=self.settings.weight_momentum,
            weight_decay=self.weight_decay,
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
        mixture = self.training_mixture(op_weights, at)
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
        set_rate(self.weight_optimizer, self.weight_lr(at.epoch))
        self.weight_optimizer.step()
        self.weight_optimizer.zero_grad()
        correct = (logits.argmax(dim=1) == batch[1]).double().mean()
        measured = {"train_loss": loss.detach(), "train_accuracy": correct}
        return measured if distance is None else measured | {"perturb_distance": distance}

    @torch.no_grad()
    def evaluate(
        self, mixture: Mixture, batches: Iterable[Batch], norm: Norm, *, sparse: bool = True
    ) -> Tensor:
        """Return the mean loss in nats and the share of correct answers: float64 `(2,)`.

        Args:
            mixture: Op weights and the like.
            batches: What it is measured on.
            norm: Statistics of the batch norms.
            sparse: Whether to look, before the first batch, if most operations have op weight 0, as
                in a genotype, and then not to run them.
        """
        if sparse:
            used = {name: (q != 0).cpu() for name, q in mixture.op_weights.items()}
            count = sum(int(mask.sum()) for mask in used.values())
            if 2 * count <= sum(mask.numel() for mask in used.values()):
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
        return self._loss(mixture, batch, norm, exact=True)[0]

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
        self._records.clear()
        if self._constant_lr is not None:
            self._constant_lr = None
            self._make_optimizers()
        # torch's optimizers would keep the tensors of the state as their own.
        state = cloned(state)
        self.supernet.load_state_dict(state["supernet"])
        with torch.no_grad():
            for name, alpha in self.logits.items():
                alpha.copy_(state["alphas"][name])
        load_optimizer(self.weight_optimizer, state["weight_optimizer"])
        load_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        # A rate that was stored as a tensor has been rounded.
        set_rate(self.alpha_optimizer, self.settings.alpha_lr)
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
            drawn = self.drawn(self.logits, at)
        clean = self.whole(drawn)
        if self.method.perturb is None:
            return clean, None
        rewind = self._rewinder("network")

        def train_loss(op_weights: OpWeights, norm: Norm) -> Tensor:
            rewind()
            mixture = self.training_mixture(self.whole(op_weights), at)
            return self._loss(mixture, batch, norm)[0]

        # A perturbation moves the operations that are left, and no others.
        found = self.whole(self.method.perturb(drawn, replace(at, train_loss=train_loss)))
        perturbed = {name: matrix.detach() for name, matrix in found.items()}
        moved = [(perturbed[name] - clean[name]).abs().amax() for name in clean]
        return perturbed, torch.stack(moved).amax()

    def _loss(
        self, mixture: Mixture, batch: Batch, norm: Norm, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy in nats and the logits `(B, num_classes)`.

        With `exact` the pass is in the type of the weights, whatever the precision.
        """
        generator = self.generators["network"]
        with nullcontext() if exact else self._autocast():
            logits = self.supernet(batch[0], mixture, norm=norm, generator=generator)
        logits = logits.to(self.engine.dtype)
        return F.cross_entropy(logits, batch[1]), logits

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.engine.precision != "bf16":
            return nullcontext()
        # Weights that were cast in one pass are others in the next.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _rewinder(self, *purposes: str) -> Callable[[], None]:
        """Return a function after which the generators draw again what they would draw now.

        A finite difference between two passes with different draws would measure the noise.
        """
        if self._is_recording:
            # A generator cannot be set back while it is recorded: see `choose_engine`.
            return lambda: None
        kept = [(self.generators[name], self.generators[name].get_state()) for name in purposes]

        def rewind() -> None:
            for generator, state in kept:
                generator.set_state(state)

        return rewind
