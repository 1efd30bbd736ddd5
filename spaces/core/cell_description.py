"""A space of cells as a researcher describes it: nodes, edges, operations, stack. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from spaces.core import cell_edges
from spaces.core.cell_plan import CellPlan
from spaces.core.cell_stack import stacked
from spaces.core.genotype import MOST_INNER_NODES
from spaces.core.layout import CellTopology, Layout

DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
_LEAST = {
    "channels": 1,
    "cells": 1,
    "stem_multiplier": 1,
    "network_channels": 1,
    "network_cells": 1,
}
_OF_TYPE = ("nodes", "edges", "operations", "output", "keep")
_OF_STACK = (
    *("cell_types", "reduce_by", "project_inputs", "stem_multiplier", "final_norm"),
    *("network_channels", "network_cells"),
)


@dataclass(frozen=True)
class Description:
    """A space of cells; the defaults are the space of DARTS.

    Nodes are numbered as in genotypes: first the inputs of a cell, then its inner nodes.

    Attributes:
        inputs: Cells before it that a cell reads: 1 or 2.
        nodes: Inner nodes of a cell.
        edges: "all" for those from every earlier node, or a list of [from, to] and of
            [from, to, [operation, ...]], whose candidates are its own.
        operations: Candidate operations of every other edge.
        output: "concat" of all inner nodes, or the "last" one.
        keep: Edges that a genotype keeps into each node: one number, one for each inner node, or
            "all". With "all" `none` may be chosen on an edge; else it never is.
        by_type: For a cell type, any of nodes, edges, operations, output and keep that differ.
        cell_types: "kind" for normal and reduction cells, "one" for the same in all places,
            "stage" for one of each stage, that is until the next reduction.
        channels: Channels of the first cell; each reduction doubles them.
        cells: Number of cells.
        reductions: Places, from 0, of the cells at which images are halved, or "thirds" for a third
            and two thirds of all. In a network of another depth they are moved in proportion.
        reduce_by: "cell": that cell has stride 2; "block": a residual block before it halves.
        project_inputs: Whether a 1x1 convolution brings each input to the channels of its cell.
        stem_multiplier: Channels of the stem, in those of the first cell.
        final_norm: Whether a batch norm and a ReLU stand before the classifier.
        pool_norm: Whether the supernet has a batch norm after pooling.
        network_channels: Channels of the first cell of a genotype's network, where `retrain` or a
            command does not give them.
        network_cells: Cells of such a network, likewise.

    Raises:
        ValueError: A value is out of range or two do not go together; the message begins with the
            setting.
    """

    inputs: int = 2
    nodes: int = 4
    edges: Literal["all"] | tuple[Any, ...] = "all"
    operations: tuple[str, ...] = DARTS_OPERATIONS
    output: Literal["concat", "last"] = "concat"
    keep: Literal["all"] | int | tuple[int, ...] = 2
    by_type: dict[str, dict[str, Any]] | None = None
    cell_types: Literal["kind", "one", "stage"] = "kind"
    channels: int = 16
    cells: int = 8
    reductions: Literal["thirds"] | tuple[int, ...] = "thirds"
    reduce_by: Literal["cell", "block"] = "cell"
    project_inputs: bool = True
    stem_multiplier: int = 3
    final_norm: bool = False
    pool_norm: bool = True
    network_channels: int = 36
    network_cells: int = 20

    def __post_init__(self) -> None:
        if self.inputs not in (1, 2):
            raise ValueError(f"inputs must be 1 or 2, got {self.inputs}.")
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value < least:
                raise ValueError(f"{key} must be >= {least}, got {value}.")
        for key in ("channels", "network_channels"):
            value = getattr(self, key)
            if value == 1 and self.reduce_by == "cell":
                raise ValueError(f"{key} must be >= 2, so that a cell can halve images, got 1.")
        self._check_reductions()
        for name in self.by_type or {}:
            if name not in self.type_names:
                raise ValueError(
                    f"by_type has {name!r}, which is none of the cell types of this stack: "
                    f"{', '.join(self.type_names)}."
                )
        plans = self.plans  # checks edges and operations of every type
        self._check_projection()
        if all(plan.num_choices == 1 for plan in plans):
            raise ValueError("keep must leave a choice: every edge has one operation and is kept.")

    def _check_reductions(self) -> None:
        if self.reductions == "thirds":
            if self.cells < 3:
                raise ValueError(
                    f"cells must be >= 3 with reductions at a third and at two thirds, got "
                    f"{self.cells}. Set reductions to a list of places, [] for none."
                )
            return
        first = 1 if self.reduce_by == "block" or self.cell_types == "stage" else 0
        places = list(self.reductions)
        if places != sorted(set(places)) or any(not first <= p < self.cells for p in places):
            raise ValueError(
                f"reductions must be different places from {first} to {self.cells - 1}, in order, "
                f"got {places}."
            )
        if self.cell_types == "kind" and self.reduce_by == "cell" and len(places) == self.cells:
            raise ValueError("reductions must leave a normal cell, got one at every place.")

    def _check_projection(self) -> None:
        if self.project_inputs:
            return
        needed = {"inputs": 1, "output": "last", "stem_multiplier": 1}
        if self.places_in(self.cells):
            needed["reduce_by"] = "block"
        for key, value in needed.items():
            given = [getattr(self, key)]
            if key == "output":
                given = [of.get(key, self.output) for of in self._settings_of_types()]
            if any(each != value for each in given):
                raise ValueError(
                    f"project_inputs can be false only with {key}: {value}, so that what a cell "
                    f"reads has its channels, got {given[0]}."
                )

    def _settings_of_types(self) -> list[Mapping[str, Any]]:
        return [(self.by_type or {}).get(name, {}) for name in self.type_names]

    @property
    def type_names(self) -> tuple[str, ...]:
        """Names of the cell types, in the order of the stack."""
        return tuple(dict.fromkeys(self.types_in(self.cells)))

    @cached_property
    def plans(self) -> tuple[CellPlan, ...]:
        """The cell types."""
        return tuple(self._plan(name) for name in self.type_names)

    @property
    def halves_in_cells(self) -> bool:
        """Whether there are cells of stride 2."""
        return self.reduce_by == "cell" and self.reductions != ()

    def _plan(self, name: str) -> CellPlan:
        own = (self.by_type or {}).get(name, {})
        where = f"by_type.{name}." if own else ""
        if not isinstance(own, Mapping):
            raise ValueError(f"by_type.{name} must be a mapping, got {own!r}.")
        for key in own:
            if key not in _OF_TYPE:
                raise ValueError(
                    f"by_type.{name}.{key} is no setting of a cell type; it has "
                    f"{', '.join(_OF_TYPE)}."
                )
        settings = {key: own.get(key, getattr(self, key)) for key in _OF_TYPE}
        nodes, output = settings["nodes"], settings["output"]
        if not isinstance(nodes, int) or not 1 <= nodes <= MOST_INNER_NODES:
            raise ValueError(f"{where}nodes must be from 1 to {MOST_INNER_NODES}, got {nodes!r}.")
        if output not in ("concat", "last"):
            raise ValueError(f"{where}output must be concat or last, got {output!r}.")
        edges = cell_edges.read(
            settings["edges"],
            settings["operations"],
            inputs=self.inputs,
            nodes=nodes,
            last_alone=output == "last",
            where=where,
        )
        inner = range(self.inputs, self.inputs + nodes)
        keep = cell_edges.read_keep(settings["keep"], [*edges], inner, where=where)
        same = len(set(edges.values())) == 1
        topology = CellTopology(
            name=name,
            num_inputs=self.inputs,
            edges=tuple(edges),
            operations=tuple(dict.fromkeys(op for names in edges.values() for op in names)),
            concat=tuple(inner) if output == "concat" else (inner[-1],),
            pool_norm=self.pool_norm,
            by_edge=None if same else tuple(edges.values()),
        )
        return CellPlan(topology, keep, settings["keep"] == "all")

    def places_in(self, cells: int) -> tuple[int, ...]:
        """Return where images are halved in a stack of so many cells."""
        if self.reductions == "thirds":
            return cells // 3, 2 * cells // 3
        return tuple(place * cells // self.cells for place in self.reductions)

    def types_in(self, cells: int) -> tuple[str, ...]:
        """Return the cell type of every place of a stack of so many cells."""
        places = self.places_in(cells)
        if self.cell_types == "one":
            return ("cell",) * cells
        if self.cell_types == "stage":
            return tuple(f"stage_{1 + sum(p <= at for p in places)}" for at in range(cells))
        by_cell = self.reduce_by == "cell"
        return tuple(
            "reduction" if by_cell and place in places else "normal" for place in range(cells)
        )

    def at(self, cells: int) -> Description:
        """Return the same space with another number of cells in its supernet.

        Raises:
            ValueError: There is no such stack.
        """
        if self.reductions == "thirds":
            return replace(self, cells=cells)
        if cells < 1:
            raise ValueError(f"cells must be >= 1, got {cells}.")
        return replace(self, cells=cells, reductions=self.places_in(cells))

    def layout(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int,
        cells: int,
        auxiliary: bool = False,
    ) -> Layout:
        """Return a stack of cells.

        Args:
            in_channels: Channels of the images.
            num_classes: Classes.
            channels: Channels of the first cell.
            cells: Number of cells.
            auxiliary: Whether an auxiliary head follows the last reduction.

        Raises:
            ValueError: There is no such stack.
        """
        places, types = self.places_in(cells), self.types_in(cells)
        if len({*places}) < len(places) or (self.reduce_by == "block" and 0 in places):
            raise ValueError(
                f"cells must leave {len(places)} different places for reductions, got {cells}."
            )
        if channels < 2 and self.halves_in_cells:
            raise ValueError(f"channels must be >= 2, got {channels}.")
        joined = {plan.topology.name: len(plan.topology.concat) for plan in self.plans}
        missing = [name for name in types if name not in joined]
        if missing:
            raise ValueError(f"cells must leave out the cell type {missing[0]}, got {cells}.")
        stem = self.stem_multiplier * channels
        layers = stacked(
            [(name, joined[name], place in places) for place, name in enumerate(types)],
            [stem] * self.inputs,
            channels,
            by_block=self.reduce_by == "block",
            projected=self.project_inputs,
        )
        after = None
        if auxiliary and places:  # there is one only where cells halve, so that layers are cells
            after = places[-1]
        return Layout(in_channels, num_classes, stem, layers, self.final_norm, after)

    @property
    def stack(self) -> dict[str, Any]:
        """What a network depends on besides its cells: settings from which it is built again."""
        found: dict[str, Any] = {key: getattr(self, key) for key in _OF_STACK}
        found["reductions"] = self.reductions
        if self.reductions != "thirds":
            found |= {"reductions": list(self.reductions), "cells": self.cells}
        return found
