"""What was asked of a study and when: one file for each time that its experiment was changed.

`history/<n>.json` is written before `experiment.yaml` is replaced. An entry whose old experiment is
still the study's own was cut off between the two, and counts for nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import json_files
from orchestrator.errors import StudyError
from orchestrator.experiment import sweep_word
from orchestrator.ledger import replace_file

if TYPE_CHECKING:
    from orchestrator.study import Study

FOLDER = "history"
Differences = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Entry:
    """One change of a study's experiment.

    Attributes:
        time: When, ISO 8601 with the offset of the local time.
        command: The command line that asked for it.
        changes: Old and new value of each setting that was changed, by its path.
        experiment: The whole experiment as it was before, resolved.
    """

    time: str
    command: str
    changes: Mapping[str, Any]
    experiment: Mapping[str, Any]


def differences(before: Mapping[str, Any], after: Mapping[str, Any], at: str = "") -> Differences:
    """Return the old and new value of every setting that differs, by its path.

    What is swept, and a list, is one value.
    """
    found: Differences = {}
    for key in dict.fromkeys([*before, *after]):
        old, new, path = before.get(key), after.get(key), f"{at}{key}"
        if old == new:
            continue
        both = isinstance(old, Mapping) and isinstance(new, Mapping)
        if both and sweep_word(old) is None and sweep_word(new) is None and old and new:
            found |= differences(old, new, f"{path}.")
        else:
            found[path] = (old, new)
    return found


def read(study: Study) -> list[Entry]:
    """Return the changes of a study's experiment, oldest first.

    Raises:
        StudyError: An entry is damaged.
    """
    entries = [_entry(path) for path in _files(study.path)]
    if entries and entries[-1].experiment == _plain(study.experiment.resolved()):
        entries.pop()
    return entries


def count(folder: Path) -> int:
    """Return how many entries a study has, without reading them: 0 where it was never changed."""
    return len(_files(folder))


def write(study: Study, command: str, changes: Mapping[str, Any]) -> None:
    """Note that the study's experiment is about to be changed."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    entry = Entry(stamp, command, _plain(changes), _plain(study.experiment.resolved()))
    number = len(read(study)) + 1
    path = study.path / FOLDER / f"{number:04d}.json"
    replace_file(path, json.dumps(asdict(entry), indent=1).encode())


def _files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("[0-9]*.json"))


def _entry(path: Path) -> Entry:
    try:
        return Entry(**json_files.parse(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise StudyError(
            f"{path} is damaged ({error}). Remove it: it only says what the study was before."
        ) from error


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))
