"""Cost of a genotype's network: parameters and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from spaces.core.genotype import Genotype
from spaces.core.layout import Stem
from spaces.core.space import Space


@dataclass(frozen=True)
class Cost:
    """Cost of a network.

    Attributes:
        params: Number of weights, auxiliary head excluded.
        macs: Multiply-adds for one image, in evaluation mode, auxiliary head excluded.
    """

    params: int
    macs: int


def network_cost(
    space: Space,
    genotype: Genotype,
    *,
    channels: int | None = None,
    cells: int | None = None,
    classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    stem: Stem | None = None,
) -> Cost:
    """Return the cost of a genotype's network; None takes the published evaluation network's size.

    The multiply-adds are those of convolutions and matrix products, as counted by
    `torch.utils.flop_counter`; norms, pooling, additions and biases are not counted.

    Args:
        space: Space of the genotype.
        genotype: The architecture.
        channels: Channels of the first cell.
        cells: Number of cells (per stage in NAS-Bench-201).
        classes: Classes.
        in_channels: Channels of the images.
        image_size: Side of the images, in pixels.
        stem: What stands before the cells; None is chosen by the size of the images.

    Raises:
        SpaceError: The genotype is not one of the space, or a size is impossible.
    """
    published = space.evaluation
    in_channels = published.in_channels if in_channels is None else in_channels
    image_size = published.image_size if image_size is None else image_size
    # One image on the CPU is counted faster than on the meta device, whose kernels are in Python.
    network = space.build_network(
        genotype,
        in_channels,
        published.classes if classes is None else classes,
        channels=channels,
        cells=cells,
        image_size=image_size,
        stem=stem,
    ).eval()
    images = torch.zeros(1, in_channels, image_size, image_size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(images, generator=torch.Generator())
    # The counter counts a multiply-add as two operations.
    params = sum(weight.numel() for weight in network.parameters())
    return Cost(params=params, macs=counter.get_total_flops() // 2)
