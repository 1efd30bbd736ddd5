"""What a trial costs beyond its search: many short trials through the whole stack."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.ledger import Ledger

_EXPERIMENT = """
name: bench
space: {{name: nasbench201, channels: 4, cells_per_stage: 1}}
dataset: digits
seeds: [0]
method: darts
search: {{epochs: {epochs}, batch_size: 64, weight_lr: {{loguniform: [0.01, 0.1]}}}}
retrain: null
tune: {{num_samples: {trials}, searcher: random, max_concurrent: {at_once}}}
"""


def measure(*, trials: int, epochs: int, concurrent: int | None = None) -> dict[str, Any]:
    """Return the row of a sweep that was run in a folder of its own.

    Overhead is what the cores were busy or idle with beside searching, from the first trial's start
    to the last one's end: (wall seconds times trials at once - seconds of all searches) / trials.

    Args:
        trials: Number of searches.
        epochs: Of each; three take about a second on a core.
        concurrent: Trials at once; None is as many as fit.
    """
    with tempfile.TemporaryDirectory(prefix="nas") as folder:
        root = Path(folder)
        file = root / "bench.yaml"
        at_once = concurrent or os.cpu_count() or 1
        file.write_text(_EXPERIMENT.format(trials=trials, epochs=epochs, at_once=at_once))
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "run", str(file), "--root", str(root)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "NO_COLOR": "1"},
        )
        whole = time.perf_counter() - start
        rows = list(Ledger(root / "bench" / "ledger").iterate())
        bytes_a_row = sum(p.stat().st_size for p in (root / "bench" / "ledger").iterdir())
    searching = sum(float(row.cost["time_s"]) for row in rows)
    first = min(row.started for row in rows)
    last = max(float(row.ended or row.started) for row in rows)
    return {
        "case": f"sweep trials={trials} epochs={epochs} at_once={at_once}",
        "speedup": None,
        "trials": len(rows),
        "trials_per_hour": 3600 * len(rows) / (last - first),
        "overhead_per_trial_s": ((last - first) * at_once - searching) / len(rows),
        "search_s": searching / len(rows),
        "start_and_end_s": whole - (last - first),
        "row_bytes": bytes_a_row / len(rows),
    }
