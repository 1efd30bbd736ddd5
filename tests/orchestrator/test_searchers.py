"""Searchers: order, Optuna by ask and tell, what is told when, and the rebuild from the ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from orchestrator import config, factors
from orchestrator.searchers import Known, ListSearcher, OptunaSearcher
from orchestrator.units import Unit

YAML = """
name: s
space: nasbench201
dataset: digits
seeds: [0, 1]
method: {grid: [{name: darts}, {name: sdarts_rs, radius_max: {uniform: [0.1, 0.5]}}]}
search: {epochs: 4, weight_lr: {loguniform: [0.01, 0.1]}}
retrain: null
tune: {num_samples: 3, searcher: optuna}
"""


def unit_of(configuration: factors.Configuration) -> Unit:
    return Unit(
        stage="search",
        settings=configuration.settings,
        rows={0: "a" * 16, 1: "b" * 16},
        config_id=configuration.config_id,
        block=configuration.block,
        params=configuration.params,
        label="x",
        epochs=4,
    )


def plain(unit: Unit) -> dict[str, Any]:
    return {"id": unit.config_id, "block": unit.block, "params": dict(unit.params)}


@pytest.fixture
def blocks(tmp_path: Path) -> list[factors.Block]:
    file = tmp_path / "s.yaml"
    file.write_text(YAML)
    return factors.blocks(config.load_experiment(file))


def searcher(blocks: list[factors.Block], known: tuple[Known, ...] = ()) -> OptunaSearcher:
    return OptunaSearcher(
        blocks,
        make_unit=unit_of,
        config=plain,
        num_samples=3,
        metric="val_accuracy",
        mode="max",
        seed=0,
        known=known,
    )


def result(value: float, epoch: int = 4, **more: Any) -> dict[str, Any]:
    return {"val_accuracy": value, "training_iteration": epoch, **more}


def test_a_list_is_run_in_order_and_ends(blocks: list[factors.Block]) -> None:
    import numpy as np

    units = [unit_of(factors.sample(block, np.random.default_rng(0))) for block in blocks]
    of_list = ListSearcher(units, plain)
    suggested = [of_list.suggest(str(index)) for index in range(3)]
    assert suggested[:2] == [plain(unit) for unit in units]
    assert suggested[2] == Searcher.FINISHED


def test_every_block_gets_its_samples_in_turn_and_only_its_own_parameters(
    blocks: list[factors.Block],
) -> None:
    optuna_searcher = searcher(blocks)
    found = []
    while (suggested := optuna_searcher.suggest(f"t{len(found)}")) != Searcher.FINISHED:
        found.append(suggested)
        optuna_searcher.on_trial_complete(f"t{len(found) - 1}", result(0.5))
    assert [item["block"] for item in found] == [0, 1, 0, 1, 0, 1]
    for item in found:
        expected = {"search.weight_lr"} | ({"method.radius_max"} if item["block"] else set())
        assert set(item["params"]) == expected


def test_a_stopped_trial_is_told_pruned_and_a_bad_value_as_the_finite_worst(
    blocks: list[factors.Block],
) -> None:
    optuna_searcher = searcher(blocks[:1])
    for name in ("stopped", "bad", "good"):
        optuna_searcher.suggest(name)
    optuna_searcher.on_trial_complete("stopped", result(0.9, epoch=1, done=True))
    optuna_searcher.on_trial_complete("bad", result(math.nan))
    optuna_searcher.on_trial_complete("good", result(0.7))
    states = optuna.trial.TrialState
    trials = optuna_searcher.studies[0].trials
    assert [trial.state for trial in trials] == [states.PRUNED, states.COMPLETE, states.COMPLETE]
    assert trials[0].intermediate_values == {1: 0.9}
    assert [trials[1].value, trials[2].value] == [0.0, 0.7]
    assert optuna_searcher.studies[0].best_value == 0.7


def test_a_block_that_ended_early_by_itself_is_complete(blocks: list[factors.Block]) -> None:
    optuna_searcher = searcher(blocks[:1])
    optuna_searcher.suggest("diverged")
    optuna_searcher.on_trial_complete("diverged", result(0.0, epoch=2, ended=True))
    (trial,) = optuna_searcher.studies[0].trials
    assert (trial.state, trial.value) == (optuna.trial.TrialState.COMPLETE, 0.0)


def test_an_error_is_told_as_failed(blocks: list[factors.Block]) -> None:
    optuna_searcher = searcher(blocks[:1])
    optuna_searcher.suggest("broken")
    optuna_searcher.on_trial_complete("broken", error=True)
    (trial,) = optuna_searcher.studies[0].trials
    assert trial.state == optuna.trial.TrialState.FAIL


def test_the_ledger_rebuilds_the_study_and_unfinished_ones_come_first(
    blocks: list[factors.Block],
) -> None:
    first = searcher(blocks[:1])
    done, open_ = (first.suggest(name) for name in ("done", "open"))
    known = (
        Known(0, done["params"], done["id"], 0.8),
        Known(0, open_["params"], open_["id"], None),
    )
    second = searcher(blocks[:1], known)
    (trial,) = [t for t in second.studies[0].trials if t.state.is_finished()]
    assert (trial.value, trial.params) == (0.8, done["params"])
    assert second.suggest("again") == open_
    fresh = second.suggest("fresh")
    assert fresh["id"] not in {done["id"], open_["id"]}
    assert second.suggest("more") == Searcher.FINISHED


def test_a_discrete_space_that_is_used_up_ends_without_repeats(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    text = YAML.replace("{loguniform: [0.01, 0.1]}", "{choice: [0.01, 0.1]}")
    text = text.replace("{uniform: [0.1, 0.5]}", "0.3").replace("num_samples: 3", "num_samples: 2")
    file.write_text(text)
    block = factors.blocks(config.load_experiment(file))[0]
    small = OptunaSearcher(
        [block],
        make_unit=unit_of,
        config=plain,
        num_samples=50,
        metric="val_accuracy",
        mode="max",
        seed=0,
    )
    first, second = small.suggest("a"), small.suggest("b")
    assert first["id"] != second["id"]
    small.on_trial_complete("a", result(0.1))
    small.on_trial_complete("b", result(0.2))
    assert small.suggest("c") == Searcher.FINISHED


def test_what_ray_had_is_running_or_told_as_it_ended(blocks: list[factors.Block]) -> None:
    states = optuna.trial.TrialState
    first = searcher(blocks[:1])
    stopped, running = (first.suggest(name) for name in ("stopped", "running"))
    known = (
        Known(0, running["params"], running["id"], None, trial_id="of-ray"),
        Known(0, stopped["params"], stopped["id"], 0.4, stopped_at=2),
    )
    second = searcher(blocks[:1], known)
    assert {trial_id: plain(unit) for trial_id, unit in second.running().items()} == {
        "of-ray": running
    }
    fresh = second.suggest("fresh")
    assert fresh["id"] not in {stopped["id"], running["id"]}
    assert second.suggest("more") == Searcher.FINISHED  # two of the three were there
    second.on_trial_complete("of-ray", result(0.7))
    assert set(second.running()) == {"fresh"}
    pruned, complete, _ = second.studies[0].trials
    assert (pruned.state, pruned.params) == (states.PRUNED, stopped["params"])
    assert (pruned.value, pruned.intermediate_values) == (0.4, {2: 0.4})
    assert (complete.state, complete.value) == (states.COMPLETE, 0.7)
    assert complete.params == running["params"]
