"""Where a study's MLflow store is. Imports no mlflow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import platformdirs

from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment

_SQLITE = "sqlite:///"
_LOGIN = re.compile(r"(\w://)[^/\s@'\"]+@")
_SQL = ("sqlite", "postgresql", "mysql", "mssql")
_NETWORK = (
    "nfs", "nfs4", "cifs", "smbfs", "smb3", "lustre", "beegfs", "gpfs", "ceph", "afs", "panfs",
    "fuse.glusterfs", "fuse.sshfs", "fuse.ceph", "fuse.beegfs", "fuse.juicefs", "glusterfs",
)  # fmt: skip


def tracking_uri(experiment: Experiment | None, root: str | os.PathLike[str]) -> str:
    """Return the store of an experiment: its YAML, else MLFLOW_TRACKING_URI, else `default_uri`.

    Without an experiment it is that of a folder of studies.

    Raises:
        ConfigError: It is a folder: MLflow keeps no runs in plain files any more.
    """
    if experiment is not None and experiment.mlflow.tracking_uri:
        where = f"{experiment.name}: mlflow.tracking_uri"
        return check_uri(experiment.mlflow.tracking_uri, where)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return check_uri(named, "MLFLOW_TRACKING_URI") if named else default_uri(root)


def check_uri(uri: str, where: str = "--uri") -> str:
    """Return `uri` with an absolute path, since workers and the drain run in other folders.

    Raises:
        ConfigError: It is a folder, for which MLflow has no store any more.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("", "file"):
        raise ConfigError(
            f"{where} must be a database such as sqlite:///mlflow.db or a server such as"
            f" http://127.0.0.1:5000, got {without_password(uri)!r}. MLflow keeps no runs in a"
            " plain folder any more."
        )
    if uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE)).expanduser()
        return f"{_SQLITE}{path.absolute()}"
    return uri


def without_password(uri: str) -> str:
    """Return a URI without what must not be shown: user, password and query."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite" or ("@" not in parts.netloc and not parts.query):
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def scrubbed(text: str) -> str:
    """Return a text of somebody else without the user and password of any URI in it."""
    return _LOGIN.sub(r"\1", text)


def default_uri(root: str | os.PathLike[str]) -> str:
    """Return the URI of the SQLite store of a folder of studies.

    It is `mlflow.db` in that folder, or on a network file system, where SQLite damages its files,
    in the user's local state folder; `store_notice` says so.
    """
    folder = Path(root).expanduser().absolute()
    if on_network(folder):
        name = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:12]
        folder = Path(platformdirs.user_state_dir("nas-orchestrator")) / "mlflow" / name
    return f"{_SQLITE}{folder / 'mlflow.db'}"


def store_notice(root: str | os.PathLike[str]) -> str | None:
    """Return what the user has to know about where the default store is, or None."""
    if not on_network(Path(root).expanduser().absolute()):
        return None
    return (
        f"{root} is on a network file system, which SQLite cannot be trusted on: runs are shown"
        f" from {default_uri(root).removeprefix(_SQLITE)} on this machine. Set mlflow.tracking_uri"
        " to a server to share them."
    )


def is_database(uri: str) -> bool:
    """Return whether MLflow opens the store itself, without a server between."""
    return urlsplit(uri).scheme.partition("+")[0] in _SQL


def database_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def has_tables(uri: str) -> bool:
    """Return whether a SQLite store has been made: the last step of making it is on record.

    Of any other store it cannot be told from here: False.
    """
    file = database_file(uri)
    if file is None or not file.is_file():
        return False
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(os.fspath(file))}?mode=ro", uri=True)
        ) as base:
            return bool(base.execute("SELECT count(*) FROM alembic_version").fetchone()[0])
    except sqlite3.Error:
        return False


def on_network(folder: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Return whether `folder`, or the nearest parent that exists, is on a network file system.

    Args:
        folder: Absolute path.
        mounts: The system's table of mounts; where there is none the answer is no.
    """
    try:
        table = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    real = folder.resolve()
    kind, longest = "", -1
    for fields in table:
        # The table writes a space in a path as \040.
        point = Path(fields[1].replace("\\040", " "))
        if real.is_relative_to(point) and len(point.parts) >= longest:
            kind, longest = fields[2], len(point.parts)
    return kind in _NETWORK
