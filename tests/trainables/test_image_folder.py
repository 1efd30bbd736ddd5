"""Folders of PNG and JPEG files: order, classes, sizes, digest, and what is said of unfit ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainables.test_datasets import pictures, png
from trainables.datasets import image_folder
from trainables.errors import DataError


def put(path: Path, pixels: np.ndarray, format: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels, format))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three training images each, one test image; colour, 33 high, 34 wide."""
    colours = pictures(7, 33, 34, 3)
    for index, path in enumerate(("dog/b.png", "dog/a.png", "dog/c.png", "cat/2.png", "cat/1.PNG")):
        put(tmp_path / "train" / path, colours[index])
    put(tmp_path / "train" / "cat" / "3.jpg", colours[5], "JPEG")
    put(tmp_path / "test" / "dog" / "x.png", colours[6])
    return tmp_path


def config_of(root: Path, size: int | None = None) -> image_folder.Config:
    return image_folder.Config(root=str(root), size=size)


def test_images_come_by_class_and_name(root: Path):
    train, test = (image_folder.load(config_of(root), split) for split in ("train", "test"))
    colours = pictures(7, 33, 34, 3).transpose(0, 3, 1, 2)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [1]
    assert np.array_equal(train.images[[0, 1, 3, 4, 5]].numpy(), colours[[4, 3, 1, 0, 2]])
    assert np.array_equal(test.images.numpy(), colours[6:])
    with Image.open(root / "train" / "cat" / "3.jpg") as jpeg:
        assert np.array_equal(train.images[2].numpy(), np.asarray(jpeg).transpose(2, 0, 1))
    assert (train.crop_padding, train.flip) == (4, True)
    in_unit = train.images.double() / 255
    assert train.mean == test.mean == pytest.approx(in_unit.mean((0, 2, 3)).tolist(), abs=1e-12)


def test_order_and_classes_are_torchvisions(root: Path):
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(str(root / "train"))
    ours = image_folder.load(config_of(root), "train")
    assert tuple(theirs.classes) == ours.classes
    assert theirs.targets == ours.labels.tolist()
    for (image, _), pixels in zip(theirs, ours.images, strict=True):
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), pixels.numpy())


def test_size_keeps_the_middle_of_the_longer_side(tmp_path: Path):
    # Left third black, middle third grey, right third white: the middle alone is kept.
    wide = np.repeat(np.array([0, 100, 255], np.uint8), 12)[None].repeat(12, axis=0)
    put(tmp_path / "train" / "a" / "wide.png", wide)
    put(tmp_path / "train" / "b" / "high.png", wide.T)
    put(tmp_path / "train" / "b" / "plain.png", np.full((4, 4), 7, np.uint8))
    images = image_folder.load(config_of(tmp_path, 6), "train").images
    assert images.shape == (3, 1, 6, 6)
    # Half the side: a filter of two pixels reaches over the cut in the outermost column or row.
    assert images[0, 0, :, 1:-1].unique().tolist() == [100]
    assert torch.equal(images[1, 0], images[0, 0].T)
    assert abs(int(images[0, 0, 0, 0]) - 100) < 50
    assert images[2].unique().tolist() == [7]


def test_size_averages_what_becomes_smaller(tmp_path: Path):
    # Columns of 0 and 200 in turn: without antialiasing only one of the two would be seen.
    stripes = np.tile(np.array([0, 200], np.uint8), (32, 16))
    put(tmp_path / "train" / "a" / "stripes.png", stripes)
    put(tmp_path / "train" / "b" / "black.png", np.zeros((8, 8), np.uint8))
    striped = image_folder.load(config_of(tmp_path, 8), "train").images[0, 0, :, 1:-1]
    assert striped.double().mean().item() == pytest.approx(100, abs=2)
    assert striped.double().std().item() < 10


def test_mixed_sizes_ask_for_a_size(root: Path):
    put(root / "train" / "cat" / "4.png", pictures(1, 40, 40, 3)[0])
    with pytest.raises(DataError, match=r"one size, got 33x34, 40x40. Set dataset\.size"):
        image_folder.load(config_of(root), "train")
    assert image_folder.load(config_of(root, 32), "train").images.shape == (7, 3, 32, 32)
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        config_of(root, 0)


def test_grey_among_colours_becomes_colour_in_either_split(root: Path):
    grey = pictures(1, 33, 34, seed=1)[0]
    put(root / "train" / "cat" / "0.png", grey)
    shutil.rmtree(root / "test")
    put(root / "test" / "cat" / "0.png", grey)
    for split in ("train", "test"):
        images = image_folder.load(config_of(root), split).images
        assert np.array_equal(images[0].numpy(), np.stack([grey] * 3))


def test_palette_and_alpha_are_read_as_colours(tmp_path: Path):
    colour = np.zeros((5, 5, 3), np.uint8)
    colour[:2] = (10, 20, 30)
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    picture = Image.fromarray(colour)
    picture.quantize(2).save(folder / "0.png")
    picture.convert("RGBA").save(folder / "1.png")
    with Image.open(folder / "0.png") as stored:
        assert stored.mode == "P"
    images = image_folder.load(config_of(tmp_path), "train").images
    for image in images:
        assert np.array_equal(image.numpy(), colour.transpose(2, 0, 1))


def test_digest_is_of_content_and_size(root: Path, tmp_path_factory: pytest.TempPathFactory):
    digest = image_folder.digest(config_of(root))
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(root, copy)
    (copy / "train" / "cat" / ".DS_Store").write_bytes(b"hidden")
    (copy / "train" / "dog" / "b.png").rename(copy / "train" / "dog" / "b2.png")
    assert image_folder.digest(config_of(copy)) == digest
    assert image_folder.digest(config_of(copy, 32)) != digest
    seen = {digest}
    # The same images in another order; then, in that order, another class, another split, no test.
    (copy / "train" / "dog" / "b2.png").rename(copy / "train" / "dog" / "0.png")
    seen.add(image_folder.digest(config_of(copy)))
    (copy / "train" / "dog" / "0.png").rename(copy / "train" / "cat" / "z.png")
    seen.add(image_folder.digest(config_of(copy)))
    (copy / "train" / "dog" / "c.png").rename(copy / "test" / "dog" / "a.png")
    seen.add(image_folder.digest(config_of(copy)))
    shutil.rmtree(copy / "test")
    seen.add(image_folder.digest(config_of(copy)))
    assert len(seen) == 5


def test_replaced_file_is_read_again(root: Path):
    first = image_folder.load(config_of(root), "train")
    digest = image_folder.digest(config_of(root))
    assert image_folder.load(config_of(root), "train") is first
    path = root / "train" / "cat" / "1.PNG"
    put(path, pictures(1, 33, 34, 3, seed=5)[0])
    os.utime(path, ns=(1, 1))
    assert not torch.equal(image_folder.load(config_of(root), "train").images, first.images)
    assert image_folder.digest(config_of(root)) != digest


def test_without_a_test_folder_there_is_no_test_split(root: Path):
    assert image_folder.splits(config_of(root)) == ("train", "test")
    shutil.rmtree(root / "test")
    assert image_folder.splits(config_of(root)) == ("train",)
    with pytest.raises(DataError, match=r"the folder \S+/test does not exist. Lay the images out"):
        image_folder.load(config_of(root), "test")


def _no_train(root: Path) -> None:
    (root / "train").rename(root / "training")


def _no_classes(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def _loose_file(root: Path) -> None:
    put(root / "train" / "loose.png", pictures(1, 33, 34, 3)[0])


def _empty_class(root: Path) -> None:
    (root / "train" / "bird").mkdir()


def _other_ending(root: Path) -> None:
    (root / "train" / "cat" / "notes.txt").write_text("cats")


def _nested(root: Path) -> None:
    put(root / "train" / "cat" / "black" / "0.png", pictures(1, 33, 34, 3)[0])


def _broken(root: Path) -> None:
    path = root / "train" / "dog" / "c.png"
    path.write_bytes(path.read_bytes()[:-40])


def _deep(root: Path) -> None:
    put(root / "train" / "dog" / "c.png", np.full((33, 34), 40000, np.uint16))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_no_train, r"/train does not exist\. Lay the images out as root/train/CLASS/"),
        (_no_classes, "train holds no images"),
        (_loose_file, r"loose\.png lies outside a class"),
        (_empty_class, "bird holds no images. Fill the class"),
        (_other_ending, r"notes\.txt is no \.png, \.jpg or \.jpeg file. Convert"),
        (_nested, r"cat/black is no \.png"),
        (_broken, r"dog/c\.png is no readable PNG or JPEG image"),
        (_deep, r"dog/c\.png: images of mode I;16 are not read"),
    ],
)
def test_unfit_folder_is_explained(root: Path, damage: Callable[[Path], None], match: str):
    damage(root)
    with pytest.raises(DataError, match=match):
        image_folder.load(config_of(root), "train")


def test_test_split_must_fit_the_training_split(root: Path):
    put(root / "test" / "bird" / "0.png", pictures(1, 33, 34, 3)[0])
    with pytest.raises(DataError, match=r"the class 'bird', and train does not: it has cat, dog"):
        image_folder.load(config_of(root), "test")
    with pytest.raises(DataError, match="the class 'bird'"):
        image_folder.digest(config_of(root))  # before a search, and not after a retraining
    shutil.rmtree(root / "test")
    put(root / "test" / "cat" / "0.png", pictures(1, 40, 40, 3)[0])
    with pytest.raises(DataError, match=r"\(3, 33, 34\) of the training images, got \(3, 40, 40\)"):
        image_folder.load(config_of(root), "test")
    assert image_folder.load(config_of(root, 32), "test").images.shape == (1, 3, 32, 32)
