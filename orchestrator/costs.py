"""What the evaluation networks of a study's genotypes cost, counted once and kept in its rows.

The network is the one that the study's `retrain` would build: its channels, cells and stem, for
the classes and the size of the dataset's images, without auxiliary head. A study that retrains
nothing counts the space's published evaluation network. A cost is a fact about a genotype: it
enters no key of a row, and no search sees it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError
from orchestrator.ledger import with_selections
from orchestrator.oracle_section import fixed_spaces
from orchestrator.planning import retrain_settings
from orchestrator.sweep_words import candidates
from spaces.core import plugins
from spaces.core.errors import SpaceError

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment
    from orchestrator.ledger import Row
    from orchestrator.study import Study
    from spaces.core.genotype import Genotype
    from spaces.core.space import Space
    from trainables.settings import RetrainSettings

Size = dict[str, Any]


@dataclass(frozen=True)
class _Images:
    """What of a dataset a network's size follows from."""

    in_channels: int
    classes: int
    image_size: int


class Costs:
    """Costs of genotypes in the evaluation network of an experiment.

    Args:
        experiment: Its `retrain` and dataset say how large the network is.

    Raises:
        NasError: The dataset cannot be read.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._retrain = experiment.retrain
        self._images = None if experiment.retrain is None else _images_of(experiment.dataset)
        self._spaces: dict[str, Space] = {}
        self._counted: dict[str, dict[str, Any]] = {}
        self._settings: dict[str, RetrainSettings] = {}

    def space(self, settings: Mapping[str, Any]) -> Space:
        """Return a space from its settings."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self._spaces:
            name, config = plugins.make_config("spaces", settings)
            self._spaces[key] = plugins.load("spaces", name).build(config, name)
        return self._spaces[key]

    def size(self, genotype: Genotype, space: Mapping[str, Any], search: Mapping[str, Any]) -> Size:
        """Return the size of a genotype's evaluation network, in the words of `network_cost`.

        Args:
            genotype: The architecture.
            space, search: Settings of the search that found it.

        Raises:
            SpaceError: The genotype cannot have a network of so many cells.
        """
        from spaces.core.space import LARGE_IMAGES

        built = self.space(space)
        published = built.evaluation
        if self._retrain is None or self._images is None:
            large = published.image_size >= LARGE_IMAGES and built.has_imagenet_stem
            return {
                "channels": published.channels,
                "cells": built.network_cells(genotype, None),
                "classes": published.classes,
                "in_channels": published.in_channels,
                "image_size": published.image_size,
                "stem": "imagenet" if large else "cifar",
            }
        settings = self._training(space, search)
        channels = published.channels if settings.channels is None else settings.channels
        cells = built.network_cells(genotype, settings.cells)
        return {"channels": channels, "cells": cells, **vars(self._images), "stem": settings.stem}

    def _training(self, space: Mapping[str, Any], search: Mapping[str, Any]) -> RetrainSettings:
        """Return how the genotypes of such searches are trained; found out once, for all rows."""
        key = json.dumps([dict(space), dict(search)], sort_keys=True)
        if key not in self._settings:
            assert self._retrain is not None
            self._settings[key] = retrain_settings(self._retrain, space, search)
        return self._settings[key]

    def of(
        self, genotype: Genotype, space: Mapping[str, Any], search: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return `params` and `macs` of a genotype's evaluation network, and its size.

        Raises:
            SpaceError: There is no such network.
        """
        from spaces.core.cost import network_cost

        size = self.size(genotype, space, search)
        key = json.dumps([genotype.to_json(), dict(space), size], sort_keys=True)
        if key not in self._counted:
            cost = network_cost(self.space(space), genotype, **size)
            self._counted[key] = {"params": cost.params, "macs": cost.macs, **size}
        return self._counted[key]


def found(rows: Sequence[Row]) -> list[Row]:
    """Return the finished searches that have a genotype, and what rules chose from them later."""
    searches = [row for row in rows if row.stage == "search" and row.status == "finished"]
    return [row for row in with_selections(searches) if row.genotype is not None]


def fill(study: Study) -> list[Row]:
    """Count what has not been counted in the network that the study's experiment says now.

    Args:
        study: The study, held by this process.

    Returns:
        The rows that were written anew, in the order in which they were started.

    Raises:
        NasError: A plug-in or the dataset is not here, or a genotype has no such network.
    """
    rows = [row for row in study.rows("search") if row.status == "finished" and row.genotype]
    if not rows:
        return []
    counts = Costs(study.experiment)
    changed = []
    for row in rows:
        selections = {
            name: {**result, "evaluation": _counted(counts, row, result)}
            for name, result in row.selections.items()
        }
        own = {"genotype": row.genotype, "evaluation": row.evaluation}
        new = replace(row, evaluation=_counted(counts, row, own), selections=selections)
        if new != row:
            study.ledger.write(new)
            changed.append(new)
    return changed


def _counted(counts: Costs, row: Row, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the cost of a genotype that a row holds; a count of the same network stays.

    Returns:
        None where the genotype has no such network: its retraining will say why.
    """
    from spaces.core.genotype import Genotype

    space = row.settings.get("space") or {"name": row.space}
    search = row.settings.get("search") or {}
    known = found.get("evaluation")
    try:
        genotype = Genotype.from_json(found["genotype"])
        size = counts.size(genotype, space, search)
        if known is not None and known | size == known:
            return dict(known)
        return counts.of(genotype, space, search)
    except SpaceError:
        return None


def check_limits(experiment: Experiment) -> None:
    """Refuse limits that no genotype of a space can keep, where that is cheap to tell.

    Spaces whose cells are no graph of edges with operations, and those whose cheapest operation of
    some edge is not known without counting, are not looked at.

    Raises:
        ConfigError: The cheapest genotype is over a limit.
        NasError: The dataset cannot be read.
    """
    if experiment.limits is None:
        return
    counts = Costs(experiment)
    problems = []
    for settings in fixed_spaces(experiment.space):
        genotype = cheapest(counts.space(settings))
        if genotype is None:
            continue
        cost = counts.of(genotype, settings, _search_of(experiment))
        problems += [
            f"limits.{key} must be >= {cost[key.removeprefix('max_')]:,}, got "
            f"{getattr(experiment.limits, key):,.0f}: no genotype of space {settings['name']} "
            f"costs less in {describe(cost)}. Raise it, or let retrain build a smaller network."
            for key in experiment.limits.over(cost)
        ]
    if problems:
        lines = (f"{experiment.name}: {problem}" for problem in dict.fromkeys(problems))
        raise ConfigError("\n".join(lines))


def check_genotype(experiment: Experiment, genotype: Genotype) -> None:
    """Refuse to retrain a given genotype that is over the limits of the experiment.

    Raises:
        ConfigError: It is.
    """
    if experiment.limits is None:
        return
    space = experiment.settings("space")
    cost = Costs(experiment).of(genotype, space, _search_of(experiment))
    for key in experiment.limits.over(cost):
        raise ConfigError(
            f"{experiment.name}: limits.{key} is {getattr(experiment.limits, key):,.0f}, and this "
            f"genotype has {cost[key.removeprefix('max_')]:,} in {describe(cost)}. "
            "Set limits=none to train it all the same."
        )


def describe(size: Mapping[str, Any]) -> str:
    """Return the words for an evaluation network."""
    if not {"channels", "cells", "classes", "image_size", "stem"} <= set(size):
        return "a network of a size that its row does not say"
    stem = ", the stem of ImageNet" if size["stem"] == "imagenet" else ""
    cells = "1 cell" if size["cells"] == 1 else f"{size['cells']} cells"
    return (
        f"the network of {size['channels']} channels, {cells}, {size['classes']:,} "
        f"classes and images of {size['image_size']} pixels{stem}"
    )


def cheapest(space: Space) -> Genotype | None:
    """Return the genotype with the least parameters and multiply-adds, or None where not known.

    An operation without weights costs nothing, but for a skip connection that leaves an input of
    a reduction cell, which is a convolution of stride 2 and so cheaper than any other with weights.
    Costs of edges add up, so that the cheapest operations on the cheapest edges are the least.
    """
    import torch

    from spaces.core.space import Space

    if not space.has_edges or type(space).make_network is not Space.make_network:
        return None
    weights = {}
    for name, shape in space.alpha_shapes().items():
        inputs = space.topology(name).num_inputs
        weights[name] = torch.zeros(shape)
        for row, (source, _) in enumerate(space.edges[name]):
            for column in space.selectable(name):
                operation = space.operations_of(name, row)[column]
                if operation not in space.parameter_free:
                    continue
                strided = operation == space.skip_operation and source < inputs
                weights[name][row, column] = 1.0 if strided else 2.0
    genotype = space.discretize(weights)
    edges = [edge.operation for cell in genotype.cells for edge in cell.edges]
    return genotype if set(edges) <= space.parameter_free else None


def _search_of(experiment: Experiment) -> dict[str, Any]:
    """Return settings of one search of an experiment: a network's size depends on none of them."""
    return {key: candidates(value)[0] for key, value in experiment.search.items()}


def _images_of(dataset: Mapping[str, Any]) -> _Images:
    name, config = plugins.make_config("datasets", dataset)
    images = plugins.load("datasets", name).load(config, "train")
    return _Images(images.in_channels, images.num_classes, images.image_size)
