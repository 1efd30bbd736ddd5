"""Schedulers that keep the processes of trials for trials to come."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.ray_state import LiveObject

_MOST = 10_000


class KeepsActors(TrialScheduler):
    """Part of a scheduler: has Tune end no process of a trial while more trials are to come.

    Tune ends the process of a trial that has ended unless another trial waits for one at that
    moment, and then starts new ones, which import torch anew. None waits when trials come in
    generations, nor when two of a small sweep end at once. Trials that differ in resources are
    left to Tune: a kept process holds its own. Ray has no setting for this: where it does not have
    the cache of processes that is told here, trials start later and nothing else changes.
    """

    _kept: Any = None
    _differ = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let the processes of all trials with such resources be kept."""
        super().on_trial_add(tune_controller, trial)
        resources = getattr(trial, "placement_group_factory", None)
        cache = getattr(tune_controller, "_actor_cache", None)
        if resources is None or cache is None or self._differ or resources == self._kept:
            return
        if self._kept is None:
            self._kept = resources
            cache.increase_max(resources, _MOST)
        else:
            self._differ = True
            cache.decrease_max(self._kept, _MOST)


class KeptActors(LiveObject, KeepsActors, FIFOScheduler):
    """A scheduler that decides nothing and keeps processes."""
