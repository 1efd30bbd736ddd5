"""`nas extend`: a study that asks for more seeds, samples or values; its rows stay as they are."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import checks, config, costs, growth, history
from orchestrator.errors import ConfigError
from orchestrator.ledger import Row, read_row, replace_file, write_row
from orchestrator.progress import Progress
from orchestrator.study import Study

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment
    from orchestrator.units import Unit

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Extension:
    """What an extension changed.

    Attributes:
        changes: Old and new value by the path of the setting; none where the study had it all.
        before, after: Rows asked for before and after, without retrainings that follow searches.
        present: Rows of those that the ledger has.
    """

    changes: Mapping[str, Any]
    before: int
    after: int
    present: int


def extend(
    study: Study,
    *,
    command: str,
    seeds: Sequence[int] | None = None,
    num_samples: int | None = None,
    overrides: Sequence[str] = (),
) -> Extension:
    """Let a study ask for more; nothing is run, and what has been asked for already is no change.

    Args:
        study: The study; nobody may be running it.
        command: The command line, for the record.
        seeds: All seeds that it is to have, the old ones included.
        num_samples: Configurations that are to be drawn in each grid block.
        overrides: "search.weight_lr=[0.1, 0.2]" and the like: all values that it is to have.

    Raises:
        StudyError: The study is running.
        ConfigError: The result is no experiment, or not the old one and more.
    """
    with study.hold():
        old = study.experiment
        changes: dict[str, Any] = {}
        if seeds is not None:
            # The old ones first: the order has no meaning, and tables keep theirs.
            kept = [seed for seed in old.seeds if seed in seeds]
            changes["seeds"] = [*kept, *(seed for seed in seeds if seed not in kept)]
        if num_samples is not None:
            changes["tune.num_samples"] = num_samples
        new = config.load_changed(study.experiment_file, overrides, changes)
        refused = growth.refusals(old, new)
        if refused:
            raise ConfigError("\n".join(f"{study.name}: {sentence}" for sentence in refused))
        changed = history.differences(old.resolved(), new.resolved())
        if changed:
            _check(old, new)
            history.write(study, command, changed)
            config.dump(new, study.experiment_file)
        present = len(study.rows(new.trainable))
        after = growth.total(new)
        if changed:
            _note_progress(study, new, after, present)
    return Extension(changed, growth.total(old), after, present)


def read_seeds(text: str) -> list[int]:
    """Return the seeds that "0-3,7" names.

    Raises:
        ConfigError: It is of another form.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _SEEDS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= _MOST_SEEDS:
            raise ConfigError(f"--seeds must be numbers and ranges as 0-4,7, got {text!r}.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def relabel(study: Study, units: Iterable[Unit]) -> list[str]:
    """Give rows the labels and places that they have in a study that has grown; return their keys.

    A label says what differs in a study, so that it may say more where more differs.
    """
    changed = []
    for unit in units:
        for key in unit.rows.values():
            row = study.ledger.read(key)
            if row is not None and _differs(row, unit):
                study.ledger.write(replace(row, label=unit.label, block=unit.block))
                changed.append(key)
            partial = study.checkpoints / key / "row.json"
            begun = _partial(partial)
            if begun is not None and _differs(begun, unit):
                write_row(partial, replace(begun, label=unit.label, block=unit.block))
    return changed


def _differs(row: Row, unit: Unit) -> bool:
    return (row.label, row.block) != (unit.label, unit.block)


def _partial(path: Path) -> Row | None:
    try:
        return read_row(path)
    except ValueError:
        return None  # it will be begun anew


def _check(old: Experiment, new: Experiment) -> None:
    """Check what has not been checked when the study was made, as `nas run` does.

    Raises:
        ConfigError: Something of the new experiment cannot work.
        DataError: The dataset cannot be read.
    """
    sections = ("method", "space", "search", "genotype", "training", "retrain")
    if new.simulation is None and any(getattr(old, s) != getattr(new, s) for s in sections):
        checks.check_data(new)
        checks.check_methods(new)
        costs.check_limits(new)


def _note_progress(study: Study, new: Experiment, total: int, present: int) -> None:
    """Say that the study is not complete any more."""
    progress = Progress(stage=new.trainable, total=total, done=min(present, total))
    text = json.dumps({**asdict(progress), "time": time.time()})
    replace_file(study.progress, text.encode())
