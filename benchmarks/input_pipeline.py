"""Images per second of the input pipeline on one core, against a DataLoader with torchvision.

    python -m benchmarks.input_pipeline [--images 5000] [--rounds 5] [--step-seconds 0.4]

Both make training batches of CIFAR-10's shape: random crop with padding 4, mirroring, normalising,
and a cutout of 16 pixels. The reference is what the public search codes do: a DataLoader whose
dataset turns one array after another into a PIL image and sends it through torchvision's transforms
and the authors' cutout, in the main process. The images are random: their content costs nothing.

The two are measured in turns, and the fastest round of each counts, in CPU seconds of this process,
so that other work on the machine disturbs little. `--step-seconds` is what a search step takes on
the same core (the two batches of a step are compared with it).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainables.augment import Augmentation
from trainables.images import Batches, ImageSet

BATCH_SIZE = 64
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

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                ReferenceCutout(),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), 0


def reference_epochs(pixels: np.ndarray) -> Iterator[Callable[[], int]]:
    """Yield, again and again, a function that makes one epoch and returns its images."""
    loader = DataLoader(ReferenceImages(pixels), BATCH_SIZE, shuffle=True, drop_last=True)

    def epoch() -> int:
        return sum(len(labels) for _, labels in loader)

    while True:
        yield epoch


def resident_epochs(pixels: np.ndarray) -> Iterator[Callable[[], int]]:
    """Yield the same for batches of resident images."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.zeros(len(images), dtype=torch.int64)
    batches = Batches(
        ImageSet(images, labels, 10, MEAN, STD),
        BATCH_SIZE,
        generator=torch.Generator().manual_seed(0),
        augmentation=Augmentation(crop_padding=4, flip=True, cutout=CUTOUT),
    )

    def epoch() -> int:
        return sum(len(batches.next_batch()[1]) for _ in range(len(batches)))

    while True:
        yield epoch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-seconds", type=float, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (arguments.images, 32, 32, 3), dtype=np.uint8)
    pipelines = {"DataLoader": reference_epochs(pixels), "resident": resident_epochs(pixels)}
    best = dict.fromkeys(pipelines, 0.0)
    for _ in range(arguments.rounds):
        for name, epochs in pipelines.items():
            epoch = next(epochs)
            start = time.process_time()
            count = epoch()
            best[name] = max(best[name], count / (time.process_time() - start))
    for name, rate in best.items():
        print(f"{name:<12}{rate:>10,.0f} images/s a core")
    print(f"{'ratio':<12}{best['resident'] / best['DataLoader']:>10.1f} x")
    if arguments.step_seconds is not None:
        share = 2 * BATCH_SIZE / best["resident"] / arguments.step_seconds
        print(f"{'of a step':<12}{share:>10.2%}")


if __name__ == "__main__":
    main()
