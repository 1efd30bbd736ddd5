"""Searches of a block, one after the other or side by side, find what each finds alone."""

from __future__ import annotations

import time
import weakref
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainables.searches import differences, small_search, untimed
from trainables.block import Block, Streams
from trainables.search import SearchTrial

pytestmark = pytest.mark.usefixtures("tiny_plugins")

SEEDS = (0, 1, 2)
CPU = torch.device("cpu")


def block_of(method: Any = "darts", **search: Any) -> dict[int, SearchTrial]:
    return {seed: small_search(method, seed=seed, precision="float64", **search) for seed in SEEDS}


def run_epoch(block: Block, trials: dict[int, SearchTrial]) -> None:
    for _, run in block.epochs({seed: t for seed, t in trials.items() if not t.finished}):
        run()


def equal(trial: SearchTrial, alone: SearchTrial) -> bool:
    return differences(trial, alone) == [] and untimed(trial) == untimed(alone)


@pytest.mark.parametrize("engine", ["eager", "graph", "reference"])
def test_each_seed_side_by_side_equals_the_search_alone(engine: str) -> None:
    block, trials, alone = (
        Block(side_by_side=True),
        block_of(engine=engine),
        block_of(engine=engine),
    )
    for _ in range(3):
        run_epoch(block, trials)
    for seed, trial in alone.items():
        trial.run()
        assert equal(trials[seed], trial)
    assert trials[0].curve[-1]["train_loss"] != trials[1].curve[-1]["train_loss"]


@pytest.mark.parametrize("method", ["sdarts_rs", "gdas"])
def test_methods_that_draw_do_not_draw_from_one_another(method: str) -> None:
    trials, alone = block_of(method, epochs=2), block_of(method, epochs=2)
    block = Block(side_by_side=True)
    for _ in range(2):
        run_epoch(block, trials)
    for seed, trial in alone.items():
        trial.run()
        assert equal(trials[seed], trial)


def test_steps_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    trials, order = block_of(epochs=1), []
    for seed, trial in trials.items():
        step = trial._bilevel.step

        def noted(*args: Any, seed: int = seed, step: Any = step) -> dict[str, Tensor]:
            order.append(seed)
            found: dict[str, Tensor] = step(*args)
            return found

        monkeypatch.setattr(trial._bilevel, "step", noted)
    start = time.perf_counter()
    run_epoch(Block(side_by_side=True), trials)
    wall_s = time.perf_counter() - start
    assert order == [0, 1, 2, 0, 1, 2]
    assert len({trial.curve[0]["epoch_time_s"] for trial in trials.values()}) == 1
    # Each has its share: the hours of a block are those of the machine, not three times as many.
    assert sum(trial.curve[0]["epoch_time_s"] for trial in trials.values()) <= wall_s


def test_on_a_cpu_an_epoch_is_run_when_it_is_asked_for() -> None:
    trials = block_of(epochs=1)
    runs = Block().epochs(trials)
    seed, run = next(runs)
    assert (seed, trials[0].epoch) == (0, 0)
    assert run() == trials[0].curve[0]
    next(runs)
    assert [trial.epoch for trial in trials.values()] == [1, 0, 0]


def test_a_seed_that_diverges_stops_and_the_others_go_on() -> None:
    block, trials, alone = Block(side_by_side=True), block_of(), block_of()
    for some in (trials, alone):
        with torch.no_grad():
            next(iter(some[1]._bilevel.weights)).fill_(float("nan"))
    for _ in range(3):
        run_epoch(block, trials)
    assert trials[1].diverged
    assert len(trials[1].curve) == 1
    for seed in (0, 2):
        alone[seed].run()
        assert equal(trials[seed], alone[seed])
    alone[1].run()
    assert len(alone[1].curve) == 1


def test_a_seed_that_ends_early_leaves_the_block() -> None:
    block, trials, alone = Block(side_by_side=True), block_of(), block_of()
    run_epoch(block, trials)
    trials[0].stopped_at = 1  # as an early stop does
    run_epoch(block, trials)
    run_epoch(block, trials)
    assert [trial.epoch for trial in trials.values()] == [1, 3, 3]
    for seed in (1, 2):
        alone[seed].run()
        assert equal(trials[seed], alone[seed])


def test_a_block_that_was_killed_within_an_epoch_goes_on_from_its_states() -> None:
    alone = block_of()
    trials, block = block_of(), Block(side_by_side=True)
    run_epoch(block, trials)
    states = {seed: trial.state_dict() for seed, trial in trials.items()}
    runs = block.epochs(trials)
    seed, run = next(runs)  # all have run, the first is stored, and then the process dies
    run()
    states[seed] = trials[seed].state_dict()
    resumed = block_of()
    for seed, trial in resumed.items():
        trial.load_state_dict(states[seed])
    assert [trial.epoch for trial in resumed.values()] == [2, 1, 1]
    fresh = Block(side_by_side=True)
    run_epoch(fresh, {seed: trial for seed, trial in resumed.items() if trial.epoch < 2})
    run_epoch(fresh, resumed)
    for seed, trial in alone.items():
        trial.run()
        assert equal(resumed[seed], trial)


class Held:
    """What takes memory."""


class Fake:
    """A trial of two steps on a device of which only the name is needed."""

    def __init__(self, seed: int, log: list[Any], device: str, fails: int = -1) -> None:
        self.seed, self.log, self.device, self.fails = seed, log, torch.device(device), fails

    def run_epoch(self) -> dict[str, Any]:
        raise NotImplementedError

    def epoch_in_steps(self) -> Generator[None, None, dict[str, Any]]:
        held = self.activations = Held()
        for step in range(2):
            self.log.append((self.seed, step, FakeStream.current))
            assert held is not None
            if step == self.fails:
                raise RuntimeError(f"out of memory in {self.seed}")
            yield
        self.log.append((self.seed, "end", FakeStream.current))
        return {"seed": self.seed}


class FakeStream:
    """A stream that notes what it waits for, and who is the current one."""

    current: Any = "default"
    log: list[Any]
    made = 0

    def __init__(self, device: torch.device) -> None:
        type(self).made += 1
        self.name = f"stream {FakeStream.made}"

    def wait_stream(self, other: Any) -> None:
        FakeStream.log.append((self.name, "waits for", getattr(other, "name", other)))


class On:
    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.before, FakeStream.current = FakeStream.current, self.stream.name

    def __exit__(self, *_: Any) -> None:
        FakeStream.current = self.before


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-ins for torch's streams; gives the log of who waits for whom."""

    class Default:
        def wait_stream(self, other: FakeStream) -> None:
            FakeStream.log.append(("default", "waits for", other.name))

    monkeypatch.setattr(FakeStream, "made", 0)
    monkeypatch.setattr(FakeStream, "log", [], raising=False)
    monkeypatch.setattr(Default, "name", "default", raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", On)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Default())
    return FakeStream.log


def test_on_a_gpu_each_seed_has_a_stream_that_waits_before_and_is_waited_for(
    streams: list[Any],
) -> None:
    log: list[Any] = []
    trials = {seed: Fake(seed, log, "cuda") for seed in (7, 8)}
    block = Block()
    runs = dict(block.epochs(trials))
    one, two = "stream 1", "stream 2"
    assert log == [
        *((7, 0, one), (8, 0, two), (7, 1, one), (8, 1, two)),
        *((7, "end", one), (8, "end", two)),
    ]
    assert streams == [
        *((one, "waits for", "default"), (two, "waits for", "default")),
        *(("default", "waits for", one), ("default", "waits for", two)),
    ]
    assert runs[8]()["seed"] == 8
    dict(block.epochs(trials))
    assert FakeStream.made == 2  # the same ones in every epoch


@pytest.mark.usefixtures("streams")
def test_an_error_ends_its_seed_at_once_and_no_other() -> None:
    log: list[Any] = []
    trials = {seed: Fake(seed, log, "cuda", fails=1 if seed == 7 else -1) for seed in (7, 8)}
    runs = Block().epochs(trials)
    seed, run = next(runs)
    assert seed == 7
    assert (8, 1, "stream 2") not in log  # told before the others go on
    with pytest.raises(RuntimeError, match="out of memory in 7"):
        run()
    ((seed, run),) = runs
    assert (seed, run()["seed"]) == (8, 8)


@pytest.mark.usefixtures("streams")
def test_a_seed_that_failed_holds_nothing_while_the_others_go_on() -> None:
    trials = {seed: Fake(seed, [], "cuda", fails=1 if seed == 7 else -1) for seed in (7, 8)}
    trial = weakref.ref(trials[7])
    runs = Block().epochs(dict(trials))
    _, run = next(runs)
    activations = weakref.ref(trials[7].activations)
    del trials[7].activations
    assert activations() is None  # though the error, with its frames, is kept for whoever asks
    del trials[7]
    with pytest.raises(RuntimeError, match="out of memory in 7"):
        run()
    del run
    time.sleep(0.3)  # whoever records the failure takes time that is no part of the epoch
    _, run = next(runs)
    assert trial() is None
    assert run()["epoch_time_s"] < 0.25


@pytest.mark.usefixtures("streams")
def test_a_search_alone_runs_on_the_default_stream() -> None:
    trial = Fake(7, [], "cuda")
    ((seed, run),) = Block().epochs({7: trial})
    assert (seed, run) == (7, trial.run_epoch)
    Streams().fork(0, CPU)
    assert FakeStream.made == 0
