"""The study of a round, its command line, and what its folder says while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGURATIONS = 4
SEEDS = (0, 1)
EPOCHS = 4
RUNGS = (1, 2)
_EXPERIMENT = """
name: {name}
space: {{name: nasbench201, channels: 2, cells_per_stage: 1}}
dataset: digits
seeds: [0, 1]
method: {{grid: [darts, sdarts_rs]}}
search: {{epochs: {epochs}, batch_size: 256, weight_lr: {{loguniform: [0.01, 0.1]}}}}
retrain: null
tune:
  num_samples: {configurations}
  seeds_per_trial: all
  searcher: {{name: optuna, seed: {seed}}}
  scheduler: {{name: asha, grace_epochs: 1, reduction_factor: 2}}
  max_failures: 3
  per_trial: {{cpus: 1}}
ray: {{address: '{address}'}}
mlflow: {{tracking_uri: '{uri}'}}
"""
BLOCKS = 2
ROWS = CONFIGURATIONS * BLOCKS * len(SEEDS)

Times = dict[tuple[str, int], float]
"""When each epoch ended, in unix seconds, by row and epoch."""


@dataclass
class Command:
    """A run of `nas` in a process group of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """Return the end of what it printed."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-2000:]
        return ""


class RoundStudy:
    """The study of one round.

    Args:
        name: Its name.
        root: Folder of studies, which may be on a small disk.
        logs: Folder for what commands print, which is not.
        address: Of the Ray cluster.
        uri: Of the MLflow server.
        seed: Of the searcher.
    """

    def __init__(
        self, name: str, root: Path, logs: Path, *, address: str, uri: str, seed: int
    ) -> None:
        self.name, self.root, self.logs = name, root, logs
        self.path = root / name
        logs.mkdir(parents=True, exist_ok=True)
        self.file = logs / f"{name}.yaml"
        self.file.write_text(
            _EXPERIMENT.format(
                name=name,
                epochs=EPOCHS,
                configurations=CONFIGURATIONS,
                seed=seed,
                address=address,
                uri=uri,
            )
        )

    def nas(self, *arguments: str) -> Command:
        """Start a command of `nas` on the study's folder."""
        log = self.logs / f"{self.name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("NAS_")}
        environment = {**clean, "NAS_ROOT": str(self.root), "NO_COLOR": "1"}
        with log.open("ab") as out:
            out.write(f"--- {time.strftime('%H:%M:%S')} nas {' '.join(arguments)}\n".encode())
            out.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", *arguments],
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,
            )
        return Command(process, log)

    def run(self) -> Command:
        """Start the study."""
        return self.nas("run", str(self.file))

    def resume(self) -> Command:
        """Go on with it, or start it where it did not come to be."""
        return self.nas("resume", self.name) if self.began else self.run()

    @property
    def began(self) -> bool:
        """Whether there is a study to resume."""
        return (self.path / "study.json").exists()

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return what can be read of ended rows, by key, as plain JSON."""
        return _read(self.path.glob("ledger/*.json"))

    def begun(self) -> dict[str, dict[str, Any]]:
        """Return what can be read of all rows, the partial ones included, by key."""
        return {**_read(self.path.glob("checkpoints/*/row.json")), **self.rows()}

    def running(self) -> set[str]:
        """Return the keys of rows that have begun and not ended."""
        return set(_read(self.path.glob("checkpoints/*/row.json"))) - set(self.rows())

    def times(self) -> Times:
        """Return when each epoch that is recorded ended."""
        return {
            (key, int(entry["epoch"])): float(entry["ended"])
            for key, row in self.begun().items()
            for entry in row["curve"]
        }


def _read(paths: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            row = json.loads(path.read_bytes())
            if isinstance(row, Mapping) and {"key", "curve"} <= set(row):
                found[str(row["key"])] = dict(row)
    return found
