"""More room for trials that ran out of memory: what a second pass gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.experiment import Experiment
from orchestrator.progress import Stage
from orchestrator.units import Unit

# Of Ray's memory monitor, which ends the youngest process of a node that is nearly full.
_SHORT_OF_MEMORY = ("OutOfMemoryError", "running low on memory", "memory usage threshold")


@dataclass(frozen=True)
class Room:
    """How trials run that ran out of memory before.

    Attributes:
        words: How it is called in a sentence.
        gpus: GPUs of each, or None for those of the experiment.
        alone: Whether they run one after the other, with nothing of the study beside them.
        search: Settings of the search that need less memory and change no result.
    """

    words: str
    gpus: float | None = None
    alone: bool = False
    search: Mapping[str, Any] = field(default_factory=dict)

    def takes(self, unit: Unit) -> bool:
        """Return whether it is more than a unit had."""
        if not self.search:
            return True
        given = unit.settings.get("search", {})
        return all(given.get(name, "auto") == "auto" for name in self.search)

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a Ray trial with this room."""
        changed = dict(config)
        if self.search:
            changed["search"] = {**config["search"], **self.search}
        if self.gpus is not None:
            changed = with_gpus(changed, self.gpus)
        return changed


def rooms(experiment: Experiment, stage: Stage, concurrent: int) -> list[Room]:
    """Return what is more than the trials of a stage have, the least change first.

    Args:
        experiment: What is run.
        stage: Which trials ran out of memory.
        concurrent: How many of them ran side by side.
    """
    per_trial = experiment.tune.per_trial
    if not per_trial.on_gpu:
        first = Room("one at a time", alone=True) if concurrent > 1 else Room("")
    elif per_trial.gpus == "auto" or per_trial.gpus < 1:
        first = Room("with a whole GPU", gpus=1.0)
    else:
        first = Room("")
    found = [first] if first.words else []
    if stage == "search":
        words = " and ".join(filter(None, [first.words, "with checkpointing of cells"]))
        less = {"checkpointing": "cell"}
        found.append(Room(words, gpus=first.gpus, alone=first.alone, search=less))
    return found


def with_gpus(config: Mapping[str, Any], gpus: float) -> dict[str, Any]:
    """Return the configuration of a Ray trial, each of whose workers has so many GPUs."""
    unit = config["unit"]
    workers = int((config.get("retrain") or {}).get("workers", 1))
    per_trial = {**unit["per_trial"], "gpu": workers * gpus}
    return {**config, "unit": {**unit, "per_trial": per_trial, "gpus": gpus}}


def is_short_of_memory(error: str) -> bool:
    """Return whether a trial's last failure is that Ray ended it since its node had no memory."""
    last = error.rpartition("Failure #")[2]
    return any(sign in last for sign in _SHORT_OF_MEMORY)
