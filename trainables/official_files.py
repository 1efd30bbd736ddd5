"""Files of published datasets: where they lie, what they hold, and what to do if they do not fit.

The pickles are read by an unpickler that can build arrays and nothing else, so a file of unknown
origin cannot run code.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

# What reading damaged bytes raises: from pickle, gzip and scipy.io, what they call, and the use
# of what they return.
DAMAGED = (
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
    zlib.error,
)


@dataclass(frozen=True)
class OfficialFiles:
    """Which files a published dataset has.

    Attributes:
        name: Name of its plug-in, for the command that gets the files.
        title: What messages call it.
        folder: Folder of the files below the root; empty where they lie in the root itself.
        splits: Names of the files of each split, in the order of their images. Of `NAME.gz` the
            unpacked `NAME` does as well.
        others: Names of files that belong to no split.
    """

    name: str
    title: str
    folder: str
    splits: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...] = ()

    def place(self, root: str | Path) -> Path:
        """Return the folder of the files, absolute; `root` may be that folder itself."""
        path = Path(root).expanduser().absolute()
        inner = Path(self.folder).parts
        return path if inner and path.parts[-len(inner) :] == inner else path / self.folder

    def paths(self, root: str | Path, split: str) -> tuple[Path, ...]:
        """Return the files of a split.

        Raises:
            DataError: There is no such split, or a file is missing; it says what to run.
        """
        if split not in self.splits:
            raise DataError(f"{self.name} has the splits train and test, got {split!r}.")
        return tuple(self.find(root, name) for name in self.splits[split])

    def all_paths(self, root: str | Path) -> tuple[Path, ...]:
        """Return every file: training, test, others.

        Raises:
            DataError: A file is missing; it says what to run.
        """
        others = tuple(self.find(root, name) for name in self.others)
        return (*self.paths(root, "train"), *self.paths(root, "test"), *others)

    def find(self, root: str | Path, name: str) -> Path:
        """Return one file, packed or not.

        Raises:
            DataError: It is missing; the message says what to run.
        """
        path = self.place(root) / name
        for candidate in (path, path.with_suffix("") if path.suffix == ".gz" else path):
            if candidate.is_file():
                return candidate
        holds = self.folder or "the files"
        raise DataError(
            f"dataset.root: {path} does not exist. {self.remedy(root)} to get it, or set "
            f"dataset.root to a folder that holds {holds}."
        )

    def digest(self, root: str | Path) -> str:
        """Return 16 hexadecimal characters of the bytes of both splits, packed or not.

        Raises:
            DataError: A file is missing or cannot be unpacked.
        """
        paths = (*self.paths(root, "train"), *self.paths(root, "test"))
        content = hashlib.sha256()
        for path in paths:
            try:
                content.update(_digest(path, stamp((path,))))
            except DAMAGED as error:
                raise self.damaged(path, error) from error
        return content.hexdigest()[:16]

    def remedy(self, root: str | Path) -> str:
        """Return "Run ..." with the command that gets or repairs the files."""
        place = self.place(root)
        for _ in Path(self.folder).parts:
            place = place.parent
        return f"Run {prepare_command(self.name, place)}"

    def damaged(self, path: Path, problem: BaseException | str) -> DataError:
        """Return the error of a file that cannot be read or does not hold what it should."""
        return DataError(
            f"{path} is no readable {self.title} file: {problem}. {self.remedy(path.parent)} to "
            "get it again, or copy the official file there."
        )

    def read_pickles(
        self, paths: tuple[Path, ...], *, side: int, num_classes: int, labels: str = "labels"
    ) -> tuple[Tensor, Tensor]:
        """Return the images and labels of several pickled batches, in order.

        Args:
            paths: The files, in one folder.
            side: Height and width of an image, in pixels.
            num_classes: Labels must be in [0, num_classes).
            labels: Key of the labels; the pixels have the key "data".

        Returns:
            uint8 of shape (N, 3, side, side) and int64 of shape (N,).

        Raises:
            DataError: A file is damaged or holds something else.
        """
        import numpy as np
        import torch

        from trainables.images import check_labels

        batches = [self.read_pickle(path, side=side, labels=labels) for path in paths]
        found = torch.from_numpy(np.concatenate([part for _, part in batches]))
        check_labels(found, num_classes, str(paths[0].parent))
        return torch.from_numpy(np.concatenate([images for images, _ in batches])), found

    def read_pickle(
        self, path: Path, *, side: int, labels: str = "labels"
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the images (n, 3, side, side) and labels (n,) of one pickled batch.

        Raises:
            DataError: The file is damaged or holds something else.
        """
        import numpy as np

        try:
            entry = unpickled(path)
            pixels = entry["data"]
            found = np.array([int(label) for label in entry[labels]], dtype=np.int64)
            expected = (len(found), 3 * side * side)
            if pixels.dtype != np.uint8 or pixels.shape != expected:
                raise ValueError(
                    f"it must hold uint8 pixels of shape {expected}, got "
                    f"{pixels.dtype} of shape {pixels.shape}"
                )
        except DAMAGED as error:
            raise self.damaged(path, error) from error
        return pixels.reshape(-1, 3, side, side), found


def prepare_command(name: str, root: str | Path) -> str:
    """Return the command that gets a dataset, as one can paste it into a shell."""
    return f"nas data prepare {name} --root {shlex.quote(str(root))}"


def stamp(paths: tuple[Path, ...]) -> tuple[int, ...]:
    """Return what changes when a file is replaced, so that memoised results are not stale."""
    return tuple(
        value for path in paths for value in (path.stat().st_mtime_ns, path.stat().st_size)
    )


def read_bytes(path: Path) -> bytes:
    """Return what a file holds, unpacked if it ends in .gz.

    Raises:
        OSError, EOFError, zlib.error: It cannot be read or unpacked.
    """
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def unpickled(path: Path) -> Any:
    """Return the dictionaries, lists, text, numbers and arrays of a pickle.

    Raises:
        pickle.UnpicklingError: It holds any other object.
        Exception: One of `DAMAGED`, for damaged bytes.
    """
    return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()


@lru_cache(maxsize=64)
def _digest(path: Path, stamp: tuple[int, ...]) -> bytes:
    del stamp
    if path.suffix == ".gz":
        with gzip.open(path) as unpacked:
            return hashlib.file_digest(unpacked, "sha256").digest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, text, numbers and NumPy arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        import codecs

        import numpy as np
        from numpy import ndarray

        # The official files name NumPy 1's private modules, which NumPy 2 has moved.
        reconstruct = np.zeros(0).__reduce__()[0]
        scalar = np.int64(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy.core.multiarray", "scalar"): scalar,
            ("numpy._core.multiarray", "scalar"): scalar,
            ("numpy", "ndarray"): ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no image data")
        return allowed[module, name]
