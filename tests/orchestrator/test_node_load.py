"""The load of nodes: what each writes to the study, by whom, and how `nas status` shows it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import archiving, node_load, system_load
from orchestrator.commands_study import study_state
from orchestrator.node_load import Beat, Node, node_file, nodes
from orchestrator.study import Study
from orchestrator.study_trial import StudySearch
from orchestrator.system_load import Gpu
from tests.orchestrator import drive, here
from tests.orchestrator.fake_driver import make_study
from tests.orchestrator.test_study_trial import search_config
from tests.orchestrator.test_trial_log import nas

H100 = Gpu("NVIDIA H100 80GB HBM3", 87.0, 80_000_000_000, 40_100_000_000)
NODE = Node("gpu-a", 1000.0, 8, 93.2, 64_000_000_000, 12_300_000_000, (H100,))


class NvmlError(Exception):
    """What NVML raises."""


def nvml(number: int, *, cut: bool = False) -> Any:
    """Return a made-up pynvml with so many GPUs, busy by 10, 20, ... percent."""

    def used(device: int) -> Any:
        if cut:
            raise NvmlError("Not Supported")
        return SimpleNamespace(gpu=10 * (device + 1), memory=99)

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: number,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda device: b"Old" if device else "New",
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(total=1000, used=100 + device),
        nvmlDeviceGetUtilizationRates=used,
    )


def test_gpus_are_those_of_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(2))
    assert system_load.gpus() == [Gpu("New", 10.0, 1000, 100), Gpu("Old", 20.0, 1000, 101)]
    values = system_load.measure()
    assert values["system/gpu_1_utilization_percentage"] == 20.0
    assert values["system/gpu_1_memory_usage_percentage"] == pytest.approx(10.1)
    monkeypatch.setitem(sys.modules, "pynvml", nvml(1, cut=True))
    assert system_load.gpus() == [Gpu("New", None, 1000, 100)]
    assert "system/gpu_0_utilization_percentage" not in system_load.measure()


def test_without_a_driver_or_the_library_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise NvmlError("Driver Not Loaded")

    fake = nvml(1)
    fake.nvmlInit = no_driver
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert system_load.gpus() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert system_load.gpus() == []


def test_a_node_is_measured_by_one_of_its_processes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(1))
    first, second = Beat(tmp_path, "a"), Beat(tmp_path, "a")
    other = Beat(tmp_path, "b")
    assert first.measure()
    assert not second.measure()
    assert other.measure()
    found = nodes(tmp_path)
    assert [node.host for node in found] == ["a", "b"]
    assert found[0].gpus == (Gpu("New", 10.0, 1000, 100),)
    assert 0 < found[0].used_bytes < found[0].memory_bytes
    assert abs(found[0].time - time.time()) < 60
    # Said long ago, or, by a clock that was set back since, in the future.
    for shift in (-node_load.EVERY_S, 100.0):
        form = json.loads(node_file(tmp_path, "a").read_bytes())
        node_file(tmp_path, "a").write_text(json.dumps({**form, "time": time.time() + shift}))
        assert second.measure()


def test_it_is_looked_at_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = 0.0, list[float]()
    monkeypatch.setattr("orchestrator.node_load.time.monotonic", lambda: now)
    beat, file = Beat(tmp_path, "a"), node_file(tmp_path, "a")
    for tick in range(41):
        now = tick / 2
        beat.look()
        if file.exists():
            seen.append(now)
            file.unlink()
    assert seen == [5.0, 10.0, 15.0, 20.0]


def test_nothing_of_it_fails_a_study_or_brings_it_back(tmp_path: Path) -> None:
    assert not Beat(tmp_path / "removed", "a").measure()
    assert not (tmp_path / "removed").exists()
    (tmp_path / "nodes").write_text("in the way")
    assert not Beat(tmp_path, "a").measure()
    assert nodes(tmp_path) == []
    assert node_file(tmp_path, "../../x").parent == tmp_path / "nodes"


def test_a_damaged_file_is_no_node(tmp_path: Path) -> None:
    Beat(tmp_path, "a").measure()
    for index, text in enumerate(("", "[]", '{"host": "b"}', '{"host": "b", "gpus": [{}]}')):
        (tmp_path / "nodes" / f"{index}.json").write_text(text)
    assert [node.host for node in nodes(tmp_path)] == ["a"]


def test_a_line_says_what_is_busy_and_who_is_silent() -> None:
    mute = replace(NODE, host="gpu-b", time=960.0)
    plain = replace(NODE, host="cpu", gpus=())
    cut = replace(NODE, host="mig", gpus=(replace(H100, percent=None),))
    assert node_load.lines(node_load.to_json([NODE, plain, cut, mute], now=1000.0)) == [
        "gpu-a: CPU 93 % of 8; memory 12.3 GB of 64.0 GB; "
        "GPU 0 NVIDIA H100 80GB HBM3 87 %, 40.1 GB of 80.0 GB",
        "cpu: CPU 93 % of 8; memory 12.3 GB of 64.0 GB",
        "mig: CPU 93 % of 8; memory 12.3 GB of 64.0 GB; "
        "GPU 0 NVIDIA H100 80GB HBM3 40.1 GB of 80.0 GB",
        "gpu-b: not heard of for 40 s",
    ]


def test_status_shows_nodes_while_a_study_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study: Study = make_study(tmp_path)
    Beat(study.path, "gpu-a").measure()
    Beat(study.path, "gpu-b").measure()
    with study.hold():
        out = nas(capsys, "status", str(study.path)).splitlines()
        state = json.loads(nas(capsys, "status", str(study.path), "--json"))
    (at,) = [index for index, line in enumerate(out) if line.startswith("nodes        gpu-a: CPU")]
    assert out[at + 1].startswith("             gpu-b: CPU")
    assert [node["host"] for node in state["nodes"]] == ["gpu-a", "gpu-b"]
    assert 0 <= state["nodes"][0]["heard_s"] < 60
    assert study_state(study)["nodes"] == []
    assert "nodes" in archiving._LEFT_OUT


def test_a_trial_in_the_caller_s_own_process_follows_nothing(tmp_path: Path) -> None:
    StudySearch(search_config(tmp_path))
    assert not (tmp_path / "nodes").exists()
    assert node_load._thread is None


def test_workers_of_a_study_tell_of_their_node(
    nas_here: here.Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Beat, "look", lambda self: None)  # the driver's own
    file = drive.write_experiment(tmp_path, "s", epochs=8, more=here.ON_RAY)
    drive.without_retraining(file)
    seen: list[Node] = []

    def watch() -> None:
        seen.extend(nodes(tmp_path / "s"))

    words = ["--set", "seeds=[0]", "--set", "method=darts"]
    code, out = nas_here("run", file, *words, root=tmp_path, watch=watch)
    assert code == 0, out
    assert seen
    assert seen[0].cpus >= 1
    assert not (tmp_path / "s" / "nodes").exists()
