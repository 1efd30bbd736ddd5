"""Searches small enough for tests, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core import plugins
from trainables.choices import choose_plugin
from trainables.search import TIME_FIELDS, SearchTrial

PLUGINS = Path(__file__).parent / "plugins"
SPACES: dict[str, dict[str, Any]] = {
    "nasbench201": {"name": "nasbench201", "channels": 2, "cells_per_stage": 1},
    "darts": {"name": "darts", "channels": 2, "cells": 3},
    "darts_per_cell": {"name": "darts_per_cell", "channels": 2, "cells": 3},
    "nasbench1shot1_1": {"name": "nasbench1shot1_1", "channels": 2, "cells": 3},
    "custom": {
        "name": "custom",
        "channels": 2,
        "cells": 2,
        "reductions": [1],
        "nodes": 2,
        "edges": [[0, 2], [1, 2], [0, 3], [1, 3], [2, 3]],
        "operations": ["none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "sep_conv_3x3"],
        "keep": [1, 2],
    },
}
ODD_SPACES: dict[str, dict[str, Any]] = {
    "s1": {"name": "s1", "channels": 2, "cells": 3},
    "s4": {"name": "s4", "channels": 2, "cells": 3},
    "fixed_edges": {
        "name": "darts_per_cell",
        "channels": 2,
        "cells": 3,
        "edges": "fixed",
        "operations": ["skip_connect", "sep_conv_3x3"],
    },
    "all_edges": {
        "name": "darts_per_cell",
        "channels": 2,
        "cells": 3,
        "edges": "all",
        "operations": ["skip_connect", "sep_conv_3x3"],
    },
    "nasbench1shot1_2": {"name": "nasbench1shot1_2", "channels": 2, "cells": 3},
    "nasbench1shot1_3": {"name": "nasbench1shot1_3", "channels": 2, "cells": 3},
}
"""The cells of `darts` with candidates of each edge, with noise, with other edges in every cell;
larger choice blocks."""
EDGELESS = [name for name in [*SPACES, *ODD_SPACES] if name.startswith("nasbench1shot1")]
"""Spaces whose op weights are not of edges."""
WITH_EDGES = [name for name in SPACES if name not in EDGELESS]
WIDER = {"channels": 20}
"""Of methods with partial channels: a multiple of 4 and 5, so that one size compares both."""


@pytest.fixture(scope="module")
def tiny_plugins() -> Iterator[None]:
    """Makes the plug-ins of this folder known; restores the thread count, which searches set."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.ENVIRONMENT_VARIABLE, str(PLUGINS))
        yield
    torch.set_num_threads(threads)


def small_search(
    method: Any = "darts", *, space: str = "nasbench201", seed: int = 0, **search: Any
) -> SearchTrial:
    """A search of three epochs of two steps, on 48 images of 8x8, with alphas that do move."""
    settings = {"epochs": 3, "batch_size": 12, "alpha_lr": 0.05} | search
    partial = hasattr(choose_plugin("methods", method)[1], "partial_channels")
    size = (SPACES | ODD_SPACES)[space] | (WIDER if partial else {})
    return SearchTrial(space=size, dataset="tiny", method=method, search=settings, seed=seed)


def untimed(trial: SearchTrial) -> list[dict[str, Any]]:
    """The curve without what measures the machine."""
    return [
        {key: value for key, value in entry.items() if key not in TIME_FIELDS}
        for entry in trial.curve
    ]


def flat(state: Any, where: str = "") -> dict[str, Any]:
    """Every leaf of a nested state under its path."""
    if isinstance(state, dict):
        items = list(state.items())
    elif isinstance(state, list | tuple):
        items = list(enumerate(state))
    else:
        return {where: state}
    return {
        path: leaf for key, part in items for path, leaf in flat(part, f"{where}/{key}").items()
    }


def differences(first: SearchTrial, second: SearchTrial) -> list[str]:
    """Paths in the states of two trials that are not bit for bit equal; times do not count."""
    left, right = flat(first.state_dict()), flat(second.state_dict())
    assert left.keys() == right.keys()

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return bool(a == b)

    return [
        path
        for path in left
        if not equal(left[path], right[path]) and path.rpartition("/")[2] not in TIME_FIELDS
    ]
