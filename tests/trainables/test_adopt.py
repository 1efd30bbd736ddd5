"""A retraining that goes on from another's state with other settings."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from spaces.core import plugins
from spaces.core.genotype import Genotype
from tests.trainables.test_retrain import SIZES, TEXTS, small_digits
from trainables.datasets import digits
from trainables.errors import StateError
from trainables.retrain import RetrainTrial
from trainables.settings import CHANGEABLE, RetrainSettings, field_names, why_fixed

SMALL: dict[str, Any] = {
    "epochs": 3, "batch_size": 48, "cutout": 2, "lr": 0.05, "lr_min": 0.001, "momentum": 0.9,
    "drop_path": 0.1, "auxiliary_weight": 0.4, "ema_decay": 0.5, "gradient_clip": 1.0,
    "augment": "crop_flip",
}  # fmt: skip
OTHER: dict[str, Any] = {
    "lr": 0.2, "lr_min": 0.04, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True,
    "gradient_clip": 0.01, "auxiliary_weight": 2.0, "drop_path": 0.9, "label_smoothing": 0.3,
    "augment": "none", "cutout": 6, "ema_decay": 0.99,
}  # fmt: skip


@pytest.fixture(autouse=True)
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use 150 digits of each split."""
    original = digits.load
    monkeypatch.setattr(
        digits, "load", lambda config, split: small_digits(original(config, split), 150)
    )


def trial(**changes: Any) -> RetrainTrial:
    seed = changes.pop("seed", 0)
    space = plugins.make_config("spaces", "darts")[1]
    genotype: Genotype = plugins.load("spaces", "darts").build(space, "darts").parse(TEXTS["darts"])
    retrain = {**SMALL, **SIZES["darts"], **changes}
    return RetrainTrial(
        genotype=genotype, space="darts", dataset="digits", retrain=retrain, seed=seed
    )


def run(trial: RetrainTrial, epochs: int) -> RetrainTrial:
    for _ in range(epochs):
        trial.run_epoch()
    return trial


@cache
def after_an_epoch() -> dict[str, Any]:
    """The state of a trial of `SMALL` after its first epoch; loading it copies."""
    return run(trial(), 1).state_dict()


def weights(trial: RetrainTrial) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in trial.network.parameters()]).detach()


def evaluated(trial: RetrainTrial) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in trial.final_state()["weights"].values()])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_every_setting_is_changeable_or_has_a_reason() -> None:
    fixed = {name for name in field_names(RetrainSettings) if why_fixed(name, [1, 2])}
    assert fixed.isdisjoint(CHANGEABLE)
    assert fixed | set(CHANGEABLE) == set(field_names(RetrainSettings))
    assert set(OTHER) == set(CHANGEABLE)
    assert why_fixed("ema_decay", [0.0, 0.9]) is not None
    assert why_fixed("auxiliary_weight", [0.0, 0.4]) is not None
    assert why_fixed("drop_path", [0.0, 0.4]) is None


def test_all_that_was_learnt_is_taken_over_and_nothing_else() -> None:
    source = run(trial(), 1)
    other = trial(**OTHER)
    own = [{"epoch": 1, "lr": 9.0}]
    other.adopt(source.state_dict(), own)
    taken, state = other.state_dict(), source.state_dict()
    assert same(taken["training"]["network"], state["training"]["network"])
    assert same(taken["training"]["averaged"], state["training"]["averaged"])
    assert same(taken["training"]["batches"], state["training"]["batches"])
    assert same(taken["training"]["drop_generator"], state["training"]["drop_generator"])
    momentum = [each["training"]["optimizer"]["state"] for each in (taken, state)]
    assert momentum[0]
    assert same(*momentum)
    (group,) = taken["training"]["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (0.1, 0.5, True)
    assert (other.epoch, other.curve, other.test_reads) == (1, own, 0)
    assert other.settings.lr == 0.2
    # Copies: the one that trains on changes nothing in the other.
    run(other, 1)
    assert same(source.state_dict(), state)


def test_with_the_same_settings_it_is_a_resume() -> None:
    source = run(trial(), 1)
    resumed, adopted = trial(), trial()
    resumed.load_state_dict(source.state_dict())
    adopted.adopt(source.state_dict(), source.curve)
    assert torch.equal(weights(run(resumed, 2)), weights(run(adopted, 2)))
    assert resumed.curve[-1]["test_loss"] == adopted.curve[-1]["test_loss"]


@pytest.mark.parametrize("name", CHANGEABLE)
def test_a_changed_setting_holds_from_the_next_epoch_on(name: str) -> None:
    state = after_an_epoch()
    plain, changed = trial(), trial(**{name: OTHER[name]})
    for each in (plain, changed):
        each.adopt(state, [{}])
        each.run_epoch()
    assert not torch.equal(evaluated(plain), evaluated(changed))
    again = trial(**{name: OTHER[name]})
    again.load_state_dict(changed.state_dict())
    assert torch.equal(weights(again), weights(changed))


def test_the_optimizer_steps_with_the_new_settings() -> None:
    # One step of SGD by hand: v = momentum * v + (g + decay * w), w -= lr * v, with the new values.
    state = run(trial(gradient_clip=0.0, batch_size=128), 1).state_dict()
    trained = trial(
        gradient_clip=0.0, batch_size=128, momentum=0.5, weight_decay=0.1, lr=0.3, lr_min=0.3
    )
    trained.adopt(state, [{}])
    before = [weight.detach().clone() for weight in trained.network.parameters()]
    buffers = state["training"]["optimizer"]["state"]
    trained.run_epoch()  # 150 // 128: one step
    moved = 0
    for index, (old, new) in enumerate(zip(before, trained.network.parameters(), strict=True)):
        if new.grad is None or index not in buffers:
            continue
        velocity = 0.5 * buffers[index]["momentum_buffer"] + new.grad + 0.1 * old
        torch.testing.assert_close(new.detach(), old - 0.3 * velocity)
        moved += 1
    assert moved > 10


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"channels": 4}, "retrain.channels"),
        ({"batch_size": 50}, "retrain.batch_size"),
        ({"epochs": 4}, "retrain.epochs"),
        ({"val_share": 0.2}, "retrain.val_share"),
        ({"auxiliary_weight": 0.0}, "retrain.auxiliary_weight"),
        ({"ema_decay": 0.0}, "retrain.ema_decay"),
    ],
)
def test_what_cannot_change_is_named(changes: dict[str, Any], named: str) -> None:
    state = after_an_epoch()
    with pytest.raises(StateError, match=f"it differs in {named}"):
        trial(**changes).adopt(state, [{}])


def test_the_curve_must_fit_and_the_state_be_good() -> None:
    state = after_an_epoch()
    with pytest.raises(StateError, match=r"a good one of 2 epochs, .* got one of 1\."):
        trial().adopt(state, [{}, {}])
    with pytest.raises(StateError, match="got one of 1 that diverged"):
        trial().adopt({**state, "diverged": True}, [{}])
    with pytest.raises(StateError, match="must be a retraining's of format 1"):
        trial().adopt({**state, "kind": "search"}, [{}])
