"""Genotypes: the discrete result of a search, comparable, hashable, JSON both ways."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from spaces.core.errors import SpaceError

NONE = "none"
MOST_INNER_NODES = 8
_LAST_NODE = 15


@dataclass(frozen=True, order=True)
class EdgeChoice:
    """One kept edge: `operation` on the way from node `source` to node `target`."""

    source: int
    target: int
    operation: str


@dataclass(frozen=True)
class Cell:
    """A discrete cell.

    Attributes:
        name: Cell type, such as "normal".
        edges: Kept edges. They are stored sorted by target, source and operation, so that two cells
            that differ only in the order of writing are equal.
        concat: Nodes whose outputs are concatenated into the cell's output.

    Raises:
        SpaceError: An edge does not lead forward, or `concat` names a node that is not there.
    """

    name: str
    edges: tuple[EdgeChoice, ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for edge in self.edges:
            if not 0 <= edge.source < edge.target:
                raise SpaceError(
                    f"Cell {_shown(self.name)}: an edge must lead from a node to a later one, got "
                    f"{_shown(edge.source)} -> {_shown(edge.target)} ({edge.operation:.80})."
                )
        if not self.edges or not self.concat:
            raise SpaceError(f"Cell {_shown(self.name)} must have edges and output nodes (concat).")
        last = max(edge.target for edge in self.edges)
        if last > _LAST_NODE or last - self.num_inputs >= MOST_INNER_NODES:
            raise SpaceError(
                f"Cell {_shown(self.name)} must have at most {MOST_INNER_NODES} inner nodes and "
                f"none above {_LAST_NODE}, since its hash looks at all their orders: it has an "
                f"edge to node {_shown(last)}."
            )
        if len(set(self.concat)) < len(self.concat) or not all(0 <= n <= last for n in self.concat):
            raise SpaceError(
                f"Cell {_shown(self.name)}: concat must name different nodes from 0 to {last}, got "
                f"{_shown(list(self.concat))}."
            )
        ordered = sorted(self.edges, key=lambda edge: (edge.target, edge.source, edge.operation))
        object.__setattr__(self, "edges", tuple(ordered))
        object.__setattr__(self, "concat", tuple(sorted(self.concat)))

    @property
    def num_inputs(self) -> int:
        """Number of input nodes: those before the first node that an edge leads to."""
        return min(edge.target for edge in self.edges)

    @property
    def num_nodes(self) -> int:
        """Number of nodes, inputs included."""
        return max(edge.target for edge in self.edges) + 1


@dataclass(frozen=True)
class Genotype:
    """The discrete architecture that a search finds: one cell for each cell type of a space.

    Attributes:
        space: Name of the space.
        cells: Its cells, by cell type.
        stack: How they are stacked, as JSON, where the space's name alone does not say it.
    """

    space: str
    cells: tuple[Cell, ...]
    stack: str = ""

    def cell(self, name: str) -> Cell:
        """Return the cell of a type.

        Raises:
            SpaceError: There is no such cell.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        names = [cell.name for cell in self.cells]
        raise SpaceError(f"The genotype has no cell '{name}'; it has {_shown(names)}.")

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and mappings, each edge as [source, target, operation]."""
        stack = {"stack": json.loads(self.stack)} if self.stack else {}
        return {
            "space": self.space,
            **stack,
            "cells": [
                {
                    "name": cell.name,
                    "edges": [[edge.source, edge.target, edge.operation] for edge in cell.edges],
                    "concat": list(cell.concat),
                }
                for cell in self.cells
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build a genotype from what `to_json` returns.

        Raises:
            SpaceError: A key is missing or a value has the wrong type; the message names it.
        """
        if not isinstance(data, Mapping):
            raise SpaceError(f"A genotype must be a mapping, got {type(data).__name__}.")
        space = _value(data, "space", str, "genotype")
        cells = _value(data, "cells", list, "genotype")
        read = tuple(_cell_from_json(cell, f"cells[{index}]") for index, cell in enumerate(cells))
        if len({cell.name for cell in read}) < len(read) or not read:
            raise SpaceError(
                f"cells must have different names, got {_shown([cell.name for cell in read])}."
            )
        stack = _value(data, "stack", dict, "genotype") if "stack" in data else {}
        return cls(space, read, stack_text(stack))

    @property
    def hash(self) -> str:
        """Hash of the graph, 12 hexadecimal characters, equal for isomorphic genotypes.

        It is taken over the smallest encoding among all relabelings of the inner nodes that keep
        every edge leading forward, with `none` edges dropped. Skip connections are *not* merged
        into their nodes and dead branches are not cut: both would make cells equal that have other
        parameters or multiply-adds (a convolution that leads nowhere still has weights), and equal
        hashes promise the same cost.
        """
        encoding = [self.space, sorted([cell.name, *_canonical(cell)] for cell in self.cells)]
        encoding += [self.stack] if self.stack else []
        text = json.dumps(encoding, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _shown(value: Any) -> str:
    """Return a value for a message; a file that is no genotype may hold anything."""
    if isinstance(value, int) and abs(value) >= 10**15:
        return "a number of many digits"  # Python refuses to write the longest
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def stack_text(stack: Mapping[str, Any]) -> str:
    """Return the one text of a genotype's `stack`; empty for none."""
    return json.dumps(stack, sort_keys=True, separators=(",", ":")) if stack else ""


def _canonical(cell: Cell) -> list[Any]:
    """Return the smallest [nodes, edges, concat] over all relabelings that stay forward."""
    edges = [edge for edge in cell.edges if edge.operation != NONE]
    encodings = (
        (
            sorted((label[edge.target], label[edge.source], edge.operation) for edge in edges),
            sorted(label[node] for node in cell.concat),
        )
        for label in _relabelings(cell, edges)
    )
    smallest_edges, concat = min(encodings)
    return [cell.num_nodes, [list(edge) for edge in smallest_edges], concat]


def _relabelings(cell: Cell, edges: Sequence[EdgeChoice]) -> Iterator[tuple[int, ...]]:
    """Yield new numbers of all nodes, by which every one of `edges` still leads forward."""
    inner = range(cell.num_inputs, cell.num_nodes)
    before = {node: {e.source for e in edges if e.target == node} & {*inner} for node in inner}

    def placed(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(order) == len(inner):
            yield order
        for node in inner:
            if node not in order and before[node] <= {*order}:
                yield from placed((*order, node))

    for order in placed(()):
        places = {node: place for place, node in enumerate(order, start=cell.num_inputs)}
        yield (*range(cell.num_inputs), *(places[node] for node in inner))


def _cell_from_json(data: Any, where: str) -> Cell:
    if not isinstance(data, Mapping):
        raise SpaceError(f"{where} must be a mapping, got {_shown(data)}.")
    name = _value(data, "name", str, where)
    edges = _value(data, "edges", list, where)
    concat = _value(data, "concat", list, where)
    if not all(_is_int(node) for node in concat):
        raise SpaceError(f"{where}.concat must be a list of node numbers, got {_shown(concat)}.")
    for index, edge in enumerate(edges):
        good = isinstance(edge, list | tuple) and len(edge) == 3
        if not (good and _is_int(edge[0]) and _is_int(edge[1]) and isinstance(edge[2], str)):
            raise SpaceError(
                f"{where}.edges[{index}] must be [source, target, operation], got {_shown(edge)}."
            )
    return Cell(name, tuple(EdgeChoice(*edge) for edge in edges), tuple(concat))


def _value(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in data:
        raise SpaceError(f"{where} must have the key '{key}'; it has {_shown(list(data))}.")
    value = list(data[key]) if kind is list and isinstance(data[key], tuple) else data[key]
    if not isinstance(value, kind):
        raise SpaceError(f"{where}.{key} must be a {kind.__name__}, got {_shown(value)}.")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
