"""The spaces of NAS-Bench-1Shot1: supernet, discretization, cells and networks of NAS-Bench-101."""

from __future__ import annotations

import functools
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.reference.choice_blocks import ReferenceSupernet, copy_weights, matched
from spaces.core import graph101
from spaces.core.cost import network_cost
from spaces.core.errors import SpaceError
from spaces.core.genotype import Genotype
from spaces.core.graph101 import CONV1X1, CONV3X3, MAX_POOL, Graph
from spaces.core.layout import CellLayer
from spaces.core.mixture import PLAIN, Mixture, Norm, Structure
from spaces.core.text import format_nasbench101, parse
from spaces.core.vertex_network import VertexCell, vertex_channels
from spaces.nasbench1shot1 import NasBench1Shot1
from tests.spaces.helpers import space_of
from tests.spaces.pairs import batch, close, gradient_of

NAMES = ("nasbench1shot1_1", "nasbench1shot1_2", "nasbench1shot1_3")
# Published: choices of parents; then distinct cells, as flagged in the table of NAS-Bench-101.
SIZES = {NAMES[0]: (180, 2_685), NAMES[1]: (360, 7_773), NAMES[2]: (5_400, 55_854)}


def small(name: str, **settings: Any) -> NasBench1Shot1:
    return space_of({"name": name, "channels": 3, "cells": 4, **settings})


def pair_of(
    name: str, channels: int = 3, structure: Structure = PLAIN
) -> tuple[NasBench1Shot1, torch.nn.Module, ReferenceSupernet]:
    """A space, its supernet in float64 with uneven statistics, and the equal reference."""
    space = small(name, channels=channels)
    engine = space.build_supernet(3, 5, seed=1, structure=structure).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for label, value in (*engine.named_buffers(), *engine.named_parameters()):
            if "norm" in label:
                low, high = (-0.2, 0.2) if label.endswith(("mean", "bias")) else (0.5, 1.5)
                value.uniform_(low, high, generator=generator)
    reference = ReferenceSupernet(
        space.blocks, channels, 4, 3, 5, structure.partial_channels
    ).double()
    copy_weights(engine, reference)
    return space, engine, reference


def weights_of(space: NasBench1Shot1, *cells: int, seed: int = 4) -> dict[str, Tensor]:
    """Op weights off the simplex, inputs and operations of both signs, float64."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn((*cells, *shape), generator=generator, dtype=torch.float64)
        for name, shape in space.alpha_shapes().items()
    }
    # What is negative in the last cell, the ReLU before the classifier would hide.
    weights["output"].abs_()
    return weights


@functools.cache
def cells_of(name: str) -> dict[tuple[int, int, tuple[int, ...]], Graph]:
    """Every cell of a space by its canonical form, in the order of some choice."""
    space = space_of(name)
    anything = [MAX_POOL] * space.blocks
    topologies = {graph101.pruned(*space.graph(p, anything))[1] for p in space.parent_choices()}
    return {
        graph101.canonical(operations, adjacency): (operations, adjacency)
        for adjacency in topologies
        for operations in itertools.product(graph101.DIGITS, repeat=len(adjacency) - 2)
    }


@functools.cache
def table(folder: Path) -> dict[str, Any]:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = ["n_vertices", "adjacency", "ops", "params"]
    columns += [f"in_1shot1_s{number}" for number in (1, 2, 3)]
    path = folder / "nasbench101" / "nasbench101.parquet"
    found = parquet.read_table(path, columns=columns)
    return {column: found.column(column).to_pylist() for column in columns}


def form_of(row: int, rows: dict[str, Any]) -> tuple[int, int, tuple[int, ...]]:
    digits = {"3": 0, "1": 1, "p": 2}
    operations = tuple(digits[letter] for letter in rows["ops"][row])
    return rows["n_vertices"][row], rows["adjacency"][row], operations


@pytest.mark.parametrize("per_cell", [False, True], ids=["shared", "per_cell"])
@pytest.mark.parametrize("norm", ["batch", "batch_and_update", "running"])
@pytest.mark.parametrize("name", NAMES)
def test_the_supernet_equals_its_reference(name: str, norm: Norm, per_cell: bool) -> None:
    space, engine, reference = pair_of(name)
    reference.train(norm != "running")
    cells = (4,) if per_cell else ()
    ours, theirs = weights_of(space, *cells), weights_of(space, *cells)
    for value in (*ours.values(), *theirs.values()):
        value.requires_grad_()
    images, labels = batch()
    logits, expected = engine(images, Mixture(ours), norm=norm), reference(images, theirs)
    assert close(logits, expected)
    for found in (logits, expected):
        torch.nn.functional.cross_entropy(found, labels).backward()
    for label, value in ours.items():
        assert close(gradient_of(value), gradient_of(theirs[label])), label
    for label, mine, rows, plain in matched(engine, reference):
        if not mine.requires_grad:
            updated = norm != "batch"  # where it does not, the plain network has updated its own
            assert not updated or close(mine[rows], plain), label
            continue
        assert gradient_of(plain).abs().max() > 0, label
        assert close(gradient_of(mine)[rows], gradient_of(plain)), label


@pytest.mark.parametrize(
    ("structure", "skip_scale"),
    [(PLAIN, None), (Structure(partial_channels=2), None), (Structure(auxiliary_skip=True), 0.7)],
    ids=["plain", "partial", "auxiliary"],
)
def test_what_methods_add_to_rows_equals_the_reference(
    structure: Structure, skip_scale: float | None
) -> None:
    space, engine, reference = pair_of(NAMES[1], 4, structure)
    generator = torch.Generator().manual_seed(6)

    def rows() -> dict[str, Tensor]:
        draws = {n: torch.rand(s[:1], generator=generator) for n, s in space.alpha_shapes().items()}
        return {n: (value.double() + 0.1).requires_grad_() for n, value in draws.items()}

    weights, factors, offsets = weights_of(space), rows(), rows()
    images, labels = batch()
    mixture = Mixture(weights, factors, offsets=offsets, skip_scale=skip_scale)
    logits = engine(images, mixture)
    extras = {"factors": factors, "offsets": offsets, "skip_scale": skip_scale or 0.0}
    expected = reference(images, weights, **extras)
    assert close(logits, expected)
    leaves = [*factors.values(), *offsets.values()]
    gradients = []
    for found in (logits, expected):
        loss = torch.nn.functional.cross_entropy(found, labels)
        gradients.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 0
        assert close(ours, theirs)


def test_what_a_supernet_of_blocks_cannot_be_or_do_is_refused() -> None:
    space, engine, _ = pair_of(NAMES[0])
    with pytest.raises(SpaceError, match="partial_channels must divide the channels"):
        space.build_supernet(3, 5, seed=1, structure=Structure(partial_channels=2))
    both = Structure(partial_channels=3, auxiliary_skip=True)
    with pytest.raises(SpaceError, match="cannot have both partial channels"):
        space.build_supernet(3, 5, seed=1, structure=both)
    images, weights = batch()[0], weights_of(space)
    with pytest.raises(SpaceError, match="needs a supernet with an auxiliary skip"):
        engine(images, Mixture(weights, skip_scale=0.5))
    ones = {label: torch.ones(len(value)).double() for label, value in weights.items()}
    with pytest.raises(SpaceError, match=r"offsets\['output'\] must have shape \(1,\)"):
        engine(images, Mixture(weights, offsets=ones | {"output": torch.ones(2).double()}))


@pytest.mark.parametrize("name", NAMES)
def test_an_inactive_weight_counts_as_zero_and_its_operation_is_not_run(name: str) -> None:
    space, engine, _ = pair_of(name)
    for seed in range(6):
        weights = weights_of(space, seed=seed)
        active = {label: value > 0 for label, value in weights_of(space, seed=seed + 9).items()}
        zeroed = {label: value * active[label] for label, value in weights.items()}
        images = batch()[0]
        before = {label: value.clone() for label, value in engine.named_buffers()}
        found = engine(images, Mixture(weights, active=active), norm="batch_and_update")
        still = dict(engine.named_buffers())
        for number, operations in enumerate(active["operations"].tolist()):
            # It may also rest where nothing leads to the block at all.
            for column, convolution in ((1, "conv3x3"), (2, "conv1x1")):
                label = f"cells.0.blocks.{number}.{convolution}.batch_norm.running_mean"
                if not operations[column]:
                    assert torch.equal(still[label], before[label])
        assert close(found, engine(images, Mixture(zeroed)))
    nothing = {label: torch.zeros_like(value, dtype=torch.bool) for label, value in active.items()}
    alone = engine(images, Mixture(weights, active=nothing))
    assert close(alone, alone[:1].expand_as(alone))


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_mixes_by_itself(name: str) -> None:
    """Kills an output weight that is used for another block, as in released code."""
    space, engine, _ = pair_of(name)
    images, weights = batch()[0], weights_of(space)
    base = engine(images, Mixture(weights))
    for label, value in weights.items():
        for index in range(value.numel()):
            moved = value.clone()
            moved.view(-1)[index] += 0.5
            assert not torch.allclose(engine(images, Mixture({**weights, label: moved})), base)


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("name", NAMES)
def test_one_hot_weights_give_the_cells_of_the_benchmarks_network(name: str, norm: Norm) -> None:
    """Cell by cell, from the same input: the vertices' part of the output, weights taken over.

    The stem, the pooling between cells and the head of the supernet are not those of the network,
    and all its blocks are equally wide. A vertex cell whose output is as wide as the joined blocks
    together has vertices as wide as the blocks.
    """
    space, engine, _ = pair_of(name)
    for seed in range(8):
        like = weights_of(space, seed=seed)
        genotype = space.discretize(like)
        operations, adjacency = space.cell101(genotype)
        alone = space.one_hot(genotype, like)
        used = [int(block) + 1 for block in alone["operations"].sum(1).nonzero()]
        assert len(used) == len(operations)
        joined = [block for block in used if alone["output"][0, block]]
        x = engine.stem(batch()[0], norm)
        for place, cell in enumerate(engine.cells):
            x = torch.nn.functional.max_pool2d(x, 2, 2, 1) if cell.stride == 2 else x
            output = cell(x, engine._of_cell(Mixture(alone), place), norm)
            width = len(joined) * cell.channels
            layer = CellLayer("cell", width, (x.shape[1],), (), cell.stride, width)
            plain = VertexCell(operations, adjacency, layer).double()
            assert set(plain.channels) == {cell.channels}
            take_over(cell, plain, used, joined)
            parts = output.split(cell.channels, 1)
            expected = torch.cat([parts[block - 1] for block in joined], 1)
            assert close(plain(x, norm, 0.0, None), expected)
            x = output


def take_over(cell: Any, plain: VertexCell, used: list[int], joined: list[int]) -> None:
    """Copy weights and statistics of a supernet's cell; affine weights stay 1 and 0."""
    channels, blocks = cell.channels, len(cell.blocks)
    rows = {v: range((b - 1) * channels, b * channels) for v, b in enumerate(used, start=1)}
    rows[len(used) + 1] = [  # type: ignore[assignment]
        row
        for block in joined
        for row in range((blocks + block - 1) * channels, (blocks + block) * channels)
    ]
    with torch.no_grad():
        for vertex, projection in plain.projections.items():
            picked = torch.tensor(list(rows[int(vertex)]))
            projection.convolution.weight.copy_(cell.projection.weight[picked])
            for what in ("running_mean", "running_var"):
                statistic = getattr(cell.projection_norm, what)[picked]
                getattr(projection.batch_norm, what).copy_(statistic)
        for vertex, convolution in plain.convolutions.items():
            block = cell.blocks[used[int(vertex) - 1] - 1]
            wide = convolution.convolution.kernel_size == (3, 3)
            source = block.conv3x3 if wide else block.conv1x1
            convolution.load_state_dict(source.state_dict(), strict=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_the_space(name: str) -> None:
    space = space_of(name)
    parents, cells = SIZES[name]
    assert len(set(space.parent_choices())) == parents
    assert space.num_choices == parents * 3**space.blocks
    assert len(cells_of(name)) == cells


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_are_those_that_the_table_says(name: str, shared_data: Path) -> None:
    rows = table(shared_data)
    flags = rows[f"in_1shot1_s{name[-1]}"]
    flagged = {form_of(row, rows) for row, flag in enumerate(flags) if flag}
    assert flagged == set(cells_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_the_cells_of_the_table_that_are_its_own_and_no_others(
    name: str, shared_data: Path
) -> None:
    rows, space = table(shared_data), space_of(name)
    source = random.Random(int(name[-1]))
    flags = {number: rows[f"in_1shot1_s{number}"] for number in (1, 2, 3)}
    everything = [row for row in range(len(rows["ops"])) if any(f[row] for f in flags.values())]
    counts = {True: 0, False: 0}
    own = [row for row in everything if flags[int(name[-1])][row]]
    for row in (
        source.sample(own, 60) + source.sample(everything, 60) + source.sample(range(423_624), 60)
    ):
        graph = graph101.of_canonical(*form_of(row, rows))
        genotype = Genotype(name, (graph101.to_cell("cell", *graph),))
        belongs = flags[int(name[-1])][row]
        counts[belongs] += 1
        if belongs:
            space.check(genotype)
            assert space.cell101(genotype) == graph
            continue
        with pytest.raises(SpaceError, match=f"is no cell of '{name}'"):
            space.check(genotype)
    assert min(counts.values()) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_table(name: str, shared_data: Path) -> None:
    rows, space = table(shared_data), space_of(name)
    params = {
        form_of(row, rows): rows["params"][row]
        for row, flag in enumerate(rows[f"in_1shot1_s{name[-1]}"])
        if flag
    }
    for form in random.Random(5).sample(sorted(cells_of(name)), 25):
        # In the order of a choice, which is not always that of the table.
        genotype = space.parse(format_nasbench101(*cells_of(name)[form]))
        with torch.device("meta"):
            network = space.build_network(genotype, 3, 10)
        assert sum(weight.numel() for weight in network.parameters()) == params[form]


def test_parameters_of_a_cell_worked_out_by_hand() -> None:
    # The input leads to the output and to a 3x3 convolution that does too. With C channels, two
    # projections of C_in C + 2 C weights each and a convolution of 9 C^2 + 2 C. Widths 128, 256 and
    # 512; the first cell of a stack sees the channels of the one before; classifier 512 * 10 + 10.
    space = space_of(NAMES[2])
    text = (
        f"ModelSpec(matrix=[[0, 1, 1], [0, 0, 1], [0, 0, 0]], ops=['input', '{CONV3X3}', 'output'])"
    )
    stem = 3 * 128 * 9 + 2 * 128
    cells = 0
    before = 128
    for width in (128, 256, 512):
        for _ in range(3):
            cells += 2 * (before * width + 2 * width) + 9 * width**2 + 2 * width
            before = width
    assert network_cost(space, space.parse(text), image_size=4).params == stem + cells + 5_130


def test_vertices_share_the_channels_of_the_output() -> None:
    # 1 -> 2 -> output, 3 -> output, 1 -> 4 -> output: 11 = 4 + 4 + 3, and 1 is as wide as 2.
    edges = {(0, 1), (0, 3), (1, 2), (1, 4), (2, 5), (3, 5), (4, 5)}
    adjacency = tuple(tuple(int((x, y) in edges) for y in range(6)) for x in range(6))
    assert vertex_channels(11, adjacency) == (4, 4, 4, 3)
    assert vertex_channels(9, adjacency) == (3, 3, 3, 3)
    with pytest.raises(SpaceError, match="channels must be >= 3"):
        vertex_channels(2, adjacency)
    layer = CellLayer("cell", 11, (5,), (), 1, 11)
    cell = VertexCell((CONV1X1, MAX_POOL, CONV3X3, CONV3X3), adjacency, layer)
    x = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    assert cell(x, "batch", 0.0, None).shape == (2, 11, 4, 4)
    # The convolution in vertex 4 sees the first three channels of vertex 1.
    assert cell.convolutions["4"].convolution.in_channels == 3


def test_discretize_takes_strongest_operations_and_parents() -> None:
    space = space_of(NAMES[1])  # parents 1, 1, 2, 2; the output joins three
    op_weights = {
        # Columns: max pool, 3x3, 1x1.
        "operations": torch.tensor(
            [[0.1, 0.8, 0.1], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9], [0.3, 0.4, 0.3]]
        ),
        "inputs_2": torch.tensor([[0.2, 0.8]]),
        "inputs_3": torch.tensor([[0.1, 0.5, 0.4]]),
        "inputs_4": torch.tensor([[0.4, 0.1, 0.3, 0.2]]),
        "output": torch.tensor([[0.3, 0.1, 0.05, 0.25, 0.3]]),
    }
    genotype = space.discretize(op_weights)
    # Block 1 of the input, 2 of 1, 3 of 1 and 2, 4 of the input and 2; the output of input, 3, 4.
    edges = {(0, 1), (1, 2), (1, 3), (2, 3), (0, 4), (2, 4), (0, 5), (3, 5), (4, 5)}
    adjacency = tuple(tuple(int((x, y) in edges) for y in range(6)) for x in range(6))
    assert space.cell101(genotype) == ((CONV3X3, MAX_POOL, CONV1X1, CONV3X3), adjacency)
    # The output of input, 1 and 4, and 4 of the input and 1: blocks 2 and 3 lead nowhere.
    op_weights["output"] = torch.tensor([[0.3, 0.2, 0.05, 0.1, 0.25]])
    op_weights["inputs_4"] = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    edges = {(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)}
    adjacency = tuple(tuple(int((x, y) in edges) for y in range(4)) for x in range(4))
    genotype = space.discretize(op_weights)
    assert space.cell101(genotype) == ((CONV3X3, CONV3X3), adjacency)
    # Alone it is in the blocks that it was chosen from.
    alone = space.one_hot(genotype, op_weights)
    assert alone["operations"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert alone["inputs_4"].tolist() == [[1, 1, 0, 0]]
    assert alone["output"].tolist() == [[1, 1, 0, 0, 1]]
    assert not any(alone[name].any() for name in ("inputs_2", "inputs_3"))
    # Among other weights it is in the first that have as many parents: 3 has two, as 4 has.
    elsewhere = space.one_hot(genotype, {name: torch.zeros_like(w) for name, w in alone.items()})
    assert elsewhere["operations"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert elsewhere["inputs_3"].tolist() == [[1, 1, 0]]
    assert elsewhere["output"].tolist() == [[1, 1, 0, 1, 0]]


def test_ties_go_to_the_lower_index() -> None:
    space = space_of(NAMES[0])
    equal = {name: torch.zeros(shape) for name, shape in space.alpha_shapes().items()}
    # Parents 0, 1 of every block and of the output: blocks 2 to 4 lead nowhere.
    assert space.cell101(space.discretize(equal))[0] == (MAX_POOL,)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_parents_can_be_discretized_to(name: str) -> None:
    space = space_of(name)
    source = random.Random(0)
    for number, parents in enumerate(space.parent_choices()):
        if number % max(1, SIZES[name][0] // 360):
            continue
        columns = [source.randrange(3) for _ in range(space.blocks)]
        op_weights = {n: 0.1 * torch.ones(shape) for n, shape in space.alpha_shapes().items()}
        for block, column in enumerate(columns):
            op_weights["operations"][block, column] = 0.5
        for node, sources in enumerate(parents, start=1):
            row = "output" if node > space.blocks else f"inputs_{node}"
            if row in op_weights:
                op_weights[row][0, list(sources)] = 0.4
        names = [space.operations["operations"][column] for column in columns]
        expected = graph101.pruned(*space.graph(parents, names))
        assert space.cell101(space.discretize(op_weights)) == expected


def test_the_text_form_is_that_of_the_benchmark() -> None:
    space = space_of(NAMES[0])
    text = (
        "ModelSpec(matrix=[[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], "
        f"ops=['input', '{CONV3X3}', '{MAX_POOL}', 'output'])"
    )
    genotype = space.parse(text)
    assert space.format(genotype) == text
    assert space.parse(f"api.{text}") == space.parse(f"cell = {text}") == genotype
    with pytest.raises(SpaceError, match="does not say its space"):
        parse(text)
    # The benchmark's own cells have seven vertices, some on no path.
    loose = (
        '{"matrix": [[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], '
        f'[0, 0, 0, 0, 0]], "ops": ["input", "{CONV3X3}", "{MAX_POOL}", "{CONV1X1}", "output"]}}'
    )
    with pytest.raises(SpaceError, match="is no cell of"):
        space.parse(loose)  # without the vertex that leads nowhere the output has one parent
    assert space.parse(loose.replace("[0, 1, 1, 1, 0]", "[0, 1, 1, 1, 1]")) == genotype


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ModelSpec(matrix=[[0, 1], [0, 0]], ops=['in', 'output'])", "from 'input' to 'output'"),
        ("ModelSpec(matrix=[[0, 1.0], [0, 0]], ops=['input', 'output'])", "rows of 0 and 1"),
        ("ModelSpec(matrix=3, ops=['input', 'output'])", "rows of 0 and 1"),
        ("ModelSpec(matrix=[[0, 1], [0, 0]], ops=[1, 'output'])", "ops must be a list of names"),
        ("ModelSpec(matrix=[[0, 1], [0, 0]], ops=['input', 'output'])", "is no cell of"),
        ("ModelSpec(matrix=[[0, 1], [0, 0]], ops=open('x'))", "literals alone"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space_of(NAMES[0]).parse(text)


def test_networks_pool_twice_and_have_three_sizes_at_least() -> None:
    space = small(NAMES[2], cells=9)
    genotype = space.discretize(weights_of(space))
    network = space.build_network(genotype, 3, 10, channels=16, cells=9)
    assert [cell.stride for cell in network.cells] == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    with pytest.raises(SpaceError, match="cells must be >= 3"):
        space.build_network(genotype, 3, 10, cells=2)
    with pytest.raises(SpaceError, match=r"together.*use discretize"):
        space.choose("output", torch.zeros(1, 6))


def test_dropped_paths_depend_on_the_generator_alone_and_only_in_training() -> None:
    space = small(NAMES[0])
    network = space.build_network(space.discretize(weights_of(space)), 3, 4, channels=8, cells=3)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))

    def logits(seed: int, share: float = 0.5) -> Tensor:
        return network(images, share, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(0, 0.0))
    network.eval()
    assert torch.equal(logits(0), logits(1, 0.0))


@pytest.mark.parametrize(
    ("change", "message"), [({"channels": 0}, "channels"), ({"cells": 2}, "cells")]
)
def test_sizes_out_of_range_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(Exception, match=f"{message} must be >="):
        small(NAMES[0], **change)


def test_a_mixture_of_a_wrong_shape_is_refused() -> None:
    space = small(NAMES[0])
    supernet, weights = space.build_supernet(3, 5, seed=0).double(), weights_of(space)
    images = batch()[0]
    with pytest.raises(SpaceError, match=r"op_weights\['output'\] must have shape \(1, 5\)"):
        supernet(images, Mixture({**weights, "output": torch.zeros(1, 4)}))
    with pytest.raises(SpaceError, match="op_weights must have 'inputs_3'"):
        supernet(images, Mixture({n: w for n, w in weights.items() if n != "inputs_3"}))
    with pytest.raises(SpaceError, match="norm must be one of"):
        supernet(images, Mixture(weights), norm="train")
