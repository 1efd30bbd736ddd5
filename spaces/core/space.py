"""What a search space is: cells, candidate operations, and how both kinds of network are built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spaces.core.errors import SpaceError, near_miss
from spaces.core.genotype import Cell, EdgeChoice, Genotype
from spaces.core.layout import CellTopology, Layout, Stem, on_imagenet_stem
from spaces.core.mixture import PLAIN, Structure
from spaces.core.network import Network
from spaces.core.operations import PARAMETER_FREE
from spaces.core.supernet import Supernet

LARGE_IMAGES = 128
"""Side of images, in pixels, from which on a network's stem is that of ImageNet by default."""


@dataclass(frozen=True)
class Evaluation:
    """Size of the published network that a space's genotypes are compared in.

    Attributes:
        channels: Channels of the first cell.
        cells: Number of cells (per stage in NAS-Bench-201).
        classes: Number of classes.
        in_channels: Channels of the images.
        image_size: Side of the images, in pixels.
    """

    channels: int
    cells: int
    classes: int
    in_channels: int = 3
    image_size: int = 32


class Space(ABC):
    """A cell search space at one setting.

    Attributes:
        name: Name of the plug-in.
        config: Its settings.
        cell_types: Names of the cell types, in the order of a genotype's cells.
        operations: By cell type, the candidate operations: columns of the op weights, unless edges
            have candidates of their own; `operations_of` tells those of an edge.
        edges: By cell type, (source, target) of every edge: rows of the op weights.
        has_edges: Whether rows of the op weights are edges, each of which has one operation in a
            genotype. Where they are not, `edges` is empty, and `operations` and op weights go by
            names of the space's own in the place of cell types.
        parents: Where there are no edges: by name, of op weights whose one row chooses among
            nodes, how many columns a genotype keeps. Rows of all others choose one operation.
        evaluation: Size of the published evaluation network.
        has_auxiliary: Whether its networks can have an auxiliary head.
        has_imagenet_stem: Whether its networks can have the stem for large images.
        parameter_free: Operations without weights, whose dominance marks a collapsed search.
        skip_operation: Name of the skip connection; None where there is none.
        stack: What a genotype says of its stack besides the name of the space; often nothing.
    """

    evaluation: Evaluation
    has_auxiliary: bool
    has_imagenet_stem: bool = False
    has_edges: bool = True
    parameter_free: frozenset[str] = PARAMETER_FREE
    skip_operation: str | None = "skip_connect"
    stack: str = ""

    def __init__(self, name: str, config: Any, topologies: tuple[CellTopology, ...]) -> None:
        self.name = name
        self.config = config
        self.topologies = topologies
        self._topology = {topology.name: topology for topology in topologies}
        self.cell_types = tuple(topology.name for topology in topologies)
        self.operations = {topology.name: topology.operations for topology in topologies}
        self.edges = {topology.name: topology.edges for topology in topologies}
        self.parents: dict[str, int] = {}

    def alpha_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (num_edges, num_ops) of every cell type."""
        return {topology.name: topology.shape for topology in self.topologies}

    def topology(self, name: str) -> CellTopology:
        """Return the description of a cell type."""
        return self._topology[name]

    def operations_of(self, name: str, edge: int) -> tuple[str, ...]:
        """Return the candidate operations of an edge of a cell type: the columns of its row."""
        if name not in self._topology:
            return self.operations[name]
        return self._topology[name].of_edge(edge)

    def place_of(self, name: str, choice: EdgeChoice) -> tuple[int, int]:
        """Return row and column, in the op weights of a cell type, of a kept edge's operation."""
        row = self.edges[name].index((choice.source, choice.target))
        return row, self.operations_of(name, row).index(choice.operation)

    @property
    def num_choices(self) -> int | None:
        """Number of choices of edges and operations; isomorphic ones count apart. None: unknown."""
        return None

    def selectable(self, name: str) -> list[int]:
        """Return the columns of a cell type's operations that a genotype can have on an edge."""
        return list(range(self.alpha_shapes()[name][1]))

    def normal_cells(self, genotype: Genotype) -> tuple[Cell, ...]:
        """Return the cells by which a search is judged to have collapsed: those of the first type.

        Reduction cells do not count: without weights they are common in good genotypes.
        """
        return (genotype.cell(self.cell_types[0]),)

    def network_cells(
        self,
        genotype: Genotype,  # noqa: ARG002 (only where the genotype says its depth)
        cells: int | None,
    ) -> int:
        """Return the number of cells (per stage in NAS-Bench-201) of a genotype's network.

        Args:
            genotype: The architecture.
            cells: The number asked for; None is that of the published evaluation network.

        Raises:
            SpaceError: The genotype has no network of so many cells.
        """
        return self.evaluation.cells if cells is None else cells

    @abstractmethod
    def search_size(self) -> tuple[int, int]:
        """Return the size of the supernet as (channels, cells), in the terms of `build_network`."""

    @abstractmethod
    def supernet_layout(self, in_channels: int, num_classes: int) -> Layout:
        """Return how the cells of the supernet are stacked."""

    @abstractmethod
    def network_layout(
        self, in_channels: int, num_classes: int, *, channels: int, cells: int, auxiliary: bool
    ) -> Layout:
        """Return how the cells of a genotype's network are stacked."""

    @abstractmethod
    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Return the cell that op weights `(num_edges, num_ops)` of a cell type stand for."""

    @abstractmethod
    def parse(self, text: str) -> Genotype:
        """Read a genotype from the space's official text form, or from JSON."""

    @abstractmethod
    def format(self, genotype: Genotype) -> str:
        """Write a genotype in the space's official text form."""

    @abstractmethod
    def check_cell(self, cell: Cell) -> None:
        """Raise SpaceError where a cell does not fit the rules of the space."""

    def with_cells(self, cells: int) -> Space:
        """Return the same space with another number of cells in its supernet.

        Args:
            cells: Number of cells (per stage in NAS-Bench-201).

        Returns:
            Space whose alphas have the shapes of this one's.

        Raises:
            SpaceError: There is no supernet of so many cells, or none of any other number.
        """
        raise SpaceError(
            f"Space '{self.name}' has no supernet of {cells} cells, because it does not say how to "
            "build one of another depth: give it a `with_cells`."
        )

    def build_supernet(
        self,
        in_channels: int,
        num_classes: int,
        *,
        seed: int,
        structure: Structure = PLAIN,
        stem: Stem | None = None,
    ) -> nn.Module:
        """Build the supernet on the CPU in float32, from `seed`; the global RNG is untouched.

        Args:
            in_channels: Channels of the images.
            num_classes: Classes.
            seed: Seed of the initial weights. What the structure adds draws last, so that all
                other weights of one seed are the same with and without it.
            structure: What the supernet has besides candidate operations.
            stem: What stands before the cells; None is the one of the space's own layout.

        Returns:
            Supernet; `supernet(images, mixture, norm=..., generator=...)` gives logits.

        Raises:
            SpaceError: The space does not allow the structure or the stem.
        """
        layout = self.supernet_layout(in_channels, num_classes)
        if stem == "imagenet":
            self._check_imagenet_stem()
            layout = on_imagenet_stem(layout, self.search_size()[0])
        with _seeded(seed):
            return self.make_supernet(layout, structure)

    def make_supernet(self, layout: Layout, structure: Structure) -> nn.Module:
        """Return the module of a supernet; its weights are drawn from the global RNG."""
        return Supernet(self.topologies, layout, structure)

    def make_network(self, genotype: Genotype, layout: Layout) -> nn.Module:
        """Return the module of a genotype's network; likewise."""
        return Network(genotype, layout)

    def build_network(
        self,
        genotype: Genotype,
        in_channels: int,
        num_classes: int,
        *,
        channels: int | None = None,
        cells: int | None = None,
        auxiliary: bool = False,
        image_size: int = 32,
        stem: Stem | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """Build a genotype's network, CPU, float32.

        Args:
            genotype: The architecture.
            in_channels: Channels of the images.
            num_classes: Classes.
            channels: Channels of the first cell; None is the published evaluation network.
            cells: Number of cells (per stage in NAS-Bench-201); None likewise. Where every cell has
                an architecture of its own the genotype says how many, and no other is possible.
            auxiliary: Whether it has an auxiliary head.
            image_size: Side of the images, in pixels; those of the spaces shipped take any.
            stem: What stands before the cells; None is "imagenet" for images of `LARGE_IMAGES`
                pixels and more where the space has it, else "cifar".
            seed: Seed of the initial weights. The global RNG is untouched.

        Returns:
            Network; `network(images, drop_path, generator)` gives logits and auxiliary logits.

        Raises:
            SpaceError: The genotype is not one of this space, or a size is impossible.
        """
        self.check(genotype)
        sizes = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "channels": channels,
            "cells": cells,
            "image_size": image_size,
        }
        for what, value in sizes.items():
            if value is not None and value < 1:
                raise SpaceError(f"{what} must be >= 1, got {value}.")
        if auxiliary and not self.has_auxiliary:
            raise SpaceError(
                f"The networks of space '{self.name}' have no auxiliary head; set "
                "auxiliary_weight to 0."
            )
        if stem == "imagenet":
            self._check_imagenet_stem()
        channels = self.evaluation.channels if channels is None else channels
        layout = self.network_layout(
            in_channels,
            num_classes,
            channels=channels,
            cells=self.network_cells(genotype, cells),
            auxiliary=auxiliary,
        )
        large = image_size >= LARGE_IMAGES and self.has_imagenet_stem
        if stem == "imagenet" or (stem is None and large):
            layout = on_imagenet_stem(layout, channels)
        with _seeded(seed):
            return self.make_network(genotype, layout)

    def _check_imagenet_stem(self) -> None:
        if not self.has_imagenet_stem:
            raise SpaceError(
                f"The networks of space '{self.name}' have no stem for ImageNet; set stem to cifar."
            )

    def discretize(self, op_weights: Mapping[str, Tensor]) -> Genotype:
        """Return the genotype that op weights stand for.

        Args:
            op_weights: By cell type, `(num_edges, num_ops)`; only their order matters.

        Raises:
            SpaceError: A cell type is missing, a shape is wrong or a value is not finite.
        """
        values = {}
        for name, shape in self.alpha_shapes().items():
            if name not in op_weights:
                raise SpaceError(f"op_weights must have '{name}', got {list(op_weights)}.")
            values[name] = op_weights[name].detach().cpu()
            if tuple(values[name].shape) != shape:
                raise SpaceError(
                    f"op_weights['{name}'] must have shape {shape} (num_edges, num_ops), got "
                    f"{tuple(values[name].shape)}."
                )
            if not bool(torch.isfinite(values[name]).all()):
                raise SpaceError(
                    f"op_weights['{name}'] must be finite, got {values[name].tolist()}."
                )
        return Genotype(self.name, self.choose_cells(values), self.stack)

    def choose_cells(self, op_weights: Mapping[str, Tensor]) -> tuple[Cell, ...]:
        """Return the cells that checked op weights, each `(num_edges, num_ops)`, stand for."""
        return tuple(self.choose(name, op_weights[name]) for name in self.cell_types)

    def one_hot(self, genotype: Genotype, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return op weights that are 1 where the genotype has an operation, and 0 elsewhere.

        Args:
            genotype: The architecture.
            like: Op weights whose precision and device are taken.
        """
        op_weights = {}
        for name, shape in self.alpha_shapes().items():
            op_weights[name] = like[name].detach().new_zeros(shape)
            for edge in genotype.cell(name).edges:
                op_weights[name][self.place_of(name, edge)] = 1.0
        return op_weights

    def _with_settings(self, **changed: int) -> Space:
        try:
            config = replace(self.config, **changed)
        except ValueError as error:
            raise SpaceError(f"Space '{self.name}': {error}") from error
        build: Callable[[str, Any], Space] = type(self)
        return build(self.name, config)

    def check(self, genotype: Genotype) -> None:
        """Raise SpaceError, with what is wrong, where a genotype is not one of this space."""
        if genotype.space != self.name:
            raise SpaceError(
                f"The genotype is one of space '{genotype.space}', not of '{self.name}'."
            )
        if genotype.stack != self.stack:
            raise SpaceError(
                f"The genotype's cells are stacked as {genotype.stack or 'it does not say'}, and "
                f"those of this space '{self.name}' as {self.stack or 'its name says'}."
            )
        names = tuple(cell.name for cell in genotype.cells)
        if sorted(names) != sorted(self.cell_types):
            raise SpaceError(
                f"A genotype of '{self.name}' must have the cells {list(self.cell_types)}, got "
                f"{list(names)}."
            )
        for cell in genotype.cells:
            for edge in cell.edges:
                self._check_edge(cell.name, edge)
            self.check_cell(cell)

    def _check_edge(self, name: str, edge: EdgeChoice) -> None:
        if (edge.source, edge.target) not in self.edges[name]:
            raise SpaceError(
                f"Cell '{name}' of '{self.name}' has no edge {edge.source} -> {edge.target}."
            )
        operations = self.operations_of(name, self.edges[name].index((edge.source, edge.target)))
        if edge.operation not in operations:
            where = f"Cell '{name}' of '{self.name}'"
            if self._topology[name].by_edge is not None:
                where = f"Edge {edge.source} -> {edge.target} of cell '{name}' of '{self.name}'"
            raise SpaceError(
                f"{where} has no operation '{edge.operation}'; it has "
                f"{', '.join(operations)}.{near_miss(edge.operation, operations)}"
            )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would reseed those of the GPUs as well.
        torch.default_generator.manual_seed(seed)
        yield
