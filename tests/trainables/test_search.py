"""Whole searches: what they compute, their curve, their end."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError
from spaces.core.genotype import Genotype
from spaces.core.mixture import Mixture
from tests.trainables.searches import SPACES, differences, small_search, untimed
from trainables.errors import DataError, StateError
from trainables.method import Method, OpWeights, SearchPoint
from trainables.search import TIME_FIELDS, SearchTrial
from trainables.settings import SearchSettings, field_names
from trainables.state import purpose_seed
from trainables.worst import WORST_LOSS

pytestmark = pytest.mark.usefixtures("tiny_plugins")

ENTRY = {
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("alpha_entropy", "alpha_range", "top1_margin", "skip_count", "skip_share", "collapsed"),
    *("weight_lr", "diverged", "genotype", "genotype_hash", *TIME_FIELDS),
} - {"diagnostics_time_s"}


def test_first_order_search_equals_a_plain_loop() -> None:
    """The oracle: torch's own optimizers and scheduler, loss.backward(), no engine of ours."""
    settings = {"precision": "float64", "gradient_clip": 0.5, "nesterov": True}
    trial = small_search(**settings)
    other = small_search(**settings)
    supernet, data = copy.deepcopy(other._bilevel.supernet), other._data
    alphas = {name: alpha.detach().clone() for name, alpha in other.alphas.items()}
    for alpha in alphas.values():
        alpha.requires_grad_(True)
    sgd = torch.optim.SGD(
        supernet.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=3, eta_min=0.001)
    adam = torch.optim.Adam(alphas.values(), lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3)

    def forward(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        op_weights = {name: torch.softmax(alpha, -1) for name, alpha in alphas.items()}
        logits = supernet(batch[0], Mixture(op_weights), norm="batch_and_update")
        return F.cross_entropy(logits, batch[1]), logits.argmax(1) == batch[1]

    losses: list[list[float]] = []
    answers: list[list[torch.Tensor]] = []
    for _ in range(3):
        losses.append([])
        answers.append([])
        for _ in range(2):
            train_batch, val_batch = data.next_batches()
            adam.zero_grad()
            forward(val_batch)[0].backward()
            adam.step()
            sgd.zero_grad()
            train_loss, correct = forward(train_batch)
            train_loss.backward()
            torch.nn.utils.clip_grad_norm_(supernet.parameters(), 0.5)
            sgd.step()
            losses[-1].append(train_loss.item())
            answers[-1].append(correct)
        schedule.step()
    trial.run()
    for entry, expected, correct_ones in zip(trial.curve, losses, answers, strict=True):
        assert entry["train_loss"] == pytest.approx(sum(expected) / 2, abs=1e-10)
        assert entry["train_accuracy"] == torch.cat(correct_ones).double().mean().item()
    for name, alpha in alphas.items():
        torch.testing.assert_close(trial.alphas[name], alpha, rtol=0, atol=1e-10)
    for mine, theirs in zip(
        trial._bilevel.supernet.state_dict().values(), supernet.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_val_accuracy_is_that_of_the_whole_val_split_after_the_epoch(norm: Any) -> None:
    trial = small_search(train_share=0.6, validation_norm=norm, precision="float64")
    entry = trial.run_epoch()
    # 48 images: 28 train weights, 20 are left; in two even parts for statistics of the batch.
    batches = list(trial._data.validation())
    assert [len(labels) for _, labels in batches] == [10, 10]
    mixture = Mixture({n: torch.softmax(a.detach(), -1) for n, a in trial.alphas.items()})
    parts = (
        batches
        if norm == "batch"
        else [tuple(torch.cat([b[i] for b in batches]) for i in range(2))]
    )
    with torch.no_grad():
        logits = torch.cat([trial._bilevel.supernet(x, mixture, norm=norm) for x, _ in parts])
    labels = torch.cat([y for _, y in parts])
    assert entry["val_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-12)
    assert entry["val_accuracy"] == (logits.argmax(1) == labels).double().mean().item()


def test_curve_holds_finite_plain_values_and_the_genotype_after_each_epoch() -> None:
    trial = small_search("sdarts_rs")
    while not trial.finished:
        entry = trial.run_epoch()
        last = {"op_weights"} if trial.finished else set()
        assert set(entry) == ENTRY | {"radius", "perturb_distance"} | last
        # Taken after the epoch: from the alphas as they are now.
        now = {name: torch.softmax(alpha, -1) for name, alpha in trial.alphas.items()}
        assert trial.genotype == trial.space.discretize(now)
        assert Genotype.from_json(entry["genotype"]) == trial.genotype
        assert entry["genotype_hash"] == trial.genotype.hash
    assert json.loads(json.dumps(trial.curve, allow_nan=False)) == trial.curve
    assert [entry["epoch"] for entry in trial.curve] == [1, 2, 3]
    # radius_start + (radius_max - radius_start) t / T and a cosine from 0.025 to 0.001 over 3.
    assert [e["radius"] for e in trial.curve] == pytest.approx([0.03, 0.12, 0.21])
    cosines = [1.0, (1 + math.cos(math.pi / 3)) / 2, (1 + math.cos(2 * math.pi / 3)) / 2]
    rates = [0.001 + 0.024 * cosine for cosine in cosines]
    assert [e["weight_lr"] for e in trial.curve] == pytest.approx(rates)
    assert all(0 < e["perturb_distance"] <= 1 for e in trial.curve)
    assert set(small_search().run_epoch()) == ENTRY


def test_stored_op_weights_are_no_view_of_the_alphas() -> None:
    trial = small_search(epochs=2, batch_size=24)
    trial._bilevel.method = Method(relax=lambda alphas, _at: dict(alphas))
    with torch.no_grad():
        trial.alphas["cell"].fill_(1.0)
    trial.run_epoch()
    assert not trial.diverged
    kept = trial.op_weights["cell"].clone()
    with torch.no_grad():
        trial.alphas["cell"].add_(1.0)
    assert torch.equal(trial.op_weights["cell"], kept)
    assert not trial.op_weights["cell"].requires_grad


def test_the_perturbation_distance_is_the_mean_over_the_steps() -> None:
    distances = iter([0.25, 0.125])

    def perturb(op_weights: OpWeights, _at: SearchPoint) -> OpWeights:
        shift = next(distances)
        return {name: matrix + shift for name, matrix in op_weights.items()}

    trial = small_search(precision="float64")
    trial.method = trial._bilevel.method = Method(perturb=perturb)
    entry = trial.run_epoch()
    assert entry["perturb_distance"] == pytest.approx((0.25 + 0.125) / 2, abs=1e-12)


@pytest.mark.parametrize("space", list(SPACES))
def test_a_search_learns_and_ends(space: str) -> None:
    trial = small_search(space=space, epochs=2)
    genotype = trial.run()
    assert trial.finished
    assert trial.epoch == 2
    assert genotype.space == space
    trial.space.check(genotype)
    assert trial.curve[1]["train_loss"] < trial.curve[0]["train_loss"]
    with pytest.raises(StateError, match="ended after 2 epochs"):
        trial.run_epoch()


SHORT = {"epochs": 2, "batch_size": 20}
"""Two steps: the fewest in which momentum and the schedule can be seen."""
# A value for each setting that differs from `small_search(**SHORT)`.
CHANGES: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 12,
    "weight_lr": 0.05,
    "weight_lr_min": 0.01,
    "weight_momentum": 0.5,
    "weight_decay": 0.01,
    "nesterov": True,
    "gradient_clip": 0.05,
    "alpha_lr": 0.01,
    "alpha_beta1": 0.9,
    "alpha_beta2": 0.9,
    "alpha_weight_decay": 0.1,
    "train_share": 0.6,
    "validation_norm": "batch",
    "augment": "crop_flip",
    "cutout": 4,
    "precision": "float64",
    "threads": 2,
}


def test_every_setting_is_tried() -> None:
    # Engine and checkpointing change no result: test_engine.py and test_recomputing.py.
    assert set(CHANGES) | {"engine", "checkpointing"} == set(field_names(SearchSettings))


@pytest.fixture(scope="module")
def base_run(tiny_plugins: None) -> SearchTrial:
    """A finished search that no test changes."""
    trial = small_search()
    trial.run()
    return trial


@pytest.fixture(scope="module")
def short_run(tiny_plugins: None) -> SearchTrial:
    """Likewise, of two steps."""
    trial = small_search(**SHORT)
    trial.run()
    return trial


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "threads"])
def test_every_setting_changes_the_search(name: str, short_run: SearchTrial) -> None:
    trial = small_search(**SHORT | {name: CHANGES[name]})
    trial.run()
    before, after = untimed(short_run), untimed(trial)
    assert [e["val_loss"] for e in before] != [e["val_loss"] for e in after]
    if name == "validation_norm":
        assert [e["train_loss"] for e in before] == [e["train_loss"] for e in after]


def test_threads_are_set_at_the_start_and_before_every_epoch() -> None:
    trial = small_search(threads=2, batch_size=24, epochs=1)
    assert torch.get_num_threads() == trial.fingerprint.threads == 2
    small_search()
    assert torch.get_num_threads() == 1
    trial.run_epoch()
    assert torch.get_num_threads() == 2


def test_equal_settings_and_seed_give_an_equal_search(base_run: SearchTrial) -> None:
    again = small_search()
    again.run()
    assert differences(base_run, again) == []


def test_the_seed_changes_split_init_and_batches(base_run: SearchTrial) -> None:
    other = small_search(seed=1)
    weights = zip(base_run._bilevel.weights, other._bilevel.weights, strict=True)
    assert not all(torch.equal(a, b) for a, b in weights)
    images = [torch.cat([x for x, _ in t._data.validation()]) for t in (base_run, other)]
    assert not torch.equal(*images)
    other.run()
    assert untimed(other) != untimed(base_run)


def test_trials_in_lock_step_equal_trials_alone(base_run: SearchTrial) -> None:
    trials = [small_search(), small_search("sdarts_rs", seed=5), small_search(seed=1)]
    for _ in range(3):
        for trial in trials:
            trial.run_epoch()
    assert differences(base_run, trials[0]) == []


def test_global_generators_are_neither_read_nor_changed(base_run: SearchTrial) -> None:
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    trial = small_search()
    trial.run()
    assert torch.equal(before, torch.get_rng_state())
    assert differences(base_run, trial) == []


def test_timing_steps_changes_no_result(base_run: SearchTrial) -> None:
    trial = small_search()
    assert trial.time_steps(2) > 0
    trial.run_epoch()
    trial.time_steps(1)
    trial.run()
    assert differences(base_run, trial) == []
    assert not trial.resumed_elsewhere


def test_divergence_keeps_the_last_good_epoch() -> None:
    trial = small_search({"name": "exploding", "epoch": 2})
    good = small_search({"name": "exploding", "epoch": 3})
    trial.run()
    good.run_epoch()
    good.run_epoch()
    assert trial.diverged
    assert trial.finished
    assert trial.epoch == 2
    last = trial.curve[-1]
    assert (last["epoch"], last["diverged"], last["val_accuracy"]) == (3, 1, 0.0)
    assert last["val_loss"] == last["train_loss"] == WORST_LOSS
    assert last["genotype"] == good.genotype.to_json()
    json.dumps(last, allow_nan=False)
    assert set(last) == set(trial.curve[0])
    # Equal to the state after two epochs in all but the note of it.
    left = [p for p in differences_of_states(trial, good) if not p.startswith("/curve/2")]
    assert left == ["/diverged"]
    with pytest.raises(StateError, match="none is left"):
        trial.run_epoch()


def differences_of_states(trial: SearchTrial, good: SearchTrial) -> list[str]:
    state = trial.state_dict()
    state["curve"] = state["curve"][: len(good.curve)]
    # "exploding" differs in its setting, which the identity holds.
    state["identity"] = good.state_dict()["identity"]
    shadow = small_search({"name": "exploding", "epoch": 3})
    shadow.load_state_dict(state)
    return differences(shadow, good)


def test_a_huge_learning_rate_diverges_without_nan_in_the_curve() -> None:
    trial = small_search(weight_lr=1e38, gradient_clip=0.0)
    trial.run()
    assert trial.diverged
    assert trial.epoch == 0
    json.dumps(trial.curve, allow_nan=False)
    assert all(bool(w.isfinite().all()) for w in trial._bilevel.weights)


def test_final_state_reproduces_the_last_accuracy() -> None:
    trial = small_search(precision="float64")
    trial.run()
    final = trial.final_state()
    supernet = trial.space.build_supernet(1, 2, seed=99).double()
    supernet.load_state_dict(final["weights"] | final["buffers"])
    mixture = Mixture(final["op_weights"])
    with torch.no_grad():
        logits = [(supernet(x, mixture, norm="running"), y) for x, y in trial._data.validation()]
    losses = [F.cross_entropy(z, y, reduction="sum") for z, y in logits]
    assert sum(losses).item() / 24 == pytest.approx(trial.curve[-1]["val_loss"], abs=1e-12)
    settings = json.loads(final["settings"])
    assert settings["space"] == SPACES["nasbench201"]
    assert settings["search"]["alpha_lr"] == 0.05
    assert Genotype.from_json(json.loads(final["genotype"])) == trial.genotype


def test_precision_gives_the_dtype_and_the_same_start() -> None:
    single, double = small_search(), small_search(precision="float64")
    for a, b in zip(single.alphas.values(), double.alphas.values(), strict=True):
        assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
        assert torch.equal(a, b.float())
    assert double._data.next_batches()[0][0].dtype == torch.float64


def test_alphas_start_as_small_normal_numbers() -> None:
    trial = small_search(space="darts")
    values = torch.cat([alpha.detach().flatten() for alpha in trial.alphas.values()]) / 1e-3
    # 224 draws from N(0, 1): the mean is within 0.27 and the spread within 20 % (four sigma).
    assert abs(values.mean()) < 0.27
    assert abs(values.std() - 1) < 0.2
    first, second = trial.alphas.values()
    assert not torch.equal(first, second)


def test_the_parts_are_chosen_by_name_mapping_or_pair() -> None:
    pair = plugins.make_config("spaces", SPACES["nasbench201"])
    trial = SearchTrial(
        space=pair,
        dataset={"name": "tiny", "num_images": 32},
        method=plugins.make_config("methods", "darts"),
        search=SearchSettings(epochs=1, batch_size=16),
        selection="magnitude",
    )
    assert trial.steps_per_epoch == 1
    assert trial.description["space"] == SPACES["nasbench201"]
    assert trial.data_digest == f"{32:016x}"


def test_mistakes_name_what_is_wrong() -> None:
    with pytest.raises(PluginSettingsError, match=r"search\.epoch is not a setting.*'epochs'"):
        small_search(epoch=3)
    with pytest.raises(DataError, match="batch_size must be at most"):
        small_search(batch_size=25)
    with pytest.raises(TypeError, match="search must be SearchSettings or a mapping, got 5"):
        SearchTrial(space="nasbench201", dataset="tiny", method="darts", search=5)  # type: ignore[arg-type]


def test_seeds_of_purposes_differ() -> None:
    purposes = ("split", "init", "alphas", "train batches", "val batches", "method", "network")
    assert (
        len({purpose_seed(0, p) for p in purposes} | {purpose_seed(1, p) for p in purposes}) == 14
    )
