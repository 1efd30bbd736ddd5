"""Stand-ins of `sbatch`, `kubectl` and Ray's launcher: they do here what those do with a template.

Commands on machines are stubs that note their words in $LOG. $MACHINES has a folder for each
machine, which is the home there, and stands for its root: `/studies` is `$MACHINES/studies`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_NODES = {"head": "head_start_ray_commands", "worker": "worker_start_ray_commands"}


def note(text: str) -> None:
    """Add a line to $LOG."""
    with Path(os.environ["LOG"]).open("a") as log:
        log.write(f"{text}\n")


def write_stub(folder: Path, name: str, body: str = "") -> None:
    """Write a command that notes its words, then runs `body`, which is shell."""
    folder.mkdir(parents=True, exist_ok=True)
    stub = folder / name
    stub.write_text(f'#!/bin/bash\necho "{name} $*" >> "$LOG"\n{body}')
    stub.chmod(0o755)


def write_stand_in(folder: Path, name: str) -> None:
    """Write a command that this module stands in for."""
    words = shlex.join([sys.executable, "-m", __name__, name])
    write_stub(folder, name, f'PYTHONPATH={shlex.quote(str(ROOT))} exec {words} "$@"\n')


def documented(template: Path) -> list[str]:
    """Return the commands that the head of a template says."""
    lines = []
    for line in template.read_text().splitlines():
        if not line.startswith("#"):
            if lines:
                break
            continue
        if line.startswith("#   "):
            lines.append(line.removeprefix("#   ").strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def _here(text: str) -> str:
    return text.replace("/studies", f"{os.environ['MACHINES']}/studies")


def sbatch(script: str, *words: str) -> int:
    """Run a copy of a batch script, as Slurm does, in this process."""
    copy = Path(os.environ["MACHINES"]) / "slurm_script"
    shutil.copyfile(script, copy)
    os.execvp("bash", ["bash", str(copy), *words])


def kubectl(verb: str, flag: str, file: str) -> int:
    """Run the entrypoint of a RayJob in its head's container, again as often as it says."""
    assert (verb, flag) == ("apply", "-f")
    job = yaml.safe_load(Path(file).read_text())["spec"]
    (head,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    variables = {each["name"]: _here(each["value"]) for each in head["env"]}
    for attempt in range(job["backoffLimit"] + 1):
        # The image has the package in its working folder.
        command = ["bash", "-c", job["entrypoint"]]
        code = subprocess.run(command, env=os.environ | variables, cwd=ROOT, check=False).returncode
        note(f"attempt {attempt} ended with {code}")
        if code == 0:
            return 0
    return 1


def ray(verb: str, *words: str) -> int:
    """Make a cluster of a head and a worker, run a command on its head, or take it down."""
    match verb:
        case "get-auth-token":
            token = Path.home() / ".ray" / "auth_token"
            token.parent.mkdir(exist_ok=True)
            token.write_text("0123" * 16)
        case "up":
            cluster = yaml.safe_load(Path(words[0]).read_text())
            for name, start in _NODES.items():
                _mount(name, cluster["file_mounts"])
                for command in [*cluster["setup_commands"], *cluster[start]]:
                    _on(name, command)
        case "exec":
            _on("head", words[-1])
        case "down":
            note("gone")
        case _:
            raise ValueError(verb)
    return 0


def _mount(node: str, mounts: dict[str, Any]) -> None:
    for target, source in mounts.items():
        path = Path(target.replace("~", f"{os.environ['MACHINES']}/{node}", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(Path(source).expanduser().resolve(strict=True))


def _on(node: str, command: str) -> None:
    """Run a command in a shell of a node as Ray's launcher does, after its .bashrc."""
    home = f"{os.environ['MACHINES']}/{node}"
    text = f"true && source ~/.bashrc && export OMP_NUM_THREADS=1 && ({_here(command)})"
    path = f"{home}/bin:/usr/bin:/bin"
    environment = {"LOG": os.environ["LOG"], "HOME": home, "USER": "ubuntu", "PATH": path}
    environment["RAY_HEAD_IP"] = "10.0.0.1"
    subprocess.run(["bash", "-c", text], env=environment, cwd=home, check=True)


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "kubectl": kubectl, "ray": ray}[sys.argv[1]](*sys.argv[2:]))
