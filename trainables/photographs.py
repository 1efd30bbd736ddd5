"""Augmentation of photographs, batched on their device: crops of random size, mirroring, colours.

There is no loop over images: boxes, flips and factors of a batch are drawn at once, on the
generator's device, and applied to all of its images together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_ATTEMPTS = 10
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
BRIGHTNESS = CONTRAST = SATURATION = 0.4
HUE = 0.2


@dataclass(frozen=True)
class PhotoAugmentation:
    """What is done to training photographs, in this order; the default cuts the middle alone.

    Attributes:
        crop: Whether a box of random area and ratio is resized to the network's size, in the place
            of the middle.
        flip: Whether an image is mirrored left to right with probability one half.
        colour: Whether brightness, contrast, saturation and hue are changed.
        cutout: Side of the square set to the mean colour after normalisation, in pixels; 0 is off.
        cutout_share: Probability of an image to be cut.
    """

    crop: bool = False
    flip: bool = False
    colour: bool = False
    cutout: int = 0
    cutout_share: float = 1.0


def augmented(
    pixels: Tensor,
    size: int,
    augmentation: PhotoAugmentation,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return a batch at the network's size, augmented, with values from 0 to 255.

    Args:
        pixels: uint8 of shape (B, 3, D, D), D >= size.
        size: Side S of the images that are returned, in pixels.
        augmentation: `cutout` is not used: it comes after normalisation.
        generator: Source of the draws: boxes, flips, then factors of brightness, contrast,
            saturation and hue.
        dtype: Floating-point type of the result.

    Returns:
        Shape (B, 3, S, S).
    """
    batch, _, side, _ = pixels.shape
    if augmentation.crop:
        boxes = random_boxes(batch, side, generator).to(pixels.device, dtype)
        images = resized_crops(pixels.to(dtype), boxes, size)
    else:
        images = middle(pixels, size).to(dtype)
    if augmentation.flip:
        draws = torch.randint(2, (batch, 1, 1, 1), generator=generator, device=generator.device)
        images = torch.where(draws.to(pixels.device) == 1, images.flip(3), images)
    if augmentation.colour:
        draws = torch.rand(4, batch, generator=generator, device=generator.device)
        images = recoloured(images / 255.0, draws.to(pixels.device, dtype)) * 255.0
    return images


def middle(images: Tensor, size: int) -> Tensor:
    """Return the middle square of side `size` of images of shape (B, C, D, D)."""
    start = round((images.shape[-1] - size) / 2)
    return images[..., start : start + size, start : start + size]


def random_boxes(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw boxes of 8 % to all of a square's area and of a ratio of 3/4 to 4/3.

    The logarithm of the ratio is uniform. The first of ten draws that fits counts, and the whole
    square where none does.

    Args:
        batch: B, number of boxes.
        side: D, side of the square in pixels.
        generator: Source of the draws.

    Returns:
        Whole numbers (top, left, height, width), float64 of shape (4, B), where the generator is.

    Source:
        Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6, in the form of
        torchvision's RandomResizedCrop, which the DARTS authors' code uses (train_imagenet.py).
    """
    options = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    area, ratio, down, right = torch.rand(4, _ATTEMPTS, batch, **options)  # type: ignore[call-overload]
    area = side * side * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
    low, high = (math.log(value) for value in _RATIO)
    ratio = torch.exp(low + (high - low) * ratio)
    width = torch.round(torch.sqrt(area * ratio))
    height = torch.round(torch.sqrt(area / ratio))
    fits = (width >= 1) & (width <= side) & (height >= 1) & (height <= side)
    top = torch.floor(down * (side - height + 1))
    left = torch.floor(right * (side - width + 1))
    # The last row stands for the whole square, and always fits.
    whole = torch.tensor([0.0, 0.0, side, side], device=area.device, dtype=torch.float64)
    drawn = torch.stack([top, left, height, width])
    every = torch.cat([drawn, whole.view(4, 1, 1).expand(4, 1, batch)], dim=1)
    fits = torch.cat([fits, torch.ones_like(fits[:1])])
    first = fits.to(torch.int8).argmax(dim=0)
    return every.gather(1, first.expand(4, 1, batch)).squeeze(1)


def resized_crops(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return the boxes of images as squares of side `size`, bilinear and without antialiasing.

    Args:
        images: Floating-point, of shape (B, C, D, D).
        boxes: (top, left, height, width) in pixels, of shape (4, B), of the same type and device.
        size: S.

    Returns:
        Shape (B, C, S, S). Nothing outside of a box is seen: its border is repeated.
    """
    side = images.shape[-1]
    top, left, height, width = boxes[:, :, None]
    steps = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) / size
    rows = (top + steps * height - 0.5).clamp(min=top, max=top + height - 1)
    columns = (left + steps * width - 0.5).clamp(min=left, max=left + width - 1)
    # grid_sample counts from -1 to 1 over the whole image, borders of pixels included.
    rows, columns = ((2 * place + 1) / side - 1 for place in (rows, columns))
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, size, -1),
            rows[:, :, None].expand(-1, -1, size),
        ],
        dim=-1,
    )
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def recoloured(images: Tensor, draws: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image by its own factors.

    Args:
        images: Shape (B, 3, H, W), values in [0, 1].
        draws: Uniform in [0, 1), of shape (4, B): brightness, contrast and saturation are scaled by
            0.6 to 1.4, the hue is turned by -0.2 to 0.2 of the circle.

    Returns:
        Shape (B, 3, H, W), values in [0, 1].

    Source:
        ColorJitter(0.4, 0.4, 0.4, 0.2) of the DARTS authors' code (train_imagenet.py). Differs:
        the four come in this order, there in a random one.
    """
    ranges = (BRIGHTNESS, CONTRAST, SATURATION)
    factors = [
        (1 - spread + 2 * spread * draw)[:, None, None, None]
        for spread, draw in zip(ranges, draws[:3], strict=True)
    ]
    images = (images * factors[0]).clamp(0, 1)
    mean = _grey(images).mean(dim=(2, 3), keepdim=True)
    images = (mean + (images - mean) * factors[1]).clamp(0, 1)
    grey = _grey(images)
    images = (grey + (images - grey) * factors[2]).clamp(0, 1)
    return turned(images, HUE * (2 * draws[3] - 1))


def turned(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of images by a share of the circle, value and chroma unchanged.

    Args:
        images: Shape (B, 3, H, W), values in [0, 1].
        turn: Shape (B,), in [-1, 1].
    """
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turn[:, None, None]
    # A channel is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (shift + hue) % 6.
    channels = []
    for shift in (5, 3, 1):
        k = (shift + sixth) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)
