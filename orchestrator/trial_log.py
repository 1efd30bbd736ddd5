"""What happens to a trial, as it happens: `logs/trials/<key>.jsonl`, one JSON object a line.

The worker writes it, and the driver where the worker cannot any more. It is for people: nothing is
read back from it, and a line that cannot be written is not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from orchestrator.ledger import replace_file
from orchestrator.tracking_location import scrubbed

LEVELS = ("debug", "info", "warning", "error")
FOLDER = "trials"
MOST_BYTES = 1_000_000
"""Bytes of a log after which what is old goes."""

_LEFT_BYTES = MOST_BYTES // 2  # after that, so that it happens rarely
_LONGEST = 8_000  # characters of a text; of a traceback the end says most
_MOST_WARNINGS = 100
_ROUTINE = frozenset({"epoch", "state"})
_SECRET = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS|API_?KEY|ACCESS_KEY)$")
_SHORTEST_SECRET = 6  # anything shorter is in every other word
_HIDDEN = "***"


def log_file(study: Path, key: str) -> Path:
    """Return the log of a trial by the key of its row; there may be none."""
    return study / "logs" / FOLDER / f"{key}.jsonl"


def shown_log(study: Path | None, key: str) -> str | None:
    """Return the log of a trial as a path in the study folder; None where there is none."""
    if study is None or not log_file(study, key).is_file():
        return None
    return log_file(study, key).relative_to(study).as_posix()


class TrialLog:
    """The log of a trial.

    Each line is one write to a file that is opened for appending, so that lines of several
    processes are whole: the driver's, and those of a worker that lives on after its node was given
    up. Of a log that has grown too long the oldest epochs go first; its first line, warnings and
    errors stay for as long as there is room.

    Args:
        study: Folder of the study.
        key: Key of the row.
    """

    def __init__(self, study: Path, key: str) -> None:
        self.path = log_file(study, key)
        self._heard: set[tuple[str, str]] = set()
        self._whole = False  # whether the file is known to end with a whole line

    def write(self, event: str, level: str = "info", **more: Any) -> None:
        """Add a line; where that cannot be done, nothing happens.

        Args:
            event: What happened, in a word.
            level: One of `LEVELS`.
            more: Numbers and texts about it, in which no password is left; None is left out.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {name: _plain(value) for name, value in more.items() if value is not None}
        line = json.dumps({"time": now, "level": level, "event": event, **told}).encode() + b"\n"
        with contextlib.suppress(OSError):
            if self._append(line) > MOST_BYTES:
                _shorten(self.path)

    def hear(self, category: str, text: str, where: str | None = None) -> None:
        """Add a warning, if it has not been heard before."""
        if (category, text) in self._heard or len(self._heard) >= _MOST_WARNINGS:
            return
        self._heard.add((category, text))
        self.write("warning", "warning", category=category, text=text, where=where)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Add the traceback of an exception that passes through."""
        try:
            yield
        except Exception as error:
            self.write("error", "error", text="".join(traceback.format_exception(error)))
            raise

    def _append(self, line: bytes) -> int:
        """Write a line and return the size of the file."""
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not self._whole:
                size = os.fstat(file).st_size
                if size and os.pread(file, 1, size - 1) != b"\n":
                    line = b"\n" + line  # a full disk or a kill has cut off the line before
            self._whole = False
            self._whole = os.write(file, line) == len(line)
            return os.fstat(file).st_size
        finally:
            os.close(file)


class Hearing:
    """While it lasts, warnings of Python and torch are added to logs too.

    Args:
        logs: Of the trials that run meanwhile.
    """

    def __init__(self, logs: Iterable[TrialLog]) -> None:
        self._logs = list(logs)

    def __enter__(self) -> None:
        self._show = show = warnings.showwarning

        def showwarning(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            for log in self._logs:
                log.hear(category.__name__, str(message), f"{filename}:{lineno}")
            show(message, category, filename, lineno, file, line)

        warnings.showwarning = showwarning
        self._handler = _Handler(self._logs)
        logging.getLogger("torch").addHandler(self._handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        warnings.showwarning = self._show
        logging.getLogger("torch").removeHandler(self._handler)


class _Handler(logging.Handler):
    """Adds what torch logs to logs of trials."""

    def __init__(self, logs: Sequence[TrialLog]) -> None:
        super().__init__(logging.WARNING)
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        for log in self._logs:
            log.hear(record.name, record.getMessage(), f"{record.pathname}:{record.lineno}")


def warn_again() -> None:
    """Have Python give each warning once more, also those that this process has given before.

    A process runs many trials, and the log of each should have its own.
    """
    # As every change of the filters it makes Python forget what it has shown; this one changes
    # nothing else, since it comes last and says what holds anyway.
    warnings.simplefilter("default", append=True)


def parse(data: bytes) -> list[dict[str, Any]]:
    """Return the lines of a log, or of a part of one, without those that are damaged."""
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and {"time", "event"} <= set(entry):
                found.append(entry)
    return [entry for entry in found if entry.get("level") in LEVELS]


def reaches(entry: Mapping[str, Any], level: str) -> bool:
    """Return whether a line is of `level` or above."""
    return LEVELS.index(entry["level"]) >= LEVELS.index(level)


def _shorten(path: Path) -> None:
    """Leave out the oldest lines of a log: those of epochs first, its first line never."""
    with path.open("rb") as file:
        data = file.read()
        lines = data.splitlines(keepends=True)
        size = len(data)
        gone = set()
        # Stable: within both kinds the oldest come first.
        for index in sorted(range(1, len(lines)), key=lambda index: not _is_routine(lines[index])):
            if size <= _LEFT_BYTES:
                break
            gone.add(index)
            size -= len(lines[index])
        kept = [line for index, line in enumerate(lines) if index not in gone]
        # What another process of this trial has added since then is not lost either.
        kept.append(file.read())
        replace_file(path, b"".join(kept), durable=False)


def _is_routine(line: bytes) -> bool:
    return all(entry["event"] in _ROUTINE for entry in parse(line))  # a damaged one too


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    text = _without_secrets(str(value))
    return text if len(text) <= _LONGEST else f"... {text[-_LONGEST:]}"


def _without_secrets(text: str) -> str:
    """Return a text without tokens and passwords of the environment and logins of URIs."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET.search(name.upper()):
            text = text.replace(value, _HIDDEN)
    return scrubbed(text)
