"""Passwords of tracking stores: in no file of a study, no message and no list of processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from requests import ConnectionError as NotReachedError

from orchestrator import tracking
from orchestrator.commands_study import ui_arguments
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.tracking_location import check_uri, scrubbed
from orchestrator.tracking_runs import StoreDownError
from tests.orchestrator.fake_driver import Driver, make_row, make_study
from tests.orchestrator.fake_study import YAML
from tests.orchestrator.memory_store import MemoryStore

SECRET = "s3cret"
URI = f"postgresql://ann:{SECRET}@127.0.0.1:1/mlflow"


@pytest.mark.parametrize(
    "uri", [URI, f"http://{SECRET}@host:5000", f"https://host/?token={SECRET}", f"x://{SECRET}@h"]
)
def test_an_experiment_with_a_password_is_refused_without_saying_it(
    uri: str, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"{YAML}mlflow: {{tracking_uri: '{uri}'}}\n")
    with pytest.raises(ConfigError, match=r"mlflow\.tracking_uri must") as refused:
        load_experiment(file)
    assert SECRET not in str(refused.value)
    with pytest.raises(ConfigError) as folder:
        check_uri(f"file://{SECRET}@host/folder")
    assert SECRET not in str(folder.value)


def test_processes_get_it_by_their_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    class Process:
        def __init__(self, arguments: list[str], *, env: dict[str, str], **_: Any) -> None:
            started.append((arguments, env))

    monkeypatch.setattr(subprocess, "Popen", Process)
    study = make_study(tmp_path)
    tracking.start_drain(study, URI)
    assert len(started) == 1
    for arguments, environment in started:
        assert SECRET not in " ".join(arguments)
        assert URI in environment.values()
    assert SECRET not in " ".join(ui_arguments(URI, 5000))
    assert "--backend-store-uri" in ui_arguments("sqlite:////a/mlflow.db", 5000)


def test_a_study_folder_never_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = make_study(tmp_path), MemoryStore()
    monkeypatch.setattr(tracking, "MlflowStore", lambda uri, study: store)
    driver = Driver(study)
    driver.begin()
    driver.run(make_row(0))
    driver.end()
    tracking.drain(study, URI)
    tracking.reconcile(study, URI)
    tracking.rebuild(study, URI)
    files = [path for path in study.path.rglob("*") if path.is_file()]
    assert any("127.0.0.1:1/mlflow" in path.read_text() for path in files)
    assert not [path for path in files if SECRET in path.read_text()]
    assert SECRET not in repr(store.picture())


def test_errors_of_others_are_scrubbed() -> None:
    text = f"cannot connect to http://ann:{SECRET}@host:1/x and '{URI}'"
    assert (
        scrubbed(text) == "cannot connect to http://host:1/x and 'postgresql://127.0.0.1:1/mlflow'"
    )
    assert scrubbed("a@b and file:///tmp/x@y") == "a@b and file:///tmp/x@y"
    with pytest.raises(StoreDownError) as down, tracking._translated():
        raise NotReachedError(text)
    assert SECRET not in str(down.value)
    assert "NAS_DRAIN_URI" not in os.environ
