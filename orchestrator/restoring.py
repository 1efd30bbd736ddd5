"""Which of the trials that Ray Tune knew go on in it, and what its searcher still has to give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator import outbox, ray_state
from orchestrator.ledger import Row
from orchestrator.ray_state import Remembered
from orchestrator.searchers import Known, ListSearcher, MakeConfig
from orchestrator.units import Unit


@dataclass(frozen=True)
class Plan:
    """What Ray Tune is to run.

    Attributes:
        searcher: Gives the trials that Tune does not know.
        new: How many those are, at most.
        configs: Trials that Tune knows and keeps, by id, with the configuration with which those
            go on that have not ended.
        ended: Ids of those that have ended.
    """

    searcher: Any
    new: int
    configs: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    ended: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing left to run."""
        return self.new <= 0 and len(self.ended) == len(self.configs)


MakePlan = Callable[[Sequence[Remembered]], Plan]
"""Plans what is to run, given the trials that Tune remembers."""


def go_on(
    folder: Path,
    make_plan: MakePlan,
    run: Callable[[Plan], None],
    told: Callable[[str], None],
) -> bool:
    """Restore what Ray Tune had and run on; return whether that could be done.

    Args:
        folder: Tune's own state.
        make_plan: Plans what is to run.
        run: Runs a plan, with the trials that it has of Tune's.
        told: Takes lines for the person.
    """
    if not (folder / "guard").is_dir():
        return False
    plan = make_plan(ray_state.heal(folder))
    if not plan.configs:
        told("Ray's state cannot be restored: rebuilding it from the ledger")
        return False
    if plan.is_empty:
        return True
    told(f"going on with {len(plan.configs)} trials that Ray had")
    try:
        run(plan)
    except ray_state.NotRestoredError as error:
        told(f"Ray did not restore them ({error}): rebuilding from the ledger")
        return False
    return True


def recorded_epochs(
    known: Mapping[str, int], partial: Iterable[Row], events: Path
) -> dict[str, int]:
    """Return by key the most epochs that any record has of a row: what was told is not taken back.

    Args:
        known: The same of the ledger.
        partial: Rows that were begun.
        events: The study's outbox.
    """
    found = dict(known)
    begun = [(row.key, row.epochs_done) for row in partial]
    for key, epochs in [*begun, *outbox.told_epochs(events).items()]:
        found[key] = max(found.get(key, 0), epochs)
    return found


def plan_list(
    units: Sequence[Unit],
    config: MakeConfig,
    remembered: Sequence[Remembered],
    is_settled: Callable[[Unit], bool],
) -> Plan:
    """Plan a list of units, each once: in a trial that Tune knows, or in a new one.

    Args:
        units: All that are to be run, those included that only report again.
        config: Makes the Ray configuration of a unit.
        remembered: What Tune knows.
        is_settled: Whether the ledger, too, says that a unit has ended.
    """
    by_keys = {tuple(unit.rows.values()): unit for unit in units}
    configs: dict[str, Mapping[str, Any] | None] = {}
    ended: list[str] = []
    for trial in remembered:
        unit = by_keys.get(trial.keys)
        if unit is None or (trial.ended and not is_settled(unit)):
            continue  # it is not of this plan, or has to run again
        del by_keys[trial.keys]
        configs[trial.trial_id] = None if trial.ended else config(unit)
        if trial.ended:
            ended.append(trial.trial_id)
    rest = list(by_keys.values())
    return Plan(ListSearcher(rest, config), len(rest), configs, ended)


def known_to_tune(
    known: Sequence[Known],
    remembered: Sequence[Remembered],
    settle: Callable[[str], Known | None],
) -> tuple[list[Known], list[str]]:
    """Say of an Optuna study's configurations in which trials of Tune they have ended or run.

    Args:
        known: What the study has met before.
        remembered: What Tune knows.
        settle: Returns a configuration by its id with its value, or None if it has not ended.

    Returns:
        The configurations, completed, and the ids of the trials that have ended.
    """
    found = {item.config_id: item for item in known}
    ended: list[str] = []
    met: set[str] = set()
    for trial in remembered:
        if trial.config_id in met:
            continue
        if trial.ended:
            item = settle(trial.config_id)
            if item is None:
                continue
            ended.append(trial.trial_id)
        else:
            item = Known(trial.block, trial.params, trial.config_id, None)
            item = replace(item, trial_id=trial.trial_id)
        met.add(trial.config_id)
        found[trial.config_id] = item
    return list(found.values()), ended
