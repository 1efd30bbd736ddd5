"""What runs on a worker: a block of seeds that records every epoch in the study folder.

After each epoch the state and a partial row are in `checkpoints/<key>/`; at the end the row is in
the ledger, before Tune is told. So nothing depends on Tune's checkpoints: a trial that starts
again, after its process, its node or the driver died, finds its epochs there and reports them.
What happens meanwhile is told in the log of each trial (`orchestrator.trial_log`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from orchestrator import node_load
from orchestrator.draining import LEAVING
from orchestrator.errors import StudyError
from orchestrator.leaving import Leaving
from orchestrator.ledger import Ledger, Row, Status, read_row, write_row
from orchestrator.statistics import show_bytes
from orchestrator.trial_log import Hearing, TrialLog, warn_again
from trainables.ray_trial import BlockTrainable, RetrainTrainable, Run, SearchTrainable, Trial

if TYPE_CHECKING:
    from trainables.retrain import RetrainTrial
    from trainables.search import SearchTrial

_TOLD = ("val_accuracy", "val_loss", "train_accuracy", "train_loss", "test_accuracy", "lr")
_log = logging.getLogger(__name__)
_PACKAGES = ("nas-orchestrator", "torch", "ray", "numpy", "optuna", "mlflow")
Genotyped = tuple[dict[str, Any] | None, str | None, int | None]
ENDED: frozenset[Status] = frozenset({"finished", "diverged"})


@dataclass
class Replay:
    """A trial that has ended: it only reports its curve again."""

    curve: list[dict[str, Any]]
    diverged: bool = False
    finished: bool = True
    ended_early: bool = False
    epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.epoch = len(self.curve)

    def run_epoch(self) -> dict[str, Any]:
        """Never called: there is no epoch left."""
        raise RuntimeError("this trial has ended; its curve cannot grow")

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the ledger has it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore `state`: the ledger has it."""


class Recording(BlockTrainable):
    """A block that keeps its states, partial rows and ledger rows in the study folder."""

    def setup(self, config: dict[str, Any]) -> None:
        """Find what the study knows of each seed, and build the rest."""
        self.unit: dict[str, Any] = config["unit"]
        self.study = Path(self.unit["study"])
        self.ledger = Ledger(self.study / "ledger")
        self.started: dict[int, float] = {}
        self.logs: dict[int, TrialLog] = {}
        self.leaving = False
        super().setup(config)

    def make(self, seed: int) -> SearchTrial | RetrainTrial:
        """Make the trial of one seed, with nothing of its past."""
        raise NotImplementedError

    def build(self, seed: int) -> Trial:
        """Return the trial of one seed where it was left: in the ledger, at a state, or new."""
        row = self.ledger.read(self._key(seed))
        if row is not None and row.status in ENDED:
            diverged = row.status == "diverged"
            return Replay(row.curve, diverged=diverged, ended_early=not diverged)
        if not self.logs:
            warn_again()
            if ray.is_initialized():  # in a process of Ray's, and not in that of a caller
                node_load.follow(self.study)
        log = self.logs[seed] = TrialLog(self.study, self._key(seed))
        with log.failing(), Hearing([log]):
            return self._begin(seed)

    def _begin(self, seed: int) -> Trial:
        self.started[seed] = time.time()
        partial: Row | None = None
        begun = self._folder(seed) / "row.json"
        try:
            partial = read_row(begun)
            self.started[seed] = partial.started if partial else self.started[seed]
        except (ValueError, StudyError) as error:  # only the time of the start is lost
            self._put_aside(seed, begun, str(error), "the time of its start is lost")
        try:
            trial = self._restore(seed)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return self._out_of_memory(seed, None, error)
        self._tell_start(seed, trial, partial)
        self._write(seed, trial, "running")
        if trial.finished or trial.diverged:
            # Killed after its last state and before its row: the row is all that is missing.
            self._end(seed, trial)
        return trial

    def _tell_start(self, seed: int, trial: Trial, partial: Row | None) -> None:
        """Say in the log where the trial runs, and where it ran before if that was elsewhere."""
        here = platform.node()
        before = partial.environment.get("hardware", {}).get("host") if partial else None
        self.logs[seed].write(
            "continued" if trial.epoch else "started",
            stage=self.unit["stage"],
            label=self.unit["label"],
            seed=seed,
            epoch=trial.epoch,
            epochs=int(self.unit["epochs"]),
            host=here,
            pid=os.getpid(),
            device=_device(trial),
            before=before if trial.epoch and before != here else None,
            resumed_elsewhere=getattr(trial, "resumed_elsewhere", False) or None,
        )

    def _restore(self, seed: int) -> SearchTrial | RetrainTrial:
        from trainables.errors import StateError

        trial = self.make(seed)
        state = self.state_file(seed)
        if state.exists():
            try:
                trial.load_state(state)
            except StateError as error:
                # Damaged, or of another version: the search runs again rather than the study fail.
                self._put_aside(seed, state, str(error), "it runs again from its first epoch")
                trial = self.make(seed)
        return trial

    def step(self) -> dict[str, Any]:
        """Report the next epoch; what goes wrong on the way is in the logs of all seeds.

        Told to end by SIGTERM, the process finishes its epoch and reports that with it.
        """
        if not self.logs:  # all have ended, or are simulated
            return super().step()
        with contextlib.ExitStack() as stack:
            leaving = stack.enter_context(Leaving())
            stack.enter_context(Hearing(self.logs.values()))
            for log in self.logs.values():
                stack.enter_context(log.failing())
            if self.leaving:
                leaving.end()
            result = super().step()
            if leaving.told and not result["done"]:
                self.leaving = True
                result[LEAVING] = 1
            return result

    def _put_aside(self, seed: int, path: Path, reason: str, effect: str) -> None:
        """Move a file, or a folder in its place, out of the way, and say so."""
        aside = path.with_suffix(".damaged")
        if aside.is_dir():
            shutil.rmtree(aside)
        path.replace(aside)
        text = f"{path} cannot be used ({reason}): {effect}; it is kept as {aside.name}"
        _log.warning("%s", text)
        self.logs[seed].write("damaged", "warning", text=text)

    def advance(self, seed: int, trial: Trial, run: Run) -> None:
        """Run one epoch and record it; out of memory ends the seed, not its block."""
        try:
            entry = run()
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            self.trials[seed] = self._out_of_memory(seed, trial, error)
            return
        entry["ended"] = time.time()
        self.note(entry)
        log, state, begun = self.logs[seed], self.state_file(seed), time.perf_counter()
        told = {name: entry[name] for name in _TOLD if name in entry}
        log.write("epoch", epoch=entry["epoch"], seconds=entry.get("epoch_time_s"), **told)
        trial.save_state(state)  # type: ignore[attr-defined]
        took = time.perf_counter() - begun
        log.write("state", "debug", bytes=state.stat().st_size, seconds=took)
        self._write(seed, trial, "running")
        if trial.finished or trial.diverged:
            self._end(seed, trial)

    def note(self, entry: dict[str, Any]) -> None:
        """Add to the entry of an epoch what the trial itself does not know."""

    def state_file(self, seed: int) -> Path:
        """Return the file with the state of a seed."""
        return self._folder(seed) / "state.pt"

    def _key(self, seed: int) -> str:
        return str(self.unit["rows"][str(seed)])

    def _folder(self, seed: int) -> Path:
        return self.study / "checkpoints" / self._key(seed)

    def _end(self, seed: int, trial: Trial) -> None:
        from trainables.state import save_state

        folder = self._folder(seed)
        save_state(trial.final_state(), folder / "final.pt")  # type: ignore[attr-defined]
        status: Status = "diverged" if trial.diverged else "finished"
        row = self._row(seed, trial, status)
        final = (folder / "final.pt").relative_to(self.study).as_posix()
        self.ledger.write(replace(row, ended=time.time(), final=final))
        level = "warning" if trial.diverged else "info"
        self.logs[seed].write(status, level, epoch=trial.epoch, seconds=row.cost["time_s"])
        for name in ("state.pt", "row.json"):
            (folder / name).unlink(missing_ok=True)

    def _out_of_memory(self, seed: int, trial: Trial | None, error: BaseException) -> Replay:
        row = self._row(seed, trial, "oom")
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(MemoryError, RuntimeError):  # there may be none left to ask with
            text += f"\n{shortage(self.config)}"
        self.ledger.write(replace(row, ended=time.time(), error=text))
        self.logs[seed].write("oom", "error", epoch=row.epochs_done, text=text)
        return Replay(trial.curve if trial else [])

    def _write(self, seed: int, trial: Trial, status: Status) -> None:
        write_row(self._folder(seed) / "row.json", self._row(seed, trial, status))

    def _row(self, seed: int, trial: Trial | None, status: Status) -> Row:
        unit, config = self.unit, self.config
        curve = trial.curve if trial else []
        genotype, genotype_hash, genotype_epoch = self.genotype(trial, curve)
        seconds = sum(float(entry.get("epoch_time_s", 0.0)) for entry in curve)
        settings = {
            key: value
            for key, value in config.items()
            if key not in {"unit", "seeds", "device", "genotype"}
        }
        return Row(
            key=self._key(seed),
            stage=unit["stage"],
            status=status,
            config_id=unit["config_id"],
            block=int(unit["block"]),
            seed=seed,
            method=_name(config.get("method") or unit.get("method") or unit["label"]),
            space=_name(config["space"]),
            dataset=_name(config["dataset"]),
            settings=settings,
            params=dict(unit["params"]),
            label=unit["label"],
            curve=list(curve),
            genotype=genotype,
            genotype_hash=genotype_hash,
            genotype_epoch=genotype_epoch,
            epochs_done=len(curve),
            epochs_total=int(unit["epochs"]),
            cost={
                "time_s": seconds,
                "cpu_hours": seconds * unit["per_trial"]["cpu"] / 3600,
                "gpu_hours": seconds * unit["per_trial"]["gpu"] / 3600,
            },
            environment={
                **environment(),
                "git": unit["git"],
                "fingerprint": _fingerprint(trial),
                **_engine(trial),
            },
            resumed_elsewhere=bool(getattr(trial, "resumed_elsewhere", False)),
            started=self.started[seed],
        )

    def genotype(self, trial: Trial | None, curve: Sequence[Mapping[str, Any]]) -> Genotyped:
        """Return the genotype of the row, its hash, and its epoch where that is not the last."""
        epoch: int | None = getattr(trial, "genotype_epoch", None) or len(curve)
        if not curve or epoch is None:
            return None, None, None
        entry = curve[epoch - 1]
        by_rule = getattr(trial, "chooses_epoch", False)
        return entry.get("genotype"), entry.get("genotype_hash"), epoch if by_rule else None


class StudySearch(Recording, SearchTrainable):
    """A search of a study."""

    def make(self, seed: int) -> SearchTrial:
        """Make the `SearchTrial` of one seed."""
        return SearchTrainable.build(self, seed)  # type: ignore[return-value]


class StudyRetrain(Recording, RetrainTrainable):
    """A retraining of a study; every reading of the test split is noted in `test_reads.jsonl`."""

    def make(self, seed: int) -> RetrainTrial:
        """Make the `RetrainTrial` of one seed."""
        return RetrainTrainable.build(self, seed)  # type: ignore[return-value]

    def genotype(self, trial: Trial | None, curve: Sequence[Mapping[str, Any]]) -> Genotyped:
        """Return the genotype that is trained."""
        return self.config["genotype"], self.unit["genotype_hash"], None

    def note_test_read(self, seed: int, record: Mapping[str, Any]) -> None:
        """Note the reading of the test split."""
        noted = {"key": self._key(seed), **record, "time": time.time()}
        # One write of one short line to a file opened for appending: whole also between processes.
        descriptor = os.open(
            self.study / "test_reads.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )
        try:
            os.write(descriptor, json.dumps(noted).encode() + b"\n")
        finally:
            os.close(descriptor)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, of the device or of the machine."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)


def shortage(config: Mapping[str, Any]) -> str:
    """Return what memory there is, what this process had of it at its peak, and what to change.

    Args:
        config: Configuration of the Ray trial.
    """
    import torch

    from trainables.timing import peak_memory_bytes

    device = torch.device(config.get("device", "cpu"))
    if device.type == "cuda":
        what = "the GPU"
        free, there = torch.cuda.mem_get_info(device)
    else:
        import psutil

        what, memory = "the machine", psutil.virtual_memory()
        free, there = memory.available, memory.total
    peak = show_bytes(peak_memory_bytes(device))
    stage = config["unit"]["stage"]
    gpus = float(config["unit"]["per_trial"]["gpu"])
    changes = []
    if device.type == "cpu":
        changes.append("tune.max_concurrent: 1")
    elif gpus < 1:
        changes.append("tune.per_trial.gpus: 1")
    if stage == "search" and config["search"].get("checkpointing") != "cell":
        changes.append("search.checkpointing: cell")
    changes.append(f"a {stage}.batch_size below {config[stage]['batch_size']}")
    return (
        f"Its process had {peak} at its peak; {what} has {show_bytes(there)}, of which "
        f"{show_bytes(free)} were free then. What helps: {', '.join(changes)}."
    )


@functools.lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Return versions and hardware of this process: recorded in each row, never part of its key."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    hardware = {"host": platform.node(), "cpus": os.cpu_count(), "machine": platform.machine()}
    return {"versions": versions, "hardware": hardware}


def _device(trial: Trial) -> str | None:
    """Return the device of a trial, a GPU with its name; None where it says none."""
    device = getattr(trial, "device", None)
    if getattr(device, "type", None) != "cuda":
        return None if device is None else str(device)
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = "" if shown is None else f", CUDA_VISIBLE_DEVICES={shown}"
    return f"{device} ({torch.cuda.get_device_name(device)}{visible})"


def _fingerprint(trial: Trial | None) -> dict[str, Any]:
    fingerprint = getattr(trial, "fingerprint", None)
    return dict(vars(fingerprint)) if fingerprint is not None else {}


def _engine(trial: Trial | None) -> dict[str, Any]:
    engine = getattr(trial, "engine", None)  # a retraining has none
    return {} if engine is None else {"engine": str(engine)}


def _name(settings: Any) -> str:
    return str(settings["name"]) if isinstance(settings, Mapping) else str(settings)
