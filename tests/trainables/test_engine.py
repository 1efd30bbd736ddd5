"""Engines: what `auto` decides, and that they all take the same steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core import plugins
from spaces.core.space import Space
from tests.trainables.searches import ODD_SPACES, SPACES, differences, flat, small_search, untimed
from tests.trainables.test_bilevel import HostReads
from trainables import bilevel as bilevel_module
from trainables.bilevel import Bilevel
from trainables.capture import Captured, CaptureError
from trainables.compose import build_method
from trainables.engine import Engine, choose_engine
from trainables.method import Method
from trainables.optimizers import alpha_optimizer, load_optimizer, set_rate, weight_optimizer
from trainables.settings import SearchSettings, consistent_with, identifying_search
from trainables.state import cloned, identity_of
from trainables.timing import Stopwatch

pytestmark = pytest.mark.usefixtures("tiny_plugins")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
UNROLLED = {"name": "darts", "alpha_gradient": "unrolled"}
P_DARTS = {
    "name": "p_darts",
    "added_cells": [0, 0],
    "operations": [3],
    "skip_dropout": [0.3, 0.3],
    "alpha_start": 0,
}
RECORDED = [
    "darts",
    UNROLLED,
    "idarts",
    {"name": "sdarts_adv", "steps": 2},
    "ms_darts",
    "drnas",
    "pc_darts",
    "darts_minus",
    P_DARTS,
    "sdarts_rs",
    "amended_darts",
    "beta_darts",
    "fair_darts",
]
"""Methods whose steps can be recorded, of all sorts: probes, draws, stages, edge logits."""
GRADIENTS = [
    {"name": "darts", "alpha_gradient": {"name": name, **more}}
    for name, more in (
        *(("unrolled", {"product": "exact"}), ("amended", {"product": "exact"})),
        ("neumann", {"stop_on_negative_curvature": True}),
    )
]
"""Alpha gradients in other settings than those of the methods."""


def method_of(settings: Any, epochs: int = 3) -> Method:
    name, config = plugins.make_config("methods", settings)
    return build_method(name, config, epochs=epochs)


def chosen(
    settings: Any, device: torch.device, space: str = "nasbench201", **search: Any
) -> Engine:
    name, config = plugins.make_config("spaces", (SPACES | ODD_SPACES)[space])
    built: Space = plugins.load("spaces", name).build(config, name)
    return choose_engine(SearchSettings(**search), device, method_of(settings), built)


@pytest.mark.parametrize("method", RECORDED, ids=str)
def test_auto_replays_graphs_on_a_gpu_and_runs_eagerly_on_a_cpu(method: Any) -> None:
    assert chosen(method, CPU).label == "eager-cpu"
    found = chosen(method, GPU)
    assert (found.label, found.form) == ("graph-wide-cuda", "wide")
    assert chosen(method, GPU, engine="eager").label == "eager-wide-cuda"
    asked = chosen(method, CPU, engine="graph")
    assert asked.is_stub
    assert asked.label == "graph-stub-cpu"
    assert "a CPU has no graphs" in asked.why


@pytest.mark.parametrize(
    ("method", "space", "why"),
    [
        ("gdas", "nasbench201", "which the host has to know"),
        ({"name": "drnas", "perturb": "sdarts_rs"}, "nasbench201", "the same random numbers"),
        ({"name": "drnas", "alpha_gradient": "unrolled"}, "nasbench201", "the same random numbers"),
        ("sdarts_adv", "s4", "the same random numbers"),
        ("random", "nasbench201", "which the host has to know"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_runs_eagerly_and_says_why(
    method: Any, space: str, why: str
) -> None:
    for engine in ("auto", "graph"):
        found = chosen(method, GPU, space, engine=engine)
        assert found.label == "eager-wide-cuda"
        assert why in found.why
    assert why in chosen(method, CPU, space, engine="graph").why


def test_a_graph_that_was_asked_for_in_vain_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    small_search("gdas", engine="graph")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "Steps: eager-cpu in float32: steps cannot be recorded" in record.getMessage()
    caplog.clear()
    small_search("gdas")
    assert caplog.records == []


def test_noise_alone_can_be_recorded() -> None:
    assert chosen("darts", GPU, "s4").name == "graph"


@pytest.mark.parametrize("method", [*RECORDED, "gdas"], ids=str)
def test_a_recorded_search_equals_an_eager_one(method: Any) -> None:
    # Six steps an epoch: warm-up, recording, and replays with other batches.
    search = {"batch_size": 4, "epochs": 2}
    eager, graph = (small_search(method, engine=each, **search) for each in ("eager", "graph"))
    for trial in (eager, graph):
        trial.run()
    assert untimed(graph) == untimed(eager)
    different = {path for path in differences(eager, graph) if "fingerprint" not in path}
    assert different == set()


def twenty_steps(
    engine: Engine, method: Any = "darts", space: str = "nasbench201", *, steps: int = 20
) -> Bilevel:
    """Take steps on the same batches, of alphas that do move; from step 10 in another epoch."""
    trial = small_search(method, space=space, epochs=10)
    first = trial._bilevel
    settings = SearchSettings(epochs=10, alpha_lr=0.01, precision=engine.precision)
    taken = Bilevel(
        first.supernet.float(), trial.space.alpha_shapes(), trial.method, settings, seed=0,
        device=CPU, space=trial.space, engine=engine,
    )  # fmt: skip
    clocks = Stopwatch(CPU), Stopwatch(CPU)
    batches = [trial._data.next_batches() for _ in range(4)]
    for step in range(steps):
        pair = [(x.to(engine.dtype), y) for x, y in batches[step % 4]]
        taken.step(taken.point(step // 10), pair[0], pair[1], clocks)
    return taken


def engine_of(name: Any, form: Any, precision: Any = "float64") -> Engine:
    return Engine(name, form, precision, "cpu", "a test")


ENGINES = [("graph", "edge"), ("eager", "wide"), ("graph", "wide"), ("reference", "plain")]


@pytest.mark.parametrize("method", ["darts", UNROLLED], ids=str)
def test_engines_agree_over_twenty_steps(method: Any) -> None:
    expected = twenty_steps(engine_of("eager", "edge"), method)
    for name, form in ENGINES:
        found = twenty_steps(engine_of(name, form), method)
        for cell, alpha in expected.alphas.items():
            assert (alpha - found.alphas[cell]).abs().max().item() < 1e-9, (name, form)
        for ours, theirs in zip(expected.weights, found.weights, strict=True):
            assert (ours - theirs).abs().max().item() < 1e-9, (name, form)


def test_the_wide_form_repeats_itself_bit_for_bit_and_agrees_in_the_darts_space() -> None:
    expected, *found = (
        twenty_steps(engine_of(name, form), space="darts", steps=3)
        for name, form in (("eager", "edge"), ("graph", "wide"), ("graph", "wide"))
    )
    for cell, alpha in expected.alphas.items():
        assert (alpha - found[0].alphas[cell]).abs().max().item() < 1e-9
        assert torch.equal(found[0].alphas[cell], found[1].alphas[cell])
    for weights in zip(expected.weights, found[0].weights, found[1].weights, strict=True):
        assert (weights[0] - weights[1]).abs().max().item() < 1e-9
        assert torch.equal(weights[1], weights[2])


@lru_cache
def in_float32(name: str, form: str) -> Bilevel:
    """Twenty steps of an engine, to compare with alone."""
    return twenty_steps(engine_of(name, form, "float32"))


def test_engines_agree_in_float32() -> None:
    expected = in_float32("eager", "edge")
    for name, form in ENGINES:
        found = in_float32(name, form)
        for cell, alpha in expected.alphas.items():
            torch.testing.assert_close(found.alphas[cell], alpha, rtol=0, atol=2e-3)


def test_a_search_goes_on_under_another_engine() -> None:
    straight = small_search(UNROLLED, batch_size=24)
    straight.run()
    for engines in (["eager", "graph", "reference"], ["graph", "eager", "eager"]):
        state: dict[str, Any] | None = None
        for engine in engines:
            trial = small_search(UNROLLED, engine=engine, batch_size=24)
            if state is not None:
                trial.load_state_dict(state)
            trial.run_epoch()
            state = trial.state_dict()
        assert trial.finished
        assert trial.resumed_elsewhere
        assert trial.genotype.hash == straight.genotype.hash
        for name, matrix in straight.op_weights.items():
            torch.testing.assert_close(trial.op_weights[name], matrix, rtol=0, atol=1e-4)
    assert not straight.resumed_elsewhere


def test_a_state_is_the_same_under_every_form() -> None:
    narrow = twenty_steps(engine_of("eager", "edge"), space="darts", steps=2)
    wide = twenty_steps(engine_of("eager", "wide"), space="darts", steps=2)
    kept = narrow.state_dict()
    wide.load_state_dict(kept)
    loaded = wide.state_dict()
    for part in ("supernet", "weight_optimizer", "alpha_optimizer", "generators", "alphas"):
        one, other = flat(kept[part]), flat(loaded[part])
        assert one.keys() == other.keys()
        for path, value in one.items():
            same = torch.equal(value, other[path]) if isinstance(value, Tensor) else None
            assert same or value == other[path], path


def test_an_engine_changes_no_key_and_a_precision_does() -> None:
    def key(**search: Any) -> dict[str, Any]:
        return identifying_search({"epochs": 3, "precision": "float32", **search})

    assert key() == key(engine="graph") == key(precision="auto") == key(engine="reference")
    assert key() == {"epochs": 3, "precision": "float32"}
    assert key() != key(precision="bf16")
    assert identity_of({"epochs": 3, "engine": "graph", "precision": "bf16"}) == {"epochs": 3}


def test_auto_is_not_written_where_it_is_the_default() -> None:
    # Rows from before there were engines keep their settings, and so their labels.
    field = SearchSettings.__dataclass_fields__["engine"]
    assert field.default == "auto"
    assert field.metadata["later"]


def test_a_retraining_that_is_consistent_with_bf16_has_mixed_precision() -> None:
    from trainables.settings import RetrainSettings

    def retraining(precision: Any) -> RetrainSettings:
        search = SearchSettings(precision=precision)
        return consistent_with(search, RetrainSettings(), channels=4, cells=1)

    found = retraining("bf16")
    assert (found.precision, found.mixed_precision) == ("float32", True)
    for precision, expected in (("auto", "float32"), ("float64", "float64")):
        found = retraining(precision)
        assert (found.precision, found.mixed_precision) == (expected, False)


def test_a_recorded_step_has_its_inputs_and_outputs_to_itself() -> None:
    seen: list[Tensor] = []
    total = torch.zeros(())

    def step(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        seen.append(x)
        total.add_(x.sum())
        return {"sum": x.sum() + y, "total": total}

    captured = Captured(step, CPU, [], lambda: [total])
    found = [captured(torch.full((2,), n), torch.tensor(1.0)) for n in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert len({x.data_ptr() for x in seen}) == 1
    assert [each["sum"].item() for each in found] == [3.0, 5.0, 7.0, 9.0, 11.0]
    # The fourth is taken twice, to compare, and counts once.
    assert len(seen) == 6
    assert [each["total"].item() for each in found] == [2.0, 6.0, 12.0, 20.0, 30.0]
    with pytest.raises(ValueError, match=r"takes \(2,\) of torch.float32, got \(3,\)"):
        captured(torch.ones(3), torch.tensor(1.0))


def test_a_replay_that_does_something_else_is_not_trusted() -> None:
    calls: list[int] = []
    total, generator = torch.zeros(()), torch.Generator().manual_seed(0)

    def step(x: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        # The fifth call is the replay of what the fourth has done.
        drawn = torch.rand((), generator=generator) + (0.5 if len(calls) == 5 else 0.0)
        total.add_(x + drawn)
        return {"x": x}

    captured = Captured(step, CPU, [generator], lambda: [total])
    for _ in range(3):
        captured(torch.ones(()))
    before, draws = total.clone(), generator.get_state()
    with pytest.raises(CaptureError, match="did something else than the step itself"):
        captured(torch.ones(()))
    assert torch.equal(total, before)
    assert torch.equal(generator.get_state(), draws)


def test_a_step_that_diverges_is_replayed_as_it_is() -> None:
    captured = Captured(lambda x: {"loss": x / 0.0}, CPU, [], list)
    found = [captured(torch.ones(()))["loss"].item() for _ in range(5)]
    assert found == [float("inf")] * 5


def test_what_could_not_be_recorded_is_said_once_and_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused(Captured):
        def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
            raise CaptureError("a step could not be recorded (no memory)")

    expected = small_search("darts")
    expected.run()
    trial = small_search("darts", engine="graph")
    assert trial.fingerprint.engine == "graph-stub-cpu"
    monkeypatch.setattr(bilevel_module, "Captured", Refused)
    trial.run()
    assert untimed(trial) == untimed(expected)
    assert [record.getMessage() for record in caplog.records].count(
        "Steps are not replayed as graphs but taken one by one: a step could not be recorded "
        "(no memory)."
    ) == 1
    assert trial.engine.name == "eager"
    assert "no memory" in trial.engine.why
    assert trial.fingerprint.engine == "eager-cpu"


def test_steps_are_recorded_anew_where_what_they_hold_changes() -> None:
    trial = small_search({"name": "sdarts_rs"}, engine="graph")
    bilevel = trial._bilevel
    trial.run_epoch()
    first = dict(bilevel._records)
    assert set(first) == {"alpha", "weight"}
    trial.run_epoch()  # another radius and rate
    assert all(bilevel._records[what] is not first[what] for what in first)
    changes: list[Callable[[], Any]] = [
        lambda: bilevel.load_state_dict(bilevel.state_dict()),
        lambda: bilevel.fix("cell", 0, 1),
        lambda: bilevel.renew_optimizers(0.5),
    ]
    for change in changes:
        bilevel._records["alpha"] = first["alpha"]
        change()
        assert bilevel._records == {}


def test_optimizers_of_a_gpu_take_the_same_steps_and_load_the_same_states() -> None:
    settings = SearchSettings(weight_lr=0.1)
    pairs = []
    for make in (weight_optimizer, alpha_optimizer):
        values = [torch.ones(3), torch.arange(2.0)], [torch.ones(3), torch.arange(2.0)]
        here, there = (
            make([v.requires_grad_() for v in each], settings, on_gpu=on_gpu)
            for each, on_gpu in zip(values, (False, True), strict=True)
        )
        pairs.append((here, there, values))
    for here, there, values in pairs:
        for step in range(4):
            if step == 2:  # goes on from the other's state
                load_optimizer(there, cloned(here.state_dict()))
            for optimizer, each in ((here, values[0]), (there, values[1])):
                for value in each:
                    value.grad = torch.linspace(-1.0, 2.0, value.numel())
                set_rate(optimizer, 0.1 / (1 + step))
                optimizer.step()
        assert isinstance(there.param_groups[0]["lr"], Tensor)
        assert there.param_groups[0]["fused"]
        assert isinstance(here.param_groups[0]["lr"], float)
        for ours, theirs in zip(*values, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_every_method_that_is_recorded_is_known() -> None:
    known = {method if isinstance(method, str) else method["name"] for method in RECORDED}
    assert known | {"gdas", "random"} == set(plugins.available("methods")) - {
        "exploding",
        "sampled",
    }


@pytest.mark.parametrize("method", [*RECORDED, *GRADIENTS], ids=str)
def test_a_step_that_is_recorded_never_asks_for_a_value(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    trial = small_search(method, engine="graph", gradient_clip=0.1)
    bilevel, at = trial._bilevel, trial._bilevel.point(0)
    bilevel.supernet.use_form("wide")  # type: ignore[operator]
    # Those of a GPU, which count their steps and have their rates as tensors.
    bilevel.weight_optimizer = weight_optimizer(bilevel.weights, trial.settings, on_gpu=True)
    logits = list(bilevel.logits.values())
    bilevel.alpha_optimizer = alpha_optimizer(logits, trial.settings, on_gpu=True)
    clocks = Stopwatch(CPU), Stopwatch(CPU)
    batches = trial._data.next_batches()
    bilevel.step(at, *batches, clocks)  # makes what is made once
    asked: list[str] = []
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        real = getattr(Tensor, name)

        def noted(self: Tensor, *args: Any, name: str = name, real: Any = real) -> Any:
            # Which operations a stage has left is known to the host by contract.
            if not (name == "tolist" and self.dtype == torch.bool):
                asked.append(name)
            return real(self, *args)

        monkeypatch.setattr(Tensor, name, noted)
    assert bool(torch.ones(()).item())
    assert asked == ["item"]
    with HostReads() as reads:
        bilevel.step(at, *batches, clocks)
    assert asked == ["item"]
    assert reads.found == []


def test_bf16_keeps_float32_wherever_small_differences_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = small_search(UNROLLED, precision="bf16")
    bilevel = trial._bilevel
    passes: list[tuple[str, torch.dtype]] = []
    forward = bilevel.supernet.forward

    def noted(*args: Any, norm: str, **more: Any) -> Tensor:
        logits: Tensor = forward(*args, norm=norm, **more)
        passes.append((norm, logits.dtype))
        return logits

    monkeypatch.setattr(bilevel.supernet, "forward", noted)
    clocks = Stopwatch(CPU), Stopwatch(CPU)
    measured = bilevel.step(bilevel.point(0), *trial._data.next_batches(), clocks)
    # The virtual step's pass and the two of the finite difference are at shifted weights.
    half = torch.bfloat16
    updating, shifted = ("batch_and_update", half), ("batch", torch.float32)
    assert passes == [updating, *[shifted] * 3, updating]
    kept = [*bilevel.weights, *bilevel.supernet.buffers(), *bilevel.logits.values()]
    for optimizer in (bilevel.weight_optimizer, bilevel.alpha_optimizer):
        kept += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    kept += [*bilevel.relaxed(bilevel.point(0)).values(), measured["train_loss"]]
    assert {value.dtype for value in kept} == {torch.float32}
    assert asdict(trial.fingerprint)["precision"] == "bf16"


@pytest.mark.parametrize("form", ["edge", "wide"])
def test_twenty_steps_in_bf16_stay_near_float32(form: str) -> None:
    exact = in_float32("eager", form)
    rough = twenty_steps(engine_of("eager", form, "bf16"))
    for name, alpha in exact.alphas.items():
        moved = alpha.abs().max().item()
        distance = (alpha - rough.alphas[name]).abs().mean().item()
        assert moved > 0.05
        assert 0 < distance < 0.3 * moved
