"""From an experiment's sweep words to blocks, and from a block to configurations. Imports no torch.

Grid factors are outer blocks: every combination of their values is one block, in the order of the
file. What is drawn (choice, uniform, loguniform, randint) are the dimensions inside a block.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from orchestrator.dimensions import PLUGIN_KINDS, Dimension, dimensions_of, holds, without_words
from orchestrator.experiment import Experiment, sweep_word
from orchestrator.labels import whole_labels
from orchestrator.sweep_words import canonical
from spaces.core import plugins
from spaces.core.genotype import Genotype
from trainables.settings import (
    RetrainSettings,
    SearchSettings,
    identifying,
    identifying_search,
)

if TYPE_CHECKING:
    import numpy as np
    import optuna

_PARTS = ("method", "space", "search")
_OF_TRAINING = ("genotype", "retrain")
_MAX_REPEATS = 1000


@dataclass(frozen=True)
class Block:
    """One combination of all grid factors.

    Attributes:
        index: Its place among the blocks of the experiment.
        tree: method, space, search, dataset and selection, or genotype, retrain, space and dataset
            with `trainable: retrain`; what is drawn is still a sweep word.
        dimensions: What is drawn, a condition's choice before what hangs on it.
        label: What tells it from the other blocks.
    """

    index: int
    tree: dict[str, Any]
    dimensions: tuple[Dimension, ...]
    label: str

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings of method, space and search, or genotype and retrain, that are not drawn."""
        parts = _OF_TRAINING if "genotype" in self.tree else _PARTS
        return {part: without_words(self.tree[part]) for part in parts}


@dataclass(frozen=True)
class Configuration:
    """One point of the sweep; each of its seeds is one search, or one retraining.

    Attributes:
        settings: As the tree of its block, every default filled in.
        params: What was drawn, by the name of its dimension.
        block: Index of its block.
        config_id: 10 hexadecimal characters of the settings.
    """

    settings: dict[str, Any]
    params: dict[str, Any]
    block: int
    config_id: str


def blocks(experiment: Experiment) -> list[Block]:
    """Return every combination of the grid factors, the last one of the file changing fastest."""
    rest = {"dataset": experiment.dataset, "selection": experiment.selection}
    if experiment.training is not None:
        rest = {"dataset": experiment.dataset, "space": experiment.space}
    parts = _parts(experiment)
    trees = [
        dict(zip(parts, combination, strict=True)) | rest
        for combination in itertools.product(*map(_expand, parts.values()))
    ]
    labels = whole_labels(
        [{part: without_words(settings) for part, settings in tree.items()} for tree in trees]
    )
    found = []
    for index, tree in enumerate(trees):
        dimensions = tuple(d for part in parts for d in dimensions_of(tree[part], part))
        found.append(Block(index, tree, dimensions, labels[index] or f"block {index}"))
    return found


def count_blocks(experiment: Experiment) -> int:
    """Return the number of combinations of the grid factors, without making them."""
    return math.prod(map(_count, _parts(experiment).values()))


def _parts(experiment: Experiment) -> dict[str, Any]:
    """Return what may be swept, by its section in the file."""
    if experiment.training is None:
        return {part: getattr(experiment, part) for part in _PARTS}
    return {"genotype": experiment.genotype or {}, "retrain": experiment.training.settings}


def label(configurations: Iterable[Configuration]) -> dict[str, str]:
    """Return a label for each configuration, by its id, that says what differs between them."""
    by_id = {item.config_id: item.settings for item in configurations}
    labels = whole_labels(list(by_id.values()))
    taken = Counter(labels)
    return {
        config_id: text if taken[text] == 1 else f"{text} ({config_id})"
        for config_id, text in zip(by_id, labels, strict=True)
    }


def size(block: Block) -> int | None:
    """Return how many different configurations a block has, or None for infinitely many."""
    total = 1
    for dimension in block.dimensions:
        if dimension.kind in ("uniform", "loguniform"):
            return None
        if dimension.condition is None:
            total *= _branches(block, dimension)
    return total


def count(experiment: Experiment, of: Sequence[Block] | None = None) -> int:
    """Return the number of configurations; each runs once per seed."""
    if experiment.tune.design is not None:
        made = blocks(experiment) if of is None else of
        return sum(len(_designed(experiment, block)) for block in made)
    samples = experiment.tune.samples
    sizes = [size(block) for block in (blocks(experiment) if of is None else of)]
    return sum(samples if most is None else min(samples, most) for most in sizes)


def configurations(experiment: Experiment) -> list[Configuration]:
    """Return what the searchers `grid` and `random`, or a design, run: known before it is run.

    The draws of every block come from the same stream, so that blocks are compared in pairs. What
    is drawn twice in a block is drawn anew.
    """
    import numpy as np

    found: list[Configuration] = []
    if experiment.tune.design is not None:
        return [each for block in blocks(experiment) for each in _designed(experiment, block)]
    for block in blocks(experiment):
        rng = np.random.default_rng(experiment.tune.searcher.seed)
        wanted = count(experiment, [block])
        drawn: dict[str, Configuration] = {}
        for _ in range(wanted * _MAX_REPEATS):
            if len(drawn) == wanted:
                break
            configuration = sample(block, rng)
            drawn.setdefault(configuration.config_id, configuration)
        found.extend(drawn.values())
    return found


def design_points(experiment: Experiment, block: Block) -> list[Configuration]:
    """Return a block's configurations in the order of its design, repeated ones included."""
    from orchestrator.designs import points

    tune = experiment.tune
    if tune.design is None:
        return []
    drawn = points(tune.design, block.dimensions, tune.num_samples)
    return [configuration(block, params) for params in drawn]


def _designed(experiment: Experiment, block: Block) -> list[Configuration]:
    found: dict[str, Configuration] = {}
    for each in design_points(experiment, block):
        found.setdefault(each.config_id, each)
    return list(found.values())


def sample(block: Block, rng: np.random.Generator) -> Configuration:
    """Draw a configuration of a block.

    One number is taken from `rng`; each dimension has a stream of its own, seeded by that number
    and the dimension's name. So blocks that are given equal generators agree in every dimension
    that they share.

    Args:
        block: Where to draw.
        rng: Advanced by one number, whatever the block.
    """
    import numpy as np

    number = int(rng.integers(2**63))
    params: dict[str, Any] = {}
    for dimension in block.dimensions:
        if not holds(dimension, params):
            continue
        name = int.from_bytes(hashlib.sha256(dimension.name.encode()).digest()[:8], "little")
        params[dimension.name] = draw(dimension, np.random.default_rng([number, name]))
    return configuration(block, params)


def draw(dimension: Dimension, rng: np.random.Generator) -> Any:
    """Draw the value of a dimension, as `Configuration.params` holds it."""
    if dimension.kind == "choice":
        return dimension.texts[int(rng.integers(len(dimension.args)))]
    low, high = dimension.args
    if dimension.kind == "randint":
        return int(rng.integers(low, high))
    if dimension.kind == "uniform":
        return float(rng.uniform(low, high))
    drawn = math.exp(float(rng.uniform(math.log(low), math.log(high))))
    return min(max(drawn, low), high)  # exp and log round


def suggest(block: Block, trial: optuna.trial.Trial) -> Configuration:
    """Let an Optuna trial choose a configuration of a block, by suggest calls."""
    params: dict[str, Any] = {}
    for dimension in block.dimensions:
        if not holds(dimension, params):
            continue
        name = dimension.name
        if dimension.kind == "choice":
            params[name] = trial.suggest_categorical(name, dimension.texts)
            continue
        low, high = dimension.args
        if dimension.kind == "randint":
            params[name] = trial.suggest_int(name, low, high - 1)
        else:
            params[name] = trial.suggest_float(name, low, high, log=dimension.kind == "loguniform")
    return configuration(block, params)


def distributions(block: Block) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return Optuna's distribution of every dimension, by name; a trial has those of its params."""
    from optuna import distributions as optuna_distributions

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for dimension in block.dimensions:
        if dimension.kind == "choice":
            found[dimension.name] = optuna_distributions.CategoricalDistribution(dimension.texts)
            continue
        low, high = dimension.args
        if dimension.kind == "randint":
            found[dimension.name] = optuna_distributions.IntDistribution(low, high - 1)
        else:
            log = dimension.kind == "loguniform"
            found[dimension.name] = optuna_distributions.FloatDistribution(low, high, log=log)
    return found


def configuration(block: Block, params: Mapping[str, Any]) -> Configuration:
    """Return the configuration of a block that has these drawn values.

    Args:
        block: The block.
        params: By the name of the dimension, as in `Configuration.params`.

    Raises:
        PluginSettingsError: The values do not go together.
    """
    settings: dict[str, Any] = dict(block.tree)
    for dimension in block.dimensions:
        if dimension.name not in params:
            continue
        value = params[dimension.name]
        if dimension.kind == "choice":
            value = dimension.args[dimension.texts.index(value)]
        settings = _with(settings, dimension.path.split("."), value)
    identity = _identity_of_training(settings) if "genotype" in settings else _checked(settings)
    digest = hashlib.sha256(canonical(identity).encode()).hexdigest()[:10]
    return Configuration(settings, dict(params), block.index, digest)


def _checked(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let plug-ins and settings of a search refuse it; return what tells it from others."""
    for part, kind in PLUGIN_KINDS.items():
        _check_plugin(kind, canonical(settings[part]))
    plugins.typed_config(SearchSettings, settings["search"], where="search", owner="search")
    return {**settings, "search": identifying_search(settings["search"])}


def _identity_of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a swept retraining from others: a genotype's name and form do not count."""
    training = plugins.typed_config(
        RetrainSettings, settings["retrain"], where="retrain", owner="retrain"
    )
    genotype = Genotype.from_json(settings["genotype"])
    return {**settings, "genotype": genotype.hash, "retrain": identifying(training)}


def _with(settings: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of nested settings in which the one at `path` has another value."""
    key, *rest = path
    if rest:
        value = _with(settings[key], rest, value)
    elif isinstance(value, Mapping):
        value = dict(value)
    return {**settings, key: value}


def _expand(node: Any) -> list[Any]:
    """Return every combination of the grid words of a plug-in's or a section's settings."""
    word = sweep_word(node)
    if word == "grid":
        return [expanded for item in node[word] for expanded in _expand(item)]
    if word is not None or not isinstance(node, Mapping):
        return [node]
    options = [_expand(value) for value in node.values()]
    return [dict(zip(node, values, strict=True)) for values in itertools.product(*options)]


@lru_cache(maxsize=1024)
def _check_plugin(kind: str, settings: str) -> None:
    """Let a plug-in refuse settings, given as JSON; what it took once it is not asked again."""
    plugins.make_config(kind, json.loads(settings))


def _count(node: Any) -> int:
    """Return the length of `_expand(node)`."""
    word = sweep_word(node)
    if word == "grid":
        return sum(_count(item) for item in node[word])
    if word is not None or not isinstance(node, Mapping):
        return 1
    return math.prod(_count(value) for value in node.values())


def _branches(block: Block, dimension: Dimension) -> int:
    """Return the number of values of a discrete dimension, with all that hangs on them."""
    if dimension.kind == "randint":
        return int(dimension.args[1] - dimension.args[0])
    total = 0
    for text in dimension.texts:
        below = [d for d in block.dimensions if d.condition == (dimension.name, str(text))]
        total += math.prod(_branches(block, d) for d in below)
    return total
