"""One training spread over processes: each has its rows of every batch, all make the same step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from spaces.core import layers
from spaces.core.layers import BatchNorm
from spaces.core.mixture import Norm
from trainables.errors import StateError


@dataclass(frozen=True)
class Team:
    """The processes of a training and this one's place; all of them run the same program.

    Attributes:
        rank: This process, from 0; the first one evaluates, reads the test split and keeps states.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, workers: int) -> Team:
        """Return this process's team of so many workers.

        Raises:
            StateError: torch.distributed has not been set up for so many.
        """
        if workers == 1:
            return cls()
        here = distributed.is_available() and distributed.is_initialized()
        size = distributed.get_world_size() if here else 1
        if size != workers:
            raise StateError(
                f"retrain.workers is {workers}, and this process belongs to a group of {size}. "
                "`nas run` and Ray Tune's RetrainTrainable start the others; elsewhere call "
                "torch.distributed.init_process_group in each, as torchrun does."
            )
        return cls(distributed.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this process is the first."""
        return self.rank == 0

    def rows(self, batch: int) -> slice | None:
        """Return which images of a batch are this process's; None is all."""
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share) if self.size > 1 else None

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size == 1:
            return values
        values = values.clone()
        distributed.all_reduce(values)
        return values / self.size

    def share(self, network: nn.Module, *, shared_batch_norm: bool) -> Callable[..., Any]:
        """Return a call of the network whose gradients are means over the processes.

        Args:
            network: The same weights in every process. Its batch norms are changed in place where
                they are to be shared, its weights and buffers keep their names.
            shared_batch_norm: Whether they normalise by the whole batch. Otherwise each process
                does by its own rows, and the running statistics are the first one's.

        Raises:
            StateError: It has batch norms of torch's own, which cannot be shared on every device.
        """
        if self.size == 1:
            return network
        if shared_batch_norm:
            share_batch_norms(network, self)
        device = next(network.parameters()).device
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=not shared_batch_norm,
            # A cell can have operations that lead nowhere, whose weights get no gradient.
            find_unused_parameters=True,
        )


class _Gather(torch.autograd.Function):
    """Every process's tensor, `(size, *shape)`; gradients flow back to where each came from."""

    @staticmethod
    def forward(context: Any, values: Tensor, team: Team, group: Any) -> Tensor:
        context.rank, context.group = team.rank, group
        gathered = [torch.empty_like(values) for _ in range(team.size)]
        distributed.all_gather(gathered, values.contiguous(), group=group)
        return torch.stack(gathered)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous().clone()
        distributed.all_reduce(gradient, group=context.group)
        return gradient[context.rank], None, None


class SharedBatchNorm(BatchNorm):
    """Batch norm by the statistics of the whole batch, whose rows several processes have.

    torch's SyncBatchNorm is for GPUs alone; this one is in plain operations, for any device and
    precision. Mean and variance are put together from those of equal shares, in one exchange.
    """

    team: Team
    group: Any

    def forward(
        self, x: Tensor, norm: Norm, scale: Tensor | None = None, rows: slice | None = None
    ) -> Tensor:
        """Normalise `x`, `(B, C, H, W)`, this process's rows of the batch."""
        if norm != "batch_and_update" or scale is not None or rows is not None:
            return super().forward(x, norm, scale, rows)
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        every: Tensor = _Gather.apply(torch.stack([mean, var]), self.team, self.group)
        means, variances = every[:, 0], every[:, 1]
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        count = self.team.size * x.numel() // x.shape[1]
        self._follow(mean.detach(), var.detach() * count / max(1, count - 1))
        factor = torch.rsqrt(var + layers.EPSILON)
        factor = factor if self.weight is None else factor * self.weight
        normalised = (wide - mean[:, None, None]) * factor[:, None, None]
        if self.bias is not None:
            normalised = normalised + self.bias[:, None, None]
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), layers.MOMENTUM)
        self.running_var.lerp_(var.to(self.running_var.dtype), layers.MOMENTUM)


def share_batch_norms(network: nn.Module, team: Team) -> None:
    """Let every batch norm of a network see the whole batch; names of weights stay.

    Raises:
        StateError: It has batch norms of torch's own.
    """
    # A group of its own: gradients are exchanged at the same time.
    group = distributed.new_group()
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise StateError(
                "retrain.shared_batch_norm needs networks with spaces.core.layers.BatchNorm, and "
                f"this one has {type(part).__name__}. Set retrain.shared_batch_norm=false."
            )
        if isinstance(part, BatchNorm):
            # In place: an optimizer may have its weights, and a state dict their names.
            part.__class__ = SharedBatchNorm
            part.team, part.group = team, group  # type: ignore[assignment]
