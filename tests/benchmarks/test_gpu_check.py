"""The checks of a GPU: on the CPU they run as they are, and with torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.step import METHODS, SPACES

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("ray", "mlflow", "optuna", "typer", "pydantic", "orchestrator")


def test_steps_on_two_devices_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SPACES", SPACES[:1])
    monkeypatch.setitem(METHODS, "sdarts_adv", {**METHODS["sdarts_adv"], "steps": 1})
    before = dict(METHODS)
    found = list(gpu_check.check_equal_steps(torch.device("cpu")))
    assert [check["engine"] for check in found] == ["eager-cpu", "graph-stub-cpu"] * len(METHODS)
    assert all(check["passed"] and check["distance"] == 0 for check in found)
    assert before == METHODS


def test_a_method_that_cannot_search_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "METHODS_TO_SEARCH", ("darts", "p_darts"))
    monkeypatch.setattr(gpu_check, "CELL_SPACES", {"nasbench201": ("cells_per_stage", 1)})
    monkeypatch.setattr(gpu_check, "_EPOCHS", {"p_darts": 2})  # fewer than its stages
    monkeypatch.setenv("NAS_PLUGINS", "")
    passed, failed = gpu_check.check_methods(torch.device("cpu"))
    assert (passed["check"], passed["passed"]) == ("search nasbench201 darts", True)
    assert (failed["check"], failed["passed"]) == ("search nasbench201 p_darts", False)
    assert "stages" in failed["why"]


def test_it_needs_torch_alone_and_says_what_it_found() -> None:
    code = (
        "import sys, torch\n"
        "from benchmarks import gpu_check\n"
        "gpu_check.SPACES = gpu_check.SPACES[:1]\n"
        "gpu_check.METHODS_TO_SEARCH = ('gdas',)\n"
        "gpu_check.METHODS['sdarts_adv']['steps'] = 1\n"
        "gpu_check._SEEDS = 2\n"
        "torch.cuda.is_available = lambda: False\n"
        "status = gpu_check.main()\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout.splitlines()[-1])
    checks = [check["check"] for check in document["checks"]]
    assert checks[:3] == [f"search {space} gdas" for space in gpu_check.CELL_SPACES]
    assert len(checks) == 3 + 2 * len(METHODS) + 2
    cases = [row["case"].split()[0] for row in document["rows"]]
    assert cases == ["step", "engines"] * len(METHODS) + ["search", "seeds", "pipeline"]
    assert "There is no GPU" in done.stdout


def test_without_torchvision_steps_are_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "SPACES", SPACES[:1])
    monkeypatch.setattr(gpu_check, "METHODS", {"darts": METHODS["darts"]})
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    rows = list(gpu_check.measurements(torch.device("cpu"), float("inf")))
    assert [row["case"].split()[0] for row in rows] == ["step", "engines"]
    assert rows[1]["speedup"] == rows[1]["reference_s"] / rows[1]["ours_s"]
    assert "needs torchvision" in capsys.readouterr().out
    assert list(gpu_check.measurements(torch.device("cpu"), 0.0)) == []
