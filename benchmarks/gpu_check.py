"""All checks and measurements of a GPU, with torch alone: `sh benchmarks/gpu_check.sh`.

Without a GPU the same code runs on the CPU at a small size, which shows that it works and measures
nothing. The last line is one JSON document with everything that was found.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks import seeds
from benchmarks.measuring import measure_floor
from benchmarks.step import METHODS, SPACES, Size, compare_engines, make_pair, measure
from benchmarks.trials import make_trial, use_random_images
from spaces.core import plugins
from spaces.core.errors import NasError
from trainables.block import Block
from trainables.capture import WARM_UP
from trainables.search import SearchTrial
from trainables.settings import Engine
from trainables.state import Fingerprint

_CPU = torch.device("cpu")
_TOLERANCE = 1e-9
_STEPS = WARM_UP + 2  # the last of them are replayed
_ENGINES: tuple[Engine, ...] = ("eager", "graph")
_BUDGET_S = 540.0
_SEEDS = 3
_METHODS_OF_BLOCKS = ("darts", "darts_unrolled")
# A space with cells of each kind, and the setting that says how many.
CELL_SPACES: dict[str, tuple[str, int] | None] = {
    "nasbench201": ("cells_per_stage", 1),
    "darts": ("cells", 3),
    "nasbench1shot1_1": None,
}
METHODS_TO_SEARCH = plugins.available("methods")
# What keeps a method small here, or what it needs: an epoch of alphas in each stage of p_darts.
_SMALL_METHODS: dict[str, dict[str, Any]] = {
    "random": {"candidates": 5, "finalists": 2},
    "p_darts": {"added_cells": [0, 0, 0]},
}
_EPOCHS = {"p_darts": 6}


def check_equal_steps(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield how far float64 steps on a device are from the CPU's, for all methods and engines.

    On the CPU they are eager ones in the form of a CPU; on a GPU the form is the wide one, and with
    the engine "graph" the last steps are replayed.

    Draws of a CPU and of a GPU differ: methods that draw are compared where their radius is 0.
    """
    kept = dict(METHODS)
    for name, settings in kept.items():
        if name.startswith("sdarts"):
            METHODS[name] = {**settings, "radius_start": 0.0, "radius_max": 0.0}
    try:
        for space in SPACES:
            size = Size(channels=4, cells=1 if space == "nasbench201" else 3, batch=4, image=16)
            for method in METHODS:
                expected, _ = _alphas_after(space, method, size, _CPU, "eager")
                for engine in _ENGINES:
                    found, label = _alphas_after(space, method, size, device, engine)
                    distance = max(float((found[n] - expected[n]).abs().max()) for n in found)
                    yield {
                        "check": f"equal steps {space} {method} {engine}",
                        "engine": label,
                        "distance": distance,
                        # A step that could not be recorded has run, but not as it should.
                        "passed": distance <= _TOLERANCE and label.startswith(engine),
                    }
    finally:
        METHODS.update(kept)


def _alphas_after(
    space: str, method: str, size: Size, device: torch.device, engine: Engine
) -> tuple[dict[str, torch.Tensor], str]:
    """Return the alphas after some steps, and the label of the engine that took them."""
    pair = make_pair(space, method, size, device, precision="float64", engine=engine)
    for _ in range(_STEPS - 1):
        pair.ours.step()
    search = pair.ours.search
    alphas = {name: alpha.detach().cpu() for name, alpha in search.alphas.items()}
    return alphas, search.engine.label


def check_methods(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield whether every method searches an epoch of every kind of cell and finds a genotype."""
    use_random_images()
    for space, cells in CELL_SPACES.items():
        for method in METHODS_TO_SEARCH:
            size = {"channels": 4} if cells is None else {"channels": 4, cells[0]: cells[1]}
            passed, why = True, ""
            try:
                trial = SearchTrial(
                    space={"name": space, **size},
                    dataset={"name": "random_images", "images": 32, "side": 16},
                    method={"name": method, **_SMALL_METHODS.get(method, {})},
                    search={"epochs": _EPOCHS.get(method, 2), "batch_size": 8},
                    device=device,
                )
                trial.run()
                passed = not trial.diverged and trial.genotype_epoch > 0
            except (NasError, RuntimeError) as error:
                passed, why = False, f"{type(error).__name__}: {error}"
            yield {"check": f"search {space} {method}", "passed": passed, "why": why}


def check_blocks(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield how far searches that run side by side are from the same ones alone, in float64."""
    for space in SPACES:
        size = Size(channels=4, cells=1 if space == "nasbench201" else 3, batch=4, image=16)
        for method in _METHODS_OF_BLOCKS:
            trials, alone = (
                {
                    seed: make_trial(
                        space, method, size, 16 * size.batch, device, seed=seed, precision="float64"
                    )
                    for seed in range(_SEEDS)
                }
                for _ in range(2)
            )
            block = Block(side_by_side=True)
            for _ in range(2):  # the second with graphs of its own
                for _, run in block.epochs(trials):
                    run()
            for trial in alone.values():
                trial.run_epoch()
                trial.run_epoch()
            distances = [
                float((matrix - alone[seed].alphas[name]).detach().abs().max())
                for seed, trial in trials.items()
                for name, matrix in trial.alphas.items()
            ]
            yield {
                "check": f"block of {_SEEDS} seeds {space} {method}",
                "engine": trials[0].engine.label,
                "distance": max(distances),
                "passed": max(distances) <= _TOLERANCE,
            }


def check_synchronisations(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield whether a step of every method leaves a GPU unwaited for; nothing on a CPU."""
    if device.type != "cuda":
        return
    for space in SPACES:
        for method in METHODS:
            size = Size(channels=4, cells=1 if space == "nasbench201" else 3, batch=4, image=16)
            pair = make_pair(space, method, size, device, engine="eager")
            pair.ours.step()
            torch.cuda.set_sync_debug_mode("error")
            try:
                pair.ours.step()
                passed, why = True, ""
            except RuntimeError as error:
                passed, why = False, str(error)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            yield {"check": f"no synchronisation {space} {method}", "passed": passed, "why": why}


def measurements(device: torch.device, ends: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of `nas bench`, the most wanted first, until the time is over."""
    on_gpu = device.type == "cuda"
    rounds = 3 if on_gpu else 1
    floor = measure_floor(device)
    for space in SPACES:
        for method in METHODS:
            if time.monotonic() > ends:
                return
            small = Size(channels=4, cells=1 if space == "nasbench201" else 3, batch=4, image=16)
            size = Size(batch=64) if on_gpu else small
            yield measure(space, method, size, device, rounds=rounds, floor=floor)
            yield compare_engines(space, method, size, device, rounds=rounds)
    images = 8192 if on_gpu else 32
    size = Size(batch=64) if on_gpu else Size(channels=4, cells=1, batch=8, image=16)
    if find_spec("torchvision") is None:
        print("left out: searches and input pipeline, whose reference needs torchvision")
        return
    from benchmarks import pipeline, search

    for space in SPACES if on_gpu else SPACES[:1]:
        if time.monotonic() > ends:
            return
        yield search.measure(space, "darts", size, device, rounds=1, images=images)
    if time.monotonic() < ends:
        yield seeds.measure(
            "nasbench201", "darts", size, device, seeds=8 if on_gpu else 2, rounds=1,
            images=images // 8 if on_gpu else images,
        )  # fmt: skip
    if time.monotonic() < ends:
        yield pipeline.measure(batch=64, images=images * 4, device=device, rounds=rounds)


def main() -> int:
    """Run everything and return 1 where a check failed."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends = time.monotonic() + _BUDGET_S
    machine = Fingerprint.of(device, "float32").machine
    print(f"{machine}, torch {torch.__version__}", flush=True)
    if device.type != "cuda":
        print("There is no GPU: the same code runs on the CPU, at a size that measures nothing.")
    checks: list[dict[str, Any]] = []
    found_checks = (check_methods, check_equal_steps, check_blocks, check_synchronisations)
    for found in (found for check in found_checks for found in check(device)):
        checks.append(found)
        print(f"{'passed' if found['passed'] else 'FAILED'}  {found['check']}", flush=True)
    rows = []
    for row in measurements(device, ends):
        rows.append(row)
        other = row.get("against", "reference")
        times = f"{row['ours_s']:.4g} s, {other} {row['reference_s']:.4g} s"
        print(f"{row['speedup']:6.2f} x  {row['case']}: {times}", flush=True)
    print(json.dumps({"machine": machine, "checks": checks, "rows": rows}))
    return 0 if all(found["passed"] for found in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
