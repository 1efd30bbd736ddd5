"""A driver without Ray, torch or training: it leaves a study folder as a real one would."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.experiment import Experiment
from orchestrator.ledger import Row, Stage, row_key, write_row
from orchestrator.outbox import (
    Outbox,
    epoch_record,
    row_record,
    start_record,
    study_end_record,
    study_record,
)
from orchestrator.study import Study

BEGIN = 1_790_000_000.0
OPERATIONS = ("nor_conv_3x3", "nor_conv_1x1", "skip_connect")


def make_study(root: Path, name: str = "fake") -> Study:
    """Return a new study with the smallest experiment there is."""
    experiment = Experiment(
        name=name,
        space={"name": "nasbench201", "channels": 4, "cells_per_stage": 1},
        dataset={"name": "digits"},
        method={"name": "darts"},
        selection={"name": "magnitude"},
        search={"epochs": 3},
    )
    return Study.create(root, experiment, ["nas", "run", "fake.yaml"])


def genotype(operation: str) -> dict[str, Any]:
    """Return the JSON form of the NAS-Bench-201 genotype with one operation everywhere."""
    edges = [[source, target, operation] for target in range(1, 4) for source in range(target)]
    return {"space": "nasbench201", "cells": [{"name": "cell", "edges": edges, "concat": [3]}]}


def make_row(seed: int = 0, *, stage: Stage = "search", epochs: int = 3, **changes: Any) -> Row:
    """Return a finished row; `changes` are fields of it, or `alpha_gradient`."""
    method = changes.get("method", "darts")
    operation = OPERATIONS[seed % len(OPERATIONS)]
    settings: dict[str, Any] = {
        "method": {"name": method},
        "space": {"name": "nasbench201", "channels": 4, "cells_per_stage": 1},
        "dataset": {"name": "digits", "digest": "0" * 16},
        "selection": {"name": "magnitude"},
        stage: {"epochs": epochs, "weight_lr": 0.025, "batch_size": 64},
    }
    if gradient := changes.pop("alpha_gradient", None):
        settings["method"]["alpha_gradient"] = {"name": gradient, "probe_radius": 0.01}
    if stage == "retrain":
        settings["retrain"]["channels"] = 16
    row = Row(
        key=row_key(stage, {"settings": settings, "seed": seed}),
        stage=stage,
        status="finished",
        config_id="c" * 10,
        seed=seed,
        method=method,
        space="nasbench201",
        dataset="digits",
        settings=settings,
        curve=[_entry(stage, epoch, seed, operation) for epoch in range(1, epochs + 1)],
        genotype=genotype(operation),
        genotype_hash=f"{OPERATIONS.index(operation):012x}",
        epochs_done=epochs,
        epochs_total=epochs,
        cost={"time_s": 4.0 * epochs, "gpu_hours": 0.0, "cpu_hours": epochs / 900},
        environment={"git": "1234abcd", "versions": {"torch": "2"}},
        started=BEGIN + 100 * seed,
        ended=BEGIN + 100 * seed + 4 * epochs,
    )
    return replace(row, **changes)


def _entry(stage: Stage, epoch: int, seed: int, operation: str) -> dict[str, Any]:
    accuracy = 1 - 0.5 * math.exp(-0.3 * epoch) - 0.01 * seed
    entry: dict[str, Any] = {"epoch": epoch, "epoch_time_s": 4.0, "train_accuracy": accuracy}
    entry |= {"train_loss": 1 / epoch, "peak_memory_bytes": 1e8}
    if stage == "retrain":
        return entry | {"lr": 0.01, "test_accuracy": accuracy, "params": 73306, "macs": 7.8e6}
    entry |= {"val_accuracy": accuracy - 0.02, "val_loss": 1.1 / epoch, "skip_share": 0.5}
    return entry | {"alpha_entropy": 1.6 / epoch, "genotype": genotype(operation)}


class Driver:
    """Does what a driver does to a study folder, one event at a time.

    Args:
        study: The study.
        t: Unix time before the first event, in seconds; a second passes with each event.
    """

    def __init__(self, study: Study, t: float = BEGIN) -> None:
        self.study = study
        self.outbox = Outbox(study.outbox)
        self.t = t

    def _now(self) -> float:
        self.t += 1.0
        return self.t

    def begin(self) -> None:
        """Begin or resume the study."""
        self.outbox.append(study_record(self._now()))

    def start(self, row: Row) -> None:
        """Begin a row."""
        self.outbox.append(start_record(replace(row, status="running"), self._now()))

    def epoch(self, row: Row, epoch: int) -> None:
        """Report one epoch of a row."""
        record = epoch_record(row.key, row.stage, row.curve[epoch - 1], self._now())
        self.outbox.append(record)

    def checkpoint(self, row: Row, epochs: int) -> None:
        """Leave the partial row of a search that is under way."""
        part = replace(row, status="running", curve=row.curve[:epochs], epochs_done=epochs)
        path = self.study.checkpoints / row.key / "row.json"
        write_row(path, replace(part, ended=None, cost={}))

    def finish(self, row: Row) -> None:
        """Write a row to the ledger and say so."""
        self.study.ledger.write(row)
        self.outbox.append(row_record(row.key, self._now()))

    def run(self, row: Row) -> None:
        """Run a row from its start to its end."""
        self.start(row)
        for epoch in range(1, len(row.curve) + 1):
            self.epoch(row, epoch)
        self.finish(row)

    def end(self, status: str = "finished") -> None:
        """Leave the study."""
        self.outbox.append(study_end_record(status, self._now()))
