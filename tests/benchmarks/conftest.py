"""Measurements set threads and plug-ins of their process: tests put them back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from spaces.core.plugins import ENVIRONMENT_VARIABLE


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the thread count and the folders of plug-ins."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
