"""What a worker does for a trial beside searching, measured in this process and without Ray."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator import factors, planning
from orchestrator.config import load_experiment
from orchestrator.study import Study
from orchestrator.study_trial import StudySearch

_IMPORTS = "import trainables.search, orchestrator.study_trial"


def measure(experiment: str, *, trials: int = 4) -> dict[str, float]:
    """Return CPU seconds and bytes of a trial in a worker that has had one before.

    Args:
        experiment: Text of the experiment file; it has as many trials and one more, at least.
        trials: Number of trials that count.

    Returns:
        `setup_cpu_s`: from its configuration to its first epoch; `recording_cpu_s`: states and rows
        of all its epochs; `import_cpu_s`: what a new worker imports first; and `result_bytes`: what
        goes to the driver after each epoch.
    """
    with tempfile.TemporaryDirectory(prefix="nas") as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(experiment)
        configs = _configs(file, Path(folder))[: trials + 1]
        setups, recordings, size = [], [], 0
        worker: StudySearch | None = None
        for config in configs:
            start = time.process_time()
            if worker is None:
                worker = StudySearch(config)
            else:
                worker.reset(config)
            begun = time.process_time()
            searching, size = _run(worker)
            setups.append(begun - start)
            recordings.append(time.process_time() - begun - searching)
        if worker is not None:
            worker.cleanup()
    return {
        # The first one has imported, and looked through memory once for all.
        "setup_cpu_s": min(setups[2:] or setups[1:]),
        "recording_cpu_s": min(recordings[1:]),
        "import_cpu_s": _import_cpu_s(),
        "result_bytes": size,
    }


def _configs(file: Path, root: Path) -> list[dict[str, Any]]:
    experiment = load_experiment(file)
    study = Study.create(root, experiment, "nas bench sweep")
    identity = planning.identity(experiment, plugins_digest=planning.plugins_digest())
    configurations = planning.known_configurations(experiment)
    units = planning.search_units(
        experiment, configurations, identity, factors.label(configurations)
    )
    return [unit.ray_config(str(study.path), "cpu") for unit in units]


def _run(worker: StudySearch) -> tuple[float, int]:
    """Run a worker's trial; return the CPU seconds of its search and the bytes of its result."""
    (trial,) = worker.trials.values()
    run_epoch, searching = trial.run_epoch, 0.0

    def timed() -> dict[str, Any]:
        nonlocal searching
        start = time.process_time()
        entry = run_epoch()
        searching += time.process_time() - start
        return entry

    trial.run_epoch = timed  # type: ignore[method-assign]
    result = worker.train()
    while not result["done"]:
        result = worker.train()
    return searching, len(pickle.dumps(result))


def _import_cpu_s() -> float:
    code = f"import time; {_IMPORTS}; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)
