"""Which units a study has: configurations times seeds, then the retrainings that follow."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import factors
from orchestrator.dimensions import without_words
from orchestrator.experiment import Experiment, Limits, Metric, Retrain, sweep_word
from orchestrator.labels import plugin_labels
from orchestrator.ledger import Row, row_key, with_selections
from orchestrator.sweep_words import candidates, canonical
from orchestrator.units import Unit
from spaces.core import plugins
from trainables.settings import (
    RetrainSettings,
    SearchSettings,
    consistent_with,
    identifying,
    identifying_search,
)

if TYPE_CHECKING:
    from orchestrator.factors import Configuration


@dataclasses.dataclass(frozen=True)
class Identity:
    """What enters the keys of a study's rows beside its settings.

    Attributes:
        dataset: Name and content digest of the dataset.
        plugins: Content digest of the user's plug-in folders, or None.
        git: Commit of the code: recorded in rows, never part of a key.
        per_trial: {"cpu": ..., "gpu": ...}: for the cost of a row.
    """

    dataset: Mapping[str, str]
    plugins: str | None
    git: str | None
    per_trial: Mapping[str, float]


def identity(experiment: Experiment, *, plugins_digest: str | None) -> Identity:
    """Return what enters the keys of an experiment's rows; it reads the dataset's files.

    Raises:
        DataError: The data is missing or damaged.
    """
    per_trial = experiment.tune.per_trial
    dataset = experiment.dataset
    return Identity(
        dataset={"name": dataset["name"], "digest": dataset_digest(dataset)},
        plugins=plugins_digest,
        git=git_commit(),
        per_trial={"cpu": per_trial.cpus, "gpu": per_trial.most_gpus},
    )


def plugins_digest() -> str | None:
    """Return the content digest of the plug-in folders that NAS_PLUGINS names, or None."""
    return plugins.folders_digest(plugins.plugin_folders())


def git_commit() -> str | None:
    """Return the commit of the code, or None where it is not in a git checkout."""
    folder = str(Path(__file__).resolve().parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def dataset_digest(settings: Mapping[str, Any]) -> str:
    """Return the content digest of a dataset; it reads the files.

    Raises:
        DataError: The data is missing or damaged.
    """
    name, config = plugins.make_config("datasets", settings)
    return str(plugins.load("datasets", name).digest(config))


def known_configurations(experiment: Experiment) -> list[Configuration]:
    """Return the configurations of the searchers `grid` and `random`, in the order they run in.

    Blocks alternate, so that every method has results early.
    """
    columns: dict[int, list[Configuration]] = {}
    for configuration in factors.configurations(experiment):
        columns.setdefault(configuration.block, []).append(configuration)
    turns = itertools.zip_longest(*columns.values())
    return [configuration for turn in turns for configuration in turn if configuration is not None]


def longest_epochs(experiment: Experiment) -> int:
    """Return the epochs of the longest search, or swept retraining, that can be asked for."""
    return int(max(candidates(experiment.swept["epochs"])))


def search_units(
    experiment: Experiment,
    configurations: Sequence[Configuration],
    identity: Identity,
    labels: Mapping[str, str],
) -> list[Unit]:
    """Return one unit for each configuration and block of seeds.

    A configuration's blocks of seeds stay together: the first results compare whole configurations.
    """
    units = []
    for configuration in configurations:
        for seeds in experiment.seed_blocks:
            keys = {seed: search_key(configuration, identity, seed) for seed in seeds}
            units.append(
                Unit(
                    stage="search",
                    # They change no result, so that they are no part of a key.
                    settings={**configuration.settings, "diagnostics": experiment.diagnostics},
                    rows=keys,
                    config_id=configuration.config_id,
                    block=configuration.block,
                    params=configuration.params,
                    label=labels[configuration.config_id],
                    epochs=int(configuration.settings["search"]["epochs"]),
                    extra=recorded(identity),
                )
            )
    return units


def search_key(configuration: Configuration, identity: Identity, seed: int) -> str:
    """Return the ledger key of a search."""
    return key_of_search(configuration.settings, identity, seed)


def key_of_search(settings: Mapping[str, Any], identity: Identity, seed: int) -> str:
    """Return the ledger key of a search with these settings, as a row has them too."""
    return row_key(
        "search",
        {
            **{kind: settings[kind] for kind in ("method", "space", "selection")},
            "search": identifying_search(settings["search"]),
            "results_version": _results_version(settings["method"], settings["selection"]),
            "dataset": dict(identity.dataset),
            "plugins": identity.plugins,
            "seed": seed,
        },
    )


def _results_version(method: Mapping[str, Any], selection: Mapping[str, Any]) -> list[Any]:
    """Return the versions of the results of a method, of its selection and of its other parts."""
    filled = {"select": selection} | {k: v for k, v in method.items() if v and k in plugins.SLOTS}
    parts = [
        [key, plugins.describe(plugins.SLOTS[key].kind, part["name"]).results_version]
        for key, part in sorted(filled.items())
    ]
    return [plugins.describe("methods", method["name"]).results_version, *parts]


def retrain_units(
    experiment: Experiment,
    rows: Sequence[Row],
    identity: Identity,
) -> list[Unit]:
    """Return the retrainings of the best distinct genotypes, each genotype once.

    One that is over the limits of the experiment makes room for the next best.
    With `retrain.budget_hours` the best genotype of all is first, and else each group's best after
    those of the groups before it.

    Args:
        experiment: Its `retrain` says how many, per what, and with which seeds.
        rows: Search rows of the study; those that ran all their epochs can be chosen.
        identity: What else enters the keys.
    """
    if experiment.retrain is None:
        return []
    chosen: dict[str, tuple[Row, list[str]]] = {}
    for name, members in _grouped(experiment, rows).items():
        hashes: list[str] = []
        for row in _best_first(members, experiment.retrain.by):
            if row.genotype_hash is None or row.genotype_hash in hashes:
                continue
            if experiment.limits is not None and not fits(row, experiment.limits):
                continue
            hashes.append(row.genotype_hash)
            first = chosen.setdefault(row.genotype_hash, (row, []))
            first[1].append(name)
            if len(hashes) == experiment.retrain.top_k:
                break
    units = []
    ordered = list(chosen.values())
    if experiment.retrain.budget_hours is not None:
        best = _best_first([row for row, _ in ordered], experiment.retrain.by)
        places = {row.key: place for place, row in enumerate(best)}
        ordered.sort(key=lambda item: places[item[0].key])
    for row, names in ordered:
        if row.genotype is not None and row.genotype_hash is not None:
            units += genotype_units(
                experiment,
                row.genotype,
                row.genotype_hash,
                space=row.settings["space"],
                search=row.settings["search"],
                label=" + ".join(dict.fromkeys(names)),
                method=row.method,
                identity=identity,
            )
    return units


def retrain_settings(
    retrain: Retrain, space: Mapping[str, Any], search: Mapping[str, Any]
) -> RetrainSettings:
    """Return how a genotype of a search is trained."""
    if not retrain.consistent:
        return retrain.settings
    name, config = plugins.make_config("spaces", space)
    channels, cells = plugins.load("spaces", name).build(config, name).search_size()
    searched = plugins.typed_config(SearchSettings, search, where="search", owner="search")
    return consistent_with(searched, retrain.settings, channels=channels, cells=cells)


def genotype_units(
    experiment: Experiment,
    genotype: Mapping[str, Any],
    genotype_hash: str,
    *,
    space: Mapping[str, Any],
    search: Mapping[str, Any],
    label: str,
    method: str,
    identity: Identity,
) -> list[Unit]:
    """Return the retrainings of one genotype, one per seed of `retrain.seeds`.

    Args:
        experiment: How to train, and with which seeds.
        genotype, genotype_hash: What to train.
        space, search: Settings of the search that it is of, or that it is to be trained like.
        label, method: How tables name it.
        identity: What else enters the keys.
    """
    if experiment.retrain is None:
        return []
    training = retrain_settings(experiment.retrain, space, search)
    settings = dataclasses.asdict(training)
    trained = {"genotype": dict(genotype), "space": dict(space), "dataset": experiment.dataset}
    units = []
    for seed in experiment.retrain.seeds:
        key = retrain_key(genotype_hash, space, training, identity, seed)
        units.append(
            Unit(
                stage="retrain",
                settings={**trained, "retrain": settings},
                rows={seed: key},
                config_id=genotype_hash[:10],
                block=0,
                params={},
                label=label,
                epochs=int(settings["epochs"]),
                extra={
                    **recorded(identity, training.workers),
                    "genotype_hash": genotype_hash,
                    "method": method,
                },
            )
        )
    return units


def retrain_key(
    genotype_hash: str,
    space: Mapping[str, Any],
    training: RetrainSettings,
    identity: Identity,
    seed: int,
) -> str:
    """Return the ledger key of a retraining."""
    return row_key(
        "retrain",
        {
            "genotype": genotype_hash,
            "space": space["name"],
            "retrain": identifying(training),
            "dataset": dict(identity.dataset),
            "plugins": identity.plugins,
            "seed": seed,
        },
    )


def snapshot_plugins(folder: Path) -> None:
    """Copy the user's plug-in folders into a new study, so that workers and a resume find them.

    Args:
        folder: The study's `plugins/`.
    """
    folders = plugins.plugin_folders()
    digest = plugins.folders_digest(folders)
    if digest is None:
        return
    for index, source in enumerate(folders):
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(source, folder / digest / str(index), ignore=ignore, dirs_exist_ok=True)


def _grouped(experiment: Experiment, rows: Sequence[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    per_study = experiment.retrain is not None and experiment.retrain.per == "study"
    for row in rows:
        if row.stage != "search" or row.status != "finished" or row.genotype is None:
            continue
        group = "study" if per_study else retrain_group(experiment, row.settings)
        own, *selected = with_selections([row])
        grouped.setdefault(group, []).append(own)
        for other, result in zip(selected, row.selections.values(), strict=True):
            name = group if per_study else f"{group} select={result['label']}"
            grouped.setdefault(name, []).append(other)
    return grouped


def _best_first(rows: Sequence[Row], by: Metric) -> list[Row]:
    """Sort by a metric at the genotype's epoch; ties by label and seed, never by chance."""
    return sorted(rows, key=lambda row: (-row.quality(by), row.config_id, row.seed))


def fits(row: Row, limits: Limits) -> bool:
    """Return whether a row's genotype is known to be within the limits."""
    return row.evaluation is not None and not limits.over(row.evaluation)


def recorded(identity: Identity, workers: int = 1) -> dict[str, Any]:
    """Return what every row of a study records beside its settings."""
    per_trial = {name: workers * count for name, count in identity.per_trial.items()}
    return {"git": identity.git, "per_trial": per_trial}


def retrain_group(experiment: Experiment, settings: Mapping[str, Any]) -> str:
    """Return among what a search's genotype has to be one of the best: its method, in its space.

    Accuracies of supernets of different spaces are not compared.
    """
    group = method_group(experiment, settings["method"])
    spaces = {space.get("name") for space in candidates(experiment.space) if space}
    return f"{group} space={settings['space']['name']}" if len(spaces) > 1 else group


def method_group(experiment: Experiment, method: Mapping[str, Any]) -> str:
    """Return the label of the alternative of `method:` that a configuration's method came from.

    Configurations that differ in swept values alone belong to the same alternative.
    """
    word = sweep_word(experiment.method)
    alternatives = experiment.method[word] if word else [experiment.method]
    # A grid of plug-ins for a part is a choice of methods too.
    fixed = [
        without_words(filled) for alternative in alternatives for filled in _filled(alternative)
    ]
    labels = plugin_labels("methods", fixed)
    matching = [
        (-len(canonical(alternative)), label)
        for label, alternative in zip(labels, fixed, strict=True)
        if _agrees(method, alternative)
    ]
    # The one that says most: plain darts agrees with darts and a part from elsewhere too.
    return min(matching)[1] if matching else str(method["name"])


def _filled(alternative: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return an alternative once for each combination of its parts' grids of plug-ins."""
    filled = [dict(alternative)]
    for key in plugins.SLOTS:
        if sweep_word(alternative.get(key)) == "grid":
            filled = [{**each, key: part} for each in filled for part in alternative[key]["grid"]]
    return filled


def _agrees(method: Any, fixed: Any) -> bool:
    """Return whether a method's settings have all that is fixed in an alternative."""
    if isinstance(fixed, Mapping) and isinstance(method, Mapping):
        return all(key in method and _agrees(method[key], value) for key, value in fixed.items())
    return bool(method == fixed)
