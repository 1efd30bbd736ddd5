"""The load of this machine: CPU, memory and GPUs, for MLflow's page and for `nas status`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil

EVERY_S = 10.0
"""Seconds between two measurements."""

_MEGABYTE = 1e6


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, whoever uses it.

    Attributes:
        name: What its maker calls it.
        percent: Share of the last moments in which something ran on it; None where it does not
            say, as one that is cut into parts does not.
        memory_bytes, used_bytes: Its memory, and what is taken of it.
    """

    name: str
    percent: float | None
    memory_bytes: int
    used_bytes: int


def measure() -> dict[str, float]:
    """Return percentages and megabytes under the names by which MLflow's page knows them.

    The first call of a process says 0 for the CPU: it measures since the call before.
    """
    memory = psutil.virtual_memory()
    found = {
        "system/cpu_utilization_percentage": float(psutil.cpu_percent()),
        "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system/system_memory_usage_percentage": float(memory.percent),
    }
    for number, gpu in enumerate(gpus()):
        if gpu.percent is not None:
            found[f"system/gpu_{number}_utilization_percentage"] = gpu.percent
        found[f"system/gpu_{number}_memory_usage_megabytes"] = gpu.used_bytes / _MEGABYTE
        percentage = 100 * gpu.used_bytes / gpu.memory_bytes
        found[f"system/gpu_{number}_memory_usage_percentage"] = percentage
    return found


def gpus() -> list[Gpu]:
    """Return the GPUs in NVML's order; none where nvidia-ml-py or a driver is missing."""
    try:
        import pynvml
    except ImportError:
        return []
    found = []
    with contextlib.suppress(pynvml.NVMLError):  # no driver, or no GPU
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            name = pynvml.nvmlDeviceGetName(device)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            percent = None
            with contextlib.suppress(pynvml.NVMLError):
                percent = float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
            # Before version 11.5 names were bytes.
            shown = name.decode() if isinstance(name, bytes) else str(name)
            found.append(Gpu(shown, percent, int(memory.total), int(memory.used)))
    return found
