"""The layers of a stack of described cells: what each of them reads, at which size. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from spaces.core.layout import CellLayer, ResidualLayer


def stacked(
    places: Sequence[tuple[str, int, bool]],
    first: Sequence[int],
    channels: int,
    *,
    by_block: bool,
    projected: bool,
) -> tuple[CellLayer | ResidualLayer, ...]:
    """Return the layers of a stack; each reduction doubles the channels.

    Args:
        places: Of every cell its type, how many nodes its output joins, and whether images are
            halved there.
        first: Channels of what the first cell reads, one for each input.
        channels: Channels of the first cell.
        by_block: Whether a residual block halves them before the cell, instead of the cell.
        projected: Whether a cell projects what it reads.
    """
    # Channels of what a cell reads, and how often images have been halved there.
    states = [(read, 0) for read in first]
    layers: list[CellLayer | ResidualLayer] = []
    width = channels
    for name, joined, halves in places:
        width = 2 * width if halves else width
        if halves and by_block:
            read, level = states[-1]
            layers.append(ResidualLayer(read, 2 * read))
            states = [*states[1:], (2 * read, level + 1)]
        level = states[-1][1]
        stride = 2 if halves and not by_block else 1
        strides = tuple(1 if earlier == level else 2 for _, earlier in states)
        layers.append(
            CellLayer(
                cell=name,
                channels=width,
                input_channels=tuple(read for read, _ in states),
                input_strides=strides if projected else (),
                stride=stride,
                out_channels=width * joined,
            )
        )
        states = [*states[1:], (width * joined, level + stride - 1)]
    return tuple(layers)
