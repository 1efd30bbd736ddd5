"""Checks between settings that are each right alone: what contradicts, and what has no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import designs, factors, pbt_section
from orchestrator.experiment import ORACLE_METRICS, Asha, Design, Experiment, Median, Pbt
from orchestrator.problems import Problems
from orchestrator.sweep_words import candidates, canonical

_MOST_BLOCKS = 10_000
_MOST_ROWS = 1_000_000  # a plan is held in memory, about a kilobyte for each


def check(experiment: Experiment, given: Mapping[str, Any], problems: Problems) -> None:
    """Report settings that contradict each other or have no effect.

    A check is left out where a section that it looks at is wrong already.

    Args:
        experiment: The experiment, with defaults in the place of what is wrong.
        given: What the file says, to tell a default from a setting.
        problems: Takes what is wrong.
    """
    if not problems.under("tune"):
        _mode(experiment, problems)
    if not problems.under("tune", "oracle", "retrain"):
        _oracle_metric(experiment, problems)
    if not problems.under("tune", experiment.trainable):
        _scheduler_epochs(experiment, problems)
    if not problems.under("tune", "seeds"):
        _seeds_per_trial(experiment, given, problems)
    pbt = experiment.tune.pbt
    if pbt is not None and not problems.under("tune"):
        pbt_section.check_alone(experiment, pbt, given, problems)
    if problems.under("method", "genotype", "space", experiment.trainable):
        return
    combinations = factors.count_blocks(experiment)
    if combinations > _MOST_BLOCKS:
        problems.add(
            experiment.trainable,
            f"the grids must make at most {_MOST_BLOCKS} combinations, got {combinations}. "
            "Use choice instead of grid, with tune.num_samples.",
        )
        return
    blocks = factors.blocks(experiment)
    _same_blocks(blocks, problems)
    if experiment.tune.design is not None and not problems.under("tune"):
        _design(experiment, experiment.tune.design, blocks, given, problems)
    elif pbt is not None and not problems.under("tune"):
        pbt_section.check_drawn(blocks, pbt, problems)
    elif not problems.under("tune"):
        _samples(experiment, blocks, given, problems)
    if not problems.under("tune", "seeds", "retrain", "keep", "method"):
        _counts(experiment, blocks, problems)


def _mode(experiment: Experiment, problems: Problems) -> None:
    metric, mode = experiment.tune.metric, experiment.tune.mode
    best = "min" if metric.endswith(("loss", "regret")) else "max"
    if mode != best:
        problems.add("tune.mode", f"tune.mode must be {best} for {metric}, got {mode!r}.")


def _oracle_metric(experiment: Experiment, problems: Problems) -> None:
    asked = {"tune.metric": experiment.tune.metric}
    if experiment.retrain is not None:
        asked["retrain.by"] = experiment.retrain.by
    of_oracle = {key: value for key, value in asked.items() if value in ORACLE_METRICS}
    for key, value in of_oracle.items():
        if not experiment.tune.allow_oracle_metric:
            problems.add(
                key,
                f"{key} cannot be of the oracle, got {value!r}: its table holds the test "
                "accuracies that the study is judged by, so that what they lead to would prove "
                "nothing. Write val_accuracy. tune.allow_oracle_metric: true allows it all the "
                "same, and is then said in every output.",
            )
        elif experiment.oracle is None:
            problems.add(key, f"{key} {value!r} needs an oracle: name a table by `oracle:`.")
    if experiment.tune.allow_oracle_metric and not of_oracle:
        problems.add(
            "tune.allow_oracle_metric",
            "tune.allow_oracle_metric has no effect: neither tune.metric nor retrain.by is of the "
            "oracle. Leave it out.",
        )


def _scheduler_epochs(experiment: Experiment, problems: Problems) -> None:
    scheduler = experiment.tune.scheduler
    if scheduler is None or isinstance(scheduler, Pbt):
        return
    epochs = min(candidates(experiment.swept["epochs"]))
    whole = f"{experiment.trainable}.epochs"
    at = "tune.scheduler"
    last, named = epochs, whole
    if isinstance(scheduler, Asha) and scheduler.max_epochs is not None:
        if scheduler.max_epochs > epochs:
            problems.add(
                at,
                f"{at}.max_epochs must be <= {whole} ({epochs}), got {scheduler.max_epochs}.",
            )
            return
        last, named = scheduler.max_epochs, f"{at}.max_epochs"
    if scheduler.grace_epochs >= last:
        problems.add(
            at,
            f"{at}.grace_epochs must be < {named} ({last}), or nothing is ever stopped, "
            f"got {scheduler.grace_epochs}.",
        )


def _seeds_per_trial(experiment: Experiment, given: Mapping[str, Any], problems: Problems) -> None:
    size, count = experiment.tune.seeds_per_trial, len(experiment.seeds)
    at = "tune.seeds_per_trial"
    if size != "all" and size > count:
        problems.add(at, f"{at} must be <= {count}, the number of seeds, got {size}.")
    asked = (given.get("tune") or {}).get("seeds_per_trial", "auto")
    if experiment.adaptive and asked not in ("auto", "all") and size != count:
        tune = experiment.tune
        name = tune.scheduler.name if tune.scheduler is not None else tune.searcher.name
        problems.add(
            at,
            f"{at} must be all with {name}, so that it judges configurations and not lucky seeds, "
            f"got {size} of {count}.",
        )


def _same_blocks(blocks: list[factors.Block], problems: Problems) -> None:
    seen: set[str] = set()
    for block in blocks:
        text = canonical(block.tree)
        if text in seen:
            problems.add("method", f"method: the grid gives {block.label} twice.")
        seen.add(text)


def _samples(
    experiment: Experiment,
    blocks: list[factors.Block],
    given: Mapping[str, Any],
    problems: Problems,
) -> None:
    tune = experiment.tune
    drawn = [block for block in blocks if block.dimensions]
    at = "tune.num_samples"
    if not drawn:
        if tune.searcher.name == "optuna":
            problems.add(
                "tune.searcher",
                "tune.searcher optuna has nothing to search: no setting is a choice, uniform, "
                "loguniform or randint. Use grid.",
            )
        elif tune.num_samples > 1:
            problems.add(
                at,
                f"{at} has no effect, got {tune.num_samples}: no setting is a choice, uniform, "
                "loguniform or randint. Leave it out; seeds repeat a configuration.",
            )
        return
    first = drawn[0].dimensions[0]
    if tune.searcher.name == "grid":
        problems.add(
            "tune.searcher",
            f"tune.searcher grid cannot run {first.path}, which is a {first.kind}. "
            "Use random or optuna, or write the values as a grid.",
        )
    elif "num_samples" not in (given.get("tune") or {}):
        problems.add(
            at, f"{at} must be given, since {first.path} is a {first.kind}: how many to draw."
        )
    sizes = [size for block in drawn if (size := factors.size(block)) is not None]
    if len(sizes) == len(drawn) and max(sizes) < tune.num_samples:
        problems.add(
            at,
            f"{at} must be <= {max(sizes)}, the number of different configurations of a block, "
            f"got {tune.num_samples}.",
        )


def _design(
    experiment: Experiment,
    design: Design,
    blocks: list[factors.Block],
    given: Mapping[str, Any],
    problems: Problems,
) -> None:
    tune = given.get("tune") or {}
    if "searcher" in tune:
        problems.add(
            "tune.searcher",
            f"tune.searcher has no effect with tune.design {design.name}, which says itself what "
            "is run. Leave one of them out.",
        )
    if experiment.tune.scheduler is not None:
        problems.add(
            "tune.scheduler",
            f"tune.scheduler must be none with tune.design {design.name}: a design is judged "
            f"whole, and {experiment.tune.scheduler.name} would cut the worse part of it.",
        )
    first = next((block for block in blocks if block.dimensions), blocks[0])
    for key, message in designs.problems_of(design, first.dimensions, tune.get("num_samples")):
        problems.add(key, message)


def _counts(experiment: Experiment, blocks: list[factors.Block], problems: Problems) -> None:
    configurations = factors.count(experiment, blocks)
    searches = configurations * len(experiment.seeds)
    if searches > _MOST_ROWS:
        problems.add(
            "tune",
            f"a study has at most {_MOST_ROWS} rows, configurations times seeds, got {searches}. "
            "Lower tune.num_samples or tune.scheduler.population, or leave out seeds or values.",
        )
    scheduler = experiment.tune.scheduler
    if scheduler is not None and configurations == 1:
        problems.add(
            "tune.scheduler",
            f"tune.scheduler {scheduler.name} has no effect: there is one configuration, and it "
            "compares configurations.",
        )
    elif isinstance(scheduler, Median) and scheduler.min_trials >= configurations:
        problems.add(
            "tune.scheduler",
            f"tune.scheduler.min_trials must be < {configurations}, the number of configurations, "
            f"got {scheduler.min_trials}.",
        )
    if experiment.retrain is not None and experiment.retrain.top_k > searches:
        problems.add(
            "retrain.top_k",
            f"retrain.top_k must be <= {searches}, the number of searches, "
            f"got {experiment.retrain.top_k}.",
        )
    if experiment.kept is not None and experiment.kept > searches:
        problems.add(
            "keep",
            f"keep must be at most best_{searches}, the number of "
            f"{'searches' if experiment.trainable == 'search' else 'retrainings'}, "
            f"got {experiment.keep!r}.",
        )
