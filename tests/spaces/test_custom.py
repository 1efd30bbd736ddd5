"""Described spaces: equality with references and shipped spaces, rules, genotypes, mistakes."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.reference.supernets import copy_weights, matched
from spaces import custom
from spaces.core import plugins
from spaces.core.cell_description import Description
from spaces.core.cost import network_cost
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.genotype import EdgeChoice, Genotype
from spaces.core.mixture import PLAIN, Mixture, Norm, Structure
from spaces.core.rebuilding import space_settings
from spaces.core.space import Space
from tests.spaces.described_reference import DescribedReference, Placed, Plain
from tests.spaces.helpers import give_weights, one_hot, space_of
from tests.spaces.pairs import AUXILIARY, HALF, batch, close, gradient_of, mixture_of, seeded

SKIP, MAX, SEP, DIL, NOR = (
    "skip_connect",
    "max_pool_3x3",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "nor_conv_3x3",
)
THREE, OTHER = (SKIP, MAX, SEP), (NOR, SKIP, DIL)
# No edge leaves node 2. nor_conv_3x3 is on some of the edges that leave node 1, and on all that
# leave node 0, though in different columns.
LISTED = [
    *([1, 2, [*OTHER]], [0, 2, [NOR, SKIP, DIL]], [0, 3, [SKIP, MAX, NOR]]),
    *([1, 3, [SKIP, NOR, DIL]], [3, 4], [1, 4]),
]
CASES: dict[str, dict[str, Any]] = {
    "listed": {
        "nodes": 3,
        "edges": LISTED,
        "operations": [*THREE],
        "keep": [1, 2, 2],
        "by_type": {"reduction": {"nodes": 2, "edges": "all", "keep": 1}},
        "cells": 4,
        "reductions": [1, 3],
    },
    "one_input": {
        "inputs": 1,
        "nodes": 3,
        "edges": [[0, 1], [0, 2], [1, 2], [2, 3], [0, 3]],
        "operations": ["none", NOR, SKIP],
        "output": "last",
        "keep": "all",
        "cell_types": "one",
        "cells": 2,
        "reductions": [1],
        "reduce_by": "block",
        "project_inputs": False,
        "stem_multiplier": 1,
        "final_norm": True,
        "pool_norm": False,
    },
    "stages": {
        "nodes": 2,
        "operations": [*THREE],
        "cell_types": "stage",
        "cells": 3,
        "reductions": [1, 2],
        "reduce_by": "block",
        "stem_multiplier": 2,
        "by_type": {"stage_2": {"operations": [NOR, SKIP]}},
    },
    "halving": {
        "inputs": 1,
        "nodes": 2,
        "operations": [*THREE],
        "keep": 1,
        "cell_types": "one",
        "cells": 2,
        "reductions": [1],
    },
}


def small(case: str, **settings: Any) -> Space:
    return space_of({"name": "custom", "channels": 4, **CASES[case], **settings})


def every(
    inputs: int, nodes: int, names: tuple[str, ...]
) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(s, t, names) for t in range(inputs, inputs + nodes) for s in range(t)]


def reference_of(case: str, structure: Structure = PLAIN) -> DescribedReference:
    """The same space, stacked by hand: channels and strides of every projection."""
    if case == "listed":
        edges = [
            *((0, 2, (NOR, SKIP, DIL)), (1, 2, OTHER), (0, 3, (SKIP, MAX, NOR))),
            *((1, 3, (SKIP, NOR, DIL)), (1, 4, THREE), (3, 4, THREE)),
        ]
        kinds = {
            "normal": Plain(2, edges, (2, 3, 4)),
            "reduction": Plain(2, every(2, 2, THREE), (2, 3)),
        }
        stack: list[Any] = [
            Placed("normal", 4, 1, [(12, 1), (12, 1)]),
            Placed("reduction", 8, 2, [(12, 1), (12, 1)]),
            Placed("normal", 8, 1, [(12, 2), (16, 1)]),
            Placed("reduction", 16, 2, [(16, 1), (24, 1)]),
        ]
        return DescribedReference(kinds, stack, stem=12, features=32, structure=structure)
    if case == "one_input":
        names = ("none", NOR, SKIP)
        pairs = ((0, 1), (0, 2), (1, 2), (0, 3), (2, 3))
        kinds = {"cell": Plain(1, [(s, t, names) for s, t in pairs], (3,))}
        stack = [Placed("cell", 4, 1, []), (4, 8), Placed("cell", 8, 1, [])]
        more = {"final_norm": True, "pool_norm": False, "structure": structure}
        return DescribedReference(kinds, stack, stem=4, features=8, **more)
    if case == "stages":
        kinds = {
            f"stage_{i}": Plain(2, every(2, 2, (NOR, SKIP) if i == 2 else THREE), (2, 3))
            for i in (1, 2, 3)
        }
        stack = [
            Placed("stage_1", 4, 1, [(8, 1), (8, 1)]),
            (8, 16),
            Placed("stage_2", 8, 1, [(8, 2), (16, 1)]),
            (16, 32),
            Placed("stage_3", 16, 1, [(16, 2), (32, 1)]),
        ]
        return DescribedReference(kinds, stack, stem=8, features=32, structure=structure)
    kinds = {"cell": Plain(1, every(1, 2, THREE), (1, 2))}
    stack = [Placed("cell", 4, 1, [(12, 1)]), Placed("cell", 8, 2, [(8, 1)])]
    return DescribedReference(kinds, stack, stem=12, features=16, structure=structure)


def pair_of(case: str, structure: Structure = PLAIN) -> tuple[Any, DescribedReference]:
    engine = small(case).build_supernet(3, 5, seed=1, structure=structure).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, value in (*engine.named_buffers(), *engine.named_parameters()):
            if "norm" in key:
                value.uniform_(0.5, 1.5, generator=generator)
    reference = reference_of(case, structure).double()
    copy_weights(engine, reference)
    return engine, reference


EQUAL = [
    *((case, PLAIN, (), norm) for case in CASES for norm in get_args(Norm)),
    *((case, PLAIN, ("active", "edge_weights", "offsets"), "batch") for case in CASES),
    *((case, HALF, ("edge_weights",), "batch") for case in CASES),
    *((case, AUXILIARY, ("skip_scale",), "batch") for case in CASES),
    ("listed", PLAIN, ("skip_dropout",), "batch"),
]


@pytest.mark.parametrize(("case", "structure", "extras", "norm"), EQUAL)
def test_the_supernet_equals_the_reference(
    case: str, structure: Structure, extras: tuple[str, ...], norm: Norm
) -> None:
    engine, reference = pair_of(case, structure)
    reference.train(norm != "running")
    images, labels = batch()
    mine, plain = (mixture_of(engine, extras) for _ in range(2))
    for value in (*mine.op_weights.values(), *plain.op_weights.values()):
        value.requires_grad_()
    logits = engine(images, mine, norm=norm, generator=seeded())
    expected = reference(images, plain.op_weights, plain, seeded())
    functional.cross_entropy(logits, labels).backward()
    functional.cross_entropy(expected, labels).backward()
    assert close(logits, expected)
    for cell, value in mine.op_weights.items():
        assert close(gradient_of(value), gradient_of(plain.op_weights[cell])), cell
    for key, ours, rows, theirs in matched(engine, reference):
        if isinstance(ours, nn.Parameter):
            assert close(gradient_of(ours)[rows], gradient_of(theirs)), key


def drawn(space: Space, seed: int = 5) -> Genotype:
    generator = torch.Generator().manual_seed(seed)
    shapes = space.alpha_shapes().items()
    return space.discretize({k: torch.rand(s, generator=generator) for k, s in shapes})


@pytest.mark.parametrize("case", CASES)
def test_a_one_hot_supernet_is_the_network(case: str) -> None:
    space = small(case)
    channels, cells = space.search_size()
    for seed in range(3):
        genotype = drawn(space, seed)
        supernet = space.build_supernet(3, 5, seed=1).double()
        network = space.build_network(genotype, 3, 5, channels=channels, cells=cells)
        network.double().eval()
        give_weights(supernet, network)
        images, _ = batch()
        mixture = Mixture(one_hot(space, genotype, torch.float64))
        assert close(supernet(images, mixture, norm="running"), network(images)[0])


NASBENCH201 = {
    "inputs": 1,
    "nodes": 3,
    "operations": ["none", SKIP, "nor_conv_1x1", NOR, "avg_pool_3x3"],
    "output": "last",
    "keep": "all",
    "cell_types": "one",
    "cells": 6,
    "reduce_by": "block",
    "project_inputs": False,
    "stem_multiplier": 1,
    "final_norm": True,
    "pool_norm": False,
}
SHIPPED = {
    "darts": ({"cells": 4}, {"cells": 4}, {}),
    "s3": ({"cells": 4}, {"cells": 4, "operations": ["none", SKIP, SEP]}, {}),
    "nasbench201": ({"cells_per_stage": 2}, NASBENCH201, {"cells": 2}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_space_described_is_the_same(name: str) -> None:
    settings, described, size = SHIPPED[name]
    shipped = space_of({"name": name, "channels": 4, **settings})
    own = space_of({"name": "custom", "channels": 4, **described})
    assert own.alpha_shapes() == shipped.alpha_shapes()
    assert own.num_choices == shipped.num_choices
    images, _ = batch()
    nets = [space.build_supernet(3, 5, seed=3).double() for space in (own, shipped)]
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
    mixture = mixture_of(nets[0], ("edge_weights",))
    assert torch.equal(*(net(images, mixture) for net in nets))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        weights = {k: torch.rand(s, generator=generator) for k, s in own.alpha_shapes().items()}
        ours, theirs = own.discretize(weights), shipped.discretize(weights)
        assert ours.cells == theirs.cells
    sizes = {"channels": 8, "cells": 10} | ({"cells": 9} if size else {})
    built = own.build_network(ours, 3, 5, **sizes)
    other = shipped.build_network(theirs, 3, 5, **{**sizes, "cells": 3} if size else sizes)
    assert torch.equal(built.double()(images)[0], other.double()(images)[0])


def test_large_images_and_auxiliary_heads_are_those_of_darts() -> None:
    spaces = (space_of("darts"), space_of("custom"))
    for auxiliary, stem in itertools.product((False, True), ("cifar", "imagenet")):
        layouts = []
        for space in spaces:
            network = space.build_network(
                drawn(space), 3, 5, channels=4, cells=7, auxiliary=auxiliary, stem=stem
            )
            layouts.append(network.trunk.layout)
        assert layouts[0] == layouts[1]
    for case in ("one_input", "stages"):
        assert not small(case).has_imagenet_stem
        assert not small(case).has_auxiliary


def test_choices_are_counted() -> None:
    # Normal: 1 of 2 edges into node 2 and 2 of 2 into nodes 3 and 4, three operations on each;
    # reduction: 1 of 2 and 1 of 3.
    assert small("listed").num_choices == (2 * 3) * 9 * 9 * (2 * 3) * (3 * 3)
    assert small("one_input").num_choices == 3**5
    space = small("halving")
    found = set()
    for columns in itertools.product(range(3), repeat=3):
        for first in (0, 1):  # which of the two edges into node 2 is the stronger
            weights = torch.zeros(3, 3)
            for row, column in enumerate(columns):
                weights[row, column] = 2.0 if row == 1 + first else 1.0
            found.add(space.discretize({"cell": weights}).cells)
    assert len(found) == space.num_choices == 3 * 2 * 3


@pytest.mark.parametrize("case", CASES)
def test_a_genotype_is_enough_to_build_its_network_again(case: str) -> None:
    space = small(case, network_channels=6, network_cells=5)
    for seed in range(5):
        genotype = drawn(space, seed)
        stored = Genotype.from_json(json.loads(json.dumps(genotype.to_json())))
        assert stored == genotype
        rebuilt = space_of(space_settings(stored))
        rebuilt.check(stored)
        assert rebuilt.evaluation == space.evaluation
        assert network_cost(rebuilt, stored) == network_cost(space, genotype)
        nets = [each.build_network(genotype, 3, 5, seed=4).eval() for each in (space, rebuilt)]
        images = batch()[0].float()
        assert torch.equal(*(net(images)[0] for net in nets))
        assert rebuilt.parse(rebuilt.format(stored)) == stored
        assert space.parse(json.dumps({**genotype.to_json(), "stack": {}})) == genotype


def test_equal_hashes_are_of_equal_networks() -> None:
    space = small("halving")
    genotype = drawn(space)
    # Other candidates, edges or sizes of the search make no other network of the same cell.
    same = small("halving", operations=[*THREE, DIL], channels=8)
    assert Genotype("custom", genotype.cells, same.stack).hash == genotype.hash
    for changed in ({"stem_multiplier": 2}, {"reductions": []}, {"final_norm": True}, {"cells": 3}):
        other = small("halving", **changed)
        moved = Genotype("custom", genotype.cells, other.stack)
        assert moved.hash != genotype.hash
        with pytest.raises(SpaceError, match="The genotype's cells are stacked as"):
            space.check(moved)
    with pytest.raises(SpaceError, match="stacked as it does not say"):
        space.check(Genotype("custom", genotype.cells))
    # Two nodes that both read the input alone are the same in any order.
    wide = small("halving", edges=[[0, 1], [0, 2]])
    first, second = (wide.discretize({"cell": torch.eye(3)[rows]}) for rows in ([0, 2], [2, 0]))
    assert first != second
    assert first.hash == second.hash


def test_a_supernet_of_another_depth_is_of_the_same_space() -> None:
    for case in CASES:
        space = small(case)
        channels, cells = space.search_size()
        deeper = space.with_cells(2 * cells)
        assert deeper.search_size() == (channels, 2 * cells)
        assert deeper.alpha_shapes() == space.alpha_shapes()
        space.check(drawn(deeper))
        assert deeper.evaluation == space.evaluation
        # Places move in proportion.
        strides = [
            getattr(layer, "stride", "block")
            for layer in deeper.build_supernet(3, 5, seed=0).trunk.layout.layers
        ]
        by_block = case in ("one_input", "stages")
        assert strides.count("block" if by_block else 2) == len(CASES[case]["reductions"])
        with pytest.raises(SpaceError, match="cells must"):
            space.with_cells(0)
    with pytest.raises(SpaceError, match="cells must be >= 3 with reductions at a third"):
        space_of("custom").with_cells(2)
    with pytest.raises(SpaceError, match="cells must leave 2 different places"):
        small("listed").build_network(drawn(small("listed")), 3, 5, cells=1)


def test_none_is_chosen_only_where_all_edges_are_kept() -> None:
    for keep, chosen in (("all", "none"), (1, SKIP)):
        space = small("halving", operations=["none", SKIP, SEP], keep=keep)
        genotype = space.discretize({"cell": torch.tensor([[3.0, 2.0, 1.0]] * 3)})
        assert {edge.operation for edge in genotype.cell("cell").edges} == {chosen}
    cell = genotype.cell("cell")
    bad = dataclasses.replace(cell.edges[0], operation="none")
    changed = dataclasses.replace(cell, edges=(bad, *cell.edges[1:]))
    with pytest.raises(SpaceError, match="cannot have 'none' on an edge that it keeps"):
        space.check(dataclasses.replace(genotype, cells=(changed,)))
    both = (EdgeChoice(0, 1, SKIP), EdgeChoice(0, 2, SKIP), EdgeChoice(1, 2, SEP))
    changed = dataclasses.replace(cell, edges=both)
    with pytest.raises(SpaceError, match=r"must have \[1, 1\] different edges into its nodes"):
        space.check(dataclasses.replace(genotype, cells=(changed,)))


def test_the_settings_are_those_of_the_description() -> None:
    ours, theirs = (
        {f.name: (f.type, f.default) for f in dataclasses.fields(c)}
        for c in (custom.Config, Description)
    )
    assert ours == theirs


MISTAKES = [
    ({"edges": [[0, 2], [1, 2], [3, 2]]}, r"edges\[2\] must lead to a later node, .* no cycle, got "
     r"3 -> 2. Did you mean \[2, 3\]\?"),
    ({"edges": [[2, 2]]}, r"edges\[0\] must lead to a later node, .* got 2 -> 2\.$"),
    ({"edges": [[0, 9]]}, r"edges\[0\] must join two of the nodes 0 to 5, .* got 0 -> 9"),
    ({"edges": [[0, 1]]}, r"edges\[0\] must not lead into an input, got 0 -> 1"),
    ({"edges": [[0, 2, SKIP, 1]]}, r"edges\[0\] must be \[from, to\] or"),
    ({"edges": [[0, 2], [0, 2]], "nodes": 1}, r"edges\[1\] repeats the edge 0 -> 2"),
    ({"edges": "every"}, "edges must be all or a list, got 'every'"),
    ({"edges": [[0, 2], [1, 2]], "nodes": 2}, "edges must lead into every node, .* into 3"),
    ({"edges": [[1, 2]], "nodes": 1}, "edges must leave every input, and none leaves input 0"),
    ({"edges": [[0, 2], [1, 2], [1, 3]], "nodes": 2, "keep": 1, "output": "last"},
     "edges must lead from node 2 on, since the output is the last node"),
    ({"edges": [[0, 2, []], [1, 2]], "nodes": 1}, r"edges\[0\]\[2\] must have at least two"),
    ({"edges": [[0, 2, [SKIP, SEP]], [1, 2]], "nodes": 1},
     "edges must have equally many operations each, .* got 2"),
    ({"edges": [[0, 2, ["none", SKIP]], [1, 2]], "nodes": 1, "operations": [SKIP, SEP]},
     "edges must all have 'none' at the same place"),
    ({"operations": []}, r"operations must have at least two operations .* got \[\]"),
    ({"operations": [SKIP, "sep_conv_3"]},
     r"operations\[1\] must be an operation, got 'sep_conv_3'. Did you mean "
     r"'sep_conv_3x3'\? One of your own goes into DIR/operations/sep_conv_3.py"),
    ({"operations": [SKIP, SKIP]}, "operations has 'skip_connect' twice"),
    ({"keep": 3}, r"keep must be from 1 to 2, the number of edges into node 2, got 3. Did you mean "
     r"keep: \[2, 3, 3, 3\], or keep: all\?"),
    ({"keep": [2, 2]}, "keep must be all, a number, or a list of 4 numbers"),
    ({"keep": "most"}, "keep must be all or int or a list, got 'most'"),
    ({"inputs": 3}, "inputs must be 1 or 2, got 3"),
    ({"nodes": 0}, "nodes must be from 1 to 8, got 0"),
    ({"channels": 1}, "channels must be >= 2, so that a cell can halve images"),
    ({"cells": 2}, "cells must be >= 3 with reductions at a third"),
    ({"reductions": [3, 2]}, r"reductions must be different places from 0 to 7, in order, got"),
    ({"reductions": [0], "reduce_by": "block"}, "reductions must be different places from 1 to 7"),
    ({"reductions": [0], "cells": 1}, "reductions must leave a normal cell"),
    ({"project_inputs": False}, "project_inputs can be false only with inputs: 1"),
    ({"by_type": {"middle": {}}}, "by_type has 'middle', .* cell types of this stack: normal, red"),
    ({"by_type": {"normal": {"cells": 2}}}, "by_type.normal.cells is no setting of a cell type"),
    ({"by_type": {"normal": {"keep": 5}}}, "by_type.normal.keep must be from 1 to 2"),
    ({"by_type": {"normal": {"operations": {"grid": [[SKIP]]}}}},
     "by_type.normal.operations must be a list of operations, got {'grid'"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_mistakes_are_explained(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=rf"^space\.{message}"):
        plugins.make_config("spaces", {"name": "custom", **settings})


def test_a_space_without_a_choice_is_refused() -> None:
    small_one = {"inputs": 1, "nodes": 1, "edges": [[0, 1]], "operations": [SKIP, "none"]}
    small_one |= {"output": "last"}
    with pytest.raises(PluginSettingsError, match="keep must leave a choice"):
        plugins.make_config("spaces", {"name": "custom", **small_one, "keep": 1})
