"""Images decoded as they are read: augmentation, order, resuming, and the dataset imagenet."""

from __future__ import annotations

import colorsys
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from spaces.core import plugins
from spaces.core.errors import SpaceError
from tests.trainables.official import write_imagenet
from tests.trainables.searches import differences
from trainables.datasets import imagenet
from trainables.errors import DataError, StateError
from trainables.photographs import (
    PhotoAugmentation,
    augmented,
    middle,
    random_boxes,
    recoloured,
    resized_crops,
    turned,
)
from trainables.retrain import RetrainTrial
from trainables.search import SearchTrial
from trainables.search_data import SearchData
from trainables.settings import SearchSettings
from trainables.streams import (
    ImageStream,
    StreamBatches,
    for_search,
    go_through,
    make_augmentation,
    stem_for_search,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_imagenet(tmp_path, count=8)  # 24 training images of 3 classes, and 12 of val
    return tmp_path


def config(root: Path, **changes: Any) -> imagenet.Config:
    return imagenet.Config(str(root), **{"size": 16, "workers": 0, **changes})


def batches(images: ImageStream, seed: int = 0, size: int = 5) -> StreamBatches:
    augmentation = make_augmentation(images, "auto", 0)
    assert isinstance(augmentation, PhotoAugmentation)
    return StreamBatches(images, size, generator=generator(seed), augmentation=augmentation)


# -- augmentation --------------------------------------------------------------------------------


def test_boxes_have_the_published_areas_and_ratios() -> None:
    side = 1000
    top, left, height, width = random_boxes(4000, side, generator())
    assert int(min(top.min(), left.min())) >= 0
    assert float((top + height).max()) <= side
    assert float((left + width).max()) <= side
    share = height * width / side**2
    assert float(share.min()) == pytest.approx(0.08, abs=0.01)
    assert float(share.max()) > 0.95
    ratio = width / height
    assert float(ratio.min()) == pytest.approx(3 / 4, abs=0.005)
    assert float(ratio.max()) == pytest.approx(4 / 3, abs=0.005)
    assert float(ratio.log().mean()) == pytest.approx(0, abs=0.02)
    # A box that is not the whole lies anywhere that it fits.
    inner = height < 500
    place = top[inner] / (side - height[inner])
    assert float(place.min()) < 0.02
    assert float(place.max()) > 0.98


def test_a_box_that_never_fits_is_the_whole_square() -> None:
    # Areas above 0.08 of one pixel: a side of sqrt(0.08 * 3 / 4) = 0.24 rounds to 0, others to 1.
    boxes = random_boxes(500, 1, generator())
    assert boxes[:2].unique().tolist() == [0.0]
    assert boxes[2:].unique().tolist() == [1.0]


def test_a_crop_is_the_box_resized_alone() -> None:
    images = torch.rand(3, 2, 20, 20, generator=generator(), dtype=torch.float64)
    boxes = torch.tensor([[0, 3, 10], [0, 5, 2], [20, 7, 10], [20, 12, 4]], dtype=torch.float64)
    got = resized_crops(images, boxes, 9)
    for index, (top, left, height, width) in enumerate(boxes.T.int().tolist()):
        part = images[index : index + 1, :, top : top + height, left : left + width]
        expected = functional.interpolate(part, (9, 9), mode="bilinear", align_corners=False)
        assert torch.allclose(got[index], expected[0], atol=1e-12)


def test_colours_change_as_their_definitions_say() -> None:
    pixels = torch.rand(1, 3, 2, 2, generator=generator(), dtype=torch.float64) * 0.4 + 0.3
    half = torch.tensor([[0.5], [0.5], [0.5], [0.5]], dtype=torch.float64)
    assert torch.allclose(recoloured(pixels, half), pixels)  # factors of 1 and no turn

    def changed(row: int, draw: float) -> torch.Tensor:
        draws = half.clone()
        draws[row] = draw
        return recoloured(pixels, draws)

    grey = 0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]
    # A draw of 1 is a factor of 1.4, one of 0 of 0.6.
    assert torch.allclose(changed(0, 1.0), (1.4 * pixels).clamp(max=1))
    assert torch.allclose(changed(1, 0.0), grey.mean() + 0.6 * (pixels - grey.mean()))
    assert torch.allclose(changed(2, 0.0), grey + 0.6 * (pixels - grey))
    assert torch.allclose(changed(3, 1.0), turned(pixels, torch.tensor([0.2])))


def test_hues_turn_as_in_the_standard_library() -> None:
    pixels = torch.rand(2, 3, 3, 3, generator=generator(), dtype=torch.float64)
    pixels[0, :, 0, 0] = 0.5  # grey has no hue
    pixels[0, :, 0, 1] = torch.tensor([0.9, 0.9, 0.1])
    turns = torch.tensor([0.15, -0.2], dtype=torch.float64)
    got = turned(pixels, turns)
    for image in range(2):
        for row in range(3):
            for column in range(3):
                h, s, v = colorsys.rgb_to_hsv(*pixels[image, :, row, column].tolist())
                expected = colorsys.hsv_to_rgb((h + float(turns[image])) % 1, s, v)
                assert got[image, :, row, column].tolist() == pytest.approx(expected)


def test_each_image_is_augmented_on_its_own() -> None:
    one = torch.randint(0, 256, (1, 3, 80, 80), generator=generator(), dtype=torch.uint8)
    pixels = one.expand(40, -1, -1, -1)
    plain = augmented(pixels, 16, PhotoAugmentation(), generator())
    assert torch.equal(plain, middle(pixels, 16).float())
    flipped = augmented(pixels, 16, PhotoAugmentation(flip=True), generator())
    mirrored = sum(bool(torch.equal(image, plain[0].flip(2))) for image in flipped)
    assert mirrored == 40 - sum(bool(torch.equal(image, plain[0])) for image in flipped)
    assert 10 < mirrored < 30
    for settings in (PhotoAugmentation(crop=True), PhotoAugmentation(colour=True)):
        got = augmented(pixels, 16, settings, generator())
        assert len({bytes(image.numpy()) for image in got}) == 40
        assert float(got.min()) >= 0
        assert float(got.max()) <= 255.001
        assert torch.equal(augmented(pixels, 16, settings, generator()), got)


def test_what_is_seen_without_augmentation_is_the_middle_after_a_resize_to_8_7() -> None:
    # As published: the shorter side to 256, of which the middle 224.
    assert config(Path("x"), size=224).size == 224
    picture = torch.zeros(1, 1, 256, 256)
    picture[..., 16:240, 16:240] = 1
    assert bool((middle(picture, 224) == 1).all())


# -- batches -------------------------------------------------------------------------------------


def test_every_round_shows_every_image_once(root: Path) -> None:
    images = imagenet.load(config(root), "train")
    stream = batches(images, size=6)
    assert len(stream) == 4
    orders = []
    for _ in range(2):
        taken = [next(iter(stream._order)) for _ in range(1)]
        seen: list[int] = []
        for _ in range(4):
            seen += next(iter(stream._order))
            stream.next_batch()
        assert taken[0] == seen[:6]
        assert sorted(seen) == list(range(24))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_labels_belong_to_their_images(root: Path) -> None:
    # Each class is bright in a channel of its own, and cropping or mirroring leaves it so.
    images = imagenet.load(config(root), "train")
    settings = PhotoAugmentation(crop=True, flip=True)
    stream = StreamBatches(images, 24, generator=generator(), augmentation=settings)
    got, labels = stream.next_batch()
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (images.std, images.mean))
    assert (got * std + mean).mean(dim=(2, 3)).argmax(1).tolist() == labels.tolist()
    assert sorted(labels.tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    assert labels.tolist() != sorted(labels.tolist())


def test_processes_that_decode_change_nothing(root: Path) -> None:
    here = imagenet.load(config(root), "train")
    away = imagenet.load(config(root, workers=2), "train")
    assert (here.workers, away.workers) == (0, 2)
    one, other = batches(here), batches(away)
    for _ in range(7):  # into the second round
        first, second = one.next_batch(), other.next_batch()
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    # The ones that decoded ahead of the state are let go, and nothing is lost or seen twice.
    resumed = batches(away, seed=9)
    resumed.load_state_dict(one.state_dict())
    assert torch.equal(resumed.next_batch()[0], other.next_batch()[0])


def test_a_state_goes_on_in_the_middle_of_a_round(root: Path) -> None:
    images = imagenet.load(config(root), "train")
    straight = batches(images)
    for taken in range(10):
        state = straight.state_dict()
        resumed = batches(images, seed=taken + 50)
        for _ in range(taken % 3):  # one that has taken other batches, or none
            resumed.next_batch()
        resumed.load_state_dict(state)
        expected, got = straight.next_batch(), resumed.next_batch()
        assert torch.equal(expected[0], got[0])
        assert torch.equal(expected[1], got[1])


def test_states_of_other_data_are_refused(root: Path) -> None:
    images = imagenet.load(config(root), "train")
    state = batches(images).state_dict()
    with pytest.raises(StateError, match="batch_size 5, here it is 6"):
        batches(images, size=6).load_state_dict(state)
    with pytest.raises(StateError, match="num_images 24, here it is 10"):
        batches(images.subset(torch.arange(10))).load_state_dict(state)
    with pytest.raises(DataError, match="got 25 for 24 images"):
        batches(images, size=25)


def test_a_full_pass_is_in_order_and_whole(root: Path) -> None:
    images = imagenet.load(config(root), "test")
    parts = list(go_through(images, 5, torch.float64))
    assert [len(part) for part, _ in parts] == [5, 5, 2]
    assert torch.cat([labels for _, labels in parts]).equal(images.labels)
    whole = torch.cat([part for part, _ in parts])
    ((alone, _),) = go_through(images.subset(torch.tensor([7])), 5, torch.float64)
    assert torch.equal(whole[7:8], alone)
    # (x / 255 - mean) / std of whole grey values.
    std, mean = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (images.std, images.mean)
    )
    values = (whole * std + mean) * 255
    assert torch.allclose(values, values.round(), atol=1e-9)


def test_a_damaged_file_is_named(root: Path) -> None:
    path = root / "imagenet" / "train" / "n00000001" / "train_2.JPEG"
    path.write_bytes(path.read_bytes()[:100])
    images = imagenet.load(config(root), "train")
    with pytest.raises(DataError, match=f"{re.escape(str(path))} is no readable PNG or JPEG"):
        batches(images, size=24).next_batch()
    path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        batches(images, size=24).next_batch()


# -- what a search sees --------------------------------------------------------------------------


def test_a_search_sees_a_share_of_every_class(root: Path) -> None:
    images = imagenet.load(config(root, search_fraction=0.5), "train")
    seen = for_search(images, 3)
    assert torch.bincount(seen.labels).tolist() == [4, 4, 4]
    assert isinstance(seen, ImageStream)
    assert for_search(images, 3).names == seen.names  # type: ignore[union-attr]
    assert for_search(images, 4).names != seen.names  # type: ignore[union-attr]
    assert for_search(seen, 3) is not images
    assert len(for_search(seen, 3)) == 12  # a share is taken once
    assert all(
        int(label) == int(name[8]) for name, label in zip(seen.names, seen.labels, strict=True)
    )


def test_the_published_shares_are_an_eighth_split_at_0_8() -> None:
    labels = torch.arange(10).repeat_interleave(80)
    names = tuple(f"{label}/{index}" for index, label in enumerate(labels.tolist()))
    ten = tuple(map(str, range(10)))
    images = ImageStream(
        "x", names, labels, 10, imagenet.MEAN, imagenet.STD, ten, 16, 18, search_fraction=0.125
    )
    settings = SearchSettings(train_share=0.8, batch_size=4)
    data = SearchData(images, settings, seed=0, device=torch.device("cpu"))
    weights, alphas = (set(part.images.names) for part in (data._train, data._val))  # type: ignore[union-attr]
    assert (len(weights), len(alphas)) == (80, 20)  # 10 % and 2.5 % of 800
    assert not weights & alphas


def test_colours_change_when_retraining_alone(root: Path) -> None:
    images = imagenet.load(config(root), "train")
    seen = for_search(images, 0)
    assert make_augmentation(images, "auto", 0) == PhotoAugmentation(True, True, True)
    assert make_augmentation(seen, "auto", 0) == PhotoAugmentation(True, True, False)
    assert make_augmentation(images, "crop_flip", 4) == PhotoAugmentation(True, True, False, 4)
    assert make_augmentation(images, "none", 0) == PhotoAugmentation()


# -- the dataset ---------------------------------------------------------------------------------


def test_the_official_folders_are_read(root: Path) -> None:
    train, test = (imagenet.load(config(root), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 12)
    assert train.classes == ("n00000000", "n00000001", "n00000002")
    assert train.names[8] == "n00000001/train_0.JPEG"
    assert test.folder.endswith("/val")
    inside = imagenet.load(config(root / "imagenet"), "train")
    assert inside.folder == train.folder
    assert train.decoded == round(16 * 256 / 224)


def test_the_digest_is_of_names_sizes_and_what_changes_results(root: Path, tmp_path: Path) -> None:
    digest = imagenet.digest(config(root))
    assert imagenet.digest(config(root / "imagenet", workers=3)) == digest
    others = [imagenet.digest(config(root, **change)) for change in (
        {"size": 17}, {"search_fraction": 0.5},
    )]  # fmt: skip
    folder = root / "imagenet" / "train" / "n00000000"
    (folder / "train_0.JPEG").rename(folder / "train_9.JPEG")
    others.append(imagenet.digest(config(root)))
    assert len({digest, *others}) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: (at / "train" / "list.txt").write_text("x"), "class, got the file list.txt"),
        (lambda at: (at / "train" / "n9").mkdir(), "n9 holds no image"),
        (lambda at: (at / "train" / "n00000000" / "a.txt").write_text("x"), "a.txt is no image"),
        (
            lambda at: (at / "val" / "n00000000").rename(at / "val" / "n7"),
            "n7, which train has not",
        ),
    ],
)
def test_wrong_folders_are_explained(root: Path, spoil: Any, message: str) -> None:
    spoil(root / "imagenet")
    with pytest.raises(DataError, match=re.escape(message)):
        imagenet.digest(config(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size must be >= 1"),
        ({"search_fraction": 0.0}, r"search_fraction must be in \(0, 1\]"),
        ({"search_fraction": 1.1}, r"search_fraction must be in \(0, 1\]"),
        ({"workers": -1}, "workers must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imagenet.Config(**change)


# -- trials --------------------------------------------------------------------------------------

SPACE = {"name": "nasbench201", "channels": 2, "cells_per_stage": 1}


def search(root: Path, space: Any = SPACE, **changes: Any) -> SearchTrial:
    dataset = {"name": "imagenet", "root": str(root), "size": 8, "workers": 0, **changes}
    return SearchTrial(
        space=space, dataset=dataset, method="darts", search={"epochs": 2, "batch_size": 5}
    )


def test_a_search_resumes_bit_for_bit_and_leaves_the_global_generator_alone(root: Path) -> None:
    before = torch.random.get_rng_state()
    straight, stopped, resumed = (search(root) for _ in range(3))
    straight.run()
    stopped.run_epoch()  # 2 of the 2 batches of weights, and 2 of those of alphas
    resumed.load_state_dict(stopped.state_dict())
    resumed.run()
    assert differences(straight, resumed) == []
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_retraining_resumes_bit_for_bit_and_reads_val_once(root: Path) -> None:
    genotype = search(root).genotype

    def trial() -> RetrainTrial:
        return RetrainTrial(
            genotype=genotype,
            space=SPACE,
            dataset={"name": "imagenet", "root": str(root), "size": 8, "workers": 0},
            retrain={
                **{"epochs": 2, "batch_size": 6, "channels": 4, "cells": 1, "cutout": 2},
                **{"auxiliary_weight": 0.0, "val_share": 0.25},
            },
        )

    straight, stopped, resumed = trial(), trial(), trial()
    straight.run()
    stopped.run_epoch()
    assert stopped.test_reads == 0
    resumed.load_state_dict(stopped.state_dict())
    resumed.run()
    assert resumed.test_reads == 1
    for name in ("train_loss", "val_loss", "test_loss", "test_accuracy"):
        assert resumed.curve[-1][name] == straight.curve[-1][name]
        assert math.isfinite(resumed.curve[-1][name])


def test_large_images_have_the_stem_of_imagenet_in_the_supernet(root: Path) -> None:
    small, large = (imagenet.load(config(root, size=size), "train") for size in (127, 128))
    assert (stem_for_search(small), stem_for_search(large)) == ("cifar", "imagenet")
    darts = {"name": "darts", "channels": 2, "cells": 3}
    trial = search(root, darts, size=128)
    supernet = trial._bilevel.supernet
    assert any(type(module).__name__ == "ImageNetStem" for module in supernet.modules())
    plain = search(root, darts)._bilevel.supernet
    assert not any(type(module).__name__ == "ImageNetStem" for module in plain.modules())
    assert math.isfinite(trial.run_epoch()["val_loss"])


def test_a_space_without_that_stem_keeps_its_own(root: Path) -> None:
    name, settings = plugins.make_config("spaces", {"name": "nasbench201", "channels": 2})
    space = plugins.load("spaces", name).build(settings, name)
    with pytest.raises(SpaceError, match="no stem for ImageNet"):
        space.build_supernet(3, 10, seed=0, stem="imagenet")


def test_a_subset_keeps_what_it_is_of(root: Path) -> None:
    images = imagenet.load(config(root), "train")
    part = images.subset(torch.tensor([9, 0]))
    assert part.names == (images.names[9], images.names[0])
    assert part.labels.tolist() == [1, 0]
    assert replace(part, names=images.names, labels=images.labels).size == images.size
