"""A study folder with made-up rows, for tests of what reads one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.config import load_experiment
from orchestrator.ledger import Row, row_key
from orchestrator.study import Study
from spaces.core.text import parse
from trainables.settings import RetrainSettings

YAML = """
name: tiny
space: {name: nasbench201, channels: 4, cells_per_stage: 1}
dataset: digits
seeds: [0, 1, 2]
method: {grid: [{name: darts}, {name: darts, alpha_gradient: unrolled}]}
search: {epochs: 3, batch_size: 32}
retrain: {epochs: 2, batch_size: 32, channels: 4, cells: 1}
"""
RETRAIN = asdict(RetrainSettings(epochs=2, batch_size=32, channels=4, cells=1))
CELL = "|nor_conv_3x3~0|+|{}~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
ENVIRONMENT = {"git": "abc123", "versions": {"torch": "2.15.0"}, "fingerprint": {"threads": 1}}


def make_study(root: Path, text: str = YAML) -> Study:
    """Make a study without rows."""
    file = root.parent / "tiny.yaml"
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return Study.create(root, load_experiment(file), "nas run tiny.yaml")


def search_row(
    label: str,
    seed: int,
    accuracies: list[float],
    *,
    operation: str = "nor_conv_3x3",
    status: Any = "finished",
    **changes: Any,
) -> Row:
    """Return a search row whose validation accuracy goes through `accuracies`."""
    genotype = parse(CELL.format(operation))
    config_id = row_key("search", {"label": label})[:10]
    values: dict[str, Any] = {
        "key": row_key("search", {"label": label, "seed": seed}),
        "stage": "search",
        "status": status,
        "config_id": config_id,
        "seed": seed,
        "method": label.split()[0],
        "space": "nasbench201",
        "dataset": "digits",
        "label": label,
        "curve": [
            {"epoch": epoch, "val_accuracy": value, "genotype_hash": genotype.hash}
            for epoch, value in enumerate(accuracies, 1)
        ],
        "genotype": genotype.to_json(),
        "genotype_hash": genotype.hash,
        "epochs_done": len(accuracies),
        "epochs_total": 3,
        "cost": {"time_s": 10.0 + seed},
        "environment": ENVIRONMENT,
        "started": 1000.0 + seed,
        "ended": 1100.0 + seed,
    }
    return Row(**{**values, **changes})


def retrain_row(
    operation: str, seed: int, test: float, settings: Mapping[str, Any] = RETRAIN, **changes: Any
) -> Row:
    """Return a finished retraining of the genotype that has `operation`."""
    genotype = parse(CELL.format(operation))
    identity = {"genotype": genotype.hash, "seed": seed, "retrain": dict(settings)}
    last = {"epoch": 2, "test_accuracy": test, "params": 12345, "macs": 678901}
    values: dict[str, Any] = {
        "key": row_key("retrain", identity),
        "stage": "retrain",
        "status": "finished",
        "config_id": genotype.hash[:10],
        "seed": seed,
        "method": "darts",
        "space": "nasbench201",
        "dataset": "digits",
        "label": "darts",
        "settings": {"retrain": dict(settings)},
        "curve": [{"epoch": 1}, last],
        "genotype": genotype.to_json(),
        "genotype_hash": genotype.hash,
        "epochs_done": 2,
        "epochs_total": 2,
        "cost": {"time_s": 5.0},
        "environment": ENVIRONMENT,
        "started": 2000.0,
    }
    return Row(**{**values, **changes})


def fill(study: Study) -> None:
    """Write two labels of three seeds each, one of them diverged, and a retraining."""
    for seed, value in enumerate((0.90, 0.92, 0.94)):
        study.ledger.write(search_row("darts", seed, [0.5, 0.7, value]))
    unrolled = "darts alpha_gradient=unrolled"
    for seed, value in enumerate((0.91, 0.95)):
        row = search_row(unrolled, seed, [0.4, 0.8, value], operation="skip_connect", block=1)
        study.ledger.write(row)
    study.ledger.write(search_row(unrolled, 2, [0.3], status="diverged", block=1))
    study.ledger.write(retrain_row("nor_conv_3x3", 0, 0.971))
    study.ledger.write(retrain_row("skip_connect", 0, 0.982))
