"""Searches of random images, as a study would run them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import METHODS, Size
from spaces.core import plugins
from trainables.search import SearchTrial

PLUGINS = Path(__file__).parent / "plugins"
_EPOCHS = 1_000  # never the last one: what ends a search is not what is measured


def use_random_images() -> None:
    """Let this process find the dataset `random_images`."""
    known = os.environ.get(plugins.ENVIRONMENT_VARIABLE, "")
    folders = [str(PLUGINS), *(part for part in known.split(os.pathsep) if part)]
    os.environ[plugins.ENVIRONMENT_VARIABLE] = os.pathsep.join(dict.fromkeys(folders))


def make_trial(
    space_name: str,
    method: str,
    size: Size,
    images: int,
    device: torch.device,
    seed: int = 0,
    **search: Any,
) -> SearchTrial:
    """Return a search of random images; settings that are not given are those of a study."""
    use_random_images()
    return SearchTrial(
        space=size.settings(space_name),
        dataset={"name": "random_images", "images": images, "side": size.image},
        method=dict(METHODS[method]),
        search={"epochs": _EPOCHS, "batch_size": size.batch, **search},
        device=device,
        seed=seed,
    )
