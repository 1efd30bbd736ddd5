"""Blocks of seeds as Ray Trainables: lock-step, replay, divergence, classes by name."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spaces.core import plugins
from spaces.core.errors import UnknownPluginError
from trainables import ray_trial
from trainables.ray_trial import BlockTrainable, SearchTrainable
from trainables.search import TIME_FIELDS, SearchTrial
from trainables.worst import worst_value

TINY: dict[str, Any] = {
    "space": {"name": "nasbench201", "channels": 2, "cells_per_stage": 1},
    "dataset": "digits",
    "method": "darts",
    "search": {"epochs": 2, "batch_size": 256},
    "device": "cpu",
}


class CountingTrial:
    """A trial whose epoch e of seed s has val_accuracy s / 10 + e / 100; seed 9 diverges at 2."""

    def __init__(self, seed: int, epochs: int = 3) -> None:
        self.seed, self.epochs = seed, epochs
        self.curve: list[dict[str, Any]] = []
        self.epoch = 0
        self.diverged = False

    @property
    def finished(self) -> bool:
        return self.diverged or self.epoch >= self.epochs

    def run_epoch(self) -> dict[str, Any]:
        number = self.epoch + 1
        self.diverged = self.seed == 9 and number == 2
        self.epoch += not self.diverged
        accuracy = math.nan if self.diverged else self.seed / 10 + number / 100
        entry = {"epoch": number, "val_accuracy": accuracy, "val_loss": 1.0, "genotype": {"a": 1}}
        self.curve.append(entry)
        return entry

    def state_dict(self) -> dict[str, Any]:
        return {"curve": list(self.curve), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, self.epoch = list(state["curve"]), int(state["epoch"])


class CountingBlock(BlockTrainable):
    """A block of `CountingTrial`."""

    def build(self, seed: int) -> CountingTrial:
        return CountingTrial(seed)


def test_a_block_runs_its_seeds_in_lock_step_and_reports_their_mean() -> None:
    block = CountingBlock({"seeds": [1, 3]})
    first = block.step()
    assert first["val_accuracy"] == pytest.approx((0.11 + 0.31) / 2)
    assert {trial.epoch for trial in block.trials.values()} == {1}
    assert first["seeds"]["1"] == {"epoch": 1, "val_accuracy": 0.11, "val_loss": 1.0}
    assert not first["done"]
    block.step()
    assert block.step()["done"]


def test_a_diverged_seed_counts_as_the_finite_worst_and_its_sibling_goes_on() -> None:
    block = CountingBlock({"seeds": [1, 9]})
    block.step()
    second = block.step()
    assert second["val_accuracy"] == pytest.approx((0.12 + worst_value("val_accuracy")) / 2)
    assert not second["done"]
    third = block.step()
    assert third["val_accuracy"] == pytest.approx((0.13 + 0.0) / 2)
    assert third["val_loss"] == pytest.approx((1.0 + worst_value("val_loss")) / 2)
    assert third["done"]
    assert block.trials[9].epoch == 1


def test_a_checkpoint_behind_the_trials_reports_their_epochs_in_order(tmp_path: Path) -> None:
    block = CountingBlock({"seeds": [1, 3]})
    block.step()
    block.save_checkpoint(str(tmp_path))
    again = CountingBlock({"seeds": [1, 3]})
    again.load_checkpoint(str(tmp_path))
    assert again.reported == 1
    assert again.step()["epoch"] == 2
    # A trial that is ahead of what was reported is reported epoch by epoch, not run again.
    ahead = CountingBlock({"seeds": [1]})
    for _ in range(3):
        ahead.trials[1].run_epoch()
    values = [ahead.step()["val_accuracy"] for _ in range(3)]
    assert values == pytest.approx([0.11, 0.12, 0.13])
    assert ahead.trials[1].epoch == 3


def test_reset_config_starts_anew() -> None:
    block = CountingBlock({"seeds": [1]})
    block.step()
    assert block.reset_config({"seeds": [4]})
    assert list(block.trials) == [4]
    assert block.step()["epoch"] == 1


def test_a_single_seed_needs_no_list() -> None:
    assert list(CountingBlock({"seed": 7}).trials) == [7]


def test_every_method_is_a_class_of_its_own_name() -> None:
    for method in plugins.available("methods"):
        name = ray_trial.class_name(method)
        assert method == getattr(ray_trial, name).METHOD
        assert name in dir(ray_trial)
        assert issubclass(getattr(ray_trial, name), SearchTrainable)
    with pytest.raises(AttributeError, match="Nonsense"):
        ray_trial.Nonsense  # noqa: B018
    with pytest.raises(UnknownPluginError, match="nonsense"):
        ray_trial.trainable_class("nonsense")


def test_a_class_pickles_by_name_into_a_fresh_process() -> None:
    data = pickle.dumps(ray_trial.SdartsRs)
    code = f"import pickle; print(pickle.loads({data!r}).METHOD)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "sdarts_rs"


def test_a_block_equals_each_of_its_seeds_alone() -> None:
    block = ray_trial.Darts({**TINY, "seeds": [0, 5]})
    for _ in range(2):
        block.step()
    for seed in (0, 5):
        alone = SearchTrial(
            **{key: TINY[key] for key in ("space", "dataset", "method", "search")}, seed=seed
        )
        alone.run()
        assert timeless(block.trials[seed].curve) == timeless(alone.curve)
    assert timeless(block.trials[0].curve) != timeless(block.trials[5].curve)


def test_a_trainable_without_its_method_says_so() -> None:
    with pytest.raises(Exception, match="method is missing"):
        SearchTrainable({key: value for key, value in TINY.items() if key != "method"})


def timeless(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a curve without the fields that measure the machine."""
    return [{k: v for k, v in entry.items() if k not in TIME_FIELDS} for entry in curve]
