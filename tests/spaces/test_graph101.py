"""Graphs of NAS-Bench-101 cells: pruning, the canonical form, and cells as they are stored."""

from __future__ import annotations

import itertools
import random

import pytest

from spaces.core import graph101
from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, EdgeChoice, Genotype
from spaces.core.graph101 import CONV1X1, CONV3X3, MAX_POOL, Graph, Matrix


def matrix_of(size: int, *edges: tuple[int, int]) -> Matrix:
    return tuple(tuple(int((x, y) in edges) for y in range(size)) for x in range(size))


def relabelled(graph: Graph, order: tuple[int, ...]) -> Graph:
    """The same graph with inner vertex order[i] in place i + 1."""
    operations, adjacency = graph
    old = (0, *order, len(adjacency) - 1)
    return (
        tuple(operations[vertex - 1] for vertex in order),
        tuple(tuple(adjacency[x][y] for y in old) for x in old),
    )


def random_graphs(count: int) -> list[Graph]:
    source = random.Random(0)
    found: list[Graph] = []
    while len(found) < count:
        size = source.randint(2, 6)
        edges = [e for e in itertools.combinations(range(size), 2) if source.random() < 0.6]
        operations = tuple(source.choice(list(graph101.DIGITS)) for _ in range(size - 2))
        graph = operations, matrix_of(size, *edges)
        if graph101.connected(graph[1]):
            found.append(graph)
    return found


def test_what_leads_nowhere_and_what_nothing_leads_to_is_cut_off() -> None:
    # 1 is on the path; 2 leads nowhere; nothing leads to 3; 4 only hangs on 3.
    adjacency = matrix_of(6, (0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (1, 5))
    found = graph101.pruned((CONV3X3, CONV1X1, MAX_POOL, MAX_POOL), adjacency)
    assert found == ((CONV3X3,), matrix_of(3, (0, 1), (1, 2)))


def test_the_canonical_form_worked_out_by_hand() -> None:
    # Vertices 1 and 2 in a row, with the input to the output beside: edges 0-1 (bit 0), 1-2 (bit
    # 1 + 1 = 2), 2-3 (bit 2 + 3 = 5), 0-3 (bit 0 + 3 = 3).
    adjacency = matrix_of(4, (0, 1), (1, 2), (2, 3), (0, 3))
    assert graph101.canonical((MAX_POOL, CONV1X1), adjacency) == (4, 0b101101, (2, 1))
    # Two vertices side by side can change places: the smaller digits come first.
    adjacency = matrix_of(4, (0, 1), (0, 2), (1, 3), (2, 3))
    assert graph101.canonical((MAX_POOL, CONV3X3), adjacency) == (4, 0b110011, (0, 2))


def test_the_canonical_form_is_that_of_all_orders_and_of_no_other_cell() -> None:
    forms: dict[tuple[int, int, tuple[int, ...]], Graph] = {}
    for graph in random_graphs(60):
        small = graph101.pruned(*graph)
        form = graph101.canonical(*graph)
        inner = range(1, len(small[1]) - 1)
        versions = [relabelled(small, order) for order in itertools.permutations(inner)]
        forward = [
            v for v in versions if all(not v[1][x][y] for x in range(len(v[1])) for y in range(x))
        ]
        assert {graph101.canonical(*version) for version in forward} == {form}
        # The form is one of them, and read back it is itself: different cells differ in it.
        assert graph101.of_canonical(*form) in forward
        assert forms.setdefault(form, small) in versions
    assert len(forms) > 20


def test_cells_and_graphs_are_the_same_both_ways_and_isomorphic_ones_share_a_hash() -> None:
    hashes: dict[tuple[int, int, tuple[int, ...]], str] = {}
    for graph in random_graphs(60):
        small = graph101.pruned(*graph)
        cell = graph101.to_cell("cell", *graph)
        assert graph101.of_cell(cell) == small
        form = graph101.canonical(*graph)
        of_form = Genotype("s", (graph101.to_cell("cell", *graph101.of_canonical(*form)),)).hash
        assert Genotype("s", (cell,)).hash == of_form
        assert hashes.setdefault(form, of_form) == of_form
    assert len(set(hashes.values())) == len(hashes)


def test_vertices_in_any_order_are_brought_into_one_that_leads_forward() -> None:
    # 0 -> 2 -> 1 -> 3: the edge 2 -> 1 stands below the diagonal.
    backward = matrix_of(4, (0, 2), (2, 1), (1, 3))
    forward = matrix_of(4, (0, 1), (1, 2), (2, 3))
    assert graph101.in_order((MAX_POOL, CONV1X1), backward) == ((CONV1X1, MAX_POOL), forward)
    assert graph101.in_order((MAX_POOL, CONV1X1), forward) == ((MAX_POOL, CONV1X1), forward)
    assert graph101.in_order((), matrix_of(2, (0, 1))) == ((), matrix_of(2, (0, 1)))


@pytest.mark.parametrize(
    ("count", "edges", "message"),
    [
        (2, ((0, 1), (1, 2), (2, 1), (2, 3)), "no cycle"),
        (1, ((0, 1), (1, 1), (1, 2)), "no cycle"),
        (1, ((0, 1), (1, 2), (2, 1)), "no cycle"),
        (1, ((0, 1), (1, 2), (1, 0)), "no cycle"),
    ],
)
def test_cycles_are_refused(count: int, edges: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        graph101.in_order((CONV3X3,) * count, matrix_of(count + 2, *edges))
    with pytest.raises(SpaceError, match="3 x 3 matrix, input and output included, got rows of"):
        graph101.in_order((CONV3X3,), matrix_of(2, (0, 1)))


@pytest.mark.parametrize(("count", "cells"), [(2, 1), (3, 6), (4, 84)])
def test_there_are_as_many_keys_as_published_cells(count: int, cells: int) -> None:
    # NAS-Bench-101 has 1, 6, 84, 2,441, 62,010 and 359,082 cells of 2 to 7 vertices.
    places = list(itertools.combinations(range(count), 2))
    found = set()
    for bits in itertools.product((0, 1), repeat=len(places)):
        edges = [place for place, bit in zip(places, bits, strict=True) if bit]
        for inner in itertools.product(graph101.DIGITS, repeat=count - 2):
            if graph101.connected(matrix_of(count, *edges)):
                found.add(graph101.canonical(inner, matrix_of(count, *edges)))
    assert sum(vertices == count for vertices, _, _ in found) == cells


@pytest.mark.parametrize(
    ("operations", "adjacency", "message"),
    [
        ((CONV3X3,), matrix_of(3, (0, 1)), "a path from its input to its output"),
        ((CONV3X3,), matrix_of(4, (0, 3)), "must have 3 rows, input and output included, got 4"),
        ((CONV3X3,), ((0, 1, 0), (0, 0, 1), (0,)), "must be square"),
        ((CONV3X3,), ((0, 1, 0), (0, 0, 2), (0, 0, 0)), "got 2 in row 1, column 2"),
        ((CONV3X3,), ((0, 1, 0), (0, 1, 1), (0, 0, 0)), "got 1 in row 1, column 1"),
        (("conv3x3",), matrix_of(3, (0, 1), (1, 2)), "no operation 'conv3x3'.* Did you mean"),
    ],
)
def test_what_is_no_cell_is_refused(
    operations: tuple[str, ...], adjacency: Matrix, message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        graph101.canonical(operations, adjacency)


def edge(source: int, target: int, operation: str) -> EdgeChoice:
    return EdgeChoice(source, target, operation)


@pytest.mark.parametrize(
    ("edges", "concat", "message"),
    [
        ([edge(0, 1, MAX_POOL), edge(0, 1, MAX_POOL), edge(1, 2, "output")], (2,), "twice"),
        (
            [edge(0, 1, MAX_POOL), edge(0, 2, CONV1X1), edge(1, 2, CONV3X3), edge(2, 3, "output")],
            (3,),
            "edges into node 2 must carry the one operation",
        ),
        ([edge(0, 1, MAX_POOL), edge(1, 2, MAX_POOL)], (2,), "into node 2 must carry 'output'"),
        ([edge(0, 1, "output"), edge(1, 2, "output")], (2,), "into node 1 must carry the one"),
        ([edge(0, 1, MAX_POOL), edge(1, 2, "output")], (1,), "its last node, 2, as output"),
        ([edge(0, 1, MAX_POOL), edge(0, 2, MAX_POOL), edge(1, 3, "output")], (3,), "on no path"),
        ([edge(0, 2, MAX_POOL), edge(2, 3, "output")], (3,), "on no path"),
    ],
)
def test_what_is_no_cell_of_vertices_is_refused(
    edges: list[EdgeChoice], concat: tuple[int, ...], message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        graph101.of_cell(Cell("cell", tuple(edges), concat))
