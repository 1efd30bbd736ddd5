"""Images a second of the input pipeline on one core, against a DataLoader with torchvision.

Both make training batches of CIFAR-10's shape: random crop with padding 4, mirroring, normalising,
and a cutout of 16 pixels. The reference is what the public search codes do: a DataLoader whose
dataset turns one array after another into a PIL image and sends it through torchvision's transforms
and the authors' cutout, in the main process. The images are random: their content costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measuring import interleaved
from trainables.augment import Augmentation
from trainables.images import Batches, ImageSet

CUTOUT = 16
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class ReferenceCutout:
    """Zero a square of one normalised image (C, H, W)."""

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
        half = CUTOUT // 2
        mask = np.ones((height, width), np.float32)
        mask[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0.0
        return image * torch.from_numpy(mask)


class ReferenceImages(Dataset[tuple[Tensor, int]]):
    """One image at a time, as torchvision's CIFAR10 gives them."""

    def __init__(self, pixels: np.ndarray, side: int = 32) -> None:
        self.pixels = pixels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(side, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                ReferenceCutout(),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), index % 10


def reference_epoch(pixels: np.ndarray, batch: int) -> Callable[[], int]:
    """Return a function that makes one epoch and returns its number of images."""
    loader = DataLoader(ReferenceImages(pixels), batch, shuffle=True, drop_last=True)
    return lambda: sum(len(labels) for _, labels in loader)


def resident_epoch(pixels: np.ndarray, batch: int, device: torch.device) -> Callable[[], int]:
    """Return the same for batches of resident images."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.zeros(len(images), dtype=torch.int64)
    batches = Batches(
        ImageSet(images, labels, 10, MEAN, STD).to(device),
        batch,
        generator=torch.Generator().manual_seed(0),
        augmentation=Augmentation(crop_padding=4, flip=True, cutout=CUTOUT),
    )
    return lambda: sum(len(batches.next_batch()[1]) for _ in range(len(batches)))


def measure(*, batch: int, images: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the row of the pipeline.

    Args:
        batch: Images of a batch.
        images: Of an epoch.
        device: Where the resident images are.
        rounds: Epochs that are timed.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    cases = {
        "ours": resident_epoch(pixels, batch, device),
        "reference": reference_epoch(pixels, batch),
    }
    times = interleaved(cases, rounds, device)
    count = images // batch * batch
    ours, reference = times["ours"], times["reference"]
    return {
        "case": f"pipeline batch={batch}",
        "speedup": reference.least / ours.least,
        "speedup_of_medians": reference.median / ours.median,
        "ours_s": ours.least,
        "ours_median_s": ours.median,
        "reference_s": reference.least,
        "reference_median_s": reference.median,
        "images_per_s": count / ours.least,
        "reference_images_per_s": count / reference.least,
        "rounds": rounds,
    }
