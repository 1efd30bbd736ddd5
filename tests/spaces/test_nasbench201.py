"""The NAS-Bench-201 space: networks, cost against the table, discretization."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spaces.core.cost import network_cost
from spaces.core.errors import SpaceError
from spaces.core.genotype import Genotype
from tests.spaces.helpers import space_of

ARCHITECTURES = (
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|"
    "skip_connect~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|"
    "nor_conv_3x3~2|",
    "|nor_conv_1x1~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|skip_connect~0|none~1|nor_conv_3x3~2|",
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|"
    "skip_connect~2|",
    "|none~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|nor_conv_1x1~0|none~1|avg_pool_3x3~2|",
)


def count(genotype: Genotype, operation: str) -> int:
    return sum(edge.operation == operation for edge in genotype.cell("cell").edges)


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_cost_follows_the_formula(text: str) -> None:
    space = space_of("nasbench201")
    genotype = space.parse(text)
    cost = network_cost(space, genotype)
    n3x3, n1x1 = count(genotype, "nor_conv_3x3"), count(genotype, "nor_conv_1x1")
    # Weights outside cells: stem 3*16*9 + 2*16; residual block (16*32 + 32*32)*9 + 4*32 + 16*32,
    # the like from 32 to 64; last norm 2*64; classifier 64*10 + 10. A 3x3 convolution and its
    # norm, in 5 cells of each of 3 stages: 5 * sum(9 c^2 + 2 c); a 1x1 one: 5 * sum(c^2 + 2 c).
    blocks = sum((a * 2 * a + 4 * a * a) * 9 + 8 * a + 2 * a * a for a in (16, 32))
    outside = 3 * 16 * 9 + 2 * 16 + blocks + 2 * 64 + 64 * 10 + 10
    assert outside == 73_306
    assert cost.params == outside + 243_040 * n3x3 + 28_000 * n1x1
    # Its multiply-adds: 5 cells * 9 c^2 * (512 / c)^2 pixels is the same in all three stages. The
    # published count of what is outside cells, 7.78305 M, has the classifier's bias of 10 in it.
    assert 15 * 9 * 512**2 == 35_389_440
    assert cost.macs == 7_783_050 - 10 + 35_389_440 * n3x3 + 3_932_160 * n1x1


def test_cost_equals_the_published_table(shared_data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(
        shared_data / "nasbench201" / "nasbench201.parquet", columns=["arch", "params_m", "flops_m"]
    ).to_pydict()
    rows = {arch: index for index, arch in enumerate(table["arch"])}
    space = space_of("nasbench201")
    for text in ARCHITECTURES:
        row = rows[text]
        cost = network_cost(space, space.parse(text))
        assert cost.params / 1e6 == pytest.approx(table["params_m"][row], abs=1e-7)
        assert (cost.macs + 10) / 1e6 == pytest.approx(table["flops_m"][row], abs=2e-5)


def test_every_string_of_the_table_is_a_genotype_of_the_space(shared_data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(
        shared_data / "nasbench201" / "nasbench201.parquet", columns=["arch"]
    ).to_pydict()
    space = space_of("nasbench201")
    texts = table["arch"][::25]
    assert [space.format(space.parse(text)) for text in texts] == texts


def test_discretize_takes_the_strongest_of_all_operations() -> None:
    space = space_of("nasbench201")
    operations = space.operations["cell"]
    wanted = ("none", "nor_conv_3x3", "avg_pool_3x3", "skip_connect", "none", "nor_conv_1x1")
    op_weights = torch.full((6, 5), 0.15)
    for row, operation in enumerate(wanted):
        op_weights[row, operations.index(operation)] = 0.4
    genotype = space.discretize({"cell": op_weights})
    assert tuple(edge.operation for edge in genotype.cell("cell").edges) == wanted
    # A tie goes to the lower index.
    assert {e.operation for e in space.discretize({"cell": torch.zeros(6, 5)}).cells[0].edges} == {
        "none"
    }


def test_the_size_of_the_search_counts_cells_of_a_stage() -> None:
    space = space_of({"name": "nasbench201", "channels": 6, "cells_per_stage": 2})
    assert space.search_size() == (6, 2)
    assert len(space.supernet_layout(3, 10).layers) == 3 * 2 + 2
    assert space_of("nasbench201").search_size() == (16, 5)


def test_the_network_has_no_auxiliary_head() -> None:
    space = space_of("nasbench201")
    genotype = space.parse(ARCHITECTURES[1])
    assert not space.has_auxiliary
    with pytest.raises(SpaceError, match="'nasbench201' have no auxiliary head"):
        space.build_network(genotype, 3, 10, auxiliary=True)


def test_a_cell_of_none_gives_the_same_logits_for_every_image() -> None:
    # The residual blocks see zeros: nothing of the image can reach the classifier.
    space = space_of("nasbench201")
    network = space.build_network(space.parse(ARCHITECTURES[0]), 3, 10, channels=4, cells=1).eval()
    logits, _ = network(torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(logits[0], logits[1])
    assert torch.isfinite(logits).all()


def test_a_genotype_must_have_every_edge_once() -> None:
    space = space_of("nasbench201")
    data = space.parse(ARCHITECTURES[2]).to_json()
    data["cells"][0]["edges"].pop(1)
    with pytest.raises(SpaceError, match="must have each of the edges"):
        space.check(Genotype.from_json(data))


@pytest.mark.parametrize("sizes", [(1, 2), (1, 3), (2, 2)])
def test_supernet_sizes_follow_the_config(sizes: tuple[int, int]) -> None:
    cells, channels = sizes
    space = space_of({"name": "nasbench201", "channels": channels, "cells_per_stage": cells})
    supernet = space.build_supernet(1, 4, seed=0)
    assert supernet.num_cells == {"cell": 3 * cells}
    assert supernet.trunk.head.classifier.weight.shape == (4, 4 * channels)
