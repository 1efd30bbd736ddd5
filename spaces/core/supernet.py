"""The supernet engine: one code path per source node, no search state, no globals.

What makes it fast on a CPU: channels_last; `none` costs nothing; ReLU, pooling and its batch norm
run once per source node and not once per edge; dense convolutions of one size that leave a node run
as one; dilated convolutions run without dilation on the phases of the image; op weights enter as
the weight of the operation's last batch norm, so that mixing costs no pass over the data; what a
mask leaves out is not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from spaces.core.errors import SpaceError
from spaces.core.layers import Source
from spaces.core.layout import CellLayer, CellTopology, Layout
from spaces.core.mixed_cell import MixedCell
from spaces.core.mixture import PLAIN, Form, Mixture, Norm, Structure
from spaces.core.operations import NOISE
from spaces.core.recomputing import recomputed
from spaces.core.source_mix import CellScales, Draws, EdgeScales, SourceMix
from spaces.core.trunk import Trunk


@dataclass(frozen=True)
class CellMixture:
    """What a mixture says of one cell.

    Attributes:
        op_weights: `(num_edges, num_ops)`.
        edge_weights: `(num_edges,)`, or None.
        active: Boolean, `(num_edges, num_ops)`, on the CPU, or None.
        offsets: `(num_edges,)`, or None.
        skip_scale: 0-dimensional or a number, or None.
    """

    op_weights: Tensor
    edge_weights: Tensor | None
    active: Tensor | None
    offsets: Tensor | None
    skip_scale: Tensor | float | None

    def scales(self, channels: int) -> CellScales:
        """Return what each edge is mixed by, for operations that see `channels` channels."""
        op_weights, edge_weights, offsets = self.op_weights, self.edge_weights, self.offsets
        num_edges = len(op_weights)
        absent: Sequence[None] = [None] * num_edges
        skip_scales: Tensor | None = None
        if self.skip_scale is not None:
            skip_scales = self.skip_scale * op_weights.new_ones(num_edges)
        if edge_weights is not None:
            # The factor of a sum is a factor of all that is small, and costs no pass over images.
            op_weights = op_weights * edge_weights[:, None]
            offsets = None if offsets is None else offsets * edge_weights
            skip_scales = None if skip_scales is None else skip_scales * edge_weights
        skips: Sequence[tuple[Tensor, Tensor] | None] = absent
        if skip_scales is not None:
            vectors = _repeated(skip_scales, channels)
            skips = list(zip(skip_scales.unbind(), vectors.unbind(), strict=True))
        repeated = _repeated(op_weights, channels)
        per_edge = zip(
            op_weights.unbind(),
            repeated.unbind(),
            absent if self.active is None else self.active.tolist(),
            absent if edge_weights is None else edge_weights.unbind(),
            absent if offsets is None else offsets.unbind(),
            skips,
            strict=True,
        )
        edges = tuple(
            EdgeScales(scalars.unbind(), vectors.unbind(), *extras)
            for scalars, vectors, *extras in per_edge
        )
        return CellScales(edges, op_weights.reshape(-1), repeated.view(-1, channels))


def _repeated(values: Tensor, channels: int) -> Tensor:
    # One copy for all: an expanded scalar as a norm's weight gives NaN gradients on the CPU.
    flat = values.reshape(-1).repeat_interleave(channels)
    return flat.view(*values.shape, channels)


Calls = Callable[..., Tensor]


def _run_raw(
    cell: nn.Module, inputs: Sequence[Tensor], mixture: CellMixture, channels: int, norm: Norm
) -> Tensor:
    # Of tensors alone, and of nothing that an earlier cell has left.
    found: Tensor = cell([Source(x) for x in inputs], mixture.scales(channels), norm)
    return found


class Supernet(nn.Module):
    """Over-parameterised network: weights and running statistics, and nothing else.

    A pass is a function of (weights, running statistics, mixture, images): alphas live outside.

    Args:
        topologies: Of every cell type.
        layout: How cells are stacked.
        structure: What there is besides candidate operations. Its weights are drawn after all
            others, so that those are the same with and without it.

    Attributes:
        recomputes: Whether cells keep no activations for the backward pass and run again in it.
        calls: What runs `run(cell, ...)` in another way, such as compiled; None runs it as it is.

    Raises:
        SpaceError: The layout does not allow the structure.
    """

    def __init__(
        self,
        topologies: Sequence[CellTopology],
        layout: Layout,
        structure: Structure = PLAIN,
    ) -> None:
        super().__init__()
        self.recomputes = False
        self.calls: Calls | None = None
        self.structure = structure
        self.topologies = {topology.name: topology for topology in topologies}
        self.trunk = Trunk(
            layout, lambda layer: MixedCell(self.topologies[layer.cell], layer, structure)
        )
        if structure.auxiliary_skip:
            for module in self.trunk.modules():
                if isinstance(module, SourceMix):
                    module.add_auxiliary_skips()
        cells = [layer for layer in layout.layers if isinstance(layer, CellLayer)]
        self.num_cells = {
            name: sum(layer.cell == name for layer in cells) for name in self.topologies
        }
        self.to(memory_format=torch.channels_last)

    def use_form(self, form: Form) -> None:
        """Run the operations in another form from now on; weights and statistics stay."""
        for module in self.trunk.modules():
            if isinstance(module, SourceMix):
                module.form = form

    def forward(
        self,
        images: Tensor,
        mixture: Mixture,
        *,
        norm: Norm = "batch",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Classify images.

        Args:
            images: `(B, in_channels, H, W)`.
            mixture: What every cell type is mixed by.
            norm: Statistics of the batch norms: "batch", "batch_and_update" or "running".
            generator: Source of all randomness inside the network, on the device of the images.

        Returns:
            Logits, `(B, num_classes)`.

        Raises:
            SpaceError: The mixture has a wrong shape or asks for what the supernet does not have,
                or there is no such `norm`.
        """
        self._check(mixture, norm)
        share = mixture.skip_dropout if norm != "running" else 0.0
        if share > 0 and generator is None:
            raise SpaceError("A mixture with skip_dropout needs a generator, got None.")
        draws = Draws(generator, share)
        shared: dict[tuple[str, int], CellScales] = {}
        seen = dict.fromkeys(self.topologies, 0)

        def run_cell(cell: nn.Module, layer: CellLayer, inputs: Sequence[Source]) -> Tensor:
            name, place = layer.cell, seen[layer.cell]
            seen[name] += 1
            channels = layer.channels // self.structure.partial_channels
            key = (name, channels)
            if _differs(mixture, name):
                scales = _of_cell(mixture, name, place).scales(channels)
            else:
                if key not in shared:
                    shared[key] = _of_cell(mixture, name, place).scales(channels)
                scales = shared[key]
            if self.calls is not None and mixture.active is None:
                mine = _of_cell(mixture, name, place)
                return self.calls(_run_raw, cell, [x.raw for x in inputs], mine, channels, norm)
            if not self.recomputes:
                return cell(inputs, scales, norm, draws)

            def run(*raw: Tensor) -> Tensor:
                # Sources of its own: what they have computed before would be kept.
                return cell([Source(x) for x in raw], scales, norm, draws)

            noisy = share > 0 or NOISE in self.topologies[name].operations
            source = generator if noisy else None
            return recomputed(run, [each.raw for each in inputs], cell, source)

        return self.trunk(images, norm, run_cell)[0]

    def _check(self, mixture: Mixture, norm: Norm) -> None:
        if norm not in get_args(Norm):
            raise SpaceError(f"norm must be one of {get_args(Norm)}, got {norm!r}.")
        for what, last in _BY_CELL.items():
            tensors: Mapping[str, Tensor] | None = getattr(mixture, what)
            if tensors is not None:
                self._check_shapes(what, tensors, with_operations=last)
        for name, active in (mixture.active or {}).items():
            if active.dtype != torch.bool or active.device.type != "cpu":
                raise SpaceError(
                    f"active['{name}'] must be boolean and on the CPU, where it decides what is "
                    f"run, got {active.dtype} on {active.device}."
                )
        if mixture.skip_scale is None:
            return
        if not self.structure.auxiliary_skip:
            raise SpaceError(
                "skip_scale needs a supernet with auxiliary skips: build it with "
                "Structure(auxiliary_skip=True)."
            )
        if isinstance(mixture.skip_scale, Tensor) and mixture.skip_scale.dim():
            raise SpaceError(
                "skip_scale must be a number or 0-dimensional, got shape "
                f"{tuple(mixture.skip_scale.shape)}."
            )

    def _check_shapes(
        self, what: str, tensors: Mapping[str, Tensor], *, with_operations: bool
    ) -> None:
        for name, topology in self.topologies.items():
            shape: tuple[int, ...] = topology.shape if with_operations else topology.shape[:1]
            if name not in tensors:
                raise SpaceError(f"{what} must have the cell type '{name}', got {list(tensors)}.")
            got = tuple(tensors[name].shape)
            if got not in (shape, (self.num_cells[name], *shape)):
                raise SpaceError(
                    f"{what}['{name}'] must have shape {shape} or "
                    f"{(self.num_cells[name], *shape)}, got {got}."
                )


# What a mixture has by cell type, and whether it has a column for each operation.
_BY_CELL = {"op_weights": True, "edge_weights": False, "active": True, "offsets": False}


def _differs(mixture: Mixture, name: str) -> bool:
    # Whether the cells of a type are mixed by anything of their own.
    tensors = ((getattr(mixture, what), last) for what, last in _BY_CELL.items())
    return any(t is not None and t[name].dim() == 2 + last for t, last in tensors)


def _of_cell(mixture: Mixture, name: str, place: int) -> CellMixture:
    parts: dict[str, Any] = {}
    for what, last in _BY_CELL.items():
        tensors: Mapping[str, Tensor] | None = getattr(mixture, what)
        value = None if tensors is None else tensors[name]
        parts[what] = value[place] if value is not None and value.dim() == 2 + last else value
    return CellMixture(**parts, skip_scale=mixture.skip_scale)
