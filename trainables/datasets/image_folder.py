"""Your own PNG and JPEG files, in the folders root/train/CLASS and root/test/CLASS."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainables.images import ImageSet

SOURCE = "https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html"

_ENDINGS = (".png", ".jpg", ".jpeg")
_LAYOUT = "root/train/CLASS/FILE.png (or .jpg) and root/test/CLASS/FILE.png"


@dataclass(frozen=True)
class Config:
    """Where the images are and how large they become.

    Attributes:
        root: Folder that holds `train` and, for retraining, `test`, each with one folder per class.
        size: Side of the square that every image becomes, in pixels: the shorter side is resized
            to it (bilinear, antialiased), the middle of the longer one kept. None takes the images
            as they are; they must all have one size then.
    """

    root: str
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be >= 1, got {self.size!r}.")


@dataclass(frozen=True)
class _Split:
    """The files of a split in the order of their images, and of each the name of its class."""

    paths: tuple[Path, ...]
    classes: tuple[str, ...]


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return one split, all images of one size and 1 or 3 channels.

    Classes are the folders of `train`, sorted by name. Mean and deviation are those of the training
    images. Colour images of 32 pixels and more are cropped with a padding of 4 and mirrored in
    training, others are not.

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A folder is missing, or a file is damaged or unfit; it says which.
    """
    files, train = _files(config, split), _files(config, "train")
    return _load(config, split, files, train, (*_stamps(files), *_stamps(train)))


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of all files' bytes, classes and order, and the size.

    Neither the place of the root nor the names of the files matter, but for their order.

    Raises:
        DataError: A folder is missing or holds something else than images, or the test split has a
            class that the training split has not.
    """
    content = hashlib.sha256(f"size {config.size}".encode())
    classes = _classes(config)
    for split in splits(config):
        files = _files(config, split)
        _check_classes(config, split, files, classes)
        content.update(_digest(files, _stamps(files)))
    return content.hexdigest()[:16]


def splits(config: Config) -> tuple[str, ...]:
    """Return the splits that can be loaded."""
    return ("train", "test") if (_root(config) / "test").is_dir() else ("train",)


def _root(config: Config) -> Path:
    return Path(config.root).expanduser().absolute()


def _files(config: Config, split: str) -> _Split:
    """Return the files of a split, sorted by class and name; hidden files are not looked at."""
    if split not in ("train", "test"):
        raise DataError(f"image_folder has the splits train and test, got {split!r}.")
    folder = _root(config) / split
    if not folder.is_dir():
        raise DataError(
            f"dataset.root: the folder {folder} does not exist. Lay the images out as {_LAYOUT}."
        )
    paths: list[Path] = []
    classes: list[str] = []
    for of_class in _entries(folder):
        if not of_class.is_dir():
            raise DataError(f"{of_class} lies outside a class. Lay the images out as {_LAYOUT}.")
        found = _entries(of_class)
        for path in found:
            if path.suffix.lower() not in _ENDINGS or not path.is_file():
                raise DataError(
                    f"{path} is no .png, .jpg or .jpeg file. Convert it or take it out."
                )
        if not found and split == "train":
            raise DataError(f"{of_class} holds no images. Fill the class or take its folder out.")
        paths += found
        classes += [of_class.name] * len(found)
    if not paths:
        raise DataError(f"{folder} holds no images. Lay them out as {_LAYOUT}.")
    return _Split(tuple(paths), tuple(classes))


def _classes(config: Config) -> tuple[str, ...]:
    return tuple(sorted(set(_files(config, "train").classes)))


def _check_classes(config: Config, split: str, files: _Split, classes: tuple[str, ...]) -> None:
    unknown = [name for name in files.classes if name not in set(classes)]
    if unknown:
        raise DataError(
            f"{_root(config) / split} holds the class {unknown[0]!r}, and train does not: it has "
            f"{', '.join(classes[:10])}."
        )


def _entries(folder: Path) -> list[Path]:
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(visible, key=lambda path: path.name)


def _stamps(files: _Split) -> tuple[int, ...]:
    """Return what changes when a file is replaced, so that memoised results are not stale."""
    found = [path.stat() for path in files.paths]
    return tuple(value for status in found for value in (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=4)
def _digest(files: _Split, stamps: tuple[int, ...]) -> bytes:
    del stamps
    content = hashlib.sha256()
    for path, name in zip(files.paths, files.classes, strict=True):
        content.update(hashlib.sha256(name.encode()).digest())
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.digest()


@lru_cache(maxsize=4)
def _load(
    config: Config, split: str, files: _Split, train: _Split, stamps: tuple[int, ...]
) -> ImageSet:
    del stamps
    import torch

    from trainables.images import ImageSet, channel_statistics, usual_augmentation

    classes = tuple(sorted(set(train.classes)))
    _check_classes(config, split, files, classes)
    images = torch.from_numpy(_read(files, config.size, _root(config) / split))
    number = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in files.classes], dtype=torch.int64)
    if split == "train":
        mean, std = channel_statistics(images)
    else:
        of_train = load(config, "train")
        mean, std = of_train.mean, of_train.std
        if images.shape[1] == 1 and of_train.in_channels == 3:
            images = images.repeat(1, 3, 1, 1)
        if images.shape[1:] != of_train.images.shape[1:]:
            raise DataError(
                f"{_root(config) / split}: images must have the shape "
                f"{tuple(of_train.images.shape[1:])} of the training images, got "
                f"{tuple(images.shape[1:])}. Set dataset.size where sizes differ; convert the "
                "images where channels do."
            )
    crop_padding, flip = usual_augmentation(images)
    return ImageSet(
        images=images,
        labels=labels,
        num_classes=len(classes),
        mean=mean,
        std=std,
        classes=classes,
        crop_padding=crop_padding,
        flip=flip,
    )


def _read(files: _Split, size: int | None, where: Path) -> NDArray[np.uint8]:
    """Return uint8 of shape (N, C, H, W), C being 1 if all images are grey, else 3."""
    from trainables.image_columns import decoded_image, same_size, stacked

    images = [decoded_image(path.read_bytes(), str(path), size) for path in files.paths]
    remedy = "Set dataset.size, the side of the square that each becomes."
    same_size({image.shape for image in images}, str(where), remedy)
    return stacked(images)
