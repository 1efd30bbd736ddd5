"""Ray's schedulers with a state that is plain data, so that a resumed study goes on with it.

Ray Tune does not save its schedulers. Their state is taken as numbers by trial id: it survives
other versions of this code, and holds no trial.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    ASHAScheduler,
    MedianStoppingRule,
    TrialScheduler,
    async_hyperband,
)

from orchestrator.kept_actors import KeepsActors
from orchestrator.ray_state import LiveObject, NotRestoredError


class _Sorted(dict[str, float]):
    """Values by trial id, kept sorted too; NaN is left out of order and quantiles.

    Ray goes through all values for each result, so that trials cost more the more there were
    before: of 10,000 a quarter of all that the driver does, and with medians most of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._order: list[float] = []

    def __setitem__(self, trial_id: str, value: float) -> None:
        self._forget(trial_id)
        super().__setitem__(trial_id, value)
        if not math.isnan(value):
            insort(self._order, float(value))

    def __delitem__(self, trial_id: str) -> None:
        self._forget(trial_id)
        super().__delitem__(trial_id)

    def _forget(self, trial_id: str) -> None:
        value = self.get(trial_id, math.nan)
        if not math.isnan(value):
            del self._order[bisect_left(self._order, float(value))]

    def pop(self, trial_id: str, default: Any = None) -> Any:
        value = self.get(trial_id, default)
        if trial_id in self:
            del self[trial_id]
        return value

    def count(self) -> int:
        """Return how many values there are that are no NaN."""
        return len(self._order)

    def median(self) -> float:
        """Return what `numpy.median` does of those, to the last bit."""
        order, half = self._order, len(self._order) // 2
        if not order:
            return math.nan
        return order[half] if len(order) % 2 else (order[half - 1] + order[half]) / 2

    def quantile(self, share: float) -> float:
        """Return what `numpy.nanquantile` does of the values, to the last bit."""
        order = self._order
        if not order:
            return math.nan
        place = share * (len(order) - 1)
        index = math.floor(place)
        low, high, part = order[index], order[min(index + 1, len(order) - 1)], place - index
        return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


class HoldsTo:
    """Holds to what was decided before: no trial is stopped at an epoch after which it went on.

    A trial whose state was lost reports its epochs once more, when others have reported that had
    not before; its row, another seed of its block or its run in MLflow may have gone further.

    Attributes:
        recorded: By ledger key, the most epochs that any record of the study has.
    """

    recorded: Mapping[str, int] = MappingProxyType({})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide as the rule does, but not against what has been decided."""
        rule: Any = super()
        decision = str(rule.on_trial_result(tune_controller, trial, result))
        if decision != TrialScheduler.STOP:
            return decision
        keys = trial.config["unit"]["rows"].values()
        before = max((self.recorded.get(key, 0) for key in keys), default=0)
        epoch = int(result["training_iteration"])
        return TrialScheduler.CONTINUE if epoch < before else decision


class _Bracket(async_hyperband._Bracket):
    """Ray's, with rungs that are sorted already."""

    def __init__(self, made: async_hyperband._Bracket) -> None:
        self.__dict__.update(made.__dict__)
        self._rungs = [(milestone, _Sorted()) for milestone, _ in made._rungs]

    def cutoff(self, recorded: _Sorted) -> float | None:
        return recorded.quantile((1 - 1 / self.rf) * 100 / 100) if recorded else None


class Asha(LiveObject, HoldsTo, KeepsActors, ASHAScheduler):
    """Asynchronous successive halving; its state is what each rung has recorded."""

    stateful = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._brackets: list[_Bracket] = [_Bracket(found) for found in self._brackets]

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
            for trial_id in list(recorded):
                del recorded[trial_id]
            for trial_id, value in values.items():
                recorded[trial_id] = value
        self._num_stopped = state["stopped"]

    def forget(self, kept: set[str]) -> None:
        """Drop what was recorded of trials other than `kept`: they run again under other ids."""
        (bracket,) = self._brackets
        for _, recorded in bracket._rungs:
            for trial_id in set(recorded) - kept:
                del recorded[trial_id]


class _Medians(MedianStoppingRule):
    """The median stopping rule; its state is the results of each trial.

    It decides as Ray's does, but keeps the running means that Ray computes anew from all trials for
    each result. A trial that reports an epoch once more is not judged again.
    """

    stateful = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._curves: dict[str, list[tuple[float, float]]] = {}
        self._means: defaultdict[float, _Sorted] = defaultdict(_Sorted)

    def study_state(self) -> dict[str, Any]:
        """Return {"results": {trial id: [[time, value], ...]}}."""
        pairs = {name: [list(pair) for pair in curve] for name, curve in self._curves.items()}
        return {"results": pairs}

    def set_study_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `study_state` returned."""
        self._curves.clear()
        self._means.clear()
        for name, pairs in state["results"].items():
            for at, value in pairs:
                self._record(name, at, value)

    def forget(self, kept: set[str]) -> None:
        """Drop what was recorded of trials other than `kept`: they run again under other ids."""
        for name in self._curves.keys() - kept:
            for at, _ in self._curves.pop(name):
                self._means[at].pop(name, None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial whose best value is worse than the median of the others' running means."""
        name = trial.trial_id
        if self._time_attr not in result or self._metric not in result:
            return str(self.CONTINUE)
        at, value = result[self._time_attr], result[self._metric]
        curve = self._curves.get(name)
        if curve and at <= curve[-1][0]:
            return str(self.CONTINUE)
        others, median = self._means[at].count(), self._means[at].median()
        self._record(name, at, value)
        if at < self._grace_period:
            return str(self.CONTINUE)
        if others < self._min_samples_required:
            action = self._on_insufficient_samples(tune_controller, trial, at)
            if action == self.PAUSE:
                self._last_pause[trial] = at
            return str(action)
        best = self._compare_op([each for _, each in self._curves[name]])
        if self._compare_op(median, best) == best:
            return str(self.CONTINUE)
        self._stopped_trials.add(trial)
        return str(self.STOP)

    def on_trial_complete(self, _: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take note of the last result once more, as Ray does."""
        if self._time_attr in result and self._metric in result:
            self._record(trial.trial_id, result[self._time_attr], result[self._metric])

    def _record(self, name: str, at: float, value: float) -> None:
        curve = self._curves.setdefault(name, [])
        curve.append((at, value))
        if at >= self._grace_period:
            with np.errstate(invalid="ignore"):
                mean = float(np.mean([v for t, v in curve if self._grace_period <= t <= at]))
            self._means[at][name] = mean if math.isfinite(mean) else math.nan


class Median(LiveObject, HoldsTo, KeepsActors, _Medians):
    """The median stopping rule."""
