"""A scheduler that decides nothing and keeps the processes of trials for trials to come."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler

from orchestrator.ray_state import LiveObject

_MOST = 10_000


class KeptActors(LiveObject, FIFOScheduler):
    """Runs trials in order, and ends no process while more trials are to come.

    Tune ends the process of a trial that has ended unless another trial waits for one, and then
    starts new ones, which import torch anew. Where trials come in generations none waits when the
    last ones of a generation end. Ray has no setting for this: where it does not have the cache of
    processes that is told here, trials start later and nothing else changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: set[Any] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let the processes of all trials with such resources be kept."""
        super().on_trial_add(tune_controller, trial)
        resources = getattr(trial, "placement_group_factory", None)
        cache = getattr(tune_controller, "_actor_cache", None)
        if resources is not None and resources not in self._told and cache is not None:
            self._told.add(resources)
            cache.increase_max(resources, _MOST)
