"""Local Parquet files of images and labels, in the layout of Hugging Face image datasets."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainables.images import ImageSet

SOURCE = "https://huggingface.co/docs/hub/datasets-image (image: struct<bytes, path>, label: int)"

_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Config:
    """Which files and columns to read.

    Attributes:
        train: Parquet file of the training split.
        test: Parquet file of the test split, read by retraining alone; None where there is none.
        image_column: PNG or JPEG bytes, alone or as a struct with a field `bytes`; or raw values
            0..255 as nested lists of shape (H, W), (H, W, C) or (C, H, W), C being 1 or 3.
        label_column: Integers 0, 1, ....
        limit: Use the first rows of each file only; None is all.
    """

    train: str
    test: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1, got {self.limit!r}.")
        if self.image_column == self.label_column:
            raise ValueError(
                f"label_column must differ from image_column, got {self.label_column!r}."
            )


@dataclass(frozen=True, eq=False)
class _Table:
    """What a file holds: uint8 images (N, C, H, W), labels (N,), names of the classes or ()."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return one split, all images of one size and 1 or 3 channels.

    Mean and deviation are those of the training file. Colour images of 32 pixels and more are
    cropped with a padding of 4 and mirrored in training, others are not. The number of classes is
    that of the file's class names if it has any, else the largest training label + 1.

    Args:
        config: Settings.
        split: "train" or "test".

    Raises:
        DataError: A file, column or image is missing, damaged or unfit; it says which.
    """
    path = _path(config, split)
    train = _path(config, "train")
    return _load(config, path, train, (*_stamp(path), *_stamp(train)))


def digest(config: Config) -> str:
    """Return 16 hexadecimal characters of the files' bytes, the columns' names and the limit.

    Where the files lie does not matter.

    Raises:
        DataError: A file is missing.
    """
    chosen = json.dumps([config.image_column, config.label_column, config.limit])
    content = hashlib.sha256(chosen.encode())
    for split in splits(config):
        path = _path(config, split)
        content.update(_file_digest(path, _stamp(path)))
    return content.hexdigest()[:16]


def splits(config: Config) -> tuple[str, ...]:
    """Return the splits that can be loaded."""
    return ("train",) if config.test is None else ("train", "test")


def _path(config: Config, split: str) -> Path:
    from trainables.errors import DataError

    if split not in ("train", "test"):
        raise DataError(f"parquet has the splits train and test, got {split!r}.")
    text = config.train if split == "train" else config.test
    if text is None:
        raise DataError("dataset.test must name a Parquet file to read the test split, got none.")
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        raise DataError(f"dataset.{split} must be one Parquet file, got the folder {path}.")
    if not path.is_file():
        raise DataError(f"dataset.{split}: the file {path} does not exist. Check the path.")
    return path


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced, so that memoised results are not stale."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _file_digest(path: Path, stamp: tuple[int, int]) -> bytes:
    del stamp
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@lru_cache(maxsize=4)
def _load(config: Config, path: Path, train: Path, stamp: tuple[int, ...]) -> ImageSet:
    del stamp
    import torch

    from trainables.errors import DataError
    from trainables.images import ImageSet, channel_statistics, check_labels, usual_augmentation

    table = _read(path, config)
    images, labels = torch.from_numpy(table.images), torch.from_numpy(table.labels)
    if path == train:
        num_classes = len(table.classes) or int(labels.max()) + 1
        mean, std = channel_statistics(images)
        classes = table.classes
    else:
        of_train = load(config, "train")
        num_classes, classes = of_train.num_classes, of_train.classes
        mean, std = of_train.mean, of_train.std
        if images.shape[1:] != of_train.images.shape[1:]:
            raise DataError(
                f"{path}: images must have the shape {tuple(of_train.images.shape[1:])} of the "
                f"training file, got {tuple(images.shape[1:])}."
            )
    check_labels(labels, num_classes, f"{path}, column {config.label_column!r}")
    crop_padding, flip = usual_augmentation(images)
    return ImageSet(
        images=images,
        labels=labels,
        num_classes=num_classes,
        mean=mean,
        std=std,
        classes=classes,
        crop_padding=crop_padding,
        flip=flip,
    )


def _read(path: Path, config: Config) -> _Table:
    """Read and decode a file, `_ROWS_AT_A_TIME` rows at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainables.errors import DataError
    from trainables.image_columns import RESIZE, column_images, same_size

    where = f"{path}, column {config.image_column!r}"
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(path, schema, config)
            for part in _parts(file, config):
                row = sum(map(len, labels))
                labels.append(_labels(part.column(config.label_column), path, config, row))
                images.append(column_images(part.column(config.image_column), where, row))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no readable Parquet file: {error}. Copy or download it again."
        ) from error
    if not labels:
        raise DataError(f"{path} has no rows.")
    shapes = {part.shape[1:] for part in images}
    same_size(shapes, where, RESIZE)
    if len(shapes) > 1:  # grey and colour: repeat the grey channel
        images = [np.repeat(part, 3 // part.shape[1], axis=1) for part in images]
    return _Table(
        images=np.concatenate(images),
        labels=np.concatenate(labels),
        classes=_class_names(schema, config.label_column),
    )


def _check_columns(path: Path, schema: Any, config: Config) -> None:
    from trainables.errors import DataError

    for key in ("image_column", "label_column"):
        name = getattr(config, key)
        if name not in schema.names:
            close = difflib.get_close_matches(name, schema.names, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise DataError(
                f"{path} has no column {name!r} (dataset.{key}); it has "
                f"{', '.join(schema.names)}.{hint}"
            )


def _parts(file: Any, config: Config) -> Iterator[Any]:
    """Yield record batches with the two columns until the limit is reached."""
    left = file.metadata.num_rows if config.limit is None else config.limit
    columns = [config.image_column, config.label_column]
    for part in file.iter_batches(batch_size=min(_ROWS_AT_A_TIME, max(left, 1)), columns=columns):
        if left <= 0:
            return
        if part.num_rows:
            yield part.slice(0, left)
        left -= part.num_rows


def _labels(column: Any, path: Path, config: Config, first_row: int) -> NDArray[np.int64]:
    import numpy as np
    import pyarrow as pa

    from trainables.errors import DataError

    where = f"{path}, column {config.label_column!r}"
    if not pa.types.is_integer(column.type):
        raise DataError(f"{where} must hold integers 0, 1, ..., got {column.type}.")
    if column.null_count:
        row = first_row + column.is_null().to_pylist().index(True)
        raise DataError(f"{where} must have a label in every row, row {row} has none.")
    return column.to_numpy(zero_copy_only=False).astype(np.int64)


def _class_names(schema: Any, column: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face stores in the schema's metadata, or ()."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return ()
    try:
        feature = json.loads(metadata)["info"]["features"][column]
    except (ValueError, KeyError, TypeError):
        return ()  # somebody else's metadata under that key: names are a nicety
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()
