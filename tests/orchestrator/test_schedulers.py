"""Schedulers decide as Ray's do, and a result costs the same however many there were before."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from orchestrator.schedulers import Asha, Median, _Sorted

EPOCHS = 6
metrics = st.one_of(
    st.integers(0, 8).map(float),
    st.floats(-2.0, 2.0),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
curves = st.lists(st.lists(metrics, min_size=EPOCHS, max_size=EPOCHS), min_size=2, max_size=9)


@dataclass(eq=False)
class Trial:
    trial_id: str
    status: str = "RUNNING"

    @property
    def config(self) -> dict[str, Any]:
        """Of a block of two seeds."""
        return {"unit": {"rows": {"0": f"{self.trial_id}/0", "1": f"{self.trial_id}/1"}}}


class Controller:
    def get_live_trials(self) -> list[Trial]:
        return []


def asha(kind: type, factor: float, *, mode: str = "max") -> Any:
    made = kind(max_t=EPOCHS, grace_period=1, reduction_factor=factor, stop_last_trials=False)
    made.set_search_properties("v", mode)
    return made


def median(kind: type, grace: float, *, mode: str = "max") -> Any:
    made = kind(time_attr="training_iteration", grace_period=grace, min_samples_required=2)
    made.set_search_properties("v", mode)
    return made


def decisions(scheduler: Any, values: list[list[float]], order: list[int]) -> list[str]:
    """Trials report in this order, as often as each of them runs on."""
    trials = [Trial(str(index)) for index in range(len(values))]
    epochs, found = [0] * len(values), []
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    for turn in order:
        index = turn % len(values)
        if trials[index].status != "RUNNING":
            continue
        epochs[index] += 1
        result = {"training_iteration": epochs[index], "v": values[index][epochs[index] - 1]}
        if epochs[index] == EPOCHS:
            scheduler.on_trial_complete(None, trials[index], result)
            found.append("ended")
        else:
            found.append(scheduler.on_trial_result(Controller(), trials[index], result))
        if found[-1] == "STOP":
            scheduler.on_trial_complete(None, trials[index], result)
        if found[-1] != "CONTINUE":
            trials[index].status = "TERMINATED"
    return found


orders = st.lists(st.integers(0, 8), min_size=20, max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    values=curves,
    order=orders,
    factor=st.sampled_from([2.0, 3.0, 4.0, 2.5]),
    mode=st.sampled_from(["max", "min"]),
)
def test_successive_halving_is_ray_s(
    values: list[list[float]], order: list[int], factor: float, mode: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of NaN alone
        theirs = decisions(asha(ASHAScheduler, factor, mode=mode), values, order)
    assert decisions(asha(Asha, factor, mode=mode), values, order) == theirs


@settings(max_examples=60, deadline=None)
@given(
    values=curves,
    order=orders,
    grace=st.sampled_from([1.0, 2.0, 2.5]),
    mode=st.sampled_from(["max", "min"]),
)
def test_the_median_rule_is_ray_s(
    values: list[list[float]], order: list[int], grace: float, mode: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = decisions(median(MedianStoppingRule, grace, mode=mode), values, order)
    assert decisions(median(Median, grace, mode=mode), values, order) == theirs


@pytest.mark.parametrize("kind", [MedianStoppingRule, Median])
@pytest.mark.parametrize(("value", "decision"), [(2.2, "CONTINUE"), (1.9, "STOP")])
def test_the_last_result_of_a_trial_that_ended_counts_twice(
    kind: type, value: float, decision: str
) -> None:
    rule = median(kind, 1.0)
    trials = {name: Trial(name) for name in "cab"}
    values = {"a": [4.0, 1.0], "b": [4.0, 1.0], "c": [value, value]}
    for epoch in (1, 2):
        for name, trial in trials.items():
            result = {"training_iteration": epoch, "v": values[name][epoch - 1]}
            if (name, epoch) != ("c", 2):
                assert rule.on_trial_result(Controller(), trial, result) == "CONTINUE"
            if epoch == 2 and name != "c":
                rule.on_trial_complete(None, trial, result)
    result = {"training_iteration": 2, "v": value}  # against (4 + 1 + 1) / 3
    assert rule.on_trial_result(Controller(), trials["c"], result) == decision


@pytest.mark.parametrize("make", [lambda: asha(Asha, 2.0), lambda: median(Median, 1.0)])
def test_some_are_stopped_and_some_are_not(make: Callable[[], Any]) -> None:
    values = [[float(index)] * EPOCHS for index in (5, 6, 7, 1, 9)]
    found = decisions(make(), values, [0, 1, 2, 3, 4])
    assert found[3:] == ["STOP", "CONTINUE"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), metrics, st.booleans()), max_size=40))
def test_sorted_values_are_those_of_numpy(changes: list[tuple[str, float, bool]]) -> None:
    found, plain = _Sorted(), dict[str, float]()
    for name, value, gone in changes:
        if gone and name in plain:
            del found[name], plain[name]
        else:
            found[name] = plain[name] = value
        assert found == plain or any(map(math.isnan, plain.values()))
        known = [each for each in plain.values() if not math.isnan(each)]
        assert found.count() == len(known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for share in (0.5, 1 - 1 / 3, 0.75, 0.6):
                expected = np.nanquantile(list(plain.values()) or [math.nan], share)
                assert np.array_equal(found.quantile(share), expected, equal_nan=True)
            middle = np.median(known) if known else math.nan
        assert np.array_equal(found.median(), middle, equal_nan=True)


@pytest.mark.parametrize("make", [lambda: asha(Asha, 2.0), lambda: median(Median, 1.0)])
def test_what_went_on_before_is_not_stopped_where_it_went_on(make: Callable[[], Any]) -> None:
    rule = make()
    # A seed of "low" is known to have ended epoch 3, so that it was not stopped at 1 or 2.
    rule.recorded = {"low/1": 3, "low/0": 1, "other/0": 2}
    trials = {name: Trial(name) for name in ("a", "b", "low", "other", "new")}

    def tell(name: str, epoch: int, value: float) -> str:
        result = {"training_iteration": epoch, "v": value}
        return str(rule.on_trial_result(Controller(), trials[name], result))

    for trial in trials.values():
        rule.on_trial_add(None, trial)
    for epoch in (1, 2, 3, 4):
        assert {tell("a", epoch, 0.8), tell("b", epoch, 0.9)} == {"CONTINUE"}
    assert [tell("low", epoch, 0.1) for epoch in (1, 2)] == ["CONTINUE", "CONTINUE"]
    assert "STOP" in [tell("low", epoch, 0.1) for epoch in (3, 4)]
    assert tell("other", 1, 0.1) == "CONTINUE"
    assert tell("other", 2, 0.1) == "STOP"
    assert tell("new", 1, 0.1) == "STOP"


def test_a_trial_that_reports_again_is_judged_once() -> None:
    rule = median(Median, 1.0)
    for index in range(3):
        result = {"training_iteration": 1, "v": float(index)}
        rule.on_trial_result(Controller(), Trial(f"other {index}"), result)
    before = rule.study_state()
    again = Trial("other 0")
    assert rule.on_trial_result(Controller(), again, {"training_iteration": 1, "v": 0.0}) == (
        "CONTINUE"
    )
    assert rule.study_state() == before
    new = Trial("new")
    assert rule.on_trial_result(Controller(), new, {"training_iteration": 1, "v": 0.0}) == "STOP"


@pytest.mark.parametrize("make", [lambda: asha(Asha, 2.0), lambda: median(Median, 1.0)])
def test_a_result_costs_the_same_among_thousands(make: Callable[[], Any]) -> None:
    rule = make()

    def tell(first: int, count: int) -> float:
        trials = [Trial(str(index)) for index in range(first, first + count)]
        for trial in trials:
            rule.on_trial_add(None, trial)
        began = time.process_time()
        for index, trial in enumerate(trials):
            result = {"training_iteration": 1, "v": float(index * 7919 % 10007)}
            rule.on_trial_result(Controller(), trial, result)
        return (time.process_time() - began) / count

    few = min(tell(0, 100), tell(100, 100), tell(200, 100))
    tell(300, 9700)
    many = min(tell(10_000, 100), tell(10_100, 100), tell(10_200, 100))
    assert many < 4 * few  # Ray's: 30 and 60 times as much
