"""DARTS-ADA: searches that go back to an earlier state, with more weight decay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from spaces.core.errors import PluginSettingsError
from tests.trainables.searches import differences, small_search
from trainables.early_stopping import eigenvalue
from trainables.early_stopping.eigenvalue import Config
from trainables.search import SearchTrial
from trainables.timing import Stopwatch
from trainables.watching import GoBack, descent

pytestmark = pytest.mark.usefixtures("tiny_plugins")

RULE = {"name": "eigenvalue", "window": 1, "delta": 2, "every": 1, "start": 0, "then": "regularize"}
# When and how far it goes back does not depend on the method: most tests have the cheapest.
METHOD = {"name": "darts", "early_stop": RULE}
# It draws: after the way back the draws go on, they are not those of before.
DRAWING = {"name": "sdarts_rs", "alpha_gradient": "unrolled"}
CALM, JUMP = 1.0, 9.0
DECAY = 3e-4


def made(method: Any = METHOD, *, batch_size: int = 24, **changes: Any) -> SearchTrial:
    """A search of six epochs of one step each, or of two where batches are half as large."""
    search = {"epochs": 6, "alpha_lr": 0.3, "weight_decay": DECAY, "batch_size": batch_size}
    return small_search(method | {"early_stop": RULE | changes}, **search)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the rule measure the given values, one after the other, and then calm ones."""

    def give(*values: float) -> None:
        left: Iterator[float] = iter(values)
        monkeypatch.setattr(
            eigenvalue, "probe_hessian", lambda *_: {"hessian_eigenvalue": next(left, CALM)}
        )

    return give


def plainly(order: Sequence[tuple[int, float, int | None]]) -> SearchTrial:
    """Run epochs of the schedule with a weight decay each, going back to a state where told."""
    trial = small_search(DRAWING, epochs=6, alpha_lr=0.3, weight_decay=DECAY)
    bilevel, states = trial._bilevel, {}
    clocks = Stopwatch(trial.device), Stopwatch(trial.device)
    for epoch, decay, back_to in order:
        bilevel.weight_optimizer.param_groups[0]["weight_decay"] = decay
        at = bilevel.point(epoch)
        for step in range(trial.steps_per_epoch):
            bilevel.step(replace(at, step=step), *trial._data.next_batches(), clocks)
        states[epoch] = bilevel.state_dict()
        if back_to is not None:
            own = bilevel.state_dict()["generators"]
            bilevel.load_state_dict({**states[back_to], "generators": own})
    return trial


def final(trial: SearchTrial) -> list[torch.Tensor]:
    return [*trial._bilevel.weights, *trial.alphas.values()]


def test_it_goes_on_from_the_state_of_the_named_epoch_with_more_weight_decay(measure: Any) -> None:
    measure(CALM, CALM, CALM, JUMP)
    trial = made(DRAWING, batch_size=12)
    trial.run()
    # The jump is seen after epoch 3, and compared with epoch 1, counted from 0.
    more = DECAY * 3.0
    order = [(0, DECAY, None), (1, DECAY, None), (2, DECAY, None), (3, DECAY, 1)]
    order += [(epoch, more, None) for epoch in (2, 3, 4, 5)]
    plain = plainly(order)
    for mine, other in zip(final(trial), final(plain), strict=True):
        assert torch.equal(mine, other)
    assert [entry["schedule_epoch"] for entry in trial.curve] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert [entry["epoch"] for entry in trial.curve] == list(range(1, 9))
    assert [entry["weight_decay"] for entry in trial.curve] == [DECAY] * 4 + [more] * 4
    assert [entry["went_back"] for entry in trial.curve] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert "stopped_early" not in trial.curve[-1]
    rates = [entry["weight_lr"] for entry in trial.curve]
    assert rates[2:4] == rates[4:6]
    assert trial.finished
    assert (trial.epoch, trial.position, trial.genotype_epoch) == (8, 6, 8)
    assert trial.genotype.hash == trial.curve[-1]["genotype_hash"]
    assert not trial.chooses_epoch
    assert ["op_weights" in entry for entry in trial.curve] == [False] * 7 + [True]


def test_the_way_back_can_be_longer(measure: Any) -> None:
    for extra, schedule in ((1, [1, 2, 3, 4, 2, 3, 4, 5, 6]), (9, [1, 2, 3, 4, 2, 3, 4, 5, 6])):
        measure(CALM, CALM, CALM, JUMP)
        trial = made(extra_epochs=extra)
        trial.run()
        # Nothing is before the first epoch that there is a state of.
        assert [entry["schedule_epoch"] for entry in trial.curve] == schedule


def test_it_goes_back_from_the_last_epoch_too(measure: Any) -> None:
    measure(*[CALM] * 5, JUMP)
    trial = made()
    for _ in range(6):
        trial.run_epoch()
    assert not trial.finished
    assert "op_weights" not in trial.curve[-1]
    trial.run()
    assert [entry["schedule_epoch"] for entry in trial.curve[6:]] == [5, 6]


def test_at_the_limit_it_goes_on_to_its_end(measure: Any) -> None:
    # Each jump is twice what it is compared with, whatever was taken back.
    measure(*(2.0**index for index in range(40)))
    trial = made(max_weight_decay=DECAY * 9)
    trial.run()
    decays = list(dict.fromkeys(entry["weight_decay"] for entry in trial.curve))
    assert decays == pytest.approx([DECAY, DECAY * 3, DECAY * 9])
    assert sum(entry["went_back"] for entry in trial.curve) == 2
    assert trial.finished
    assert trial.position == 6


def test_the_factor_is_the_one_that_is_given(measure: Any) -> None:
    measure(CALM, CALM, JUMP)
    trial = made(weight_decay_factor=10.0)
    trial.run()
    assert trial.curve[-1]["weight_decay"] == pytest.approx(DECAY * 10)


def test_what_was_taken_back_is_forgotten(measure: Any) -> None:
    # After the way back to epoch 0 its value counts, not those of epochs 1 and 2 before.
    measure(CALM, CALM, JUMP, JUMP, CALM, JUMP)
    trial = made()
    trial.run()
    # Epoch 1 again measures 9: compared with nothing. Epoch 2 has 1 against 1 of epoch 0. Epoch 3
    # has 9 against 9 of the second epoch 1, where the first would have been 1.
    assert [entry["schedule_epoch"] for entry in trial.curve] == [1, 2, 3, 2, 3, 4, 5, 6]
    assert [entry["went_back"] for entry in trial.curve] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_the_virtual_step_has_the_weight_decay_of_the_weight_step(measure: Any) -> None:
    measure(CALM, CALM, JUMP)
    trial = made(DRAWING)
    seen: list[float] = []
    bilevel, plain = trial._bilevel, trial.method.alpha_gradient

    def gradient(problem: Any, at: Any) -> Any:
        seen.append(problem.weight_decay)
        return plain(problem, at)

    bilevel.method = replace(bilevel.method, alpha_gradient=gradient)
    trial.run()
    steps = trial.steps_per_epoch
    assert seen[::steps] == [entry["weight_decay"] for entry in trial.curve]
    assert len(set(seen)) == 2


def test_it_is_resumed_bit_for_bit_at_every_epoch(measure: Any) -> None:
    values = [CALM, CALM, CALM, JUMP, CALM, JUMP, CALM, CALM, CALM]
    measure(*values)
    straight = made(DRAWING)
    states, places = [straight.state_dict()], [(0, 0)]
    while not straight.finished:
        straight.run_epoch()
        states.append(straight.state_dict())
        places.append((straight.epoch, straight.position))
    assert len(straight.curve) > 8
    # Before, at and after both ways back.
    for epochs in (0, 3, 4, 5, 6, 8):
        measure(*values[epochs:])
        resumed = made(DRAWING)
        resumed.load_state_dict(states[epochs])
        assert (resumed.epoch, resumed.position) == places[epochs]
        resumed.run()
        assert differences(straight, resumed) == []


def test_a_resumed_search_still_has_the_states_to_go_back_to(measure: Any, tmp_path: Any) -> None:
    measure(CALM, CALM, CALM, JUMP)
    cut = made()
    for _ in range(3):
        cut.run_epoch()
    cut.save_state(tmp_path / "state.pt")
    resumed = made()
    resumed.load_state(tmp_path / "state.pt")
    resumed.run()
    assert [entry["schedule_epoch"] for entry in resumed.curve] == [1, 2, 3, 4, 3, 4, 5, 6]


def test_it_may_go_back_further_the_second_time(measure: Any) -> None:
    # Epoch 3 names 1; then epoch 2, measured anew, is compared with epoch 0, and names that.
    measure(CALM, CALM, CALM, JUMP, JUMP)
    trial = made()
    trial.run()
    assert [entry["schedule_epoch"] for entry in trial.curve] == [1, 2, 3, 4, 3, 2, 3, 4, 5, 6]


def test_only_states_that_may_be_needed_are_kept(measure: Any) -> None:
    # With so much weight decay it may go back once, by 2 epochs and one more.
    for limit, kept in ((DECAY * 3, [2, 3, 4, 5]), (DECAY * 9, [0, 1, 2, 3, 4, 5])):
        measure()
        trial = made(extra_epochs=1, max_weight_decay=limit)
        trial.run()
        assert sorted(trial.state_dict()["past"]) == kept
    # States of epochs that are not measured are never gone back to, but for the first.
    measure()
    sparse = made(every=2, delta=1, window=1)
    sparse.run()
    assert sorted(sparse.state_dict()["past"]) == [0, 2, 4]
    measure(CALM, CALM, CALM, JUMP)
    once = made(max_weight_decay=DECAY * 3)
    once.run()
    assert once.state_dict()["past"] == {}
    ends = small_search(
        {"name": "darts", "early_stop": RULE | {"then": "end"}}, epochs=4, batch_size=24
    )
    ends.run()
    assert ends.state_dict()["past"] == {}


def test_published_settings_go_twelve_epochs_back_and_four_times() -> None:
    rule = eigenvalue.build(Config(then="regularize")).go_back
    assert rule is not None
    assert (rule.weight_decay_factor, rule.max_weight_decay, rule.extra_epochs) == (3, 0.0243, 0)
    assert rule.reach(50) == 12
    assert rule.times(3e-4) == 4
    script = eigenvalue.build(
        Config(then="regularize", weight_decay_factor=10, max_weight_decay=0.03)
    ).go_back
    assert script is not None
    assert script.times(3e-4) == 2
    assert eigenvalue.build(Config()).go_back is None


def test_weight_decay_never_exceeds_its_limit() -> None:
    rule = GoBack(3.0, 0.0243, 0, lambda _: 0)
    assert rule.raised(0.0081) == pytest.approx(0.0243)
    assert rule.raised(0.0243) is None
    assert rule.raised(0.0082) is None
    assert rule.raised(0.0) is None


def test_the_line_of_descent_leaves_out_what_was_taken_back() -> None:
    curve = [{"schedule_epoch": epoch} for epoch in (1, 2, 3, 4, 2, 3, 3)]
    assert [epoch for epoch, _ in descent(curve)] == [0, 1, 2]
    kept = [entry for _, entry in descent(curve)]
    assert [kept[index] is curve[at] for index, at in enumerate((0, 4, 6))] == [True] * 3
    assert [epoch for epoch, _ in descent([{}, {}])] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_decay_factor": 1.0}, "weight_decay_factor must be > 1"),
        ({"weight_decay_factor": float("inf")}, "weight_decay_factor must be > 1 and finite"),
        ({"max_weight_decay": 0.0}, "max_weight_decay must be > 0"),
        ({"extra_epochs": -1}, "extra_epochs must be >= 0"),
        ({"then": "end", "extra_epochs": 1}, "extra_epochs has no effect with then: end"),
        ({"then": "end", "weight_decay_factor": 3.0}, "weight_decay_factor has no effect"),
        ({"then": "end", "max_weight_decay": 0.1}, "max_weight_decay has no effect"),
        ({"then": "stop"}, "then"),
        ({"max_weight_decay": 8e-4}, "could never take this search back"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginSettingsError, match=words):
        made(**changes)


def test_without_weight_decay_there_is_nothing_to_multiply() -> None:
    with pytest.raises(PluginSettingsError, match=r"search\.weight_decay is 0"):
        small_search(METHOD, epochs=6, weight_decay=0.0)


def test_the_best_epoch_may_be_one_that_was_taken_back() -> None:
    with pytest.raises(PluginSettingsError, match="taken back"):
        small_search(METHOD | {"genotype_of": "best_epoch"}, epochs=6)


def test_a_rule_for_the_supernet_chooses_after_the_last_epoch(measure: Any) -> None:
    measure(CALM, CALM, CALM, JUMP)
    trial = small_search(METHOD | {"select": "operation_strength"}, epochs=6, alpha_lr=0.3,
                         batch_size=24)  # fmt: skip
    trial.run()
    assert trial.scores
    assert trial.genotype_epoch == 8
