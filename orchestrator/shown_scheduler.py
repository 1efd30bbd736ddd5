"""A scheduler that is shown a value which the trial itself does not report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.schedulers import TrialScheduler

from orchestrator.kept_actors import KeptActors
from orchestrator.ray_state import LiveObject

Add = Callable[[dict[str, Any], dict[str, Any]], None]


class ShownScheduler(LiveObject, TrialScheduler):
    """Another scheduler, or none, whose results are completed by the driver first.

    Args:
        inner: The scheduler, or None.
        add: Called with the configuration of a trial and its result, which it completes.
    """

    def __init__(self, inner: Any, add: Add) -> None:
        super().__init__()
        self._inner = inner or KeptActors()
        self._add = add

    @property
    def stateful(self) -> bool:
        """Whether it compares trials, and so has a state that a resume goes on with."""
        return bool(getattr(self._inner, "stateful", False))

    def study_state(self) -> dict[str, Any]:
        """Pass it on."""
        return dict(self._inner.study_state())

    def set_study_state(self, state: Mapping[str, Any]) -> None:
        """Pass it on."""
        self._inner.set_study_state(state)

    def forget(self, kept: set[str]) -> None:
        """Pass it on."""
        self._inner.forget(kept)

    @property
    def metric(self) -> Any:
        """What the scheduler looks at."""
        return self._inner.metric

    @property
    def supports_buffered_results(self) -> bool:
        """Whether results may come several at a time."""
        return False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Pass it on."""
        return bool(self._inner.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Complete the result and pass it on."""
        self._add(trial.config, result)
        return str(self._inner.on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Pass it on; the last result has been completed by then."""
        self._inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Pass it on."""
        self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Pass it on."""
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """Pass it on."""
        return str(self._inner.debug_string())
