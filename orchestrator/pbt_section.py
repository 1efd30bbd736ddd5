"""`tune.scheduler: {name: pbt}` of an experiment file, checked against the rest of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import factors
from orchestrator.dimensions import Dimension
from orchestrator.experiment import Experiment, Pbt
from orchestrator.problems import Problems
from orchestrator.sections import check_lowest
from orchestrator.sweep_words import candidates
from spaces.core.errors import near_miss
from trainables.settings import CHANGEABLE, why_fixed

_AT = "tune.scheduler"


def check_values(values: Mapping[str, Any], at: str, problems: Problems) -> None:
    """Report values of the record that are wrong by themselves."""
    before = len(problems.found)
    check_lowest(values, at, problems, population=2, every=1)
    quantile, resample = values.get("quantile", 0.25), values.get("resample", 0.25)
    if not 0 < quantile <= 0.5:
        problems.add(
            at,
            f"{at}.quantile must be > 0 and <= 0.5, so that the worst and the best differ, got "
            f"{quantile!r}.",
        )
    if not 0 <= resample <= 1:
        problems.add(at, f"{at}.resample must be a probability in [0, 1], got {resample!r}.")
    if len(problems.found) > before or "population" not in values:
        return
    if number_copied(values["population"], quantile) < 1:
        problems.add(
            at,
            f"{at}.population must be >= {math.ceil(1 / quantile)} with quantile {quantile:g}, or "
            f"no member ever copies another, got {values['population']}.",
        )


def number_copied(population: int, quantile: float) -> int:
    """Return how many members copy others, and how many are copied from."""
    return int(population * quantile + 1e-9)


def check_alone(
    experiment: Experiment, pbt: Pbt, given: Mapping[str, Any], problems: Problems
) -> None:
    """Report what cannot be where there are populations, whatever is drawn.

    Args:
        experiment: The experiment.
        pbt: Its scheduler.
        given: What the file says, to tell a default from a setting.
        problems: Takes what is wrong.
    """
    if experiment.trainable == "search":
        problems.add(
            _AT,
            f"{_AT} pbt is for retrainings (trainable: retrain). A search that copied another "
            "would copy its alphas too, so that its genotype would be the other's, and supernets "
            "are not compared by what their genotypes are worth. Use asha or median.",
        )
        return
    tune = given.get("tune") or {}
    if experiment.tune.searcher.name == "optuna":
        problems.add(
            "tune.searcher",
            "tune.searcher cannot be optuna with pbt: it learns what a setting is worth, and here "
            "settings change while they train. Leave it out, or use asha with it.",
        )
    elif experiment.tune.searcher.name == "grid" and "searcher" in tune:
        problems.add(
            "tune.searcher",
            "tune.searcher grid cannot begin a population, whose settings are drawn. Leave it out.",
        )
    if tune.get("seeds_per_trial", "auto") not in ("auto", 1):
        problems.add(
            "tune.seeds_per_trial",
            "tune.seeds_per_trial must be 1 with pbt, which has a population of its own for each "
            f"seed, got {tune['seeds_per_trial']!r}. Leave it out.",
        )
    if "num_samples" in tune:
        problems.add(
            "tune.num_samples",
            f"tune.num_samples has no effect with pbt: {_AT}.population says how many are drawn. "
            "Leave it out.",
        )
    _check_epochs(experiment, pbt, problems)


def _check_epochs(experiment: Experiment, pbt: Pbt, problems: Problems) -> None:
    if problems.under("retrain"):
        return
    epochs = min(candidates(experiment.swept["epochs"]))
    if pbt.every >= epochs:
        problems.add(
            _AT,
            f"{_AT}.every must be < retrain.epochs ({epochs}), or no member ever copies another, "
            f"got {pbt.every}.",
        )
    if experiment.workers > 1:
        problems.add(
            "retrain.workers",
            f"retrain.workers must be 1 with pbt, got {experiment.workers}: a member of a "
            "population trains in one process.",
        )
    if experiment.compiles:
        problems.add(
            "retrain.compile",
            "retrain.compile cannot be used with pbt: it would compile anew in each generation.",
        )


def check_drawn(blocks: Sequence[factors.Block], pbt: Pbt, problems: Problems) -> None:
    """Report settings that are drawn and cannot change, and names that are not drawn.

    Args:
        blocks: Grid blocks; all draw the same settings.
        pbt: The scheduler.
        problems: Takes what is wrong.
    """
    drawn = {setting(d): d for block in blocks for d in block.dimensions}
    if not drawn:
        problems.add(
            _AT,
            f"{_AT} pbt has nothing to change: no setting of retrain is a choice, uniform, "
            f"loguniform or randint. Draw some of {', '.join(CHANGEABLE)}.",
        )
        return
    for name, dimension in drawn.items():
        reason = why_fixed(name, dimension.args)
        if reason is not None:
            problems.add(
                f"retrain.{name}",
                f"retrain.{name} cannot be a {dimension.kind} with pbt, whose members go on from "
                f"each other's states: {reason}. Write a constant or a grid, which makes a "
                "population for each value.",
            )
    _check_mutations(pbt.mutations, drawn, problems)
    sizes = [size for block in blocks if (size := factors.size(block)) is not None]
    if sizes and min(sizes) < pbt.population:
        problems.add(
            _AT,
            f"{_AT}.population must be <= {min(sizes)}, the number of different configurations of "
            f"a block, got {pbt.population}.",
        )


def _check_mutations(
    mutations: Sequence[str] | None, drawn: Mapping[str, Dimension], problems: Problems
) -> None:
    if mutations is None:
        return
    at = f"{_AT}.mutations"
    if not mutations or len(set(mutations)) < len(mutations):
        problems.add(at, f"{at} must be different settings, at least one, got {[*mutations]!r}.")
    for name in mutations:
        if name not in drawn:
            miss = near_miss(name.removeprefix("retrain."), drawn)
            problems.add(
                at,
                f"{at} must be settings of retrain that are drawn ({', '.join(drawn)}), got "
                f"{name!r}.{miss}",
            )


def setting(dimension: Dimension) -> str:
    """Return the name of the setting of `retrain` that a dimension is of."""
    return dimension.path.removeprefix("retrain.")
