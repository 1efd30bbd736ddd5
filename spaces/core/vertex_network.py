"""Networks of NAS-Bench-101: operations on the vertices of a cell, which share its channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core.draws import Draws
from spaces.core.errors import SpaceError
from spaces.core.graph101 import CONV1X1, CONV3X3, MAX_POOL, Matrix
from spaces.core.layers import BatchNorm, Head, convolution
from spaces.core.layout import CellLayer, Layout
from spaces.core.mixture import Norm
from spaces.core.network import drop_samples
from spaces.core.operations import pool

_KERNELS = {CONV3X3: 3, CONV1X1: 1}


class ConvNormReLU(nn.Module):
    """Convolution of stride 1, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int, *, affine: bool) -> None:
        super().__init__()
        self.convolution = convolution(in_channels, channels, kernel, stride=1)
        self.batch_norm = BatchNorm(channels, affine=affine)

    def forward(self, x: Tensor, norm: Norm) -> Tensor:
        """Map `(B, in_channels, H, W)` to `(B, channels, H, W)`."""
        return functional.relu(self.batch_norm(self.convolution(x), norm))


def max_pool(x: Tensor) -> Tensor:
    """Pool `(B, C, H, W)` over 3x3 windows at stride 1."""
    return pool(x, "max_pool_3x3", 1)


def vertex_channels(out_channels: int, adjacency: Matrix) -> tuple[int, ...]:
    """Return the channels of every inner vertex of a pruned cell.

    Those that lead to the output share its channels evenly, the first of them one more each where
    that leaves a remainder. Every other has as many as the widest inner vertex that it leads to.

    Args:
        out_channels: Channels of the output.
        adjacency: 0 or 1, `(n, n)`, input and output included.

    Raises:
        SpaceError: There are fewer channels than vertices to share them.

    Source:
        Ying et al., NAS-Bench-101, ICML 2019, and the authors' code (model_builder.py).
    """
    last = len(adjacency) - 1
    joined = [vertex for vertex in range(1, last) if adjacency[vertex][last]]
    if len(joined) > out_channels:
        raise SpaceError(
            f"channels must be >= {len(joined)}: so many vertices of the cell share them, got "
            f"{out_channels}."
        )
    channels = [0] * (last + 1)
    for place, vertex in enumerate(joined):
        channels[vertex] = out_channels // len(joined) + (place < out_channels % len(joined))
    for vertex in range(last - 1, 0, -1):
        if not adjacency[vertex][last]:
            follow = [y for y in range(vertex + 1, last) if adjacency[vertex][y]]
            channels[vertex] = max(channels[y] for y in follow)
    return tuple(channels[1:last])


class VertexCell(nn.Module):
    """A cell of NAS-Bench-101.

    A vertex adds up what leads to it, the input through a 1x1 projection of its own, and runs its
    operation. The output joins the vertices that lead to it and adds a projection of the input if
    that does. Where a vertex is one channel wider than the next, its last channel is left out.
    """

    def __init__(self, operations: tuple[str, ...], adjacency: Matrix, layer: CellLayer) -> None:
        super().__init__()
        self.operations, self.adjacency, self.stride = operations, adjacency, layer.stride
        in_channels, last = layer.input_channels[0], len(adjacency) - 1
        self.channels = vertex_channels(layer.out_channels, adjacency)
        self.num_paths = len(self.channels)
        widths = (0, *self.channels, layer.out_channels)
        # Of vertices and of the output, by number.
        self.projections = nn.ModuleDict(
            {
                str(vertex): ConvNormReLU(in_channels, widths[vertex], 1, affine=True)
                for vertex in range(1, last + 1)
                if adjacency[0][vertex]
            }
        )
        self.convolutions = nn.ModuleDict(
            {
                str(vertex): ConvNormReLU(
                    widths[vertex], widths[vertex], _KERNELS[operation], affine=True
                )
                for vertex, operation in enumerate(operations, start=1)
                if operation != MAX_POOL
            }
        )

    def forward(
        self, x: Tensor, norm: Norm, drop_path: float, generator: torch.Generator | Draws | None
    ) -> Tensor:
        """Map the input `(B, in_channels, H, W)` to `(B, out_channels, H, W)`."""
        last = len(self.adjacency) - 1
        vertices: list[Tensor] = [x]
        for vertex, width in enumerate(self.channels, start=1):
            terms = [
                vertices[source][:, :width]
                for source in range(1, vertex)
                if self.adjacency[source][vertex]
            ]
            if self.adjacency[0][vertex]:
                terms.append(self.projections[str(vertex)](x, norm))
            total = _sum(terms)
            if self.operations[vertex - 1] == MAX_POOL:
                output = max_pool(total)
            else:
                output = self.convolutions[str(vertex)](total, norm)
            if drop_path > 0:
                output = drop_samples(output, drop_path, generator)
            vertices.append(output)
        joined = [vertices[vertex] for vertex in range(1, last) if self.adjacency[vertex][last]]
        terms = [torch.cat(joined, 1)] if joined else []
        if self.adjacency[0][last]:
            terms.append(self.projections[str(last)](x, norm))
        return _sum(terms)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class VertexNetwork(nn.Module):
    """A stem, stacks of one cell with max pooling between them, and a classifier.

    Args:
        operations: Of the inner vertices of the cell.
        adjacency: 0 or 1, `(n, n)`, input and output included; pruned.
        layout: Stem, widths and classes; a cell of stride 2 has its input pooled.

    Source:
        Ying et al., NAS-Bench-101, ICML 2019, and the authors' code (model_builder.py and
        base_ops.py). Differs: initial weights are torch's default; running statistics move by 0.1 a
        batch and not by 0.003; `drop_path`, which is not theirs, drops the output of a vertex.
    """

    def __init__(self, operations: tuple[str, ...], adjacency: Matrix, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.stem = ConvNormReLU(layout.in_channels, layout.stem_channels, 3, affine=True)
        cells = [layer for layer in layout.layers if isinstance(layer, CellLayer)]
        self.cells = nn.ModuleList(VertexCell(operations, adjacency, layer) for layer in cells)
        self.head = Head(cells[-1].out_channels, layout.num_classes, final_norm=False)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        drop_path: float = 0.0,
        generator: torch.Generator | Draws | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Classify images.

        Args:
            images: `(B, in_channels, H, W)`.
            drop_path: Probability of dropping a vertex's output for a sample, in [0, 1). Only in
                training.
            generator: Source of that randomness, on the device of the images, or what was drawn
                from one.

        Returns:
            Logits `(B, num_classes)`, and None: there is no auxiliary head.
        """
        norm: Norm = "batch_and_update" if self.training else "running"
        share = drop_path if self.training else 0.0
        x = self.stem(images.contiguous(memory_format=torch.channels_last), norm)
        for cell in self.cells:
            if cell.stride == 2:
                x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
            x = cell(x, norm, share, generator)
        return self.head(x, norm), None
