"""Two kinds of noisy stripes, a few dozen images, for tests of whole searches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainables.errors import DataError
from trainables.images import ImageSet, channel_statistics

SOURCE = "made here"


@dataclass(frozen=True)
class Config:
    """Its only setting is its size."""

    num_images: int = 48


def load(config: Config, split: str) -> ImageSet:
    """Return 8x8 images; a search that asks for the test split fails."""
    if split != "train":
        raise DataError(f"the test split was asked for: {split}")
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(config.num_images) % 2
    noise = torch.rand(config.num_images, 1, 8, 8, generator=generator)
    stripes = torch.zeros(2, 1, 8, 8)
    stripes[0, :, ::2] = 1.0
    stripes[1, :, :, ::2] = 1.0
    images = ((0.5 * noise + 0.5 * stripes[labels]) * 255).to(torch.uint8)
    mean, std = channel_statistics(images)
    return ImageSet(images, labels, 2, mean, std)


def digest(config: Config) -> str:
    """Return what identifies the content."""
    return f"{config.num_images:016x}"
