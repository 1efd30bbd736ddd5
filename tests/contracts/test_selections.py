"""What every selection plug-in must keep, found by its file: no list to edit."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch

from spaces.core import plugins
from spaces.core.errors import SpaceError
from spaces.core.genotype import Genotype
from tests.contracts.test_methods import label, variants
from tests.trainables.searches import EDGELESS, SPACES, differences, flat, small_search
from trainables.search import SearchTrial
from trainables.selecting import Selected

pytestmark = pytest.mark.usefixtures("tiny_plugins")
RULES = plugins.available("selections")
# A rule that evaluates the supernet for each operation, and trains it on between two edges, is
# tried at its cheapest: with one epoch in the smaller space, with none and one batch elsewhere.
QUICK: dict[str, dict[str, Any]] = {"perturbation": {"tune_epochs": 1}}
QUICKEST: dict[str, dict[str, Any]] = {"perturbation": {"tune_epochs": 0, "batches": 1}}
EDGE_WISE = {"name": "operation_strength", "progressive": "edge_wise"}
"""Rules that decide edge by edge: refused in a space that has none."""
FIELDS = [
    (name, field.name)
    for name in RULES
    for field in dataclasses.fields(plugins.describe("selections", name).config)
]


def others(hint: Any, value: Any) -> list[Any]:
    """Values of a setting that differ from the one it has."""
    choices = [choice for choice in typing.get_args(hint) if isinstance(choice, str)]
    if choices:
        return [choice for choice in choices if choice != value]
    if value is None:
        return [1]
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if isinstance(value, int) else [value * 1.5 if value else 0.1]


def changes(name: str, field: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of valid settings that differ in one field."""
    hint = typing.get_type_hints(plugins.describe("selections", name).config)[field]
    for variant in variants(name, "selections"):
        base = variant | QUICK.get(name, {})
        value = getattr(plugins.make_config("selections", base)[1], field)
        for other in others(hint, value):
            changed = base | {field: other}
            try:
                plugins.make_config("selections", changed)
            except plugins.PluginSettingsError:
                continue
            yield base, changed


def every_setting() -> list[dict[str, Any]]:
    """The defaults, then every field once at each of its other values."""
    found: dict[str, dict[str, Any]] = {}
    for name, field in FIELDS:
        for _, changed in changes(name, field):
            found.setdefault(f"{name} {field} {changed[field]}", changed)
    return [*({"name": name} | QUICK.get(name, {}) for name in RULES), *found.values()]


SETTINGS = every_setting()
# Every setting in the smaller space, under a method that draws; the defaults in the others.
CASES = [
    *((settings, "nasbench201", "sampled") for settings in SETTINGS),
    *(
        (
            {"name": name} | (QUICK if space == "nasbench201" else QUICKEST).get(name, {}),
            space,
            "darts",
        )
        for name in RULES
        for space in SPACES
        # A projection of every cell by itself takes half a minute and shows nothing new.
        if (name not in QUICKEST or space != "darts_per_cell")
    ),
]
# Minutes a choice in the larger spaces, where it is made once and not three times.
REPEATED = [case for case in CASES if case[0]["name"] not in QUICKEST or case[1] == "nasbench201"]


def searched(space: str = "nasbench201", method: Any = "darts") -> SearchTrial:
    """A search that is over; a fresh one with every call."""
    trial = small_search(method, space=space, epochs=1)
    trial.load_state_dict(_state_after_the_search(space, method))
    return trial


@lru_cache
def _state_after_the_search(space: str, method: str) -> dict[str, Any]:
    trial = small_search(method, space=space, epochs=1)
    trial.run()
    return trial.state_dict()


@lru_cache
def _looked(settings: str, space: str, method: str) -> tuple[SearchTrial, Selected, bool]:
    """A first look, for all tests that need one: trial, choice, whether torch's state is as before.

    Each of them has to find the trial as if nobody had looked.
    """
    trial = searched(space, method)
    everywhere = torch.get_rng_state()
    selected = trial.select(json.loads(settings))
    return trial, selected, torch.equal(torch.get_rng_state(), everywhere)


def looked(
    settings: dict[str, Any], space: str = "nasbench201", method: str = "darts"
) -> tuple[SearchTrial, Selected, bool]:
    return _looked(json.dumps(settings), space, method)


def plain(selected: Selected) -> list[Any]:
    """What a rule found, as values that can be compared."""
    scores = {path: leaf.tolist() for path, leaf in flat(selected.scores).items()}
    return [selected.genotype.hash, scores]


def test_there_are_rules() -> None:
    assert {"magnitude", "operation_strength", "perturbation"} <= set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_it_is_described(name: str) -> None:
    info = plugins.describe("selections", name)
    module = plugins.load("selections", name)
    assert isinstance(module, types.ModuleType)
    assert info.summary.endswith(".")
    assert info.source == module.SOURCE != ""
    assert info.results_version == module.RESULTS_VERSION >= 1


@pytest.mark.parametrize(("settings", "space", "method"), CASES, ids=label)
def test_the_choice_is_one_of_the_space(settings: dict[str, Any], space: str, method: str) -> None:
    trial, selected, _ = looked(settings, space, method)
    assert differences(trial, searched(space, method)) == []
    trial.space.check(selected.genotype)
    assert Genotype.from_json(json.loads(json.dumps(selected.genotype.to_json()))) == (
        selected.genotype
    )
    # The scores stand in the place of op weights: what was chosen is what they say.
    assert trial.space.discretize(selected.scores) == selected.genotype


@pytest.mark.parametrize("space", EDGELESS)
def test_a_rule_of_edges_is_refused_where_there_are_none(space: str) -> None:
    with pytest.raises(SpaceError, match=f"'{space}' has blocks .* and no edges"):
        small_search({"name": "darts", "select": EDGE_WISE}, space=space)
    with pytest.raises(SpaceError, match="decides edge by edge"):
        searched(space).select(EDGE_WISE)


@pytest.mark.parametrize(("settings", "space", "method"), REPEATED, ids=label)
def test_it_leaves_the_trial_bit_for_bit(settings: dict[str, Any], space: str, method: str) -> None:
    trial, first, untouched_elsewhere = looked(settings, space, method)
    untouched = searched(space, method)
    # The whole state, draws and batches included.
    assert differences(trial, untouched) == []
    assert untouched_elsewhere
    assert plain(trial.select(settings)) == plain(first)
    bilevel = trial._bilevel
    assert all(leaf.grad is None for leaf in (*bilevel.weights, *bilevel.alphas.values()))
    assert bilevel.weight_lr(0) == untouched._bilevel.weight_lr(0)
    op_weights = (t._bilevel.relaxed(t._bilevel.point(0)) for t in (trial, untouched))
    assert torch.equal(*(torch.cat([m.flatten() for m in q.values()]) for q in op_weights))


@lru_cache
def straight() -> SearchTrial:
    """A search that nobody has looked at, to compare with alone."""
    trial = small_search(batch_size=24)
    trial.run()
    return trial


@pytest.mark.parametrize("settings", SETTINGS, ids=label)
def test_a_search_goes_on_after_a_look_as_if_there_had_been_none(settings: dict[str, Any]) -> None:
    looked_at = small_search(batch_size=24)
    for _ in range(2):  # at the start and in the middle
        looked_at.select(settings)
        looked_at.run_epoch()
    looked_at.run()
    assert differences(straight(), looked_at) == []


@pytest.mark.parametrize("settings", SETTINGS, ids=label)
def test_a_resumed_search_equals_the_uninterrupted_one(settings: dict[str, Any]) -> None:
    method = {"name": "darts", "select": settings}
    whole = small_search(method, batch_size=24)
    states = [whole.state_dict()]
    while not whole.finished:
        whole.run_epoch()
        states.append(whole.state_dict())
    # In the middle, and after the rule has chosen: before its end every search is that of darts,
    # which is resumed at every epoch in test_methods.py.
    for epochs_done in (1, 3):
        resumed = small_search(method, batch_size=24)
        resumed.load_state_dict(states[epochs_done])
        assert resumed.epoch == epochs_done
        resumed.run()
        assert differences(whole, resumed) == []


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=str)
def test_every_setting_changes_what_is_found(name: str, field: str) -> None:
    tried = 0
    for base, changed in changes(name, field):
        tried += 1
        if plain(looked(base)[1]) != plain(looked(changed)[1]):
            return
    pytest.fail(f"{name}.{field} has no effect in {tried} comparisons")
