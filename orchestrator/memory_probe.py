"""A process that finds out how much memory trials take at their peak; see `orchestrator.memory`.

Reads a JSON list of {"stage": ..., "config": ...} from its input and writes a list of bytes, or
null where a trial could not be built, as one JSON line. Each trial runs in a fork of its own, made
before torch has computed anything, so that none sees what another has left in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STEPS = 2
_STEPS_ON_GPU = 6
"""So many that steps have been recorded, where they are."""


def main() -> None:
    """Measure what the input asks for."""
    requests = json.load(sys.stdin)
    # What a worker of Ray has imported before its first trial.
    import torch

    import trainables.retrain
    import trainables.search  # noqa: F401

    torch.set_num_threads(1)
    code = _status().get("RssFile", 0)
    peaks = [_forked(request, code) for request in requests]
    sys.stdout.write(json.dumps(peaks) + "\n")


def _forked(request: Mapping[str, Any], code: int) -> int | None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            os.write(writing, str(_peak(request, code)).encode())
            status = 0
        finally:
            os._exit(status)  # nothing of the parent is to be cleaned up twice
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return int(text) if text else None


def _peak(request: Mapping[str, Any], code: int) -> int:
    """Run steps of every seed of a trial, and keep and save their states as an epoch does."""
    from trainables.timing import peak_memory_bytes

    trials = [_trial(request) for _ in request["config"].get("seeds") or [0]]
    device = trials[0].device
    for trial in trials:
        before = trial.state_dict()
        trial.time_steps(_STEPS if device.type == "cpu" else _STEPS_ON_GPU)
        with tempfile.TemporaryDirectory() as folder:
            trial.save_state(Path(folder) / "state.pt")
        del before
    if device.type == "cuda":
        # What a recorded step keeps for its replays is reserved, and free for nobody else.
        return reserved_on_gpu(device)
    peak, status = peak_memory_bytes(device), _status()
    if status:
        # A fork begins without the code that its parent has in memory, but has all its data.
        peak = status["VmHWM"] - status["RssFile"] + max(code, status["RssFile"])
    return peak


def reserved_on_gpu(device: Any) -> int:
    """Return the bytes of a GPU that torch had for itself at its peak."""
    import torch

    return int(torch.cuda.max_memory_reserved(device))


def _status() -> dict[str, int]:
    """Return the sizes in bytes that Linux knows of this process; nothing elsewhere."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        pairs = [line.split() for line in lines if line.endswith(" kB")]
        return {name.rstrip(":"): 1024 * int(size) for name, size, _ in pairs}
    return {}


def _trial(request: Mapping[str, Any]) -> Any:
    from trainables.ray_trial import retraining
    from trainables.search import SearchTrial

    config = request["config"]
    if request["stage"] == "retrain":
        alone = {"compile": False, "workers": 1, "shared_batch_norm": True}
        return retraining({**config, "retrain": {**config["retrain"], **alone}}, 0)
    words = ("space", "dataset", "method", "selection", "device", "diagnostics")
    given = {word: config[word] for word in words if word in config}
    return SearchTrial(**given, search=uncompiled(config.get("search") or {}))


def uncompiled(search: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a search that is to be measured, and not compiled for minutes."""
    if search.get("engine") != "compile":
        return dict(search)
    return {**search, "engine": "eager"}


if __name__ == "__main__":
    main()
