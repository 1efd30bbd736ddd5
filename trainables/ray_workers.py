"""The other workers of a retraining: Ray actors in the trial's placement group, led by it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

if TYPE_CHECKING:
    from trainables.retrain import RetrainTrial

_START_S = 300.0
_SILENCE_S = 1800.0
"""Seconds after which a worker that neither answers nor dies is given up."""


class Follower:
    """A worker that is told each epoch to train with the others.

    Args:
        config: Configuration of the trial, as `RetrainTrainable` takes it.
        rank: Its place in the team, from 1.
    """

    def __init__(self, config: Mapping[str, Any], rank: int) -> None:
        self.config, self.rank = config, rank
        self.trials: dict[int, RetrainTrial] = {}

    def node(self) -> str:
        """Return the address of its machine; it waits for torch."""
        import torch  # noqa: F401

        return str(get_node_ip_address())

    def join(self, address: str, backend: str) -> None:
        """Join the team."""
        join(address, self.rank, int(self.config["retrain"]["workers"]), backend)

    def make(self, seed: int) -> None:
        """Make the trial of one seed, as the others do: their networks are tied together."""
        from trainables.ray_trial import retraining

        with _leaving_on_failure():
            self.trials[seed] = retraining(self.config, seed)

    def run_epoch(self, seed: int, state: Mapping[str, Any] | None) -> None:
        """Train for an epoch with the others, from `state` on if there is one."""
        with _leaving_on_failure():
            if state is not None:
                self.trials[seed].load_state_dict(state)
            self.trials[seed].run_epoch()


@contextlib.contextmanager
def _leaving_on_failure() -> Iterator[None]:
    """Leave the team where this process fails, so that the others do not wait for it."""
    from torch import distributed

    done = False
    try:
        yield
        done = True
    finally:
        if not done and distributed.is_initialized():
            distributed.destroy_process_group()


class Crew:
    """All workers of a retraining but the one that it is made in; that one leads.

    Args:
        config: Configuration of the trial; `retrain.workers` says how many.

    Raises:
        RayError: A worker cannot start.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        size = int(config["retrain"]["workers"])
        backend = "nccl" if _whole_gpus(config) else "gloo"
        group = get_current_placement_group()
        self._epochs: dict[int, int] = {}
        self._followers = [
            ray.remote(Follower).options(**_place(group, rank)).remote(config, rank)
            for rank in range(1, size)
        ]
        try:
            ray.get([each.node.remote() for each in self._followers], timeout=_START_S)
            address = f"tcp://{get_node_ip_address()}:{_free_port()}"
            joined = [each.join.remote(address, backend) for each in self._followers]
            join(address, 0, size, backend)
            ray.get(joined, timeout=_START_S)
        except BaseException:
            self.dismiss()
            raise

    def making(self, seed: int) -> contextlib.AbstractContextManager[None]:
        """Have the others make the trial of a seed while this process does."""
        self._epochs.pop(seed, None)
        return self._together([each.make.remote(seed) for each in self._followers])

    def epoch(self, seed: int, trial: RetrainTrial) -> contextlib.AbstractContextManager[None]:
        """Have the others train for the epoch that the trial is about to.

        Where they do not stand where it does, as after a restart, they get its state first.
        """
        at, self._epochs[seed] = self._epochs.get(seed, 0), trial.epoch + 1
        state = None if at == trial.epoch else ray.put(_plain(trial.state_dict()))
        running = [each.run_epoch.remote(seed, state) for each in self._followers]
        return self._together(running)

    @contextlib.contextmanager
    def _together(self, running: Sequence[Any]) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            # Most likely one of them has died or failed, and this one lost the connection: its
            # own error says more.
            ray.get(running, timeout=30)
            raise
        ray.get(running, timeout=_SILENCE_S)

    def dismiss(self) -> None:
        """End the workers and leave the team."""
        from torch import distributed

        for each in self._followers:
            ray.kill(each)
        self._followers = []
        if distributed.is_initialized():
            distributed.destroy_process_group()


def join(address: str, rank: int, size: int, backend: str) -> None:
    """Make this process part of a team."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
    distributed.init_process_group(
        backend,
        init_method=address,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_SILENCE_S),
    )


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state on the CPU: another worker's GPU is not this one's."""
    from trainables.state import on_cpu

    moved: dict[str, Any] = on_cpu(state)
    return moved


def _whole_gpus(config: Mapping[str, Any]) -> bool:
    """Return whether every worker has a GPU of its own, as NCCL needs."""
    import torch

    group = get_current_placement_group()
    bundles = group.bundle_specs if group is not None else []
    gpus = [bundle.get("GPU", 0) for bundle in bundles]
    on_gpu = config.get("device", "auto") != "cpu" and torch.cuda.is_available()
    return on_gpu and bool(gpus) and min(gpus) >= 1


def _place(group: Any, rank: int) -> dict[str, Any]:
    if group is None:
        return {"num_cpus": 1}
    bundle = group.bundle_specs[rank]
    return {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, rank),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
