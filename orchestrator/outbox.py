"""The outbox: events that the driver appends and that a drain sends to MLflow later.

The driver only ever appends a line to a local file, so MLflow being down, slow or restarted cannot
stop or slow a sweep. A drain (`orchestrator.tracking`) reads what lies after a committed offset.
This module imports neither ray nor mlflow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from orchestrator import json_files
from orchestrator.errors import StudyError
from orchestrator.ledger import Row, Stage, replace_file

Record = dict[str, Any]
_log = logging.getLogger(__name__)

# Few scalars per epoch, or the MLflow UI grows slow: the whole curve is an artifact of its run.
EPOCH_METRICS: dict[Stage, tuple[str, ...]] = {
    "search": (
        "val_accuracy",
        "val_loss",
        "train_accuracy",
        "train_loss",
        "skip_share",
        "alpha_entropy",
        "hessian_eigenvalue",
        "discretization_gap",
    ),
    "retrain": (
        "test_accuracy",
        "test_loss",
        "val_accuracy",
        "val_loss",
        "train_accuracy",
        "train_loss",
    ),
}


SETTINGS = "settings/"
"""Beginning of the names of an entry's values that are settings which change while a row trains."""


def epoch_metrics(stage: Stage, entry: Mapping[str, Any]) -> dict[str, float]:
    """Return what of a curve's entry MLflow gets, under MLflow's names; finite numbers only."""
    changing = [name for name in entry if name.startswith(SETTINGS)]
    return {
        f"{stage}/{name}": float(entry[name])
        for name in (*EPOCH_METRICS[stage], *changing)
        if isinstance(entry.get(name), int | float) and math.isfinite(entry[name])
    }


def study_record(t: float) -> Record:
    """A driver begins or resumes the study at unix time `t` in seconds."""
    return {"k": "study", "t": t}


def start_record(row: Row, t: float) -> Record:
    """`row`, of which the head is enough, begins or goes on at unix time `t` in seconds."""
    head = row.to_json()
    for name in ("curve", "genotypes", "genotype", "environment", "error"):
        del head[name]
    return {"k": "start", "key": row.key, "t": t, "row": head}


def epoch_record(key: str, stage: Stage, entry: Mapping[str, Any], t: float) -> Record:
    """An epoch of row `key` ended at unix time `t` in seconds with this entry of its curve."""
    return {
        "k": "epoch",
        "key": key,
        "step": int(entry["epoch"]),
        "m": epoch_metrics(stage, entry),
        "t": t,
    }


def row_record(key: str, t: float) -> Record:
    """Row `key` is in the ledger at unix time `t` in seconds."""
    return {"k": "row", "key": key, "t": t}


def study_end_record(status: str, t: float) -> Record:
    """The driver leaves the study: "finished", "failed" or "interrupted"."""
    return {"k": "study_end", "status": status, "t": t}


class Outbox:
    """Appends records to the outbox of a study. One writer at a time: the driver.

    Args:
        path: The file; it is made if missing. A line that a crash left torn is closed, so that it
            harms no record but itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record; it outlives this process from here on.

        Raises:
            ValueError: The record holds a number that is not finite.
            OSError: The disk is full or gone.
        """
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        written = os.write(self._descriptor, line)
        if written < len(line):
            # A nearly full disk: end the torn line if that is possible, and let the driver know.
            os.write(self._descriptor, b"\n")
            raise OSError(28, "the outbox could not take a whole record", str(self.path))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Offset:
    """How far one store has the outbox. The file that keeps it is the drain's commit point.

    Attributes:
        uri: The store.
        parent: Run id of the study in it; a store without that run is another store.
        position: Bytes of the outbox that are in the store.
        writer: The drain that committed it.
    """

    uri: str
    parent: str
    position: int
    writer: str


def offset_file(outbox: Path) -> Path:
    """Return the file with the offsets of an outbox, one per store."""
    return outbox.with_name(outbox.name + ".offset")


def read_offsets(outbox: Path) -> dict[str, Offset]:
    """Return the offsets by store; none where the file is missing or damaged.

    Sending is idempotent, so that to begin again from the start is safe.

    Raises:
        StudyError: A folder is in the place of the file.
    """
    try:
        form = json_files.parse(offset_file(outbox).read_bytes())
        offsets = [Offset(uri=uri, **fields) for uri, fields in form.items()]
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}
    except IsADirectoryError as error:
        raise StudyError(
            f"{offset_file(outbox)} is a folder, and a file is needed there. Move it away: all is "
            "sent again, and nothing twice."
        ) from error
    return {offset.uri: offset for offset in offsets if _is_offset(offset)}


def _is_offset(offset: Offset) -> bool:
    texts = all(isinstance(text, str) for text in (offset.parent, offset.writer))
    return texts and isinstance(offset.position, int) and offset.position >= 0


def write_offset(outbox: Path, offset: Offset) -> None:
    """Commit `offset` for its store; other stores keep theirs."""
    offsets = {**read_offsets(outbox), offset.uri: offset}
    form = {
        uri: {"parent": o.parent, "position": o.position, "writer": o.writer}
        for uri, o in offsets.items()
    }
    # A lost offset costs time and nothing else: the outbox is sent again from its start.
    replace_file(offset_file(outbox), json.dumps(form, indent=1).encode(), durable=False)


def read_records(outbox: Path, position: int, limit: int) -> tuple[list[Record], int]:
    """Read whole lines after `position`.

    Lines that are not records go to `events.bad` beside the outbox.

    Args:
        outbox: The file.
        position: Bytes to leave out.
        limit: Bytes to read at most; the last line is read to its end.

    Returns:
        The records, and the position after the last whole line.
    """
    try:
        with _opened(outbox) as file:
            file.seek(position)
            data = file.read(limit)
            if len(data) == limit and not data.endswith(b"\n"):
                data += file.readline()
    except FileNotFoundError:
        return [], position
    data = data[: data.rfind(b"\n") + 1]
    records, bad = [], []
    for line in data.split(b"\n"):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            bad.append(line + b"\n")
    if bad:
        aside = outbox.with_suffix(".bad")
        with aside.open("ab") as file:
            file.writelines(bad)
        # A row of the ledger is sent all the same: what is lost are epochs of rows without an end.
        _log.warning("%s: %d lines are no records; they are in %s", outbox, len(bad), aside.name)
    return records, position + len(data)


@contextlib.contextmanager
def _opened(outbox: Path) -> Iterator[BinaryIO]:
    """Open an outbox for reading.

    Raises:
        FileNotFoundError: There is none yet.
        StudyError: A folder is in its place.
    """
    try:
        with outbox.open("rb") as file:
            yield file
    except IsADirectoryError as error:
        raise StudyError(
            f"{outbox} is a folder, and a file with events is needed there. Move it away: the rows "
            "of the ledger are sent without it."
        ) from error


def end_of_records(outbox: Path) -> int:
    """Return the position after the last whole line of the outbox."""
    try:
        with _opened(outbox) as file:
            position = file.seek(0, os.SEEK_END)
            while position > 0:
                start = max(0, position - 65536)
                file.seek(start)
                newline = file.read(position - start).rfind(b"\n")
                if newline >= 0:
                    return start + newline + 1
                position = start
    except FileNotFoundError:
        return 0
    return 0


def begins_line(outbox: Path, position: int) -> bool:
    """Return whether a line of the outbox begins, or is to begin, at `position`."""
    if position == 0:
        return True
    try:
        with _opened(outbox) as file:
            file.seek(position - 1)
            return file.read(1) == b"\n"
    except FileNotFoundError:
        return False


def told_epochs(outbox: Path) -> dict[str, int]:
    """Return by row key the last epoch that any record of an outbox is of."""
    found: dict[str, int] = {}
    for record in _records_of(outbox, "epoch"):
        found[record["key"]] = max(found.get(record["key"], 0), record["step"])
    return found


def last_study_status(outbox: Path) -> str | None:
    """Return the status of the last driver: "interrupted" if it never left; None if unknown."""
    status = None
    for record in _records_of(outbox, "study"):
        status = str(record.get("status", "interrupted"))
    return status


def _records_of(outbox: Path, kind: str) -> Iterator[Record]:
    """Yield the records whose kind begins so; parsing all of a long study takes a while."""
    start = f'{{"k":"{kind}'.encode()
    with contextlib.suppress(FileNotFoundError), _opened(outbox) as file:
        for line in file:
            record = _parse(line) if line.startswith(start) else None
            if record is not None:
                yield record


def _parse(line: bytes) -> Record | None:
    """Return the record that a line holds, or None where it is none that a driver writes."""
    try:
        record = json_files.parse(line)
        good = _SHAPES[record["k"]](record) and _is_time(record.get("t"))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if good else None


def _is_time(t: Any) -> bool:
    return isinstance(t, int | float) and 0 <= t < _LATEST


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and _KEY.fullmatch(key) is not None


def _is_epoch(record: Record) -> bool:
    """Return whether an epoch's record has a key, a step and finite values by name."""
    step, values = record["step"], record["m"]
    whole = isinstance(step, int) and 0 <= step < _MOST_STEPS and isinstance(values, dict)
    return whole and _is_key(record["key"]) and all(_is_finite(v) for v in values.values())


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and -_LARGEST < value < _LARGEST


_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LATEST = 1e11  # unix time in seconds, some 3000 years on
_MOST_STEPS = 2**31
_LARGEST = 1e308
_SHAPES: Mapping[str, Callable[[Record], bool]] = {
    "study": lambda record: True,  # noqa: ARG005
    "study_end": lambda record: isinstance(record["status"], str),
    "start": lambda record: _is_key(record["key"]) and record["row"]["key"] == record["key"],
    "epoch": _is_epoch,
    "row": lambda record: _is_key(record["key"]),
}
