"""What a study of swept retrainings will take, from a measured step of each network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import estimate as of_searches
from orchestrator import factors, packing, planning, sweep
from orchestrator.experiment import Experiment
from orchestrator.kinds import kind_of
from orchestrator.pbt_section import number_copied
from orchestrator.population_units import plans
from orchestrator.progress import Estimate, TrialPlan
from orchestrator.training import training_units

if TYPE_CHECKING:
    from orchestrator.units import Unit
    from trainables.retrain import RetrainTrial

# A training step is a forward and a backward pass of about twice the work.
_EVALUATION_SHARE = 1 / 3


def estimate(experiment: Experiment, root: Path | None = None) -> Estimate:
    """Measure a few steps of each kind of network and add them up.

    Args:
        experiment: What would be run; data and hardware have been checked.
        root: Folder of studies, where a study of that name may have finished rows already.

    Raises:
        StudyError: A trial does not fit the machine or cluster, or no cluster answers.
    """
    per_trial = experiment.tune.per_trial
    resources = of_searches.resources_of(experiment)
    units = units_of(experiment)
    weighed = packing.weigh(experiment, units)
    concurrent = sweep.fits(resources, per_trial.cpus, weighed.gpus)
    concurrent = min(concurrent, experiment.tune.max_concurrent or concurrent)
    study = of_searches.existing(experiment.name, root)
    trials = [
        TrialPlan(
            unit.label, seed, unit.config_id, study is not None and study.ledger.has_finished(key)
        )
        for unit in units
        for seed, key in unit.rows.items()
    ]
    seconds, sizes, notes = _measure(experiment, units)
    new = {(plan.label, plan.seed) for plan in trials if not plan.cached}
    training_s = sum(
        seconds[unit.label] * unit.epochs
        for unit in units
        for seed in unit.rows
        if (unit.label, seed) in new
    )
    busy = max(1, min(concurrent, len(units)))
    slower = of_searches.SIDE_BY_SIDE if busy > 1 and not per_trial.on_gpu else 1.0
    kept = len(trials) if experiment.kept is None else min(experiment.kept, len(trials))
    rows_bytes = sum(unit.epochs * len(unit.rows) for unit in units) * of_searches.ROW_BYTES
    largest = max(sizes.values())
    # A running trial has weights, momentum and a copy of both on disk; a member of a population has
    # both from its generation, and from the one before that others may go on from.
    states = 3 * busy if experiment.tune.pbt is None else 4 * len(trials)
    return Estimate(
        trials=trials,
        stage="retrain",
        cpus_per_trial=per_trial.cpus,
        gpus_per_trial=weighed.gpus,
        cluster_cpus=resources.get("CPU", 0.0),
        cluster_gpus=resources.get("GPU", 0.0),
        concurrent=concurrent,
        seconds_per_epoch=seconds,
        total_s=of_searches.START_S + of_searches.WORKERS_START_S + slower * training_s / busy,
        disk_bytes=of_searches.FIXED_BYTES + (kept + states) * largest + 2 * rows_bytes,
        memory_bytes=weighed.peaks,
        memory_there=weighed.there,
        packed=per_trial.gpus == "auto",
        notes=[
            *weighed.notes,
            *_population_notes(experiment),
            *of_searches.notes_of(experiment),
            *notes,
        ],
    )


def units_of(experiment: Experiment) -> list[Unit]:
    """Return what would run; a population as it begins."""
    identity = planning.identity(experiment, plugins_digest=planning.plugins_digest())
    if experiment.tune.pbt is not None:
        return [unit for plan in plans(experiment, identity) for unit in plan.units()]
    configurations = of_searches.configurations_of(experiment)
    return training_units(experiment, configurations, identity, factors.label(configurations))


def _population_notes(experiment: Experiment) -> list[str]:
    pbt = experiment.tune.pbt
    if pbt is None:
        return []
    blocks = factors.blocks(experiment)
    count = len(blocks) * len(experiment.seeds)
    generations = [-(-int(block.tree["retrain"]["epochs"]) // pbt.every) for block in blocks]
    copied = number_copied(pbt.population, pbt.quantile)
    return [
        f"{count} population{'s' * (count > 1)} of {pbt.population} members, {max(generations)} "
        f"generations of {pbt.every} epochs; after each the worst {copied} copy the best {copied}",
        "settings change while members train: the times are those of the first ones",
    ]


def _measure(
    experiment: Experiment, units: Sequence[Unit]
) -> tuple[dict[str, float], dict[str, int], list[str]]:
    """Measure each kind of network once.

    Returns:
        By label: seconds of an epoch, and bytes of a final state; and what their settings cannot
        have.
    """
    measured: dict[tuple[str, str], tuple[float, int]] = {}
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    notes: list[str] = []
    share = float(experiment.swept["val_share"])
    for unit in units:
        kind = kind_of(unit)
        if kind not in measured:
            trial = _trial(experiment, unit)
            epoch_s = trial.time_steps(2) * trial.steps_per_epoch
            epoch_s *= 1 + _EVALUATION_SHARE * share / (1 - share)
            measured[kind] = (epoch_s, sum(of_searches.sizes_of(trial.final_state())))
            notes += trial.notes
        seconds[unit.label], sizes[unit.label] = measured[kind]
    return seconds, sizes, list(dict.fromkeys(notes))


def _trial(experiment: Experiment, unit: Unit) -> RetrainTrial:
    from spaces.core.genotype import Genotype
    from trainables.retrain import RetrainTrial

    return RetrainTrial(
        genotype=Genotype.from_json(unit.settings["genotype"]),
        space=unit.settings["space"],
        dataset=unit.settings["dataset"],
        # As one worker, uncompiled: a compilation takes longer than what is measured here.
        retrain={
            **unit.settings["retrain"],
            "compile": False,
            "workers": 1,
            "shared_batch_norm": True,
        },
        device=of_searches.device_of(experiment),
    )
