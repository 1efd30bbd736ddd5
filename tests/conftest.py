"""Shared fixtures: one torch thread, the optional folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"  # before any import of ray; tests stay on loopback
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets and tables; a test that needs it is left out where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("left out: the folder ../shared/data is missing")
    return SHARED
