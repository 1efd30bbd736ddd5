"""Retrainings that are swept themselves (`trainable: retrain`): their units and their checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator import factors
from orchestrator.checks import check_network, extremes, space_of, wants_imagenet_stem
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment, Retrain
from orchestrator.planning import Identity, recorded, retrain_key
from orchestrator.sweep_words import candidates
from orchestrator.units import Unit
from spaces.core import plugins
from spaces.core.errors import SpaceError
from spaces.core.genotype import Genotype
from trainables.settings import RetrainSettings

if TYPE_CHECKING:
    from orchestrator.factors import Configuration

_SIZES = ("channels", "cells", "stem", "auxiliary_weight")
_COMBINATIONS = 1000  # more extremes of a network's size add only time


def training_units(
    experiment: Experiment,
    configurations: Sequence[Configuration],
    identity: Identity,
    labels: Mapping[str, str],
) -> list[Unit]:
    """Return one unit for each configuration and block of seeds.

    A row has the key of the same retraining asked for in another way, of what a search found or by
    `nas retrain GENOTYPE`.
    """
    units = []
    for configuration in configurations:
        settings = configuration.settings
        genotype = Genotype.from_json(settings["genotype"])
        training = plugins.typed_config(
            RetrainSettings, settings["retrain"], where="retrain", owner="retrain"
        )
        for seeds in experiment.seed_blocks:
            units.append(
                Unit(
                    stage="retrain",
                    settings={**settings, "genotype": genotype.to_json()},
                    rows={
                        seed: retrain_key(
                            genotype.hash, settings["space"], training, identity, seed
                        )
                        for seed in seeds
                    },
                    config_id=configuration.config_id,
                    block=configuration.block,
                    params=configuration.params,
                    label=labels[configuration.config_id],
                    epochs=training.epochs,
                    extra={
                        **recorded(identity, training.workers),
                        "genotype_hash": genotype.hash,
                        "method": "given",
                    },
                )
            )
    return units


def check_images(experiment: Experiment) -> None:
    """Load the training images and refuse batches that are larger than what is not held out.

    Raises:
        ConfigError: A batch can never be filled, or there is no test split.
        DataError: The dataset cannot be read.
    """
    name, config = plugins.make_config("datasets", experiment.dataset)
    module = plugins.load("datasets", name)
    images = len(module.load(config, "train").labels)
    held_out = images - int(images * (1.0 - experiment.swept["val_share"]) + 1e-9)
    largest = max(candidates(experiment.swept["batch_size"]))
    problems = []
    if "test" not in module.splits(config):
        problems.append(f"a retraining needs a test split, and this dataset {name} has none here.")
    if experiment.held_out and not 0 < held_out < images:
        problems.append(
            f"retrain.val_share {experiment.swept['val_share']} holds out {held_out} of the "
            f"{images} training images of {name}; both parts must have one."
        )
    elif largest > images - held_out:
        problems.append(
            f"retrain.batch_size must be <= {images - held_out}, the training images of {name} "
            f"that are not held out, got {largest}."
        )
    if problems:
        raise ConfigError("\n".join(f"{experiment.name}: {problem}" for problem in problems))


def check_networks(experiment: Experiment) -> None:
    """Build every network in its smallest and largest sizes, without its memory.

    Raises:
        ConfigError: A network cannot be built, with the reason.
    """
    problems: list[str] = []
    space = space_of(experiment)
    for block in factors.blocks(experiment):
        genotype = Genotype.from_json(block.tree["genotype"])
        for settings in itertools.islice(_sizes(block.tree["retrain"]), _COMBINATIONS):
            of_one = experiment.model_copy(update={"retrain": Retrain(settings=settings)})
            try:
                check_network(of_one, space, genotype)
            except SpaceError as error:
                problems.append(f"{block.tree['genotype']['name']}: {error}")
            if wants_imagenet_stem(of_one) and not space.has_imagenet_stem:
                problems.append(
                    f"retrain.stem cannot be imagenet in space {space.name}, whose networks have "
                    "no such stem."
                )
    if problems:
        lines = (f"{experiment.name}: {problem}" for problem in dict.fromkeys(problems))
        raise ConfigError("\n".join(lines))


def _sizes(tree: Mapping[str, Any]) -> Iterator[RetrainSettings]:
    for sizes in extremes({key: tree[key] for key in _SIZES}):
        yield plugins.typed_config(RetrainSettings, sizes, where="retrain", owner="retrain")
