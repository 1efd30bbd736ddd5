"""Small files in the official formats of published datasets."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from trainables.datasets import cifar10, cifar100, fashion_mnist, imagenet, imagenet16_120, svhn


def write_pickle(path: Path, entry: dict[str, Any]) -> None:
    """Write a file as Python 2 pickled the official ones: protocol 2, NumPy 1 names."""
    content = pickle.dumps(entry, protocol=2)
    # The same opcodes with the old module's name, both lines ended by a newline in protocol 2.
    content = content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_official_file(path: Path, pixels: np.ndarray, labels: list[int]) -> None:
    """Write a batch of CIFAR-10."""
    names = ["f"] * len(labels)
    write_pickle(path, {"batch_label": "b", "labels": labels, "data": pixels, "filenames": names})


def write_cifar10(root: Path, *, count: int = 20) -> None:
    """Write the six batches of CIFAR-10, with `count` images each."""
    draw = np.random.default_rng(0)
    for names in cifar10.FILES.values():
        for name in names:
            pixels = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
            labels = [row % 10 for row in range(count)]
            write_official_file(root / cifar10.FOLDER / name, pixels, labels)


def write_cifar100(root: Path, *, count: int = 100) -> None:
    """Write the files of CIFAR-100; fine label c belongs to the coarse label c // 5."""
    draw = np.random.default_rng(1)
    folder = root / cifar100.FOLDER
    for name in ("train", "test"):
        fine = [row % 100 for row in range(count)]
        entry = {
            "filenames": ["f"] * count,
            "batch_label": "b",
            "fine_labels": fine,
            "coarse_labels": [label // 5 for label in fine],
            "data": draw.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        write_pickle(folder / name, entry)
    names = [f"class {label}" for label in range(100)]
    write_pickle(folder / "meta", {"fine_label_names": names, "coarse_label_names": ["x"] * 20})


def write_imagenet16(root: Path, *, labels: Sequence[int] = range(1, 131)) -> None:
    """Write the eleven batches of ImageNet16, each with one image per label."""
    draw = np.random.default_rng(2)
    for names in imagenet16_120.FILES.values():
        for name in names:
            pixels = draw.integers(0, 256, (len(labels), 768), dtype=np.uint8)
            entry = {"data": pixels, "labels": list(labels), "mean": pixels.mean(0)}
            write_pickle(root / imagenet16_120.FOLDER / name, entry)


def write_svhn(root: Path, *, count: int = 20) -> None:
    """Write the two MATLAB files of SVHN, labels 1, 2, ..., 10, 1, ...."""
    draw = np.random.default_rng(3)
    for (name,) in svhn.FILES.values():
        pixels = draw.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None]
        root.mkdir(parents=True, exist_ok=True)
        savemat(root / name, {"X": pixels, "y": labels}, do_compression=True)


def idx(array: np.ndarray) -> bytes:
    """Return an array of uint8 as an IDX file holds it."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_fashion_mnist(root: Path, *, count: int = 20) -> None:
    """Write the four packed files of Fashion-MNIST."""
    draw = np.random.default_rng(4)
    folder = root / fashion_mnist.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for images, labels in fashion_mnist.FILES.values():
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / images).write_bytes(gzip.compress(idx(pixels), mtime=0))
        classes = np.arange(count, dtype=np.uint8) % 10
        (folder / labels).write_bytes(gzip.compress(idx(classes), mtime=0))


def write_imagenet(root: Path, *, count: int = 4, classes: int = 3, side: int = 40) -> None:
    """Write `count` training and half as many validation images of each class, of several sizes."""
    draw = np.random.default_rng(5)
    for folder, number in (("train", count), ("val", count // 2)):
        for label in range(classes):
            place = root / imagenet.FOLDER / folder / f"n{label:08}"
            place.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                # Each class has a colour of its own, so that there is something to learn.
                pixels = draw.integers(0, 100, (side, side + 5 * index, 3), dtype=np.uint8)
                pixels[:, :, label % 3] += 120
                Image.fromarray(pixels).save(place / f"{folder}_{index}.JPEG", quality=95)


WRITERS = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "fashion_mnist": write_fashion_mnist,
    "imagenet": write_imagenet,
    "imagenet16_120": write_imagenet16,
    "svhn": write_svhn,
}
