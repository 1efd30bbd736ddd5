"""Genotypes: order, JSON, canonical hash."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces.core.cost import network_cost
from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, EdgeChoice, Genotype
from spaces.core.named import named
from spaces.core.operations import build_operation
from spaces.core.text import parse
from tests.spaces.helpers import space_of

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def nasbench201(operations: tuple[str, ...]) -> Genotype:
    edges = tuple(EdgeChoice(*edge, op) for edge, op in zip(EDGES, operations, strict=True))
    return Genotype("nasbench201", (Cell("cell", edges, (3,)),))


cells = st.tuples(*[st.sampled_from(OPERATIONS)] * 6)


def test_the_order_of_writing_does_not_matter() -> None:
    edges = (EdgeChoice(0, 2, "a"), EdgeChoice(1, 2, "b"))
    assert Cell("normal", edges, (2, 0)) == Cell("normal", edges[::-1], (0, 2))


@given(cells)
@settings(max_examples=50, deadline=None)
def test_json_and_the_official_string_give_the_genotype_back(operations: tuple[str, ...]) -> None:
    space = space_of("nasbench201")
    genotype = nasbench201(operations)
    assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    assert space.parse(space.format(genotype)) == genotype
    assert space.parse(json.dumps(genotype.to_json())) == genotype


@given(cells)
@settings(max_examples=50, deadline=None)
def test_swapping_the_inner_nodes_keeps_the_hash(operations: tuple[str, ...]) -> None:
    # Nodes 1 and 2 may change places where no edge joins them: (0,1)<->(0,2), (1,3)<->(2,3).
    first, second, _, skip, fourth, fifth = operations
    there = nasbench201((first, second, "none", skip, fourth, fifth))
    back = nasbench201((second, first, "none", skip, fifth, fourth))
    assert there.hash == back.hash


def test_equal_hashes_mean_isomorphic_graphs_over_the_whole_space() -> None:
    """Count the classes by another way: the pair of both labelings, as a set.

    Of the 5^6 cells, those without the edge 1 -> 2 (5^5) may swap nodes 1 and 2. The swap leaves
    5^3 of them as they are (it pairs (0,1) with (0,2) and (1,3) with (2,3); (0,3) is free), so they
    form (5^5 + 5^3) / 2 classes. Further relabelings need node 3 to move: it stays the output, so
    they join no two cells whose output is node 3, but for the same reason no cell is lost.
    """
    hashes = {nasbench201(ops).hash for ops in itertools.product(OPERATIONS, repeat=6)}
    assert len(hashes) == 5**6 - 5**5 + (5**5 + 5**3) // 2


@pytest.mark.parametrize("change", [0, 1, 3, 4, 5])
def test_another_operation_gives_another_hash(change: int) -> None:
    base = ["nor_conv_3x3", "nor_conv_1x1", "nor_conv_3x3", "skip_connect", "none", "avg_pool_3x3"]
    changed = base.copy()
    changed[change] = "avg_pool_3x3" if base[change] != "avg_pool_3x3" else "skip_connect"
    assert nasbench201(tuple(base)).hash != nasbench201(tuple(changed)).hash


def test_a_relabeled_darts_cell_has_the_same_hash_and_the_same_cost() -> None:
    space = space_of("darts")
    genotype = named("DARTS_V2")
    # Nodes 3 and 4 of both cells of DARTS_V2 feed no inner node, so that they may change places.
    place = {0: 0, 1: 1, 2: 2, 3: 4, 4: 3, 5: 5}
    relabeled = Genotype(
        "darts",
        tuple(
            Cell(
                cell.name,
                tuple(
                    EdgeChoice(place[e.source], place[e.target], e.operation) for e in cell.edges
                ),
                cell.concat,
            )
            for cell in genotype.cells
        ),
    )
    assert relabeled != genotype
    assert relabeled.hash == genotype.hash
    sizes = {"channels": 8, "cells": 3}
    assert network_cost(space, relabeled, **sizes) == network_cost(space, genotype, **sizes)


def test_the_order_of_cells_and_the_space_count_as_they_should() -> None:
    genotype = named("DARTS_V1")
    assert Genotype("darts", genotype.cells[::-1]).hash == genotype.hash
    assert Genotype("other", genotype.cells).hash != genotype.hash
    assert len(genotype.hash) == 12
    assert int(genotype.hash, 16) >= 0


def test_hash_is_the_same_in_another_process() -> None:
    # sha256 of a text that is spelt out: two nodes, one edge 0 -> 1.
    import hashlib

    genotype = Genotype("s", (Cell("c", (EdgeChoice(0, 1, "op"),), (1,)),))
    text = '["s",[["c",2,[[1,0,"op"]],[1]]]]'
    assert genotype.hash == hashlib.sha256(text.encode()).hexdigest()[:12]


GOOD: dict[str, Any] = {
    "space": "s",
    "cells": [{"name": "c", "edges": [[0, 1, "op"]], "concat": [1]}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": 3}, r"genotype.space must be a str, got 3"),
        ({"cells": "x"}, r"genotype.cells must be a list"),
        ({"cells": []}, r"cells must have different names"),
        ({"cells": [3]}, r"cells\[0\] must be a mapping, got 3"),
        ({"cells": [{"name": "c", "edges": []}]}, r"cells\[0\] must have the key 'concat'"),
        ({"cells": [{"name": "c", "edges": [], "concat": [1]}]}, r"must have edges"),
        (
            {"cells": [{"name": "c", "edges": [[0, "1", "op"]], "concat": [1]}]},
            r"cells\[0\].edges\[0\] must be \[source, target, operation\], got \[0, '1', 'op'\]",
        ),
        (
            {"cells": [{"name": "c", "edges": [[1, 1, "op"]], "concat": [1]}]},
            r"must lead from a node to a later one, got 1 -> 1",
        ),
        (
            {"cells": [{"name": "c", "edges": [[0, 1, "op"]], "concat": [2]}]},
            r"concat must name different nodes from 0 to 1, got \[2\]",
        ),
        (
            {"cells": [{"name": "c", "edges": [[0, 1, "op"]], "concat": ["1"]}]},
            r"cells\[0\].concat must be a list of node numbers",
        ),
    ],
)
def test_from_json_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    assert Genotype.from_json(GOOD).cells[0].name == "c"
    with pytest.raises(SpaceError, match=message):
        Genotype.from_json({**GOOD, **change})


def test_from_json_refuses_what_is_no_mapping() -> None:
    with pytest.raises(SpaceError, match="must be a mapping, got list"):
        Genotype.from_json([])  # type: ignore[arg-type]
    with pytest.raises(SpaceError, match="must have the key 'space'"):
        Genotype.from_json({"cells": []})


def test_a_missing_cell_and_an_unknown_operation_are_named() -> None:
    with pytest.raises(SpaceError, match=r"has no cell 'reduce'; it has \['normal', 'reduction'\]"):
        named("DARTS_V1").cell("reduce")
    with pytest.raises(SpaceError, match="Did you mean 'sep_conv_3x3'"):
        build_operation("sep_conv_33", 4, stride=1, affine=True)


@pytest.mark.parametrize("target", [9, 30, 10**9, 10**400])
def test_a_cell_of_too_many_nodes_is_refused_before_its_orders_are_tried(target: int) -> None:
    form = {"space": "darts", "cells": [{"name": "c", "concat": [1]}]}
    form["cells"][0]["edges"] = [[0, 1, "none"], [0, target, "none"]]  # type: ignore[index]
    with pytest.raises(SpaceError, match="at most 8 inner nodes"):
        Genotype.from_json(form)
    form["cells"][0]["edges"] = [[0, 10**9, "none"]]  # type: ignore[index]
    with pytest.raises(SpaceError, match="none above 15"):
        Genotype.from_json(form)


def test_brackets_without_end_and_endless_values_give_a_short_message() -> None:
    for text in ('{"a": ' * 100_000, '{"cells": 1' + "9" * 5000, "{" * 100_000):
        with pytest.raises(SpaceError, match="no valid JSON") as refused:
            parse(text)
        assert len(str(refused.value)) < 300
    with pytest.raises(SpaceError, match="must be a str") as refused:
        parse(json.dumps({"space": ["a" * 5000], "cells": []}))
    assert len(str(refused.value)) < 300
