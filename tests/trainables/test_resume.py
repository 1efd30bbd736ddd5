"""A stopped search goes on bit for bit, from memory and from a file."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.searches import differences, small_search
from trainables.errors import StateError
from trainables.search import SearchTrial
from trainables.state import Fingerprint

pytestmark = pytest.mark.usefixtures("tiny_plugins")


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "crop_flip", "cutout": 2},
        {"batch_size": 10, "train_share": 0.7},
        {"precision": "float64"},
    ],
    ids=str,
)
def test_resume_from_a_file_at_every_epoch(tmp_path: Path, settings: dict[str, Any]) -> None:
    straight = small_search("sdarts_rs", **settings)
    straight.run()
    stopped = small_search("sdarts_rs", **settings)
    for epochs_done in range(4):
        assert stopped.epoch == epochs_done
        stopped.save_state(tmp_path / f"{epochs_done}.pt")
        resumed = small_search("sdarts_rs", **settings)
        resumed.load_state(tmp_path / f"{epochs_done}.pt")
        assert resumed.epoch == epochs_done
        resumed.run()
        assert differences(straight, resumed) == []
        assert resumed.genotype == straight.genotype
        assert torch.equal(resumed.op_weights["cell"], straight.op_weights["cell"])
        assert not resumed.resumed_elsewhere
        if not stopped.finished:
            stopped.run_epoch()


def test_a_method_that_draws_when_it_relaxes_resumes_too() -> None:
    straight, first, second = (small_search("sampled") for _ in range(3))
    straight.run()
    first.run_epoch()
    second.load_state_dict(first.state_dict())
    second.run()
    assert differences(straight, second) == []


def test_resume_works_from_every_state_of_one_run_and_into_a_used_trial() -> None:
    straight = small_search()
    states = [straight.state_dict()]
    while not straight.finished:
        straight.run_epoch()
        states.append(straight.state_dict())
    used = small_search()
    used.run()
    for state in states:
        used.load_state_dict(state)
        assert not used.finished or state is states[-1]
        used.run()
        assert differences(straight, used) == []


def test_a_state_is_a_copy_in_both_directions() -> None:
    trial = small_search()
    trial.run_epoch()
    state = trial.state_dict()
    kept = copy.deepcopy(state)
    trial.run_epoch()
    other = small_search()
    other.load_state_dict(state)
    other.run()
    again = small_search()
    again.load_state_dict(state)
    reference = small_search()
    reference.load_state_dict(kept)
    assert differences(again, reference) == []


def test_a_diverged_search_stays_diverged(tmp_path: Path) -> None:
    trial = small_search({"name": "exploding", "epoch": 0})
    trial.run()
    trial.save_state(tmp_path / "state.pt")
    other = small_search({"name": "exploding", "epoch": 0})
    other.load_state(tmp_path / "state.pt")
    assert other.diverged
    assert other.finished
    assert other.curve == trial.curve


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Fingerprint)])
def test_another_fingerprint_goes_on_and_is_marked(field: str) -> None:
    trial = small_search(batch_size=24)
    trial.run_epoch()
    state = trial.state_dict()
    value = state["fingerprint"][field]
    state["fingerprint"][field] = value + 1 if isinstance(value, int) else f"another {value}"
    other = small_search(batch_size=24)
    other.load_state_dict(state)
    assert other.resumed_elsewhere
    other.run_epoch()
    # The mark stays when that trial's state is continued where it was made.
    third = small_search(batch_size=24)
    third.load_state_dict(other.state_dict())
    assert third.resumed_elsewhere
    assert not trial.resumed_elsewhere


@pytest.mark.parametrize("change", [{"threads": 2}, {"precision": "float64"}], ids=str)
def test_threads_and_precision_may_change_on_the_way(change: dict[str, Any]) -> None:
    trial = small_search()
    trial.run_epoch()
    other = small_search(**change)
    other.load_state_dict(trial.state_dict())
    assert other.resumed_elsewhere
    dtype = torch.float64 if "precision" in change else torch.float32
    buffers = other._bilevel.weight_optimizer.state_dict()["state"].values()
    assert {alpha.dtype for alpha in other.alphas.values()} == {dtype}
    assert {matrix.dtype for matrix in other.op_weights.values()} == {dtype}
    assert {entry["momentum_buffer"].dtype for entry in buffers} == {dtype}
    # More than one thread is slow on a busy machine; that an epoch runs is shown by the other.
    if "precision" in change:
        other.run_epoch()
        assert [entry["epoch"] for entry in other.curve] == [1, 2]


def test_a_state_from_another_kind_of_device_goes_on_with_new_draws() -> None:
    trial, same = small_search("sdarts_rs"), small_search("sdarts_rs")
    trial.run_epoch()
    state = trial.state_dict()
    state["bilevel"]["device"] = "another"
    # A generator's state there has another size, which a generator here would refuse.
    for purpose in state["bilevel"]["generators"]:
        state["bilevel"]["generators"][purpose] = torch.zeros(16, dtype=torch.uint8)
    same.load_state_dict(state)
    same.run()
    trial.run()
    assert same.finished
    assert same.curve[1]["train_loss"] != trial.curve[1]["train_loss"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: small_search(seed=1), "its seed is 0, here it is 1"),
        (lambda: small_search("sdarts_rs"), "its method is {'name': 'darts'"),
        (lambda: small_search(space="darts"), "its space is"),
        (lambda: small_search(alpha_lr=0.1), "its search is"),
        (lambda: small_search_of(40), "its dataset is"),
    ],
    ids=["seed", "method", "space", "search", "dataset"],
)
def test_the_state_of_another_search_is_refused(other: Any, message: str) -> None:
    trial = other()
    before = trial.state_dict()
    with pytest.raises(StateError, match=message):
        trial.load_state_dict(small_search().state_dict())
    assert trial.epoch == before["epoch"]


def small_search_of(num_images: int) -> SearchTrial:
    trial = small_search()
    return SearchTrial(
        space=trial.description["space"],
        dataset={"name": "tiny", "num_images": num_images},
        method="darts",
        search=trial.settings,
    )


@pytest.mark.parametrize("change", [{"format": 1}, {"kind": "retrain"}, {"format": None}], ids=str)
def test_another_format_or_kind_is_refused(change: dict[str, Any]) -> None:
    trial = small_search()
    with pytest.raises(StateError, match="must be a search of format 2"):
        trial.load_state_dict(trial.state_dict() | change)
