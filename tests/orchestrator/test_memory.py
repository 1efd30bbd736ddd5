"""Peak memory of a trial, as a dry run predicts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from orchestrator import memory
from orchestrator.display import estimate_lines
from orchestrator.memory_probe import uncompiled
from orchestrator.progress import Estimate
from orchestrator.units import Unit

GB = 10**9
# A process with what a worker has imported, which runs an epoch of a search.
EPOCH = """
import json, sys, torch
import orchestrator.study_trial, trainables.retrain
from trainables.search import SearchTrial
from trainables.timing import peak_memory_bytes
trial = SearchTrial(**json.loads(sys.argv[1]))
trial.run_epoch()
print(peak_memory_bytes(trial.device))
"""


def settings(channels: int, batch_size: int) -> dict[str, Any]:
    return {
        "space": {"name": "nasbench201", "channels": channels, "cells_per_stage": 1},
        "dataset": "digits",
        "method": {"name": "darts"},
        "search": {"epochs": 1, "batch_size": batch_size},
        "device": "cpu",
    }


def request(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"stage": "search", "config": dict(of)}


SMALL, LARGE = settings(2, 64), settings(32, 700)
WRONG = {**SMALL, "method": {"name": "nobody"}}


@pytest.fixture(scope="module")
def peaks() -> list[int | None]:
    """Those of one that cannot be built, a small one and a large one, by one process."""
    return memory.peaks([request(of) for of in (WRONG, SMALL, LARGE)])


def test_the_peak_of_a_search_is_predicted_within_a_fifth(peaks: list[int | None]) -> None:
    _, small, large = peaks
    done = subprocess.run(
        [sys.executable, "-c", EPOCH, json.dumps(LARGE)],
        capture_output=True,
        check=True,
        text=True,
    )
    measured = int(done.stdout)
    assert small is not None
    assert large is not None
    # The large one is not hidden by what every process has.
    assert large - small > 0.2 * measured
    assert large - memory.WORKER_BYTES == pytest.approx(measured, rel=0.2)


def test_a_trial_that_cannot_be_built_has_no_peak(peaks: list[int | None]) -> None:
    assert [peak is None for peak in peaks] == [True, False, False]


def test_without_a_process_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert memory.peaks([request(settings(2, 64))]) == [None]


def test_units_of_one_kind_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def peaks(requests: Sequence[Mapping[str, Any]]) -> list[int | None]:
        asked.extend(each["config"]["method"] for each in requests)
        return [None if each["config"]["method"] == "c" else 7 for each in requests]

    monkeypatch.setattr(memory, "peaks", peaks)
    units = [
        Unit(
            "search",
            {"method": method, "space": {}, "search": {}},
            {0: label},
            label,
            0,
            {},
            label,
            1,
        )
        for method, label in [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")]
    ]
    found = memory.by_label(units, "cpu")
    assert found == {"1": 7, "2": 7, "3": 7}
    assert sorted(asked) == ["a", "b", "c"]


def test_what_is_to_be_compiled_is_measured_as_it_is() -> None:
    given = {"engine": "compile", "batch_size": 8}
    assert uncompiled(given) == {"engine": "eager", "batch_size": 8}
    assert given["engine"] == "compile"
    assert uncompiled({"engine": "graph"}) == {"engine": "graph"}


def line(**more: Any) -> str:
    given: dict[str, Any] = {
        "trials": [],
        "cpus_per_trial": 1,
        "gpus_per_trial": 0,
        "cluster_cpus": 8,
        "cluster_gpus": 0,
        "concurrent": 4,
        "seconds_per_epoch": {},
        "total_s": 1.0,
        "disk_bytes": 1,
        "memory_bytes": {"small": GB, "large": 3 * GB},
        "memory_there": 16 * GB,
    }
    (found,) = [
        text for text in estimate_lines(Estimate(**given | more)) if text.startswith("memory")
    ]
    return found


def test_a_dry_run_says_what_trials_take_and_what_would_fit() -> None:
    assert line() == (
        "memory     at most about 3.0 GB a trial (large), 12.0 GB for 4 at a time; "
        "the machine has 16.0 GB"
    )
    assert line(memory_there=7 * GB).endswith("TOO LITTLE. Set tune.max_concurrent: 2")
    assert "TOO LITTLE for one" in line(memory_there=2 * GB)
    on_gpu = line(gpus_per_trial=0.25, concurrent=8, memory_there=10 * GB)
    assert "12.0 GB for 4 at a time; a GPU has 10.0 GB" in on_gpu
    assert on_gpu.endswith("Set tune.per_trial.gpus: 0.3333")
    assert line(memory_there=None).endswith("3.0 GB a trial (large)")
