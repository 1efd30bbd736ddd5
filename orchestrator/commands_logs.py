"""The command that shows what happened to trials."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator import display, trial_log
from orchestrator.commands_run import DEFAULT_ROOT, Json, Root
from orchestrator.errors import StudyError

if TYPE_CHECKING:
    from orchestrator.study import Study

_LOOK_S = 0.5
_OF_EVERY_LINE = ("time", "level", "event", "text")
_SHOWN = 8  # characters of a key, where the lines of several trials are shown


def add_to(app: typer.Typer) -> None:
    """Give the command of this module to `app`."""
    app.command(epilog="Example: nas logs quickstart --level warning")(logs)


def logs(
    run: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|STUDY:KEY",
            help="A study, or one of its trials by the key of its row or the first characters.",
        ),
    ],
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option("--level", help="The least that is shown; debug has every state written."),
    ] = "info",
    last: Annotated[
        int | None, typer.Option("--last", metavar="N", min=1, help="Only the last N lines.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on for as long as the study runs.")
    ] = False,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Show what happened to the trials of a study, in the order of time (UTC).

    Each has a file of its own, logs/trials/KEY.jsonl in the study folder.
    """
    from orchestrator.study import Study

    if follow and as_json:
        raise StudyError("--follow shows lines as they come: leave out --json.")
    name, colon, key = run.rpartition(":") if _has_key(run) else (run, "", "")
    study = Study.open(name, root)
    chosen = _keys(study, run, key) if colon else None
    source = _Source(study, chosen, level)
    found = source.new()
    found = found if last is None else found[-last:]
    if as_json:
        display.say_json(found)
        return
    for entry in found:
        _show(entry, alone=chosen is not None)
    if not found and not follow:
        display.note(_nothing(study, level))
    while follow:
        running = study.holder() is not None  # asked first, so that its last lines are shown too
        for entry in source.new():
            _show(entry, alone=chosen is not None)
        if not running:
            return
        time.sleep(_LOOK_S)


def _has_key(run: str) -> bool:
    return ":" in run and not Path(run).exists()


def _keys(study: Study, run: str, key: str) -> list[str]:
    """Return the one key that begins so.

    Raises:
        StudyError: There is no such trial, or several.
    """
    there = set(study.ledger.keys())
    there |= {path.stem for path in trial_log.log_file(study.path, "x").parent.glob("*.jsonl")}
    meant = sorted(each for each in there if key and each.startswith(key))
    if len(meant) != 1:
        raise StudyError(
            f"{run}: {len(meant)} trials of {study.name} have a key that begins with {key!r}. "
            "Keys are the names of the files in its ledger/ and logs/trials/."
        )
    return meant


def _nothing(study: Study, level: str) -> str:
    if study.simulated:
        return f"{study.name} is simulated: its trials have no logs."
    return f"{study.name} has no line of level {level} or above."


class _Source:
    """The lines of logs, each given once.

    Args:
        study: The study.
        keys: Of the trials; None is all, those that begin later too.
        level: The least that is given.
    """

    def __init__(self, study: Study, keys: list[str] | None, level: str) -> None:
        self._study, self._keys, self._level = study, keys, level
        self._read: dict[Path, tuple[int, int, str]] = {}  # file number, bytes, last line's time

    def new(self) -> list[dict[str, Any]]:
        """Return what has come since the last call, in the order of time, each with its key."""
        found = [{"key": path.stem, **entry} for path in self._files() for entry in self._of(path)]
        return sorted(found, key=lambda entry: str(entry["time"]))

    def _files(self) -> Iterator[Path]:
        folder = trial_log.log_file(self._study.path, "x").parent
        if self._keys is None:
            yield from sorted(folder.glob("*.jsonl"))
        else:
            yield from (trial_log.log_file(self._study.path, key) for key in self._keys)

    def _of(self, path: Path) -> list[dict[str, Any]]:
        number, begin, latest = self._read.get(path, (0, 0, ""))
        try:
            if path.stat().st_size == begin and path.stat().st_ino == number:
                return []
            with path.open("rb") as file:
                stat = path.stat()
                if stat.st_ino != number:  # shortened meanwhile: what is known is told by its time
                    begin = 0
                file.seek(begin)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]  # a line that is being written is left for later
        entries = trial_log.parse(whole)
        new = [entry for entry in entries if begin or entry["time"] > latest]
        last = max([latest, *(str(entry["time"]) for entry in entries)])
        self._read[path] = (stat.st_ino, begin + len(whole), last)
        return [entry for entry in new if trial_log.reaches(entry, self._level)]


def _show(entry: dict[str, Any], *, alone: bool) -> None:
    """Print a line, and a text of several lines below it."""
    whose = "" if alone else f"{entry['key'][:_SHOWN]}  "
    told = "  ".join(
        f"{name} {_value(name, value)}"
        for name, value in entry.items()
        if name not in (*_OF_EVERY_LINE, "key")
    )
    text = str(entry.get("text", "")).strip("\n")
    inline = text if "\n" not in text else ""
    parts = [part for part in (told, inline) if part]
    head = f"{_clock(str(entry['time']))}  {whose}{entry['level']:<7}  {entry['event']:<9}"
    display.say(f"{head}  {'  '.join(parts)}".rstrip())
    if text and not inline:
        for line in text.splitlines():
            display.say(f"    {line}".rstrip())


def _clock(written: str) -> str:
    try:
        return datetime.fromisoformat(written).strftime("%Y-%m-%d %H:%M:%SZ")
    except ValueError:
        return written


def _value(name: str, value: Any) -> str:
    if name == "seconds" and isinstance(value, int | float):
        return f"{value:.3g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
