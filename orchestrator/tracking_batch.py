"""What a batch of an outbox's records comes to."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from orchestrator.ledger import Row
from orchestrator.outbox import Record
from orchestrator.tracking_view import Point, milliseconds
from spaces.core.errors import NasError

# MLflow status of a study by how its driver left.
STUDY_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass
class Batch:
    """What to do for some records, by row key.

    Attributes:
        heads: Rows that began, without curve.
        points: Points of epochs, in the order of the records.
        ended: Rows that are in the ledger, in the order of the records.
        wishes: MLflow status that a row without an end has after the batch.
        study: MLflow status that the study has after the batch, or None for no change.
    """

    heads: dict[str, Row] = field(default_factory=dict)
    points: dict[str, list[Point]] = field(default_factory=dict)
    ended: dict[str, None] = field(default_factory=dict)
    wishes: dict[str, str] = field(default_factory=dict)
    study: str | None = None

    def row_keys(self) -> list[str]:
        """Return every row key of the batch, once."""
        return list(dict.fromkeys([*self.heads, *self.points, *self.ended, *self.wishes]))


def batch_of(records: Iterable[Record], running: Collection[str]) -> Batch:
    """Return what `records` come to.

    Args:
        records: Whole records of an outbox, in order.
        running: Keys of the runs that have status RUNNING before them.
    """
    batch = Batch()
    for record in records:
        key = record.get("key", "")
        match record["k"]:
            case "start":
                with contextlib.suppress(ValueError, NasError):
                    batch.heads[key] = Row.from_json(record["row"])
                head = batch.heads.get(key)
                if head is not None and head.status in ("finished", "diverged"):
                    batch.ended[key] = None  # a row of the ledger that a resumed driver replays
                else:
                    batch.wishes[key] = "RUNNING"
            case "epoch":
                t, step = milliseconds(record["t"]), int(record["step"])
                new = [Point(name, value, t, step) for name, value in record["m"].items()]
                batch.points.setdefault(key, []).extend(new)
            case "row":
                batch.ended[key] = None
                batch.wishes.pop(key, None)
            case "study":
                _close(batch, running)
                batch.study = "RUNNING"
            case "study_end":
                _close(batch, running)
                batch.study = STUDY_STATUS.get(record["status"], "FINISHED")
    return batch


def _close(batch: Batch, running: Collection[str]) -> None:
    # What a driver left running was interrupted; a driver that goes on with it says so.
    for key in {*running, *batch.wishes}:
        if key not in batch.ended or key in batch.wishes:
            batch.wishes[key] = "KILLED"
