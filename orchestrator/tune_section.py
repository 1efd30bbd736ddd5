"""The section `tune` of an experiment file: searcher, scheduler, resources of a trial."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from orchestrator.experiment import (
    ORACLE_METRICS,
    Asha,
    Design,
    Median,
    Pbt,
    PerTrial,
    Searcher,
    Tune,
)
from orchestrator.pbt_section import check_values
from orchestrator.problems import Problems
from orchestrator.sections import check_lowest, check_mapping, check_record
from orchestrator.settings_tree import check_fields, specs_of
from spaces.core.errors import near_miss

_OF_DESIGNS: Mapping[str, tuple[str, ...]] = {
    "levels": ("grid", "one_at_a_time"),
    "centre": ("one_at_a_time",),
    "indices": ("sobol",),
    "seed": ("sobol",),
}
_SCHEDULERS: Mapping[str, type[Asha | Median | Pbt]] = {
    "asha": Asha,
    "median": Median,
    "pbt": Pbt,
}


def check_tune(value: Any, problems: Problems, *, swept: bool) -> Tune:
    """Return the section `tune`.

    Args:
        value: What the file says.
        problems: Takes what is wrong.
        swept: Whether anything is drawn, so that the searcher is by default "random".
    """
    given = dict(check_mapping(value, "tune", problems) or {})
    parts = {
        "searcher": _searcher(given.pop("searcher", "random" if swept else "grid"), problems),
        "design": _design(given.pop("design", None), problems),
        "scheduler": _scheduler(given.pop("scheduler", None), problems),
        "per_trial": _per_trial(given.pop("per_trial", None), problems),
        "seeds_per_trial": _seeds_per_trial(given.pop("seeds_per_trial", "auto"), problems),
    }
    metric = given.get("metric", "val_accuracy")
    if metric in ORACLE_METRICS:
        pass  # whether that is allowed is asked where the whole experiment is known
    elif isinstance(metric, str) and "oracle" in metric:
        problems.add(
            "tune.metric",
            f"tune.metric must be one of {', '.join(ORACLE_METRICS)} to be of the oracle, got "
            f"{metric!r}.",
        )
        del given["metric"]
    elif isinstance(metric, str) and "test" in metric:
        problems.add(
            "tune.metric",
            f"tune.metric must be of the validation split, got {metric!r}. The test split is read "
            "once, by retrain; write val_accuracy.",
        )
        del given["metric"]
    if metric in ("val_loss", "oracle/test_regret") and "mode" not in given:
        given["mode"] = "min"
    tune = check_record(Tune, given, "tune", problems, parts)
    check_lowest(
        tune.model_dump(), "tune", problems, num_samples=1, max_concurrent=1, max_failures=0
    )
    return tune


def _searcher(value: Any, problems: Problems) -> Searcher:
    at = "tune.searcher"
    given = {"name": value} if isinstance(value, str) else check_mapping(value, at, problems)
    if not given:
        return Searcher()
    if "name" not in given:
        problems.add(at, f"{at}.name is missing, got keys {[*given]!r}.")
        return Searcher()
    searcher = check_record(Searcher, given, at, problems)
    check_lowest(searcher.model_dump(), at, problems, seed=0)
    if given["name"] == "grid" and "seed" in given:
        problems.add(at, f"{at}.seed has no effect with grid, which draws nothing. Leave it out.")
    return searcher


def _design(value: Any, problems: Problems) -> Design | None:
    at = "tune.design"
    if value is None or value == "none":
        return None
    given = {"name": value} if isinstance(value, str) else check_mapping(value, at, problems)
    if given is None:
        return None
    names = typing.get_args(specs_of(Design)["name"].hint)
    name = given.get("name")
    if name not in names:
        miss = near_miss(str(name), names)
        problems.add(at, f"{at} must be one of {', '.join(names)}, got {name!r}.{miss}")
        return None
    before = len(problems.found)
    for key in given:
        if key in _OF_DESIGNS and name not in _OF_DESIGNS[key]:
            problems.add(f"{at}.{key}", f"{at}.{key} has no effect with {name}. Leave it out.")
    centre = check_mapping(given.get("centre"), f"{at}.centre", problems) or {}
    rest = {key: item for key, item in given.items() if key not in ("name", "centre")}
    specs = {key: spec for key, spec in specs_of(Design).items() if key not in ("name", "centre")}
    values = check_fields(specs, rest, at, str(name), problems)
    check_lowest(values, at, problems, levels=2, seed=0)
    if len(problems.found) > before:
        return None
    given_centre = {str(key): item for key, item in centre.items()}
    return Design.model_validate({"name": name, "centre": given_centre, **values})


def _scheduler(value: Any, problems: Problems) -> Asha | Median | Pbt | None:
    at = "tune.scheduler"
    if value is None or value == "none":
        return None
    given = {"name": value} if isinstance(value, str) else check_mapping(value, at, problems)
    if given is None:
        return None
    name = given.get("name")
    names = ("none", *_SCHEDULERS)
    if not isinstance(name, str) or name not in names:
        miss = near_miss(str(name), _SCHEDULERS)
        problems.add(at, f"{at} must be one of {', '.join(names)}, got {name!r}.{miss}")
        return None
    rest = {key: item for key, item in given.items() if key != "name"}
    if name == "none":
        if rest:
            problems.add(at, f"{at}: {', '.join(map(str, rest))} has no effect with none.")
        return None
    record = _SCHEDULERS[name]
    before = len(problems.found)
    specs = {key: spec for key, spec in specs_of(record).items() if key != "name"}
    values = check_fields(specs, rest, at, name, problems)
    check_lowest(values, at, problems, grace_epochs=1, min_trials=1)
    if values.get("reduction_factor", 2) <= 1:
        got = values["reduction_factor"]
        problems.add(at, f"{at}.reduction_factor must be > 1, got {got!r}.")
    if record is Pbt:
        check_values(values, at, problems)
    return record(**values) if len(problems.found) == before else None


def _per_trial(value: Any, problems: Problems) -> PerTrial:
    at = "tune.per_trial"
    per_trial = check_record(PerTrial, check_mapping(value, at, problems) or {}, at, problems)
    if per_trial.cpus <= 0:
        problems.add(at, f"{at}.cpus must be > 0, got {per_trial.cpus!r}.")
    message = _gpu_share(per_trial.gpus)
    if message:
        problems.add(at, f"{at}.gpus must be {message}, got {per_trial.gpus!r}.")
    return per_trial


def _gpu_share(gpus: float) -> str | None:
    """Return what must hold of a share of GPUs, or None.

    Ray counts shares in steps of 1e-4; shares other than 1/n leave a rest on each GPU, which it
    adds up over several GPUs as if it were one.
    """
    if gpus < 0:
        return ">= 0"
    if gpus > 1:
        return None if gpus == int(gpus) else f"a whole number above 1, as {int(gpus)}"
    if gpus == 0:
        return None
    sharing = max(1, round(1 / gpus))
    if 0.98 / sharing <= gpus <= 1 / sharing:
        return None
    nearest = int(10_000 / sharing) / 10_000
    return f"0, a share 1/n or a whole number: the nearest is {nearest:g} ({sharing} on a GPU)"


def _seeds_per_trial(value: Any, problems: Problems) -> Any:
    """Return "all" or a number; "auto" is 1 here and becomes "all" in an adaptive sweep."""
    if value in ("auto", "all") and isinstance(value, str):
        return 1 if value == "auto" else "all"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    at = "tune.seeds_per_trial"
    problems.add(at, f"{at} must be auto, all or a number >= 1, got {value!r}.")
    return 1
