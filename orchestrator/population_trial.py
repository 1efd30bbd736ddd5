"""What runs on a worker: a member of a population, for the epochs of one generation.

Its state is in a file of its generation. The one of the generation before stays as it was, for the
members that go on from it, until the driver has committed that all are through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger import Row, Status
from orchestrator.outbox import SETTINGS
from orchestrator.population_file import state_name
from orchestrator.study_trial import StudyRetrain
from trainables.ray_trial import Trial
from trainables.worst import worst_value

if TYPE_CHECKING:
    from trainables.retrain import RetrainTrial

_MEASURED = ("train_accuracy", "train_loss", "val_accuracy", "val_loss")


class PopulationRetrain(StudyRetrain):
    """A member of a population in one generation; its block has one seed."""

    def setup(self, config: dict[str, Any]) -> None:
        """Find the member's state, in this generation or before it, and go on from there."""
        super().setup(config)
        self.reported = int(self._generation["start"])

    @property
    def _generation(self) -> dict[str, Any]:
        generation: dict[str, Any] = self.unit["generation"]
        return generation

    def state_file(self, seed: int) -> Path:
        """Return the file with the state of this generation."""
        return self._folder(seed) / state_name(self._generation["index"])

    def _restore(self, seed: int) -> RetrainTrial:
        from trainables.state import load_state

        trial = super()._restore(seed)
        index = self._generation["index"]
        if self.state_file(seed).is_file() or index == 0:
            return trial  # type: ignore[return-value]
        source = self._generation["source"]
        own = load_state(self._folder(seed) / state_name(index - 1))
        state = own
        if source is not None:
            state = load_state(self.study / "checkpoints" / source / state_name(index - 1))
        trial.adopt(state, json.loads(own["curve"]))  # type: ignore[union-attr]
        return trial  # type: ignore[return-value]

    def note(self, entry: dict[str, Any]) -> None:
        """Add the values of the drawn settings, and in the first epoch of a copy who it copied.

        What is no number is noted as its place among the choices.
        """
        retrain, generation = self.config["retrain"], self._generation
        for name, word in generation["drawn"].items():
            value = retrain[name]
            entry[f"{SETTINGS}{name}"] = (
                word["choice"].index(value) if isinstance(value, str) else float(value)
            )
        if generation["copied"] is not None and entry["epoch"] == generation["start"] + 1:
            entry["copied_from"] = generation["copied"]

    def _end(self, seed: int, trial: Trial) -> None:
        """Write the row after the last epoch; a member that diverged before has to copy first."""
        end = int(self._generation["end"])
        if not trial.diverged or end == self.unit["epochs"]:
            super()._end(seed, trial)
            return
        self.logs[seed].write("diverged", "warning", epoch=len(trial.curve))
        while len(trial.curve) < end:
            trial.curve.append(_not_run(len(trial.curve) + 1, trial.curve[-1]))
        trial.save_state(self.state_file(seed))  # type: ignore[attr-defined]
        self._write(seed, trial, "running")

    def _result(self, entries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        result = super()._result(entries)
        if self.reported >= self._generation["end"]:
            result["ended"] = result["done"] = True
        return result

    def _row(self, seed: int, trial: Trial | None, status: Status) -> Row:
        row, generation = super()._row(seed, trial, status), self._generation
        retrain = row.settings["retrain"]
        fixed = {key: value for key, value in retrain.items() if key not in generation["drawn"]}
        settings = {**row.settings, "retrain": fixed, "pbt": generation["pbt"]}
        return replace(row, settings=settings, history=generation["history"])


def _not_run(epoch: int, last: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of an epoch that a member which diverged does not run."""
    measured = {name: worst_value(name) for name in _MEASURED if name in last}
    return {"epoch": epoch, **measured, "diverged": 1, "epoch_time_s": 0.0}
