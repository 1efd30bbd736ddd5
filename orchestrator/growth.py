"""Whether one experiment asks for all that another asks for, and for more of it alone.

A study may grow: by seeds, samples, values and retrainings. What its rows depend on stays, since a
row that the plan no longer has would be in the ledger and in no table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import factors, planning
from orchestrator.dataset_paths import PATH_SETTINGS
from orchestrator.dimensions import Dimension
from orchestrator.experiment import Experiment
from orchestrator.history import differences
from orchestrator.planning import Identity
from spaces.core.errors import NasError

FREE = (
    "name",
    "keep",
    "max_hours",
    "mlflow",
    "ray",
    "tune.max_concurrent",
    "tune.max_failures",
    "tune.per_trial",
    "tune.trial_timeout",
)
"""Settings, or sections, that change where and for how long trials run, and no row."""

GROWING = ("retrain.top_k", "retrain.budget_hours", "tune.num_samples")
_SHOWN = 3  # configurations that an error names


def refusals(old: Experiment, new: Experiment) -> list[str]:
    """Return why `new` is not `old` and more: a sentence each; none where it is."""
    before, after = old.resolved(), new.resolved()
    swept = _swept(old)
    found, planned = [], False
    for path, (was, asked) in differences(before, after).items():
        section = path.partition(".")[0]
        if is_free(path):
            continue
        if path in ("seeds", "retrain.seeds"):
            found += _lacks(path, was, asked)
        elif path in GROWING and not (section == "retrain" and section in swept):
            found += _lowered(path, was, asked)
            planned = planned or path == "tune.num_samples"
        elif section in swept:
            planned = True
        elif path == "retrain" and was is None:
            continue  # retrainings for a study that had none
        else:
            found.append(
                f"{path} must stay {_show(was)}, got {_show(asked)}: rows that the study has "
                "depend on it. Make a study of its own for that."
            )
    if not found and planned:
        found = _gone(old, new)
    return found


def is_free(path: str) -> bool:
    """Return whether a setting changes no row: where things lie and how trials are placed."""
    section, name = path.partition(".")[0], path.rpartition(".")[2]
    of_place = section in ("dataset", "oracle") and name in PATH_SETTINGS
    return of_place or any(path == free or path.startswith(f"{free}.") for free in FREE)


def total(experiment: Experiment) -> int:
    """Return the rows that an experiment asks for, those of retrainings after searches left out."""
    return factors.count(experiment) * len(experiment.seeds)


def _swept(experiment: Experiment) -> tuple[str, ...]:
    return ("method", "space", "search") if experiment.training is None else ("genotype", "retrain")


def _lacks(path: str, was: Any, asked: Any) -> list[str]:
    missing = [seed for seed in was or () if seed not in (asked or ())]
    if not missing:
        return []
    text = ", ".join(map(str, missing))
    return [f"{path} must keep {text}: rows of them may be there. Name the old ones too."]


def _lowered(path: str, was: Any, asked: Any) -> list[str]:
    if asked is None and path == "retrain.budget_hours":
        return []
    if was is None or asked is None or asked < was:
        return [f"{path} must be >= {_show(was)}, which the study asked for, got {_show(asked)}."]
    return []


def _gone(old: Experiment, new: Experiment) -> list[str]:
    """Say which configurations of the old plan the new one lacks."""
    if old.tune.searcher.name == "optuna":
        return _gone_blocks(old, new)
    keys = _keys(new)
    labels = {key: label for key, label in _keys(old).items() if key not in keys}
    if not labels:
        return []
    named = list(dict.fromkeys(labels.values()))
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    why = (
        " Draws of the searcher random come from one stream, in which other ranges or choices "
        "change every draw; num_samples and grids can grow."
        if any(block.dimensions for block in factors.blocks(old))
        else " Values can be added to those that the study has, not put in their place."
    )
    return [f"the study would lose {', '.join(named[:_SHOWN])}{more}.{why}"]


def _keys(experiment: Experiment) -> dict[str, str]:
    """Return the label of every row that is planned, by a key that no data enters."""
    tune = experiment.tune
    identity = Identity({"name": "", "digest": ""}, None, None, dict.fromkeys(("cpu", "gpu"), 1.0))
    if tune.pbt is not None:
        from orchestrator import population_units  # it needs more than this module may

        plans = population_units.plans(experiment, identity)
        return {key: plan.block.label for plan in plans for key in plan.keys}
    configurations = planning.known_configurations(experiment)
    labels = factors.label(configurations)
    make = planning.search_units
    if experiment.training is not None:
        from orchestrator import training

        make = training.training_units
    units = make(experiment, configurations, identity, labels)
    return {key: unit.label for unit in units for key in unit.rows.values()}


def _gone_blocks(old: Experiment, new: Experiment) -> list[str]:
    """Say which blocks of an Optuna sweep have no wider one in the new plan."""
    wider = factors.blocks(new)
    found = []
    for block in factors.blocks(old):
        if not any(_holds(other, block) for other in wider):
            found.append(
                f"the study would lose what it drew in {block.label!r}: settings that are fixed "
                "there must stay, and what is drawn may be drawn from more, not from other values."
            )
    return found


def _holds(wider: factors.Block, block: factors.Block) -> bool:
    """Return whether everything that can be drawn in a block can be drawn in another one."""
    there = {dimension.name: dimension for dimension in wider.dimensions}
    here = {dimension.name: dimension for dimension in block.dimensions}
    if wider.fixed != block.fixed or set(here) != set(there):
        return False
    return all(_reaches(there[name], dimension) for name, dimension in here.items())


def _reaches(wider: Dimension, dimension: Dimension) -> bool:
    if (wider.kind, wider.condition) != (dimension.kind, dimension.condition):
        return False
    if dimension.kind == "choice":
        there = dict(zip(wider.texts, wider.args, strict=True))
        own = zip(dimension.texts, dimension.args, strict=True)
        return all(text in there and there[text] == value for text, value in own)
    return bool(wider.args[0] <= dimension.args[0] and dimension.args[1] <= wider.args[1])


def located(blocks: list[factors.Block], row: Any) -> factors.Configuration | None:
    """Return the configuration of a row among blocks that may stand in another order by now.

    Args:
        blocks: Those of the experiment.
        row: A ledger row of what is compared.
    """
    likely = [block for block in blocks if block.index == row.block]
    for block in [*likely, *blocks]:
        try:
            configuration = factors.configuration(block, row.params)
        except (NasError, ValueError, KeyError, TypeError):
            continue  # its values are none of this block's
        if configuration.config_id == row.config_id:
            return configuration
    return None


def _show(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        return str(value["name"]) if len(value) == 1 else f"{value['name']} with its settings"
    return "none" if value is None else repr(value)
