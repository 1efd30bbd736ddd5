"""The space with an architecture for every cell: against the DARTS space, and on its own."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core.cost import network_cost
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.genotype import Cell, Genotype
from spaces.core.mixture import Mixture, Norm
from spaces.core.named import named
from spaces.core.space import Space
from spaces.core.supernet import Supernet
from tests.spaces.helpers import give_weights, one_hot, space_of

TOLERANCE = 1e-10
FOUR = ("cell_0_normal", "cell_1_reduction", "cell_2_reduction", "cell_3_normal")


def per_cell(cells: int = 4, **settings: int) -> Space:
    return space_of({"name": "darts_per_cell", "channels": 2, "cells": cells, **settings})


def random_weights(space: Space, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in space.alpha_shapes().items()
    }


def random_genotype(space: Space, seed: int) -> Genotype:
    return space.discretize(random_weights(space, seed))


def images_of(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)


def supernet_of(space: Space) -> Supernet:
    """Return a supernet in float64 whose running statistics are uneven."""
    supernet = space.build_supernet(3, 5, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in supernet.buffers():
            value.uniform_(0.5, 1.5, generator=generator)
    return supernet


def kind_of(name: str) -> str:
    return name.rpartition("_")[2]


def published(space: Space) -> Genotype:
    """Return the genotype whose every cell is the normal or the reduction cell of DARTS_V2."""
    cells = {cell.name: cell for cell in named("DARTS_V2").cells}
    return Genotype(
        space.name,
        tuple(
            Cell(name, cells[kind_of(name)].edges, cells[kind_of(name)].concat)
            for name in space.cell_types
        ),
    )


@pytest.mark.parametrize("operations", [7, 8])
def test_every_cell_has_alphas_of_its_own(operations: int) -> None:
    space = per_cell(operations=operations)
    # Four cells reduce at 4 // 3 and 8 // 3.
    assert space.alpha_shapes() == dict.fromkeys(FOUR, (14, operations))
    assert ("none" in space.operations["cell_0_normal"]) == (operations == 8)
    assert space.search_size() == (2, 4)


def test_the_default_depth_is_that_of_retraining() -> None:
    space = space_of("darts_per_cell")
    assert space.search_size() == (16, 20)
    assert len(space.cell_types) == len(set(space.cell_types)) == 20
    reductions = [i for i, name in enumerate(space.cell_types) if kind_of(name) == "reduction"]
    assert reductions == [6, 13]
    assert all(name.startswith(f"cell_{i}_") for i, name in enumerate(space.cell_types))


@pytest.mark.parametrize("cells", [3, 5])
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_with_one_architecture_a_kind_it_is_the_darts_supernet(cells: int, norm: Norm) -> None:
    space = per_cell(cells)
    shared = space_of({"name": "darts", "channels": 2, "cells": cells})
    ours, theirs = supernet_of(space), shared.build_supernet(3, 5, seed=9).double()
    theirs.load_state_dict(ours.state_dict())
    by_kind = random_weights(shared, 4)
    op_weights = {name: by_kind[kind_of(name)] for name in space.cell_types}
    logits = ours(images_of(), Mixture(op_weights), norm=norm)
    expected = theirs(images_of(), Mixture(by_kind), norm=norm)
    assert (logits - expected).abs().max().item() <= TOLERANCE
    assert expected.abs().max().item() > 1e-3


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_one_hot_op_weights_equal_the_built_network(norm: Norm) -> None:
    space = per_cell()
    genotype = random_genotype(space, 5)
    assert len({cell.edges for cell in genotype.cells}) == 4
    supernet = supernet_of(space)
    network = space.build_network(genotype, 3, 5, channels=2, seed=7).double()
    give_weights(supernet, network)
    network.train(norm == "batch")
    op_weights = one_hot(space, genotype, torch.float64)
    logits = supernet(images_of(), Mixture(op_weights), norm=norm)
    expected, auxiliary = network(images_of())
    assert auxiliary is None
    assert (logits - expected).abs().max().item() <= TOLERANCE
    assert logits.abs().max().item() > 1e-3


def test_the_op_weights_of_a_cell_change_that_cell_alone() -> None:
    space = per_cell()
    supernet = supernet_of(space)
    inputs: list[Any] = []
    outputs: list[list[Tensor]] = []

    def feed(cell: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # Every pass gives a cell the inputs of the first pass, whatever the cells before it did.
        place = list(supernet.trunk.layers).index(cell)
        if len(outputs) == 1:
            inputs.append(args[0])
        return inputs[place], *args[1:]

    for cell in supernet.trunk.layers:
        cell.register_forward_pre_hook(feed)
        cell.register_forward_hook(lambda _cell, _args, output: outputs[-1].append(output))
    op_weights = random_weights(space, 4)
    other = random_weights(space, 5)
    for changed in (None, *FOUR):
        outputs.append([])
        mine = {name: (other if name == changed else op_weights)[name] for name in FOUR}
        supernet(images_of(), Mixture(mine))
    for place in range(4):
        same = [torch.equal(a, b) for a, b in zip(outputs[0], outputs[1 + place], strict=True)]
        assert same == [index != place for index in range(4)]


def test_a_choice_in_one_cell_is_none_in_another() -> None:
    space = per_cell()
    op_weights = random_weights(space, 4)
    before = space.discretize(op_weights)
    for name in FOUR:
        changed = {**op_weights, name: -op_weights[name]}
        found = space.discretize(changed)
        assert [a != b for a, b in zip(before.cells, found.cells, strict=True)] == [
            other == name for other in FOUR
        ]
        assert found.hash != before.hash


def test_the_hash_is_that_of_the_graph_and_of_the_place() -> None:
    space = per_cell()
    data = random_genotype(space, 5).to_json()
    genotype = Genotype.from_json(data)
    # Nodes 2 and 3 change their names, in a cell in which no edge joins them.
    edges = [[0, 2, "skip_connect"], [1, 2, "sep_conv_3x3"], [0, 3, "sep_conv_5x5"]]
    edges += [[1, 3, "max_pool_3x3"], [2, 4, "dil_conv_3x3"], [0, 4, "skip_connect"]]
    edges += [[3, 5, "dil_conv_5x5"], [1, 5, "avg_pool_3x3"]]
    swap = {2: 3, 3: 2}
    twins = []
    for form in (edges, [[swap.get(a, a), swap.get(b, b), operation] for a, b, operation in edges]):
        twin = copy.deepcopy(data)
        twin["cells"][3]["edges"] = form
        twins.append(Genotype.from_json(twin))
        space.check(twins[-1])
    assert twins[0] != twins[1]
    assert twins[0].hash == twins[1].hash != genotype.hash
    moved = copy.deepcopy(data)
    first, last = moved["cells"][0], moved["cells"][3]
    first["edges"], last["edges"] = last["edges"], first["edges"]
    assert Genotype.from_json(moved).hash != genotype.hash


def test_the_published_cells_everywhere_make_the_published_network() -> None:
    space = space_of("darts_per_cell")
    cost = network_cost(space, published(space))
    assert cost.params == 3_349_342
    assert round(cost.macs / 1e6, 2) == 528.36
    network = space.build_network(published(space), 3, 10, auxiliary=True)
    assert sum(weight.numel() for weight in network.parameters()) == 3_825_768


def test_the_genotype_says_the_depth_whatever_that_of_the_supernet() -> None:
    space, other = per_cell(4), per_cell(7)
    genotype = random_genotype(other, 2)
    space.check(genotype)
    assert space.parse(space.format(genotype)) == genotype
    assert space.network_cells(genotype, None) == space.network_cells(genotype, 7) == 7
    for cells in (None, 7):
        network = space.build_network(genotype, 3, 5, channels=2, cells=cells)
        assert len(network.trunk.layers) == 7
    assert network.trunk.layout == other.build_network(genotype, 3, 5, channels=2).trunk.layout


@pytest.mark.parametrize("cells", [3, 5, 20])
def test_another_depth_than_the_genotypes_is_refused(cells: int) -> None:
    space = per_cell()
    genotype = random_genotype(space, 2)
    message = f"as many cells as its genotype, 4, because .* cells cannot be {cells}"
    with pytest.raises(SpaceError, match=message):
        space.build_network(genotype, 3, 5, cells=cells)
    with pytest.raises(SpaceError, match=message):
        network_cost(space, genotype, channels=2, cells=cells)


def test_json_round_trip() -> None:
    space = per_cell()
    genotype = random_genotype(space, 3)
    text = space.format(genotype)
    assert json.loads(text) == genotype.to_json()
    assert space.parse(text) == genotype
    assert [cell.name for cell in space.parse(text).cells] == list(FOUR)


def swapped(data: dict[str, Any]) -> None:
    data["cells"][0], data["cells"][3] = data["cells"][3], data["cells"][0]


def misplaced(data: dict[str, Any]) -> None:
    data["cells"][0]["name"], data["cells"][1]["name"] = "cell_0_reduction", "cell_1_normal"


def cut(data: dict[str, Any]) -> None:
    del data["cells"][2:]


def rewired(data: dict[str, Any]) -> None:
    data["cells"][2]["edges"][0][1] = 3


def pruned(data: dict[str, Any]) -> None:
    del data["cells"][2]["edges"][0]


def unknown(data: dict[str, Any]) -> None:
    data["cells"][3]["edges"][0][2] = "skip_conect"


def of_darts(data: dict[str, Any]) -> None:
    data["space"] = "darts"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, r"of 4 cells, cells\[0\] must be 'cell_0_normal', got 'cell_3_normal'"),
        (misplaced, r"cells\[0\] must be 'cell_0_normal', got 'cell_0_reduction'"),
        (cut, r"at least 3 cells, .* got \['cell_0_normal', 'cell_1_reduction'\]"),
        (rewired, "Cell 'cell_2_reduction' .* two edges into each of the nodes 2 to 5, got"),
        (pruned, "Cell 'cell_2_reduction' .* two edges into each of the nodes 2 to 5, got"),
        (unknown, "'cell_3_normal' .* no operation 'skip_conect'.*Did you mean 'skip_connect'"),
        (of_darts, "of space 'darts', not of 'darts_per_cell'"),
    ],
)
def test_genotypes_of_another_form_are_refused(change: Any, message: str) -> None:
    space = per_cell()
    data = random_genotype(space, 1).to_json()
    change(data)
    with pytest.raises(SpaceError, match=message):
        space.parse(json.dumps(data))
    with pytest.raises(SpaceError, match=message):
        space.build_network(Genotype.from_json(data), 3, 5)


def test_reductions_must_be_where_the_genotypes_own_depth_has_them() -> None:
    # Of four cells 1 and 2 reduce, of five 1 and 3.
    data = random_genotype(per_cell(5), 1).to_json()
    del data["cells"][4]
    with pytest.raises(
        SpaceError, match=r"cells\[2\] must be 'cell_2_reduction', got 'cell_2_normal'"
    ):
        per_cell().check(Genotype.from_json(data))


def test_text_of_the_darts_space_is_refused() -> None:
    text = space_of("darts").format(named("DARTS_V2"))
    with pytest.raises(SpaceError, match="at least 3 cells"):
        per_cell().parse(text)


def test_the_normal_cells_are_those_of_the_genotypes_own_depth() -> None:
    space = per_cell()
    found = space.normal_cells(random_genotype(per_cell(5), 1))
    assert [cell.name for cell in found] == ["cell_0_normal", "cell_2_normal", "cell_4_normal"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": 2}, "cells must be >= 3, so that both kinds of cells occur, got 2"),
        ({"channels": 1}, "channels must be >= 2, got 1"),
        ({"operations": 6}, "operations must be 7, 8 or a list, got 6"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        space_of({"name": "darts_per_cell", **change})
