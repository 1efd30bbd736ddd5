"""A worker that is told to end by SIGTERM: the epoch that runs is finished first."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, ClassVar

PATIENCE_S = 20.0
"""Seconds for which a worker that has told its driver waits to be ended."""

Handler = Callable[[int, FrameType | None], Any]


class Leaving:
    """While it lasts, a SIGTERM is noted; a second one does what it would have done.

    Ray ends a worker at once by raising SystemExit, in the middle of an epoch.
    """

    _told: ClassVar[bool] = False  # of the process, which may run another trial by then

    def __init__(self) -> None:
        self._before: Any = None

    @property
    def told(self) -> bool:
        """Whether this process has been told to end."""
        return Leaving._told

    def __enter__(self) -> Leaving:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def end(self) -> None:
        """End this process, which the driver does where it has heard of it."""
        time.sleep(PATIENCE_S)
        sys.exit(1)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not Leaving._told:
            Leaving._told = True
        elif callable(self._before):
            self._before(number, frame)
        else:
            sys.exit(1)
