"""Searches whose cells are compiled: the steps of the others, and a clear word where it cannot be.

torch.compile traces here and generates no code, which would take a minute; what this project does
is before that.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spaces.core.space import Space
from tests.trainables import searches
from tests.trainables.searches import differences, small_search, untimed
from tests.trainables.test_engine import CPU, GPU, P_DARTS, chosen, engine_of, twenty_steps
from trainables import engine as engine_module
from trainables.compiled import CompiledCells, CompileError

pytestmark = pytest.mark.usefixtures("tiny_plugins")

SMOOTH = {
    "name": "custom",
    "channels": 2,
    "cells": 1,
    "reductions": [],
    "nodes": 1,
    "edges": [[0, 2], [1, 2]],
    "operations": ["skip_connect", "nor_conv_1x1"],
    "keep": [1],
}


@pytest.fixture(autouse=True)
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the space "smooth" known, and a compiler that this machine may lack."""
    monkeypatch.setitem(searches.SPACES, "smooth", SMOOTH)
    monkeypatch.setattr(engine_module, "missing_compiler", lambda device: None)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have torch.compile fail where it cannot trace a cell in one piece; counts the graphs."""
    graphs: list[int] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(module.graph.nodes))
        return module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True)
    )
    return graphs


def test_twenty_steps_are_those_of_the_others_and_repeat_themselves(traced: list[int]) -> None:
    expected, *found = (
        twenty_steps(engine_of(name, "edge", "float32"), space="smooth")
        for name in ("eager", "compile", "compile")
    )
    assert len(traced) > 0
    assert [each.engine.name for each in found] == ["compile", "compile"]
    for name, alpha in expected.alphas.items():
        torch.testing.assert_close(found[0].alphas[name], alpha, rtol=0, atol=2e-3)
        assert torch.equal(found[0].alphas[name], found[1].alphas[name])
    for weights in zip(found[0].weights, found[1].weights, strict=True):
        assert torch.equal(*weights)


def test_a_search_goes_on_under_another_engine(traced: list[int]) -> None:
    straight = small_search(space="smooth")
    straight.run()
    state: dict[str, Any] | None = None
    for engine in ("eager", "compile", "graph"):
        trial = small_search(space="smooth", engine=engine)
        if state is not None:
            trial.load_state_dict(state)
        trial.run_epoch()
        state = trial.state_dict()
    assert traced
    assert trial.finished
    assert trial.resumed_elsewhere
    for name, matrix in straight.op_weights.items():
        torch.testing.assert_close(trial.op_weights[name], matrix, rtol=0, atol=1e-4)


def test_choice_blocks_are_compiled_too(traced: list[int]) -> None:
    trial = small_search(space="nasbench1shot1_1", engine="compile", epochs=1)
    plain = small_search(space="nasbench1shot1_1", epochs=1)
    trial.run()
    plain.run()
    assert traced
    assert trial.fingerprint.engine == "compile-cpu"
    assert trial.curve[0]["train_loss"] == pytest.approx(plain.curve[0]["train_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("method", "space", "more", "why"),
    [
        ("gdas", "nasbench201", {}, "each choice is other code"),
        ("darts", "s4", {}, "they draw random numbers"),
        (P_DARTS, "nasbench201", {}, "they draw random numbers"),
        ("darts", "nasbench201", {"checkpointing": "cell"}, "search.checkpointing"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_runs_eagerly_and_says_why(
    method: Any, space: str, more: dict[str, Any], why: str
) -> None:
    for device, label in ((CPU, "eager-cpu"), (GPU, "eager-wide-cuda")):
        found = chosen(method, device, space, engine="compile", **more)
        assert found.label == label
        assert "cells cannot be compiled, because" in found.why
        assert why in found.why
        assert chosen(method, device, space, **more).name != "compile"


def test_without_a_compiler_it_runs_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_module, "missing_compiler", lambda device: "a C++ compiler")
    trial = small_search(engine="compile")
    assert trial.engine.label == "eager-cpu"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "this machine lacks a C++ compiler" in record.getMessage()


@pytest.mark.parametrize(
    "error", [CompileError("no such kernel."), RuntimeError("double backward")]
)
def test_what_fails_in_its_first_step_goes_on_eagerly_from_the_state_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    calls: list[int] = []

    def failing(self: CompiledCells, run: Any, *arguments: Any) -> Tensor:
        calls.append(self.on)
        if self.on and sum(calls) == 2:  # the first cell has moved its statistics
            raise error
        found: Tensor = run(*arguments)
        return found

    monkeypatch.setattr(CompiledCells, "__call__", failing)
    expected = small_search()
    expected.run()
    trial = small_search(engine="compile")
    assert trial.fingerprint.engine == "compile-cpu"
    trial.run()
    assert sum(calls) == 2
    assert untimed(trial) == untimed(expected)
    assert {path for path in differences(trial, expected) if "fingerprint" not in path} == set()
    assert trial.fingerprint.engine == "eager-cpu"
    assert str(error).rstrip(".") in trial.engine.why
    assert sum("cells cannot be compiled" in r.getMessage() for r in caplog.records) == 1


def test_what_fails_after_its_first_step_is_an_error_and_no_change_of_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = False

    def failing(self: CompiledCells, run: Any, *arguments: Any) -> Tensor:
        if self.on and broken:
            raise CompileError("out of memory")
        found: Tensor = run(*arguments)
        return found

    monkeypatch.setattr(CompiledCells, "__call__", failing)
    trial = small_search(engine="compile")
    trial.run_epoch()
    broken = True
    with pytest.raises(CompileError, match="out of memory"):
        trial.run_epoch()
    assert trial.engine.name == "compile"


def test_passes_outside_of_steps_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[bool, bool]] = []

    def noting(self: CompiledCells, run: Any, *arguments: Any) -> Tensor:
        trained.append((self.on, torch.is_grad_enabled()))
        found: Tensor = run(*arguments)
        return found

    monkeypatch.setattr(CompiledCells, "__call__", noting)
    small_search(engine="compile", epochs=1).run()
    assert set(trained) == {(True, True), (False, False)}


class Own(nn.Module):
    """A supernet of the space's own, which knows nothing of compiled cells."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *arguments: Any, **more: Any) -> Tensor:
        found: Tensor = self.inner(*arguments, **more)
        return found

    def __getattr__(self, name: str) -> Any:
        if name == "calls":
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)


def test_a_supernet_of_the_spaces_own_runs_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build = Space.build_supernet
    monkeypatch.setattr(Space, "build_supernet", lambda self, *a, **k: Own(build(self, *a, **k)))
    trial = small_search(engine="compile", epochs=1)
    trial.run()
    assert trial.fingerprint.engine == "eager-cpu"
    (record,) = caplog.records
    assert "its supernet is the space's own, without the attribute `calls`" in record.getMessage()


def test_nothing_is_compiled_until_calls_are_to_be(traced: list[int]) -> None:
    cells, cell = CompiledCells(), nn.Linear(2, 2)
    x = torch.ones(1, 2)
    expected = cells(lambda each, value: each(value), cell, x)
    assert traced == []
    cells.on = True
    torch.testing.assert_close(cells(lambda each, value: each(value), cell, x), expected)
    assert len(traced) == 1


def test_more_versions_than_allowed_are_an_error(
    traced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompiledCells, "LIMIT", 2)
    cells, cell = CompiledCells(), nn.Linear(2, 2)
    cells.on = True

    def call(count: int) -> None:
        cells(run, cell, torch.ones(count, 2))

    def run(each: nn.Module, value: Tensor) -> Tensor:
        found: Tensor = each(value)
        return found

    call(1)
    call(2)
    with pytest.raises(CompileError, match="recompile"):
        call(3)
