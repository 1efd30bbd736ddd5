"""How an input may end, and how it may not: a call of the product, watched."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import resource
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from unittest import mock

from spaces.core.errors import NasError

Outcome = Literal["accepted", "refused", "repaired"]
Fault = Literal["traceback", "loss", "unclear", "slow", "memory"]

DEADLINE_S = 20.0
MOST_GROWTH_BYTES = 400 * 2**20
_LONGEST_LINE = 1200  # a message of 400 characters, and the path of its file
_LONGEST = 60_000
# Words of Python that say nothing to the person who wrote the file.
_PYTHON = re.compile(r"Traceback \(most recent|^\w*(Error|Exception)\b:|object at 0x", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_T = TypeVar("_T")


class Finding(Exception):  # noqa: N818  # it is what is looked for
    """An input that the product does not stand.

    Attributes:
        fault: What is wrong.
    """

    def __init__(self, fault: Fault, said: str) -> None:
        super().__init__(f"{fault}: {said}")
        self.fault = fault


class Kind(Protocol):
    """One kind of file; see the modules of this package."""

    name: str

    def inputs(self) -> Any:
        """Return the Hypothesis strategy of its inputs."""
        ...

    def check(self, item: Any) -> Outcome:
        """Try an input.

        Raises:
            Finding: It does not end as it should.
        """
        ...


@dataclass
class Said:
    """What a command of `nas` has said.

    Attributes:
        code: Exit code.
        out, err: Its output; warnings of the log are in `err`, as on a terminal.
    """

    code: int
    out: str
    err: str

    @property
    def everything(self) -> str:
        """Both outputs."""
        return self.out + self.err


class _TooLongError(BaseException):
    """The deadline of an input; no handler of the product may take it for an error of its own."""


@contextlib.contextmanager
def watched(deadline_s: float = DEADLINE_S) -> Iterator[None]:
    """Let a block neither run long nor take much memory nor raise what is no `NasError`.

    Raises:
        Finding: It did.
        NasError: As the block raised it.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _deadline(deadline_s):
            yield
    except (NasError, Finding):
        raise
    except _TooLongError:
        raise Finding("slow", f"more than {deadline_s:g} s of CPU time") from None
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-4:]
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(where))
        raise Finding("traceback", f"{type(error).__name__}: {error!s:.300} at {places}") from error
    growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if growth > MOST_GROWTH_BYTES:
        raise Finding("memory", f"{growth / 2**20:.0f} MiB more at its peak")


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_TooLongError` after a time; signals reach the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_number: int, _frame: Any) -> None:
        raise _TooLongError

    # CPU time: on a machine that is busy with others an input waits without being at fault.
    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, 1), signal.SIGALRM: (signal.ITIMER_REAL, 10)}
    before = {number: signal.signal(number, ring) for number in clocks}
    for clock, times in clocks.values():
        signal.setitimer(clock, times * seconds)
    try:
        yield
    finally:
        for clock, _ in clocks.values():
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def tried(function: Callable[[], _T], deadline_s: float = DEADLINE_S) -> tuple[_T | None, str]:
    """Return what a call gave, or None and the message that refused it.

    Raises:
        Finding: It ended in another way, or the message is no help.
    """
    try:
        with watched(deadline_s):
            return function(), ""
    except NasError as error:
        check_clear(str(error))
        return None, str(error)


def nas(words: Sequence[str], deadline_s: float = DEADLINE_S) -> Said:
    """Run `nas` in this process.

    Raises:
        Finding: It ended with a traceback, or refused without a clear message.
    """
    from orchestrator import cli

    out, err = _stream("strict"), _stream("backslashreplace")
    code = 0
    # The same command each time: to make it of its functions takes longer than most inputs do.
    command = mock.patch.object(cli, "app", _command())
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings_to(err):
        try:
            with watched(deadline_s), command:
                cli.main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
    said = Said(code, _text(out), _text(err))
    if said.code == 2:
        check_clear(said.err)
    elif _PYTHON.search(said.err):
        raise Finding("unclear", f"{words[0]} says {said.err!r:.400}")
    return said


@functools.cache
def _command() -> Any:
    from typer.main import get_command

    from orchestrator import cli

    return get_command(cli.app)


def check_clear(message: str) -> None:
    """Refuse a message that does not tell a person what is wrong.

    Raises:
        Finding: It is empty, endless, or in the words of Python.
    """
    if not message.strip():
        raise Finding("unclear", "no message at all")
    if len(message) > _LONGEST or max(map(len, message.splitlines())) > _LONGEST_LINE:
        raise Finding("unclear", f"a message of {len(message)} characters: {message[:300]!r}")
    if _PYTHON.search(message):
        raise Finding("unclear", f"the words of Python: {message[:300]!r}")
    if _CONTROL.search(message):
        raise Finding("unclear", f"control characters that a terminal obeys: {message[:300]!r}")


@contextlib.contextmanager
def warnings_to(stream: Any) -> Iterator[None]:
    """Write warnings of the log to a stream, as Python does by itself on a terminal."""
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


@dataclass
class Tally:
    """What inputs of one kind came to.

    Attributes:
        kind: What they were.
        inputs: Their number.
        outcomes: How many ended how.
        faults: How many findings of each sort.
        slowest_s: Seconds of CPU time of the slowest.
        examples: What the first findings of each text were, without repetitions.
    """

    kind: str
    inputs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    def add(self, kind: Kind, item: Any, clock: Callable[[], float]) -> None:
        """Try an input and count how it ended."""
        self.inputs += 1
        begun = clock()
        try:
            outcome = kind.check(item)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        except Finding as finding:
            self.faults[finding.fault] = self.faults.get(finding.fault, 0) + 1
            if len(self.examples) < 20 and str(finding) not in self.examples:
                self.examples.append(str(finding))
        self.slowest_s = max(self.slowest_s, clock() - begun)
