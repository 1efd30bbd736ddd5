"""From sweep words to blocks and configurations: what is enumerated, drawn, suggested and named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from orchestrator import factors
from orchestrator.config import load_experiment
from orchestrator.experiment import Experiment
from spaces.core.errors import PluginSettingsError
from trainables.settings import SearchSettings, field_names

GOOD = """\
name: study
space: {name: nasbench201, channels: 4, cells_per_stage: 1}
dataset: digits
method: darts
"""
ALTERNATIVES = (
    "method={choice: [darts, {name: sdarts_rs, radius_max: {uniform: [0.1, 1]}}, "
    "{name: sdarts_rs, radius_start: 0, radius_max: {choice: [0.1, 0.2]}}]}"
)

LATER = ("engine", "checkpointing")
WRITTEN = tuple(name for name in field_names(SearchSettings) if name not in LATER)
"""Settings of a search that are always written: others came later, and only where given."""


@pytest.fixture
def experiment(tmp_path: Path) -> Any:
    path = tmp_path / "a.yaml"
    path.write_text(GOOD)
    return lambda *overrides: load_experiment(path, overrides)


def labels(of: Experiment) -> list[str]:
    return list(factors.label(factors.configurations(of)).values())


def test_without_sweep_words_there_is_one_configuration(experiment: Any) -> None:
    found = experiment()
    (block,) = factors.blocks(found)
    (configuration,) = factors.configurations(found)
    assert block.dimensions == ()
    assert block.label == "darts"
    assert tuple(configuration.settings) == ("method", "space", "search", "dataset", "selection")
    assert tuple(configuration.settings["search"]) == WRITTEN
    assert configuration.params == {}
    assert len(configuration.config_id) == 10
    assert factors.count(found) == 1


def test_grids_multiply_and_the_last_changes_fastest(experiment: Any) -> None:
    found = experiment(
        "method={grid: [darts, sdarts_rs]}",
        "space.channels={grid: [4, 8]}",
        "search.epochs={grid: [2, 1]}",
    )
    values = [
        (
            configuration.settings["method"]["name"],
            configuration.settings["space"]["channels"],
            configuration.settings["search"]["epochs"],
        )
        for configuration in factors.configurations(found)
    ]
    methods = ("darts", "sdarts_rs")
    assert values == [(m, c, e) for m in methods for c in (4, 8) for e in (2, 1)]
    assert [block.index for block in factors.blocks(found)] == list(range(8))
    assert factors.count(found) == 8


def test_a_grid_inside_a_method_belongs_to_that_method(experiment: Any) -> None:
    found = experiment("method={grid: [darts, {name: sdarts_rs, radius_max: {grid: [0.1, 0.3]}}]}")
    methods = [c.settings["method"] for c in factors.configurations(found)]
    assert [m["name"] for m in methods] == ["darts", "sdarts_rs", "sdarts_rs"]
    assert [m.get("radius_max") for m in methods] == [None, 0.1, 0.3]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["method={grid: [{name: darts}, {name: darts, alpha_gradient: unrolled}, sdarts_rs]}"],
            ["darts", "darts alpha_gradient=unrolled", "sdarts_rs"],
        ),
        # A number is said even where it is the default; a word goes without saying.
        (
            ["method={grid: [{name: sdarts_rs, radius_max: {grid: [0.1, 0.3]}}]}"],
            ["sdarts_rs radius_max=0.1", "sdarts_rs radius_max=0.3"],
        ),
        (
            ["space={grid: [darts, nasbench201]}"],
            ["darts space=darts", "darts space=nasbench201"],
        ),
        (
            ["space.channels={grid: [4, 8]}", "search.weight_lr={grid: [0.1, 0.025]}"],
            [
                "darts channels=4 weight_lr=0.1",
                "darts channels=4 weight_lr=0.025",
                "darts channels=8 weight_lr=0.1",
                "darts channels=8 weight_lr=0.025",
            ],
        ),
        # More digits only where different values would read alike.
        (
            ["search.weight_lr={grid: [0.123456, 0.123457]}"],
            ["darts weight_lr=0.123456", "darts weight_lr=0.123457"],
        ),
        (
            ["search.nesterov={grid: [false, true]}"],
            ["darts", "darts nesterov=True"],
        ),
    ],
)
def test_labels_say_what_differs(
    experiment: Any, overrides: list[str], expected: list[str]
) -> None:
    assert labels(experiment(*overrides)) == expected


def test_blocks_are_labelled_by_their_fixed_settings(experiment: Any) -> None:
    found = experiment(
        "method={grid: [darts, sdarts_rs]}",
        "search.weight_lr={uniform: [0.01, 0.1]}",
        "tune.num_samples=2",
    )
    assert [block.label for block in factors.blocks(found)] == ["darts", "sdarts_rs"]
    assert "weight_lr" not in factors.blocks(found)[0].fixed["search"]
    assert factors.blocks(found)[1].fixed["method"]["name"] == "sdarts_rs"


def test_num_samples_counts_configurations_of_each_block_that_draws(experiment: Any) -> None:
    found = experiment(
        "method={grid: [darts, {name: sdarts_rs, radius_max: {uniform: [0.1, 1]}}]}",
        "tune.num_samples=5",
    )
    assert [c.block for c in factors.configurations(found)] == [0, 1, 1, 1, 1, 1]
    assert factors.count(found) == 6
    assert [factors.size(block) for block in factors.blocks(found)] == [1, None]


def test_draws_stay_in_their_ranges_and_fill_them(experiment: Any) -> None:
    found = experiment(
        "search.weight_lr={uniform: [0.01, 0.1]}",
        "search.alpha_lr={loguniform: [1.0e-5, 1.0e-1]}",
        "search.epochs={randint: [1, 4]}",
        "search.batch_size={choice: [16, 32]}",
        "tune.num_samples=400",
    )
    drawn = [c.settings["search"] for c in factors.configurations(found)]
    weight_lrs = np.array([search["weight_lr"] for search in drawn])
    log_alpha_lrs = np.log10([search["alpha_lr"] for search in drawn])
    assert {search["epochs"] for search in drawn} == {1, 2, 3}  # 4 is excluded
    assert {search["batch_size"] for search in drawn} == {16, 32}
    for values, low, high in ((weight_lrs, 0.01, 0.1), (log_alpha_lrs, -5.0, -1.0)):
        assert low <= values.min() < low + 0.03 * (high - low)
        assert high - 0.03 * (high - low) < values.max() <= high
        # A uniform mean over 400 draws has a deviation of width / sqrt(12 * 400), below 1.5 %.
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.06 * (high - low))
    assert all(type(search["epochs"]) is int for search in drawn)


def test_blocks_are_compared_in_pairs(experiment: Any) -> None:
    found = experiment(
        "method={grid: [darts, {name: sdarts_rs, radius_max: {uniform: [0.1, 1]}}]}",
        "search.weight_lr={uniform: [0.01, 0.1]}",
        "tune.num_samples=6",
    )
    drawn: dict[int, list[float]] = {0: [], 1: []}
    for configuration in factors.configurations(found):
        drawn[configuration.block].append(configuration.params["search.weight_lr"])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 6


def test_draws_follow_the_searchers_seed(experiment: Any) -> None:
    drawn = ["search.weight_lr={uniform: [0.01, 0.1]}", "tune.num_samples=3"]
    first, again, other = (
        [c.config_id for c in factors.configurations(experiment(*drawn, *extra))]
        for extra in ([], [], ["tune.searcher={name: random, seed: 1}"])
    )
    assert first == again
    assert not set(first) & set(other)


def test_more_samples_begin_with_the_same_ones(experiment: Any) -> None:
    drawn = "search.weight_lr={uniform: [0.01, 0.1]}"
    few = factors.configurations(experiment(drawn, "tune.num_samples=2"))
    more = factors.configurations(experiment(drawn, "tune.num_samples=5"))
    assert more[:2] == few


def test_nothing_is_drawn_twice(experiment: Any) -> None:
    found = experiment("search.epochs={choice: [1, 2, 3, 4]}", "tune.num_samples=4")
    epochs = sorted(c.settings["search"]["epochs"] for c in factors.configurations(found))
    assert epochs == [1, 2, 3, 4]


def test_a_choice_of_methods_draws_only_what_belongs_to_the_method(experiment: Any) -> None:
    found = experiment(ALTERNATIVES, "tune.num_samples=40")
    (block,) = factors.blocks(found)
    assert [d.name for d in block.dimensions] == [
        "method",
        "method.sdarts_rs-2.radius_max",
        "method.sdarts_rs-3.radius_max",
    ]
    seen = set()
    rng = np.random.default_rng(0)
    for _ in range(40):
        configuration = factors.sample(block, rng)
        method, params = configuration.settings["method"], configuration.params
        seen.add(params["method"])
        if method["name"] == "darts":
            assert set(params) == {"method"}
        elif method["radius_start"] == 0:
            assert set(params) == {"method", "method.sdarts_rs-3.radius_max"}
            assert method["radius_max"] in (0.1, 0.2)
        else:
            assert method["radius_max"] == params["method.sdarts_rs-2.radius_max"]
    assert seen == {"darts", "sdarts_rs radius_start=0.03", "sdarts_rs radius_start=0"}


def test_the_size_of_a_conditional_space(experiment: Any) -> None:
    # darts alone, sdarts_rs with 2 radii, each with 3 epochs: (1 + 2) * 3 = 9.
    found = experiment(
        "method={choice: [darts, {name: sdarts_rs, radius_max: {choice: [0.1, 0.2]}}]}",
        "search.epochs={randint: [1, 4]}",
        "tune.num_samples=9",
    )
    assert factors.size(factors.blocks(found)[0]) == 9
    assert len(factors.configurations(found)) == 9


def test_a_configuration_is_its_settings_not_its_way_there(experiment: Any) -> None:
    (fixed,) = factors.configurations(experiment("search.epochs=3"))
    (first, second) = factors.configurations(experiment("search.epochs={grid: [3, 4]}"))
    assert fixed.config_id == first.config_id != second.config_id
    (other,) = factors.configurations(experiment("search.epochs=3", "space.channels=8"))
    assert other.config_id != fixed.config_id


def test_values_that_do_not_go_together_are_refused(experiment: Any) -> None:
    found = experiment("search.weight_lr={uniform: [0.01, 0.1]}", "tune.num_samples=2")
    (block,) = factors.blocks(found)
    with pytest.raises(PluginSettingsError, match=r"search\.weight_lr must be > 0"):
        factors.configuration(block, {"search.weight_lr": -1.0})


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "search.weight_lr={uniform: [0.01, 0.1]}",
            "search.alpha_lr={loguniform: [1.0e-5, 1.0e-1]}",
            "search.epochs={randint: [1, 4]}",
            "search.augment={choice: [auto, none]}",
        ],
        [ALTERNATIVES],
    ],
)
def test_optuna_suggests_what_its_distributions_say(experiment: Any, overrides: list[str]) -> None:
    found = experiment(*overrides, "tune.searcher=optuna", "tune.num_samples=20")
    (block,) = factors.blocks(found)
    distributions = factors.distributions(block)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    rebuilt = optuna.create_study()
    for _ in range(20):
        trial = study.ask()
        configuration = factors.suggest(block, trial)
        assert trial.params == configuration.params
        assert trial.distributions == {name: distributions[name] for name in trial.params}
        # The ledger holds the params alone; the configuration comes back from them.
        assert factors.configuration(block, configuration.params) == configuration
        rebuilt.add_trial(
            optuna.trial.create_trial(
                params=configuration.params,
                distributions={name: distributions[name] for name in configuration.params},
                value=0.0,
            )
        )
        study.tell(trial, 0.0)
    assert len(rebuilt.trials) == 20


def test_optuna_excludes_the_high_end_of_randint(experiment: Any) -> None:
    found = experiment("search.epochs={randint: [1, 4]}", "tune.num_samples=3")
    (block,) = factors.blocks(found)
    assert factors.distributions(block) == {
        "search.epochs": optuna.distributions.IntDistribution(1, 3)
    }


def test_loguniform_never_leaves_its_range_by_rounding(experiment: Any) -> None:
    # exp(log(5)) is the float below 5.
    assert math.exp(math.log(5.0)) < 5.0
    high = math.nextafter(5.0, 6.0)
    found = experiment(
        f"search.weight_lr={{loguniform: [5.0, {high!r}]}}",
        "tune.searcher=random",
        "tune.num_samples=1",
    )
    (block,) = factors.blocks(found)
    rng = np.random.default_rng(0)
    drawn = {factors.sample(block, rng).params["search.weight_lr"] for _ in range(20)}
    assert drawn <= {5.0, high}
