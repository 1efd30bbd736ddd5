"""The typed, frozen records of an experiment. Nothing here reads YAML or imports torch or Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.errors import ConfigError
from trainables.settings import RetrainSettings, own_of_consistent

METRICS = ("val_accuracy", "val_loss")
# Of the test split: allowed by `tune.allow_oracle_metric` alone, and said in every output.
ORACLE_METRICS = ("oracle/test_accuracy", "oracle/test_regret")
Metric = Literal["val_accuracy", "val_loss", "oracle/test_accuracy", "oracle/test_regret"]
OF_SEARCHES = ("method", "selection", "search", "diagnostics", "oracle", "limits")
"""Sections of an experiment file that have no meaning with `trainable: retrain`."""
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


class Design(Record):
    """Where the configurations of a sensitivity study lie, instead of being drawn one by one.

    Attributes:
        name: "grid", every combination of `levels` values; "sobol", `tune.num_samples` points that
            fill the ranges evenly; "one_at_a_time", each setting at `levels` values while the
            others stay at `centre`.
        levels: Values of each range, ends included; a choice has all of its values.
        centre: Of one_at_a_time: value of each range and choice, by its path in the file.
        indices: Of sobol: whether the points are those that Sobol indices are estimated of, which
            are (settings + 2) times as many.
        seed: Of the shuffling of a Sobol sequence.
    """

    name: Literal["grid", "sobol", "one_at_a_time"]
    levels: int = 5
    centre: dict[str, Any] = {}
    indices: bool = False
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


class Pbt(Record):
    """Population-based training: bad members copy good ones, and train on with other settings.

    Attributes:
        population: Members of each population; each grid block has one for each seed.
        every: Epochs of a generation, after which members copy others.
        quantile: Share of the members that copy, the worst, and of those copied from, the best.
        resample: Probability that a setting of a copy is drawn anew; else it is moved a little.
        mutations: Settings of `retrain` that a copy changes; None is all that are drawn.

    Source:
        Jaderberg et al., Population Based Training of Neural Networks, 2017, arXiv 1711.09846.
    """

    name: Literal["pbt"] = "pbt"
    population: int
    every: int
    quantile: float = 0.25
    resample: float = 0.25
    mutations: tuple[str, ...] | None = None


class PerTrial(Record):
    """What one Ray trial occupies.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs: 0, a share 1/n or a whole number; "auto" is for each kind of trial the smallest
            share whose memory is enough, measured before it starts.
    """

    cpus: float = 1.0
    gpus: float | Literal["auto"] = 0.0

    @property
    def on_gpu(self) -> bool:
        """Whether trials run on a GPU."""
        return self.gpus != 0

    @property
    def most_gpus(self) -> float:
        """GPUs that a trial asks for at most."""
        return 1.0 if self.gpus == "auto" else self.gpus


class Tune(Record):
    """How configurations are chosen, stopped and placed.

    Attributes:
        metric: Value of the validation split that searches are compared by.
        mode: Direction of `metric`.
        num_samples: Configurations drawn in each grid block that has something to draw.
        searcher: How they are drawn.
        design: Where they lie instead, for a sensitivity study; or None.
        scheduler: What stops searches early, or lets retrainings learn from each other, or None.
        per_trial: Resources of one Ray trial.
        seeds_per_trial: Seeds that one Ray trial runs in lock-step; "all" or a number.
        max_concurrent: Most Ray trials at a time; None is what the resources allow.
        max_failures: Times that a crashed trial is started again from its checkpoint; the loss of a
            node is not counted.
        trial_timeout: Seconds without an epoch after which a trial's process is ended and started
            again, as a crash; it has to be more than the start and the longest epoch take. None is
            never.
        allow_oracle_metric: Whether `metric` or `retrain.by` may be of the oracle, so that searches
            are led by the test accuracies that they are judged by; every output says so then.
    """

    metric: Metric = "val_accuracy"
    mode: Literal["max", "min"] = "max"
    num_samples: int = 1
    searcher: Searcher = Searcher()
    design: Design | None = None
    scheduler: Asha | Median | Pbt | None = None
    per_trial: PerTrial = PerTrial()
    seeds_per_trial: Literal["all"] | int = 1
    max_concurrent: int | None = None
    max_failures: int = 2
    trial_timeout: float | None = None
    allow_oracle_metric: bool = False

    @property
    def pbt(self) -> Pbt | None:
        """The scheduler where that is population-based training, else None."""
        return self.scheduler if isinstance(self.scheduler, Pbt) else None

    @property
    def samples(self) -> int:
        """Configurations drawn in a grid block: those that a population begins with, too."""
        return self.num_samples if self.pbt is None else self.pbt.population


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
        system_metrics: Whether the load of the driver's machine is sent while the study runs.
    """

    tracking_uri: str | None = None
    models: bool = False
    system_metrics: bool = False


class Retrain(Record):
    """Which genotypes are trained from scratch, and how.

    Attributes:
        settings: Settings of each retraining.
        top_k: How many of the best distinct genotypes.
        by: Value of the validation split that they are best by.
        per: "method": the best of each method's, in each space; "study": the best of all.
        seeds: Seeds of the retrainings of each genotype.
        consistent: Whether a genotype is trained as it was searched: in the size of the supernet,
            with the search's optimizer, regularisation and augmentation. `settings` then counts in
            its epochs and val_share alone.
        protocol: Name of the published settings that `settings` and sizes were filled in from where
            the file said nothing else; a record alone, since `settings` holds every value.
        budget_hours: Trial hours that all retrainings of the study may take; those that would go
            beyond it are not started, the best genotypes being first. None is no limit.
        keep: Retrainings whose weights are kept: "all", "none" or "best_K", by validation accuracy.
    """

    settings: RetrainSettings = RetrainSettings()
    top_k: int = 1
    by: Metric = "val_accuracy"
    per: Literal["method", "study"] = "method"
    seeds: tuple[int, ...] = (0,)
    consistent: bool = False
    protocol: str | None = None
    budget_hours: float | None = None
    keep: str = "all"

    @property
    def kept(self) -> int | None:
        """Number of retrainings whose weights are kept, or None for all."""
        return _number_kept(self.keep)

    def given(self) -> dict[str, Any]:
        """Return the settings that the experiment itself decides."""
        settings = dataclasses.asdict(self.settings)
        if self.consistent:
            settings = {key: settings[key] for key in own_of_consistent()}
        return settings


class Limits(Record):
    """What a genotype's evaluation network may cost at most, to be retrained.

    Attributes:
        max_params: Weights, auxiliary head excluded; None is no limit.
        max_macs: Multiply-adds for one image, auxiliary head excluded; None is no limit.
    """

    max_params: float | None = None
    max_macs: float | None = None

    def over(self, cost: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the limits that a cost, of keys `params` and `macs`, is over: often none."""
        most = {"params": self.max_params, "macs": self.max_macs}
        return tuple(
            f"max_{name}"
            for name, limit in most.items()
            if limit is not None and cost[name] > limit
        )


class Simulation(Record):
    """That nothing is trained, and how trials that cost nothing are run. `nas simulate` writes it.

    Attributes:
        ray: Whether they run on Ray, as real ones do, or in the driver's own process.
        response: Made-up effect of what is drawn, named in every output; "none" has no effect.
    """

    ray: bool = True
    response: Literal["none", "middle"] = "none"


class Training(Record):
    """The section `retrain` of an experiment whose retrainings are what is swept.

    Attributes:
        settings: Every field of `RetrainSettings`; any but `val_share` may be a sweep word.
        protocol: As in `Retrain`.
    """

    settings: dict[str, Any]
    protocol: str | None = None


class Experiment(Record):
    """One experiment file, checked, with every default filled in.

    `space`, `method` and `search` may hold sweep words: mappings of exactly one of `SWEEP_WORDS`.
    `orchestrator.factors` turns them into blocks and configurations.

    Attributes:
        name: Name of the study.
        question: What it is to answer, in words, for reports; no result depends on it.
        trainable: What the study compares configurations of; its stage and section.
        genotype: What `trainable: retrain` trains, {"name": ..., **its JSON form}, or a grid of
            such; or None.
        space, dataset, method, selection: Plug-in and all its settings: {"name": ..., ...}. With
            `trainable: retrain` there is no method and no selection, so they are {}.
        seeds: Every configuration runs once with each.
        search: Every field of `SearchSettings`; {} with `trainable: retrain`.
        diagnostics: Every field of each of `DIAGNOSTICS` that is on: costly, changing no result.
        oracle: Benchmark table in which reports look genotypes up, with its settings; or None.
        simulation: Set where searches and retrainings are looked up in the oracle's table, or None.
        retrain: Retraining of the best genotypes, or None.
        limits: Cost over which a genotype is not retrained, or None. It is that of the network that
            `retrain` builds, or without it of the space's published evaluation network.
        training: With `trainable: retrain` the section `retrain` in its place, else None.
        tune, ray, mlflow: See their records.
        keep: Searches (or swept retrainings) whose final state is kept: "all", "none" or "best_K".
        max_hours: Hours after which what runs is stopped, to be resumed some time; or None.
    """

    name: str
    question: str | None = None
    trainable: Literal["search", "retrain"] = "search"
    genotype: dict[str, Any] | None = None
    space: dict[str, Any]
    dataset: dict[str, Any]
    seeds: tuple[int, ...] = (0,)
    method: dict[str, Any]
    selection: dict[str, Any]
    search: dict[str, Any]
    diagnostics: dict[str, dict[str, Any]] = {}
    oracle: dict[str, Any] | None = None
    simulation: Simulation | None = None
    retrain: Retrain | None = None
    limits: Limits | None = None
    training: Training | None = None
    tune: Tune = Tune()
    ray: RaySettings = RaySettings()
    mlflow: MlflowSettings = MlflowSettings()
    keep: str = "all"
    max_hours: float | None = None

    @property
    def swept(self) -> dict[str, Any]:
        """The settings of what is compared: of the search, or of the retraining."""
        return self.search if self.training is None else self.training.settings

    @property
    def held_out(self) -> bool:
        """Whether configurations have validation images, so that `tune.metric` compares them."""
        return self.training is None or self.training.settings["val_share"] > 0

    @property
    def workers(self) -> int:
        """Most processes of one retraining."""
        return max(self._of_retraining("workers"))

    @property
    def compiles(self) -> bool:
        """Whether any retraining compiles its steps."""
        return any(self._of_retraining("compile"))

    def _of_retraining(self, name: str) -> list[Any]:
        """Return the values that a setting of a retraining can take."""
        from orchestrator.sweep_words import candidates  # it needs this module

        if self.training is not None:
            return list(candidates(self.training.settings[name]))
        if self.retrain is None or self.retrain.consistent:
            return [getattr(RetrainSettings(), name)]
        return [getattr(self.retrain.settings, name)]

    def metric_of(self, stage: Literal["search", "retrain"]) -> str:
        """Return what the rows of a stage are ranked by where they are shown."""
        return self.tune.metric if stage == self.trainable and self.held_out else "test_accuracy"

    @property
    def adaptive(self) -> bool:
        """Whether results decide what runs next, so that seeds have to run in lock-step.

        Population-based training is not meant: each seed has a population of its own.
        """
        tune = self.tune
        return tune.searcher.name == "optuna" or isinstance(tune.scheduler, Asha | Median)

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

    def _resolve_design(self, tune: dict[str, Any]) -> None:
        """Leave out of a resolved section what a design, or its absence, gives no effect."""
        design = self.tune.design
        if design is None:
            del tune["design"]
            return
        del tune["searcher"]
        without = {"grid": ("centre", "indices", "seed"), "one_at_a_time": ("indices", "seed"),
                   "sobol": ("levels", "centre")}[design.name]  # fmt: skip
        for key in without:
            del tune["design"][key]
        if design.name != "sobol":
            del tune["num_samples"]

    def resolved(self) -> dict[str, Any]:
        """Return the mapping of an experiment file that leaves nothing to a default."""
        document = self.model_dump(mode="json", exclude={"retrain", "training"})
        if self.tune.searcher.name == "grid":
            del document["tune"]["searcher"]["seed"]
        if self.tune.scheduler is None:
            document["tune"]["scheduler"] = "none"
        if self.tune.pbt is not None:
            del document["tune"]["num_samples"]
        if not self.held_out:
            del document["tune"]["metric"], document["tune"]["mode"]
        self._resolve_design(document["tune"])
        retrain = None
        if self.retrain is not None:
            retrain = self.retrain.given()
            retrain |= self.retrain.model_dump(mode="json", exclude={"settings"})
        left_out: tuple[str, ...] = ("genotype", "training")
        if self.training is not None:
            retrain = {**self.training.settings, "protocol": self.training.protocol}
            left_out = (*OF_SEARCHES, "training")
        ordered = {key: document.get(key) for key in type(self).model_fields} | {"retrain": retrain}
        return {key: value for key, value in ordered.items() if key not in left_out}


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
