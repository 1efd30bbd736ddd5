"""Runs a `nas` command and notes how long each of Ray Tune's snapshots kept its trials waiting.

    python -m benchmarks.snapshots FILE run experiment.yaml

Adds a line of JSON to FILE for each snapshot: `seconds`, `bytes` of the state file, and `trials`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Snapshot:
    """One of Tune's snapshots.

    Attributes:
        seconds: For which Tune's loop stood still, its wait for the storage included.
        bytes: Of the file that has the state of all trials.
        trials: That Tune knew.
    """

    seconds: float
    bytes: int
    trials: int


def read(path: Path) -> list[Snapshot]:
    """Return the snapshots of a file; none if there is no such file."""
    if not path.exists():
        return []
    return [Snapshot(**json.loads(line)) for line in path.read_text().splitlines()]


def watch(path: Path) -> None:
    """Have every Tune controller of this process add its snapshots to a file."""
    from ray.tune.execution.tune_controller import TuneController

    checkpoint, save = TuneController.checkpoint, TuneController.save_to_dir
    saved: list[bool] = []

    def save_to_dir(self: Any) -> None:
        saved.append(True)
        save(self)

    def timed(self: Any, *args: Any, **options: Any) -> None:
        began = time.monotonic()
        saved.clear()
        checkpoint(self, *args, **options)
        if saved:  # it is called in every step, and mostly finds that it is not yet time
            state = Path(self.experiment_state_path)
            seconds = time.monotonic() - began
            snapshot = Snapshot(seconds, state.stat().st_size, len(self.get_trials()))
            with path.open("a") as file:
                file.write(json.dumps(asdict(snapshot)) + "\n")

    TuneController.checkpoint, TuneController.save_to_dir = timed, save_to_dir


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    from orchestrator.cli import main

    main(sys.argv[2:])
