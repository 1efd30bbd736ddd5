"""Every shipped experiment loads, and says in its header what it asks and how to run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import factors
from orchestrator.config import json_schema, load_experiment
from spaces.core import plugins

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))


def load(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    # Data that is downloaded once is looked for in the current folder.
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.parquet").touch()
    for file in ("nasbench201.parquet", "train.parquet"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return load_experiment(path)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiment_loads_and_its_names_resolve(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = load(path, monkeypatch, tmp_path)
    configurations = factors.configurations(experiment)
    assert len(factors.label(configurations)) == len(configurations) > 0
    for configuration in configurations:
        for kind, part in (("spaces", "space"), ("methods", "method"), ("datasets", "dataset")):
            if part not in configuration.settings:
                assert experiment.trainable == "retrain"
                continue
            name, config = plugins.make_config(kind, configuration.settings[part])
            assert plugins.settings_of(name, config) == configuration.settings[part]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiment_has_a_header(path: Path) -> None:
    lines = path.read_text().splitlines()
    marker = "# yaml-language-server: $schema="
    assert lines[0].startswith(marker)
    schema = path.parent / lines[0].removeprefix(marker)
    assert schema.resolve() == ROOT / "experiments" / "schema.json"
    header = [line for line in lines if line.startswith("#")]
    command = "simulate" if path.parent.name == "simulate" else "run"
    assert any(f"nas {command} {path.relative_to(ROOT)}" in line for line in header)
    assert any(line.startswith("# Expect: ") for line in header)


def test_the_shipped_schema_is_current() -> None:
    shipped = json.loads((ROOT / "experiments" / "schema.json").read_text())
    # To renew it: python -c "from orchestrator.schema import write_schema as w;
    # w('experiments/schema.json')"
    assert shipped == json_schema()


def test_quickstart_is_what_the_documentation_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = load(ROOT / "experiments" / "quickstart.yaml", monkeypatch, tmp_path)
    labels = factors.label(factors.configurations(experiment))
    assert list(labels.values()) == ["darts", "darts alpha_gradient=unrolled", "sdarts_rs"]
    assert experiment.seeds == (0, 1, 2)
    assert experiment.settings("dataset") == {"name": "digits"}
    assert experiment.retrain is not None
    # 1,437 training images, half of them for the weights: 718 // 64 = 11 steps an epoch. As in the
    # published run, a logit should be able to move by about 6 in all (Adam: alpha_lr a step).
    steps = experiment.search["epochs"] * (1437 // 2 // experiment.search["batch_size"])
    assert experiment.search["alpha_lr"] * steps == pytest.approx(6, rel=0.1)


def test_nasbench1shot1_has_the_published_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = ROOT / "experiments" / "cifar10" / "darts_nasbench1shot1.yaml"
    experiment = load(path, monkeypatch, tmp_path)
    configurations = factors.configurations(experiment)
    parts = [(c.settings["space"], c.settings["method"]["name"]) for c in configurations]
    assert {(s["name"], s["channels"], s["cells"]) for s, _ in parts} == {
        (f"nasbench1shot1_{number}", 16, 9) for number in (1, 2, 3)
    }
    assert len(parts) == 9
    assert {method for _, method in parts} == {"darts", "sdarts_rs", "sdarts_adv"}
    published = {
        "epochs": 100,
        "batch_size": 96,
        "weight_lr": 0.025,
        "weight_lr_min": 0.001,
        "weight_decay": 3e-4,
        "gradient_clip": 5.0,
        "alpha_lr": 3e-4,
        "alpha_weight_decay": 1e-3,
    }
    assert published.items() <= experiment.search.items()


def test_darts_on_nasbench201_has_the_published_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = ROOT / "experiments" / "cifar10" / "darts_nasbench201.yaml"
    experiment = load(path, monkeypatch, tmp_path)
    assert experiment.space == {"name": "nasbench201", "channels": 16, "cells_per_stage": 5}
    assert experiment.dataset == {"name": "cifar10", "root": str(tmp_path / "data")}
    published = {
        "epochs": 50,
        "batch_size": 64,
        "weight_lr": 0.025,
        "weight_lr_min": 0.001,
        "weight_decay": 5e-4,
        "nesterov": True,
        "alpha_lr": 3e-4,
        "alpha_weight_decay": 1e-3,
    }
    assert published.items() <= experiment.search.items()
    assert experiment.tune.per_trial.gpus == 1
