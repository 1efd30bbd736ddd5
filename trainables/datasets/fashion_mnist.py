"""Fashion-MNIST from an existing torchvision folder: 70,000 grey images of 28x28, ten classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.official_files import DAMAGED, OfficialFiles, read_bytes, stamp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainables.images import ImageSet

SOURCE = "Xiao et al., Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747"

FOLDER = "FashionMNIST/raw"
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_SIDE = 28
_OFFICIAL = OfficialFiles("fashion_mnist", "Fashion-MNIST", FOLDER, FILES)


@dataclass(frozen=True)
class Config:
    """Where the images are.

    Attributes:
        root: Folder that holds `FashionMNIST/raw` (torchvision's `root`), its files packed (.gz)
            or not. Nothing is ever downloaded by a trial; `nas data prepare fashion_mnist` does
            it once.
    """

    root: str = "data"


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return 60,000 training or 10,000 test images of shape (1, 28, 28).

    Mean and deviation are those of the training images. Random crops with a padding of 4 and
    mirroring are those of the Random Erasing authors' code (fashionmnist.py).

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A file is missing or damaged; the message says what to run.
    """
    paths = (*_OFFICIAL.paths(config.root, split), _OFFICIAL.paths(config.root, "train")[0])
    return _load(paths, stamp(paths))


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of the unpacked bytes of both splits.

    Raises:
        DataError: A file is missing or cannot be unpacked.
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
    """Download Fashion-MNIST to `config.root` unless it is there, with torchvision's checksums.

    Returns:
        The folder with the official files, packed.

    Raises:
        DataError: The download failed.
    """
    from torchvision.datasets import FashionMNIST

    from trainables.downloads import Download, fetch

    downloads = [
        Download(tuple(f"{mirror}{name}" for mirror in FashionMNIST.mirrors), name, md5)
        for name, md5 in FashionMNIST.resources
    ]
    return fetch(_OFFICIAL, config.root, downloads, dict(FashionMNIST.resources))


@lru_cache(maxsize=4)
def _load(paths: tuple[Path, ...], stamp: tuple[int, ...]) -> ImageSet:
    """Return a split, of its images, its labels and the training images, for their statistics."""
    del stamp
    import torch

    from trainables.images import ImageSet, channel_statistics, check_labels

    images = torch.from_numpy(_read(paths[0], 3))[:, None]
    labels = torch.from_numpy(_read(paths[1], 1)).long()
    if len(images) != len(labels):
        raise _OFFICIAL.damaged(
            paths[1], f"it must hold a label for each of {len(images)} images, got {len(labels)}"
        )
    check_labels(labels, len(CLASSES), str(paths[1]))
    train = images if paths[2] == paths[0] else torch.from_numpy(_read(paths[2], 3))[:, None]
    mean, std = channel_statistics(train)
    return ImageSet(
        images=images,
        labels=labels,
        num_classes=len(CLASSES),
        mean=mean,
        std=std,
        classes=CLASSES,
        crop_padding=4,
        flip=True,
    )


def _read(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """Return the uint8 array of an IDX file: 0, 0, 8 (uint8), dimensions, sizes, values."""
    import numpy as np

    try:
        content = read_bytes(path)
        start = 4 + 4 * num_dimensions
        shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
        if content[:4] != bytes([0, 0, 8, num_dimensions]) or len(shape) != num_dimensions:
            raise ValueError(f"it must be an IDX file of uint8 in {num_dimensions} dimensions")
        values = np.frombuffer(content, dtype=np.uint8, offset=start)
        # The header may be damaged too: no array is made before its size is known to fit.
        sizes = (_SIDE, _SIDE)[: num_dimensions - 1]
        if shape[1:] != sizes or not 0 < len(values) == math.prod(shape):
            raise ValueError(f"its header says {shape}, and {len(values)} values follow")
    except DAMAGED as error:
        raise _OFFICIAL.damaged(path, error) from error
    return values.reshape(shape).copy()
