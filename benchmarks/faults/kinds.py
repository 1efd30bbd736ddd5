"""What is done to a study that runs: each fault strikes at once and may be mended a while later."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.faults.nodes import Nodes, send, wait_until_gone
from benchmarks.faults.stores import MlflowServer
from benchmarks.faults.studies import Command, RoundStudy

_PAUSE_S = 8.0
"""Longer than the cluster takes to give up a node."""
_WRITING_S = 10.0


@dataclass
class Scene:
    """What a fault may break.

    Attributes:
        study: The study that runs.
        driver: Its command.
        nodes, server: What it runs on and reports to.
        rng: What chooses the victim.
        mend: What is to be done later: seconds from now, and how.
        destroyed: Rows whose record was damaged on purpose, which have to run again.
        said: What was done, for the record.
    """

    study: RoundStudy
    driver: Command
    nodes: Nodes
    server: MlflowServer
    rng: random.Random
    mend: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    destroyed: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def later(self, least: float, most: float, do: Callable[[], None]) -> None:
        """Have something done after a random number of seconds."""
        self.mend.append((time.monotonic() + self.rng.uniform(least, most), do))


def worker(scene: Scene) -> None:
    """SIGKILL the process of one trial."""
    found = scene.nodes.workers()
    chosen = [scene.rng.choice(found)] if found else []
    send(signal.SIGKILL, chosen)
    scene.said.append(f"killed {len(chosen)} of {len(found)} workers")


def node(scene: Scene) -> None:
    """SIGKILL a raylet with its workers; another node joins some seconds later."""
    victim = scene.rng.choice(scene.nodes.alive())
    busy = any(each in scene.nodes.workers() for each in scene.nodes.processes(victim))
    scene.nodes.kill(victim)
    scene.later(0.0, 5.0, scene.nodes.refill)
    scene.said.append("killed a node " + ("with a trial" if busy else "without a trial"))


def driver(scene: Scene) -> None:
    """SIGKILL the driver alone."""
    scene.driver.process.kill()
    scene.driver.process.wait()
    scene.said.append("killed the driver")


def partition(scene: Scene) -> None:
    """Hold up a node until the cluster has given it up, and let it go on then."""
    victim = scene.rng.choice(scene.nodes.alive())
    paused = scene.nodes.pause(victim)

    def wake() -> None:
        send(signal.SIGCONT, paused)
        # It finds out that it was given up, and ends.
        send(signal.SIGKILL, wait_until_gone(paused, 20.0))
        scene.nodes.refill()

    scene.later(_PAUSE_S, _PAUSE_S + 3.0, wake)
    scene.said.append(f"held up a node ({len(paused)} processes)")


def server(scene: Scene) -> None:
    """SIGKILL the MLflow server; it is started again some seconds later."""
    scene.server.kill()
    scene.later(1.0, 8.0, scene.server.start)
    scene.said.append("killed the MLflow server")


def silent_server(scene: Scene) -> None:
    """Have the MLflow server answer nobody for some seconds."""
    paused = scene.server.pause()
    scene.later(3.0, 8.0, lambda: send(signal.SIGCONT, paused))
    scene.said.append("held up the MLflow server")


def database(scene: Scene) -> None:
    """SIGKILL PostgreSQL below the MLflow server; it recovers some seconds later."""
    found = scene.server.postgres
    if found is not None:
        found.kill()
        scene.later(1.0, 8.0, found.start)
    scene.said.append("killed PostgreSQL")


def full(scene: Scene) -> None:
    """Fill the file system of the study; there is room again some seconds later."""
    ballast = scene.study.root / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass
    scene.later(1.0, 6.0, ballast.unlink)
    scene.said.append(f"filled the storage ({shutil.disk_usage(scene.study.root).free} bytes free)")


def states(scene: Scene) -> None:
    """Lose the machine of the driver; truncate states, partial rows and files of Ray's."""
    _lose_all(scene)
    torn = _torn(
        scene,
        [
            *scene.study.path.glob("checkpoints/*/state.pt"),
            *scene.study.path.glob("checkpoints/*/row.json"),
            *(path for path in (scene.study.path / "ray").rglob("*") if path.is_file()),
        ],
    )
    scene.destroyed |= {path.parent.name for path in torn if path.name in ("state.pt", "row.json")}
    scene.said.append(f"killed the driver and its workers, truncated {len(torn)} state files")


def ledger(scene: Scene) -> None:
    """Lose the machine of the driver; truncate rows of the ledger and the end of the outbox."""
    _lose_all(scene)
    torn = _torn(scene, list(scene.study.path.glob("ledger/*.json")))
    scene.destroyed |= {path.stem for path in torn}
    outbox = scene.study.path / "outbox" / "events.jsonl"
    cut = 0
    with contextlib.suppress(OSError):
        size = outbox.stat().st_size
        cut = scene.rng.randrange(min(size, 300)) if size else 0
        os.truncate(outbox, size - cut)
    scene.said.append(
        f"killed the driver and its workers, truncated {len(torn)} rows and {cut} bytes of events"
    )


def write(scene: Scene) -> None:
    """SIGKILL all workers at the moment at which one of them writes a state."""
    victims = scene.nodes.workers()
    folder = scene.study.path / "checkpoints"
    end = time.monotonic() + _WRITING_S
    seen = False
    while not seen and time.monotonic() < end and scene.driver.process.poll() is None:
        seen = any(_temporary(each) for each in _scan(folder))
        time.sleep(0.0002)
    send(signal.SIGKILL, victims)
    scene.said.append(
        f"killed {len(victims)} workers " + ("during a write" if seen else "(no write was seen)")
    )


KINDS: dict[str, Callable[[Scene], None]] = {
    "worker": worker,
    "node": node,
    "driver": driver,
    "partition": partition,
    "server": server,
    "silent_server": silent_server,
    "database": database,
    "full": full,
    "states": states,
    "ledger": ledger,
    "write": write,
}


def possible(server: MlflowServer, *, small_disk: bool) -> list[str]:
    """Return the kinds of fault that can be made here."""
    kinds = list(KINDS)
    if server.postgres is None:
        kinds.remove("database")
    if not small_disk:
        kinds.remove("full")
    return kinds


def _lose_all(scene: Scene) -> None:
    with contextlib.suppress(psutil.Error):
        # The drain too, which is a child of the driver.
        send(signal.SIGKILL, psutil.Process(scene.driver.process.pid).children(recursive=True))
    scene.driver.process.kill()
    scene.driver.process.wait()
    send(signal.SIGKILL, scene.nodes.workers())
    wait_until_gone(scene.nodes.workers(), 10.0)


def _torn(scene: Scene, paths: list[Path]) -> list[Path]:
    """Truncate some of the files at random bytes and return them."""
    some = [path for path in sorted(paths) if scene.rng.random() < 0.3]
    if paths and not some:
        some = [scene.rng.choice(sorted(paths))]
    for path in some:
        with contextlib.suppress(OSError):
            os.truncate(path, scene.rng.randrange(path.stat().st_size or 1))
    return some


def _scan(folder: Path) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries]
    return []


def _temporary(folder: str) -> bool:
    with contextlib.suppress(OSError):
        return any(path.name.startswith(".state.pt.") for path in Path(folder).iterdir())
    return False


def small_disk(folder: Path, size_mb: int = 48) -> bool:
    """Mount a small file system in memory at `folder` and return whether that was allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "nas-faults", str(folder)]
    try:
        return os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Take a small file system away again."""
    with contextlib.suppress(OSError):
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)
