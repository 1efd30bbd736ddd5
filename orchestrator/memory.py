"""Peak memory of a trial, measured before a study starts, in a process like a worker's."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.kinds import kind_of
from orchestrator.units import Unit

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment

# What Ray's own threads and buffers add to a worker: measured with Ray 2.60.
WORKER_BYTES = 110_000_000
PATIENCE_S = 300.0


def by_label(units: Sequence[Unit], device: str) -> dict[str, int]:
    """Return the peak of each unit by its label; units of one kind are measured once.

    Args:
        units: Planned trials.
        device: "cpu" or "cuda".
    """
    first = {kind_of(unit): unit for unit in reversed(units)}
    requests = [
        {"stage": unit.stage, "config": unit.ray_config("", device)} for unit in first.values()
    ]
    found = dict(zip(first, peaks(requests), strict=True))
    measured = ((unit.label, found[kind_of(unit)]) for unit in units)
    return {label: peak for label, peak in measured if peak is not None}


def there(experiment: Experiment) -> int | None:
    """Return the bytes of memory of this machine, or of its smallest GPU if trials use one.

    None for a cluster: its nodes may differ.
    """
    if experiment.ray.address != "local":
        return None
    if experiment.tune.per_trial.on_gpu:
        return of_gpu()
    import psutil

    return int(psutil.virtual_memory().total)


def of_gpu() -> int | None:
    """Return the bytes of the smallest GPU that this process sees, or None where it sees none."""
    import torch

    count = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return min(sizes, default=None)


def peaks_on_gpu(
    requests: Sequence[Mapping[str, Any]], address: str
) -> tuple[list[int | None], int | None]:
    """Return the peaks of trials on a GPU, and its memory: of this machine, or of a node with one.

    Args:
        requests: See `peaks`.
        address: `ray.address` of the experiment.
    """
    if address == "local":
        return _here(requests)
    import ray

    from orchestrator import sweep

    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(sweep.cluster(address, None, Path(os.devnull)))
        measure = ray.remote(num_gpus=1)(_here)
        found: tuple[list[int | None], int | None] = ray.get(measure.remote(list(requests)))
    return found


def _here(requests: Sequence[Mapping[str, Any]]) -> tuple[list[int | None], int | None]:
    return peaks(requests), of_gpu()


def peaks(requests: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Return the bytes that trials take at their peak.

    On a CPU that is the whole process of a trial; on a GPU what torch allocates there, to which a
    process adds some hundred megabytes of its own.

    Args:
        requests: {"stage": "search" | "retrain", "config": the configuration of a Ray trial}.

    Returns:
        For each of them its bytes; None where it could not be measured.
    """
    if not requests or not hasattr(os, "fork"):
        return [None] * len(requests)
    command = [sys.executable, "-m", "orchestrator.memory_probe"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(list(requests)).encode(),
            capture_output=True,
            check=True,
            timeout=PATIENCE_S,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return [None] * len(requests)
    on_cpu = [request["config"].get("device") == "cpu" for request in requests]
    return [
        peak if peak is None or not cpu else peak + WORKER_BYTES
        for peak, cpu in zip(found, on_cpu, strict=True)
    ]
