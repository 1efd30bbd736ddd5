"""The measurements of `nas bench`: fair, and counts that do not depend on the machine."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks.measuring import Floor, count_kernels, interleaved, peak_bytes, saved_bytes
from benchmarks.reference import steps
from benchmarks.reference.supernets import matched
from benchmarks.step import METHODS, SPACES, Passes, Size, count_passes, make_pair
from orchestrator.cli import app

CPU = torch.device("cpu")
SMALL = Size(channels=4, cells=1, batch=2, image=8)
PASSES = {
    "darts": Passes(2, 0, 2),
    "darts_unrolled": Passes(5, 0, 5),
    "sdarts_rs": Passes(2, 0, 2),
    "sdarts_adv": Passes(9, 2, 9),
}
"""Passes of our step, as counted in the methods' papers."""


def small(space: str) -> Size:
    return Size(channels=4, cells=1 if space == "nasbench201" else 3, batch=2, image=8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_both_steps_do_the_same_work(
    space: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both draw noise from streams of their own: without noise and attack they are comparable.
    monkeypatch.setattr(steps, "_RADIUS", 0.0)
    settings = dict(METHODS[method])
    if method.startswith("sdarts"):
        settings |= {"radius_start": 0.0, "radius_max": 0.0}
    monkeypatch.setitem(METHODS, method, settings)
    pair = make_pair(space, method, small(space), CPU, precision="float64")
    # One more step of ours has counted the passes.
    pair.reference.step()
    # Of one method ten steps in all: running statistics that drift apart do so slowly.
    for _ in range(9 if method == "darts" else 2):
        pair.ours.step()
        pair.reference.step()
    for name, alpha in pair.reference.search.alphas.items():
        ours = pair.ours.search.alphas[name]
        torch.testing.assert_close(ours, alpha, rtol=0, atol=1e-9)
    compared = 0
    for label, ours, rows, theirs in matched(pair.ours.net, pair.reference.net):
        if method == "darts_unrolled" and not ours.requires_grad:
            continue  # probes of public code move the running statistics, ours do not
        torch.testing.assert_close(ours[rows], theirs, rtol=0, atol=1e-9, msg=label)
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("method", METHODS)
def test_passes_of_a_step(method: str) -> None:
    pair = make_pair("nasbench201", method, SMALL, CPU)
    assert pair.passes == PASSES[method]
    # The reference looks at the attacked loss as it goes, and has no passes without a gradient.
    assert count_passes(pair.reference).backward == PASSES[method].backward


# At the peak there is the workspace of a convolution, as large as the instructions of the CPU have
# it: there ours is held to be no more.
LIMITS = {
    "nasbench201": {"saved": 0.5, "peak": 1.0, "kernels": 0.8, "launches": 0.6},
    "darts": {"saved": 0.6, "peak": 1.0, "kernels": 1.0, "launches": 0.45},
}
"""Of the reference's: what the form of a CPU may save, hold and call, and that of a GPU launch."""


@pytest.mark.parametrize("space", SPACES)
def test_counts_are_a_share_of_the_reference_s(space: str) -> None:
    pair = make_pair(space, "darts", small(space), CPU)
    sides = pair.ours, pair.reference
    pair.reference.step()
    found = {
        "saved": [side.saved_bytes() for side in sides],
        "peak": [peak_bytes(side.step, CPU) for side in sides],
        "kernels": [count_kernels(side.step, CPU) for side in sides],
        "launches": [pair.ours.launches("wide"), pair.reference.launches()],
    }
    shares = {name: ours / reference for name, (ours, reference) in found.items()}
    assert all(0 < shares[name] < limit for name, limit in LIMITS[space].items()), shares
    # Counts do not change from step to step, whatever was looked at between.
    assert count_kernels(pair.ours.step, CPU) == found["kernels"][0]
    assert pair.ours.search.engine.form == "edge"


def test_the_peak_is_what_is_held_at_once() -> None:
    x = torch.randn(1000)

    def work() -> None:
        y = x + 1
        z = y * 2
        del y
        w = z.exp() + z  # z, its exponential and the sum
        del w

    assert peak_bytes(work, CPU) == 3 * x.nbytes
    assert peak_bytes(lambda: x.add_(1), CPU) < 64


def test_what_is_saved_is_counted_once_and_without_weights() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(8, 4)

    def forward() -> torch.Tensor:
        y = layer(x)  # keeps x and, for the gradient of x, nothing: x needs none
        return y.exp() + y.exp()  # keeps two results

    weights = list(layer.parameters())
    assert saved_bytes(forward, weights) == 3 * 8 * 4 * 4

    def squared() -> torch.Tensor:
        y = layer(x)
        return y * y  # asks for its result twice

    assert saved_bytes(squared, weights) == 2 * 8 * 4 * 4
    assert saved_bytes(lambda: x.requires_grad_() * layer.weight[0], weights) == x.nbytes


def test_kernels_are_the_operators_that_call_no_other() -> None:
    x = torch.randn(3, 3)
    assert count_kernels(lambda: (x + x) * x, CPU) == 2
    # softmax calls _softmax, which is the one that counts
    assert count_kernels(lambda: torch.softmax(x, 0), CPU) == 1


def test_cases_take_turns_and_warm_up_without_counting() -> None:
    calls: list[str] = []
    cases = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = interleaved(cases, 3, CPU)
    assert calls == ["a", "b"] * 4
    assert [len(found.seconds) for found in times.values()] == [3, 3]
    assert times["a"].least <= times["a"].median


def test_the_floor_is_what_limits() -> None:
    floor = Floor(flops=100.0, bytes=10.0)
    assert floor.seconds(1000.0, 10.0) == 10.0
    assert floor.seconds(100.0, 50.0) == 5.0


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, ["bench", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


TINY = ("--channels", "4", "--cells", "1", "--image-size", "8", "--rounds", "1")


def test_rows_as_json() -> None:
    words = ("step", "--space", "nasbench201", "--batch", "2,3", *TINY, "--json")
    rows = json.loads(run(*words))
    assert [row["case"] for row in rows] == [
        "step nasbench201 darts C=4 batch=2",
        "step nasbench201 darts C=4 batch=3",
    ]
    for row in rows:
        assert row["speedup"] == pytest.approx(row["reference_s"] / row["ours_s"])
        assert row["reference_median_s"] >= row["reference_s"]
        assert row["times_floor"] == pytest.approx(row["ours_s"] / row["floor_s"])
        assert row["floor_s"] == max(row["floor_of_flops_s"], row["floor_of_bytes_s"])
        assert (row["passes_with_gradient"], row["backward_passes"]) == (2, 2)
        assert row["engine"] == "eager-cpu"
        assert row["torch"] == torch.__version__
        assert row["threads"] == 1


def test_engines_stand_side_by_side() -> None:
    small = ("--space", "nasbench201", "--batch", "2", *TINY)
    out = run("step", *small, "--engine", "eager,graph,reference", "--method", "darts,sdarts_rs")
    table = out.splitlines()[-6:]
    assert [line.split("  ")[0] for line in table] == [
        f"step nasbench201 {method} C=4 batch=2 engine={engine}"
        for method in ("darts", "sdarts_rs")
        for engine in ("eager", "graph", "reference")
    ]
    # All were timed against one reference.
    assert len({line.split()[7] for line in table[:3]}) == 1
    assert "graph-stub-cpu in float32" in out
    rows = json.loads(run("step", *small, "--precision", "bf16", "--json"))
    assert rows[0]["precision"] == "bf16"
    assert rows[0]["case"] == "step nasbench201 darts C=4 batch=2 precision=bf16"


def test_the_table_says_machine_and_case() -> None:
    out = run("search", "--images", "16", "--batch", "4", *TINY)
    assert f"torch {torch.__version__}" in out
    assert "search nasbench201 darts C=4 batch=4" in out
    assert "speed-up" in out
    out = run("seeds", "--seeds", "2", "--images", "8", "--batch", "4", *TINY)
    assert "times one search" in out
    out = run("pipeline", "--images", "64", "--batch", "16", "--rounds", "1")
    assert "images/s" in out
    out = run("retrain", "--batch", "2", "--steps", "1", "--rounds", "1")
    assert "retrain DARTS_V2 C=36 cells=20 batch=2" in out
    assert "for 50,000 images" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("step", "--space", "dart"), "Did you mean 'darts'?"),
        (("step", "--method", "ms_dart"), "--method must be one of darts, darts_unrolled"),
        (("step", "--method", "darts,sdarts"), "got 'sdarts'"),
        (("step", "--engine", "graf"), "--engine must be one of auto, eager"),
        (("step", "--precision", "bf61"), "got 'bf61'. Did you mean 'bf16'?"),
        (("step", "--batch", "0"), "--batch must be whole numbers >= 1"),
        (("sweep", "--concurrent", "1,0"), "--concurrent must be whole numbers >= 1"),
        (("seeds", "--seeds", "two"), "--seeds must be whole numbers >= 1"),
        (("step", "--channels", "8,x"), "--channels must be whole numbers >= 1"),
        (("retrain", "--batch", "1"), "--batch must be >= 2"),
        (("retrain", "DARTS_V3"), "There is no genotype named 'DARTS_V3'. Did you mean"),
        (("search", "--images", "8", "--batch", "16"), "--images must be at least two batches"),
    ],
)
def test_wrong_options_are_refused(words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words])
    assert message in str(result.exception)
