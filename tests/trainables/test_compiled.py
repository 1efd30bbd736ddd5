"""Compiled training steps compute what plain ones do, in one piece, and say what they lack.

torch.compile is told here to trace the whole step and not to generate code: what it would generate
takes a minute to compile. All that this project does is before that.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces.core.draws import Draws, num_paths
from tests.trainables.test_retrain import fewer_digits, trial  # noqa: F401 (a fixture)
from trainables import compiled
from trainables.compiled import check_compiler
from trainables.errors import StateError

CHANGING = {"epochs": 3, "drop_path": 0.4, "auxiliary_weight": 0.4, "ema_decay": 0.5}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have torch.compile fail where it cannot trace a step in one piece; counts the graphs."""
    graphs: list[int] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(module.graph.nodes))
        return module.forward

    torch._dynamo.reset()
    whole = functools.partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    return graphs


@pytest.mark.parametrize("space", ["darts", "nasbench201"])
def test_compiled_steps_are_the_plain_ones(space: str, traced: list[int]) -> None:
    # Two graphs: an epoch without dropped paths, and one for every other probability of it.
    plain, fast = trial(space, **CHANGING), trial(space, compile=True, **CHANGING)
    plain.run()
    fast.run()
    assert 1 <= len(traced) <= 3
    for one, other in zip(plain.curve, fast.curve, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    assert fast.curve[-1]["test_loss"] == pytest.approx(plain.curve[-1]["test_loss"], rel=1e-4)
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(fast.network.state_dict()[name], value, atol=1e-4, rtol=1e-3)
    assert (fast.fingerprint.engine, plain.fingerprint.engine) == ("compiled-cpu", "eager-cpu")


def test_a_compiled_retraining_resumes(traced: list[int], tmp_path: Path) -> None:
    whole = trial("darts", compile=True, **CHANGING)
    whole.run_epoch()
    whole.save_state(tmp_path / "1.pt")
    whole.run()
    resumed = trial("darts", compile=True, **CHANGING)
    resumed.load_state(tmp_path / "1.pt")
    assert not resumed.resumed_elsewhere
    resumed.run()
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise torch._dynamo.exc.Unsupported("no such operation")

        return call

    monkeypatch.setattr(torch, "compile", breaks)
    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    one = trial(compile=True)
    with pytest.raises(StateError, match=r"no such operation.*Set retrain\.compile=false"):
        one.run_epoch()


@pytest.mark.parametrize(
    ("device", "missing"),
    [("cpu", r"a C\+\+ compiler: there is no (g|clang)\+\+; or set CXX"), ("cuda", "triton")],
)
def test_a_missing_compiler_is_named(
    device: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StateError, match=rf"needs .*{missing}.* set retrain\.compile=false"):
        check_compiler(device)


def test_missing_headers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(StateError, match="Python's headers"):
        check_compiler("cpu")


def test_draws_ahead_are_those_of_the_pass() -> None:
    network = trial("darts").network
    ahead, inside = (torch.Generator().manual_seed(3) for _ in range(2))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    draws = Draws(num_paths(network), 4, ahead, device=cpu)
    one = network(images, 0.5, draws)[0]
    assert draws.used == num_paths(network) > 0
    torch.testing.assert_close(network(images, 0.5, inside)[0], one)
    assert torch.equal(ahead.get_state(), inside.get_state())
    part = Draws(2, 4, torch.Generator().manual_seed(3), device=cpu, rows=slice(2, 4))
    assert torch.equal(part.take(), draws.values[0, 2:])  # type: ignore[index]
