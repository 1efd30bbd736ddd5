"""The two halves of a search's training set, as batches. The test split does not appear here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.bilevel import Batch
from trainables.images import Batches, split_train_val
from trainables.settings import SearchSettings, resolved
from trainables.state import DTYPES, make_generator
from trainables.streams import (
    Images,
    StreamBatches,
    for_search,
    go_through,
    make_augmentation,
    make_batches,
)


class SearchData:
    """Batches of the training and of the validation split, fixed by the seed, whatever the method.

    Batches of both are augmented, as in the DARTS authors' code; `validation` is not.

    Args:
        images: The training set of a dataset; of a stream its share for searches is taken.
        settings: Batch size, train_share, augmentation and precision are used.
        seed: Seed of the trial.
        device: Where the images are kept, as uint8, or those of a stream are wanted.

    Attributes:
        num_steps: Batches of the training split in an epoch.
    """

    def __init__(
        self, images: Images, settings: SearchSettings, *, seed: int, device: torch.device
    ) -> None:
        images = for_search(images, seed)
        augmentation = make_augmentation(images, settings.augment, settings.cutout)
        parts = split_train_val(len(images), settings.train_share, seed)

        def batches(index: Tensor, purpose: str) -> Batches | StreamBatches:
            return make_batches(
                images.subset(index).to(device),
                settings.batch_size,
                # On the CPU, so that the batches of a seed are the same on every device.
                generator=make_generator(seed, purpose),
                augmentation=augmentation,
                dtype=DTYPES[resolved(settings.precision)],
            )

        self._train = batches(parts[0], "train batches")
        self._val = batches(parts[1], "val batches")
        self.num_steps = len(self._train)

    def next_batches(self) -> tuple[Batch, Batch]:
        """Return the next training batch and the next validation batch."""
        return self._train.next_batch(), self._val.next_batch()

    def validation(self) -> Iterator[Batch]:
        """Yield the whole validation split once, in order, in batches of nearly equal size."""
        # A tiny last batch would spoil the statistics of norm "batch".
        size = len(self._val.images)
        even = math.ceil(size / math.ceil(size / self._val.batch_size))
        return go_through(self._val.images, even, self._val.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return where the batches of both splits stand."""
        return {"train": self._train.state_dict(), "val": self._val.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            StateError: The state is of other data or of another batch size.
        """
        self._train.load_state_dict(state["train"])
        self._val.load_state_dict(state["val"])
