"""A Ray cluster of several nodes on this machine, which can be killed, held up and replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

# Seconds, so that a round is short: a cluster takes the default ones, ten times as long.
_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}
_STORE_BYTES = 80 * 2**20
_ENVIRONMENT = {
    # Loopback alone, and nobody else knows the port.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Nodes:
    """A head without CPUs and `count` nodes with one CPU each; a context manager.

    Args:
        count: Nodes on which trials run.
    """

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self.address = ""
        self._nodes: list[Any] = []
        self._cluster: Any = None
        self._before: dict[str, str | None] = {}
        self._folder: str | None = None

    def __enter__(self) -> Nodes:
        # Sockets have short paths.
        self._folder = tempfile.mkdtemp(prefix="nas", dir="/tmp")
        changed = {**_ENVIRONMENT, "RAY_TMPDIR": self._folder}
        self._before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        from ray.cluster_utils import Cluster

        Path("/tmp/ray").mkdir(exist_ok=True)
        self._cluster = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_system_config": _HEALTH,
            },
        )
        self.address = str(self._cluster.address)
        self.refill()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # it has been broken on purpose
            self._cluster.shutdown()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self._folder or "", ignore_errors=True)

    def refill(self) -> None:
        """Add nodes until there are as many as there should be."""
        self._nodes = [node for node in self._nodes if _raylet(node) is not None]
        while len(self._nodes) < self.count:
            node = self._cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
            self._nodes.append(node)

    def alive(self) -> list[Any]:
        """Return the nodes whose raylet runs."""
        return [node for node in self._nodes if _raylet(node) is not None]

    def processes(self, node: Any) -> list[psutil.Process]:
        """Return the raylet of a node and all that it started."""
        raylet = _raylet(node)
        return [] if raylet is None else [raylet, *raylet.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes in which trials run, on all nodes."""
        found = []
        for node in self._nodes:
            found += [each for each in self.processes(node) if is_trial(each)]
        return found

    def kill(self, node: Any) -> None:
        """Kill a node with all that runs on it, as the loss of a machine does."""
        send(signal.SIGKILL, self.processes(node))
        for kind in list(node.all_processes):
            for each in node.all_processes[kind]:
                each.process.wait()

    def pause(self, node: Any) -> list[psutil.Process]:
        """Have a node answer nobody, as one that the network has cut off; return its processes."""
        paused = self.processes(node)
        send(signal.SIGSTOP, paused)
        return paused


def send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    """Send a signal to processes, of which some may be gone."""
    for each in processes:
        with contextlib.suppress(psutil.Error):
            each.send_signal(number)


def is_trial(process: psutil.Process) -> bool:
    """Return whether trials of a study run in a worker of Ray."""
    with contextlib.suppress(psutil.Error):
        title = " ".join(process.cmdline())
        return title.startswith("ray::") and ("Study" in title or "Trainable" in title)
    return False


def wait_until_gone(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return those that still run after so many seconds."""
    end = time.monotonic() + seconds
    left = list(processes)
    while left and time.monotonic() < end:
        left = [each for each in left if runs(each)]
        time.sleep(0.1)
    return left


def runs(process: psutil.Process) -> bool:
    """Return whether a process runs, and is none that only waits to be read."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _raylet(node: Any) -> psutil.Process | None:
    for each in node.all_processes.get("raylet", ()):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(each.process.pid)
            if runs(process):
                return process
    return None
