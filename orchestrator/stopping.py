"""Ending a study that runs: by a signal, or by a request that its driver finds in its folder.

What has been trained is on disk after every epoch, so a stop loses at most the epoch in progress of
each trial. The driver ends Ray Tune in order, records what it knows, tells MLflow and writes the
report, as it does after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from orchestrator import json_files
from orchestrator.holding import Holder, is_holder, read_lock
from orchestrator.ledger import replace_file

if TYPE_CHECKING:
    from orchestrator.study import Study

REQUEST = "stop.json"
BY_REQUEST = "nas stop"
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_POLL_S = 0.2
Handler = Callable[[int, FrameType | None], Any]


class StoppedError(KeyboardInterrupt):
    """A study was told to stop; `Stopping.reason` says by what."""


class Stopping:
    """Notes that a study is to stop, and ends what its driver is doing.

    While Ray Tune runs, Tune is told and ends in order; at any other time StoppedError is raised in
    the main thread. A batch system asks by SIGTERM or SIGUSR1, `nas stop` by a file and, on the
    driver's own host, by SIGTERM.

    Args:
        folder: The study's folder, held by this process.

    Attributes:
        reason: What asked first: "SIGTERM", "SIGUSR1", "Ctrl-C" or "nas stop"; None so far.
    """

    def __init__(self, folder: Path) -> None:
        self._request = folder / REQUEST
        self._holder = read_lock(folder)
        self._before: dict[int, Any] = {}
        self._tune: Handler | None = None
        self.reason: str | None = None

    def __enter__(self) -> Stopping:
        self._request.unlink(missing_ok=True)  # it was for a driver before this one
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        return self

    def listen(self) -> None:
        """Take the signals; again after Ray has been joined, which takes SIGTERM for itself."""
        for number in self._before:
            signal.signal(number, self._on_signal)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._request.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise StoppedError where a stop has been asked for."""
        if self.reason is not None:
            raise StoppedError(self.reason)

    def look(self) -> None:
        """Stop if the study's folder has a request for this driver."""
        if self.reason is None and self._requested():
            self._stop(BY_REQUEST, int(signal.SIGUSR1), None)

    @contextlib.contextmanager
    def of_tune(self) -> Iterator[None]:
        """Let Ray Tune run, which takes signals itself; afterwards they are as they were."""
        self.check()
        numbers = (signal.SIGINT, *self._before)
        handlers = {number: signal.getsignal(number) for number in numbers if self._before}
        try:
            yield
        finally:
            self._tune = None
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.check()

    def take_over(self) -> None:
        """Come between the system and Tune, which has just set up its own handlers."""
        if not self._before:
            return
        tune = signal.getsignal(signal.SIGUSR1)
        if callable(tune) and tune != self._on_signal:
            self._tune = tune
            self.listen()
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self._stop(BY_REQUEST if self._requested() else name, number, frame)

    def _stop(self, reason: str, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or reason
        if self._tune is None:
            raise StoppedError(self.reason)
        self._tune(number, frame)  # a second Ctrl-C then ends everything at once

    def _requested(self) -> bool:
        try:
            asked = json_files.parse(self._request.read_bytes())["holder"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return self._holder is not None and asked == asdict(self._holder)


def request(study: Study, holder: Holder) -> bool:
    """Ask the driver of a study to stop; return whether it was sent a signal too.

    A signal is sent on the driver's own host alone, to the process that the lock names and none
    that has its number by now.
    """
    asked = {"holder": asdict(holder), "by": f"{getpass.getuser()}@{socket.gethostname()}"}
    asked["time"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    replace_file(study.path / REQUEST, json.dumps(asked).encode())
    if not is_holder(holder):
        return False
    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process(holder.pid).send_signal(signal.SIGTERM)
        return True
    return False


def wait(study: Study, holder: Holder, seconds: float) -> bool:
    """Return whether the driver has let go of the study within so long."""
    end = time.monotonic() + seconds
    while study.holder() == holder:
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True
