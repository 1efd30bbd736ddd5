"""Discrete networks: what a genotype is built into for training from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spaces.core.draws import Draws
from spaces.core.genotype import NONE, Cell, Genotype
from spaces.core.layers import Source
from spaces.core.layout import CellLayer, Layout
from spaces.core.mixture import Norm
from spaces.core.operations import Noise, Skip, build_operation
from spaces.core.trunk import Trunk


class DiscreteCell(nn.Module):
    """A cell of a genotype; every edge runs the one operation it kept."""

    def __init__(self, cell: Cell, layer: CellLayer) -> None:
        super().__init__()
        self.cell = cell
        self.edges = tuple(edge for edge in cell.edges if edge.operation != NONE)
        self.stride = layer.stride
        self.operations = nn.ModuleList(
            build_operation(
                edge.operation,
                layer.channels,
                stride=layer.stride if edge.source < cell.num_inputs else 1,
                affine=True,
            )
            for edge in self.edges
        )
        self.num_paths = sum(not isinstance(part, Skip) for part in self.operations)

    def forward(
        self,
        inputs: Sequence[Source],
        norm: Norm,
        drop_path: float,
        generator: torch.Generator | Draws | None,
    ) -> Tensor:
        """Map the inputs, each `(B, C, H, W)`, to the concatenated outputs."""
        nodes = list(inputs)
        for node in range(len(inputs), self.cell.num_nodes):
            total: Tensor | None = None
            for edge, operation in zip(self.edges, self.operations, strict=True):
                if edge.target != node:
                    continue
                source = nodes[edge.source]
                if isinstance(operation, Noise):
                    output = operation(source, norm, generator)
                else:
                    output = operation(source, norm)
                if drop_path > 0 and not isinstance(operation, Skip):
                    output = drop_samples(output, drop_path, generator)
                total = output if total is None else total + output
            nodes.append(Source(self._zeros(inputs[0].raw) if total is None else total))
        outputs = [nodes[node].raw for node in self.cell.concat]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)

    def _zeros(self, like: Tensor) -> Tensor:
        # A node that nothing reaches; every space gives all its nodes the size of strided inputs.
        return torch.zeros_like(like[:, :, :: self.stride, :: self.stride])


def drop_samples(x: Tensor, share: float, generator: torch.Generator | Draws | None) -> Tensor:
    """Zero `x`, `(B, C, H, W)`, for a random share of samples and rescale the others.

    Args:
        x: Output of a path.
        share: Probability of dropping a sample's path, in [0, 1).
        generator: Source of the randomness, on the device of `x`, or what was drawn from one.

    Returns:
        Tensor like `x`, with the same expectation.

    Source:
        Larsson et al., FractalNet, ICLR 2017, in the form of the DARTS authors' code.
    """
    if isinstance(generator, Draws):
        draws = generator.take()
    else:
        draws = torch.rand(x.shape[0], 1, 1, 1, generator=generator, device=x.device)
    return x * ((draws >= share) / (1.0 - share)).to(x.dtype)


class Network(nn.Module):
    """A genotype's network; `train()` and `eval()` choose the batch-norm statistics as usual."""

    def __init__(self, genotype: Genotype, layout: Layout) -> None:
        super().__init__()
        self.trunk = Trunk(
            layout,
            lambda layer: DiscreteCell(genotype.cell(layer.cell), layer),
            affine=True,
        )
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
            drop_path: Probability of dropping a path for a sample, in [0, 1). Skip connections that
                keep their input as it is are never dropped. Only in training.
            generator: Source of that randomness, on the device of the images, or what was drawn
                from one; genotypes with noise need a generator, in evaluation too.

        Returns:
            Logits `(B, num_classes)` and, in training a network that has one, the logits of the
            auxiliary head; None otherwise.
        """
        norm: Norm = "batch_and_update" if self.training else "running"
        share = drop_path if self.training else 0.0

        def run_cell(cell: nn.Module, _: CellLayer, inputs: Sequence[Source]) -> Tensor:
            return cell(inputs, norm, share, generator)

        return self.trunk(images, norm, run_cell, auxiliary=self.training)
