"""Runs units without Ray, in this process, by a clock of simulated seconds.

Searcher, scheduler, trials and driver are those of a study on Ray; what is missing is processes.
The trial whose next epoch ends first on the simulated clock is the next to report, so that a run is
the same on every machine and at every load.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

_TICK_S = 0.5


@dataclass(eq=False)
class _Trial:
    """What schedulers ask of a Ray trial."""

    trial_id: str
    config: dict[str, Any]
    block: Any
    status: str = "RUNNING"
    result: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Controller:
    """What schedulers ask of Ray's controller."""

    running: dict[str, _Trial] = field(default_factory=dict)

    def get_live_trials(self) -> list[_Trial]:
        """Return the trials that have not ended."""
        return list(self.running.values())


def run_here(
    trainable: type,
    searcher: Any,
    scheduler: Any,
    *,
    on_result: Callable[[dict[str, Any], dict[str, Any]], None],
    on_end: Callable[[dict[str, Any], dict[str, Any], str | None], None],
    on_tick: Callable[[int], None],
    num_units: int,
    concurrent: int,
    metric: str,
    mode: str,
    time_budget_s: float | None,
) -> float:
    """Run one stage to its end; see `sweep.run_tuner` and `sweep.make_callback`.

    Args:
        trainable: A `BlockTrainable` whose epochs cost nothing but say how long they are.
        searcher, scheduler: As on Ray.
        on_result, on_end, on_tick: As on Ray.
        num_units: Units at most.
        concurrent: Units side by side on the simulated clock.
        metric, mode: What the scheduler looks at.
        time_budget_s: Real seconds after which everything stops; None is no limit.

    Returns:
        The simulated seconds from the first start to the last end.
    """
    controller, clock, ticked, begun = _Controller(), 0.0, time.monotonic(), 0
    end = float("inf") if time_budget_s is None else time.monotonic() + time_budget_s
    if scheduler is not None:
        scheduler.set_search_properties(metric, mode)
    queue: list[tuple[float, int, _Trial]] = []
    while time.monotonic() < end:
        while len(controller.running) < concurrent and begun < num_units:
            config = searcher.suggest(f"{begun:08d}")
            if config is None or config == Searcher.FINISHED:
                break
            trial = _Trial(f"{begun:08d}", config, _block(trainable, config))
            controller.running[trial.trial_id] = trial
            if scheduler is not None:
                scheduler.on_trial_add(controller, trial)
            begun += 1
            _step(queue, clock, begun, trial)
        if not queue:
            break
        clock, order, trial = heapq.heappop(queue)
        stopped = _report(controller, searcher, scheduler, trial)
        on_result(trial.config, trial.result)
        if stopped:
            trial.status = "TERMINATED"
            del controller.running[trial.trial_id]
            if scheduler is not None:
                scheduler.on_trial_complete(controller, trial, trial.result)
            searcher.on_trial_complete(trial.trial_id, trial.result)
            on_end(trial.config, trial.result, None)
        else:
            _step(queue, clock, order, trial)
        if time.monotonic() - ticked >= _TICK_S:
            ticked = time.monotonic()
            on_tick(len(controller.running))
    return clock


def _block(trainable: type, config: dict[str, Any]) -> Any:
    # Without Ray's constructor, which makes loggers and folders for a process of its own.
    block: Any = object.__new__(trainable)
    block.setup(config)
    return block


def _step(queue: list[tuple[float, int, _Trial]], clock: float, order: int, trial: _Trial) -> None:
    """Let a trial run its next epoch, and note when that ends; equal times keep their order."""
    result = trial.block.step()
    result["training_iteration"] = trial.block.reported
    trial.result = result
    heapq.heappush(queue, (clock + _seconds(result), order, trial))


def _seconds(result: Mapping[str, Any]) -> float:
    """Return how long an epoch of a block takes: its seeds run one after the other."""
    return sum(float(entry.get("epoch_time_s", 0.0)) for entry in result["seeds"].values())


def _report(controller: _Controller, searcher: Any, scheduler: Any, trial: _Trial) -> bool:
    """Show a result to scheduler and searcher; return whether the trial ends."""
    if not trial.result["done"]:
        if scheduler is None:
            decision = TrialScheduler.CONTINUE
        else:
            decision = scheduler.on_trial_result(controller, trial, trial.result)
        if decision != TrialScheduler.STOP:
            searcher.on_trial_result(trial.trial_id, trial.result)
            return False
        trial.result["done"] = True
    return True
