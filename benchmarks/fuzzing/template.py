"""A study folder as a run would have left it, made without running anything."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from orchestrator import factors, history, planning
from orchestrator.budget import Spending, write_spending
from orchestrator.config import load_experiment
from orchestrator.ledger import Row, write_row
from orchestrator.outbox import (
    Outbox,
    epoch_record,
    row_record,
    start_record,
    study_end_record,
    study_record,
)
from orchestrator.planning import Identity
from orchestrator.study import Study
from orchestrator.units import Unit
from spaces.core.text import parse

EXPERIMENT = """\
name: {name}
space: {{name: nasbench201, channels: 4, cells_per_stage: 1}}
dataset: digits
seeds: [0, 1]
method: {{grid: [darts, sdarts_rs]}}
search: {{epochs: 3, batch_size: 32, weight_lr: {{grid: [0.01, 0.1]}}}}
retrain: {{epochs: 2, batch_size: 32, channels: 4, cells: 1, budget_hours: 9}}
"""
BEGIN = 1_790_000_000.0
_EVALUATION: dict[str, Any] = {
    "stem": "cifar",
    "params": 73306,
    "macs": 7.8e6,
    "channels": 4,
    "cells": 1,
    "classes": 10,
}
_EVALUATION |= {"in_channels": 1, "image_size": 8}
_CELL = "|{0}~0|+|{1}~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
_OPERATIONS = ("nor_conv_3x3", "nor_conv_1x1", "skip_connect", "avg_pool_3x3")


@dataclasses.dataclass(frozen=True)
class Template:
    """A study, and what it should hold.

    Attributes:
        path: Its folder.
        rows: Rows of its ledger, by key.
        begun: The row that has a state and no end.
        searches: Keys of all searches that its experiment asks for.
    """

    path: Path
    rows: dict[str, Row]
    begun: Row
    searches: frozenset[str]

    def copy(self, target: Path) -> None:
        """Make a copy, in the place of what is there."""
        shutil.rmtree(target, ignore_errors=True)
        for folder, _, names in os.walk(self.path):
            place = target / os.path.relpath(folder, self.path)
            place.mkdir(parents=True)
            for name in names:
                (place / name).write_bytes((Path(folder) / name).read_bytes())


@functools.cache
def identity() -> Identity:
    """Return what enters the keys of the rows; it reads the images."""
    digits = {"name": "digits", "digest": planning.dataset_digest({"name": "digits"})}
    return Identity(digits, plugins=None, git=None, per_trial={"cpu": 1.0, "gpu": 0.0})


def make(root: Path, name: str = "fuzzed") -> Template:
    """Make a study of 8 searches, one diverged and one unfinished, and 2 retrainings."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / f"{name}.yaml"
    file.write_text(EXPERIMENT.format(name=name))
    experiment = load_experiment(file)
    study = Study.create(root, experiment, f"nas run {name}.yaml")
    configurations = planning.known_configurations(experiment)
    units = planning.search_units(
        experiment, configurations, identity(), factors.label(configurations)
    )
    searched = [_searched(unit, seed, experiment.dataset) for unit in units for seed in unit.rows]
    *ended, begun = searched
    ended[2] = dataclasses.replace(ended[2], status="diverged", genotype=None, genotype_hash=None)
    retrained = _retrained(experiment, ended)
    rows = [*ended, *retrained]
    for row in rows:
        study.ledger.write(row, durable=False)
    cut = dataclasses.replace(
        begun, status="running", curve=begun.curve[:1], epochs_done=1, ended=None
    )
    write_row(study.checkpoints / begun.key / "row.json", cut, durable=False)
    _note(study, rows, cut)
    keys = frozenset(key for unit in units for key in unit.rows.values())
    return Template(study.path, {row.key: row for row in rows}, cut, keys)


def _searched(unit: Unit, seed: int, dataset: Any) -> Row:
    settings = dict(unit.settings)
    place = int(unit.rows[seed][:4], 16)
    cell = parse(_CELL.format(_OPERATIONS[place % 4], _OPERATIONS[place // 4 % 4]))
    found: dict[str, Any] = {"genotype": cell.to_json(), "genotype_hash": cell.hash}
    curve = [
        {
            "epoch": epoch,
            "val_accuracy": 0.5 + 0.1 * epoch + place % 97 / 1000,
            "val_loss": 1.0 / epoch,
            "train_accuracy": 0.5 + 0.1 * epoch,
            "train_loss": 1.1 / epoch,
            "epoch_time_s": 2.0,
            **found,
        }
        for epoch in (1, 2, 3)
    ]
    return Row(
        key=unit.rows[seed],
        stage="search",
        status="finished",
        config_id=unit.config_id,
        block=unit.block,
        seed=seed,
        method=settings["method"]["name"],
        space="nasbench201",
        dataset="digits",
        settings={**settings, "dataset": dataset},
        params=dict(unit.params),
        label=unit.label,
        curve=curve,
        **found,
        epochs_done=3,
        epochs_total=3,
        cost={"time_s": 6.0, "cpu_hours": 6 / 3600, "gpu_hours": 0.0},
        environment={"git": "abc123", "versions": {"torch": "2"}, "fingerprint": {"threads": 1}},
        evaluation=dict(_EVALUATION),
        selections={"magnitude": {"label": "magnitude", **found, "settings": {}, "time_s": 0.1}},
        stop=None,
        started=BEGIN + 10 * seed,
        ended=BEGIN + 10 * seed + 6,
    )


def _retrained(experiment: Any, searches: list[Row]) -> list[Row]:
    found = []
    for unit in planning.retrain_units(experiment, searches, identity()):
        for seed, key in unit.rows.items():
            genotype = unit.settings["genotype"]
            curve: list[dict[str, Any]] = [{"epoch": 1, "epoch_time_s": 1.0}]
            curve.append({"epoch": 2, "epoch_time_s": 1.0, "test_accuracy": 0.97, "params": 1234})
            found.append(
                Row(
                    key=key,
                    stage="retrain",
                    status="finished",
                    config_id=unit.config_id,
                    seed=seed,
                    method=str(unit.extra["method"]),
                    space="nasbench201",
                    dataset="digits",
                    settings={k: v for k, v in unit.settings.items() if k != "genotype"},
                    label=unit.label,
                    curve=curve,
                    genotype=genotype,
                    genotype_hash=str(unit.extra["genotype_hash"]),
                    epochs_done=2,
                    epochs_total=2,
                    cost={"time_s": 2.0},
                    environment={"fingerprint": {}},
                    started=BEGIN + 100,
                    ended=BEGIN + 102,
                )
            )
    return found


def _note(study: Study, rows: list[Row], begun: Row) -> None:
    """Write what a driver leaves beside rows: outbox, progress, history, budget."""
    t = BEGIN
    with Outbox(study.outbox) as outbox:
        outbox.append(study_record(t))
        for row in [*rows, begun]:
            head = dataclasses.replace(row, status="running")
            outbox.append(start_record(head, t))
            for entry in row.curve:
                outbox.append(epoch_record(row.key, row.stage, entry, t))
            if row is not begun:
                outbox.append(row_record(row.key, t))
        outbox.append(study_end_record("interrupted", t))
    progress = {"stage": "search", "total": 8, "done": 7, "time": t}
    study.progress.write_text(json.dumps(progress))
    study.test_reads.write_text(json.dumps({"key": rows[-1].key, "time": time.time()}) + "\n")
    history.write(study, "nas extend fuzzed --seeds 0-1", {"seeds": [[0], [0, 1]]})
    changed = study.path / history.FOLDER / "0001.json"
    form = json.loads(changed.read_bytes())
    changed.write_text(json.dumps({**form, "experiment": {**form["experiment"], "seeds": [0]}}))
    write_spending(study.path, Spending(9.0, 0.1, ()))
