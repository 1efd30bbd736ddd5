"""Diagnostics against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from spaces.core import plugins
from spaces.core.genotype import Cell, EdgeChoice, Genotype
from spaces.core.space import Space
from trainables.diagnostics import (
    alpha_diagnostics,
    collapsed,
    entropy,
    genotype_diagnostics,
    logit_range,
    skip_share,
    top1_margin,
    worst_of,
)
from trainables.worst import WORST_LOSS


def space_of(name: str) -> Space:
    name, config = plugins.make_config("spaces", name)
    space: Space = plugins.load("spaces", name).build(config, name)
    return space


def test_entropy_is_in_nats_and_weighs_every_edge_the_same() -> None:
    one_hot = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    uniform = torch.full((3, 4), 0.25)
    # Edges: one of entropy 0, three of ln 4. A mean of the two cells' means would give ln(4) / 2.
    found = entropy({"normal": one_hot, "reduction": uniform})
    assert found.item() == pytest.approx(math.log(4) * 3 / 4)
    halves = torch.tensor([[0.5, 0.5, 0.0]])
    assert entropy({"cell": halves}).item() == pytest.approx(math.log(2))


def test_the_range_is_the_largest_within_an_edge() -> None:
    alphas = {
        "normal": torch.tensor([[100.0, 100.5], [0.0, -1.0]]),
        "reduction": torch.tensor([[-3.0, -5.5]]),
    }
    assert logit_range(alphas).item() == 2.5


def test_the_margin_is_the_mean_lead_of_the_first() -> None:
    rows = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    # 0.5 - 0.3 and 0.8 - 0.1.
    assert top1_margin({"cell": rows}).item() == pytest.approx((0.2 + 0.7) / 2)


def test_all_three_come_as_one_tensor_without_a_graph() -> None:
    alphas = {"cell": torch.tensor([[0.0, 1.0]], requires_grad=True)}
    op_weights = {"cell": torch.softmax(alphas["cell"], -1)}
    found = alpha_diagnostics(alphas, op_weights)
    p = 1 / (1 + math.exp(-1))
    expected = [-p * math.log(p) - (1 - p) * math.log(1 - p), 1.0, 2 * p - 1]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert not found.requires_grad


def test_the_worst_is_finite_and_keeps_the_names() -> None:
    alphas = {"cell": torch.tensor([[0.0, 2.0]])}
    names = ("train_loss", "val_loss", "val_accuracy", "perturb_distance", "alpha_range")
    found = worst_of({name: math.nan for name in names}, alphas, alphas)
    assert found["train_loss"] == found["val_loss"] == WORST_LOSS
    assert (found["val_accuracy"], found["perturb_distance"]) == (0.0, 0.0)
    assert found["alpha_range"] == 2.0


def nasbench201(*operations: str) -> Genotype:
    pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    edges = [EdgeChoice(s, t, o) for (s, t), o in zip(pairs, operations, strict=True)]
    return Genotype("nasbench201", (Cell("cell", tuple(edges), (3,)),))


SKIP, NONE, POOL, CONV = "skip_connect", "none", "avg_pool_3x3", "nor_conv_3x3"


@pytest.mark.parametrize(
    ("operations", "count", "is_collapsed"),
    [
        ([SKIP] * 6, 6, True),
        ([SKIP] * 4 + [CONV] * 2, 4, True),
        ([SKIP] * 3 + [CONV] * 3, 3, False),  # half is not more than half
        ([POOL] * 3 + [NONE] * 3, 0, True),  # nothing to train
        ([POOL] * 3 + [NONE] * 2 + [CONV], 0, False),
    ],
)
def test_collapse_of_a_nasbench201_cell(
    operations: list[str], count: int, is_collapsed: bool
) -> None:
    found = genotype_diagnostics(space_of("nasbench201"), nasbench201(*operations))
    assert found == {
        "skip_count": count,
        "skip_share": count / 6,
        "collapsed": int(is_collapsed),
    }


@pytest.mark.parametrize(
    ("operations", "is_collapsed"),
    [
        # Of five cells 1 and 3 reduce; normal are 0, 2 and 4, of 8 edges each.
        ([SKIP, "sep_conv_3x3", "sep_conv_3x3", "sep_conv_3x3", "sep_conv_3x3"], False),
        (["sep_conv_3x3", "sep_conv_3x3", SKIP, "sep_conv_3x3", SKIP], True),
        (["sep_conv_3x3", SKIP, "sep_conv_3x3", SKIP, SKIP], False),  # reductions do not count
        (["max_pool_3x3", "sep_conv_3x3", "max_pool_3x3", "sep_conv_3x3", POOL], True),
        (["max_pool_3x3", SKIP, "max_pool_3x3", SKIP, "dil_conv_3x3"], False),
    ],
)
def test_normal_cells_of_their_own_are_judged_together(
    operations: list[str], is_collapsed: bool
) -> None:
    space = space_of("darts_per_cell")
    kinds = ("normal", "reduction", "normal", "reduction", "normal")
    pairs = [(s, t) for t in range(2, 6) for s in (0, 1)]
    cells = tuple(
        Cell(
            f"cell_{place}_{kind}",
            tuple(EdgeChoice(s, t, operation) for s, t in pairs),
            (2, 3, 4, 5),
        )
        for place, (kind, operation) in enumerate(zip(kinds, operations, strict=True))
    )
    genotype = Genotype("darts_per_cell", cells)
    space.check(genotype)
    assert collapsed(space, genotype) == is_collapsed


def test_a_reduction_cell_without_weights_is_no_collapse() -> None:
    space = space_of("darts")

    def cell(name: str, operation: str) -> Cell:
        pairs = [(s, t) for t in range(2, 6) for s in (0, 1)]
        edges = tuple(EdgeChoice(s, t, operation) for s, t in pairs)
        return Cell(name, edges, (2, 3, 4, 5))

    def genotype(normal: str, reduction: str) -> Genotype:
        cells = [cell(space.cell_types[0], normal), cell(space.cell_types[1], reduction)]
        return Genotype("darts", tuple(cells))

    assert not collapsed(space, genotype("sep_conv_3x3", "max_pool_3x3"))
    assert not collapsed(space, genotype("sep_conv_3x3", SKIP))
    assert collapsed(space, genotype(SKIP, "sep_conv_3x3"))
    assert skip_share(space, genotype("sep_conv_3x3", SKIP)) == 0.5
