"""CIFAR-10 from an existing torchvision folder: 60,000 colour images of 32x32, ten classes."""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Config:
    """Where the images are.

    Attributes:
        root: Folder that holds `cifar-10-batches-py` (torchvision's `root`). Nothing is ever
            downloaded by a trial; `prepare` does it once.
    """

    root: str = "data"


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return 50,000 training or 10,000 test images of shape (3, 32, 32).

    The official files are pickles: they are read by an unpickler that can build arrays and nothing
    else, so a file of unknown origin cannot run code.

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A file is missing or damaged; the message says what to run.
    """
    paths = _paths(config, split)
    return _load(paths, _stamp(paths))


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of the bytes of all files of both splits.

    Raises:
        DataError: A file is missing.
    """
    paths = (*_paths(config, "train"), *_paths(config, "test"))
    return _digest(paths, _stamp(paths))


def splits(config: Config) -> tuple[str, ...]:
    """Return the splits that can be loaded."""
    del config
    return ("train", "test")


def prepare(config: Config) -> Path:
    """Download CIFAR-10 to `config.root` through torchvision, unless it is there already.

    Safe to call from several processes: one downloads, the others wait.

    Returns:
        The folder with the official files.

    Raises:
        DataError: The download failed.
    """
    from filelock import FileLock
    from torchvision.datasets import CIFAR10

    from trainables.errors import DataError

    root = Path(config.root).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".cifar10.lock"):
            CIFAR10(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root}: CIFAR-10 could not be downloaded: {error}") from error
    return root / FOLDER


def _paths(config: Config, split: str) -> tuple[Path, ...]:
    from trainables.errors import DataError

    if split not in FILES:
        raise DataError(f"cifar10 has the splits train and test, got {split!r}.")
    root = Path(config.root).expanduser().absolute()
    folder = root if root.name == FOLDER else root / FOLDER
    paths = tuple(folder / name for name in FILES[split])
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"dataset.root: {path} does not exist. {_remedy(folder.parent)} or set "
                f"dataset.root to a folder that holds {FOLDER}."
            )
    return paths


def _remedy(root: Path) -> str:
    call = f"prepare(Config(root={str(root)!r}))"
    return f'Run python -c "from trainables.datasets.cifar10 import *; {call}" to download it,'


def _stamp(paths: tuple[Path, ...]) -> tuple[int, ...]:
    """Return what changes when a file is replaced, so that memoised results are not stale."""
    return tuple(
        value for path in paths for value in (path.stat().st_mtime_ns, path.stat().st_size)
    )


@lru_cache(maxsize=4)
def _digest(paths: tuple[Path, ...], stamp: tuple[int, ...]) -> str:
    del stamp
    content = hashlib.sha256()
    for path in paths:
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()[:16]


@lru_cache(maxsize=4)
def _load(paths: tuple[Path, ...], stamp: tuple[int, ...]) -> ImageSet:
    del stamp
    import numpy as np
    import torch

    from trainables.images import ImageSet, check_labels

    batches = [_read(path) for path in paths]
    pixels = torch.from_numpy(np.concatenate([images for images, _ in batches]))
    labels = torch.tensor([label for _, part in batches for label in part], dtype=torch.int64)
    check_labels(labels, len(CLASSES), str(paths[0].parent))
    return ImageSet(
        images=pixels.view(-1, 3, 32, 32),
        labels=labels,
        num_classes=len(CLASSES),
        mean=MEAN,
        std=STD,
        classes=CLASSES,
        crop_padding=4,
        flip=True,
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, text, numbers and NumPy arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        import codecs

        import numpy as np
        from numpy import ndarray

        # The official files name NumPy 1's private modules, which NumPy 2 has moved.
        reconstruct = np.zeros(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no image data")
        return allowed[module, name]


def _read(path: Path) -> tuple[Any, list[int]]:
    """Return the pixels, uint8 of shape (n, 3072), and the n labels of an official file."""
    import numpy as np

    from trainables.errors import DataError

    try:
        entry = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        pixels, labels = entry["data"], entry["labels"]
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
            raise DataError(
                f"{path} must hold uint8 pixels of shape ({len(labels)}, {_PIXELS}), got "
                f"{pixels.dtype} of shape {pixels.shape}."
            )
        return pixels, [int(label) for label in labels]
    except _DAMAGED as error:
        raise DataError(
            f"{path} is no readable CIFAR-10 file: {error}. Delete it. "
            f"{_remedy(path.parent.parent)} or copy the official file there."
        ) from error


# What unpickling damaged bytes raises, from pickle, its callees and the reading of its result.
_DAMAGED = (
    pickle.UnpicklingError,
    OSError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    MemoryError,
)
