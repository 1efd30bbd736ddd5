"""ImageNet16-120 from the official batches: 157,700 colour images of 16x16, 120 classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.official_files import OfficialFiles, stamp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainables.images import ImageSet

SOURCE = (
    "Chrabaszcz et al., A Downsampled Variant of ImageNet, 2017, https://arxiv.org/abs/1707.08819; "
    "classes as in NAS-Bench-201, ICLR 2020, https://arxiv.org/abs/2001.00326"
)

FOLDER = "ImageNet16"
FILES = {
    "train": tuple(f"train_data_batch_{number}" for number in range(1, 11)),
    "test": ("val_data",),
}
NUM_CLASSES = 120
_ALL_CLASSES = 1000
_SIDE = 16
# Normalisation, crop (padding 2), mirroring and MD5 of the files are those of the NAS-Bench-201
# authors' code (AutoDL-Projects, get_dataset_with_transform.py and DownsampledImageNet.py).
MEAN = (122.68 / 255, 116.66 / 255, 104.01 / 255)
STD = (63.22 / 255, 61.26 / 255, 65.09 / 255)
CHECKSUMS = {
    "train_data_batch_1": "27846dcaa50de8e21a7d1a35f30f0e91",
    "train_data_batch_2": "c7254a054e0e795c69120a5727050e3f",
    "train_data_batch_3": "4333d3df2e5ffb114b05d2ffc19b1e87",
    "train_data_batch_4": "1620cdf193304f4a92677b695d70d10f",
    "train_data_batch_5": "348b3c2fdbb3940c4e9e834affd3b18d",
    "train_data_batch_6": "6e765307c242a1b3d7d5ef9139b48945",
    "train_data_batch_7": "564926d8cbf8fc4818ba23d2faac7564",
    "train_data_batch_8": "f4755871f718ccb653440b9dd0ebac66",
    "train_data_batch_9": "bb6dd660c38c58552125b1a92f86b5d4",
    "train_data_batch_10": "8f03f34ac4b42271a294f91bf480f29b",
    "val_data": "3410e3017fdaefba8d5073aaa65e4bd6",
}
_OFFICIAL = OfficialFiles("imagenet16_120", "ImageNet16", FOLDER, FILES)


@dataclass(frozen=True)
class Config:
    """Where the images are.

    Attributes:
        root: Folder that holds `ImageNet16` with `train_data_batch_1` to `_10` and `val_data`.
            They cannot be downloaded without an account; `nas data prepare imagenet16_120` says
            how to get them and verifies them.
    """

    root: str = "data"


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return 151,700 training or 6,000 test images of shape (3, 16, 16).

    They are those with the labels 1 to 120 of the files' 1,000, here 0 to 119. The test split is
    the whole of `val_data`; NAS-Bench-201 divides it in a validation and a test half.

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
    """Verify the files of ImageNet16, which only its users can download.

    Returns:
        The folder with the official files.

    Raises:
        DataError: A file is missing or is not the official one; it says where to put which.
    """
    from trainables.downloads import unfit
    from trainables.errors import DataError

    folder = _OFFICIAL.place(config.root)
    wrong = unfit(folder, CHECKSUMS)
    if wrong:
        raise DataError(
            f"{folder} must hold the official files of ImageNet16, missing or different: "
            f"{', '.join(wrong)}. They cannot be downloaded without an account: log in at "
            "https://image-net.org/download-images, fetch the 16x16 training and validation data "
            f"of the downsampled ImageNet, unpack both into {folder} and run the command again."
        )
    return folder


@lru_cache(maxsize=4)
def _load(paths: tuple[Path, ...], stamp: tuple[int, ...]) -> ImageSet:
    del stamp
    import numpy as np
    import torch

    from trainables.images import ImageSet

    batches = [_read(path) for path in paths]
    return ImageSet(
        images=torch.from_numpy(np.concatenate([images for images, _ in batches])),
        labels=torch.from_numpy(np.concatenate([labels for _, labels in batches])),
        num_classes=NUM_CLASSES,
        mean=MEAN,
        std=STD,
        crop_padding=2,
        flip=True,
    )


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images and labels, from 0, of the chosen classes of one batch."""
    images, labels = _OFFICIAL.read_pickle(path, side=_SIDE)
    wrong = labels[(labels < 1) | (labels > _ALL_CLASSES)]
    if len(wrong):
        raise _OFFICIAL.damaged(path, f"labels must be in 1..{_ALL_CLASSES}, got {wrong[0]}")
    # Only an eighth of the images is wanted: the rest is let go file by file.
    chosen = labels <= NUM_CLASSES
    return images[chosen], labels[chosen] - 1
