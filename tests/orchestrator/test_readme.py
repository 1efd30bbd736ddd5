"""The Python of the README runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spaces.core import plugins
from tests.orchestrator.fake_study import fill, make_study
from trainables.search import SearchTrial

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def block(sign: str) -> str:
    """Return the one block that contains `sign`."""
    (found,) = (text for text in BLOCKS if sign in text)
    return found


def test_the_search_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = block("SearchTrial(")
    assert len(text.strip().splitlines()) <= 11  # ten lines and an empty one
    exec(compile(text, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[3].startswith("|")
    assert (tmp_path / "search.pt").is_file()


def test_the_tuner_names_what_there_is() -> None:
    text = block("tune.Tuner(")
    # Everything but the run itself, which would start Ray.
    scope: dict[str, object] = {}
    exec(compile(text.replace("results = tuner.fit()", ""), "README.md", "exec"), scope)
    assert type(scope["tuner"]).__name__ == "Tuner"


def test_the_frames_have_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_ROOT", raising=False)
    fill(make_study(tmp_path / "studies"))
    text = block("Study.open(").replace("quickstart", "tiny")
    exec(compile(text, "README.md", "exec"), {})
    assert "darts alpha_gradient=unrolled" in capsys.readouterr().out


def test_the_method_is_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine" / "methods" / "cooled_darts.py"
    file.parent.mkdir(parents=True)
    file.write_text(block("temperature_end"))
    monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, str(tmp_path / "mine"))
    trial = SearchTrial(
        space={"name": "nasbench201", "channels": 4, "cells_per_stage": 1},
        dataset="digits",
        method={"name": "cooled_darts", "temperature_end": 0.2},
        search={"epochs": 2},
    )
    assert trial.run_epoch()["epoch"] == 1
