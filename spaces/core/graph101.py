"""Cells of NAS-Bench-101 as graphs: what of them counts, and one key for all of one cell's forms.

A cell is a tuple of operations, one a vertex, the first being `INPUT` and the last `OUTPUT`, and an
adjacency matrix of 0 and 1 whose entry [x][y] is the edge from vertex x to vertex y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from spaces.core.errors import OracleError

INPUT, OUTPUT = "input", "output"
OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
MAX_VERTICES = 7

Operations = tuple[str, ...]
Adjacency = tuple[tuple[int, ...], ...]


class Key(NamedTuple):
    """What is equal for all forms of one cell.

    Attributes:
        num_vertices: With input and output, after pruning.
        edges: Bit set: the edge x -> y, x < y, is bit x + y (y - 1) / 2.
        operations: Of the inner vertices, as places in `OPERATIONS`.
    """

    num_vertices: int
    edges: int
    operations: tuple[int, ...]


def prune(
    operations: Sequence[str], adjacency: Sequence[Sequence[int]]
) -> tuple[Operations, Adjacency]:
    """Return a cell without the vertices that are on no path from its input to its output.

    Raises:
        OracleError: It is no cell, or there is no such path.
    """
    _check(operations, adjacency)
    last = len(operations) - 1
    forward = [[y for y, edge in enumerate(row) if edge] for row in adjacency]
    backward = [[x for x, row in enumerate(adjacency) if row[y]] for y in range(last + 1)]
    kept = sorted(_reached(0, forward) & _reached(last, backward))
    if not kept:
        raise OracleError("A cell of NAS-Bench-101 must have a path from its input to its output.")
    return (
        tuple(operations[x] for x in kept),
        tuple(tuple(int(bool(adjacency[x][y])) for y in kept) for x in kept),
    )


def canonical(operations: Sequence[str], adjacency: Sequence[Sequence[int]]) -> Key:
    """Return the key of a cell: equal for cells that differ in pruned or in renumbered vertices.

    Of all orders of the inner vertices in which every edge leads forward it is the one whose edges,
    then operations, are the smallest.

    Args:
        operations: One a vertex, `INPUT` first and `OUTPUT` last.
        adjacency: Square matrix of 0 and 1, in any order of the inner vertices.

    Raises:
        OracleError: It is no cell, has no path from input to output, has a cycle, or has more than
            7 vertices on such paths.
    """
    names, matrix = prune(operations, adjacency)
    count = len(names)
    if count > MAX_VERTICES:
        raise OracleError(
            f"A cell of NAS-Bench-101 must have at most {MAX_VERTICES} vertices between input and "
            f"output, both included, got {count}."
        )
    places = [OPERATIONS.index(name) for name in names[1:-1]]
    sources = [[x for x in range(count) if matrix[x][y]] for y in range(count)]
    keys = (
        Key(count, _edges(order, sources), tuple(places[vertex - 1] for vertex in order[1:-1]))
        for order in _orders(sources)
    )
    smallest = min(keys, default=None)
    if smallest is None:
        raise OracleError("A cell of NAS-Bench-101 must have no cycle.")
    return smallest


def _check(operations: Sequence[str], adjacency: Sequence[Sequence[int]]) -> None:
    count = len(operations)
    if count < 2 or operations[0] != INPUT or operations[-1] != OUTPUT:
        raise OracleError(
            f"The operations of a NAS-Bench-101 cell must begin with {INPUT!r} and end with "
            f"{OUTPUT!r}, got {list(operations)}."
        )
    for name in operations[1:-1]:
        if name not in OPERATIONS:
            raise OracleError(
                f"An operation of a NAS-Bench-101 cell must be one of {', '.join(OPERATIONS)}, got "
                f"{name!r}."
            )
    if len(adjacency) != count or any(len(row) != count for row in adjacency):
        raise OracleError(
            f"The adjacency of {count} vertices must be a {count} x {count} matrix, got rows of "
            f"{[len(row) for row in adjacency]}."
        )


def _reached(start: int, steps: Sequence[Sequence[int]]) -> set[int]:
    found, open_ends = {start}, [start]
    while open_ends:
        new = [vertex for vertex in steps[open_ends.pop()] if vertex not in found]
        found.update(new)
        open_ends += new
    return found


def _orders(sources: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """Yield the orders of all vertices in which each comes after its sources, the input first."""
    last = len(sources) - 1

    def extend(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(order) == last:
            # The output has edges from inner vertices alone that are all placed by now.
            yield (*order, last)
            return
        for vertex in range(1, last):
            if vertex not in order and all(source in order for source in sources[vertex]):
                yield from extend((*order, vertex))

    if not sources[0] and not any(last in of_vertex for of_vertex in sources):
        yield from extend((0,))


def _edges(order: Sequence[int], sources: Sequence[Sequence[int]]) -> int:
    place = {vertex: index for index, vertex in enumerate(order)}
    bits = 0
    for y, vertex in enumerate(order):
        for source in sources[vertex]:
            bits |= 1 << (place[source] + y * (y - 1) // 2)
    return bits
