"""The notebook of the docs runs, and says what is stored in it."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from tests.notebook import execute, texts

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "python_api.ipynb"


def test_the_notebook_says_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody answers there: runs are left in the outbox of a folder that is thrown away.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.delenv("NAS_ROOT", raising=False)
    stored = texts(nbformat.read(NOTEBOOK, as_version=4))
    assert texts(execute(NOTEBOOK)) == stored
    assert sum("Figure" in text for text in stored) >= 4


def test_the_stored_notebook_names_no_folder_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users|var)\b", text)
    assert len(text) < 300_000
