"""Ray's schedulers with a state that is plain data, so that a resumed study goes on with it.

Ray Tune does not save its schedulers. Their state is taken as numbers by trial id: it survives
other versions of this code, and holds no trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from orchestrator.kept_actors import KeepsActors
from orchestrator.ray_state import LiveObject, NotRestoredError


class Asha(LiveObject, KeepsActors, ASHAScheduler):
    """Asynchronous successive halving; its state is what each rung has recorded."""

    stateful = True

    def study_state(self) -> dict[str, Any]:
        """Return {"rungs": [[milestone, {trial id: value}], ...]}."""
        (bracket,) = self._brackets
        rungs = [[float(milestone), dict(recorded)] for milestone, recorded in bracket._rungs]
        return {"rungs": rungs, "stopped": int(self._num_stopped)}

    def set_study_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `study_state` returned.

        Raises:
            NotRestoredError: It was of other rungs.
        """
        (bracket,) = self._brackets
        found = [milestone for milestone, _ in state["rungs"]]
        if found != [float(milestone) for milestone, _ in bracket._rungs]:
            raise NotRestoredError(f"rungs at {found}")
        for (_, recorded), (_, values) in zip(bracket._rungs, state["rungs"], strict=True):
            recorded.clear()
            recorded.update(values)
        self._num_stopped = state["stopped"]

    def forget(self, kept: set[str]) -> None:
        """Drop what was recorded of trials other than `kept`: they run again under other ids."""
        (bracket,) = self._brackets
        for _, recorded in bracket._rungs:
            for trial_id in set(recorded) - kept:
                del recorded[trial_id]


@dataclass(frozen=True)
class _Past:
    """A trial of an earlier driver, of which only the results are left."""

    trial_id: str


class Median(LiveObject, KeepsActors, MedianStoppingRule):
    """The median stopping rule; its state is the results of each trial."""

    stateful = True

    def study_state(self) -> dict[str, Any]:
        """Return {"results": {trial id: [[time, value], ...]}}."""
        results: dict[str, list[list[float]]] = {}
        for trial, entries in self._results.items():
            pairs = [[entry[self._time_attr], entry[self._metric]] for entry in entries]
            results.setdefault(trial.trial_id, []).extend(pairs)
        return {"results": results}

    def set_study_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `study_state` returned."""
        self._results.clear()
        for trial_id, pairs in state["results"].items():
            entries = [{self._time_attr: at, self._metric: value} for at, value in pairs]
            self._results[_Past(trial_id)] = entries

    def forget(self, kept: set[str]) -> None:
        """Drop what was recorded of trials other than `kept`: they run again under other ids."""
        for trial in [trial for trial in self._results if trial.trial_id not in kept]:
            del self._results[trial]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide, but not again on what a trial of an earlier driver only reports once more."""
        past = self._results.get(_Past(trial.trial_id))
        if past is not None:
            if result[self._time_attr] <= past[-1][self._time_attr]:
                return str(self.CONTINUE)
            self._results[trial] = self._results.pop(_Past(trial.trial_id))
        return str(super().on_trial_result(tune_controller, trial, result))
