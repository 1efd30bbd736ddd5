"""Processes of trials that are kept for trials to come."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils.object_cache import _ObjectCache

from orchestrator import sweep
from orchestrator.kept_actors import KeptActors
from orchestrator.shown_scheduler import ShownScheduler
from tests.orchestrator import here

ASHA = {"name": "asha", "grace_epochs": 1, "reduction_factor": 2.0}
MEDIAN = {"name": "median", "grace_epochs": 1, "min_trials": 2}


def made(name: str) -> TrialScheduler:
    if name == "shown":
        scheduler: TrialScheduler = ShownScheduler(None, lambda config, result: None)
    elif name == "none":
        scheduler = KeptActors()
    else:
        scheduler = sweep.make_scheduler(ASHA if name == "asha" else MEDIAN, 3)
    scheduler.set_search_properties("val_accuracy", "max")
    return scheduler


def trial(name: str, resources: str) -> SimpleNamespace:
    return SimpleNamespace(trial_id=name, placement_group_factory=resources)


@pytest.mark.parametrize("name", ["asha", "median", "none", "shown"])
def test_two_trials_that_end_at_once_both_leave_their_process_to_the_next(name: str) -> None:
    cache: _ObjectCache = _ObjectCache(may_keep_one=True)
    controller = SimpleNamespace(_actor_cache=cache)
    scheduler = made(name)
    for each in "ab":
        scheduler.on_trial_add(controller, trial(each, "1 CPU"))
    assert cache.cache_object("1 CPU", "process a")
    assert cache.cache_object("1 CPU", "process b")
    assert list(cache.flush_cached_objects()) == []


def test_processes_of_other_resources_do_not_keep_what_they_hold() -> None:
    cache: _ObjectCache = _ObjectCache(may_keep_one=True)
    controller = SimpleNamespace(_actor_cache=cache)
    scheduler = made("none")
    for each in ("1 CPU", "2 CPUs", "1 CPU", "3 CPUs"):
        scheduler.on_trial_add(controller, trial(each, each))
    assert cache.total_max_objects == 0
    assert cache.cache_object("1 CPU", "process a")
    assert not cache.cache_object("2 CPUs", "process b")
    assert list(cache.flush_cached_objects(force_all=True)) == ["process a"]


def test_another_ray_without_such_a_cache_runs_trials_all_the_same() -> None:
    made("asha").on_trial_add(SimpleNamespace(), trial("a", "1 CPU"))


class Live(SimpleNamespace):
    """What a scheduler is shown of Tune: trials, and which of their processes have room."""

    def __init__(self, trials: list[Any], starting: frozenset[str] = frozenset()) -> None:
        manager = SimpleNamespace(is_actor_started=lambda actor: actor in starting)
        super().__init__(
            get_live_trials=lambda: set(trials),
            _trial_to_actor={each: each.trial_id for each in trials if each.has_actor},
            _actor_manager=manager,
        )


class Trial(SimpleNamespace):
    """A trial that waits."""

    def __init__(self, name: str, *, status: str = "PENDING", has_actor: bool = False) -> None:
        super().__init__(trial_id=name, status=status, has_actor=has_actor)

    __hash__ = object.__hash__


@pytest.mark.parametrize("name", ["asha", "median", "none", "shown"])
def test_trials_start_as_they_came_but_not_those_whose_process_is_starting(name: str) -> None:
    scheduler = made(name)
    names = list("hgfedcba")
    trials = [Trial(each) for each in names]
    for each in trials:
        scheduler.on_trial_add(SimpleNamespace(), each)

    def chosen(starting: frozenset[str] = frozenset()) -> str | None:
        found = scheduler.choose_trial_to_run(Live(trials, starting))
        return None if found is None else found.trial_id

    assert chosen() == "h"
    trials[0].status = "RUNNING"
    trials[1].has_actor = True
    assert chosen() == "g"  # its process has no room yet: a free one is welcome
    assert chosen(frozenset("g")) == "f"
    for each in trials[2:]:
        each.status = "TERMINATED"
    assert chosen(frozenset("g")) is None
    trials[5].status = "PAUSED"
    assert (chosen(frozenset("g")), chosen()) == ("c", "g")


def test_a_slot_whose_process_starts_slowly_has_one_process_in_the_end(
    nas_here: here.Nas, tmp_path: Path
) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()
    import ray
    from ray import tune

    class Short(tune.Trainable):
        """The third process needs longer to start than several trials of the others."""

        def setup(self, config: dict[str, Any]) -> None:
            several = len(list(folder.iterdir())) >= 2
            (folder / str(os.getpid())).touch()
            time.sleep(1.5 if several else 0.0)

        def step(self) -> dict[str, Any]:
            time.sleep(0.2)
            return {"done": True, "pid": os.getpid()}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

    ray.init(nas_here.address, log_to_driver=False)
    try:
        found = tune.Tuner(
            tune.with_resources(Short, {"cpu": 0.6}),
            param_space={"place": tune.grid_search(list(range(30)))},
            tune_config=tune.TuneConfig(
                scheduler=KeptActors(), reuse_actors=True, max_concurrent_trials=3
            ),
            run_config=tune.RunConfig(storage_path=str(tmp_path), name="t", verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    counts = Counter(found[place].metrics["pid"] for place in range(30))
    assert len(list(folder.iterdir())) == len(counts) == 3, counts
    assert min(counts.values()) >= 2
