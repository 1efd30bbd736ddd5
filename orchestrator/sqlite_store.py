"""An MLflow store in SQLite: made whole, or not at all.

MLflow makes its tables by a long row of migrations, which SQLite does not undo when the process is
killed among them. What is left then can never be opened again: the next migration finds tables that
it is to make. So the tables of a new store are made in a file beside, which is renamed at the end.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

_ENDINGS = ("", "-journal", "-wal", "-shm")
# A store with a row in one of these has something to lose.
_CONTENTS = ("runs", "registered_models", "logged_models", "trace_info")


def prepare(file: Path) -> None:
    """Make a store at `file`, unless there is one; whoever calls this holds a lock on it.

    A store that an MLflow of before left half made is replaced if nothing is in it.

    Args:
        file: SQLite file; its folder exists.

    Raises:
        sqlalchemy.exc.SQLAlchemyError, mlflow.exceptions.MlflowException, OSError: It cannot be
            made.
    """
    if file.exists() and file.stat().st_size > 0 and not is_half_made(file):
        return
    scratch = file.with_name(f".{file.name}.new")
    _remove(scratch)
    _make(scratch)
    _remove(file, _ENDINGS[1:])
    scratch.replace(file)


def is_half_made(file: Path) -> bool:
    """Return whether a file is a store of MLflow's that lacks tables and holds nothing."""
    from mlflow.store.tracking.dbmodels.models import Base

    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(os.fspath(file))}?mode=ro", uri=True)
        ) as base:
            listed = base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {str(name) for (name,) in listed}
            if not {"experiments", "alembic_version"} & tables:
                return False
            whole = tables >= set(Base.metadata.tables)
            if whole and not any(name.startswith("_alembic_tmp") for name in tables):
                return False
            filled = (
                base.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone()
                for name in _CONTENTS
                if name in tables
            )
            return not any(filled)
    except sqlite3.Error:
        return False


def _make(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    made = SqlAlchemyStore(f"sqlite:///{file}", (file.parent / "mlflow-artifacts").as_uri())
    made.engine.dispose()  # nothing may write to it by its old name
    with contextlib.closing(sqlite3.connect(file)) as base:
        # Stays with the file: pages read while a drain writes, a commit waits for the disk once.
        base.execute("PRAGMA journal_mode = WAL")
    _remove(file, _ENDINGS[1:])


def _remove(file: Path, endings: tuple[str, ...] = _ENDINGS) -> None:
    for ending in endings:
        file.with_name(file.name + ending).unlink(missing_ok=True)
