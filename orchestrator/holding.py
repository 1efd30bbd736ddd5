"""Who runs a study: a lock that the system releases however its process ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from orchestrator import json_files
from orchestrator.errors import StudyError

# A clock that is set right while a process runs shifts the time of its start by a little.
_SAME_START_S = 1.0
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """The process that runs a study.

    Attributes:
        pid: Its number.
        host: Where it runs.
        since: When it took hold of the study, in local time.
        started: Unix time in seconds at which the process was started; 0 where that is not known.
    """

    pid: int
    host: str
    since: str
    started: float = 0.0


@contextlib.contextmanager
def hold_folder(path: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it however the process ends.

    Raises:
        StudyError: Another live process holds it.
    """
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except IsADirectoryError as error:
        raise _no_lock(path) from error
    try:
        if not _lock(descriptor, path):
            holder = _read_holder(path)
            who = f" (pid {holder.pid}, host {holder.host}, since {holder.since})" if holder else ""
            raise StudyError(
                f"study {path.name} is running{who}. Look at it with `nas status {path.name}`."
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        started = psutil.Process().create_time()
        holder_record = asdict(Holder(os.getpid(), socket.gethostname(), since, started))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder_record).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def read_lock(path: Path) -> Holder | None:
    """Return the live process that holds the folder, or None.

    Raises:
        StudyError: A folder is in the place of the lock.
    """
    try:
        with (path / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # Between taking the lock and writing who took it there is an instant without a name.
        return _read_holder(path) or Holder(pid=0, host="unknown", since="now")
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        raise _no_lock(path) from error
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return _live_here(_read_holder(path))
    return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on the file `path` and hold it; for work that takes seconds.

    On a file system without locks it is not held: there, only one process may do the work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
        yield
    finally:
        os.close(descriptor)


def is_holder(holder: Holder) -> bool:
    """Return whether the process of that number here is the holder, and no later one."""
    if holder.host != socket.gethostname() or not holder.started:
        return False
    try:
        return abs(psutil.Process(holder.pid).create_time() - holder.started) < _SAME_START_S
    except psutil.Error:
        return False


def _no_lock(path: Path) -> StudyError:
    return StudyError(f"{path / 'lock'} is a folder, and a file is needed there. Move it away.")


def _lock(descriptor: int, path: Path) -> bool:
    # `holder()` takes a shared lock for an instant, so one refusal proves nothing.
    for attempt in range(10):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02 * (attempt < 9))
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            # A file system without flock: the record in the file is all there is to go by.
            return _live_here(_read_holder(path)) is None
    return False


def _read_holder(path: Path) -> Holder | None:
    try:
        return Holder(**json_files.parse((path / "lock").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _live_here(holder: Holder | None) -> Holder | None:
    if holder is None or holder.host != socket.gethostname() or holder.pid == os.getpid():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return holder
    return holder
