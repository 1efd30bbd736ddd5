"""The loop of the drain process: it follows a driver and outlives it by one last look."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

import psutil

from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from orchestrator.tracking_runs import StoreDownError

_POLL_S, _LONGEST_WAIT_S, _GRACE_S = 1.0, 15.0, 30.0
_log = logging.getLogger(__name__)


def follow(study: Study, connect: Callable[[], Drain], pid: int | None) -> int:
    """Send a study to the store until its driver is gone; return 0 if all of it was sent.

    Args:
        study: The study.
        connect: Makes the drain; raises StoreDownError while the store is down. Then this waits,
            up to 15 s between attempts.
        pid: The driver's process; None sends once.
    """
    driver = None
    with contextlib.suppress(psutil.NoSuchProcess):
        driver = psutil.Process(pid) if pid is not None else None
    drain: Drain | None = None
    delay, gone_at, down = _POLL_S, None, False
    while True:
        # Looked at before sending, so that what the driver wrote last is sent too.
        gone = driver is None or not driver.is_running() or driver.status() == "zombie"
        gone_at = gone_at or (time.monotonic() if gone else None)
        try:
            drain = drain or connect()
            drain.send()
            if down:
                _log.info("MLflow is back; all was sent")
            delay, down = _POLL_S, False
            if gone or drain.ended:
                return 0
            drain.measure(time.time())
        except StoreDownError as error:
            if not down:
                _log.warning("MLflow is unavailable, the outbox is kept: %s", error)
            delay, down = min(2 * delay, _LONGEST_WAIT_S), True
            if gone_at is not None and time.monotonic() - gone_at > _GRACE_S:
                _log.warning("not all was sent; `nas sync %s` does it later", study.name)
                return 1
        wake = time.monotonic() + (min(delay, 5.0) if gone else delay)
        while time.monotonic() < wake:
            time.sleep(min(_POLL_S, max(0.0, wake - time.monotonic())))
            if not gone and driver is not None and not driver.is_running():
                break
