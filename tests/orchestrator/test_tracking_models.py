"""Retrained networks as MLflow models: once each, and open to who has not got this package."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import mlflow.pytorch
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from orchestrator import tracking, tracking_models
from orchestrator.ledger import Row
from orchestrator.outbox import Outbox, row_record, study_end_record, study_record
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from spaces.core.text import parse
from tests.orchestrator.fake_study import CELL, YAML, make_study, retrain_row
from tests.orchestrator.memory_store import DOWN, KilledError, MemoryStore
from tests.orchestrator.test_exporting import write
from trainables.errors import StateError
from trainables.exporting import ExportError, open_retrained
from trainables.retrain import RetrainTrial
from trainables.state import save_state

MODELS = YAML + "mlflow: {models: true}\n"
ELSEWHERE = """
import sys
sys.modules.update({name: None for name in ("spaces", "trainables", "orchestrator")})
import numpy, torch, mlflow.pytorch
torch.set_num_threads(1)
mlflow.set_tracking_uri(sys.argv[1])
network = mlflow.pytorch.load_model(sys.argv[2])
images = torch.from_numpy(numpy.load(sys.argv[3]))
numpy.save(sys.argv[4], network(images).detach().numpy())
"""


def train(study: Study, row: Row) -> Row:
    """Leave a network that was trained for an epoch as that of a row."""
    settings = {"epochs": 1, "batch_size": 256, "channels": 2, "cells": 1}
    genotype = parse(CELL.format("skip_connect"))
    trial = RetrainTrial(genotype=genotype, space="nasbench201", dataset="digits", retrain=settings)
    trial.run()
    row = write(study, row)
    save_state(trial.final_state(), study.path / str(row.final))
    return row


def models_of(client: MlflowClient, study: Study) -> list[LoggedModel]:
    experiment = client.get_experiment_by_name(study.name)
    assert experiment is not None
    return list(client.search_logged_models([experiment.experiment_id]))


def test_a_model_is_logged_once_and_opens_without_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "studies", MODELS)
    row = train(study, retrain_row("skip_connect", 0, 0.9))
    uri = tracking.default_uri(study.root)
    client = MlflowClient(uri, uri)

    def killed(*_: object) -> None:
        raise KilledError

    # Killed before the model is ready, then before the run says that it has it.
    for call in ("finalize_logged_model", "log_outputs"):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, call, killed)
            with pytest.raises(KilledError):
                tracking.drain(study, uri)
    for _ in range(2):
        tracking.drain(study, uri)
        (model,) = models_of(client, study)
    assert (str(model.status), model.tags["nas.key"]) == ("READY", row.key)
    assert client.get_run(str(model.source_run_id)).data.tags["nas.model"]

    retrained = open_retrained(study.path / str(row.final))
    np.save(tmp_path / "images.npy", retrained.examples(3).numpy())
    script = [sys.executable, "-I", "-W", "ignore", "-c", ELSEWHERE]
    done = subprocess.run(
        [
            *(*script, uri, f"runs:/{model.source_run_id}/model"),
            *(tmp_path / "images.npy", tmp_path / "logits.npy"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        own = retrained.classifier(retrained.examples(3)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), own, atol=1e-5)

    described = mlflow.models.Model.load(model.artifact_location.removeprefix("file://"))
    assert described.signature is not None
    assert described.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 1, 8, 8)
    assert described.saved_input_example_info is not None
    assert described.metadata == retrained.about


def test_a_model_that_computes_something_else_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "studies", MODELS)
    row = train(study, retrain_row("skip_connect", 0, 0.9))
    retrained = open_retrained(study.path / str(row.final))
    monkeypatch.setattr(mlflow.pytorch, "save_model", lambda *_, **__: None)

    def other(_: str) -> object:
        return lambda images: retrained.classifier(images) + 0.1

    monkeypatch.setattr(mlflow.pytorch, "load_model", other)
    with pytest.raises(ExportError, match=r"differs by 0\.1"):
        tracking_models.save_model(retrained, tmp_path / "model")


def ended(study: Study) -> None:
    """Write the outbox of a driver that has left."""
    with Outbox(study.outbox) as outbox:
        outbox.append(study_record(1.0))
        for row in study.rows():
            outbox.append(row_record(row.key, 2.0))
        outbox.append(study_end_record("finished", 3.0))


def sent(store: MemoryStore) -> list[dict[str, int]]:
    return [run.models for run in store.all.values() if run.tags.get("stage") == "retrain"]


def with_weights(tmp_path: Path, text: str = MODELS) -> Study:
    study = make_study(tmp_path / "studies", text)
    for seed in (0, 1):
        write(study, retrain_row("skip_connect", seed, 0.9))
    ended(study)
    return study


def test_models_are_sent_only_where_they_are_asked_for(tmp_path: Path) -> None:
    store = MemoryStore()
    study = with_weights(tmp_path, YAML)
    Drain(study, store, "memory:").send()
    assert sent(store) == [{}, {}]
    Drain(study, store, "memory:", models=True).send()
    assert [list(models.values()) for models in sent(store)] == [[2], [2]]


def test_models_wait_until_the_driver_has_left(tmp_path: Path) -> None:
    study, store = make_study(tmp_path / "studies", MODELS), MemoryStore()
    row = write(study, retrain_row("skip_connect", 0, 0.9))
    drain = Drain(study, store, "memory:")
    with study.hold(), Outbox(study.outbox) as outbox:
        outbox.append(study_record(1.0))
        outbox.append(row_record(row.key, 2.0))
        drain.send()
        assert sent(store) == [{}]
        outbox.append(study_end_record("finished", 3.0))
        drain.send()
        assert len(sent(store)[0]) == 1


def test_a_drain_killed_at_any_call_sends_every_model(tmp_path: Path) -> None:
    study = with_weights(tmp_path)
    whole = MemoryStore()
    Drain(study, whole, "whole:").send()
    first = whole.calls - 4  # of each model the model, and the tag that says so
    for call in range(first, whole.calls):
        for error in (KilledError(), DOWN):
            store = MemoryStore()
            store.kill_at, store.after, store.error = call, True, error
            name = f"{call}{type(error).__name__}:"
            with pytest.raises(type(error)):
                Drain(study, store, name).send()
            Drain(study, store, name).send()
            assert sent(store) == sent(whole)
            assert store.picture() == whole.picture()


def test_weights_that_cannot_be_read_are_logged_and_the_rest_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study, store = with_weights(tmp_path), MemoryStore()
    rows = study.rows("retrain")
    (study.path / str(rows[0].final)).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        Drain(study, store, "memory:").send()
    assert f"row {rows[0].key} has no MLflow model" in caplog.text
    assert sorted(len(models) for models in sent(store)) == [0, 1]


def test_a_damaged_network_is_no_outage(tmp_path: Path) -> None:
    study = with_weights(tmp_path)
    uri = tracking.default_uri(study.root)
    (final,) = {study.path / str(row.final) for row in study.rows("retrain")[:1]}
    store = tracking.MlflowStore(uri, study)
    with pytest.raises(StateError, match="no readable stored state"):
        store.log_model("0", "run", final, dataset=None, tags={}, step=1)
