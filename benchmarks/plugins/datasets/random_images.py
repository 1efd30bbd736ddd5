"""Random images of CIFAR-10's shape: what they show does not matter to a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainables.images import ImageSet

SOURCE = "none: drawn anew by a fixed seed"


@dataclass(frozen=True)
class Config:
    """Size of the data.

    Attributes:
        images: Training images.
        side: Pixels.

    Raises:
        ValueError: A number is below 1.
    """

    images: int = 1024
    side: int = 32

    def __post_init__(self) -> None:
        for name in ("images", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)!r}.")


def load(config: Config, split: Literal["train", "test"]) -> ImageSet:
    """Return `(images, 3, side, side)` random pixels and random labels of ten classes."""
    import torch

    from trainables.images import ImageSet

    generator = torch.Generator().manual_seed(int(split == "test"))
    shape = (config.images, 3, config.side, config.side)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, shape[:1], generator=generator)
    return ImageSet(pixels, labels, 10, (0.5,) * 3, (0.25,) * 3)


def digest(config: Config) -> str:
    """Return a name of the draws."""
    return f"random-{config.images}-{config.side}"


def splits(config: Config) -> tuple[str, ...]:
    """Return the splits that can be loaded."""
    del config
    return ("train", "test")
