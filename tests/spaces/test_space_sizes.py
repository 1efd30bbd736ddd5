"""How many architectures a space has, counted one by one where that can be done."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from spaces.core.space import Space
from tests.spaces.helpers import space_of


def found_by_discretizing(space: Space, name: str) -> int:
    """Count the cells that op weights can stand for, node by node: nodes are independent."""
    count = 1
    targets = sorted({target for _, target in space.edges[name]})
    shape = space.alpha_shapes()[name]
    for node in targets:
        rows = [row for row, (_, target) in enumerate(space.edges[name]) if target == node]
        cells = set()
        for order in itertools.permutations(range(len(rows)), min(2, len(rows))):
            for columns in itertools.product(range(shape[1]), repeat=len(order)):
                weights = torch.zeros(shape)
                for place, (index, column) in enumerate(zip(order, columns, strict=True)):
                    weights[rows[index], column] = 1.0 + place
                cell = space.choose(name, weights)
                chosen = tuple(
                    (edge.source, edge.operation)
                    for edge in cell.edges
                    if edge.target == node and weights[rows].amax() > 0
                )
                cells.add(chosen)
        count *= len(cells)
    return count


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("nasbench201", 15_625),
        ("darts", (180 * 7**8) ** 2),
        ({"name": "darts", "operations": 7}, (180 * 7**8) ** 2),
        ("s1", (180 * 2**8) ** 2),
        ("s3", (180 * 2**8) ** 2),
        ({"name": "darts_per_cell", "cells": 3}, (180 * 7**8) ** 3),
        ("nasbench1shot1_2", 360 * 3**4),
    ],
)
def test_the_number_of_choices(settings: Any, expected: int) -> None:
    assert space_of(settings).num_choices == expected


@pytest.mark.parametrize("name", ["s1", "s2", "s3", "s4"])
def test_it_is_the_number_of_cells_that_can_be_found(name: str) -> None:
    space = space_of(name)
    cells = [found_by_discretizing(space, cell) for cell in space.cell_types]
    assert cells[0] * cells[1] == space.num_choices
