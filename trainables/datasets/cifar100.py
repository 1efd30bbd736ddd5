"""CIFAR-100 from an existing torchvision folder: 60,000 colour images of 32x32, 100 classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.official_files import DAMAGED, OfficialFiles, stamp, unpickled

if TYPE_CHECKING:
    from trainables.images import ImageSet

SOURCE = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"

FOLDER = "cifar-100-python"
FILES = {"train": ("train",), "test": ("test",)}
NUM_CLASSES = 100
# Of the 50,000 training images, as in the RobustDARTS authors' code (src/utils.py).
MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)
_OFFICIAL = OfficialFiles("cifar100", "CIFAR-100", FOLDER, FILES, others=("meta",))


@dataclass(frozen=True)
class Config:
    """Where the images are.

    Attributes:
        root: Folder that holds `cifar-100-python` (torchvision's `root`). Nothing is ever
            downloaded by a trial; `nas data prepare cifar100` does it once.
    """

    root: str = "data"


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return 50,000 training or 10,000 test images of shape (3, 32, 32) with their fine labels.

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A file is missing or damaged; the message says what to run.
    """
    paths = (*_OFFICIAL.paths(config.root, split), _OFFICIAL.find(config.root, "meta"))
    return _load(paths, stamp(paths))


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of the bytes of the files of both splits.

    Raises:
        DataError: A file is missing.
    """
    return _OFFICIAL.digest(config.root)


def splits(config: Config) -> tuple[str, ...]:
    """Return the splits that can be loaded."""
    del config
    return ("train", "test")


def files(config: Config) -> tuple[Path, ...]:
    """Return the files that are read.

    Raises:
        DataError: One is missing.
    """
    return _OFFICIAL.all_paths(config.root)


def prepare(config: Config) -> Path:
    """Download CIFAR-100 to `config.root` unless it is there, with torchvision's checksums.

    Returns:
        The folder with the official files.

    Raises:
        DataError: The download failed.
    """
    from torchvision.datasets import CIFAR100

    from trainables.downloads import fetch_cifar

    return fetch_cifar(_OFFICIAL, config.root, CIFAR100)


@lru_cache(maxsize=4)
def _load(paths: tuple[Path, ...], stamp: tuple[int, ...]) -> ImageSet:
    del stamp
    from trainables.images import ImageSet

    images, labels = _OFFICIAL.read_pickles(
        paths[:-1], side=32, num_classes=NUM_CLASSES, labels="fine_labels"
    )
    return ImageSet(
        images=images,
        labels=labels,
        num_classes=NUM_CLASSES,
        mean=MEAN,
        std=STD,
        classes=_classes(paths[-1]),
        crop_padding=4,
        flip=True,
    )


def _classes(path: Path) -> tuple[str, ...]:
    """Return the names of the fine classes that `meta` lists."""
    try:
        names = tuple(str(name) for name in unpickled(path)["fine_label_names"])
        if len(names) != NUM_CLASSES:
            raise ValueError(f"it must name {NUM_CLASSES} fine classes, got {len(names)}")
    except DAMAGED as error:
        raise _OFFICIAL.damaged(path, error) from error
    return names
