"""A retraining of two workers on a real Ray: placed, killed, resumed, and equal to one worker's."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from orchestrator import planning
from orchestrator.checks import check_hardware
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.study import Study
from orchestrator.sweep import _bundles
from spaces.core.text import parse
from tests.orchestrator import here
from tests.orchestrator.fake_study import CELL, YAML
from trainables.ray_trial import RetrainTrainable
from trainables.retrain import RetrainTrial

SETTINGS = "precision: float64, epochs: 6, channels: 2, cells: 1, batch_size: 128"
TWO = YAML.replace("epochs: 2, batch_size: 32, channels: 4, cells: 1", f"{SETTINGS}, workers: 2")
GENOTYPE = CELL.format("nor_conv_3x3")


def followers(driver: psutil.Process) -> list[int]:
    """Return the processes below a driver in which the other workers run."""
    found = []
    for child in driver.children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::Follower"):
            found.append(child.pid)
    return found


def test_a_killed_worker_costs_an_epoch_and_two_train_as_one(
    tmp_path: Path, nas_here: here.Nas
) -> None:
    (tmp_path / "two.yaml").write_text(TWO + here.ON_RAY)
    killed: list[int] = []

    def kill_once() -> None:
        if not killed and list(tmp_path.glob("two/checkpoints/*/state.pt")):
            killed.extend(followers(psutil.Process()))
            os.kill(killed[0], signal.SIGKILL)

    words = ("retrain", GENOTYPE, "--like", tmp_path / "two.yaml", "--name", "two")
    code, said = nas_here(*words, root=tmp_path, watch=kill_once)
    assert code == 0, said
    assert len(killed) == 1
    study = Study.open("two", tmp_path)
    (row,) = study.rows("retrain")
    assert row.status == "finished"
    assert [entry["epoch"] for entry in row.curve] == list(range(1, 7))
    (read,) = study.test_reads.read_text().splitlines()
    assert json.loads(read)["key"] == row.key
    # Both workers' cores count.
    assert row.cost["cpu_hours"] == pytest.approx(2 * row.cost["time_s"] / 3600)
    settings = {**row.settings["retrain"], "workers": 1}
    alone = RetrainTrial(
        genotype=parse(GENOTYPE), space="nasbench201", dataset="digits", retrain=settings
    )
    alone.run()
    for entry, own in zip(row.curve, alone.curve, strict=True):
        assert entry["train_loss"] == pytest.approx(own["train_loss"], rel=1e-6)
    assert row.curve[-1]["test_loss"] == pytest.approx(alone.curve[-1]["test_loss"], rel=1e-6)


def test_every_worker_has_a_bundle_of_the_trials_resources() -> None:
    config = {"retrain": {"workers": 3}}
    placed = _bundles({"cpu": 4.0, "gpu": 1.0}, config)
    assert placed.bundles == [{"CPU": 4.0, "GPU": 1.0}] * 3
    assert _bundles({"cpu": 2.0, "gpu": 0.0}, {"search": {}}).bundles == [{"CPU": 2.0}]
    assert RetrainTrainable.default_resource_request(config).bundles == [{"CPU": 1}] * 3
    assert RetrainTrainable.default_resource_request({"retrain": {}}) is None


def test_more_workers_than_the_machine_has_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    file = tmp_path / "two.yaml"
    file.write_text(TWO.replace("workers: 2", "workers: 4") + "tune: {per_trial: {cpus: 2}}\n")
    with pytest.raises(ConfigError, match=r"retrain.workers must be <= 2, got 4: each has the 2 "):
        check_hardware(load_experiment(file))


def test_a_compiler_that_is_missing_is_known_before_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (tmp_path / "a.yaml").write_text(YAML.replace("retrain: {", "retrain: {compile: true, "))
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler: there is no no-such-compiler"):
        check_hardware(load_experiment(tmp_path / "a.yaml"))


def test_the_keys_of_rows_from_before_there_were_workers_stay(tmp_path: Path) -> None:
    keys = []
    for name, more in (("old", ""), ("compiled", "compile: true, "), ("two", "workers: 2, ")):
        file = tmp_path / f"{name}.yaml"
        file.write_text(YAML.replace("retrain: {", f"retrain: {{{more}"))
        experiment = load_experiment(file)
        (unit,) = planning.genotype_units(
            experiment,
            parse(GENOTYPE).to_json(),
            parse(GENOTYPE).hash,
            space=experiment.space,
            search=experiment.search,
            label="",
            method="given",
            identity=planning.Identity({"name": "digits", "digest": "0"}, None, None, {}),
        )
        keys.append(unit.rows[0])
    # What the version before `compile` and `workers` made of the same experiment.
    assert keys[0] == "d3f4fa75e575b1b8"
    assert len(set(keys)) == 3
