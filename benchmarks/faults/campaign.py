"""Rounds of the fault campaign, one study each, and what came of them."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import kinds
from benchmarks.faults.checking import Reference, check
from benchmarks.faults.kinds import Scene
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.stores import MlflowServer
from benchmarks.faults.studies import ROWS, Command, RoundStudy, Times
from orchestrator.commands_run import TRIALS_FAILED

_MOST_EPOCHS = ROWS * 3 // 2
"""Of these many recorded epochs, about what a round has, a random one is when a fault strikes."""
_COMMAND_S = 240.0
_RESUMES = 5
_SYNCS = 6


@dataclass
class Round:
    """One round as it ended.

    Attributes:
        seed: Of the campaign.
        round: Its number, from 0.
        faults: Kinds of the faults that struck, in order; fewer than were drawn where the study was
            complete before.
        said: What each did.
        resumes: Times that `nas resume` was called.
        codes: Exit codes of `nas run` and of every `nas resume`; -9 of a killed one.
        recovery_s: Of each fault, seconds until every trial that ran had its next epoch, its place
            in the queue included; None where none of them had another one.
        wall_s: Seconds of the round, its check left out.
        lost, doubled, wrong, redone, destroyed, knew: See `Verdict`.
    """

    seed: int
    round: int
    faults: list[str]
    said: list[str]
    resumes: int
    codes: list[int]
    recovery_s: list[float | None]
    wall_s: float
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    redone: int = 0
    destroyed: int = 0
    knew: bool | None = None


class Campaign:
    """A cluster, an MLflow server and a small disk, for rounds; a context manager.

    Args:
        seed: Of all random choices; a round's depend on its number and on nothing else.
        database: "auto", "sqlite" or "postgresql".
        only: Kinds of fault; None is all that can be made here.
        faults: Faults of a round; None is one to three at random.
        keep: Folder for studies and logs of rounds in which something was amiss, or a command ended
            with trials that had failed.
    """

    def __init__(
        self,
        seed: int,
        *,
        database: str = "auto",
        only: Sequence[str] | None = None,
        faults: int | None = None,
        keep: Path | None = None,
    ) -> None:
        self._seed, self._only, self._faults, self._keep = seed, only, faults, keep
        self._stack = contextlib.ExitStack()
        self._database = database
        self._reference = Reference()

    def __enter__(self) -> Campaign:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nas-faults-")))
            stack.callback(self._reference.close)
            self._logs = folder / "logs"
            self._root = folder / "studies"
            self.small_disk = kinds.small_disk(self._root)
            stack.callback(kinds.unmount, self._root)
            self.server = stack.enter_context(MlflowServer(folder / "mlflow", self._database))
            self._nodes = stack.enter_context(Nodes())
            self.kinds = kinds.possible(self.server, small_disk=self.small_disk)
            if self._only is not None:
                self.kinds = [kind for kind in self._only if kind in self.kinds]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, number: int, chosen: Sequence[str] | None = None) -> Round:
        """Run one round to its end, and check all that it left.

        Args:
            number: Its number.
            chosen: Kinds of its faults, in order; None is at random.
        """
        rng = random.Random(f"{self._seed}/{number}")
        drawn = self._choose(number, rng)
        chosen = drawn if chosen is None else list(chosen)
        study = RoundStudy(
            f"round-{number}",
            self._root,
            self._logs,
            address=self._nodes.address,
            uri=self.server.uri,
            seed=rng.randrange(4),
        )
        started = time.monotonic()
        played = _Play(study, self._nodes, self.server, rng)
        played.run(chosen)
        wall_s = time.monotonic() - started
        times = study.times()
        verdict = check(study, self._reference, self.server.uri, played.struck, played.destroyed)
        verdict.wrong += played.complaints
        result = Round(
            seed=self._seed,
            round=number,
            faults=played.faults,
            said=played.said,
            resumes=len(played.codes) - 1,
            codes=played.codes,
            recovery_s=[_recovery(times, *moment) for moment in played.moments],
            wall_s=wall_s,
            **asdict(verdict),
        )
        if self._keep is not None and (not verdict.holds or TRIALS_FAILED in played.codes):
            shutil.copytree(study.path, self._keep / study.name, dirs_exist_ok=True)
            shutil.copytree(self._logs, self._keep / "logs", dirs_exist_ok=True)
        shutil.rmtree(study.path, ignore_errors=True)
        return result

    def _choose(self, number: int, rng: random.Random) -> list[str]:
        """Every kind comes up as often as every other as the first fault of a round."""
        deck = list(self.kinds)
        turn, place = divmod(number, len(deck))
        random.Random(f"{self._seed}/deck/{turn}").shuffle(deck)
        count = self._faults or rng.choices((1, 2, 3), weights=(6, 3, 1))[0]
        return [deck[place], *(rng.choice(deck) for _ in range(count - 1))]


class _Play:
    """Runs a study, strikes, mends, and resumes until it is complete."""

    def __init__(
        self, study: RoundStudy, nodes: Nodes, server: MlflowServer, rng: random.Random
    ) -> None:
        self.study, self.nodes, self.server, self.rng = study, nodes, server, rng
        self.struck: list[Times] = []
        self.moments: list[tuple[float, Times, set[str]]] = []
        self.destroyed: set[str] = set()
        self.faults: list[str] = []
        self.said: list[str] = []
        self.codes: list[int] = []
        self.complaints: list[str] = []
        self._mend: list[tuple[float, Callable[[], None]]] = []

    def run(self, chosen: Sequence[str]) -> None:
        command = self.study.run()
        due = sorted(self.rng.randrange(_MOST_EPOCHS) for _ in chosen)
        for kind, epochs in zip(chosen, due, strict=True):
            rows = 1 if kind == "ledger" else 0  # or there is nothing of it to damage
            while not self._wait_for(command, epochs, rows):
                # It ended before that: by an earlier fault, or since it was complete.
                self.codes.append(command.process.wait())
                if self.codes[-1] == 0 or len(self.codes) > _RESUMES:
                    return self._finish(command)
                command = self.study.resume()
                epochs = rows = 0
            self._strike(kind, command)
        return self._finish(command)

    def _wait_for(self, command: Command, epochs: int, rows: int) -> bool:
        """Return whether the study runs on with so much recorded and a moment more."""
        end = time.monotonic() + _COMMAND_S
        while time.monotonic() < end:
            self._mend_what_is_due()
            if command.process.poll() is not None:
                return False
            known = len(self.study.times()) >= epochs and len(self.study.rows()) >= rows
            if known and self.study.running():
                break
            time.sleep(0.05)
        time.sleep(self.rng.uniform(0.0, 0.7))
        return command.process.poll() is None

    def _strike(self, kind: str, command: Command) -> None:
        before = self.study.times()
        self.struck.append(before)
        running = self.study.running()
        scene = Scene(self.study, command, self.nodes, self.server, self.rng)
        kinds.KINDS[kind](scene)
        self.moments.append((time.time(), before, running))
        self.faults.append(kind)
        self.destroyed |= scene.destroyed
        self.said += scene.said
        self._mend += scene.mend

    def _finish(self, command: Command) -> None:
        """Mend all, wait for the command, and resume until the study is complete."""
        self._wait(command)
        while self._mend:
            self._mend_what_is_due()
            time.sleep(0.1)
        if not self.codes or self.codes[-1] != 0:
            self.codes.append(command.process.wait())
        for _ in range(_RESUMES):
            command = self.study.resume()
            self._wait(command)
            self.codes.append(command.process.wait())
            if self.codes[-1] == 0:
                break
        if self.codes[-1] != 0:
            self.complaints.append(f"not complete after {_RESUMES} resumes: {command.tail()}")
        if "nas sync" in command.tail():  # it says so where MLflow lacks something
            self._sync()

    def _wait(self, command: Command) -> None:
        end = time.monotonic() + _COMMAND_S
        while command.process.poll() is None:
            self._mend_what_is_due()
            if time.monotonic() > end:
                self.complaints.append(f"hung for {_COMMAND_S:.0f} s: {command.tail()}")
                command.process.kill()
                command.process.wait()
            time.sleep(0.05)

    def _sync(self) -> None:
        """Have MLflow get the rest, as a user would after an outage of it."""
        for _ in range(_SYNCS):
            command = self.study.nas("sync", self.study.name)
            if command.process.wait() == 0:
                return
            time.sleep(1.0)
        self.complaints.append(f"nas sync fails: {command.tail()}")

    def _mend_what_is_due(self) -> None:
        for each in list(self._mend):
            if each[0] <= time.monotonic():
                self._mend.remove(each)
                each[1]()


def _recovery(final: Times, struck: float, before: Times, running: set[str]) -> float | None:
    """Return the seconds until the last of the rows that ran had its next epoch."""
    seconds = []
    for key in running:
        had = max((epoch for row, epoch in before if row == key), default=0)
        later = [ended for (row, epoch), ended in final.items() if row == key and epoch > had]
        seconds += [min(later) - struck] if later else []
    return max(seconds) if seconds else None


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the campaign in numbers: rounds, faults by kind, what was lost, doubled or wrong."""
    faults: dict[str, int] = {}
    recoveries: dict[str, list[float]] = {}
    for each in rounds:
        for kind, seconds in zip(each.faults, each.recovery_s, strict=False):
            faults[kind] = faults.get(kind, 0) + 1
            if seconds is not None:
                recoveries.setdefault(kind, []).append(seconds)
    return {
        "case": "faults",
        "speedup": None,
        "rounds": len(rounds),
        "lost": sum(len(each.lost) for each in rounds),
        "doubled": sum(len(each.doubled) for each in rounds),
        "wrong": sum(len(each.wrong) for each in rounds),
        "rows": ROWS * len(rounds),
        "redone_epochs": sum(each.redone for each in rounds),
        "destroyed_epochs": sum(each.destroyed for each in rounds),
        "resumes": sum(each.resumes for each in rounds),
        "knew": sum(each.knew is True for each in rounds),
        "faults": dict(sorted(faults.items())),
        "recovery_s": {
            kind: {"median": statistics.median(found), "most": max(found), "times": len(found)}
            for kind, found in sorted(recoveries.items())
        },
        "wall_s": sum(each.wall_s for each in rounds),
    }


def read(path: Path) -> list[Round]:
    """Return the rounds that a file of an earlier run holds."""
    if not path.exists():
        return []
    return [Round(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def play(campaign: Campaign, rounds: int, *, record: Path | None = None) -> Iterator[Round]:
    """Run the rounds that `record` lacks, add each to it, and yield them all in order."""
    done = {each.round: each for each in (read(record) if record is not None else ())}
    for number in range(rounds):
        if number not in done:
            result = campaign.run(number)
            if record is not None:
                with record.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
            done[number] = result
        yield done[number]
