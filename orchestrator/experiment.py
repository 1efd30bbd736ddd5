"""The typed, frozen records of an experiment. Nothing here reads YAML or imports torch or Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import ConfigError
from trainables.settings import RetrainSettings, own_of_consistent

METRICS = ("val_accuracy", "val_loss")
Metric = Literal["val_accuracy", "val_loss"]
SWEEP_WORDS = ("grid", "choice", "uniform", "loguniform", "randint")


class Record(BaseModel):
    """A frozen record whose values have been checked by `orchestrator.validation`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Searcher(Record):
    """How configurations are drawn.

    Attributes:
        name: "grid" runs every one; "random" draws independently; "optuna" learns from results.
        seed: Seed of the draws of "random" and "optuna".
    """

    name: Literal["grid", "random", "optuna"] = "grid"
    seed: int = 0


class Asha(Record):
    """Asynchronous successive halving: stop the worse configurations at growing epochs.

    Attributes:
        grace_epochs: No search is stopped before this epoch; the first rung.
        reduction_factor: Only the best 1 / reduction_factor of a rung go on; rungs grow by it.
        max_epochs: No rung is later; None is `search.epochs`.
    """

    name: Literal["asha"] = "asha"
    grace_epochs: int
    reduction_factor: float = 3.0
    max_epochs: int | None = None


class Median(Record):
    """Stop a configuration whose running mean is below the median of the others.

    Attributes:
        grace_epochs: No search is stopped before this epoch.
        min_trials: Number of others needed for a median.
    """

    name: Literal["median"] = "median"
    grace_epochs: int
    min_trials: int = 3


class PerTrial(Record):
    """What one Ray trial occupies.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs: 0, a share 1/n or a whole number.
    """

    cpus: float = 1.0
    gpus: float = 0.0


class Tune(Record):
    """How configurations are chosen, stopped and placed.

    Attributes:
        metric: Value of the validation split that searches are compared by.
        mode: Direction of `metric`.
        num_samples: Configurations drawn in each grid block that has something to draw.
        searcher: How they are drawn.
        scheduler: What stops searches early, or None.
        per_trial: Resources of one Ray trial.
        seeds_per_trial: Seeds that one Ray trial runs in lock-step; "all" or a number.
        max_concurrent: Most Ray trials at a time; None is what the resources allow.
        max_failures: Times that a crashed trial is started again from its checkpoint.
    """

    metric: Metric = "val_accuracy"
    mode: Literal["max", "min"] = "max"
    num_samples: int = 1
    searcher: Searcher = Searcher()
    scheduler: Asha | Median | None = None
    per_trial: PerTrial = PerTrial()
    seeds_per_trial: Literal["all"] | int = 1
    max_concurrent: int | None = None
    max_failures: int = 2


class RaySettings(Record):
    """Where Ray runs.

    Attributes:
        address: "local" starts a private Ray; "auto" or "host:port" joins a running cluster.
        cpus: CPU cores that a private Ray may use; None is all of the machine.
    """

    address: str = "local"
    cpus: int | None = None


class MlflowSettings(Record):
    """Where results can be browsed.

    Attributes:
        tracking_uri: MLflow store or server; None is MLFLOW_TRACKING_URI, else the default store.
        models: Whether retrained networks are sent as models too, when all has run.
    """

    tracking_uri: str | None = None
    models: bool = False


class Retrain(Record):
    """Which genotypes are trained from scratch, and how.

    Attributes:
        settings: Settings of each retraining.
        top_k: How many of the best distinct genotypes.
        by: Value of the validation split that they are best by.
        per: "method": the best of each method's; "study": the best of all.
        seeds: Seeds of the retrainings of each genotype.
        consistent: Whether a genotype is trained as it was searched: in the size of the supernet,
            with the search's optimizer, regularisation and augmentation. `settings` then counts in
            its epochs and val_share alone.
        protocol: Name of the published settings that `settings` and sizes were filled in from where
            the file said nothing else; a record alone, since `settings` holds every value.
        keep: Retrainings whose weights are kept: "all", "none" or "best_K", by validation accuracy.
    """

    settings: RetrainSettings = RetrainSettings()
    top_k: int = 1
    by: Metric = "val_accuracy"
    per: Literal["method", "study"] = "method"
    seeds: tuple[int, ...] = (0,)
    consistent: bool = False
    protocol: str | None = None
    keep: str = "all"

    @property
    def kept(self) -> int | None:
        """Number of retrainings whose weights are kept, or None for all."""
        return _number_kept(self.keep)

    @property
    def workers(self) -> int:
        """Processes of one retraining."""
        return 1 if self.consistent else self.settings.workers

    def given(self) -> dict[str, Any]:
        """Return the settings that the experiment itself decides."""
        settings = dataclasses.asdict(self.settings)
        if self.consistent:
            settings = {key: settings[key] for key in own_of_consistent()}
        return settings


class Experiment(Record):
    """One experiment file, checked, with every default filled in.

    `space`, `method` and `search` may hold sweep words: mappings of exactly one of `SWEEP_WORDS`.
    `orchestrator.factors` turns them into blocks and configurations.

    Attributes:
        name: Name of the study.
        space, dataset, method, selection: Plug-in and all its settings: {"name": ..., ...}.
        seeds: Every configuration runs once with each.
        search: Every field of `SearchSettings`.
        diagnostics: Every field of each of `DIAGNOSTICS` that is on: costly, changing no result.
        oracle: Benchmark table in which reports look genotypes up, with its settings; or None.
        retrain: Retraining of the best genotypes, or None.
        tune, ray, mlflow: See their records.
        keep: Searches whose final state is kept: "all", "none" or "best_K".
        max_hours: Hours after which what runs is stopped, to be resumed some time; or None.
    """

    name: str
    space: dict[str, Any]
    dataset: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    method: dict[str, Any]
    selection: dict[str, Any]
    search: dict[str, Any]
    diagnostics: dict[str, dict[str, Any]] = {}
    oracle: dict[str, Any] | None = None
    retrain: Retrain | None = None
    tune: Tune = Tune()
    ray: RaySettings = RaySettings()
    mlflow: MlflowSettings = MlflowSettings()
    keep: str = "all"
    max_hours: float | None = None

    @property
    def adaptive(self) -> bool:
        """Whether results decide what runs next, so that seeds have to run in lock-step."""
        return self.tune.searcher.name == "optuna" or self.tune.scheduler is not None

    @property
    def seed_blocks(self) -> tuple[tuple[int, ...], ...]:
        """The seeds, in the groups that one Ray trial runs together."""
        size = self.tune.seeds_per_trial
        size = len(self.seeds) if size == "all" else size
        return tuple(self.seeds[i : i + size] for i in range(0, len(self.seeds), size))

    @property
    def kept(self) -> int | None:
        """Number of searches whose final state is kept, or None for all."""
        return _number_kept(self.keep)

    def settings(self, kind: Literal["space", "dataset", "method", "selection"]) -> dict[str, Any]:
        """Return the settings of a part that is the same in every configuration.

        Raises:
            ConfigError: It is swept, so that there is no single answer.
        """
        part: dict[str, Any] = getattr(self, kind)
        if has_sweep(part):
            raise ConfigError(
                f"{kind} is swept in {self.name}, and one fixed {kind} is needed here."
            )
        return part

    def resolved(self) -> dict[str, Any]:
        """Return the mapping of an experiment file that leaves nothing to a default."""
        document = self.model_dump(mode="json", exclude={"retrain"})
        if self.tune.searcher.name == "grid":
            del document["tune"]["searcher"]["seed"]
        if self.tune.scheduler is None:
            document["tune"]["scheduler"] = "none"
        retrain = None
        if self.retrain is not None:
            retrain = self.retrain.given()
            retrain |= self.retrain.model_dump(mode="json", exclude={"settings"})
        ordered = {key: document.get(key) for key in type(self).model_fields}
        return ordered | {"retrain": retrain}


def _number_kept(keep: str) -> int | None:
    if keep == "all":
        return None
    return 0 if keep == "none" else int(keep.removeprefix("best_"))


def sweep_word(node: Any) -> str | None:
    """Return the sweep word that `node` consists of, or None."""
    if isinstance(node, Mapping) and len(node) == 1:
        (word,) = node
        return word if word in SWEEP_WORDS else None
    return None


def has_sweep(node: Any) -> bool:
    """Return whether a part of an experiment holds a sweep word at any depth."""
    if sweep_word(node) is not None:
        return True
    return isinstance(node, Mapping) and any(has_sweep(value) for value in node.values())
