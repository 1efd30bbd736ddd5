"""What every method plug-in must keep, found by its file: no list to edit."""

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
from torch import Tensor

from spaces.core import plugins
from tests.trainables.searches import (
    ODD_SPACES,
    SPACES,
    differences,
    flat,
    small_search,
    untimed,
)
from trainables.compose import build_method
from trainables.method import Method, SearchPoint

pytestmark = pytest.mark.usefixtures("tiny_plugins")
METHODS = plugins.available("methods")


EAGER_STOP = {"name": "eigenvalue", "window": 1, "delta": 1, "every": 1, "start": 0, "factor": 1e-9}
SMALL: dict[str, dict[str, Any]] = {
    "p_darts": {
        "added_cells": [0, 0],
        "operations": [3],
        "skip_dropout": [0.3, 0.3],
        "alpha_start": 0,
    },
    "random": {"candidates": 12, "finalists": 2},
    "sdarts_adv": {"steps": 2},
}
"""Settings that make a method affordable here, of a search of three epochs."""
"""Methods that weigh, thin out or sample edges: refused in a space that has none."""


def variants(name: str, kind: str = "methods") -> Iterator[dict[str, Any]]:
    """The defaults, then each value of each choice: the settings under which others matter."""
    config = plugins.describe(kind, name).own
    hints = typing.get_type_hints(config)
    start = {"name": name, **SMALL.get(name, {})}
    yield start
    for field in dataclasses.fields(config):
        for value in typing.get_args(hints[field.name]):
            if value != field.default and isinstance(value, str):
                yield start | {field.name: value}


GRADIENTS = [
    {"name": "darts", "alpha_gradient": variant}
    for name in plugins.available("alpha_gradients")
    for variant in variants(name, "alpha_gradients")
]
VARIANTS = [variant for name in METHODS for variant in variants(name)] + GRADIENTS
PLAINEST = [next(variants(name)) for name in METHODS]
FIELDS = [
    (name, field.name)
    for name in METHODS
    for field in dataclasses.fields(plugins.describe("methods", name).config)
]


def label(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(label(inner) for inner in value.values())
    return str(value)


def method_of(settings: dict[str, Any]) -> Method:
    name, config = plugins.make_config("methods", settings)
    return build_method(name, config, epochs=100)


def problem_point(seed: int) -> tuple[dict[str, Tensor], SearchPoint]:
    """Alphas of two cell types and a point with the loss <C, q> of op weights q."""
    source = torch.Generator().manual_seed(3)
    space = plugins.load("spaces", "darts").build(
        plugins.make_config("spaces", "darts")[1], "darts"
    )
    alphas = {
        name: torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()
        for name, shape in space.alpha_shapes().items()
    }
    costs = {n: torch.randn(a.shape, generator=source, dtype=a.dtype) for n, a in alphas.items()}

    def train_loss(op_weights: dict[str, Tensor], _norm: str) -> Tensor:
        return torch.stack([(costs[n] * q).sum() for n, q in op_weights.items()]).sum()

    generator = torch.Generator().manual_seed(seed)
    return alphas, SearchPoint(2, 5, generator, train_loss, space=space)


def assert_shaped(op_weights: dict[str, Tensor], alphas: dict[str, Tensor]) -> None:
    assert op_weights.keys() == alphas.keys()
    for name, matrix in op_weights.items():
        assert matrix.shape == alphas[name].shape
        assert matrix.dtype == alphas[name].dtype
        assert bool(matrix.isfinite().all())


def assert_weights(op_weights: dict[str, Tensor], alphas: dict[str, Tensor]) -> None:
    assert_shaped(op_weights, alphas)
    for matrix in op_weights.values():
        # A straight-through sample is 0 or 1 but for rounding.
        assert (matrix > -1e-12).all()
        assert (matrix < 1 + 1e-12).all()


def test_there_are_methods() -> None:
    assert {"darts", "sdarts_rs", "sdarts_adv", "ms_darts", "amended_darts"} <= set(METHODS)
    assert {"first_order", "unrolled", "amended"} <= set(plugins.available("alpha_gradients"))


@pytest.mark.parametrize("name", METHODS)
def test_it_is_described(name: str) -> None:
    info = plugins.describe("methods", name)
    assert info.summary.endswith(".")
    assert info.source
    assert info.results_version >= 1
    assert isinstance(plugins.load("methods", name), types.ModuleType)


@pytest.mark.parametrize("settings", VARIANTS, ids=label)
def test_relax_gives_differentiable_op_weights(settings: dict[str, Any]) -> None:
    method = method_of(settings)
    alphas, at = problem_point(0)
    before = {name: alpha.detach().clone() for name, alpha in alphas.items()}
    op_weights = method.relax(alphas, at)
    assert_weights(op_weights, alphas)
    if method.alphas == "trained":
        costs = [torch.arange(q.numel()).view(q.shape) * q for q in op_weights.values()]
        total = torch.stack([cost.sum() for cost in costs]).sum()
        gradients = torch.autograd.grad(total, list(alphas.values()))
        assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert all(torch.equal(alphas[name].detach(), before[name]) for name in alphas)
    again = method.relax(alphas, problem_point(0)[1])
    assert all(torch.equal(again[name], op_weights[name]) for name in alphas)


@pytest.mark.parametrize("settings", VARIANTS, ids=label)
def test_the_mean_op_weights_are_no_draw(settings: dict[str, Any]) -> None:
    method = method_of(settings)
    alphas, at = problem_point(0)
    before = at.generator.get_state()
    mean = (method.mean or method.relax)(alphas, at)
    assert_weights({name: matrix.detach() for name, matrix in mean.items()}, alphas)
    assert torch.equal(at.generator.get_state(), before)


@pytest.mark.parametrize("settings", VARIANTS, ids=label)
def test_perturb_depends_on_the_generator_alone_and_changes_no_argument(
    settings: dict[str, Any],
) -> None:
    method = method_of(settings)
    if method.perturb is None:
        return
    alphas, at = problem_point(0)
    clean = {name: torch.softmax(alpha.detach(), -1) for name, alpha in alphas.items()}
    before = {name: matrix.clone() for name, matrix in clean.items()}
    torch.manual_seed(1)
    found = method.perturb(clean, at)
    torch.manual_seed(2)
    again = method.perturb(clean, problem_point(0)[1])
    assert_shaped(found, alphas)
    for name in clean:
        assert torch.equal(clean[name], before[name])
        assert torch.equal(found[name], again[name])
        assert not torch.equal(found[name], clean[name])


@pytest.mark.parametrize("settings", VARIANTS, ids=label)
def test_a_resumed_search_equals_the_uninterrupted_one(settings: dict[str, Any]) -> None:
    straight = small_search(settings, batch_size=24)
    states = []
    while not straight.finished:
        states.append(straight.state_dict())
        straight.run_epoch()
    assert len(states) == 3
    for epochs_done, state in enumerate(states):
        resumed = small_search(settings, batch_size=24)
        resumed.load_state_dict(state)
        assert resumed.epoch == epochs_done
        resumed.run()
        assert differences(straight, resumed) == []


@pytest.mark.parametrize(
    ("settings", "space"),
    # What a setting chooses is the same in every space: the defaults alone go through all.
    [
        (settings, space)
        for settings in VARIANTS
        for space in [*SPACES, *ODD_SPACES]
        if space == "nasbench201" or settings in PLAINEST
    ],
    ids=label,
)
def test_it_searches_every_space_and_log_is_finite(settings: dict[str, Any], space: str) -> None:
    trial = small_search(settings, space=space, epochs=2, batch_size=24)
    trial.run()
    entry = trial.curve[-1]
    assert not trial.diverged
    trial.space.check(trial.genotype)
    assert all(isinstance(v, float) for v in trial.method.log(trial._bilevel.point(0)).values())
    assert entry["genotype_hash"] == trial.genotype.hash


def test_all_methods_see_the_same_split_initialisation_and_batches() -> None:
    trials = [small_search(settings) for settings in VARIANTS]
    first = trials[0]
    for trial in trials[1:]:
        start, other = first.state_dict()["bilevel"], trial.state_dict()["bilevel"]
        # Thinner edges have weights of other shapes; what is there besides is drawn after the rest.
        thinner = trial.method.structure.partial_channels > 1
        for part in ("alphas",) if thinner else ("supernet", "alphas"):
            for path, leaf in flat(start[part]).items():
                assert torch.equal(leaf, flat(other[part])[path])
        ours, theirs = first._data.validation(), trial._data.validation()
        for (images, labels), (images_2, labels_2) in zip(ours, theirs, strict=True):
            assert torch.equal(images, images_2)
            assert torch.equal(labels, labels_2)
    # The draws of a method must not move those of the batches.
    states = []
    for trial in trials:
        trial.run_epoch()
        states.append(flat(trial.state_dict()["data"]))
    for state in states[1:]:
        for path, leaf in states[0].items():
            other = state[path]
            same = torch.equal(leaf, other) if isinstance(leaf, Tensor) else leaf == other
            assert same, path


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=str)
def test_every_setting_changes_the_search(name: str, field: str) -> None:
    tried = refused = 0
    for base, changed in changes(name, field):
        try:
            found = outcome(changed)
        except plugins.PluginSettingsError:
            refused += 1
            continue
        tried += 1
        if outcome(base) != found:
            return
    if refused > 0 and plugins.is_of_every_method(field):
        return  # where it could have no effect it is refused
    pytest.fail(f"{name}.{field} has no effect in {tried} comparisons")


def changes(name: str, field: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of valid settings that differ in one field."""
    hint = typing.get_type_hints(plugins.describe("methods", name).config)[field]
    for base in variants(name):
        if field == "fixed_alphas":
            # With them only a rule that looks at the supernet has something to choose by.
            base = base | {"select": {"name": "perturbation", "tune_epochs": 0}}
        value = getattr(plugins.make_config("methods", base)[1], field)
        literals = [v for a in (hint, *typing.get_args(hint)) for v in typing.get_args(a)]
        others: tuple[Any, ...]
        if field == "early_stop":
            others = (EAGER_STOP,)
        elif isinstance(hint, plugins.Slot):
            others = hint.choices()
        elif any(isinstance(v, str) for v in literals):
            others = tuple(v for v in literals if isinstance(v, str) and v != value)
        elif value is None and bool in typing.get_args(hint):
            others = (True,)
        elif value is None:
            others = (0.05,) if float in typing.get_args(hint) else (2,)
        elif isinstance(value, bool):
            others = (not value,)
        elif isinstance(value, tuple):
            others = tuple([*value[:-1], value[-1] + step] for step in (1, 0.2))
        elif isinstance(value, int):
            others = (value + 1, 1, 0)
        else:
            others = (value * 1.5, value / 2) if value else (0.1,)
        for other in others:
            changed = base | {field: other}
            if field == "share_weights":
                changed = {"name": name, field: other}  # without it the rest has no effect
            try:
                plugins.make_config("methods", changed)
            except plugins.PluginSettingsError:
                continue
            yield base, changed


def outcome(settings: dict[str, Any]) -> list[Any]:
    """Losses after some epochs, the alphas and the result: what a setting must be able to move."""
    return _outcome(json.dumps(settings))


@lru_cache
def _outcome(settings: str) -> list[Any]:
    method = json.loads(settings)
    # One step an epoch, or two where a step can differ from the next.
    size = {"idarts": 12, "random": 8}.get(method["name"], 24)
    epochs = 4 if method["name"] == "p_darts" else 3
    trial = small_search(method, epochs=epochs, batch_size=size, alpha_lr=0.5)
    trial.run()
    losses = [[entry["train_loss"], entry["val_loss"]] for entry in untimed(trial)]
    alphas = [alpha.flatten().tolist() for alpha in trial.alphas.values()]
    return [losses, alphas, trial.genotype.hash, trial.genotype_epoch]
