"""ImageNet from its official folders train/ and val/, decoded by worker processes as it is read."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.errors import DataError
from trainables.official_files import prepare_command

if TYPE_CHECKING:
    from trainables.streams import ImageStream

SOURCE = (
    "Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015, "
    "https://arxiv.org/abs/1409.0575"
)

FOLDER = "imagenet"
_FOLDERS = {"train": "train", "test": "val"}
_ENDINGS = (".jpeg", ".jpg", ".png")
# As in the PC-DARTS authors' code (train_imagenet.py); likewise that an image is resized to 256
# pixels where 224 of them are seen.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_RESIZED, _SEEN = 256, 224


@dataclass(frozen=True)
class Config:
    """Where the images are, and how they are read.

    Attributes:
        root: Folder that holds `train` and `val`, each with one folder per class, or that holds
            `imagenet` with them.
        size: Side of the images that a network sees, in pixels. From 128 on supernets have the stem
            of ImageNet, where their space has it; retraining takes `retrain.stem`.
        search_fraction: Share of every class's training images that a search sees, drawn by its
            seed; `search.train_share` divides it into those of weights and of alphas.
        workers: Processes that decode images, for each of the training and validation batches, but
            no more than there are CPU cores; 0 decodes in the trial itself. Changes no result.
    """

    root: str = "data"
    size: int = 224
    search_fraction: float = 1.0
    workers: int = 4

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be >= 1, got {self.size!r}.")
        if not 0 < self.search_fraction <= 1:
            raise ValueError(f"search_fraction must be in (0, 1], got {self.search_fraction!r}.")
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0, got {self.workers!r}.")


@dataclass(frozen=True)
class _Split:
    """Files of a split in the order of their images.

    Attributes:
        folder: The split's folder.
        classes: Names of the class folders, sorted.
        names: Files of each class, sorted.
    """

    folder: Path
    classes: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]


def load(config: Config, split: Literal["train", "test"]) -> ImageStream:
    """Return one split; its images are decoded when batches want them.

    Classes are the folders of `train`, sorted by name: 1,000 in the official data, where `val` is
    the test split.

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A folder is missing or holds something else than images; it says which.
    """
    if split not in _FOLDERS:
        raise DataError(f"imagenet has the splits train and test, got {split!r}.")
    return _load(config, _files(config, split), _files(config, "train").classes)


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of names and sizes of all files, and of the settings.

    The bytes are not read, which would take longer than an epoch. Settings are `size` and
    `search_fraction`; the place of the root does not matter.

    Raises:
        DataError: A folder is missing or holds something else than images.
    """
    content = hashlib.sha256(f"size {config.size} of {config.search_fraction}".encode())
    for split in splits(config):
        found = _files(config, split)
        _numbers(found, _files(config, "train").classes)
        content.update(_digest(found))
    return content.hexdigest()[:16]


def splits(config: Config) -> tuple[str, ...]:
    """Return the splits that can be loaded."""
    return ("train", "test") if (_place(config) / _FOLDERS["test"]).is_dir() else ("train",)


def files(config: Config) -> tuple[Path, ...]:
    """Return the files that are read.

    Raises:
        DataError: A folder is missing.
    """
    return tuple(
        found.folder / label / name
        for found in (_files(config, split) for split in _FOLDERS)
        for label, names in zip(found.classes, found.names, strict=True)
        for name in names
    )


def prepare(config: Config) -> Path:
    """Look whether the folders are there, which only its users can download.

    Returns:
        The folder that holds `train` and `val`.

    Raises:
        DataError: One is missing or holds something else; it says how they must look.
    """
    place = _place(config)
    missing = [name for name in _FOLDERS.values() if not (place / name).is_dir()]
    if missing:
        raise DataError(
            f"{place / missing[0]} does not exist. ImageNet cannot be downloaded without an "
            "account: log in at https://image-net.org/download-images, fetch the training and "
            f"validation images of ILSVRC2012, unpack them as {place}/train/CLASS/FILE.JPEG and "
            f"{place}/val/CLASS/FILE.JPEG, with the 1,000 classes as folders in both, and run the "
            "command again. The validation archive has no folders: sort its files into those of "
            "their classes by the ground truth of the development kit."
        )
    digest(config)
    return place


def _place(config: Config) -> Path:
    root = Path(config.root).expanduser().absolute()
    return root if (root / _FOLDERS["train"]).is_dir() else root / FOLDER


def _files(config: Config, split: str) -> _Split:
    folder = _place(config) / _FOLDERS[split]
    if not folder.is_dir():
        command = prepare_command("imagenet", config.root)
        raise DataError(
            f"dataset.root: {folder} does not exist. Run {command} to get it, or set dataset.root "
            "to a folder that holds train and val."
        )
    found = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    wrong = [name for name in found if not (folder / name).is_dir()]
    if wrong or not found:
        got = f"the file {wrong[0]}" if wrong else "nothing"
        raise DataError(
            f"{folder} must hold one folder for each class, got {got}. Sort the images into "
            "folders of their classes."
        )
    stamps = tuple((folder / name).stat().st_mtime_ns for name in found)
    return _listed(folder, tuple(found), stamps)


@lru_cache(maxsize=4)
def _listed(folder: Path, classes: tuple[str, ...], stamps: tuple[int, ...]) -> _Split:
    """Return the files of a split; `stamps` change where one is added or taken away."""
    del stamps
    return _Split(folder, classes, tuple(_names(folder / name) for name in classes))


def _names(folder: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    for name in names:
        if not name.lower().endswith(_ENDINGS):
            raise DataError(
                f"{folder / name} is no image: its name must end in {', '.join(_ENDINGS)}. Move it "
                "away."
            )
    if not names:
        raise DataError(f"{folder} holds no image. Unpack its archive again, or remove the folder.")
    return tuple(names)


def _numbers(found: _Split, classes: tuple[str, ...]) -> dict[str, int]:
    """Return the label of each class, and refuse classes that the training split has not."""
    strange = sorted(set(found.classes) - set(classes))
    if strange:
        raise DataError(
            f"{found.folder} has the class {strange[0]}, which train has not. Both must have the "
            "same folders."
        )
    return {name: label for label, name in enumerate(classes)}


@lru_cache(maxsize=4)
def _digest(found: _Split) -> bytes:
    content = hashlib.sha256()
    for label, names in zip(found.classes, found.names, strict=True):
        for name in names:
            size = (found.folder / label / name).stat().st_size
            content.update(f"{label}/{name}/{size}\n".encode())
    return content.digest()


@lru_cache(maxsize=4)
def _load(config: Config, found: _Split, classes: tuple[str, ...]) -> ImageStream:
    import torch

    from trainables.streams import ImageStream

    number = _numbers(found, classes)
    counts = torch.tensor([len(names) for names in found.names])
    labels = torch.tensor([number[name] for name in found.classes])
    return ImageStream(
        folder=str(found.folder),
        names=tuple(
            f"{label}/{name}"
            for label, names in zip(found.classes, found.names, strict=True)
            for name in names
        ),
        labels=labels.repeat_interleave(counts),
        num_classes=len(classes),
        mean=MEAN,
        std=STD,
        classes=classes,
        size=config.size,
        decoded=round(config.size * _RESIZED / _SEEN),
        workers=config.workers,
        search_fraction=config.search_fraction,
    )
