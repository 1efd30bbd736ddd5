"""A node that the network cuts off and gives back, with network namespaces, which need root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.checking import Reference, without_times
from tests.orchestrator import drive

HEAD = "10.213.77.1"
PORT = 6399
NODES = (1, 2, 3)
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "1000",
}
GIVEN_UP_S = 10.0
"""The head gives up a node after 3 checks of a second each."""


class Network:
    """A bridge with a namespace for each node; named after this process."""

    def __init__(self) -> None:
        self.mark = f"n{os.getpid() % 100000}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def ip(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=check)
        return done.stdout

    def space(self, node: int) -> str:
        return f"{self.mark}s{node}"

    def link(self, node: int) -> str:
        return f"{self.mark}v{node}"

    def build(self) -> None:
        bridge = f"{self.mark}br"
        self.ip("link", "add", bridge, "type", "bridge")
        self.ip("link", "set", bridge, "up")
        for node in NODES:
            space, link = self.space(node), self.link(node)
            self.ip("netns", "add", space)
            peer = ("peer", "name", "eth0", "netns", space)
            self.ip("link", "add", link, "type", "veth", *peer)
            self.ip("link", "set", link, "master", bridge, "up")
            self.ip("-n", space, "addr", "add", f"10.213.77.{node}/24", "dev", "eth0")
            self.ip("-n", space, "link", "set", "eth0", "up")
            self.ip("-n", space, "link", "set", "lo", "up")

    def take_down(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        for node in NODES:
            for pid in self.pids(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.ip("netns", "del", self.space(node), check=False)
        self.ip("link", "del", f"{self.mark}br", check=False)
        for process in self.processes:
            process.wait()

    def pids(self, node: int) -> list[int]:
        return [int(pid) for pid in self.ip("netns", "pids", self.space(node), check=False).split()]

    def start(self, node: int, log: Path, *command: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a Python module in the namespace of a node."""
        inside = ["ip", "netns", "exec", self.space(node), sys.executable, "-m", *command]
        clean = {name: value for name, value in os.environ.items() if name != "NAS_PLUGINS"}
        with log.open("ab") as out:
            process = subprocess.Popen(
                inside,
                stdout=out,
                stderr=out,
                env={**clean, **ENVIRONMENT, **more},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_ray(self, node: int, folder: Path) -> None:
        log = folder / f"ray{node}.log"
        where = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        if node != 1:
            where = [f"--address={HEAD}:{PORT}", "--num-cpus=1"]
        self.start(
            node,
            log,
            *("ray.scripts.scripts", "start", "--block", f"--node-ip-address=10.213.77.{node}"),
            *(*where, "--object-store-memory=100000000", "--disable-usage-stats"),
        )
        drive.wait_for(lambda: b"Ray runtime started" in log.read_bytes(), folder)

    def has_a_trial(self, node: int) -> bool:
        for pid in self.pids(node):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                if title.startswith(b"ray::") and (b"Trainable" in title or b"Study" in title):
                    return True
        return False


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network()
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("left out: network namespaces need root and the command ip")
    try:
        made.build()
    except subprocess.CalledProcessError as error:
        made.take_down()
        pytest.skip(f"left out: root may not make network namespaces here ({error.stderr})")
    with drive.short_ray_folder():
        yield made
        made.take_down()


def test_a_node_that_is_cut_off_and_comes_back_changes_nothing(
    tmp_path: Path, network: Network
) -> None:
    for node in NODES:
        network.start_ray(node, tmp_path)
    more = f"ray: {{address: '{HEAD}:{PORT}'}}\ntune: {{per_trial: {{cpus: 1}}}}\n"
    file = drive.write_experiment(tmp_path, "s", epochs=12, more=more)
    drive.without_retraining(file)
    log, study = tmp_path / "nas.log", tmp_path / "s"
    driver = network.start(
        1, log, "orchestrator.cli", "run", str(file), NAS_ROOT=str(tmp_path), NO_COLOR="1"
    )
    drive.wait_for(
        lambda: network.has_a_trial(3) and len(list(study.glob("checkpoints/*/state.pt"))) >= 2,
        tmp_path,
    )
    network.ip("link", "set", network.link(3), "down")
    time.sleep(GIVEN_UP_S)
    network.ip("link", "set", network.link(3), "up")
    assert drive.finish(driver, tmp_path) == 0, log.read_text()[-3000:]
    rows = drive.rows(study)
    assert len(rows) == 4
    assert {row["status"] for row in rows} == {"finished"}
    reference = Reference()
    for row in rows:
        assert without_times(row["curve"]) == reference.curve(row)
    assert not list(study.glob("checkpoints/*/row.json"))
