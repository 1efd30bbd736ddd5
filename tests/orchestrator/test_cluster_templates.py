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
        (folder / "bin").mkdir()
        for name, body in STUBS.items():
            stub = folder / "bin" / name
            stub.write_text(f'#!/bin/bash\necho "{name} $*" >> "$LOG"\n{body}')
            stub.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "TEMPLATE": str(FOLDER / "slurm.sbatch"),
            "NAS_ROOT": str(self.root),
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_SUBMIT_DIR": str(folder),
        }

    def start(self) -> subprocess.Popen[bytes]:
        command = ["bash", str(FOLDER / "slurm.sbatch"), "file.yaml", "s", "--set", "seeds=[0]"]
        return subprocess.Popen(command, env=self.environment)

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


def test_scripts_are_shell_and_say_when_slurm_is_to_speak() -> None:
    text = (FOLDER / "slurm.sbatch").read_text()
    check_shell(text)
    check_shell((FOLDER / "run_or_resume.sh").read_text())
    # To the script alone: Ray's own processes would die of the signal.
    assert "#SBATCH --signal=B:USR1@" in text
    assert "#SBATCH --requeue" in text
    from orchestrator.commands_run import REQUEUE

    assert f"again={REQUEUE}\n" in text
