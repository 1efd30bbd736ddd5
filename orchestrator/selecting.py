"""Selection rules after the fact: other genotypes from the supernets that a study has stored."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator import costs
from orchestrator.errors import StudyError
from orchestrator.labels import plugin_labels
from orchestrator.ledger import Row
from orchestrator.outbox import Outbox, row_record
from orchestrator.study import Study
from orchestrator.sweep_words import canonical
from spaces.core import plugins
from spaces.core.errors import NasError


@dataclass(frozen=True)
class Plan:
    """What a rule has to do in a study.

    Attributes:
        rule: Name of the rule with its settings.
        name: How rows and MLflow call it: the rule's name, with a few characters of its settings
            where they are not the defaults.
        label: How tables call it, such as "operation_strength variant=signed".
        todo: Finished searches whose supernets are stored and that the rule has not chosen from.
        done: How many it has chosen from already.
        missing: Finished searches without a stored supernet.
    """

    rule: dict[str, Any]
    name: str
    label: str
    todo: Sequence[Row]
    done: int
    missing: int


def plan(study: Study, rule: str | Mapping[str, Any]) -> Plan:
    """Return what there is to do.

    Raises:
        UnknownPluginError: There is no such rule.
        PluginSettingsError: It does not take these settings.
        StudyError: No finished search has a stored supernet, or the study is simulated.
    """
    if study.simulated:
        raise StudyError(f"study {study.name} is simulated: no supernet was trained in it.")
    use_plugins(study)
    name, config = plugins.make_config("selections", rule, where="rule")
    settings = plugins.settings_of(name, config)
    defaults = plugins.settings_of(*plugins.make_config("selections", name))
    changed = {key: value for key, value in settings.items() if value != defaults[key]}
    short = hashlib.sha256(canonical(changed).encode()).hexdigest()[:6]
    called = f"{name}-{short}" if changed else name
    label = plugin_labels("selections", [defaults, settings])[1] if changed else name
    rows = [row for row in study.rows("search") if row.status == "finished"]
    stored = [row for row in rows if row.final and (study.path / row.final).is_file()]
    if not rows:
        raise StudyError(f"{study.name} has no finished search to select from.")
    if not stored:
        raise StudyError(
            f"{study.name}: no search has its final.pt (keep: {study.experiment.keep}), and "
            f"{name} needs the trained supernet. Run the study with keep: all."
        )
    version = plugins.describe("selections", name).results_version
    todo = [row for row in stored if not _is_done(row, called, version)]
    done, missing = len(stored) - len(todo), len(rows) - len(stored)
    return Plan(settings, called, label, todo, done, missing)


def use_plugins(study: Study) -> None:
    """Make known the plug-ins that the study was made with, then those that the user names.

    Rows are opened with what they were searched with; a rule may be newer than the study.
    """
    given = plugins.plugin_folders()
    study.experiment  # noqa: B018 (sets the folders of its snapshot)
    own = plugins.plugin_folders()
    folders = dict.fromkeys([*own, *given])
    if folders:
        os.environ[plugins.ENVIRONMENT_VARIABLE] = os.pathsep.join(map(str, folders))


def _is_done(row: Row, name: str, version: int) -> bool:
    return name in row.selections and row.selections[name].get("results_version") == version


def select(
    study: Study,
    planned: Plan,
    *,
    device: str = "auto",
    told: Callable[[int, Row], None] = lambda _count, _row: None,
) -> list[tuple[Row, str]]:
    """Apply a rule to the stored supernets, one after the other; each result is kept at once.

    Killed at any moment it loses one supernet's work; started again, it does the rest.

    Args:
        study: The study; nothing else may work on it meanwhile.
        planned: From `plan`.
        device: Where the supernets are evaluated.
        told: Called after each with how many are done.

    Returns:
        Rows that failed, each with the reason.

    Raises:
        StudyError: The study is running.
    """
    from torch import OutOfMemoryError

    from trainables.stored import open_final

    version = plugins.describe("selections", planned.rule["name"]).results_version
    failed: list[tuple[Row, str]] = []
    with study.hold(), Outbox(study.outbox) as outbox:
        for count, row in enumerate(planned.todo, start=1):
            start = time.perf_counter()
            # As it is now: another command may have added to it.
            row = study.ledger.read(row.key) or row
            try:
                trial = open_final(
                    study.path / str(row.final), dataset=row.settings["dataset"], device=device
                )
                found = trial.select(planned.rule)
            except (NasError, MemoryError, OutOfMemoryError) as error:
                failed.append((row, str(error)))
                continue
            result = {
                "rule": planned.rule,
                "results_version": version,
                "label": planned.label,
                "genotype": found.genotype.to_json(),
                "genotype_hash": found.genotype.hash,
                "scores": {name: matrix.tolist() for name, matrix in found.scores.items()},
                "time_s": time.perf_counter() - start,
                "fingerprint": dict(vars(trial.fingerprint)),
            }
            selections = {**row.selections, planned.name: result}
            study.ledger.write(replace(row, selections=selections))
            outbox.append(row_record(row.key, time.time()))
            told(count, row)
        for row in costs.fill(study):
            outbox.append(row_record(row.key, time.time()))
    return failed
