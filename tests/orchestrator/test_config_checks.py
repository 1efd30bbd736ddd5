"""Checks against the machine and the data, the JSON schema, and storing any experiment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import checks, factors
from orchestrator.config import (
    check_data,
    check_hardware,
    dump,
    json_schema,
    load_experiment,
    load_resolved,
)
from orchestrator.errors import ConfigError
from tests.orchestrator.conftest import GOOD
from trainables.errors import DataError
from trainables.settings import RetrainSettings, SearchSettings


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend a machine: cores, GPUs, and CUDA_VISIBLE_DEVICES (None: not set)."""

    def pretend(cores: int, gpus: int, visible: str | None = None) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(checks, "_nvidia_devices", lambda: gpus)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return pretend


@pytest.mark.parametrize(
    ("gpus", "visible", "expected"),
    [
        (0, None, 0),
        (4, None, 4),
        (4, "0,1", 2),
        (4, "", 0),
        (4, "-1", 0),
        (4, "2,-1,3", 1),  # CUDA sees nothing behind an invalid entry
        (1, "0,1,2", 1),
        (0, "0", 0),
        (1, "MIG-a,MIG-b", 2),
        (2, "GPU-8932f937", 1),
    ],
)
def test_visible_gpus(machine: Any, gpus: int, visible: str | None, expected: int) -> None:
    machine(8, gpus, visible)
    if not any(Path(device).exists() for device in ("/dev/dxg", "/dev/kfd")):
        assert checks.visible_gpus() == expected


def test_a_trial_that_fits_is_accepted(experiment: Any, machine: Any) -> None:
    machine(4, 1)
    check_hardware(experiment("tune.per_trial={cpus: 4, gpus: 1}"))
    check_hardware(experiment("tune.per_trial={cpus: 0.5, gpus: 0.25}"))


def test_a_trial_that_needs_more_is_refused_with_the_numbers(experiment: Any, machine: Any) -> None:
    machine(4, 0)
    with pytest.raises(ConfigError) as error:
        check_hardware(experiment("tune.per_trial={cpus: 5, gpus: 1}"))
    cpus, gpus = str(error.value).splitlines()
    assert cpus == "study: tune.per_trial.cpus must be <= 4, got 5: this machine has 4."
    assert gpus.startswith("study: tune.per_trial.gpus must be <= 0, got 1: 0 NVIDIA GPUs")


def test_the_cpus_given_to_ray_are_the_limit(experiment: Any, machine: Any) -> None:
    machine(4, 0)
    check_hardware(experiment("tune.per_trial.cpus=2", "ray.cpus=2"))
    with pytest.raises(ConfigError, match=r"must be <= 1, got 2: ray\.cpus is 1"):
        check_hardware(experiment("tune.per_trial.cpus=2", "ray.cpus=1"))


def test_a_cluster_is_not_judged_by_this_machine(experiment: Any, machine: Any) -> None:
    machine(1, 0)
    check_hardware(experiment("tune.per_trial={cpus: 64, gpus: 8}", "ray.address=auto"))


# digits has 1,437 training images; half of them, rounded down, are 718 and the rest 719.
@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("search.batch_size=719", "search.batch_size must be <= 718"),
        ("search.batch_size={grid: [8, 719]}", "got 719"),
        ("search={batch_size: 144, train_share: 0.9}", "search.batch_size must be <= 144"),
        ("retrain.batch_size=1438", "retrain.batch_size must be <= 1437"),
        ("retrain={batch_size: 1000, val_share: 0.5}", "retrain.batch_size must be <= 718"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused(
    experiment: Any, override: str, fragment: str
) -> None:
    # 0.9 * 1437 = 1293.3 leaves 144 images, which is just enough for a batch of 144.
    if "train_share" in override:
        check_data(experiment(override))
        override = override.replace("144", "145")
    with pytest.raises(ConfigError) as error:
        check_data(experiment(override))
    assert fragment in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_largest_batches_that_fit_are_accepted(experiment: Any) -> None:
    check_data(experiment("search.batch_size=718", "retrain.batch_size=1437"))


def test_damaged_data_is_a_data_error(experiment: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "train.parquet"
    damaged.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"train\.parquet"):
        check_data(experiment(f"dataset={{name: parquet, train: {damaged}}}"))


def test_retraining_needs_a_test_split(experiment: Any, tmp_path: Path) -> None:
    images = [[[row * 8 + column for column in range(8)] for row in range(8)]] * 10
    table = pa.table({"image": images, "label": [0, 1] * 5})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path)
    dataset = f"dataset={{name: parquet, train: {path}}}"
    check_data(experiment(dataset, "search.batch_size=5"))
    with pytest.raises(ConfigError, match="retrain needs a test split"):
        check_data(experiment(dataset, "search.batch_size=5", "retrain.batch_size=10"))


def valid(document: Any) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(document)


def test_the_schema_is_a_schema_and_takes_good_experiments(experiment: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert valid(yaml.safe_load(GOOD))
    shipped = Path(__file__).resolve().parents[2] / "experiments"
    for path in shipped.rglob("*.yaml"):
        assert valid(yaml.safe_load(path.read_text())), path
    assert valid(
        experiment(
            "method={grid: [darts, {name: sdarts_rs, radius_max: {uniform: [0.1, 1]}}]}",
            "tune={num_samples: 2, scheduler: {name: asha, grace_epochs: 1}}",
            "retrain.epochs=2",
        ).resolved()
    )


@pytest.mark.parametrize(
    "line",
    [
        "serach: {}",
        "search: {weigth_lr: 0.1}",
        "search: {epochs: many}",
        "search: {epochs: {uniform: [1, 2]}}",
        "search: {augment: crop}",
        "method: dartz",
        "method: {name: sdarts_rs, radius: 1}",
        "method: {grid: [dartz]}",
        "dataset: parquet_",
        "seeds: [1, 1]",
        "retrain: {topk: 1}",
        "tune: {scheduler: {name: asha}}",
        "tune: {scheduler: {name: median, grace_epochs: 1, max_epochs: 2}}",
        "tune: {per_trial: {gpu: 1}}",
        "keep: best",
        "name: ../a",
    ],
)
def test_the_schema_refuses_what_an_editor_can_tell(line: str) -> None:
    assert not valid(yaml.safe_load(GOOD) | yaml.safe_load(line))


def test_the_schema_describes_every_setting() -> None:
    schema = json_schema()
    for key, properties in schema["properties"].items():
        assert properties["description"], key
    for name in ("search", "tune", "ray", "mlflow"):
        for key, setting in schema["properties"][name]["properties"].items():
            assert setting.get("description"), f"{name}.{key}"


floats = st.floats(1e-9, 1e3, allow_nan=False)
small = st.integers(1, 50)


def swept(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(values, min_size=1, max_size=3, unique=True)
    return values | lists.map(lambda items: {"grid": items})


method = st.sampled_from(
    [
        "darts",
        {"name": "darts", "alpha_gradient": "unrolled"},
        {"name": "sdarts_rs", "radius_max": {"grid": [0.5, 1]}},
        {"grid": ["darts", {"name": "sdarts_rs", "radius_start": 0}]},
        {"choice": ["darts", {"name": "sdarts_rs", "radius_max": {"uniform": [0.1, 0.9]}}]},
    ]
)
search = st.fixed_dictionaries(
    {},
    optional={
        "epochs": swept(st.integers(10, 90)),
        "batch_size": swept(small),
        "weight_lr": swept(floats) | st.just({"loguniform": [1e-3, 1]}),
        "alpha_weight_decay": floats,
        "nesterov": st.booleans(),
        "precision": st.sampled_from(["float32", "float64"]),
    },
)
retrain = st.none() | st.fixed_dictionaries(
    {"epochs": small},
    optional={
        "lr": floats,
        "channels": st.none() | small,
        "per": st.sampled_from(["method", "study"]),
        "by": st.sampled_from(["val_accuracy", "val_loss"]),
        "seeds": st.lists(st.integers(0, 2**62), min_size=1, max_size=3, unique=True),
    },
)
tune = st.fixed_dictionaries(
    {"num_samples": st.just(4)},
    optional={
        "searcher": st.sampled_from(["random", "optuna", {"name": "optuna", "seed": 3}]),
        "scheduler": st.sampled_from(
            ["none", {"name": "asha", "grace_epochs": 2, "reduction_factor": 2.5}]
        ),
        "per_trial": st.fixed_dictionaries({"gpus": st.sampled_from([0, 0.5, 1, 3])}),
        "max_concurrent": st.none() | small,
    },
)
document = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "space": st.sampled_from(["darts", {"name": "nasbench201", "channels": {"grid": [4, 8]}}]),
        "dataset": st.just("digits"),
        "method": method,
        "search": search,
        "tune": tune,
    },
    optional={
        "seeds": st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True),
        "retrain": retrain,
        "keep": st.sampled_from(["all", "none", "best_1"]),
        "max_hours": st.none() | floats,
        "ray": st.sampled_from([{"address": "auto"}, {"cpus": 3}]),
        "mlflow": st.sampled_from([{"tracking_uri": "http://a.example:5000"}, {}]),
    },
)


@settings(max_examples=20, deadline=None)
@given(document)
def test_any_experiment_survives_being_stored(experiment: dict[str, Any]) -> None:
    # With a range to draw from, num_samples has its effect.
    experiment["search"] = experiment["search"] | {"weight_decay": {"uniform": [0, 0.1]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_text(yaml.safe_dump(experiment))
        first = load_experiment(path)
        dump(first, Path(folder) / "b.yaml")
        second = load_resolved(Path(folder) / "b.yaml")
    assert second == first
    assert second.resolved() == first.resolved()
    assert factors.blocks(second) == factors.blocks(first)


def test_settings_classes_have_no_field_that_the_file_cannot_say(experiment: Any) -> None:
    found = experiment("retrain.epochs=2")
    assert SearchSettings(**found.search) == SearchSettings(epochs=4)
    assert found.retrain.settings == RetrainSettings(epochs=2)
