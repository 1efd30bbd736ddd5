"""Cells of NAS-Bench-101: operations on the vertices of a graph, pruned, in one canonical form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

from spaces.core.errors import SpaceError, near_miss
from spaces.core.genotype import Cell, EdgeChoice

CONV3X3 = "conv3x3-bn-relu"
CONV1X1 = "conv1x1-bn-relu"
MAX_POOL = "maxpool3x3"
DIGITS = {CONV3X3: 0, CONV1X1: 1, MAX_POOL: 2}
INPUT = "input"
OUTPUT = "output"
"""What an edge into the output vertex carries in a `Cell`, where others carry an operation."""

MAX_VERTICES = 7
"""Of the cells of the benchmark, input and output included."""

Matrix = tuple[tuple[int, ...], ...]
Graph = tuple[tuple[str, ...], Matrix]
"""Operations of the inner vertices, and the adjacency matrix, input and output included."""


def in_order(operations: Sequence[str], adjacency: Sequence[Sequence[int]]) -> Graph:
    """Return the same graph with its inner vertices renumbered so that every edge leads forward.

    Args:
        operations: Of the inner vertices, in any order.
        adjacency: 0 or 1, `(n, n)`, the input first and the output last.

    Raises:
        SpaceError: The matrix is not of that size, or the graph has a cycle.
    """
    last = len(operations) + 1
    if [len(row) for row in adjacency] != [last + 1] * (last + 1):
        raise SpaceError(
            f"The adjacency of {len(operations)} inner vertices must be a {last + 1} x {last + 1} "
            f"matrix, input and output included, got rows of {[len(row) for row in adjacency]}."
        )
    sources = [{x for x in range(last + 1) if adjacency[x][y]} for y in range(last + 1)]
    order = [0]
    while len(order) < last:
        ready = [v for v in range(1, last) if v not in order and sources[v] <= set(order)]
        if not ready:
            break
        order.append(ready[0])
    if len(order) < last or sources[0] or any(adjacency[last]):
        raise SpaceError("A NAS-Bench-101 cell must have no cycle.")
    order.append(last)
    return (
        tuple(operations[vertex - 1] for vertex in order[1:-1]),
        tuple(tuple(int(bool(adjacency[x][y])) for y in order) for x in order),
    )


def pruned(operations: tuple[str, ...], adjacency: Matrix) -> Graph:
    """Return the graph without the vertices that are on no path from the input to the output.

    Args:
        operations: Of the inner vertices, in order.
        adjacency: 0 or 1, `(n, n)` with n = len(operations) + 2: [x][y] is the edge x -> y, x < y.

    Raises:
        SpaceError: It is no such matrix, an operation is unknown, or nothing leads to the output.
    """
    if len(adjacency) != len(operations) + 2:
        raise SpaceError(
            f"The adjacency matrix of {len(operations)} inner vertices must have "
            f"{len(operations) + 2} rows, input and output included, got {len(adjacency)}."
        )
    for operation in operations:
        if operation not in DIGITS:
            raise SpaceError(
                f"NAS-Bench-101 has no operation '{operation}'; it has {', '.join(DIGITS)}."
                f"{near_miss(operation, DIGITS)}"
            )
    kept, matrix = _pruned(adjacency)
    return tuple(operations[vertex - 1] for vertex in kept[1:-1]), matrix


@lru_cache(maxsize=4096)
def _pruned(adjacency: Matrix) -> tuple[tuple[int, ...], Matrix]:
    """Return the vertices that are kept and their matrix; many cells differ in operations alone."""
    for x, row in enumerate(adjacency):
        if len(row) != len(adjacency):
            raise SpaceError(
                f"The adjacency matrix must be square, got {len(adjacency)} rows and one of "
                f"{len(row)} entries."
            )
        for y, value in enumerate(row):
            if value not in (0, 1) or (value and x >= y):
                raise SpaceError(
                    "The adjacency matrix must have 0 or 1 above its diagonal and 0 elsewhere, got "
                    f"{value!r} in row {x}, column {y}."
                )
    kept = connected(adjacency)
    if not kept:
        raise SpaceError("A NAS-Bench-101 cell must have a path from its input to its output.")
    return kept, tuple(tuple(adjacency[x][y] for y in kept) for x in kept)


def connected(adjacency: Matrix) -> tuple[int, ...]:
    """Return the vertices on paths from the input to the output, both included; () without any."""
    last = len(adjacency) - 1
    reached, leading = {0}, {last}
    for x, y in itertools.combinations(range(last + 1), 2):
        # Pairs come by source, so that all that leads to x is known before what leaves it.
        if adjacency[x][y] and x in reached:
            reached.add(y)
    for x in range(last, -1, -1):
        if any(adjacency[x][y] for y in leading):
            leading.add(x)
    return tuple(sorted(reached & leading))


def canonical(operations: tuple[str, ...], adjacency: Matrix) -> tuple[int, int, tuple[int, ...]]:
    """Return what isomorphic cells have in common, and no others.

    The cell is pruned; then, over all orders of its inner vertices that keep every edge leading
    forward, the smallest (adjacency, operations) is taken.

    Args:
        operations: Of the inner vertices, in order.
        adjacency: 0 or 1, `(n, n)`, input and output included.

    Returns:
        Number of vertices, input and output included; adjacency as a set of bits, the edge x -> y
        at x + y (y - 1) / 2; operations as digits: 0 is conv3x3, 1 conv1x1, 2 maxpool.

    Raises:
        SpaceError: As `pruned`.
    """
    operations, adjacency = pruned(operations, adjacency)
    bits, orders = _smallest(adjacency)
    digits = [DIGITS[operation] for operation in operations]
    return len(adjacency), bits, min(tuple(digits[v - 1] for v in order) for order in orders)


def of_canonical(vertices: int, bits: int, digits: tuple[int, ...]) -> Graph:
    """Return the graph that `canonical` says of itself, in that order of its vertices."""
    names = tuple(DIGITS)
    matrix = tuple(
        tuple(int(x < y and bool(bits >> (x + y * (y - 1) // 2) & 1)) for y in range(vertices))
        for x in range(vertices)
    )
    return tuple(names[digit] for digit in digits), matrix


@lru_cache(maxsize=4096)
def _smallest(adjacency: Matrix) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Return the smallest adjacency bits and all orders of the inner vertices that give them."""
    last = len(adjacency) - 1
    edges = [(x, y) for x, y in itertools.combinations(range(last + 1), 2) if adjacency[x][y]]
    by_bits: dict[int, list[tuple[int, ...]]] = {}
    for order in itertools.permutations(range(1, last)):
        label = {0: 0, last: last} | {old: new for new, old in enumerate(order, start=1)}
        places = [(label[x], label[y]) for x, y in edges]
        if all(x < y for x, y in places):
            bits = sum(1 << (x + y * (y - 1) // 2) for x, y in places)
            by_bits.setdefault(bits, []).append(order)
    smallest = min(by_bits)
    return smallest, tuple(by_bits[smallest])


def to_cell(name: str, operations: tuple[str, ...], adjacency: Matrix) -> Cell:
    """Return a graph as a cell: every edge carries the operation of the vertex that it leads to."""
    operations, adjacency = pruned(operations, adjacency)
    last = len(adjacency) - 1
    edges = tuple(
        EdgeChoice(x, y, OUTPUT if y == last else operations[y - 1])
        for x, y in itertools.combinations(range(last + 1), 2)
        if adjacency[x][y]
    )
    return Cell(name, edges, (last,))


def of_cell(cell: Cell) -> Graph:
    """Return the graph of a cell that `to_cell` could have made.

    Raises:
        SpaceError: It is none: an edge is there twice, edges into one vertex carry different
            operations, or a vertex is on no path from the input to the output.
    """
    last = cell.num_nodes - 1
    matrix = [[0] * (last + 1) for _ in range(last + 1)]
    into: dict[int, set[str]] = {}
    for edge in cell.edges:
        if matrix[edge.source][edge.target]:
            raise SpaceError(
                f"Cell '{cell.name}' has the edge {edge.source} -> {edge.target} twice."
            )
        matrix[edge.source][edge.target] = 1
        into.setdefault(edge.target, set()).add(edge.operation)
    for vertex, found in into.items():
        if len(found) > 1 or (vertex == last) != (found == {OUTPUT}):
            meant = f"'{OUTPUT}'" if vertex == last else "the one operation of that node"
            raise SpaceError(
                f"Cell '{cell.name}': edges into node {vertex} must carry {meant}, got "
                f"{sorted(found)}."
            )
    if cell.concat != (last,):
        raise SpaceError(
            f"Cell '{cell.name}' must have its last node, {last}, as output (concat), got "
            f"{list(cell.concat)}."
        )
    operations = tuple(min(into.get(vertex, {""})) for vertex in range(1, last))
    graph = operations, tuple(tuple(row) for row in matrix)
    if "" in operations or pruned(*graph) != graph:
        raise SpaceError(
            f"Cell '{cell.name}' has nodes that are on no path from its input to its output; leave "
            "them out."
        )
    return graph
