"""`retrain.protocol`: what it fills in, what the file says over it, and that no key knows it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import planning
from orchestrator.config import dump, load_experiment, load_resolved
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment
from orchestrator.results import tabulate
from spaces.core import plugins
from tests.orchestrator.fake_study import RETRAIN, retrain_row, search_row
from trainables.settings import RetrainSettings

YAML = """
name: study
space: {name: darts, channels: 4, cells: 5}
dataset: digits
method: darts
search: {epochs: 7, batch_size: 24}
retrain: {epochs: 30, protocol: darts_cifar}
"""
MINE = '''"""Mine."""
from dataclasses import dataclass
SOURCE = "none"
SOURCES = {"epochs": "none"}
@dataclass(frozen=True)
class Config:
    """Mine."""
    epochs: int = 11
'''
IDENTITY = planning.Identity({"name": "digits", "digest": "d"}, None, None, {})


def load(tmp_path: Path, *overrides: str) -> Experiment:
    file = tmp_path / "study.yaml"
    file.write_text(YAML)
    return load_experiment(file, list(overrides))


def settings(experiment: Experiment) -> RetrainSettings:
    assert experiment.retrain is not None
    return experiment.retrain.settings


def keys(experiment: Experiment) -> list[Any]:
    units = planning.genotype_units(
        experiment,
        {"space": "darts", "cells": []},
        "0123456789ab",
        space={"name": "nasbench201"},
        search=experiment.search,
        label="",
        method="darts",
        identity=IDENTITY,
    )
    return [unit.rows for unit in units]


def test_a_protocol_fills_in_what_the_file_does_not_say(tmp_path: Path) -> None:
    found = settings(load(tmp_path, "retrain.protocol=msdarts_cifar", "retrain.lr=0.1"))
    published = {"batch_size": 48, "channels": 36, "cells": 20, "cutout": 16, "cutout_ramp": True}
    assert found == RetrainSettings(epochs=30, lr=0.1, **published)
    assert settings(load(tmp_path, "retrain.protocol=null")) == RetrainSettings(epochs=30)


def test_the_stored_experiment_holds_every_value_and_asks_no_protocol_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine" / "protocols"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(MINE)
    monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, str(tmp_path / "mine"))
    file = tmp_path / "study.yaml"
    file.write_text(YAML.replace("epochs: 30, protocol: darts_cifar", "protocol: mine"))
    experiment = load_experiment(file)
    assert settings(experiment).epochs == 11
    dump(experiment, tmp_path / "stored.yaml")
    stored = yaml.safe_load((tmp_path / "stored.yaml").read_text())["retrain"]
    assert (stored["epochs"], stored["protocol"]) == (11, "mine")
    # A setting that is not stored, because it came later, is not taken from the protocol either.
    text = (tmp_path / "stored.yaml").read_text().replace("  epochs: 11\n", "")
    (tmp_path / "older.yaml").write_text(text)
    assert settings(load_resolved(tmp_path / "older.yaml")).epochs == RetrainSettings().epochs
    (folder / "mine.py").unlink()
    assert load_resolved(tmp_path / "stored.yaml") == experiment


def test_a_key_is_that_of_the_values_however_they_came(tmp_path: Path) -> None:
    filled = load(tmp_path)
    written = [f"{key}={value}" for key, value in dataclasses.asdict(settings(filled)).items()]
    by_hand = load(tmp_path, "retrain.protocol=null", *(f"retrain.{each}" for each in written))
    assert by_hand.retrain.protocol is None
    assert keys(filled) == keys(by_hand)
    assert keys(filled) != keys(load(tmp_path, "retrain.channels=16"))


def test_settings_that_came_later_are_no_part_of_older_keys(tmp_path: Path) -> None:
    words = ["protocol=null", "epochs=3", "batch_size=32", "channels=4", "cells=1", "seeds=[0, 7]"]
    plain = [f"retrain.{word}" for word in words]
    # Taken before there were stem, schedule, warm-up, ramp, averages and mixed precision.
    assert keys(load(tmp_path, *plain)) == [{0: "ffd036434f93eeb9"}, {7: "5635099461c7abc6"}]
    later = {
        "schedule": "linear",
        "warmup_epochs": 1,
        "stem": "imagenet",
        "cutout_ramp": "true",
        "ema_decay": 0.9,
        "mixed_precision": "true",
    }
    seen = [keys(load(tmp_path, *plain, f"retrain.{key}={each}")) for key, each in later.items()]
    assert len({str(each) for each in [*seen, keys(load(tmp_path, *plain))]}) == 1 + len(later)


def test_rows_from_before_later_settings_are_in_the_table() -> None:
    old = {key: value for key, value in RETRAIN.items() if key not in ("stem", "schedule")}
    linear = {**RETRAIN, "schedule": "linear"}
    rows = [
        search_row("darts", 0, [0.9]),
        retrain_row("nor_conv_3x3", 0, 0.97, settings=old),
        retrain_row("nor_conv_3x3", 0, 0.99, settings=linear),
    ]
    assert tabulate(rows, RETRAIN)[0].test_accuracies == {0: 0.97}
    assert tabulate(rows, linear)[0].test_accuracies == {0: 0.99}


def test_consistent_is_a_protocol(tmp_path: Path) -> None:
    experiment = load(tmp_path, "retrain={protocol: consistent, val_share: 0.1}")
    assert experiment.retrain is not None
    assert experiment.retrain.consistent
    found = planning.retrain_settings(experiment.retrain, experiment.space, experiment.search)
    assert (found.channels, found.cells, found.epochs, found.batch_size) == (4, 5, 7, 24)
    dump(experiment, tmp_path / "stored.yaml")
    assert load_resolved(tmp_path / "stored.yaml") == experiment


def test_sizes_that_depend_on_the_space_may_be_given(tmp_path: Path) -> None:
    # The space is none of S1 to S4, and both sizes are given.
    words = ["retrain.protocol=s1_s4_cifar", "retrain.channels=16", "retrain.cells=8"]
    assert settings(load(tmp_path, *words)) == RetrainSettings(epochs=30, channels=16, cells=8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["retrain.protocol=darts_cifra"], "retrain.protocol: .*Did you mean 'darts_cifar'"),
        (["retrain.protocol=3"], "retrain.protocol must be str, got 3"),
        (["retrain.consistent=true"], "retrain.consistent cannot be True with the protocol darts"),
        (
            ["retrain={protocol: consistent, consistent: false}"],
            "retrain.consistent cannot be False with the protocol consistent",
        ),
        (
            ["retrain={protocol: consistent, lr: 0.1}"],
            "retrain.lr cannot be given with retrain.consistent",
        ),
        (
            ["retrain.protocol=s1_s4_cifar"],
            "retrain.protocol: s1_s4_cifar has sizes for the spaces s1.*space darts on dataset dig",
        ),
        (
            ["retrain.protocol=quick", "space={grid: [darts, nasbench201]}"],
            "quick has sizes that differ between the spaces darts, nasbench201: give",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["retrain={protocol: imagenet_mobile, epochs: 3}"],
            r"got 5\. It is the protocol imagenet_mobile that sets retrain\.warmup_epochs: set it",
        ),
        (
            ["retrain={protocol: msdarts_cifar, cutout: 0}"],
            r"one of them\. It is the protocol msdarts_cifar that sets retrain\.cutout_ramp",
        ),
    ],
)
def test_a_complaint_names_what_the_protocol_has_set(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides)
    with pytest.raises(ConfigError) as written:
        load(tmp_path, "retrain={warmup_epochs: 5, epochs: 3, schedule: linear}")
    assert "protocol" not in str(written.value)
