"""Cells of NAS-Bench-101 as graphs: pruned, and one key for all of a cell's forms."""

from __future__ import annotations

import itertools

import pytest

from spaces.core.errors import OracleError
from spaces.core.graph101 import OPERATIONS, Key, canonical, prune

CONV3, CONV1, POOL = OPERATIONS


def matrix(count: int, *edges: tuple[int, int]) -> list[list[int]]:
    return [[int((x, y) in edges) for y in range(count)] for x in range(count)]


def names(*inner: str) -> list[str]:
    return ["input", *inner, "output"]


def test_vertices_off_every_path_are_dropped() -> None:
    # 1 leads nowhere, 2 comes from nowhere, 3 is on the way.
    edges = ((0, 1), (2, 4), (0, 3), (3, 4))
    kept = prune(names(CONV1, POOL, CONV3), matrix(5, *edges))
    assert kept == (("input", CONV3, "output"), ((0, 1, 0), (0, 0, 1), (0, 0, 0)))


def test_the_key_is_the_smallest_of_all_orders() -> None:
    # 0 -> {1, 2} -> 3 with two operations: either order has edges 01, 02, 13, 23, which are bits
    # 0, 1, 1 + 3 = 4 and 2 + 3 = 5, so that the operations decide: 3x3 before 1x1.
    diamond = matrix(4, (0, 1), (0, 2), (1, 3), (2, 3))
    expected = Key(4, 0b110011, (0, 1))
    assert canonical(names(CONV1, CONV3), diamond) == expected
    assert canonical(names(CONV3, CONV1), diamond) == expected


def test_an_order_may_be_written_backwards() -> None:
    # 0 -> 2 -> 1 -> 3: the edge 2 -> 1 stands below the diagonal.
    backward = matrix(4, (0, 2), (2, 1), (1, 3))
    forward = matrix(4, (0, 1), (1, 2), (2, 3))
    assert canonical(names(POOL, CONV1), backward) == canonical(names(CONV1, POOL), forward)
    assert canonical(names(POOL, CONV1), backward) != canonical(names(POOL, CONV1), forward)


@pytest.mark.parametrize(("count", "cells"), [(2, 1), (3, 6), (4, 84)])
def test_there_are_as_many_keys_as_published_cells(count: int, cells: int) -> None:
    # NAS-Bench-101 has 1, 6, 84, 2,441, 62,010 and 359,082 cells of 2 to 7 vertices.
    places = list(itertools.combinations(range(count), 2))
    found = set()
    for bits in itertools.product((0, 1), repeat=len(places)):
        edges = [place for place, bit in zip(places, bits, strict=True) if bit]
        for inner in itertools.product(OPERATIONS, repeat=count - 2):
            try:
                found.add(canonical(names(*inner), matrix(count, *edges)))
            except OracleError:
                continue  # no path
    assert sum(key.num_vertices == count for key in found) == cells


@pytest.mark.parametrize(
    ("inner", "edges", "message"),
    [
        ((CONV3,), ((0, 1),), "a path from its input to its output"),
        ((CONV3, CONV1), ((0, 1), (1, 2), (2, 1), (2, 3)), "no cycle"),
        ((CONV3,), ((0, 1), (1, 1), (1, 2)), "no cycle"),
        ((CONV3,), ((0, 1), (1, 2), (2, 1)), "no cycle"),
        ((CONV3,), ((0, 1), (1, 2), (1, 0)), "no cycle"),
        ((CONV3,) * 6, tuple((n, n + 1) for n in range(7)), "at most 7 vertices .*got 8"),
        (("conv5x5",), ((0, 1), (1, 2)), "must be one of conv3x3-bn-relu.*got 'conv5x5'"),
    ],
)
def test_what_is_no_cell_is_refused(
    inner: tuple[str, ...], edges: tuple[tuple[int, int], ...], message: str
) -> None:
    with pytest.raises(OracleError, match=message):
        canonical(names(*inner), matrix(len(inner) + 2, *edges))


def test_operations_and_matrix_must_fit() -> None:
    with pytest.raises(OracleError, match="3 x 3 matrix, got rows of"):
        canonical(names(CONV3), matrix(2, (0, 1)))
    with pytest.raises(OracleError, match="begin with 'input' and end with 'output'"):
        canonical([CONV3, CONV3], matrix(2, (0, 1)))
