"""The choices of edges and operations of the space with an architecture for every cell."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.supernets import DARTS_OPS, copy_weights, matched
from spaces.core import plugins
from spaces.core.cost import network_cost
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.genotype import Genotype
from spaces.core.mixture import Mixture, Norm
from spaces.core.rebuilding import space_settings
from spaces.core.space import Space
from tests.spaces.described_reference import DescribedReference, Placed, Plain
from tests.spaces.helpers import give_weights, one_hot, space_of
from tests.spaces.pairs import batch, close, gradient_of, mixture_of

MODES = ("top2", "fixed", "all")
NEAREST = [(0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5)]
EVERY = [(source, target) for target in range(2, 6) for source in range(target)]
FEW = ["none", "skip_connect", "nor_conv_3x3"]


def per_cell(edges: str, **settings: Any) -> Space:
    return space_of(
        {"name": "darts_per_cell", "channels": 2, "cells": 3, "edges": edges, **settings}
    )


def weights_of(space: Space, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.rand(s, generator=generator) for k, s in space.alpha_shapes().items()}


@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("operations", [8, FEW], ids=str)
def test_the_supernet_of_fixed_edges_equals_the_reference(operations: Any, norm: Norm) -> None:
    engine = per_cell("fixed", operations=operations).build_supernet(3, 5, seed=1).double()
    names = DARTS_OPS if operations == 8 else tuple(FEW)
    plain = Plain(2, [(*edge, names) for edge in NEAREST], (2, 3, 4, 5))
    stack = [
        Placed("cell_0_normal", 2, 1, [(6, 1), (6, 1)]),
        Placed("cell_1_reduction", 4, 2, [(6, 1), (8, 1)]),
        Placed("cell_2_reduction", 8, 2, [(8, 2), (16, 1)]),
    ]
    kinds = {placed.kind: plain for placed in stack}
    reference = DescribedReference(kinds, stack, stem=6, features=32).double()
    copy_weights(engine, reference)
    reference.train(norm != "running")
    images, labels = batch()
    mine, other = (mixture_of(engine, ("edge_weights",)) for _ in range(2))
    for value in (*mine.op_weights.values(), *other.op_weights.values()):
        value.requires_grad_()
    logits = engine(images, mine, norm=norm)
    expected = reference(images, other.op_weights, other)
    functional.cross_entropy(logits, labels).backward()
    functional.cross_entropy(expected, labels).backward()
    assert close(logits, expected)
    for cell, value in mine.op_weights.items():
        assert close(gradient_of(value), gradient_of(other.op_weights[cell])), cell
    for key, ours, rows, theirs in matched(engine, reference):
        if isinstance(ours, nn.Parameter):
            assert close(gradient_of(ours)[rows], gradient_of(theirs)), key


@pytest.mark.parametrize("mode", MODES)
def test_a_genotype_has_the_edges_of_the_mode(mode: str) -> None:
    space = per_cell(mode)
    # Where top2 has 1, 3, 6 and 10 pairs of edges into its nodes; 7 operations but none.
    pairs = {"top2": 1 * 3 * 6 * 10 * 7**8, "fixed": 7**8, "all": 7**14}
    assert space.num_choices == pairs[mode] ** 3
    for seed in range(5):
        weights = weights_of(space, seed)
        for matrix in weights.values():
            matrix[:, 0] += 1.0  # of none, which is never chosen
        for cell in space.discretize(weights).cells:
            edges = [(edge.source, edge.target) for edge in cell.edges]
            wanted = {"fixed": NEAREST, "all": EVERY}.get(mode, edges)
            assert edges == wanted
            assert len(edges) == (14 if mode == "all" else 8)
            for edge in cell.edges:
                row, column = space.place_of(cell.name, edge)
                assert column == 1 + int(weights[cell.name][row, 1:].argmax())


@pytest.mark.parametrize("operations", [7, FEW], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_one_hot_supernet_is_the_network(mode: str, operations: Any) -> None:
    space = per_cell(mode, operations=operations)
    genotype = space.discretize(weights_of(space, 3))
    supernet = space.build_supernet(3, 5, seed=1).double()
    network = space.build_network(genotype, 3, 5, channels=2).double().eval()
    give_weights(supernet, network)
    images, _ = batch()
    mixture = Mixture(one_hot(space, genotype, torch.float64))
    assert close(supernet(images, mixture, norm="running"), network(images)[0])


@pytest.mark.parametrize("operations", [8, FEW], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_genotype_is_enough_to_build_its_network_again(mode: str, operations: Any) -> None:
    space = per_cell(mode, operations=operations)
    genotype = space.discretize(weights_of(space, 4))
    stored = Genotype.from_json(json.loads(json.dumps(genotype.to_json())))
    rebuilt = space_of(space_settings(stored))
    rebuilt.check(stored)
    sizes = {"channels": 4, "image_size": 8}
    assert network_cost(rebuilt, stored, **sizes) == network_cost(space, genotype, **sizes)


def test_the_setting_that_came_later_leaves_keys_as_they_were() -> None:
    plain = plugins.settings_of(*plugins.make_config("spaces", "darts_per_cell"))
    assert plain == {"name": "darts_per_cell", "channels": 16, "cells": 20, "operations": 8}
    changed = {"name": "darts_per_cell", "edges": "all"}
    assert plugins.settings_of(*plugins.make_config("spaces", changed))["edges"] == "all"


def test_genotypes_of_other_edges_are_refused() -> None:
    spaces = {mode: per_cell(mode) for mode in MODES}
    genotypes = {mode: space.discretize(weights_of(space, 1)) for mode, space in spaces.items()}
    for mode, other, message in (
        ("top2", "all", "must have two edges into each of the nodes 2 to 5"),
        ("all", "top2", "must have each of the 14 edges once"),
        ("fixed", "all", "has no edge 0 -> 3"),
    ):
        with pytest.raises(SpaceError, match=message):
            spaces[mode].check(genotypes[other])
    spaces["top2"].check(genotypes["fixed"])  # one of its choices


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edges": "top3"}, r"space\.edges must be one of top2, fixed, all, got 'top3'. Did you"),
        ({"operations": ["skip_conect", "none"]}, r"space\.operations\[0\] must be an operation"),
        ({"operations": ["skip_connect", "none"]}, "operations must leave a choice without none"),
        ({"operations": "all"}, "operations must be int or a list, got 'all'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        space_of({"name": "darts_per_cell", **settings})
