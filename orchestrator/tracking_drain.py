"""Sending a study to a tracking store, any number of times: every row is one run, once.

What is in the store is compared with the study folder and only the difference is sent, so that a
drain killed at any point, repeated, or run beside another loses nothing and doubles nothing. The
store is behind a small protocol; `orchestrator.tracking` implements it with MLflow.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Iterable, Iterator, Sequence

from orchestrator import exporting, system_load
from orchestrator import outbox as events
from orchestrator.holding import locked
from orchestrator.ledger import Row, with_selections
from orchestrator.study import Study
from orchestrator.tracking_batch import STUDY_STATUS, Batch, batch_of
from orchestrator.tracking_runs import Store, StoreDownError
from orchestrator.tracking_send import Sender, forgiving

BATCH_BYTES = 1_000_000


class Drain:
    """Sends one study to one store.

    Args:
        study: The study.
        store: The store.
        uri: Name of the store, under which the outbox's offset is kept.
        models: Whether retrained networks are sent too; None is as the experiment says.
    """

    def __init__(self, study: Study, store: Store, uri: str, *, models: bool | None = None) -> None:
        self._models = models
        self._study = study
        self._uri = uri
        self._id = uuid.uuid4().hex
        self._loaded = False
        self._settled = False
        self._measured = 0.0
        self._sender = Sender(study, store)
        self.ended = False  # whether the last record sent says that the driver left

    def send(self) -> int:
        """Send what the store lacks; return how many records were sent.

        Raises:
            StoreDownError: The store does not work now. Call again later.
        """
        with self._working():
            position = self._begin()
            count = 0
            while True:
                records, after = events.read_records(self._study.outbox, position, BATCH_BYTES)
                if after == position:
                    break
                self._load()
                self._apply(records)
                position = after
                count += len(records)
                self._commit(position)
                self.ended = bool(records) and records[-1]["k"] == "study_end"
                self._settled = False
            if not self._settled and self._study.holder() is None:
                self._load()
                self._settle(self._study.ledger.keys())
                self._commit(position)
                self._settled = True
            if self.ended or self._settled:
                self._send_the_rest()
            return count

    def measure(self, t: float) -> None:
        """Send the load of this machine at unix time `t`, where the experiment asks for it.

        Raises:
            StoreDownError: The store does not work now.
        """
        if not self._study.experiment.mlflow.system_metrics or not self._sender.parent:
            return
        if t - self._measured >= system_load.EVERY_S:
            self._measured = t
            self._sender.add_load(system_load.measure(), t)

    def rebuild(self) -> int:
        """Send every row of the folder, whatever the outbox says; return how many rows there are.

        Raises:
            StoreDownError: The store does not work now.
        """
        with self._working():
            self._begin()
            position = events.end_of_records(self._study.outbox)
            keys = self._study.ledger.keys()
            self._settle(keys, all_rows=True)
            self._commit(position)
            self._send_the_rest()
            return len(keys)

    def _send_the_rest(self) -> None:
        """Send the report, and the networks that retrainings left, which takes seconds each."""
        wanted = self._study.experiment.mlflow.models if self._models is None else self._models
        if wanted:
            self._load()
            stored = exporting.stored(self._study)
            for row in stored:
                if row.key in self._sender.runs:
                    self._sender.send_model(self._sender.runs[row.key], row)
            best = best_retraining(self._study, stored)
            if best is not None:
                self._sender.register(best)
        self._load()
        self._sender.send_report()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        try:
            with locked(self._study.outbox.with_name("drain.lock")):
                yield
        except StoreDownError:
            self._loaded = False  # a request that failed may have been done all the same
            raise

    def _begin(self) -> int:
        offset = events.read_offsets(self._study.outbox).get(self._uri)
        if offset is None or offset.writer != self._id:
            # Another drain may have made runs since this one looked.
            self._loaded = False
            self._load()
        if offset is None or offset.parent != self._sender.parent:
            return 0
        # An outbox that was cut or replaced is read anew: to send again is safe.
        return offset.position if events.begins_line(self._study.outbox, offset.position) else 0

    def _commit(self, position: int) -> None:
        offset = events.Offset(self._uri, self._sender.parent, position, self._id)
        events.write_offset(self._study.outbox, offset)

    def _load(self) -> None:
        if not self._loaded:
            self._sender.load()
            self._loaded = True

    def _apply(self, records: Iterable[events.Record]) -> None:
        sender = self._sender
        running = {key for key, run in sender.runs.items() if run.status == "RUNNING"}
        batch = batch_of(records, running)
        for key in batch.row_keys():
            with forgiving(key):
                self._apply_row(key, batch)
        sender.describe(batch.ended)
        for key, wish in batch.wishes.items():
            run = sender.runs.get(key)
            if run is not None:
                with forgiving(key):
                    sender.mark(run, wish)
        if batch.study is not None or batch.ended:
            sender.describe_study(batch.study or sender.parent_status)

    def _apply_row(self, key: str, batch: Batch) -> None:
        sender = self._sender
        row = self._study.ledger.read(key) if key in batch.ended else None
        head = row or batch.heads.get(key)
        if head is None and key not in sender.runs:
            return  # its start was lost in a torn line: the ledger row will bring all of it
        run = sender.run_of(key, head)
        steps = sender.steps_of(run)
        points = [p for p in batch.points.get(key, []) if p.step not in steps]
        points = list({(p.metric, p.step): p for p in reversed(points)}.values())
        if row is not None:
            sender.send_row(run, row, points)
            return
        if points:
            sender.add_points(run, points)
        sender.flush(run)

    def _settle(self, keys: list[str], *, all_rows: bool = False) -> None:
        """Send rows that no record told of; leave nothing running that no driver runs."""
        sender = self._sender
        live = self._study.holder() is not None
        pending = []
        for key in keys:
            run = sender.runs.get(key)
            if all_rows or run is None or not run.digest or run.status in ("RUNNING", "KILLED"):
                row = self._study.ledger.read(key)
                if row is not None:
                    with forgiving(key):
                        sender.send_row(sender.run_of(key, row), row, [])
                    pending.append(key)
        sender.describe(pending)
        done = set(keys)
        for row in self._study.partial_rows():
            with forgiving(row.key):
                sender.send_partial(row)
        for key, run in sender.runs.items():
            if run.status == "RUNNING" and key not in done and not live:
                with forgiving(key):
                    sender.mark(run, "KILLED")
        if live:
            sender.describe_study("RUNNING")
        elif pending or sender.parent_status == "RUNNING":
            sender.describe_study(self._last_study_status())

    def _last_study_status(self) -> str:
        status = events.last_study_status(self._study.outbox)
        if status is None:  # the outbox is lost: what was begun and did not end was interrupted
            return "KILLED" if self._study.partial_rows() else "FINISHED"
        return STUDY_STATUS.get(status, "FINISHED")


def best_retraining(study: Study, stored: Sequence[Row]) -> Row | None:
    """Return the retraining whose network is a study's best, by validation alone; None for none.

    That is one of the genotype whose search was the best, or where retrainings are compared the
    best of them; among several seeds the best by validation accuracy, else the lowest.

    Args:
        study: The study.
        stored: Retrainings that have a network.
    """
    retrain, tune = study.experiment.retrain, study.experiment.tune
    metric = retrain.by if retrain else tune.metric
    found: dict[str, float] = {}
    for row in with_selections(study.ledger.iterate("search")) if retrain else ():
        if row.status == "finished" and row.genotype_hash:
            best = found.get(row.genotype_hash, -math.inf)
            found[row.genotype_hash] = max(best, row.quality(metric))

    def rank(row: Row) -> tuple[float, float, int]:
        searched = found.get(row.genotype_hash or "", -math.inf)
        return searched, row.quality("val_accuracy"), -row.seed

    return max(stored, key=rank, default=None)
