"""Study folders: files of a whole one are damaged, then commands look at it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from benchmarks.fuzzing import template
from benchmarks.fuzzing.damage import Damage, damaged, damages, write
from benchmarks.fuzzing.outcomes import Finding, Outcome, nas, tried, warnings_to
from benchmarks.fuzzing.store import RunStore
from orchestrator import config, factors, planning, reconciling
from orchestrator.experiment import Experiment
from orchestrator.study import Study

_NAME = "fuzzed"
# Some take a hundred times as long as others; how often each is drawn makes up for that.
_QUICK = ("status", "status --json", "status of all", "stop", "clean", "resume", "frames")
_SLOW = ("sync", "merge", "extend", "compare")
_SLOWEST = ("report", "sensitivity", "doctor")
COMMANDS = (*_QUICK * 12, *_SLOW * 2, *_SLOWEST)


@dataclass(frozen=True)
class Broken:
    """A study folder with damage.

    Attributes:
        targets: The files, as shares of the list of all.
        damages: What becomes of each.
        command: What looks at it.
        sort: The command, for counting.
    """

    targets: tuple[float, ...]
    damages: tuple[Damage, ...]
    command: str

    @property
    def sort(self) -> str:
        """The command."""
        return self.command


class Studies:
    """What commands do with a damaged study folder.

    Args:
        folder: An empty folder.
        commands: Those that are drawn; one that is there twice twice as often.
    """

    name = "study"

    def __init__(self, folder: Path, commands: tuple[str, ...] = COMMANDS) -> None:
        self._commands = commands
        self._template = template.make(folder / "whole")
        self._other = template.make(folder / "second", "second")
        self._root = folder / "studies"
        self._path = self._root / _NAME
        files = sorted(p for p in self._template.path.rglob("*") if p.is_file())
        self._files = [path.relative_to(self._template.path) for path in files]
        rows = [path for path in self._files if path.parent.name == "ledger"]
        # Rows are what must not be lost: they are drawn as often as all others together.
        self._targets = [*self._files, *rows, *rows]
        self._bytes = {path: (self._template.path / path).read_bytes() for path in self._files}
        self._load = config.load_resolved
        self._experiment = self._load(self._template.path / "experiment.yaml")
        self._looks: dict[str, Callable[[], str]] = {
            "status": lambda: self._nas("status", _NAME),
            "status --json": lambda: self._nas("status", _NAME, "--json"),
            "status of all": lambda: self._nas("status"),
            "stop": lambda: self._nas("stop", _NAME, "--wait", "0"),
            "clean": lambda: self._nas("clean", _NAME, "--dry-run"),
            "extend": lambda: self._nas("extend", _NAME, "--seeds", "0-2"),
            "merge": self._merge,
            "compare": lambda: self._nas("compare", _NAME, "--by", "method"),
            "sensitivity": lambda: self._nas("sensitivity", _NAME),
            "report": lambda: self._nas("report", _NAME, "--json"),
            "doctor": lambda: self._nas("doctor", str(self._path / "experiment.yaml")),
            "sync": lambda: self._called(_compare_with_store),
            "resume": lambda: self._called(_planned),
            "frames": lambda: self._called(_frames),
        }

    def inputs(self) -> st.SearchStrategy[Broken]:
        """Return folders with one damaged file, or several."""
        share = st.floats(0, 1, exclude_max=True)
        count = st.sampled_from([1, 1, 1, 2, 3])
        return st.builds(
            Broken,
            count.flatmap(lambda n: st.tuples(*[share] * n)),
            st.tuples(damages(), damages(), damages()),
            st.sampled_from(self._commands),
        )

    def check(self, item: Broken) -> Outcome:
        """Damage a copy of the study and look at it."""
        with mock.patch.object(config, "load_resolved", self._load_resolved):
            return self._check(item)

    def _load_resolved(self, path: Path) -> Experiment:
        """Read an experiment; the whole one was read before, which takes longer than all else."""
        if Path(path).read_bytes() == self._bytes[Path("experiment.yaml")]:
            return self._experiment
        return self._load(path)

    def _check(self, item: Broken) -> Outcome:
        self._template.copy(self._path)
        hit = self._damage(item)
        said = self._looks[item.command]()
        # What a resume would run is asked after every command.
        said += self._called(lambda study, _: _unended(study, self._template.searches))
        outcome: Outcome = "refused" if "REFUSED" in said else "accepted"
        if "REFUSED" in said:
            return outcome
        for path, damage in hit.items():
            if self._is_gone(path, damage, said):
                outcome = "repaired"
        if outcome == "repaired":
            again = self._nas("status", _NAME)
            gone = [p for p in hit if p.parent.name == "ledger" and self._row(p) is None]
            if gone and "ledger/damaged" not in again and "REFUSED" not in again:
                raise Finding("loss", f"the next status says nothing of it: {again!r:.600}")
        return outcome

    def _damage(self, item: Broken) -> dict[Path, Damage]:
        hit: dict[Path, Damage] = {}
        for share, damage in zip(item.targets, item.damages, strict=False):
            path = self._targets[int(share * len(self._targets))]
            if path in hit:
                continue
            data = self._bytes[path]
            if damage.sort == "field":
                data = _unsealed(data)
            others = [self._bytes[other] for other in self._files if other != path]
            new = damaged(data, damage, others)
            if new != self._bytes[path]:
                write(self._path / path, new)
                hit[path] = damage
        return hit

    def _is_gone(self, path: Path, damage: Damage, said: str) -> bool:
        """Return whether a row is not there any more, which has to have been said."""
        if path.parent.name == "ledger":
            row = self._row(path)
            before = self._template.rows[path.stem]
            if row is None:
                if path.stem not in said:
                    raise Finding("loss", f"a row is gone without a word: {said!r:.400}")
                return True
            if row != before and damage.sort != "field":
                raise Finding("loss", f"a damaged row was taken for whole ({damage.sort})")
        if path.name == "row.json":
            with warnings_to(io.StringIO()):
                partial = [row.key for row in Study.open(self._path).partial_rows()]
            gone = self._template.begun.key not in partial
            now = self._nas("status", _NAME) if gone else ""
            # A command that needs no experiment does not say that it is damaged too.
            if gone and path.parent.name not in now and "REFUSED" not in now:
                raise Finding("loss", "a begun row is gone without a word")
            return gone
        return False

    def _row(self, path: Path) -> Any:
        with warnings_to(io.StringIO()):
            return Study.open(self._path).ledger.read(path.stem)

    def _nas(self, *words: str) -> str:
        said = nas([*words, "--root", str(self._root)])
        if said.code not in (0, 1, 2):
            raise Finding("unclear", f"{words[0]}: exit code {said.code}, {said.everything!r:.300}")
        return said.everything + ("REFUSED" if said.code == 2 else "")

    def _called(self, function: Callable[[Study, Path], Any]) -> str:
        """Return the warnings and the message of a look by Python."""
        heard = io.StringIO()
        with warnings_to(heard):
            done, message = tried(lambda: (function(Study.open(self._path), self._root),))
        return heard.getvalue() + message + ("" if done else "REFUSED")

    def _merge(self) -> str:
        self._other.copy(self._root / "second")
        said = self._nas("merge", _NAME, "second", "--into", "both", "--prefer", "second")
        shutil.rmtree(self._root / "both", ignore_errors=True)
        shutil.rmtree(self._root / "second")
        return said


def _unended(study: Study, planned: Collection[str]) -> None:
    """Find what a resume would run: no damaged row may count as done."""
    with study.hold():
        ended = {key for key in planned if study.ledger.read(key) is not None}
        if ended - {row.key for row in study.rows()}:
            raise Finding("loss", "a resume counts a row that no table has")


def _planned(study: Study, _root: Path) -> None:
    """Plan a resume as its driver does."""
    configurations = planning.known_configurations(study.experiment)
    labels = factors.label(configurations)
    planning.search_units(study.experiment, configurations, template.identity(), labels)
    planning.retrain_units(study.experiment, study.rows(), template.identity())


def _frames(study: Study, _root: Path) -> None:
    study.trials()
    study.curves()
    study.genotypes()


def _compare_with_store(study: Study, _root: Path) -> None:
    reconciling.compare(study, RunStore())


def _unsealed(data: bytes) -> bytes:
    """Return a file of JSON without its checksum, as an earlier version or a person wrote it."""
    try:
        form = json.loads(data)
    except ValueError:
        return data
    if isinstance(form, dict):
        form.pop("crc32", None)
    return json.dumps(form).encode()
