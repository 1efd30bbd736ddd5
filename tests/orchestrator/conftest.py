"""Shared fixtures: an experiment, and one Ray for studies that need no driver of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load_experiment
from tests.orchestrator import here

GOOD = """\
name: study
space: {name: nasbench201, channels: 4, cells_per_stage: 1}
dataset: digits
seeds: [0, 1]
method: darts
search: {epochs: 4}
"""


@pytest.fixture(scope="session")
def nas_here() -> Iterator[here.Nas]:
    """The `nas` command in this process; its cluster is started once a session."""
    with here.cluster() as address:
        yield here.Nas(address)


@pytest.fixture
def experiment(tmp_path: Path) -> Any:
    """Return what makes an experiment of `GOOD` and overrides."""
    path = tmp_path / "a.yaml"
    path.write_text(GOOD)
    return lambda *overrides: load_experiment(path, overrides)
