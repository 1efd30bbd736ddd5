"""The load of this machine, under the names by which MLflow's page of system metrics knows it."""

from __future__ import annotations

import psutil

EVERY_S = 10.0
"""Seconds between two measurements."""

_MEGABYTE = 1e6


def measure() -> dict[str, float]:
    """Return percentages and megabytes; of the GPUs too where nvidia-ml-py is installed.

    The first call of a process says 0 for the CPU: it measures since the call before.
    """
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": float(psutil.cpu_percent()),
        "system/system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system/system_memory_usage_percentage": float(memory.percent),
        **_gpus(),
    }


def _gpus() -> dict[str, float]:
    try:
        import pynvml
    except ImportError:
        return {}
    found: dict[str, float] = {}
    try:
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            used = pynvml.nvmlDeviceGetUtilizationRates(device)
            found[f"system/gpu_{number}_utilization_percentage"] = float(used.gpu)
            found[f"system/gpu_{number}_memory_usage_megabytes"] = memory.used / _MEGABYTE
            found[f"system/gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
    except pynvml.NVMLError:
        return {}  # no driver, or no GPU
    return found
