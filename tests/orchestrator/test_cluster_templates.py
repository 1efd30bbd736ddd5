"""Templates for clusters: parsed, held against a schema if there is one, rehearsed with stubs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from tests.orchestrator.cluster_stubs import documented, write_stand_in, write_stub

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "cluster"
JOB = "4711"


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if type(node) is list else ():
        yield from strings(inner)


def check_shell(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_launchers_file_keeps_rays_own_schema() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = document("aws_cluster.yml")
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "workers": 3}, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster[key]:
            check_shell(command)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token ray start" in cluster[key][-1]
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_the_ray_job_has_the_same_image_and_volumes_everywhere() -> None:
    job = document("kuberay_job.yml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}  # as of Ray 2.52, which it asks for
    assert tuple(map(int, spec["rayVersion"].split("."))) >= (2, 52, 0)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    mounts = []
    for pod in pods:
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        claims = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == claims
        mounts.append((container["image"], container["volumeMounts"], container["workingDir"]))
    assert all(mount == mounts[0] for mount in mounts)
    assert all(isinstance(v, str) for group in groups for v in group["rayStartParams"].values())
    script = job["spec"]["entrypoint"].split()[0]
    assert (ROOT / script).is_file()


def test_the_mlflow_server_listens_here_alone_and_has_no_password_in_its_file() -> None:
    services = document("mlflow_compose.yml")["services"]
    assert "ports" not in services["postgres"]
    assert all(port.startswith("127.0.0.1:") for port in services["mlflow"]["ports"])
    for text in strings(services):
        assert not re.search(r"://[^:@/]+:(?!\$\{)[^@/]+@", text), text
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${")
    check_shell(services["mlflow"]["command"][-1])


STUBS = {
    "scontrol": """
case "$*" in
  "show hostnames "*) printf 'n1\\nn2\\nn3\\n' ;;
  "show job "*) echo "   Command=$TEMPLATE  WorkDir=/x" ;;
esac
""",
    "srun": """
while [ "${1#-}" != "$1" ]; do if [ "$1" = -w ]; then shift; fi; shift; done
exec "$@"
""",
    "hostname": "echo '10.0.0.1 172.17.0.1 '",
    "ray": """
if [ "$1" = start ]; then
  echo "token $RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH" | wc -c)" >> "$LOG"
  exec sleep 60
fi
""",
    "nas": """
trap 'echo "nas got USR1" >> "$LOG"; exit 75' USR1
trap 'echo "nas got TERM" >> "$LOG"; exit 75' TERM
mkdir -p "$NAS_ROOT/s"; touch "$NAS_ROOT/s/study.json"
if [ "$1" = resume ]; then exit 0; fi
echo "nas is ready with $RAY_ADDRESS" >> "$LOG"
while true; do sleep 0.05; done
""",
}


class Rehearsal:
    """The batch script among stubs of the commands that it calls, each of which notes its words."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.root = folder / "studies"
        for name, body in STUBS.items():
            write_stub(folder / "bin", name, body)
        write_stand_in(folder / "bin", "sbatch")
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "MACHINES": str(folder),
            "TEMPLATE": str(FOLDER / "slurm.sbatch"),
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_SUBMIT_DIR": str(folder),
        }

    def start(self) -> subprocess.Popen[bytes]:
        (command,) = documented(FOLDER / "slurm.sbatch")
        assert command.endswith(" FILE NAME [WORD...]")
        command = command.replace("FILE NAME [WORD...]", "file.yaml s --set 'seeds=[0]'")
        command = command.replace("/shared/studies sbatch", f"{self.root} exec sbatch")
        return subprocess.Popen(["bash", "-c", command], env=self.environment, cwd=ROOT)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 30
        while text not in self.said():
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_slurm_job_hands_signals_on_is_queued_again_and_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    rehearsal = Rehearsal(tmp_path)
    with rehearsal.start() as job:
        rehearsal.wait_for("nas is ready with 10.0.0.1:24711")
        rehearsal.wait_for("ray start --block --address=10.0.0.1:24711")
        job.send_signal(number)
        assert job.wait(30) == 75
    said = rehearsal.said()
    assert f"nas got {number.name.removeprefix('SIG')}" in said
    assert f"scontrol requeue {JOB}" in said
    assert f"nas run file.yaml --name s --root {rehearsal.root} --set ray.address=auto" in said
    assert "--set seeds=[0]" in said
    assert said.count("token token 64") == 2
    assert "srun --overlap --nodes=2 --ntasks=2" in said
    assert "--exclude=n1" in said
    assert not list(rehearsal.root.glob(".ray-token*"))
    # Slurm starts it again: the study is there, is gone on with, and ends.
    rehearsal.log.unlink()
    with rehearsal.start() as job:
        assert job.wait(60) == 0
    said = rehearsal.said()
    assert f"nas resume s --root {rehearsal.root}" in said
    assert "nas run" not in said
    assert "requeue" not in said


NAS = """
if [ "$1" = run ]; then
  mkdir -p "$NAS_ROOT/$4"; touch "$NAS_ROOT/$4/study.json"
  exit 75
fi
"""
PYTHON = """
mkdir -p "$3/bin"; cp "$(dirname "$0")/installed/"* "$3/bin/"
"""


@pytest.fixture
def machines(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a person whose clusters are folders here."""
    for name in ("kubectl", "ray"):
        write_stand_in(tmp_path / "person" / "bin", name)
    write_stub(tmp_path / "person" / "bin", "nas", NAS)
    for node in ("head", "worker"):
        (tmp_path / node).mkdir()
        (tmp_path / node / ".bashrc").touch()
        stubs = tmp_path / node / "bin"
        write_stub(stubs, "sudo", 'if [ "$1" = mount ]; then touch ~/is_mounted; fi')
        write_stub(stubs, "mountpoint", "test -e ~/is_mounted")
        write_stub(stubs, "python3", PYTHON)
        write_stub(stubs / "installed", "pip")
        # The package and Ray are found where they were installed, and nowhere else.
        write_stub(stubs / "installed", "ray", 'echo "auth $RAY_AUTH_MODE" >> "$LOG"\n')
        write_stub(stubs / "installed", "nas", NAS)
    home = tmp_path / "person"
    return {
        "HOME": str(home),
        "LOG": str(tmp_path / "log"),
        "MACHINES": str(tmp_path),
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
    }


def said_by(command: str, machines: dict[str, str], code: int = 0) -> list[str]:
    """Return what the stubs noted while a command of a template ran."""
    log = Path(machines["LOG"])
    log.unlink(missing_ok=True)
    done = subprocess.run(["bash", "-c", command], env=machines, cwd=ROOT, check=False)
    assert done.returncode == code
    return log.read_text().splitlines()


def test_a_ray_job_that_fails_is_made_again_and_goes_on(machines: dict[str, str]) -> None:
    apply, *_ = documented(FOLDER / "kuberay_job.yml")
    said = said_by(apply, machines)
    root = Path(machines["MACHINES"]) / "studies"
    study = f"--name quickstart --root {root} --set ray.address=auto"
    assert said == [
        f"kubectl {apply.removeprefix('kubectl ')}",
        f"nas run experiments/quickstart.yaml {study}",
        "attempt 0 ended with 75",
        f"nas resume quickstart --root {root}",
        "attempt 1 ended with 0",
    ]


def test_the_launcher_s_cluster_has_package_token_and_studies(machines: dict[str, str]) -> None:
    generate, up, execute, down = documented(FOLDER / "aws_cluster.yml")
    said_by(generate, machines)
    first, again = said_by(up, machines), said_by(up, machines)
    folder = Path(machines["MACHINES"])
    for node, start in (("head", "--head"), ("worker", "--address=10.0.0.1:6379")):
        home = folder / node
        assert len((home / ".ray" / "auth_token").read_text()) == 64
        assert (home / "nas" / "pyproject.toml").is_file()
        assert (home / ".bashrc").read_text().count("RAY_AUTH_MODE=token") == 1
        assert f"pip install -q {home / 'nas'}" in first
        (started,) = [n for n, line in enumerate(first) if line.startswith(f"ray start {start}")]
        assert first[started + 1] == "auth token"
        assert first[started - 2] == "ray stop"
    mounts = [line for line in first if line.startswith("sudo mount ")]
    assert len(mounts) == 2
    assert all(line.endswith(f".com:/ {folder / 'studies'}") for line in mounts)
    assert not [line for line in again if line.startswith("sudo mount ")]
    assert len([line for line in again if line.startswith("ray start")]) == 2
    execute = execute.replace("FILE", "experiments/quickstart.yaml").replace("NAME", "s")
    assert said_by(execute, machines, code=1)[-1].startswith("nas run experiments/quickstart.yaml")
    assert said_by(execute, machines)[-1] == f"nas resume s --root {folder / 'studies'}"
    assert said_by(down, machines)[-1] == "gone"


def test_scripts_are_shell_and_say_when_slurm_is_to_speak() -> None:
    text = (FOLDER / "slurm.sbatch").read_text()
    check_shell(text)
    check_shell((FOLDER / "run_or_resume.sh").read_text())
    # To the script alone: Ray's own processes would die of the signal.
    assert "#SBATCH --signal=B:USR1@" in text
    assert "#SBATCH --requeue" in text
    from orchestrator.commands_run import REQUEUE

    assert f"again={REQUEUE}\n" in text
