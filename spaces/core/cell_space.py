"""A space of described cells: everything that a search, a retraining or a drawing asks of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from spaces.core import plugins
from spaces.core.cell_description import Description
from spaces.core.cell_plan import CellPlan
from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, EdgeChoice, Genotype, stack_text
from spaces.core.layout import Layout
from spaces.core.operations import without_weights
from spaces.core.space import Evaluation, Space
from spaces.core.text import parse


class CellSpace(Space):
    """The space that a `Description` describes.

    Args:
        name: Name of the plug-in.
        config: Its settings.
        description: Cells and stack.

    Raises:
        SpaceError: An operation of a plug-in does not keep its contract.
    """

    def __init__(self, name: str, config: Any, description: Description) -> None:
        self._plans = {plan.topology.name: plan for plan in description.plans}
        super().__init__(name, config, tuple(plan.topology for plan in description.plans))
        self.description = description
        self.evaluation = Evaluation(
            channels=description.network_channels,
            cells=description.network_cells,
            classes=10,
        )
        self.has_auxiliary = description.halves_in_cells
        self.has_imagenet_stem = (
            description.inputs == 2
            and description.project_inputs
            and description.reduce_by == "cell"
        )
        every = dict.fromkeys(op for names in self.operations.values() for op in names)
        self.parameter_free = frozenset(op for op in every if without_weights(op))
        self.skip_operation = "skip_connect" if "skip_connect" in every else None
        self.stack = stack_text(description.stack)

    @property
    def num_choices(self) -> int:
        """Number of genotypes; isomorphic ones count apart."""
        return math.prod(plan.num_choices for plan in self._plans.values())

    def search_size(self) -> tuple[int, int]:
        """Return channels of the first cell and number of cells of the supernet."""
        return self.description.channels, self.description.cells

    def with_cells(self, cells: int) -> Space:
        """Return the space with another number of cells in its supernet."""
        try:
            other = self.description.at(cells)
        except ValueError as error:
            raise SpaceError(f"Space '{self.name}': {error}") from error
        if other.type_names != self.cell_types:
            raise SpaceError(
                f"Space '{self.name}': cells must leave room for the cell types "
                f"{', '.join(self.cell_types)}, got {cells}."
            )
        changed = type(self)(self.name, self.config, other)
        # A genotype is one of the space, whatever the depth of a supernet on the way to it.
        changed.stack, changed.evaluation = self.stack, self.evaluation
        return changed

    def supernet_layout(self, in_channels: int, num_classes: int) -> Layout:
        """Return the stack of cells of the search."""
        channels, cells = self.search_size()
        return self._layout(in_channels, num_classes, channels=channels, cells=cells)

    def network_layout(
        self, in_channels: int, num_classes: int, *, channels: int, cells: int, auxiliary: bool
    ) -> Layout:
        """Return the same stack at another size, with or without the auxiliary head."""
        return self._layout(
            in_channels, num_classes, channels=channels, cells=cells, auxiliary=auxiliary
        )

    def _layout(self, in_channels: int, num_classes: int, **size: Any) -> Layout:
        try:
            return self.description.layout(in_channels, num_classes, **size)
        except ValueError as error:
            raise SpaceError(f"Space '{self.name}': {error}") from error

    def normal_cells(self, genotype: Genotype) -> tuple[Cell, ...]:
        """Return all cells but the reduction cell."""
        return tuple(
            genotype.cell(name) for name in self.cell_types if name != "reduction"
        ) or super().normal_cells(genotype)

    def selectable(self, name: str) -> list[int]:
        """Return the columns that a genotype can have: that of `none` where all edges are kept."""
        return self._plans[name].selectable

    def choose(self, name: str, op_weights: Tensor) -> Cell:
        """Keep the strongest edges into every node, each with its strongest operation.

        The strength of an edge is its largest op weight, other than that of `none` unless all edges
        are kept; ties go to the lower index, of edges as of operations.
        """
        plan = self._plans[name]
        topology, columns = plan.topology, plan.selectable
        strengths = op_weights[:, columns].amax(1).tolist()
        best = op_weights[:, columns].argmax(1).tolist()
        kept = []
        for node, count in zip(plan.inner, plan.keep, strict=True):
            rows = sorted(plan.rows_into(node), key=lambda row: (-strengths[row], row))
            for row in rows[:count]:
                operation = topology.of_edge(row)[columns[best[row]]]
                kept.append(EdgeChoice(*topology.edges[row], operation))
        return Cell(name, tuple(kept), topology.concat)

    def check_cell(self, cell: Cell) -> None:
        """Raise SpaceError unless as many edges lead into each node as the space keeps."""
        plan = self._plans[cell.name]
        _check_kept(cell, plan, self.name)
        for edge in cell.edges:
            column = self.place_of(cell.name, edge)[1]
            if column not in plan.selectable:
                raise SpaceError(
                    f"Cell '{cell.name}' of '{self.name}' cannot have '{edge.operation}' on an "
                    "edge that it keeps: it is no operation of a genotype unless keep is all."
                )

    def parse(self, text: str) -> Genotype:
        """Read the JSON of `Genotype.to_json`; a stack that it does not say is this space's."""
        genotype = parse(text, self.name)
        if not genotype.stack:
            genotype = replace(genotype, stack=self.stack)
        self.check(genotype)
        return genotype

    def format(self, genotype: Genotype) -> str:
        """Write the JSON of `Genotype.to_json` in one line."""
        self.check(genotype)
        return json.dumps(genotype.to_json())


def described_space(name: str, config: Any, **settings: Any) -> CellSpace:
    """Return the space that settings describe: for a space in a file of its own.

    Args:
        name: Name of the plug-in, as `build` gets it.
        config: Its settings, likewise.
        settings: Any of `Description`, as in an experiment file.

    Raises:
        PluginSettingsError: A setting that there is not, or a value that cannot be.
        SpaceError: An operation of a plug-in does not keep its contract.
    """
    description = plugins.typed_config(Description, settings, where=name, owner="a described space")
    return CellSpace(name, config, description)


def _check_kept(cell: Cell, plan: CellPlan, space: str) -> None:
    pairs = [(edge.source, edge.target) for edge in cell.edges]
    counts = tuple(sum(target == node for _, target in pairs) for node in plan.inner)
    if counts != plan.keep or len(set(pairs)) < len(pairs) or cell.concat != plan.topology.concat:
        raise SpaceError(
            f"Cell '{cell.name}' of '{space}' must have {list(plan.keep)} different edges into its "
            f"nodes {[*plan.inner]} and the output {list(plan.topology.concat)}, got {pairs} and "
            f"{list(cell.concat)}."
        )
