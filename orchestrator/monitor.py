"""What the driver does when a trial starts, reports or ends: rows, outbox, progress."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import asdict, replace
from typing import Any

from orchestrator.failures import MOVED, last_failure, node_died
from orchestrator.ledger import Row, Status, read_row, replace_file
from orchestrator.more_room import is_short_of_memory
from orchestrator.outbox import Outbox, epoch_record, row_record, start_record
from orchestrator.progress import Progress, Reporter, Stage
from orchestrator.study import Study
from orchestrator.trial_log import TrialLog
from orchestrator.units import Unit

_DEATHS = (
    "actor died",
    "actor is dead",
    "ActorDiedError",
    "ActorUnavailableError",
    "NodeDiedError",
    "WorkerCrashedError",
)
_TIMED_OUT = (
    "\nFailure # of the driver\nNo epoch was reported for {:.0f} s, which is more than "
    "tune.trial_timeout, so that the process was ended.\n"
)
_LEFT: frozenset[Status] = frozenset({"failed", "oom", "stopped"})
_OWN: frozenset[Status] = frozenset({"finished", "diverged", "stopped"})
"""Ends that a search came to by itself or by its scheduler: they tell how long others will run."""


class Monitor:
    """Follows one stage of a study.

    Args:
        study: The study, held by this process.
        outbox: Takes the events for MLflow.
        reporter: Shows the progress.
        stage: "search" or "retrain".
        units: What the stage consists of, as far as it is known.
        total: Rows that it will have.
        started: Unix time in seconds at which the command started.
    """

    def __init__(
        self,
        study: Study,
        outbox: Outbox,
        reporter: Reporter,
        stage: Stage,
        units: Sequence[Unit],
        total: int,
        started: float,
    ) -> None:
        self.study, self.outbox, self.reporter, self.stage = study, outbox, reporter, stage
        self.total, self.started = total, started
        self.stage_started = time.time()
        self.statuses: dict[str, Status] = {}
        self.epochs: dict[str, int] = {}
        self.counts: Counter[Status] = Counter()
        self.own: dict[str, int] = {}
        self.own_epochs = 0
        self.begun: set[str] = set()
        self.ran = 0
        self.announced: set[str] = set()
        self.settled: set[str] = set()
        self.lost: dict[str, tuple[dict[str, Any], str]] = {}
        self.silent: dict[str, float] = {}
        self.best: float | None = None
        self.best_label = ""
        self.epochs_per_row = 1
        self.keys: set[str] = set()
        for unit in units:
            self.add(unit)

    def add(self, unit: Unit) -> None:
        """Take note of a unit, and of what the ledger has of it already."""
        self.epochs_per_row = max(self.epochs_per_row, unit.epochs)
        for key in unit.rows.values():
            if key in self.keys:
                continue
            self.keys.add(key)
            row = self.study.ledger.read(key)
            if row is not None:
                self._note(row)

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Take note of rows that the ledger has of configurations which need no more running."""
        for row in rows:
            if row.key not in self.keys:
                self.keys.add(row.key)
                self._note(row)

    def ended(self, unit: Unit) -> bool:
        """Return whether a unit needs no more running in this run of the driver."""
        return all(
            self.statuses.get(key) not in {None, "failed", "oom"} or key in self.settled
            for key in unit.rows.values()
        )

    def ran_out(self, unit: Unit) -> bool:
        """Return whether a seed of a unit ran out of memory."""
        return any(self.statuses.get(key) == "oom" for key in unit.rows.values())

    def failed(self, unit: Unit) -> bool:
        """Return whether a seed of a unit has failed or ran out of memory."""
        return any(self.statuses.get(key) in ("failed", "oom") for key in unit.rows.values())

    def reopen(self, units: Iterable[Unit]) -> None:
        """Take note that units run once more after they had ended."""
        self.stage_started = time.time()
        for key in (key for unit in units for key in unit.rows.values()):
            if self.statuses.get(key) == "oom":
                self._count(key, None)
                self.settled.discard(key)
                self.announced.discard(key)

    def is_lost(self, unit: Unit) -> bool:
        """Return whether the process of a unit died and Tune did not start it again."""
        return any(key in self.lost for key in unit.rows.values())

    def rounds(self, retries: int) -> Iterator[None]:
        """Yield once, and again for each retry; what was lost with a node alone costs none."""
        charged = 0
        while charged <= retries:
            yield
            lost = [error for _, error in self.lost.values()]
            charged += not lost or not all(map(node_died, lost))

    def on_timeout(self, config: dict[str, Any], silent_s: float) -> None:
        """Take note that the process of a trial is ended because it reported nothing for long."""
        self.silent.update(dict.fromkeys(config["unit"]["rows"].values(), silent_s))

    def on_retry(self, config: dict[str, Any], error: str) -> None:
        """Take note that Tune starts a trial again that has failed."""
        for key in config["unit"]["rows"].values():
            self._log(key, "again", "warning", text=last_failure(error))

    def on_move(self, config: dict[str, Any]) -> None:
        """Take note that a trial is to go on elsewhere."""
        for key in config["unit"]["rows"].values():
            self._log(key, "moved", "info", epoch=self.epochs.get(key, 0), text=MOVED)

    def give_up(self) -> None:
        """Write the rows of trials whose processes died again and again."""
        for key, (config, error) in self.lost.items():
            row = self._end_early(key, self.study.ledger.read(key), config, 0, error)
            if row is not None:
                self._note(row)
                self.outbox.append(row_record(key, time.time()))
        self.lost.clear()

    def on_result(self, config: dict[str, Any], result: dict[str, Any]) -> None:
        """One more epoch of a block; entries that the study knew before are not sent again."""
        now = time.time()
        for seed, key in config["unit"]["rows"].items():
            entry = result.get("seeds", {}).get(seed)
            if entry is None:
                continue
            self._announce(key, now)
            self.silent.pop(key, None)
            if int(entry["epoch"]) > self.epochs.get(key, 0):
                self.epochs[key] = int(entry["epoch"])
                self.ran += 1
                if key not in self.statuses:
                    self.begun.add(key)
                t = float(entry.get("ended", now))
                self.outbox.append(epoch_record(key, self.stage, entry, t))
            self._look_for_row(key, now)

    def on_end(self, config: dict[str, Any], result: dict[str, Any], error: str | None) -> None:
        """Tune has done with a block: what has no row yet was stopped early or has failed."""
        now = time.time()
        epoch = int(result.get("training_iteration", 0))
        for key in config["unit"]["rows"].values():
            row = self.study.ledger.read(key)
            if error is not None and key in self.silent:
                error += _TIMED_OUT.format(self.silent.pop(key))
            if row is None or row.status in _LEFT:
                if error is not None and _process_died(error) and not is_short_of_memory(error):
                    self.lost[key] = (config, error)
                    self._log(key, "lost", "warning", text=last_failure(error))
                    continue
                row = self._end_early(key, row, config, epoch, error)
            if row is not None:
                self._announce(key, now)
                self._note(row)
                self.settled.add(key)
                self.outbox.append(row_record(key, now))

    def _end_early(
        self, key: str, row: Row | None, config: dict[str, Any], epoch: int, error: str | None
    ) -> Row | None:
        """Write the row of a search that a scheduler stopped, or that failed for good."""
        try:
            partial = read_row(self.study.checkpoints / key / "row.json") or row
        except ValueError:
            partial = row
        if partial is None:
            partial = _empty_row(key, self.stage, config)
        ran_out = row is not None and row.status == "oom"
        if ran_out and row is not None and (row.ended or 0.0) >= self.stage_started:
            return row
        if error is None:
            scheduler = self.study.experiment.tune.scheduler
            reason = f"scheduler {scheduler.name}" if scheduler else "stopped by Tune"
            stop = {"epoch": epoch, "reason": reason}
            ended = replace(partial, status="stopped", stop=stop, error=None, ended=time.time())
        else:
            status: Status = "oom" if is_short_of_memory(error) else "failed"
            ended = replace(partial, status=status, error=error, stop=None, ended=time.time())
        self.study.ledger.write(ended, durable=not self.study.simulated)
        level = "info" if ended.status == "stopped" else "error"
        told = {"text": last_failure(error)} if error else dict(ended.stop or {})
        self._log(key, ended.status, level, **{"epoch": ended.epochs_done, **told})
        return ended

    def _log(self, key: str, event: str, level: str, **more: Any) -> None:
        """Add to the log of a trial what its worker cannot know; a simulated one has none."""
        if not self.study.simulated:
            TrialLog(self.study.path, key).write(event, level, by="driver", **more)

    def _announce(self, key: str, now: float) -> None:
        if key in self.announced:
            return
        self.announced.add(key)
        row = self.study.ledger.read(key)
        if row is None:
            try:
                row = read_row(self.study.checkpoints / key / "row.json")
            except ValueError:
                row = None
        if row is not None:
            self.outbox.append(start_record(row, row.started or now))

    def _look_for_row(self, key: str, now: float) -> None:
        if key in self.statuses and self.statuses[key] not in _LEFT:
            return
        row = self.study.ledger.read(key)
        if row is not None and row.status not in _LEFT:
            self._note(row)
            self.outbox.append(row_record(key, now))

    def _count(self, key: str, status: Status | None) -> None:
        """Set the status of a row, None for one that is open again, and the totals for ticks.

        A tick comes twice a second, and there may be thousands of rows to go through.
        """
        before = self.statuses.pop(key, None)
        if before is not None:
            self.counts[before] -= 1
        self.own_epochs -= self.own.pop(key, 0)
        if status is None:
            if self.epochs.get(key):
                self.begun.add(key)
            return
        self.begun.discard(key)
        self.statuses[key] = status
        self.counts[status] += 1
        if status in _OWN:
            self.own[key] = self.epochs[key]
            self.own_epochs += self.epochs[key]

    def _note(self, row: Row) -> None:
        self.epochs[row.key] = max(self.epochs.get(row.key, 0), row.epochs_done)
        self._count(row.key, row.status)
        metric = self.study.experiment.metric_of(self.stage)
        sign = -1.0 if metric.endswith("loss") else 1.0
        value = row.value(metric)
        if value is None or row.status not in ("finished", "stopped"):
            return
        if self.best is None or sign * value > sign * self.best:
            self.best, self.best_label = value, row.label

    def leave_out(self, keys: Set[str]) -> None:
        """Count rows no more that are not run now."""
        self.total -= len(keys & self.keys)
        self.keys -= keys
        self.begun -= keys
        self.on_tick(0)

    def on_tick(self, running: int) -> None:
        """Show and store where the stage stands."""
        counts = self.counts
        progress = Progress(
            stage=self.stage,
            total=self.total,
            done=len(self.statuses),
            running=running,
            failed=counts["failed"] + counts["oom"] + counts["diverged"],
            stopped=counts["stopped"],
            best=self.best,
            best_label=self.best_label,
            metric=self.study.experiment.metric_of(self.stage),
            elapsed_s=time.time() - self.started,
            left_s=self._left(),
        )
        self.reporter.update(progress)
        text = json.dumps({**asdict(progress), "time": time.time()})
        # Written anew twice a second, and by nobody read after a loss of power: to wait for the
        # disk would keep trials waiting.
        replace_file(self.study.progress, text.encode(), durable=False)

    def _left(self) -> float | None:
        """Estimate the seconds left from the epochs that this run has done so far.

        A row that has not begun is expected to have as many epochs as those that ended, of which a
        scheduler may have stopped most. None where there is nothing to estimate by: no epoch yet,
        or rows that run more of them than was planned.
        """
        if not self.ran:
            return None
        expected = self.own_epochs / len(self.own) if self.own else self.epochs_per_row
        open_rows = max(0, self.total - len(self.statuses))
        begun = [self.epochs[key] for key in self.begun]
        left = max(0, open_rows - len(begun)) * expected
        left += sum((expected if n < expected else self.epochs_per_row) - n for n in begun)
        if left < 0 or (left == 0 and open_rows):
            return None
        return (time.time() - self.stage_started) / self.ran * left


def _process_died(error: str) -> bool:
    """Return whether the last failure of an error file is the death of a process or node."""
    last = error.rpartition("Failure #")[2]
    return any(sign in last for sign in _DEATHS)


def _empty_row(key: str, stage: Stage, config: dict[str, Any]) -> Row:
    """Return the row of a search that failed before its first partial row."""
    unit = config["unit"]
    seed = next(int(seed) for seed, row in unit["rows"].items() if row == key)
    names: dict[str, Any] = {}
    for kind in ("method", "space", "dataset"):
        settings = config.get(kind) or unit.get(kind) or unit["label"]
        names[kind] = str(settings["name"] if isinstance(settings, dict) else settings)
    return Row(
        key=key,
        stage=stage,
        status="failed",
        config_id=unit["config_id"],
        block=int(unit["block"]),
        seed=seed,
        params=dict(unit["params"]),
        label=unit["label"],
        epochs_total=int(unit["epochs"]),
        started=time.time(),
        **names,
    )
