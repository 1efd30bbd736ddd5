"""Trials that report nothing: said once, and ended where `tune.trial_timeout` allows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.statistics import show_time

QUIET_S = 600.0
_TIMES_LONGEST = 10.0
Clock = Callable[[], float]


class Watchdog:
    """Follows when each running trial of Ray Tune reported its last epoch.

    A trial is ended by killing its process. Tune then starts it again from its last state, as often
    as `tune.max_failures` says; until then its resources are free for others.

    Args:
        timeout_s: Seconds without an epoch after which a trial is ended; None is never.
        told: Takes a line for the person.
        on_timeout: Called with the configuration of a trial that is about to be ended, and for how
            many seconds it has been silent.
        kill: Ends the process of a trial.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        timeout_s: float | None,
        told: Callable[[str], None],
        on_timeout: Callable[[dict[str, Any], float], None],
        kill: Callable[[Any], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._timeout_s, self._told, self._on_timeout = timeout_s, told, on_timeout
        self._kill, self._clock = kill or kill_process, clock
        self._heard: dict[str, float] = {}
        self._said: set[str] = set()
        self._longest_s = 0.0

    def heard(self, trial: Any) -> None:
        """Take note that a trial has reported an epoch."""
        now = self._clock()
        before = self._heard.get(trial.trial_id)
        if before is not None:
            self._longest_s = max(self._longest_s, now - before)
        self._heard[trial.trial_id] = now
        self._said.discard(trial.trial_id)

    def look(self, running: Sequence[Any]) -> None:
        """Speak of trials that have been silent for long, and end those that were for too long.

        Args:
            running: All trials that run now.
        """
        now = self._clock()
        for name in self._heard.keys() - {trial.trial_id for trial in running}:
            del self._heard[name]
        for trial in running:
            name = trial.trial_id
            silent_s = now - self._heard.setdefault(name, now)
            if self._timeout_s is not None and silent_s > self._timeout_s:
                self._told(
                    f"{called(trial.config)} has reported no epoch for {show_time(silent_s)} "
                    "(tune.trial_timeout): its process is ended, and started again from its state"
                )
                self._on_timeout(trial.config, silent_s)
                self._heard[name] = now
                self._kill(trial)
            elif silent_s > max(QUIET_S, _TIMES_LONGEST * self._longest_s):
                self._say(name, trial.config, silent_s)

    def _say(self, name: str, config: Mapping[str, Any], silent_s: float) -> None:
        if name in self._said:
            return
        self._said.add(name)
        longest = f" (the longest took {show_time(self._longest_s)})" if self._longest_s else ""
        self._told(
            f"{called(config)} has reported no epoch for {show_time(silent_s)}{longest}. With "
            "tune.trial_timeout such a trial is started again."
        )


def called(config: Mapping[str, Any]) -> str:
    """Return what messages call the trial of a configuration."""
    unit = config["unit"]
    seeds = ", ".join(unit["rows"])
    return f"{unit['label'] or unit['config_id']} seed {seeds}"


def kill_process(trial: Any) -> None:
    """End the process of a trial at once."""
    import ray

    actor = trial.temporary_state.ray_actor
    if actor is not None:
        ray.kill(actor)
