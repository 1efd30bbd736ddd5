"""Schedulers that keep the processes of trials for trials to come."""

from __future__ import annotations

import itertools
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.ray_state import LiveObject

_MOST = 10_000


class KeepsActors(TrialScheduler):
    """Part of a scheduler: has Tune end no process of a trial while more trials are to come.

    A new process takes seconds of a core to import torch. Tune ends processes for two reasons that
    matter in a sweep of short trials:

    - The process of a trial that has ended goes unless another trial waits for one at that moment.
      None waits when trials come in generations, nor when two of a small sweep end at once.
    - A process that is starting goes when another trial ends before it is up: its trial is given
      the other's process, and the next trial starts a new one, which has no more time than the one
      before. So a slot may start processes for a whole sweep without ever having a trial.

    Here processes are kept, and a trial whose process is starting waits for it. Trials that differ
    in resources are left to Tune: a kept process holds its own. Ray has no setting for this: where
    it does not have what is asked for here, trials start later and nothing else changes.
    """

    _kept: Any = None
    _differ = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let the processes of all trials with such resources be kept."""
        super().on_trial_add(tune_controller, trial)
        self._places.setdefault(trial.trial_id, len(self._places))
        resources = getattr(trial, "placement_group_factory", None)
        cache = getattr(_inside(tune_controller), "_actor_cache", None)
        if resources is None or cache is None or self._differ or resources == self._kept:
            return
        if self._kept is None:
            self._kept = resources
            cache.increase_max(resources, _MOST)
        else:
            self._differ = True
            cache.decrease_max(self._kept, _MOST)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Return the first trial that waits for a process, or None."""
        trials = sorted(tune_controller.get_live_trials(), key=self._place)
        for status, trial in itertools.product(("PENDING", "PAUSED"), trials):
            if trial.status == status and not _is_starting(_inside(tune_controller), trial):
                return trial
        return None

    @property
    def _places(self) -> dict[str, int]:
        """Order in which trials came: the live ones alone are looked at, and they are a set."""
        return self.__dict__.setdefault("_places_of_trials", {})

    def _place(self, trial: Any) -> int:
        return self._places.get(trial.trial_id, -1)


class KeptActors(LiveObject, KeepsActors, FIFOScheduler):
    """A scheduler that decides nothing and keeps processes."""


def _inside(tune_controller: Any) -> Any:
    """Return Tune's controller without the wrapper that warns of what it has besides."""
    return getattr(tune_controller, "_tune_controller", tune_controller)


def _is_starting(controller: Any, trial: Any) -> bool:
    """Whether a trial has a process of its own that Ray has found room for."""
    actor = getattr(controller, "_trial_to_actor", {}).get(trial)
    manager = getattr(controller, "_actor_manager", None)
    return actor is not None and manager is not None and manager.is_actor_started(actor)
