"""RetrainTrial: bit-exact resume, one reading of the test split, and an effect of every setting."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.genotype import Genotype
from tests.trainables.test_datasets import encoded, pictures, write
from trainables.datasets import digits
from trainables.errors import DataError, StateError
from trainables.images import ImageSet
from trainables.retrain import RetrainTrial
from trainables.settings import RetrainSettings, field_names
from trainables.worst import WORST_LOSS

TEXTS = {
    "nasbench201": "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+"
    "|avg_pool_3x3~0|nor_conv_3x3~1|skip_connect~2|",
    "darts": "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 0), "
    "('max_pool_3x3', 2), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 2), "
    "('avg_pool_3x3', 1)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('skip_connect', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 3), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])",
}
SIZES = {"nasbench201": {"channels": 4, "cells": 1}, "darts": {"channels": 2, "cells": 3}}
LARGER = {"nasbench201": {"channels": 8}, "darts": {"channels": 4}}
TIMES = ("epoch_time_s", "peak_memory_bytes")
SMALL = {"epochs": 3, "batch_size": 48, "cutout": 2, "lr": 0.05}


def genotype(space: str) -> Genotype:
    config = plugins.make_config("spaces", space)[1]
    return plugins.load("spaces", space).build(config, space).parse(TEXTS[space])


def small_digits(images: ImageSet, count: int) -> ImageSet:
    return images.subset(torch.arange(count))


@pytest.fixture(autouse=True)
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Use 150 training and 100 test digits; gives the list of splits that were loaded."""
    loaded: list[str] = []
    original = digits.load

    def load(config: Any, split: str) -> ImageSet:
        loaded.append(split)
        return small_digits(original(config, split), 150 if split == "train" else 100)

    monkeypatch.setattr(digits, "load", load)
    return loaded


def trial(space: str = "nasbench201", **changes: Any) -> RetrainTrial:
    arguments = {
        key: changes.pop(key)
        for key in ("seed", "on_test_read", "dataset", "device", "genotype")
        if key in changes
    }
    retrain = {**SMALL, **SIZES[space], **changes}
    given = {"genotype": genotype(space), "dataset": "digits", **arguments}
    return RetrainTrial(space=space, retrain=retrain, **given)


def outcome(finished: RetrainTrial) -> Any:
    """All of a curve that does not depend on the clock, and the weights, as comparable values."""
    curve = [
        {key: value for key, value in entry.items() if key not in TIMES} for entry in finished.curve
    ]
    return curve, [value.double().sum().item() for value in finished.network.state_dict().values()]


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_it_learns_digits_in_both_spaces(space: str):
    one = trial(space, epochs=8, drop_path=0.0, cutout=0, batch_size=25, **LARGER[space])
    last = one.run()
    # Chance is 0.1 accuracy and log 10 = 2.3 nats.
    assert last["test_accuracy"] > 0.5
    assert last["test_loss"] < 1.5
    assert [entry["epoch"] for entry in one.curve] == list(range(1, 9))
    assert one.finished
    assert not one.diverged
    json.dumps(one.curve, allow_nan=False)


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_resume_at_every_epoch_is_bit_exact(space: str, tmp_path: Path):
    settings = {"val_share": 0.2, "augment": "crop_flip", "drop_path": 0.4}
    straight = trial(space, **settings)
    straight.save_state(tmp_path / "0.pt")
    while not straight.finished:
        straight.run_epoch()
        straight.save_state(tmp_path / f"{straight.epoch}.pt")
    for stop in range(4):
        resumed = trial(space, **settings)
        resumed.load_state(tmp_path / f"{stop}.pt")
        assert resumed.epoch == stop
        resumed.run()
        assert outcome(resumed) == outcome(straight)
        for name, value in straight.network.state_dict().items():
            assert torch.equal(resumed.network.state_dict()[name], value)
        assert not resumed.resumed_elsewhere


# Not both: on feature maps of 1x1, torch's bfloat16 gradient of a depthwise convolution of stride 2
# is not the same twice on some CPUs.
@pytest.mark.parametrize("precision", [{"mixed_precision": True}, {"stem": "imagenet"}], ids=str)
def test_resume_is_bit_exact_with_everything_that_changes_over_the_epochs(
    precision: dict[str, Any], tmp_path: Path
):
    settings = {
        **precision,
        "epochs": 4,
        "schedule": "linear",
        "warmup_epochs": 2,
        "cutout_ramp": True,
        "ema_decay": 0.8,
        "label_smoothing": 0.1,
        "val_share": 0.2,
        "drop_path": 0.4,
    }
    straight = trial("darts", **settings)
    while not straight.finished:
        straight.save_state(tmp_path / f"{straight.epoch}.pt")
        straight.run_epoch()
    final = straight.final_state()
    for stop in range(4):
        resumed = trial("darts", **settings)
        resumed.load_state(tmp_path / f"{stop}.pt")
        resumed.run()
        assert outcome(resumed) == outcome(straight)
        for kind in ("weights", "buffers"):
            for name, value in final[kind].items():
                assert torch.equal(resumed.final_state()[kind][name], value)


def test_a_state_from_before_later_settings_goes_on():
    later = ("schedule", "warmup_epochs", "stem", "cutout_ramp", "ema_decay", "mixed_precision")
    one = trial()
    one.run_epoch()
    state = one.state_dict()
    identity = json.loads(state["identity"])
    assert not set(later) & set(identity["retrain"])
    assert state["training"].pop("averaged") == {}
    resumed = trial()
    resumed.load_state_dict(state)
    one.run()
    resumed.run()
    assert outcome(resumed) == outcome(one)


def test_a_state_is_a_copy():
    one = trial()
    one.run_epoch()
    state = one.state_dict()
    one.run_epoch()
    resumed = trial()
    resumed.load_state_dict(state)
    resumed.run_epoch()
    assert outcome(resumed) == outcome(one)


def test_the_test_split_is_read_once_and_in_the_last_epoch(fewer_digits: list[str]):
    records: list[Any] = []
    one = trial(on_test_read=lambda record: records.append((dict(record), list(fewer_digits))))
    for epoch in (1, 2):
        entry = one.run_epoch()
        assert not any(key.startswith("test") for key in entry), epoch
    assert "test" not in fewer_digits
    assert one.test_reads == 0
    entry = one.run_epoch()
    assert fewer_digits.count("test") == 1
    assert one.test_reads == 1
    assert {"test_accuracy", "test_loss", "params", "macs"} <= set(entry)
    [(record, loaded_before)] = records
    # The record is made before the reading, so that a crash in between cannot hide it.
    assert "test" not in loaded_before
    assert record["genotype_hash"] == one.genotype.hash
    assert (record["epoch"], record["seed"], record["dataset"]) == (3, 0, {"name": "digits"})
    json.dumps(record)


def test_a_resume_after_the_last_epoch_does_not_read_again(fewer_digits: list[str]):
    one = trial()
    last = one.run()
    resumed = trial(on_test_read=lambda record: pytest.fail("read again"))
    fewer_digits.clear()
    resumed.load_state_dict(one.state_dict())
    assert resumed.finished
    assert resumed.run()["test_accuracy"] == last["test_accuracy"]
    assert resumed.test_reads == 1
    assert fewer_digits == []
    with pytest.raises(StateError, match="finished after 3 epochs"):
        resumed.run_epoch()


def test_the_test_result_is_that_of_the_final_network_on_every_image():
    one = trial()
    last = one.run()
    images = digits.load(digits.Config(), "test")
    one.network.eval()
    with torch.no_grad():
        logits, auxiliary = one.network(images.normalised(images.images, torch.float32))
    assert auxiliary is None
    # 100 images in batches of 48: the last one, of 4, counts by its size.
    assert last["test_loss"] == pytest.approx(F.cross_entropy(logits, images.labels).item())
    right = (logits.argmax(1) == images.labels).double().mean().item()
    assert last["test_accuracy"] == pytest.approx(right)


def test_params_and_macs_are_those_of_the_network():
    one = trial("darts", auxiliary_weight=0.0)
    entry = one.run()
    assert entry["params"] == sum(p.numel() for p in one.network.parameters())
    with_head = trial("darts", auxiliary_weight=0.4)
    assert with_head.cost() == {"params": entry["params"], "macs": entry["macs"]}
    assert sum(p.numel() for p in with_head.network.parameters()) > entry["params"]
    assert entry["macs"] > 0


def test_the_seed_decides_everything_and_the_global_generator_nothing():
    first = trial(drop_path=0.5)
    first.run()
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    second = trial(drop_path=0.5)
    second.run()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert outcome(second) == outcome(first)
    other = trial(drop_path=0.5, seed=1)
    other.run()
    assert outcome(other) != outcome(first)


EFFECTS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 30,
    "lr": 0.02,
    "lr_min": 0.01,
    "schedule": "linear",
    "warmup_epochs": 2,
    "momentum": 0.5,
    "weight_decay": 0.1,
    "nesterov": True,
    "gradient_clip": 0.01,
    "channels": 4,
    "cells": 4,
    "stem": "imagenet",
    "auxiliary_weight": 0.0,
    "drop_path": 0.5,
    "label_smoothing": 0.2,
    "val_share": 0.3,
    "augment": "crop_flip",
    "cutout": 4,
    "cutout_ramp": True,
    "ema_decay": 0.9,
    "precision": "float64",
    "mixed_precision": True,
}


def test_the_table_of_effects_names_every_setting():
    # `threads` has its own test below: its effect is not one on the curve. test_compiled.py and
    # test_team.py have those of the others.
    elsewhere = {"threads", "compile", "workers", "shared_batch_norm"}
    assert set(EFFECTS) | elsewhere == set(field_names(RetrainSettings))


@pytest.fixture(scope="module")
def plain_outcome() -> list[Any]:
    return []


@pytest.mark.parametrize("name", EFFECTS)
def test_every_setting_changes_the_outcome(name: str, plain_outcome: list[Any]):
    # The auxiliary head and 3 cells: the DARTS space. Its cells hold paths that can be dropped.
    # Three epochs: after half of them a cosine and a line are at the same place. Two steps in each.
    steps = {"epochs": 3, "batch_size": 75}
    if not plain_outcome:
        plain = trial("darts", **steps)
        plain.run()
        plain_outcome.append(outcome(plain))
    changed = trial("darts", **{**steps, name: EFFECTS[name]})
    changed.run()
    curve, weights = outcome(changed)
    # An average changes what is measured, and nothing of the training.
    assert (weights == plain_outcome[0][1]) == (name == "ema_decay")
    assert curve != plain_outcome[0][0]


def test_threads_are_set_by_the_trial(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    trial(threads=3)
    assert asked == [3]


def test_no_gradient_is_clipped_where_clipping_is_off():
    off, large = (trial(gradient_clip=clip, epochs=1) for clip in (0.0, 1e9))
    off.run()
    large.run()
    assert outcome(off) == outcome(large)


def test_one_step_is_sgd_by_hand():
    # One epoch of one batch: 150 images in float64 with momentum's first step, w - lr (g + wd w).
    settings = {"epochs": 1, "batch_size": 150, "cutout": 0, "precision": "float64"}
    one = trial(**settings, lr=0.1, weight_decay=0.01, gradient_clip=0.0, label_smoothing=0.1)
    before = {name: w.detach().clone() for name, w in one.network.named_parameters()}
    by_hand = trial(**settings).network.train()
    images = digits.load(digits.Config(), "train")
    logits, _ = by_hand(images.normalised(images.images, torch.float64))
    # Smoothing mixes the true class with the uniform distribution: 0.9 CE + 0.1 mean of -log p.
    log_p = logits.log_softmax(1)
    true = log_p.gather(1, images.labels[:, None]).mean()
    loss = -(0.9 * true + 0.1 * log_p.mean())
    loss.backward()
    entry = one.run()
    assert entry["train_loss"] == pytest.approx(loss.item(), abs=1e-12)
    for name, weight in by_hand.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is not None
        expected = before[name] - 0.1 * (weight.grad + 0.01 * before[name])
        got = dict(one.network.named_parameters())[name]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_auxiliary_loss_is_weighted():
    settings = {"epochs": 1, "batch_size": 150, "cutout": 0, "precision": "float64"}
    one = trial("darts", **settings, auxiliary_weight=0.3, weight_decay=0.0, gradient_clip=0.0)
    by_hand = trial("darts", **settings, auxiliary_weight=0.3).network.train()
    images = digits.load(digits.Config(), "train")
    logits, auxiliary = by_hand(images.normalised(images.images, torch.float64))
    main = F.cross_entropy(logits, images.labels)
    (main + 0.3 * F.cross_entropy(auxiliary, images.labels)).backward()
    expected = {n: w.detach() - 0.05 * w.grad for n, w in by_hand.named_parameters()}
    entry = one.run()
    # The reported loss is that of the main head alone.
    assert entry["train_loss"] == pytest.approx(main.item(), abs=1e-12)
    for name, weight in one.network.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=0, atol=1e-10)


def test_schedules():
    one = trial(epochs=4, lr=0.3, lr_min=0.1, drop_path=0.4)
    one.run()
    # Cosine from 0.3 to 0.1 over four epochs: 0.2 + 0.1 cos(pi e / 4); drop path 0.4 e / 4.
    rates = [0.2 + 0.1 * math.cos(math.pi * epoch / 4) for epoch in range(4)]
    assert [entry["lr"] for entry in one.curve] == pytest.approx(rates)
    assert [entry["drop_path"] for entry in one.curve] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_line_with_warmup():
    one = trial(epochs=4, lr=0.4, lr_min=0.2, schedule="linear", warmup_epochs=2)
    one.run()
    # The line is 0.4, 0.35, 0.3, 0.25; the first of two warm-up epochs has half its rate.
    assert [entry["lr"] for entry in one.curve] == pytest.approx([0.2, 0.35, 0.3, 0.25])


def test_the_share_of_images_that_are_cut_grows_to_all_of_them():
    one = trial(epochs=4, cutout_ramp=True)
    shares = []
    while not one.finished:
        one.run_epoch()
        shares.append(one._train.augmentation.cutout_share)
    assert shares == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    plain = trial(epochs=2)
    plain.run()
    assert plain._train.augmentation.cutout_share == 1.0


def test_accuracies_are_those_of_the_averaged_network():
    # Three steps of 48 images: average = 0.75 average + 0.25 weights after each, from the start.
    one = trial(epochs=1, ema_decay=0.75, batch_size=48, val_share=0.02)
    plain = trial(epochs=1, batch_size=48, val_share=0.02)
    average = {name: value.clone() for name, value in plain.network.state_dict().items()}
    for _ in range(3):
        plain._training._set_lr(plain.lr)
        plain._training._step(0.0)
        for name, value in plain.network.state_dict().items():
            average[name] = 0.75 * average[name] + 0.25 * value
    entry = one.run()
    state = one.final_state()
    assert state["weights"].keys() | state["buffers"].keys() == average.keys()
    for name, value in (state["weights"] | state["buffers"]).items():
        torch.testing.assert_close(value, average[name], rtol=0, atol=1e-6)
    # Nothing of it reaches the training itself.
    for name, value in plain.network.state_dict().items():
        assert torch.equal(one.network.state_dict()[name], value)
    plain.network.load_state_dict(average)
    loss, accuracy = plain._training.evaluate(plain._val)
    assert entry["val_accuracy"] == accuracy
    assert entry["val_loss"] == pytest.approx(loss, abs=1e-5)


def test_mixed_precision_keeps_weights_in_float32_and_runs_in_bfloat16():
    one = trial(epochs=1, mixed_precision=True)
    seen = []
    convolution = next(m for m in one.network.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    one.run()
    # Training steps, and the test split in three batches; the cost is counted elsewhere.
    assert seen == [torch.bfloat16] * (3 + 3)
    assert {weight.dtype for weight in one.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_epochs": 4}, r"warmup_epochs must be <= epochs \(3\), got 4"),
        ({"cutout_ramp": True, "cutout": 0}, "cutout_ramp has no effect where cutout is 0"),
        ({"mixed_precision": True, "precision": "float64"}, "mixed_precision needs precision"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"schedule": "step"}, "schedule must be one of cosine, linear"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(PluginSettingsError, match=message):
        trial(**change)


def test_a_stem_that_the_space_does_not_have_is_refused():
    with pytest.raises(SpaceError, match="have no stem for ImageNet; set stem to cifar"):
        trial("nasbench201", stem="imagenet")


def test_held_out_images_are_never_trained_on():
    one = trial(val_share=0.25)
    trained = {bytes(image.numpy()) for image in one._train.images.images}
    held_out = {bytes(image.numpy()) for image in one._val.images}
    assert (len(one._train.images), len(one._val)) == (112, 38)
    assert not trained & held_out
    entry = one.run_epoch()
    loss, accuracy = one._training.evaluate(one._val)
    assert (entry["val_loss"], entry["val_accuracy"]) == (loss, accuracy)
    assert "val_accuracy" not in trial().run_epoch()


def test_a_space_without_auxiliary_head_says_so():
    one = trial("nasbench201", auxiliary_weight=0.4)
    assert one.notes == [
        "The networks of space 'nasbench201' have no auxiliary head: auxiliary_weight 0.4 has no "
        "effect."
    ]
    assert trial("nasbench201", auxiliary_weight=0.0).notes == []
    assert trial("darts", auxiliary_weight=0.4).notes == []


def test_a_diverged_trial_keeps_the_last_good_epoch_and_reads_no_test(fewer_digits: list[str]):
    one = trial(lr=0.05, epochs=2, val_share=0.2)
    good = one.run_epoch()
    weights = {name: value.clone() for name, value in one.network.state_dict().items()}
    one._training.settings = dataclasses.replace(one.settings, gradient_clip=0.0)
    one.settings = dataclasses.replace(one.settings, lr=1e30)
    entry = one.run_epoch()
    assert one.diverged
    assert one.finished
    assert (entry["diverged"], good["diverged"]) == (1, 0)
    assert (entry["train_loss"], entry["val_accuracy"]) == (WORST_LOSS, 0.0)
    assert one.epoch == 1
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, weights[name])
    assert "test" not in fewer_digits
    json.dumps(one.curve, allow_nan=False)


def test_weights_that_are_not_finite_at_the_end_are_a_divergence(fewer_digits: list[str]):
    one = trial(epochs=1, batch_size=150)
    with torch.no_grad():
        # Not seen by the loss of this, the last, step: only by the check of the statistics.
        name = next(n for n, _ in one.network.named_buffers() if n.endswith("running_var"))
        one.network.get_buffer(name).fill_(math.inf)
    one.run()
    assert one.diverged
    assert "test" not in fewer_digits


def test_a_state_under_another_fingerprint_goes_on_and_is_marked():
    one = trial()
    one.run_epoch()
    state = one.state_dict()
    state["fingerprint"] = {**state["fingerprint"], "machine": "another"}
    resumed = trial()
    resumed.load_state_dict(state)
    assert resumed.resumed_elsewhere
    resumed.run()
    again = trial()
    again.load_state_dict(resumed.state_dict())
    assert again.resumed_elsewhere


@pytest.mark.parametrize("change", [{"lr": 0.01}, {"seed": 1}, {"epochs": 4}, {"batch_size": 30}])
def test_a_state_of_another_trial_is_refused(change: dict[str, Any]):
    state = trial().state_dict()
    with pytest.raises(StateError, match="another retraining"):
        trial(**change).load_state_dict(state)


def test_a_state_of_another_kind_is_refused(tmp_path: Path):
    with pytest.raises(StateError, match="format 1, got kind 'search' of format 1"):
        trial().load_state_dict({"kind": "search", "format": 1})
    with pytest.raises(StateError, match="of format 2"):
        trial().load_state_dict({"kind": "retrain", "format": 2})
    (tmp_path / "a.pt").write_bytes(b"no state")
    with pytest.raises(StateError, match=r"a\.pt"):
        trial().load_state(tmp_path / "a.pt")


def test_final_state_holds_the_network_and_loads_with_weights_only(tmp_path: Path):
    one = trial()
    one.run()
    torch.save(one.final_state(), tmp_path / "final.pt")
    final = torch.load(tmp_path / "final.pt", weights_only=True)
    rebuilt = trial().network
    rebuilt.load_state_dict({**final["weights"], **final["buffers"]})
    images = digits.load(digits.Config(), "test")
    pixels = images.normalised(images.images, torch.float32)
    assert torch.equal(rebuilt.eval()(pixels)[0], one.network.eval()(pixels)[0])
    assert Genotype.from_json(json.loads(final["genotype"])) == one.genotype
    assert json.loads(final["settings"])["retrain"]["lr"] == 0.05


def test_timing_steps_changes_nothing():
    timed, plain = trial(drop_path=0.5), trial(drop_path=0.5)
    timed.run_epoch()
    assert timed.time_steps(2) > 0
    timed.run()
    plain.run()
    assert outcome(timed) == outcome(plain)
    assert timed.steps_per_epoch == 150 // 48


def test_a_missing_test_split_is_told_at_the_start(tmp_path: Path):
    train = write(tmp_path / "a.parquet", encoded(pictures(20, 8, 8)), [0, 1] * 10)
    with pytest.raises(DataError, match=r"has no test split.*dataset.test"):
        trial(dataset={"name": "parquet", "train": train})
    gone = {"name": "parquet", "train": train, "test": str(tmp_path / "gone.parquet")}
    with pytest.raises(DataError, match=r"gone\.parquet does not exist"):
        trial(dataset=gone)


def test_it_runs_on_odd_sized_colour_images_of_a_parquet_file(tmp_path: Path):
    pixels = pictures(21, 11, 9, 3)
    train = write(tmp_path / "a.parquet", encoded(pixels), [0, 1, 2] * 7)
    test = write(tmp_path / "b.parquet", encoded(pixels[:5]), [0, 1, 2, 0, 1])
    dataset = {"name": "parquet", "train": train, "test": test}
    for space in ("nasbench201", "darts"):
        entry = trial(space, dataset=dataset, batch_size=8, epochs=1).run()
        # Accuracies are fifths: five test images, in batches of 8.
        assert entry["test_accuracy"] * 5 == pytest.approx(round(entry["test_accuracy"] * 5))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match="got 151 for 150 images"):
        trial(batch_size=151)
    with pytest.raises(DataError, match="got 120 for 112 images"):
        trial(batch_size=120, val_share=0.25)


def test_wrong_settings_and_genotypes_are_refused():
    with pytest.raises(PluginSettingsError, match=r"retrain.epoch is not a setting.*'epochs'"):
        trial(epoch=3)
    with pytest.raises(SpaceError, match="nasbench201"):
        trial("darts", genotype=genotype("nasbench201"))


def test_settings_may_be_given_whole():
    settings = RetrainSettings(**{**SMALL, **SIZES["nasbench201"]})
    config = plugins.make_config("spaces", "nasbench201")[1]
    whole = RetrainTrial(
        genotype=genotype("nasbench201"),
        space=("nasbench201", config),
        dataset=("digits", digits.Config()),
        retrain=settings,
    )
    assert whole.settings is settings
    assert whole.run_epoch()["train_loss"] == trial().run_epoch()["train_loss"]
