"""Images that are too many to be resident: files that worker processes decode for each batch.

What trains calls `make_batches`, `make_augmentation` and `go_through`, which take resident images
(`trainables.images.ImageSet`) and streams alike.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spaces.core.layout import Stem
from spaces.core.space import LARGE_IMAGES
from trainables.augment import Augmentation, cut_out
from trainables.errors import DataError, StateError
from trainables.image_columns import decoded_image, stacked
from trainables.images import (
    Batches,
    ImageSet,
    check_batch_size,
    choose_augmentation,
    full_pass,
)
from trainables.photographs import PhotoAugmentation, augmented, middle
from trainables.settings import Augment
from trainables.state import make_generator


@dataclass(frozen=True, eq=False)
class ImageStream:
    """One split of a dataset whose images lie in files.

    Attributes:
        folder: Folder of the files.
        names: Paths of the N files below it.
        labels: int64 of shape (N,), each in [0, num_classes); on the CPU.
        num_classes: Number of classes of the dataset.
        mean, std: Of each of the three channels, in [0, 1].
        classes: Names of the classes.
        size: Side of the images that a network sees, in pixels.
        decoded: Side of the squares that come from the workers, of which those are cut: the shorter
            side of an image is resized to it, the middle of the longer one kept.
        workers: Processes that decode, for each stream of batches; 0 decodes in this one.
        search_fraction: Share of every class that a search sees.
        colour: Whether the usual augmentation changes colours.
        device: Where batches are wanted.
    """

    folder: str
    names: tuple[str, ...]
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    size: int
    decoded: int
    workers: int = 0
    search_fraction: float = 1.0
    colour: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def in_channels(self) -> int:
        """Channels of an image: files in grey become colour."""
        return 3

    @property
    def image_size(self) -> int:
        """Side of the images that a network sees, in pixels."""
        return self.size

    def to(self, device: str | torch.device) -> ImageStream:
        """Return the split with batches on `device`."""
        return replace(self, device=torch.device(device))

    def subset(self, index: Tensor) -> ImageStream:
        """Return the images of `index`, int64 of shape (n,), in that order."""
        names = tuple(self.names[place] for place in index.tolist())
        return replace(self, names=names, labels=self.labels[index.cpu()])

    def normalised(self, images: Tensor) -> Tensor:
        """Return (x / 255 - mean) / std of floating-point images of shape (B, 3, H, W)."""
        mean = images.new_tensor(self.mean).view(-1, 1, 1)
        std = images.new_tensor(self.std).view(-1, 1, 1)
        return images * (1.0 / (255.0 * std)) - mean / std


Images = ImageSet | ImageStream


def for_search(images: Images, seed: int) -> Images:
    """Return what of a training set a search sees: of a stream its share of every class.

    Args:
        images: The training set.
        seed: Seed of the trial; every method sees the same images.
    """
    if isinstance(images, ImageSet):
        return images
    plain = replace(images, colour=False, search_fraction=1.0)
    if images.search_fraction == 1:
        return plain
    draws = make_generator(seed, "search images")
    kept = []
    for label in range(images.num_classes):
        members = (images.labels == label).nonzero().flatten()
        count = max(1, round(len(members) * images.search_fraction))
        kept.append(members[torch.randperm(len(members), generator=draws)[:count]])
    return plain.subset(torch.cat(kept).sort().values)


def stem_for_search(images: Images) -> Stem:
    """Return what stands before the cells of a supernet: for large images of streams ImageNet's."""
    large = isinstance(images, ImageStream) and images.size >= LARGE_IMAGES
    return "imagenet" if large else "cifar"


def make_augmentation(
    images: Images, augment: Augment, cutout: int
) -> Augmentation | PhotoAugmentation:
    """Return the augmentation that the settings ask for.

    Of a stream "none" is the middle of the image; "crop_flip" a box of random size, mirrored every
    other time; "auto" adds changes of colour where the stream has them: not in a search.
    """
    if isinstance(images, ImageSet):
        return choose_augmentation(images, augment, cutout)
    if augment == "none":
        return PhotoAugmentation(cutout=cutout)
    colour = augment == "auto" and images.colour
    return PhotoAugmentation(crop=True, flip=True, colour=colour, cutout=cutout)


def make_batches(
    images: Images,
    batch_size: int,
    *,
    generator: torch.Generator,
    augmentation: Augmentation | PhotoAugmentation,
    dtype: torch.dtype,
    rows: slice | None = None,
) -> Batches | StreamBatches:
    """Return endless random batches of images, in the order and with the draws of a generator.

    With `rows` only those of each batch are given out; the draws are those for all of them.
    """
    if isinstance(images, ImageSet):
        if not isinstance(augmentation, Augmentation):
            raise TypeError("Resident images take an Augmentation.")
        return Batches(
            images,
            batch_size,
            generator=generator,
            augmentation=augmentation,
            dtype=dtype,
            rows=rows,
        )
    if not isinstance(augmentation, PhotoAugmentation):
        raise TypeError("Streams take a PhotoAugmentation.")
    return StreamBatches(
        images,
        batch_size,
        generator=generator,
        augmentation=augmentation,
        dtype=dtype,
        rows=rows,
    )


def go_through(
    images: Images, batch_size: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order, without augmentation; the last batch may be smaller.

    Yields:
        Normalised images of shape (B, C, H, W) and labels of shape (B,).
    """
    if isinstance(images, ImageSet):
        yield from full_pass(images, batch_size, dtype)
        return
    places = list(range(len(images)))
    order = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    for index, pixels in zip(order, _decoded(images, order), strict=True):
        cut = middle(pixels, images.size).to(dtype)
        yield images.normalised(cut), images.labels[index].to(images.device)


class StreamBatches:
    """Endless random batches of a stream: every round is one permutation of all images.

    The last `len(images) % batch_size` images of a round are left out. The order of a round is a
    function of one number drawn at the start and of the round, so that workers may decode ahead
    without a draw; augmentation is drawn when a batch is taken.

    Args:
        images: What batches are decoded from, and the device they are wanted on.
        batch_size: B, images per batch.
        generator: Source of the order and of the augmentation, this object's own.
        augmentation: What is done to the images.
        dtype: Floating-point type of the batches.
        rows: Which images of each batch are given out; the draws are those for all of them.

    Raises:
        DataError: `batch_size` is larger than the data.
    """

    def __init__(
        self,
        images: ImageStream,
        batch_size: int,
        *,
        generator: torch.Generator,
        augmentation: PhotoAugmentation,
        dtype: torch.dtype = torch.float32,
        rows: slice | None = None,
    ) -> None:
        check_batch_size(batch_size, len(images))
        self.images = images
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.dtype = dtype
        self.rows = slice(None) if rows is None else rows
        self._generator = generator
        self._order = _Order(len(images), batch_size, _number(generator))
        self._labels = images.labels.to(images.device)
        self._coming: Iterator[Tensor] | None = None
        self._indices: Iterator[list[int]] | None = None

    def __len__(self) -> int:
        """Return the batches of a round."""
        return len(self.images) // self.batch_size

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.images.device

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next images, normalised, of shape (B, 3, S, S), and labels of shape (B,).

        Raises:
            DataError: A file is missing or damaged; it says which.
        """
        if self._coming is None or self._indices is None:
            self._indices, self._coming = iter(self._order), _decoded(self.images, self._order)
        pixels, index = next(self._coming), next(self._indices)
        self._order = self._order.after()
        settings, source = self.augmentation, self._generator
        images = augmented(pixels, self.images.size, settings, source, self.dtype)
        images = self.images.normalised(images)
        images = cut_out(images, settings.cutout, source, settings.cutout_share)
        labels = self._labels[torch.tensor(index, device=self.device)]
        return images[self.rows], labels[self.rows]

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next batches depend on besides the images."""
        return {
            "num_images": len(self.images),
            "batch_size": self.batch_size,
            "seed": self._order.seed,
            "batch": self._order.batch,
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
        order = replace(self._order, seed=int(state["seed"]), batch=int(state["batch"]))
        if order != self._order:
            self._order, self._coming, self._indices = order, None, None
        self._generator.set_state(state["generator"].cpu())


@dataclass(frozen=True)
class _Order:
    """Indices of the images of every batch from `batch` on, without an end.

    Attributes:
        count: Number of images.
        batch_size: Images per batch.
        seed: Of the permutations.
        batch: Number of the first batch, over all rounds.
    """

    count: int
    batch_size: int
    seed: int
    batch: int = 0

    def after(self) -> _Order:
        """Return the order from the next batch on."""
        return replace(self, batch=self.batch + 1)

    def __iter__(self) -> Iterator[list[int]]:
        per_round = self.count // self.batch_size
        current, first = divmod(self.batch, per_round)
        while True:
            draws = make_generator(self.seed, f"round {current}")
            order = torch.randperm(self.count, generator=draws).tolist()
            for place in range(first, per_round):
                yield order[place * self.batch_size : (place + 1) * self.batch_size]
            current, first = current + 1, 0


class _Files(Dataset[Tensor | str]):
    """Files by their places, decoded; what a worker process holds."""

    def __init__(self, folder: str, names: tuple[str, ...], side: int) -> None:
        self.folder, self.names, self.side = Path(folder), names, side

    def __getitem__(self, index: list[int]) -> Tensor | str:
        """Return uint8 of shape (B, 3, side, side), or what is wrong with a file."""
        images = []
        for place in index:
            path = self.folder / self.names[place]
            try:
                images.append(decoded_image(path.read_bytes(), str(path), self.side))
            except DataError as error:
                return str(error)  # an exception would come with the traceback of a worker
            except OSError as error:
                return f"{path} cannot be read: {error.strerror}. Is the folder still there?"
        pixels = torch.from_numpy(stacked(images))
        return pixels.expand(-1, 3, -1, -1).contiguous()


def _decoded(images: ImageStream, order: Iterable[list[int]]) -> Iterator[Tensor]:
    """Yield the images of each list of places, uint8 of shape (B, 3, D, D), on their device.

    Raises:
        DataError: A file is missing or damaged.
    """
    workers = min(images.workers, len(os.sched_getaffinity(0)) if _LINUX else os.cpu_count() or 1)
    loader = DataLoader(
        _Files(images.folder, images.names, images.decoded),
        batch_size=None,  # the order has whole batches
        sampler=order,
        num_workers=workers,
        pin_memory=images.device.type == "cuda",
        multiprocessing_context=_context() if workers else None,
        # Its own, or the loader would draw from torch's global one.
        generator=torch.Generator(),
    )
    for pixels in loader:
        if isinstance(pixels, str):
            raise DataError(pixels)
        yield pixels.to(images.device, non_blocking=True)


_LINUX = hasattr(os, "sched_getaffinity")


def _context() -> BaseContext:
    """Return how workers are started: never as copies of this process, whose threads they lack."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _number(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
