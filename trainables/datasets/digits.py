"""Handwritten digits of scikit-learn: 1,797 grey images of 8x8, ten classes, no download."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainables.images import ImageSet

SOURCE = "UCI Optical Recognition of Handwritten Digits (1998), as shipped with scikit-learn"

# The data has no official test split of its own; this one is defined once and never changes.
TEST_IMAGES = 360
_TEST_SPLIT_SEED = "digits test split 1"
_LEVELS = 16  # pixels are counts 0..16 of a 4x4 block


@dataclass(frozen=True)
class Config:
    """There is nothing to set."""


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return 1,437 training or 360 test images of shape (1, 8, 8).

    Pixels 0..16 become round(255 x / 16). Neither crop nor flip: a mirrored digit is another one.

    Args:
        config: Settings.
        split: "train" or "test"; every class has its share of both.
    """
    del config
    return _load(split)


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of the images, the labels and the test split."""
    del config
    return _digest()


@lru_cache(maxsize=1)
def _digest() -> str:
    images, labels = _arrays()
    content = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes())
    content.update(test_rows(labels).astype("<i8").tobytes())
    return content.hexdigest()[:16]


def splits(config: Config) -> tuple[str, ...]:
    """Return the splits that can be loaded."""
    del config
    return ("train", "test")


def test_rows(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the test split, ascending: `TEST_IMAGES`, in each class its share.

    Within a class the rows come in the order of a hash of the seed and the row number, which no
    library's random stream can change; shares are rounded by largest remainder.

    Args:
        labels: Shape (N,).
    """
    import numpy as np

    counts = np.bincount(labels)
    exact = TEST_IMAGES * counts
    quota = exact // len(labels)
    by_remainder = sorted(range(len(counts)), key=lambda c: (-(exact[c] % len(labels)), c))
    for label in by_remainder[: TEST_IMAGES - int(quota.sum())]:
        quota[label] += 1
    rows: list[int] = []
    for label, share in enumerate(quota.tolist()):
        members = np.flatnonzero(labels == label).tolist()
        rows.extend(sorted(members, key=_rank)[:share])
    return np.array(sorted(rows), dtype=np.int64)


def _rank(row: int) -> bytes:
    return hashlib.sha256(f"{_TEST_SPLIT_SEED}/{row}".encode()).digest()


@lru_cache(maxsize=2)
def _load(split: str) -> ImageSet:
    import numpy as np
    import torch

    from trainables.errors import DataError
    from trainables.images import ImageSet, channel_statistics

    if split not in ("train", "test"):
        raise DataError(f"digits has the splits train and test, got {split!r}.")
    images, labels = _arrays()
    test = test_rows(labels)
    train = np.setdiff1d(np.arange(len(labels)), test)
    mean, std = channel_statistics(torch.from_numpy(images[train]))
    rows = train if split == "train" else test
    return ImageSet(
        images=torch.from_numpy(images[rows]),
        labels=torch.from_numpy(labels[rows]),
        num_classes=10,
        mean=mean,
        std=std,
        classes=tuple("0123456789"),
    )


@lru_cache(maxsize=1)
def _arrays() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import numpy as np

    rows = _table()
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / _LEVELS)).astype(np.uint8)[:, None]
    return images, rows[:, -1].astype(np.int64)


def _table() -> NDArray[np.float64]:
    """Return 64 pixels and the label of each image, shape (1797, 65).

    The file is read past its own loader: `import sklearn` takes 1.5 s of each worker's start.
    """
    import numpy as np

    spec = importlib.util.find_spec("sklearn")  # imports nothing
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])
