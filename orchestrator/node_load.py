"""The load of every node that works for a study, in `nodes/<host>.json` of its folder.

Each process of the study, driver or worker, looks after its own node every few seconds; where
another one has just written, it does not. So a node costs one measurement, needs no process of its
own, and `nas status` sees all of them from any host that sees the folder, without joining Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from orchestrator import system_load
from orchestrator.ledger import replace_file
from orchestrator.statistics import show_bytes, show_time
from orchestrator.system_load import Gpu

FOLDER = "nodes"
EVERY_S = 5.0
STALE_S = 30.0
"""Seconds after which a node that has said nothing is shown as one that is not heard of."""

_FIRST_S = 1.0  # what the first measurement of a CPU is over
_NOT_OF_A_NAME = re.compile(r"[^A-Za-z0-9_.-]|^\.")


@dataclass(frozen=True)
class Node:
    """What a node said last.

    Attributes:
        host: Its name.
        time: When, in Unix time in seconds by its own clock.
        cpus: Logical CPUs of the machine.
        cpu_percent: How busy they were since the measurement before, all together, 0-100.
        memory_bytes, used_bytes: Memory of the machine, and what is taken of it.
        gpus: Its GPUs; none where it has none or nvidia-ml-py is missing there.
    """

    host: str
    time: float
    cpus: int
    cpu_percent: float
    memory_bytes: int
    used_bytes: int
    gpus: tuple[Gpu, ...] = ()

    @classmethod
    def from_json(cls, form: Any) -> Node:
        """Return what `dataclasses.asdict` made.

        Raises:
            TypeError, KeyError: It is not of a node.
        """
        return cls(**{**form, "gpus": tuple(Gpu(**gpu) for gpu in form["gpus"])})


class Beat:
    """Keeps the file of this node in a study's folder.

    Args:
        study: Folder of the study.
        host: Name of the node; None is that of this one.
    """

    def __init__(self, study: Path, host: str | None = None) -> None:
        self._study = study
        self._host = host or platform.node() or "unknown"
        self._file = node_file(study, self._host)
        self._looked = time.monotonic()
        psutil.cpu_percent()  # the next call measures since this one

    def look(self) -> None:
        """Measure, if it is time to; never fails."""
        if time.monotonic() - self._looked >= EVERY_S:
            self.measure()

    def measure(self) -> bool:
        """Measure unless another process has just done so; return whether it did."""
        self._looked = time.monotonic()
        with contextlib.suppress(OSError):
            before = _read(self._file)
            # A clock that was set back must not silence a node.
            if before is not None and 0 <= time.time() - before.time < EVERY_S / 2:
                return False
            if not self._study.is_dir():  # it was removed: nothing is to bring it back
                return False
            memory = psutil.virtual_memory()
            node = Node(
                host=self._host,
                time=time.time(),
                cpus=os.cpu_count() or 1,
                cpu_percent=float(psutil.cpu_percent()),
                memory_bytes=memory.total,
                used_bytes=memory.total - memory.available,
                gpus=tuple(system_load.gpus()),
            )
            replace_file(self._file, json.dumps(asdict(node)).encode(), durable=False)
            return True
        return False


_thread: threading.Thread | None = None
_studies: list[Path] = []


def follow(study: Path) -> None:
    """Look after this node for a study from a thread, for as long as this process lives."""
    global _thread
    _studies[:] = [study]
    if _thread is None:
        _thread = threading.Thread(target=_look_on, name="node-load", daemon=True)
        _thread.start()


def _look_on() -> None:
    beat, of = Beat(_studies[0]), _studies[0]
    time.sleep(_FIRST_S)
    while True:
        if _studies[0] != of:
            beat, of = Beat(_studies[0]), _studies[0]
        beat.measure()
        time.sleep(EVERY_S)


def node_file(study: Path, host: str) -> Path:
    """Return the file of a node; no name leaves the folder."""
    return study / FOLDER / f"{_NOT_OF_A_NAME.sub('_', host)}.json"


def forget(study: Path) -> None:
    """Remove what nodes have said: it is of a run that is over."""
    shutil.rmtree(study / FOLDER, ignore_errors=True)


def nodes(study: Path) -> list[Node]:
    """Return what the nodes of a study said last, in the order of their names."""
    found = (_read(path) for path in sorted((study / FOLDER).glob("[!.]*.json")))
    return [node for node in found if node is not None]


def _read(path: Path) -> Node | None:
    try:
        return Node.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def to_json(found: Iterable[Node], now: float | None = None) -> list[dict[str, Any]]:
    """Return nodes as plain JSON, each with the seconds since it was heard of."""
    now = time.time() if now is None else now
    return [{**asdict(node), "heard_s": max(0.0, now - node.time)} for node in found]


def lines(shown: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each node, as `to_json` has it."""
    return [_line(node) for node in shown]


def _line(node: dict[str, Any]) -> str:
    if node["heard_s"] > STALE_S:
        return f"{node['host']}: not heard of for {show_time(node['heard_s'])}"
    parts = [
        f"CPU {node['cpu_percent']:.0f} % of {node['cpus']}",
        f"memory {_of(node['used_bytes'], node['memory_bytes'])}",
    ]
    for number, gpu in enumerate(node["gpus"]):
        busy = "" if gpu["percent"] is None else f"{gpu['percent']:.0f} %, "
        of = _of(gpu["used_bytes"], gpu["memory_bytes"])
        parts.append(f"GPU {number} {gpu['name']} {busy}{of}")
    return f"{node['host']}: {'; '.join(parts)}"


def _of(used: int, there: int) -> str:
    return f"{show_bytes(used)} of {show_bytes(there)}"
