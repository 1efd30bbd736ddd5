"""A campaign's servers come back in an order in which they can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.stores import MlflowServer


class Database:
    """Stands for PostgreSQL, which a fault has killed."""

    def __init__(self, order: list[str]) -> None:
        self.order = order

    def start(self) -> None:
        self.order.append("database")


def test_a_server_starts_after_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def start(*_: Any, **__: Any) -> None:
        order.append("server")
        raise InterruptedError

    server = MlflowServer(tmp_path, "sqlite")
    server.postgres = Database(order)  # type: ignore[assignment]
    monkeypatch.setattr("benchmarks.faults.stores.subprocess.Popen", start)
    with pytest.raises(InterruptedError):
        server.start()
    assert order == ["database", "server"]
