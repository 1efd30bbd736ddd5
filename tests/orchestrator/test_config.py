"""Experiment files: what is completed, what --set changes, what is stored and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.config import Experiment, dump, load_experiment, load_resolved
from orchestrator.errors import ConfigError
from trainables.settings import RetrainSettings, SearchSettings, field_names

GOOD = """\
name: study
space: {name: nasbench201, channels: 4, cells_per_stage: 1}
dataset: digits
seeds: [0, 1]
method: darts
search: {epochs: 4}
"""

LATER = ("engine", "checkpointing")
WRITTEN = tuple(name for name in field_names(SearchSettings) if name not in LATER)
"""Settings of a search that are always written: others came later, and only where given."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(GOOD)
    return path


def refused(path: Path, *overrides: str, name: str | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_experiment(path, overrides, name)
    return str(error.value)


def test_every_default_is_filled_in(file: Path) -> None:
    experiment = load_experiment(file)
    assert experiment.name == "study"
    # What every method can be given, such as alpha_gradient, is not there unless it is given.
    assert experiment.method == {"name": "darts"}
    assert experiment.selection == {"name": "magnitude"}
    assert tuple(experiment.search) == WRITTEN
    assert SearchSettings(**experiment.search) == SearchSettings(epochs=4)
    assert experiment.retrain is None
    assert experiment.tune.searcher.name == "grid"
    assert experiment.seed_blocks == ((0,), (1,))
    assert experiment.kept is None


def test_an_experiment_is_frozen(file: Path) -> None:
    experiment = load_experiment(file)
    with pytest.raises(ValidationError, match="frozen"):
        experiment.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        experiment.tune.num_samples = 3


def test_an_empty_section_is_all_defaults(file: Path) -> None:
    file.write_text(GOOD + "tune:\nretrain: {}\nray:\nmlflow:\nmax_hours:\n")
    experiment = load_experiment(file)
    assert experiment.retrain is not None
    assert experiment.retrain.settings == RetrainSettings()
    assert (experiment.retrain.top_k, experiment.retrain.per) == (1, "method")
    assert experiment.retrain.seeds == (0,)


@pytest.mark.parametrize("text", ["null", "none"])
def test_retrain_and_scheduler_can_be_none(file: Path, text: str) -> None:
    experiment = load_experiment(file, [f"retrain={text}", f"tune.scheduler={text}"])
    assert experiment.retrain is None
    assert experiment.tune.scheduler is None


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("search.epochs=7", "search.epochs", 7),
        ("search.weight_lr=0.5", "search.weight_lr", 0.5),
        ("search.weight_lr=1", "search.weight_lr", 1.0),
        ("seeds=[5, 6, 7]", "seeds", (5, 6, 7)),
        ("method.alpha_gradient=unrolled", "method.alpha_gradient.name", "unrolled"),
        ("method=sdarts_rs", "method.name", "sdarts_rs"),
        ("method={name: sdarts_rs, radius_max: 1}", "method.radius_max", 1.0),
        ("retrain.epochs=3", "retrain.settings.epochs", 3),
        ("retrain.per=study", "retrain.per", "study"),
        ("retrain.by=val_loss", "retrain.by", "val_loss"),
        ("tune.per_trial.gpus=0.25", "tune.per_trial.gpus", 0.25),
        ("tune.per_trial.gpus=0.3333", "tune.per_trial.gpus", 0.3333),
        ("tune.per_trial.gpus=2", "tune.per_trial.gpus", 2.0),
        ("tune.seeds_per_trial=2", "seed_blocks", ((0, 1),)),
        ("tune.max_concurrent=2", "tune.max_concurrent", 2),
        ("tune.metric=val_loss", "tune.mode", "min"),
        ("ray.address=head.example:6379", "ray.address", "head.example:6379"),
        ("ray.cpus=1", "ray.cpus", 1),
        ("mlflow.tracking_uri=http://127.0.0.1:5000", "mlflow.tracking_uri", None),
        ("keep=best_2", "kept", 2),
        ("keep=none", "kept", 0),
        ("max_hours=0.5", "max_hours", 0.5),
        ("name=other", "name", "other"),
    ],
)
def test_set_changes_one_setting(file: Path, override: str, key: str, value: object) -> None:
    found: object = load_experiment(file, [override])
    before: object = load_experiment(file)
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
        before = before.get(part) if isinstance(before, dict) else getattr(before, part, None)
    assert found == (override.partition("=")[2] if value is None else value)
    assert type(found) is type(value) or value is None
    assert found != before


def test_the_last_set_wins_and_name_wins_over_both(file: Path) -> None:
    overrides = ["search.epochs=5", "search.epochs=6", "name=b"]
    experiment = load_experiment(file, overrides, "c")
    assert experiment.search["epochs"] == 6
    assert experiment.name == "c"


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("search.epochs", "--set must be KEY=VALUE, as search.epochs=5, got 'search.epochs'."),
        ("=5", "--set must be KEY=VALUE"),
        ("search..epochs=5", "--set must be KEY=VALUE"),
        ("search.epoch=5", "search.epoch is not a setting. Did you mean 'epochs'?"),
        ("search.epochs=", "search.epochs must be int, got None"),
        ("search.alpha_lr=1e-4", "write 1.0e-4"),
        ("search.epochs=[1", "search.epochs cannot be read: line 1"),
        ("search.epochs={a: 1, a: 2}", "stands on line 1 already"),
        ("search.epochs=!!python/name:os.system", "is not allowed"),
        ("seeds.first=1", "seeds.first cannot be set: seeds is [0, 1], not a mapping."),
        ("search.epochs.max=1", "search.epochs is 4, not a mapping."),
        ("method.grid=[darts]", "method must be either grid alone or settings"),
    ],
)
def test_a_wrong_set_says_where_it_comes_from(file: Path, override: str, fragment: str) -> None:
    message = refused(file, override)
    assert message.startswith(f"{file} with --set {override}: ")
    assert fragment in message
    assert len(message.splitlines()) == 1


def test_a_wrong_name_of_the_command_line_is_refused(file: Path) -> None:
    assert "name must be" in refused(file, name="../a")


@pytest.mark.parametrize("name", ["a", "A-b_c.d", "0", "x" * 100])
def test_good_names(file: Path, name: str) -> None:
    assert load_experiment(file, name=name).name == name


def test_adaptive_sweeps_run_all_seeds_in_lock_step(file: Path) -> None:
    overrides = ["method={grid: [darts, sdarts_rs]}", "tune.scheduler.name=asha"]
    experiment = load_experiment(file, [*overrides, "tune.scheduler.grace_epochs=2"])
    assert experiment.adaptive
    assert experiment.tune.seeds_per_trial == "all"
    assert experiment.seed_blocks == ((0, 1),)
    spread = load_experiment(file, overrides[:1])
    assert not spread.adaptive
    assert spread.seed_blocks == ((0,), (1,))


def test_a_part_that_is_swept_is_no_single_setting(file: Path) -> None:
    experiment = load_experiment(file, ["space.channels={grid: [4, 8]}"])
    assert experiment.settings("method")["name"] == "darts"
    with pytest.raises(ConfigError, match="space is swept in study"):
        experiment.settings("space")


def test_the_searcher_follows_from_what_is_swept(file: Path) -> None:
    drawn = ["search.weight_lr={uniform: [0.01, 0.1]}", "tune.num_samples=3"]
    assert load_experiment(file, drawn).tune.searcher.name == "random"
    in_a_method = ["method={grid: [darts, {name: sdarts_rs, radius_max: {uniform: [0.1, 1]}}]}"]
    found = load_experiment(file, [*in_a_method, "tune.num_samples=3"])
    assert found.tune.searcher.name == "random"
    assert load_experiment(file, ["method={grid: [darts]}"]).tune.searcher.name == "grid"


def test_relative_data_is_sought_beside_the_file_then_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, current = tmp_path / "experiments", tmp_path / "work"
    for folder in (beside, current):
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "train.parquet").write_bytes(b"")
    monkeypatch.chdir(current)
    path = beside / "a.yaml"
    path.write_text(GOOD.replace("digits", "{name: parquet, train: data/train.parquet}"))
    assert load_experiment(path).dataset["train"] == str(beside / "data" / "train.parquet")
    (beside / "data" / "train.parquet").unlink()
    assert load_experiment(path).dataset["train"] == str(current / "data" / "train.parquet")
    (current / "data" / "train.parquet").unlink()
    message = refused(path)
    assert str(beside / "data" / "train.parquet") in message
    assert str(current / "data" / "train.parquet") in message


def test_an_absolute_path_is_kept(tmp_path: Path, file: Path) -> None:
    data = tmp_path / "train.parquet"
    data.write_bytes(b"")
    experiment = load_experiment(file, [f"dataset={{name: parquet, train: {data}}}"])
    assert experiment.dataset["train"] == str(data)
    assert experiment.dataset["test"] is None


def test_what_is_stored_leaves_nothing_to_a_default(file: Path, tmp_path: Path) -> None:
    experiment = load_experiment(file, ["retrain.epochs=3"])
    dump(experiment, tmp_path / "experiment.yaml")
    stored = yaml.safe_load((tmp_path / "experiment.yaml").read_text())
    assert stored == experiment.resolved()
    of_retrainings = ("genotype", "training")
    assert tuple(stored) == tuple(k for k in Experiment.model_fields if k not in of_retrainings)
    assert tuple(stored["search"]) == WRITTEN
    assert tuple(stored["retrain"]) == (
        *field_names(RetrainSettings),
        "top_k",
        "by",
        "per",
        "seeds",
        "consistent",
        "protocol",
        "budget_hours",
        "keep",
    )
    assert load_resolved(tmp_path / "experiment.yaml") == experiment
    # The stored file is an experiment file like any other.
    assert load_experiment(tmp_path / "experiment.yaml") == experiment
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    "tune",
    [
        "{num_samples: 3, searcher: {name: optuna, seed: 5}}",
        "{num_samples: 3, searcher: {name: random, seed: 5}, seeds_per_trial: 2}",
        "{num_samples: 3, scheduler: {name: median, grace_epochs: 2, min_trials: 2}}",
        "{num_samples: 3, metric: val_loss, max_failures: 0, per_trial: {cpus: 0.5, gpus: 0.25}}",
    ],
)
def test_no_setting_is_lost_in_storing(file: Path, tmp_path: Path, tune: str) -> None:
    sweep = ["search.weight_lr={loguniform: [1.0e-7, 1.0e-1]}", "keep=best_2", "max_hours=1.0e-3"]
    retrain = "retrain={epochs: 2, lr: 1.0e-5, top_k: 2, per: study, seeds: [4, 5]}"
    experiment = load_experiment(file, [f"tune={tune}", *sweep, retrain])
    dump(experiment, tmp_path / "experiment.yaml")
    assert load_resolved(tmp_path / "experiment.yaml") == experiment


def test_a_stored_experiment_does_not_need_its_data(file: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.parquet"
    data.write_bytes(b"")
    experiment = load_experiment(file, [f"dataset={{name: parquet, train: {data}}}"])
    dump(experiment, tmp_path / "experiment.yaml")
    data.unlink()
    assert load_resolved(tmp_path / "experiment.yaml") == experiment
    with pytest.raises(ConfigError, match=r"dataset\.train must be an existing path"):
        load_experiment(tmp_path / "experiment.yaml")


def test_a_stored_experiment_that_was_spoilt_is_refused(file: Path, tmp_path: Path) -> None:
    stored = tmp_path / "experiment.yaml"
    dump(load_experiment(file), stored)
    stored.write_text(stored.read_text().replace("epochs: 4", "epochs: 0"))
    with pytest.raises(ConfigError, match=r"search\.epochs must be > 0, got 0"):
        load_resolved(stored)


def test_a_failed_dump_leaves_the_old_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "experiment.yaml"
    experiment = load_experiment(file)
    dump(experiment, stored)
    before = stored.read_text()

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        dump(experiment.model_copy(update={"name": "other"}), stored)
    assert stored.read_text() == before
    assert [path.name for path in tmp_path.glob(".*")] == []
