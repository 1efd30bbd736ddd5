"""What is read from storage and YAML runs no code; names stay in their folder."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import config
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.ledger import Ledger
from orchestrator.study import Study
from spaces.core.errors import NasError
from tests.orchestrator.fake_driver import make_row
from tests.orchestrator.fake_study import YAML, make_study
from trainables.errors import StateError
from trainables.state import load_state

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "trainables", "spaces")
UNPICKLING = {
    "orchestrator/ray_state.py": "Ray Tune's own files of this study",
    "trainables/official_files.py": "data sets, by an unpickler that builds arrays alone",
}
EXECUTING = {"spaces/core/plugins.py": "the settings of plug-in files in installed folders"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield the file, the dotted name and the node of every call in the packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def keyword(node: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in node.keywords if k.arg == name), None)


def test_no_call_can_run_what_it_reads() -> None:
    seen = set()
    for file, name, node in calls():
        where = f"{file}:{node.lineno}: {name}"
        if name == "torch.load":
            seen.add(name)
            assert keyword(node, "weights_only") == "True", where
        elif name.startswith("yaml."):
            seen.add(name)
            assert name not in ("yaml.unsafe_load", "yaml.full_load"), where
            assert name != "yaml.load" or keyword(node, "Loader") == "_Loader", where
        elif name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.loads"):
            seen.add("pickle")
            assert file in UNPICKLING, where
        elif name in ("np.load", "numpy.load"):
            assert keyword(node, "allow_pickle") in (None, "False"), where
        elif name in ("eval", "exec", "compile"):
            assert file in EXECUTING, where
        elif name in ("os.system", "os.popen"):
            pytest.fail(where)
        elif name.startswith("subprocess."):
            assert keyword(node, "shell") in (None, "False"), where
    assert {"torch.load", "yaml.load", "pickle"} <= seen
    assert issubclass(config._Loader, config.yaml.SafeLoader)


class Payload:
    """An object whose unpickling makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_state_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"weights": Payload(mark)}, tmp_path / "state.pt")
    with pytest.raises(StateError):
        load_state(tmp_path / "state.pt")
    assert not mark.exists()
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert mark.exists()  # so that the payload is one


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch MARK']",
        "!!python/name:os.system",
        "os.system",
        "../darts",
        "/tmp/darts",
        "darts;touch MARK",
        "__init__",
        "{name: orchestrator.cli}",
    ],
)
@pytest.mark.parametrize("part", ["method", "space", "dataset", "selection"])
def test_an_experiment_names_installed_plug_ins_alone(part: str, text: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    kept = [line for line in YAML.splitlines() if not line.startswith(f"{part}:")]
    file = tmp_path / "x.yaml"
    file.write_text("\n".join([*kept, f"{part}: {text.replace('MARK', str(mark))}", ""]))
    with pytest.raises(ConfigError):
        load_experiment(file)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../up", "/abs", ".hidden", "a/b", "", "x" * 101, "mlflow.db"])
def test_a_name_does_not_leave_the_folder_of_studies(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(YAML)
    with pytest.raises(NasError, match="name"):
        Study.create(tmp_path / "studies", load_experiment(file, name=name), "nas run")
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("key", ["../../../etc/x", "a" * 15, "A" * 16, ""])
def test_a_key_does_not_leave_the_ledger(key: str, tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    with pytest.raises(ValueError, match="16 hex characters"):
        Ledger(study.ledger.folder).write(replace(make_row(0), key=key))
    assert not study.ledger.folder.exists()
