"""Batches, splits and augmentation against slow and plain versions of themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainables.augment import Augmentation, crop_and_flip, cut_out
from trainables.errors import DataError, StateError
from trainables.images import (
    Batches,
    ImageSet,
    channel_statistics,
    check_labels,
    choose_augmentation,
    full_pass,
    split_train_val,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_set(num_images: int = 20, channels: int = 3, height: int = 6, width: int = 5) -> ImageSet:
    """Images whose label is their own number, so that a batch says which images it holds."""
    pixels = torch.randint(
        0, 256, (num_images, channels, height, width), dtype=torch.uint8, generator=generator(7)
    )
    mean, std = channel_statistics(pixels)
    return ImageSet(pixels, torch.arange(num_images), num_images, mean, std)


def test_every_image_comes_once_an_epoch_and_the_rest_is_left_out():
    batches = Batches(image_set(20), 6, generator=generator())
    assert len(batches) == 3
    epochs = [torch.cat([batches.next_batch()[1] for _ in range(3)]).tolist() for _ in range(20)]
    for labels in epochs:
        assert len(set(labels)) == 18
    assert len({tuple(labels) for labels in epochs}) == 20
    # Which two are left out is drawn anew: over 20 epochs every image appears.
    assert {label for labels in epochs for label in labels} == set(range(20))


def test_an_epoch_that_divides_evenly_leaves_nothing_out():
    batches = Batches(image_set(20), 5, generator=generator())
    for _ in range(3):
        labels = torch.cat([batches.next_batch()[1] for _ in range(len(batches))])
        assert sorted(labels.tolist()) == list(range(20))


def test_a_batch_is_the_normalised_image_of_its_label():
    images = image_set()
    got, labels = Batches(images, 4, generator=generator(), dtype=torch.float64).next_batch()
    for image, label in zip(got, labels.tolist(), strict=True):
        for channel in range(3):
            plain = images.images[label, channel].double() / 255
            plain = (plain - images.mean[channel]) / images.std[channel]
            torch.testing.assert_close(image[channel], plain, rtol=0, atol=1e-12)


def test_normalised_training_set_has_mean_zero_and_deviation_one():
    images = image_set(50)
    values = images.normalised(images.images, torch.float64)
    zeros, ones = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(values.mean((0, 2, 3)), zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close(values.std((0, 2, 3), correction=0), ones, rtol=0, atol=1e-12)


def test_channel_statistics_of_a_worked_example():
    # Values 0, 0, 255, 255 in [0, 1] are 0, 0, 1, 1: mean 1/2, deviation 1/2.
    # 51, 51, 51, 255 are 1/5, 1/5, 1/5, 1: mean 2/5, variance (3/25 + 1)/4 - 4/25 = 3/25.
    pixels = torch.tensor([[0, 0, 255, 255], [51, 51, 51, 255]], dtype=torch.uint8)
    mean, std = channel_statistics(pixels.view(1, 2, 2, 2))
    assert mean == pytest.approx((0.5, 0.4), abs=1e-15)
    assert std == pytest.approx((0.5, 3**0.5 / 5), abs=1e-15)


@settings(max_examples=30, deadline=None)
@given(padding=st.integers(1, 4), flip=st.booleans(), seed=st.integers(0, 2**31))
def test_crop_and_flip_is_a_window_of_the_padded_image(padding: int, flip: bool, seed: int):
    images = image_set(8, channels=2).images
    got = crop_and_flip(images, Augmentation(padding, flip), generator(seed))
    # The same draws, in the documented order: offsets (rows, columns), then flips.
    source = generator(seed)
    offsets = torch.randint(2 * padding + 1, (2, 8, 1), generator=source)[:, :, 0].tolist()
    flips = torch.randint(2, (8, 1), generator=source).flatten().tolist() if flip else [0] * 8
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    for index, image in enumerate(got):
        top, left = offsets[0][index], offsets[1][index]
        window = padded[index, :, top : top + 6, left : left + 5]
        assert torch.equal(image, window.flip(2) if flips[index] else window)


def test_crop_reaches_every_offset_and_flip_about_half():
    # One white pixel at (1, 2) of 5x5: after a crop with padding 1 it is at (2 - top, 3 - left),
    # mirrored at 4 minus that column.
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 1, 2] = 255
    count = 3600
    got = crop_and_flip(image.expand(count, 1, 5, 5), Augmentation(1, False), generator())
    places = got.flatten(1).argmax(1).bincount(minlength=25).view(5, 5)
    # Nine places, 400 of each expected, standard deviation sqrt(3600 / 9 * 8 / 9) = 19.
    assert places[0:3, 1:4].sum() == count
    assert (places[0:3, 1:4] - 400).abs().max() < 5 * 19
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 0, 0] = 255
    got = crop_and_flip(image.expand(count, 1, 5, 5), Augmentation(0, True), generator())
    # Binomial(3600, 1/2): standard deviation 30.
    assert abs(int((got[:, 0, 0, 4] == 255).sum()) - count / 2) < 5 * 30
    assert torch.all((got[:, 0, 0, 4] == 255) ^ (got[:, 0, 0, 0] == 255))


def test_padding_is_black_before_normalisation():
    images = ImageSet(
        torch.full((4, 1, 4, 4), 255, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.int64),
        1,
        (0.25,),
        (0.5,),
    )
    batches = Batches(images, 4, generator=generator(), augmentation=Augmentation(crop_padding=4))
    values = set()
    for _ in range(20):
        values |= set(batches.next_batch()[0].flatten().tolist())
    # White is (1 - 0.25) / 0.5 and black (0 - 0.25) / 0.5.
    assert values == {1.5, -0.5}


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_sets_one_square_to_zero(side: int):
    images = torch.ones(64, 3, 6, 5)
    got = cut_out(images, side, generator())
    source = generator()
    rows = torch.randint(6, (64, 1), generator=source).flatten().tolist()
    columns = torch.randint(5, (64, 1), generator=source).flatten().tolist()
    for index in range(64):
        top, left = rows[index] - side // 2, columns[index] - side // 2
        plain = torch.ones(3, 6, 5)
        plain[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0.0
        assert torch.equal(got[index], plain)
    assert images.min() == 1.0  # the caller's tensor is unchanged


def test_cutout_of_a_share_cuts_that_many_images_in_the_same_places():
    images = torch.ones(4000, 1, 4, 4)
    whole, some = cut_out(images, 2, generator()), cut_out(images, 2, generator(), 0.25)
    kept = some.flatten(1).min(1).values == 1
    # The standard error of a share of 0.75 over 4000 images is 0.007.
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(some[~kept], whole[~kept])
    assert torch.equal(cut_out(images, 2, generator(), 0.0), images)


def test_no_augmentation_draws_nothing():
    source = generator()
    before = source.get_state()
    images = image_set().images
    assert crop_and_flip(images, Augmentation(), source) is images
    values = images.float()
    assert cut_out(values, 0, source) is values
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("taken", range(8))
def test_batches_continue_bit_for_bit(taken: int):
    images, augmentation = image_set(20), Augmentation(2, True, 3)

    def new(seed: int) -> Batches:
        return Batches(images, 6, generator=generator(seed), augmentation=augmentation)

    straight = new(1)
    for _ in range(taken):
        straight.next_batch()
    state = straight.state_dict()
    expected = [straight.next_batch() for _ in range(7)]
    resumed = new(99)
    resumed.load_state_dict(state)
    for batch in expected:
        for got, want in zip(resumed.next_batch(), batch, strict=True):
            assert torch.equal(got, want)


def test_a_state_is_a_copy_and_loads_with_weights_only(tmp_path):
    batches = Batches(image_set(20), 6, generator=generator())
    batches.next_batch()
    path = tmp_path / "state.pt"
    torch.save(batches.state_dict(), path)
    loaded = torch.load(path, weights_only=True)
    state = batches.state_dict()
    for _ in range(5):
        batches.next_batch()
    assert torch.equal(loaded["permutation"], state["permutation"])
    assert loaded["position"] == state["position"] == 6


def test_a_state_of_other_data_is_refused():
    state = Batches(image_set(20), 6, generator=generator()).state_dict()
    with pytest.raises(StateError, match="num_images 20, here it is 21"):
        Batches(image_set(21), 6, generator=generator()).load_state_dict(state)
    with pytest.raises(StateError, match="batch_size 6, here it is 5"):
        Batches(image_set(20), 5, generator=generator()).load_state_dict(state)


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"got 21 for 20 images"):
        Batches(image_set(20), 21, generator=generator())
    assert len(Batches(image_set(20), 20, generator=generator())) == 1


def test_an_impossible_batch_size_is_refused():
    with pytest.raises(DataError, match="batch_size must be >= 1, got 0"):
        Batches(image_set(20), 0, generator=generator())


@settings(max_examples=50, deadline=None)
@given(num_images=st.integers(2, 500), share=st.floats(0.01, 0.99), seed=st.integers(0, 10**6))
def test_split_is_disjoint_complete_and_fixed_by_the_seed(num_images: int, share: float, seed: int):
    num_train = int(num_images * share + 1e-9)
    if num_train == 0:
        with pytest.raises(DataError, match="both must be >= 1"):
            split_train_val(num_images, share, seed)
        return
    train, val = split_train_val(num_images, share, seed)
    assert len(train) == num_train
    assert sorted(train.tolist() + val.tolist()) == list(range(num_images))
    again = split_train_val(num_images, share, seed)
    assert torch.equal(train, again[0])
    assert torch.equal(val, again[1])


def test_split_sizes_do_not_suffer_from_rounding():
    assert len(split_train_val(100, 1.0 - 0.9, 0)[0]) == 10
    assert len(split_train_val(1797, 0.5, 0)[0]) == 898


def test_split_differs_between_seeds_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (split_train_val(100, 0.5, seed)[0] for seed in (0, 1))
    assert not torch.equal(first, second)
    # Half of the images in common is what chance gives: 25 of 50, standard deviation 2.5.
    assert 10 < len(set(first.tolist()) & set(second.tolist())) < 40
    assert torch.equal(torch.random.get_rng_state(), before)


def test_full_pass_shows_every_image_once_in_order():
    images = image_set(20)
    parts = list(full_pass(images, 6))
    assert [len(labels) for _, labels in parts] == [6, 6, 6, 2]
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(20))
    whole = images.normalised(images.images, torch.float32)
    assert torch.equal(torch.cat([pixels for pixels, _ in parts]), whole)


def test_subset_keeps_image_and_label_together():
    images = image_set(20)
    index = torch.tensor([7, 3])
    part = images.subset(index)
    assert part.labels.tolist() == [7, 3]
    assert torch.equal(part.images, images.images[index])
    assert (part.num_classes, part.mean) == (images.num_classes, images.mean)


def test_augmentation_follows_the_setting():
    natural = image_set(4, height=32, width=32)
    natural = ImageSet(
        natural.images, natural.labels, 4, natural.mean, natural.std, crop_padding=3, flip=True
    )
    digits = image_set(4, channels=1, height=8, width=8)
    assert choose_augmentation(natural, "auto", 16) == Augmentation(3, True, 16)
    assert choose_augmentation(natural, "crop_flip", 0) == Augmentation(3, True, 0)
    assert choose_augmentation(natural, "none", 2) == Augmentation(0, False, 2)
    assert choose_augmentation(digits, "auto", 0) == Augmentation()
    assert choose_augmentation(digits, "crop_flip", 0) == Augmentation(1, True, 0)


def _refused(match: str, **changes: object) -> None:
    good = image_set(4)
    fields = {
        "images": good.images,
        "labels": good.labels,
        "num_classes": 4,
        "mean": good.mean,
        "std": good.std,
    }
    with pytest.raises(DataError, match=match):
        ImageSet(**{**fields, **changes})  # type: ignore[arg-type]


def test_unfit_tensors_are_refused():
    _refused(r"uint8 of shape \(N, C, H, W\), got torch.float32", images=torch.zeros(4, 3, 6, 5))
    _refused(r"got torch.uint8 of shape \(4, 6\)", images=torch.zeros(4, 6, dtype=torch.uint8))
    _refused(r"labels must be int64 of shape \(4,\)", labels=torch.arange(5))
    _refused("got torch.int32", labels=torch.arange(4, dtype=torch.int32))
    _refused("3 values, one per channel, got 1", mean=(0.5,))
    _refused("std must be > 0 in every channel", std=(0.1, 0.0, 0.1))


def test_labels_out_of_range_are_named_by_row():
    labels: Tensor = torch.tensor([0, 1, 5, 2, -1])
    with pytest.raises(DataError, match=r"a.parquet: .*\[0, 3\), got 5 in row 2 \(2 such rows\)"):
        check_labels(labels, 3, "a.parquet")
    check_labels(labels[:2], 3, "a.parquet")


@pytest.mark.parametrize("name", ["crop_padding", "cutout"])
def test_negative_augmentation_is_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} must be >= 0, got -1"):
        Augmentation(**{name: -1})
    with pytest.raises(ValueError, match=r"cutout_share must be in \[0, 1\], got 1.5"):
        Augmentation(cutout_share=1.5)
