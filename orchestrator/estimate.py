"""What a study will take, from a measured micro-step; starts nothing and writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import factors, packing, planning, sweep
from orchestrator.errors import StudyError
from orchestrator.experiment import Experiment
from orchestrator.kinds import kind_of
from orchestrator.memory_probe import uncompiled
from orchestrator.progress import Estimate, TrialPlan
from orchestrator.study import Study
from orchestrator.units import Unit
from spaces.core import plugins

if TYPE_CHECKING:
    from trainables.method import Method
    from trainables.search import SearchTrial

# Evaluating an image costs one of the about six forward passes' worth of a bilevel step (two
# forwards and two backwards of about twice the work each).
_EVALUATION_SHARE = 1 / 6
# Ray's start and the last batches to MLflow; then, before searches and before retrainings, workers
# that import torch.
START_S = 12.0
WORKERS_START_S = 9.0
# Trials side by side share caches, memory and the clock of a turbo boost.
SIDE_BY_SIDE = 1.25
ROW_BYTES = 2_000
FIXED_BYTES = 5_000_000


def estimate(experiment: Experiment, root: Path | None = None) -> Estimate:
    """Measure a few steps of each kind of trial and add them up.

    Args:
        experiment: What would be run; data and hardware have been checked.
        root: Folder of studies, where a study of that name may have finished rows already.

    Raises:
        StudyError: A trial does not fit the machine or cluster, or no cluster answers.
    """
    if experiment.training is not None:
        from orchestrator import training_estimate  # it needs this module

        return training_estimate.estimate(experiment, root)
    per_trial = experiment.tune.per_trial
    resources = resources_of(experiment)
    units = units_of(experiment)
    weighed = packing.weigh(experiment, units)
    concurrent = sweep.fits(resources, per_trial.cpus, weighed.gpus)
    concurrent = min(concurrent, experiment.tune.max_concurrent or concurrent)
    study = existing(experiment.name, root)
    plans = [
        TrialPlan(unit.label, seed, unit.config_id, study is not None and _has(study, key))
        for unit in units
        for seed, key in unit.rows.items()
    ]
    seconds, sizes, probes, engines = _measure(experiment, units)
    search_s = sum(
        seconds[unit.label] * unit.epochs + _probe_s(experiment, probes[unit.label], unit.epochs)
        for unit in units
        for key in unit.rows.values()
        if study is None or not _has(study, key)
    )
    busy = max(1, min(concurrent, len(units)))
    retrain_s, retrain, retrain_notes = _measure_retraining(experiment, units)
    start_s = START_S + WORKERS_START_S * (1 + bool(retrain_s))
    slower = SIDE_BY_SIDE if busy > 1 and not per_trial.on_gpu else 1.0
    kept = len(plans) if experiment.kept is None else min(experiment.kept, len(plans))
    rows_bytes = sum(unit.epochs * len(unit.rows) for unit in units) * ROW_BYTES
    largest = max(sizes.values())
    return Estimate(
        trials=plans,
        cpus_per_trial=per_trial.cpus,
        gpus_per_trial=weighed.gpus,
        cluster_cpus=resources.get("CPU", 0.0),
        cluster_gpus=resources.get("GPU", 0.0),
        concurrent=concurrent,
        seconds_per_epoch=seconds,
        total_s=start_s + slower * (search_s + retrain_s) / busy,
        # A running trial has weights, momentum and a copy of both on disk, and where it may go back
        # what it may go back to.
        disk_bytes=FIXED_BYTES
        + kept * largest
        + (3 + 2 * max(map(_states_kept, units))) * busy * largest
        + 2 * rows_bytes,
        memory_bytes=weighed.peaks,
        memory_there=weighed.there,
        packed=per_trial.gpus == "auto",
        retrain=retrain,
        notes=[
            *weighed.notes,
            *notes_of(experiment),
            *_probe_notes(experiment, probes),
            *retrain_notes,
        ],
        schedules={unit.label: text for unit in units if (text := _schedule(unit))},
        engines=engines,
    )


def state_bytes(experiment: Experiment) -> int:
    """Return the bytes of the largest final state of a search, by making one of each kind; 0 for a
    study of retrainings, which make none before they run.
    """
    if experiment.training is not None:
        return 0
    kinds = {kind_of(unit): unit for unit in units_of(experiment)}
    trials = (_search_trial(experiment, unit) for unit in kinds.values())
    return max(sum(sizes_of(trial.final_state())) for trial in trials)


def device_of(experiment: Experiment) -> str:
    """Return where trials run."""
    return "cuda" if experiment.tune.per_trial.on_gpu else "cpu"


def _states_kept(unit: Unit) -> int:
    """Return how many earlier states a search keeps at most, to go back to."""
    from trainables.compose import build_method

    name, config = plugins.make_config("methods", unit.settings["method"])
    rule = build_method(name, config, epochs=unit.epochs).early_stop
    if rule is None or rule.go_back is None:
        return 0
    times = rule.go_back.times(unit.settings["search"]["weight_decay"])
    reach = times * rule.go_back.reach(unit.epochs) + rule.go_back.extra_epochs
    return sum(rule.due(epoch, unit.epochs) for epoch in range(min(reach + 1, unit.epochs)))


def units_of(experiment: Experiment) -> list[Unit]:
    """Return what would run; what Optuna will draw is stood for by random draws."""
    identity = planning.identity(experiment, plugins_digest=planning.plugins_digest())
    configurations = configurations_of(experiment)
    labels = factors.label(configurations)
    return planning.search_units(experiment, configurations, identity, labels)


def configurations_of(experiment: Experiment) -> Sequence[factors.Configuration]:
    """Return what would run."""
    if experiment.tune.searcher.name == "optuna":
        # What Optuna will draw is not known; a random draw of each block stands for it.
        return _stand_ins(experiment)
    return planning.known_configurations(experiment)


def _stand_ins(experiment: Experiment) -> Sequence[factors.Configuration]:
    tune = experiment.tune.model_copy(
        update={"searcher": experiment.tune.searcher.model_copy(update={"name": "random"})}
    )
    return planning.known_configurations(experiment.model_copy(update={"tune": tune}))


def resources_of(experiment: Experiment) -> Mapping[str, float]:
    """Return the CPUs and GPUs that there are.

    Raises:
        StudyError: No cluster answers.
    """
    if experiment.ray.address != "local":
        log = Path(os.devnull)
        with sweep.cluster(experiment.ray.address, None, log) as resources:
            return resources
    from orchestrator.checks import visible_gpus

    cpus = experiment.ray.cpus or os.cpu_count() or 1
    return {"CPU": float(cpus), "GPU": float(visible_gpus() or 0)}


def existing(name: str, root: Path | None) -> Study | None:
    """Return the study of that name, or None."""
    with contextlib.suppress(StudyError):
        return Study.open(name, root)
    return None


def _has(study: Study, key: str) -> bool:
    return study.ledger.has_finished(key)


def _measure(
    experiment: Experiment, units: Sequence[Unit]
) -> tuple[dict[str, float], dict[str, int], dict[str, dict[str, float]], dict[str, str]]:
    """Measure each kind once.

    Returns:
        By label: seconds of an epoch, bytes of a final state, seconds of each diagnostic, and how
        steps are run.
    """
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    probes: dict[str, dict[str, float]] = {}
    engines: dict[str, str] = {}
    measured: dict[tuple[str, str], tuple[float, int, dict[str, float], str]] = {}
    for unit in units:
        kind = kind_of(unit)
        if kind not in measured:
            trial = _search_trial(experiment, unit)
            step = trial.time_steps(2)
            epoch_s = step * trial.steps_per_epoch * (1 + _EVALUATION_SHARE)
            size = sum(sizes_of(trial.final_state()))
            asked = unit.settings["search"].get("engine")
            engine = "compile, measured as eager" if asked == "compile" else str(trial.engine)
            measured[kind] = (epoch_s, size, trial.time_diagnostics(), engine)
        label = unit.label
        seconds[label], sizes[label], probes[label], engines[label] = measured[kind]
    return seconds, sizes, probes, engines


def _probe_s(experiment: Experiment, seconds: Mapping[str, float], epochs: int) -> float:
    """Return the seconds of all diagnostics of a search."""
    return sum(
        math.ceil(epochs / int(experiment.diagnostics[name]["every"])) * each
        for name, each in seconds.items()
    )


def _schedule(unit: Unit) -> str:
    """Return how a method's own values go over the epochs, or "" where it has none."""
    from trainables.compose import build_method, build_selection

    name, config = plugins.make_config("methods", unit.settings["method"])
    method = build_method(name, config, epochs=unit.epochs)
    stages = method.stages_of(unit.epochs)
    parts, start = [], 0
    for index, stage in enumerate(stages):
        words = _values(method, unit.epochs, index, start, stage.epochs)
        if rest := method.first_alpha_epoch(stage.epochs):
            words.insert(0, f"alphas rest for {rest} of {stage.epochs} epochs")
        if len(stages) > 1:
            count = stage.operations or "all"
            size = f"stage {index + 1}: {stage.added_cells:+d} cells, {count} operations"
            words = [f"{size}, {', '.join(words)}"]
        parts += words
        start += stage.epochs
    rule = build_selection(unit.settings["selection"], unit.settings["method"], of_method=method)
    if rule.at_end is not None:
        chosen = unit.settings["method"].get("select") or unit.settings["selection"]
        by = name if method.selection is rule else chosen["name"]
        parts.append(f"genotype by {by} after the last epoch, its time not counted")
    elif method.genotype_of == "best_epoch":
        parts.append("genotype of the best epoch")
    if method.early_stop is not None:
        due = [epoch for epoch in range(unit.epochs) if method.early_stop.due(epoch, unit.epochs)]
        what = unit.settings["method"]["early_stop"]["name"]
        back = method.early_stop.go_back
        if back is None:
            parts.append(f"may end early by {what}, measured {len(due)} times at most")
        else:
            times = back.times(unit.settings["search"]["weight_decay"])
            reach = back.reach(unit.epochs) + back.extra_epochs
            parts.append(
                f"may go back by {what}, {times} times at most and up to {reach} epochs each, "
                "which are not counted"
            )
    return (" · " if len(stages) > 1 else ", ").join(parts)


def _values(method: Method, epochs: int, stage: int, start: int, length: int) -> list[str]:
    """Return how the logged values of a method go over the epochs of a stage."""
    import torch

    from trainables.method import SearchPoint

    first, last = (
        method.log(
            SearchPoint(
                start + done,
                epochs,
                torch.Generator(),
                stage=stage,
                stage_epoch=done,
                stage_epochs=length,
            )
        )
        for done in (0, length - 1)
    )
    return [
        f"{key} {first[key]:.3g}"
        + (f" to {last[key]:.3g}" if first[key] != last[key] else " throughout")
        for key in first
        if key != "stage"
    ]


def _search_trial(experiment: Experiment, unit: Unit) -> SearchTrial:
    from trainables.search import SearchTrial

    settings = unit.settings
    return SearchTrial(
        space=settings["space"],
        dataset=settings["dataset"],
        method=settings["method"],
        selection=settings["selection"],
        diagnostics=settings.get("diagnostics"),
        search=uncompiled(settings["search"]),
        device=device_of(experiment),
    )


def _measure_retraining(
    experiment: Experiment, units: Sequence[Unit]
) -> tuple[float, str, list[str]]:
    """Return the seconds of all retrainings, by the network of a genotype of random alphas.

    Beside them a line on how many they are, and what their settings cannot have.
    """
    from trainables.retrain import RetrainTrial

    retrain = experiment.retrain
    if retrain is None:
        return 0.0, "", []
    unit = units[0]
    trial = RetrainTrial(
        genotype=_search_trial(experiment, unit).genotype,
        space=unit.settings["space"],
        dataset=unit.settings["dataset"],
        # As one worker, uncompiled: a compilation takes longer than what is measured here.
        retrain=dataclasses.replace(
            planning.retrain_settings(retrain, unit.settings["space"], unit.settings["search"]),
            compile=False,
            workers=1,
            shared_batch_norm=True,
        ),
        device=device_of(experiment),
    )
    groups = {planning.retrain_group(experiment, unit.settings)}
    if retrain.per == "method":
        groups = {planning.retrain_group(experiment, each.settings) for each in units}
    count = len(groups) * retrain.top_k * len(retrain.seeds)
    epoch_s = trial.time_steps(2) * trial.steps_per_epoch / experiment.workers
    text = f"at most {count} of {retrain.settings.epochs} epochs, about {epoch_s:.2g} s each"
    each_s = retrain.settings.epochs * epoch_s
    if retrain.budget_hours is not None and count * each_s > retrain.budget_hours * 3600:
        # The first one is started in any case: its epochs are the measure.
        count = max(1, int(retrain.budget_hours * 3600 / each_s))
        text += f"; budget_hours {retrain.budget_hours:g} is enough for about {count}"
    return count * each_s, text, trial.notes


def sizes_of(state: Any) -> Iterator[int]:
    """Yield the bytes of every tensor of a state."""
    if hasattr(state, "element_size"):
        yield state.element_size() * state.numel()
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from sizes_of(value)


def _probe_notes(experiment: Experiment, probes: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        f"diagnostic {name} of {label}: {each:.2g} s every {experiment.diagnostics[name]['every']} "
        "epochs"
        for label, seconds in probes.items()
        for name, each in seconds.items()
    ]


def notes_of(experiment: Experiment) -> list[str]:
    """Return what has to be known of every estimate."""
    notes = [
        "time: from steps measured on this machine, with allowances for start-up and shared cores"
    ]
    pbt = experiment.tune.pbt
    if experiment.tune.scheduler is not None and pbt is None:
        stopped = "searches" if experiment.trainable == "search" else "retrainings"
        notes.append(f"the scheduler {experiment.tune.scheduler.name} may stop {stopped} earlier")
    if experiment.tune.searcher.name == "optuna":
        notes.append("Optuna chooses while it runs: the configurations shown are random stand-ins")
    if experiment.search.get("engine") == "compile":
        notes.append(
            "engine: compile takes minutes before the first step of a trial; the times leave that "
            "out, and what it gains"
        )
    if experiment.max_hours is not None:
        notes.append(f"everything stops, resumable, after {experiment.max_hours:g} hours")
    return notes
