"""SVHN, street view house numbers from a torchvision folder: 99,289 colour images of 32x32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.official_files import DAMAGED, OfficialFiles, stamp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainables.images import ImageSet

SOURCE = "Netzer et al., Reading Digits in Natural Images, NIPS workshop 2011"

FILES = {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)}
CLASSES = tuple("0123456789")
# Of the 73,257 training images, as in the RobustDARTS authors' code (src/utils.py).
MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)
_SIDE = 32
_OFFICIAL = OfficialFiles("svhn", "SVHN", "", FILES)


@dataclass(frozen=True)
class Config:
    """Where the images are and whether they are mirrored.

    Attributes:
        root: Folder that holds `train_32x32.mat` and `test_32x32.mat` (torchvision's `root`).
            Nothing is ever downloaded by a trial; `nas data prepare svhn` does it once.
        flip: Mirror training images, as published searches on SVHN do (RobustDARTS, DARTS-PT),
            although a mirrored digit is another one.
    """

    root: str = "data"
    flip: bool = True


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return 73,257 training or 26,032 test images of shape (3, 32, 32).

    The files call the digit 0 class 10; here it is class 0. The 531,131 images of `extra` are not
    used, as in the published searches.

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A file is missing or damaged; the message says what to run.
    """
    paths = _OFFICIAL.paths(config.root, split)
    return _load(paths, stamp(paths), config.flip)


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of the bytes of both files.

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
    """Download SVHN to `config.root` unless it is there, with torchvision's checksums.

    Returns:
        The folder with the official files.

    Raises:
        DataError: The download failed.
    """
    from torchvision.datasets import SVHN

    from trainables.downloads import Download, fetch

    sources = [SVHN.split_list[split] for split in FILES]
    downloads = [Download((url,), name, md5) for url, name, md5 in sources]
    return fetch(_OFFICIAL, config.root, downloads, {name: md5 for _, name, md5 in sources})


@lru_cache(maxsize=4)
def _load(paths: tuple[Path, ...], stamp: tuple[int, ...], flip: bool) -> ImageSet:
    del stamp
    import torch

    from trainables.images import ImageSet

    images, labels = _read(paths[0])
    return ImageSet(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        num_classes=len(CLASSES),
        mean=MEAN,
        std=STD,
        classes=CLASSES,
        crop_padding=4,
        flip=flip,
    )


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images (n, 3, 32, 32) and the labels (n,) in 0..9 of a MATLAB file."""
    import numpy as np
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=("X", "y"))
        pixels, labels = content["X"], content["y"].ravel().astype(np.int64)
        if pixels.dtype != np.uint8 or pixels.shape != (_SIDE, _SIDE, 3, len(labels)):
            raise ValueError(
                f"X must be uint8 of shape {(_SIDE, _SIDE, 3, len(labels))}, one image per label "
                f"in y, got {pixels.dtype} of shape {pixels.shape}"
            )
        wrong = labels[(labels < 1) | (labels > 10)]
        if len(wrong):
            raise ValueError(f"labels must be in 1..10, 10 being the digit 0, got {wrong[0]}")
    except (*DAMAGED, MatReadError, NotImplementedError) as error:
        raise _OFFICIAL.damaged(path, error) from error
    return np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), labels % 10
