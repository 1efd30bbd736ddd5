"""Retrained networks as MLflow models, in the pytorch flavour and without any code of this package.

MLflow's own way for a module is a pickle, which needs the packages of its classes wherever it is
opened. A program of torch.export needs torch alone, and holds nothing that opening it would run.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from trainables.exporting import Retrained

NAME = "model"
"""Name of a run's model: `runs:/RUN/model` opens it."""

ALIAS = "best"
"""Of the version that is a study's best: `models:/STUDY@best` opens it."""


def log_model(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    retrained: Retrained,
    *,
    tags: Mapping[str, str],
    step: int,
    scratch: Path,
) -> str:
    """Give a run its model, unless it has one with these tags; return the id of the model.

    Killed at any moment it leaves a model that is not ready, which the next call completes.

    Args:
        client: Of the store.
        experiment_id, run_id: Where it belongs.
        retrained: The network.
        tags: What tells it from another network of the run.
        step: Epochs that it was trained for.
        scratch: Empty folder.

    Raises:
        ExportError: The network cannot be exported, or the model computes something else.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    found = _of_run(client, experiment_id, run_id, tags)
    if found is None:
        found = client.create_logged_model(experiment_id, NAME, run_id, dict(tags))
    model_id = str(found.model_id)
    if found.status != LoggedModelStatus.READY:
        save_model(retrained, scratch / NAME, run_id=run_id, model_id=model_id)
        client.log_model_artifacts(model_id, os.fspath(scratch / NAME))
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return model_id


def _of_run(
    client: MlflowClient, experiment_id: str, run_id: str, tags: Mapping[str, str]
) -> LoggedModel | None:
    """Return the model of a run that has all of the tags, a ready one before others."""
    words = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    models = client.search_logged_models([experiment_id], filter_string=" AND ".join(words))
    own = [model for model in models if model.source_run_id == run_id]
    return min(own, key=lambda model: (str(model.status) != "READY", model.model_id), default=None)


def register(
    client: MlflowClient, experiment_id: str, run_id: str, name: str, tags: Mapping[str, str]
) -> None:
    """Make a run's model a version of the registered model `name`, and have `best` mean it.

    Args:
        client: Of the store.
        experiment_id, run_id: Where the model belongs.
        name: Of the registered model, made if missing.
        tags: What tells the model, and so its version, from others.
    """
    from mlflow.exceptions import MlflowException

    model = _of_run(client, experiment_id, run_id, tags)
    if model is None:
        return
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    own = [
        each
        for each in versions
        if each.run_id == run_id and dict(tags).items() <= each.tags.items()
    ]
    if own:
        version = own[0].version
    else:
        made = client.create_model_version(
            name,
            str(model.artifact_location),
            run_id,
            tags=dict(tags),
            model_id=str(model.model_id),
        )
        version = made.version
    client.set_registered_model_alias(name, ALIAS, version)


def save_model(
    retrained: Retrained, folder: Path, *, run_id: str | None = None, model_id: str | None = None
) -> None:
    """Write a network as a folder that `mlflow.pytorch.load_model` opens, and check its logits.

    Args:
        retrained: The network.
        folder: Folder to make.
        run_id, model_id: What it says it belongs to.

    Raises:
        ExportError: The network cannot be exported, or the model computes something else.
    """
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from trainables.exporting import check_same, portable

    dtype = np.dtype(retrained.about["input"]["dtype"])
    images = TensorSpec(dtype, (-1, *retrained.about["input"]["shape"]), "images")
    logits = TensorSpec(dtype, (-1, retrained.about["network"]["num_classes"]), "logits")
    # Earlier versions of MLflow know the format by another word.
    arguments = inspect.signature(mlflow.pytorch.save_model).parameters
    new = "serialization_format" in arguments
    chosen: dict[str, Any] = {"serialization_format": "pt2"} if new else {"export_model": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow, about names and types that are as they are
        mlflow.pytorch.save_model(
            portable(retrained),
            os.fspath(folder),
            mlflow_model=Model(run_id=run_id, model_id=model_id),
            signature=ModelSignature(Schema([images]), Schema([logits])),
            input_example=retrained.examples(2).numpy(),
            # Given, because MLflow would find them by running the model in another process.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", "numpy"],
            metadata=retrained.about,
            **chosen,
        )
        check_same(retrained, mlflow.pytorch.load_model(os.fspath(folder)), "pt2", folder)
