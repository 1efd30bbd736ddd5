"""Opening the final state of a search again: for selection rules, diagnostics and drawings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from trainables.errors import StateError
from trainables.search import SearchTrial
from trainables.state import load_state, taking


def open_final(
    path: str | os.PathLike[str],
    *,
    dataset: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> SearchTrial:
    """Return the search of a `final.pt` as it was after its last epoch.

    It can be evaluated and selected from; optimizers and batches stand at their start, so that it
    is not meant to be searched on.

    Args:
        path: The file.
        dataset: Where the data lies now; None is where the search found it.
        device: "cpu", "cuda", "cuda:1" or "auto".

    Raises:
        StateError: The file is missing, damaged or of a retraining.
        NasError: Its plug-ins or its data are not here.
    """
    state = load_state(path)
    try:
        settings = json.loads(state["settings"])
        arguments = {name: settings[name] for name in ("space", "method", "selection", "search")}
        data = settings["dataset"] if dataset is None else dataset
        seed = int(settings["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path} is not the final state of a search ({error!r}).") from error
    trial = SearchTrial(**arguments, dataset=data, seed=seed, device=device)
    with taking(path):
        trial.load_final(state)
    return trial
