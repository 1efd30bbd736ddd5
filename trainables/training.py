"""Plain training of a network: a step, an epoch, an evaluation, and the state of all three."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spaces.core.draws import Draws, num_paths
from spaces.core.operations import Noise
from trainables.compiled import compiled
from trainables.errors import StateError
from trainables.images import Batches
from trainables.settings import RetrainSettings
from trainables.state import DTYPES, cloned
from trainables.streams import Images, StreamBatches, go_through
from trainables.team import Team

ALONE = Team()


class Training:
    """SGD on a network's weights, and its accuracy on images it is given.

    Args:
        network: On its device, of the settings' precision.
        batches: Training batches, on the same device.
        settings: Settings of the optimizer and the loss.
        generator: Source of dropped paths, on that device.
        team: The processes that share each batch.

    Raises:
        StateError: The network cannot be compiled or shared.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Batches | StreamBatches,
        settings: RetrainSettings,
        generator: torch.Generator,
        team: Team = ALONE,
    ) -> None:
        self.network = network
        self.team = team
        self.batches = batches
        self.settings = settings
        self._generator = generator
        self._device = batches.device
        self._weights = list(network.parameters())
        self._optimizer = torch.optim.SGD(
            self._weights,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            foreach=True,
        )
        self._averaged = cloned(self._averageable()) if settings.ema_decay > 0 else {}
        self._draws_ahead = settings.compile or team.size > 1
        if self._draws_ahead and any(isinstance(part, Noise) for part in network.modules()):
            raise StateError(
                "retrain.compile and retrain.workers are not for a genotype with the operation "
                "'noise', which draws in every pass: leave them out."
            )
        self._forward: Callable[..., Any] = network
        if settings.compile:
            self._forward = compiled(network, self._device.type)
        elif team.size > 1:
            self._forward = team.share(network, shared_batch_norm=settings.shared_batch_norm)

    def run_epoch(self, *, lr: float, drop_path: float) -> tuple[float, float]:
        """Go once through the training batches.

        Args:
            lr: Learning rate.
            drop_path: Probability of dropping a path for an image.

        Returns:
            Mean loss in nats, label smoothing included, and share of correct answers, both of the
            main head in training mode.
        """
        self._set_lr(lr)
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for _ in range(len(self.batches)):
            sums += self._step(drop_path)
        loss, correct = (self.team.mean(sums) / len(self.batches)).tolist()
        return loss, correct * self.team.size / self.settings.batch_size

    def time_steps(self, count: int, *, lr: float, drop_path: float) -> float:
        """Return the seconds of a training step, the least of `count`; nothing else changes."""
        before = self.state_dict()
        times = []
        self._set_lr(lr)
        try:
            for _ in range(count):
                start = time.perf_counter()
                self._step(drop_path).tolist()  # tolist waits for the device
                times.append(time.perf_counter() - start)
        finally:
            self.load_state_dict(before)
        return min(times)

    def _set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def _step(self, drop_path: float) -> Tensor:
        """Update the weights on the next batch; return (loss, correct), still on the device."""
        settings = self.settings
        images, labels = self.batches.next_batch()
        self.network.train()
        with self._autocast():
            logits, auxiliary_logits = self._forward(images, drop_path, self._draws(drop_path))
            loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
            total = loss
            if auxiliary_logits is not None:
                total = total + settings.auxiliary_weight * F.cross_entropy(
                    auxiliary_logits, labels, label_smoothing=settings.label_smoothing
                )
        self._optimizer.zero_grad()
        total.backward()
        if settings.gradient_clip > 0:
            torch.nn.utils.clip_grad_norm_(self._weights, settings.gradient_clip, foreach=True)
        self._optimizer.step()
        self._average()
        correct = (logits.argmax(dim=1) == labels).sum()
        return torch.stack([loss.detach().double(), correct.double()])

    def _draws(self, drop_path: float) -> torch.Generator | Draws | None:
        """Return where the network's draws come from in the next pass."""
        if not self._draws_ahead:
            return self._generator
        if drop_path == 0:
            return None
        batch = self.settings.batch_size
        return Draws(
            num_paths(self.network),
            batch,
            self._generator,
            device=self._device,
            rows=self.team.rows(batch) or slice(None),
        )

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.mixed_precision
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _averageable(self) -> dict[str, Tensor]:
        """Return the weights and running statistics, by name; not copies."""
        state = self.network.state_dict().items()
        return {name: value for name, value in state if value.is_floating_point()}

    @torch.no_grad()
    def _average(self) -> None:
        """Let the average of the weights and running statistics follow the last step."""
        if self._averaged:
            now = list(self._averageable().values())
            share = 1.0 - self.settings.ema_decay
            torch._foreach_lerp_(list(self._averaged.values()), now, share)

    def evaluated_state(self) -> dict[str, Tensor]:
        """Return copies of the weights and buffers that `evaluate` uses: averages where asked."""
        return cloned({**self.network.state_dict(), **self._averaged})

    @torch.no_grad()
    def evaluate(self, images: Images) -> tuple[float, float]:
        """Return mean cross entropy in nats and accuracy over all images, on running statistics.

        With `ema_decay` they are those of the averaged network.
        """
        self.network.eval()
        dtype = DTYPES[self.settings.precision]
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        # Only a genotype with noise draws; every evaluation draws equally.
        generator = torch.Generator(device=self._device).manual_seed(0)
        for batch, labels in go_through(images, self.settings.batch_size, dtype):
            with self._autocast():
                logits, _ = torch.func.functional_call(
                    self.network, self._averaged, (batch,), {"generator": generator}
                )
                sums[0] += F.cross_entropy(logits, labels, reduction="sum")
            sums[1] += (logits.argmax(dim=1) == labels).sum()
        loss, accuracy = (sums / len(images)).tolist()
        return loss, accuracy

    def is_finite(self) -> bool:
        """Return whether all weights and running statistics are finite."""
        values = [t for t in self.network.state_dict().values() if t.is_floating_point()]
        return bool(torch.stack([value.isfinite().all() for value in values]).all())

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on; tensors are copies."""
        return {
            "network": cloned(dict(self.network.state_dict())),
            "optimizer": cloned(self._optimizer.state_dict()),
            "batches": self.batches.state_dict(),
            "drop_generator": self._generator.get_state(),
            "averaged": cloned(self._averaged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            StateError: The state's batches are of other data or of another size.
        """
        self.batches.load_state_dict(state["batches"])
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(cloned(state["optimizer"]))
        self._generator.set_state(state["drop_generator"].cpu())
        # States from before there were averages have none, and their settings ask for none.
        for name, value in state.get("averaged", {}).items():
            self._averaged[name].copy_(value)

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a training with other settings; the optimizer keeps its own."""
        own = self._optimizer.state_dict()["param_groups"]
        optimizer = {**state["optimizer"], "param_groups": own}
        self.load_state_dict({**state, "optimizer": optimizer})
