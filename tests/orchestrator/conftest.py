"""Shared fixtures: one Ray for all tests of whole studies that need no driver of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.orchestrator import here


@pytest.fixture(scope="session")
def nas_here() -> Iterator[here.Nas]:
    """The `nas` command in this process; its cluster is started once a session."""
    with here.cluster() as address:
        yield here.Nas(address)
