"""Images resident on the device as uint8: the record, its splits and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from trainables.augment import Augmentation, crop_and_flip, cut_out
from trainables.errors import DataError, StateError
from trainables.settings import Augment
from trainables.state import make_generator


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a dataset.

    Attributes:
        images: uint8 of shape (N, C, H, W). Shared between trials of a process: never written to.
        labels: int64 of shape (N,), each in [0, num_classes).
        num_classes: Number of classes of the dataset.
        mean: Mean of each channel over the training set, in [0, 1].
        std: Standard deviation of each channel, in the same unit, positive.
        classes: Names of the classes, or empty.
        crop_padding: Padding of the dataset's usual random crop, in pixels; 0 is none.
        flip: Whether mirroring keeps a class (it does not for digits).

    Raises:
        DataError: A shape, type or label that does not fit.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                "images must be uint8 of shape (N, C, H, W), got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 of shape ({len(self.images)},), one per image, got "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}."
            )
        channels = self.images.shape[1]
        if len(self.mean) != channels or len(self.std) != channels:
            raise DataError(
                f"mean and std must have {channels} values, one per channel, got "
                f"{len(self.mean)} and {len(self.std)}."
            )
        if min(self.std) <= 0:
            raise DataError(
                f"std must be > 0 in every channel, got {self.std}. A channel without any "
                "variation carries no information: leave it out."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_channels(self) -> int:
        """Channels C of an image."""
        return int(self.images.shape[1])

    @property
    def image_size(self) -> int:
        """Longer side of an image, in pixels."""
        return max(int(self.images.shape[2]), int(self.images.shape[3]))

    def to(self, device: str | torch.device) -> ImageSet:
        """Return the set with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, index: Tensor) -> ImageSet:
        """Return the images of `index`, int64 of shape (n,), in that order."""
        index = index.to(self.images.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def normalised(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (x / 255 - mean) / std of uint8 images of shape (B, C, H, W)."""
        factor, shift = _scaling(tuple(self.mean), tuple(self.std), dtype, images.device)
        return images.to(dtype).mul_(factor).sub_(shift)


@lru_cache(maxsize=64)
def _scaling(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    # Made once: a copy to a GPU for every batch would make it wait.
    means = torch.tensor(mean, dtype=dtype, device=device).view(-1, 1, 1)
    stds = torch.tensor(std, dtype=dtype, device=device).view(-1, 1, 1)
    return 1.0 / (255.0 * stds), means / stds


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise DataError where a label is outside [0, num_classes).

    Args:
        labels: int64 of shape (N,).
        num_classes: Number of classes.
        where: File or dataset, for the message.
    """
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: labels must be in [0, {num_classes}), got {int(labels[row])} in row {row} "
            f"({len(wrong)} such rows)."
        )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in [0, 1].

    The sums are sums of integers, so the result does not depend on their order or on threads.

    Args:
        images: uint8 of shape (N, C, H, W).
    """
    count = images.numel() // images.shape[1]
    means, stds = [], []
    for channel in range(images.shape[1]):
        histogram = torch.bincount(images[:, channel].flatten(), minlength=256).tolist()
        total = sum(value * times for value, times in enumerate(histogram))
        squares = sum(value * value * times for value, times in enumerate(histogram))
        means.append(total / count / 255.0)
        stds.append((squares * count - total * total) ** 0.5 / count / 255.0)
    return tuple(means), tuple(stds)


def usual_augmentation(images: Tensor) -> tuple[int, bool]:
    """Return crop padding and flip for images of unknown content, shape (N, C, H, W).

    Colour images of 32 pixels and more are taken for photographs: 4 and True. Others may be digits
    or symbols: 0 and False.
    """
    natural = images.shape[1] == 3 and min(images.shape[2:]) >= 32
    return (4, True) if natural else (0, False)


def split_train_val(num_images: int, train_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a training set in two disjoint parts, fixed by the seed.

    Args:
        num_images: N, number of images.
        train_share: Share of the first part, in (0, 1); its size is rounded down.
        seed: Any integer; the same one gives the same parts to every method.

    Returns:
        Indices of the two parts, int64, ascending; together every index of range(N) once.

    Raises:
        DataError: One of the parts would be empty.
    """
    # 100 images at a share of 1 - 0.9 are 10, not the 9 of a product just below.
    num_train = int(num_images * train_share + 1e-9)
    if not 0 < num_train < num_images:
        raise DataError(
            f"{num_images} images with a train share of {train_share} make {num_train} training "
            f"and {num_images - num_train} validation images; both must be >= 1."
        )
    order = torch.randperm(num_images, generator=make_generator(seed, "split"))
    return order[:num_train].sort().values, order[num_train:].sort().values


def choose_augmentation(images: ImageSet, augment: Augment, cutout: int) -> Augmentation:
    """Return the augmentation that the settings ask for.

    Args:
        images: The training images.
        augment: "auto" is the dataset's own crop and flip, "none" neither, "crop_flip" both, with
            an eighth of the side as padding (4 pixels at 32) where the dataset has none.
        cutout: Side of the square cut out, in pixels; 0 is off.
    """
    if augment == "none":
        return Augmentation(cutout=cutout)
    if augment == "auto":
        return Augmentation(images.crop_padding, images.flip, cutout)
    return Augmentation(images.crop_padding or max(1, images.image_size // 8), True, cutout)


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Raise DataError where no batch of that size can be cut from so many images."""
    if batch_size < 1:
        raise DataError(f"batch_size must be >= 1, got {batch_size}.")
    if batch_size > num_images:
        raise DataError(
            f"batch_size must be at most the number of images: got {batch_size} for "
            f"{num_images} images. Use a smaller batch_size, a larger share or more data."
        )


class Batches:
    """Endless random batches: every epoch is one permutation of all images, drawn once.

    The last `len(images) % batch_size` images of an epoch's permutation are left out, so that all
    batches are of the same size (batch norm, and later static shapes).

    Args:
        images: What batches are cut from, on the device they are wanted on.
        batch_size: B, images per batch.
        generator: Source of permutations and augmentation, this object's own.
        augmentation: What is done to the images.
        dtype: Floating-point type of the batches.
        rows: Which images of each batch are given out; the draws are those for all of them.

    Raises:
        DataError: `batch_size` is larger than the data.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        generator: torch.Generator,
        augmentation: Augmentation | None = None,
        dtype: torch.dtype = torch.float32,
        rows: slice | None = None,
    ) -> None:
        check_batch_size(batch_size, len(images))
        self.images = images
        self.batch_size = batch_size
        self.augmentation = augmentation or Augmentation()
        self.dtype = dtype
        self.rows = rows
        self._generator = generator
        self._permutation: Tensor | None = None
        self._position = 0

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self.images) // self.batch_size

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.images.images.device

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next images, normalised, of shape (B, C, H, W), and labels of shape (B,)."""
        end = self._position + self.batch_size
        if self._permutation is None or end > len(self.images):
            source = self._generator
            order = torch.randperm(len(self.images), generator=source, device=source.device)
            self._permutation = order.to(self.images.images.device)
            self._position, end = 0, self.batch_size
        index = self._permutation[self._position : end]
        self._position = end
        # index_select copies whole images; images[index] goes element by element on a CPU.
        pixels = self.images.images.index_select(0, index)
        pixels = crop_and_flip(pixels, self.augmentation, self._generator)
        part = None if self.rows is None else (self.batch_size, self.rows)
        if self.rows is not None:
            pixels, index = pixels[self.rows], index[self.rows]
        images = self.images.normalised(pixels, self.dtype)
        side, share = self.augmentation.cutout, self.augmentation.cutout_share
        images = cut_out(images, side, self._generator, share, part)
        return images, self.images.labels.index_select(0, index)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next batches depend on besides the images."""
        permutation = self._permutation
        return {
            "num_images": len(self.images),
            "batch_size": self.batch_size,
            "permutation": None if permutation is None else permutation.cpu().clone(),
            "position": self._position,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            StateError: The state is of other data or of another batch size.
        """
        for name, value in (("num_images", len(self.images)), ("batch_size", self.batch_size)):
            if state[name] != value:
                raise StateError(
                    f"The stored batches have {name} {state[name]}, here it is {value}."
                )
        permutation = state["permutation"]
        device = self.images.images.device
        self._permutation = None if permutation is None else permutation.to(device, copy=True)
        self._position = state["position"]
        self._generator.set_state(state["generator"].cpu())


def full_pass(
    images: ImageSet, batch_size: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order, without augmentation; the last batch may be smaller.

    Args:
        images: What to go through.
        batch_size: B, images per batch.
        dtype: Floating-point type of the batches.

    Yields:
        Normalised images of shape (B, C, H, W) and labels of shape (B,).
    """
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        yield images.normalised(images.images[part], dtype), images.labels[part]
