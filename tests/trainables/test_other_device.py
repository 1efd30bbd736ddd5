"""Every method, rule and space on a device that is not the CPU, with the results of the CPU.

It is emulated (`other_device.py`), so that a tensor or generator left on the CPU is found without a
GPU. Speed, graphs and CUDA's own numerics are what `benchmarks/gpu_check.sh` is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from spaces.core import plugins
from tests.trainables.other_device import DEVICE, DeviceError, Elsewhere, Generator, other_device
from tests.trainables.searches import flat
from trainables.datasets import digits
from trainables.retrain import RetrainTrial
from trainables.search import TIME_FIELDS, SearchTrial

pytestmark = pytest.mark.usefixtures("tiny_plugins")

SMALL = {"name": "nasbench201", "channels": 4, "cells_per_stage": 1}
SEARCH = {"epochs": 2, "batch_size": 24}  # one step an epoch
# What keeps a method small here, or what it needs: an epoch of alphas in each stage of p_darts.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "random": {"candidates": 5, "finalists": 2},
    "p_darts": {"added_cells": [0, 0, 0]},
    "sdarts_adv": {"steps": 2},
}
EPOCHS = {"p_darts": 6}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def searched(device: str | torch.device, **what: Any) -> SearchTrial:
    given = {"space": SMALL, "dataset": "tiny", "method": "darts", "search": SEARCH, **what}
    trial = SearchTrial(**given, device=device)
    trial.run()
    return trial


def timeless(trial: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in TIME_FIELDS} for entry in trial.curve]


def check_curves(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Numbers but for what rounding leaves; all else, the genotypes too, exactly.

    Where a tensor lies in memory is not the same on both, and on some CPUs a convolution adds up
    in another order then. Other draws or a step left out are seen far above a hundred-thousandth.
    """
    ours, theirs = flat(found), flat(expected)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        wanted = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert ours[path] == wanted, path


def check_search(**what: Any) -> None:
    with other_device() as device:
        other = searched(device, **what)
        assert all(isinstance(alpha, Elsewhere) for alpha in other.alphas.values())
        found = timeless(other)
    here = searched("cpu", **what)
    check_curves(found, timeless(here))
    assert other.genotype == here.genotype


@pytest.mark.parametrize("method", plugins.available("methods"))
def test_a_method_finds_what_it_finds_on_the_cpu(method: str) -> None:
    settings = {"name": method, **SETTINGS.get(method, {})}
    check_search(method=settings, search={**SEARCH, "epochs": EPOCHS.get(method, 2)})


@pytest.mark.parametrize(
    "method",
    [
        {"name": "darts", "alpha_gradient": {"name": "unrolled"}},
        {"name": "darts", "select": {"name": "operation_strength"}},
        {"name": "darts", "select": {"name": "perturbation", "tune_epochs": 1, "batches": 1}},
    ],
    ids=["unrolled", "operation_strength", "perturbation"],
)
def test_parts_of_methods_find_what_they_find_on_the_cpu(method: dict[str, Any]) -> None:
    check_search(method=method)


@pytest.mark.parametrize(
    "space",
    [
        {"name": "darts", "channels": 4, "cells": 3},
        {"name": "darts_per_cell", "channels": 4, "cells": 3},
        {"name": "s4", "channels": 4, "cells": 3},
        {"name": "nasbench1shot1_1", "channels": 4},
    ],
    ids=lambda space: space["name"],
)
def test_a_space_is_searched_as_on_the_cpu(space: dict[str, Any]) -> None:
    check_search(space=space, search={**SEARCH, "epochs": 1})


# Four alphas: the Hessian has a row for each, and each is a pass of its own.
TWO_EDGES = {
    "name": "custom",
    "channels": 2,
    "cells": 1,
    "reductions": [],
    "nodes": 1,
    "operations": ["skip_connect", "nor_conv_3x3"],
}


def test_an_alpha_hessian_is_measured_as_on_the_cpu() -> None:
    diagnostics = {"hessian": {"every": 1}, "discretization_gap": {"every": 1}}
    what: dict[str, Any] = {
        "space": TWO_EDGES,
        "diagnostics": diagnostics,
        "search": {**SEARCH, "epochs": 1},
    }
    measured = ("hessian_eigenvalue", "hessian_trace", "discretization_gap")
    with other_device() as device:
        (there,) = searched(device, **what).curve
    (here,) = searched("cpu", **what).curve
    # Twice differentiated, sums come in another order.
    for name in measured:
        assert there[name] == pytest.approx(here[name], rel=1e-3, abs=1e-5)


def test_a_retraining_is_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    load = digits.load
    few = torch.arange(48)
    monkeypatch.setattr(digits, "load", lambda *which: load(*which).subset(few))
    genotype = searched("cpu", search={**SEARCH, "epochs": 1}).genotype
    settings = {"epochs": 1, "channels": 4, "cells": 1, "batch_size": 24, "drop_path": 0.2}
    settings |= {"cutout": 2, "ema_decay": 0.9}

    def trained(device: str | torch.device) -> RetrainTrial:
        trial = RetrainTrial(
            genotype=genotype, space=SMALL, dataset="digits", retrain=settings, device=device
        )
        while not trial.finished:
            trial.run_epoch()
        return trial

    with other_device() as device:
        found = timeless(trained(device))
    check_curves(found, timeless(trained("cpu")))
    assert "test_accuracy" in found[-1]


# What the emulated device refuses


def test_it_refuses_what_cuda_refuses() -> None:
    with other_device():
        there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
        assert there.device == DEVICE
        assert (there + 1).device == DEVICE
        assert (there + torch.tensor(1.0)).device == DEVICE  # single numbers may be anywhere
        assert there.cpu().device.type == "cpu"
        with pytest.raises(DeviceError, match="two devices"):
            there + here
        with pytest.raises(DeviceError, match="indices"):
            here[torch.zeros(2, dtype=torch.long, device=DEVICE)]
        with pytest.raises(DeviceError, match="without a generator"):
            torch.rand(3, device=DEVICE)
        with pytest.raises(DeviceError, match="generator of cpu"):
            torch.rand(3, device=DEVICE, generator=Generator())
        with pytest.raises(DeviceError, match="generator of lazy"):
            here.uniform_(generator=Generator(DEVICE))
