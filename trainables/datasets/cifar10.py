"""CIFAR-10 from an existing torchvision folder: 60,000 colour images of 32x32, ten classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.official_files import OfficialFiles, stamp

if TYPE_CHECKING:
    from trainables.images import ImageSet

SOURCE = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"

FOLDER = "cifar-10-batches-py"
FILES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# Of the 50,000 training images, as in the DARTS authors' code (cnn/utils.py).
MEAN = (0.49139968, 0.48215827, 0.44653124)
STD = (0.24703233, 0.24348505, 0.26158768)
_OFFICIAL = OfficialFiles("cifar10", "CIFAR-10", FOLDER, FILES)


@dataclass(frozen=True)
class Config:
    """Where the images are.

    Attributes:
        root: Folder that holds `cifar-10-batches-py` (torchvision's `root`). Nothing is ever
            downloaded by a trial; `nas data prepare cifar10` does it once.
    """

    root: str = "data"


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return 50,000 training or 10,000 test images of shape (3, 32, 32).

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A file is missing or damaged; the message says what to run.
    """
    paths = _OFFICIAL.paths(config.root, split)
    return _load(paths, stamp(paths))


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of the bytes of all files of both splits.

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
    """Download CIFAR-10 to `config.root` unless it is there, with torchvision's checksums.

    Returns:
        The folder with the official files.

    Raises:
        DataError: The download failed.
    """
    from torchvision.datasets import CIFAR10

    from trainables.downloads import fetch_cifar

    return fetch_cifar(_OFFICIAL, config.root, CIFAR10)


@lru_cache(maxsize=4)
def _load(paths: tuple[Path, ...], stamp: tuple[int, ...]) -> ImageSet:
    del stamp
    from trainables.images import ImageSet

    images, labels = _OFFICIAL.read_pickles(paths, side=32, num_classes=len(CLASSES))
    return ImageSet(
        images=images,
        labels=labels,
        num_classes=len(CLASSES),
        mean=MEAN,
        std=STD,
        classes=CLASSES,
        crop_padding=4,
        flip=True,
    )
