"""Processes of trials that are kept for trials to come."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils.object_cache import _ObjectCache

from orchestrator import sweep
from orchestrator.kept_actors import KeptActors
from orchestrator.shown_scheduler import ShownScheduler

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
