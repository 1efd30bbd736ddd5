"""What time and memory of a trial depend on: trials of one kind are measured once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.units import Unit

_OF_SEARCH = (
    "batch_size", "precision", "threads", "train_share", "cutout", "engine", "checkpointing",
)  # fmt: skip
_OF_TRAINING = (
    "batch_size", "channels", "cells", "stem", "auxiliary_weight", "augment", "cutout", "precision",
    "mixed_precision", "ema_decay", "threads",
)  # fmt: skip


def kind_of(unit: Unit) -> tuple[str, str]:
    """Return everything but learning rates and the like, and the hash of a genotype to be trained.

    Returns:
        Of all genotypes that are trained in one way the first part is the same.
    """
    if unit.stage == "search":
        search = unit.settings["search"]
        method = _without_floats(unit.settings["method"])
        parts = [method, unit.settings["space"], [search.get(word) for word in _OF_SEARCH]]
        return repr(parts), ""
    retrain = unit.settings["retrain"]
    parts = [unit.settings["space"], [retrain.get(word) for word in _OF_TRAINING]]
    return repr(parts), str(unit.extra.get("genotype_hash"))


def _without_floats(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: _without_floats(v) for k, v in node.items() if not isinstance(v, float)}
    return node
