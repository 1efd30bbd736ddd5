"""Retraining as a genotype was searched: one setting, no copied numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestrator import planning
from orchestrator.config import dump, load_experiment, load_resolved
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment
from trainables.settings import RetrainSettings, SearchSettings, consistent_with

YAML = """
name: study
space: {name: nasbench201, channels: 4, cells_per_stage: 2}
dataset: digits
method: darts
search: {epochs: 7, batch_size: 24, weight_lr: 0.05, cutout: 2}
retrain: {consistent: true}
"""


def load(tmp_path: Path, *overrides: str) -> Experiment:
    file = tmp_path / "study.yaml"
    file.write_text(YAML)
    return load_experiment(file, list(overrides))


def trained(experiment: Experiment) -> RetrainSettings:
    assert experiment.retrain is not None
    return planning.retrain_settings(experiment.retrain, experiment.space, experiment.search)


def test_every_setting_of_the_search_that_a_retraining_has_is_shared() -> None:
    # Each differs from both defaults, so that none can be right by chance.
    search = SearchSettings(
        batch_size=7, weight_lr=0.1, weight_lr_min=0.02, weight_momentum=0.8, weight_decay=0.01,
        nesterov=True, gradient_clip=2.0, augment="none", cutout=3, precision="float64", threads=2,
    )  # fmt: skip
    found = consistent_with(search, RetrainSettings(epochs=9, val_share=0.25), channels=5, cells=3)
    assert found == RetrainSettings(
        epochs=9, batch_size=7, lr=0.1, lr_min=0.02, momentum=0.8, weight_decay=0.01,
        nesterov=True, gradient_clip=2.0, channels=5, cells=3, auxiliary_weight=0.0, drop_path=0.0,
        label_smoothing=0.0, val_share=0.25, augment="none", cutout=3, precision="float64",
        threads=2,
    )  # fmt: skip


def test_size_and_settings_come_from_the_search(tmp_path: Path) -> None:
    found = trained(load(tmp_path))
    assert (found.channels, found.cells, found.epochs) == (4, 2, 7)
    assert (found.batch_size, found.lr, found.cutout, found.drop_path) == (24, 0.05, 2, 0.0)
    assert trained(load(tmp_path, "retrain.epochs=3", "retrain.val_share=0.1")) == (
        dataclasses.replace(found, epochs=3, val_share=0.1)
    )
    assert trained(load(tmp_path, "search.weight_lr=0.3")).lr == 0.3


def test_each_configuration_of_a_sweep_is_trained_like_itself(tmp_path: Path) -> None:
    experiment = load(tmp_path, "search.weight_lr={grid: [0.1, 0.2]}")
    assert experiment.retrain is not None
    rates = [
        planning.retrain_settings(
            experiment.retrain, configuration.settings["space"], configuration.settings["search"]
        ).lr
        for configuration in planning.known_configurations(experiment)
    ]
    assert rates == [0.1, 0.2]


def test_what_the_study_keeps_means_the_same(tmp_path: Path) -> None:
    experiment = load(tmp_path, "retrain.epochs=3")
    dump(experiment, tmp_path / "resolved.yaml")
    assert load_resolved(tmp_path / "resolved.yaml") == experiment


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["retrain.batch_size=8"], "retrain.batch_size cannot be given with retrain.consistent"),
        (["retrain.channels=8"], "retrain.channels cannot be given with retrain.consistent"),
        (["search.epochs={grid: [1, 2]}"], "retrain.epochs must be given with retrain.consistent"),
        (["retrain.consistent=1"], "retrain.consistent must be bool, got 1"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides)
