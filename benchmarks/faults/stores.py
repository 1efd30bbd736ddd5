"""An MLflow server on the loopback, with PostgreSQL behind it where that is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

_START_S = 120.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five processes that nobody here needs
}


class StoreError(RuntimeError):
    """A server did not come up."""


def postgres_folder() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None where it cannot be used."""
    if importlib.util.find_spec("psycopg2") is None:
        return None
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in folders if (each / "postgres").exists()), None)


class Postgres:
    """A PostgreSQL of its own in a folder of its own, listening on the loopback alone."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _server_user()
        self.uri = f"postgresql+psycopg2://nas@127.0.0.1:{self._port}/postgres"
        folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(folder, self._user, -1)
            for parent in folder.parents:  # whoever serves has to reach it
                with contextlib.suppress(OSError):
                    parent.chmod(parent.stat().st_mode | 0o011)
        subprocess.run(
            [programs / "initdb", "-D", folder / "db", "-U", "nas", "-A", "trust", "-N"],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=folder,
        )
        self.start()

    def start(self) -> None:
        """Start it, after a crash too, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.kill()
        (self.folder / "db" / "postmaster.pid").unlink(missing_ok=True)
        settings = [f"port={self._port}", "listen_addresses=127.0.0.1"]
        settings += [f"unix_socket_directories={self.folder}", "fsync=on", "max_connections=40"]
        flags = [part for setting in settings for part in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "db", *flags],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self.folder,
                start_new_session=True,
            )
        wait_for_port(self._port, self._process)

    def kill(self) -> None:
        """Kill all of it without a word to anybody; `start` recovers it."""
        _kill(self._process)
        self._process = None

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()


class MlflowServer:
    """An MLflow tracking server on the loopback; a context manager.

    Args:
        folder: Where its files go.
        database: "sqlite", "postgresql", or "auto" for the second where it is installed.

    Raises:
        StoreError: PostgreSQL was asked for and is not installed.
    """

    def __init__(self, folder: Path, database: str = "auto") -> None:
        self.folder = folder
        programs = postgres_folder() if database != "sqlite" else None
        if database == "postgresql" and programs is None:
            raise StoreError("PostgreSQL's programs or psycopg2 are not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self.postgres = None if programs is None else Postgres(folder / "postgres", programs)
        self._backend = self.postgres.uri if self.postgres else f"sqlite:///{folder / 'mlflow.db'}"
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> str:
        """What is behind it."""
        return "postgresql" if self.postgres else "sqlite"

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self.postgres is not None:
            self.postgres.stop()

    def start(self) -> None:
        """Start it, after a crash too, and wait until it answers, for which it needs a database."""
        self.kill()
        if self.postgres is not None:
            self.postgres.start()
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", self._backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, **_ENVIRONMENT}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health") as got:
                if got.status == 200:
                    return
            time.sleep(0.2)
        raise StoreError(f"the MLflow server did not start: {self.folder / 'server.log'}")

    def kill(self) -> None:
        """Kill it and its workers."""
        _kill(self._process)
        self._process = None

    def pause(self) -> list[psutil.Process]:
        """Have it answer nobody for a while; return its processes."""
        if self._process is None:
            return []
        found = _family(self._process.pid)
        for each in found:
            with contextlib.suppress(psutil.Error):
                each.send_signal(signal.SIGSTOP)
        return found


def free_port() -> int:
    """Return a port of the loopback that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server accepts connections.

    Raises:
        StoreError: It ended, or does not listen after two minutes.
    """
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.1)
    raise StoreError(f"nothing listens at port {port} of the loopback")


def _server_user() -> int | None:
    """Return whom PostgreSQL runs as: it refuses root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    return None


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    for each in _family(process.pid):
        with contextlib.suppress(psutil.Error):
            each.kill()
    process.wait()
