"""What of a study's folder can go: checkpoints of rows that ended, Ray's state, leftovers."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StudyError
from orchestrator.population_file import FOLDER, state_name
from orchestrator.study import Study

# A row with one of these is never continued; a stopped or failed one may be, from its checkpoint.
_FINAL = ("finished", "diverged")
_KEPT = "final.pt"
# What an atomic write leaves behind when its process is killed: .NAME.RANDOM beside NAME.
_LEFTOVER = re.compile(r"\..+\.[A-Za-z0-9_]{6,}")
_OF_TRIALS = ("ledger", "checkpoints/*", FOLDER)
_OF_COMMANDS = ("outbox", "report", "logs/*", "nodes", ".")
_OF_A_RUNNING_TRIAL = ("state.pt", "row.json")
_WRITING_S = 60.0


@dataclass(frozen=True)
class Removal:
    """Files and folders that can go.

    Attributes:
        paths: What is removed, whole.
        size: Bytes that this frees.
    """

    paths: tuple[Path, ...]
    size: int


def removable(study: Study) -> Removal:
    """Return what no later command needs: the ledger, every `final.pt` and the experiment stay.

    Raises:
        StudyError: The study is running.
    """
    holder = study.holder()
    if holder is not None:
        raise StudyError(
            f"study {study.name} is running (pid {holder.pid} on host {holder.host}): "
            "clean it when it has ended."
        )
    paths: list[Path] = []
    for row in study.ledger.iterate():
        folder = study.checkpoints / row.key
        if row.status in _FINAL and folder.is_dir():
            # Others of its population may still go on from a member's state; the driver knows when
            # they do not, and removes it.
            kept = {_KEPT, *(path.name for path in folder.glob(state_name("*")))}
            paths += [path for path in sorted(folder.iterdir()) if path.name not in kept]
    # Ray's state is never read back: a resumed study rebuilds its trials from the folder.
    if study.ray.is_dir():
        paths.append(study.ray)
    taken = set(paths)
    left = _leftovers(study, (*_OF_TRIALS, *_OF_COMMANDS))
    paths += [path for path in left if path not in taken]
    return Removal(tuple(paths), sum(_size(path) for path in paths))


def clean(study: Study) -> Removal:
    """Remove what `removable` names, and return it.

    Raises:
        StudyError: The study is running.
    """
    with study.hold():
        pass  # refuses where a driver has started meanwhile
    removal = removable(study)
    for path in removal.paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if study.checkpoints.is_dir():
        for folder in study.checkpoints.iterdir():
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return removal


def tidy(study: Study) -> None:
    """Remove what killed processes left; the caller holds the study, and none of its trials run.

    That is the state and the partial row of a trial that had ended, and parts of files that were
    never put in place. Where another command may be writing, only parts that are a minute old go.
    """
    for path in _leftovers(study, _OF_TRIALS):
        path.unlink(missing_ok=True)
    for path in _leftovers(study, _OF_COMMANDS):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _WRITING_S:
                path.unlink()
    for name in _OF_A_RUNNING_TRIAL:
        for path in study.checkpoints.glob(f"*/{name}"):
            row = study.ledger.read(path.parent.name)
            if row is not None and row.status in _FINAL:
                path.unlink(missing_ok=True)


def _leftovers(study: Study, folders: Iterable[str]) -> Iterable[Path]:
    for pattern in (f"{folder}/.*" for folder in folders):
        for path in sorted(study.path.glob(pattern)):
            if path.is_file() and _LEFTOVER.fullmatch(path.name):
                yield path


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(inner) for inner in path.iterdir())
    return path.lstat().st_size
