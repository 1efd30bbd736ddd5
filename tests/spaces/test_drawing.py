"""Drawings of genotypes, and the layout behind them."""

from __future__ import annotations

import itertools
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from spaces.core.drawing import draw_genotype
from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, EdgeChoice, Genotype
from spaces.core.graph101 import CONV1X1, MAX_POOL, to_cell
from spaces.core.graph_layout import positions
from spaces.core.named import named
from spaces.core.panels import Panel, arrange
from spaces.core.text import parse


def test_a_png_shows_every_operation_in_its_colour(tmp_path: Path) -> None:
    path = draw_genotype(named("DARTS_V2"), tmp_path / "cell.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 800
    # sep conv, dil conv, max pool and skip are in DARTS_V2; average pooling is not.
    for colour, present in (
        ("2f6fdb", True),
        ("e8912d", True),
        ("2e9e6b", True),
        ("7b8794", True),
        ("14a3b8", False),
    ):
        wanted = np.frombuffer(bytes.fromhex(colour), dtype=np.uint8)
        assert (pixels == wanted).all(-1).any() == present


def test_an_svg_is_the_same_each_time_and_holds_the_graph(tmp_path: Path) -> None:
    genotype = parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|nor_conv_1x1~1|none~2|")
    first = draw_genotype(genotype, tmp_path / "a.svg").read_text()
    second = draw_genotype(genotype, str(tmp_path / "b.svg")).read_text()
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert first == second
    # Three edges are drawn with a head each; none is not drawn.
    assert first.count("#2f6fdb") >= 2
    assert first.count("#e8912d") >= 2
    assert "#14a3b8" not in first


def test_a_cell_of_vertices_shows_what_edges_lead_into(tmp_path: Path) -> None:
    adjacency = ((0, 1, 1, 0), (0, 0, 1, 1), (0, 0, 0, 1), (0, 0, 0, 0))
    cell = to_cell("cell", (CONV1X1, MAX_POOL), adjacency)
    drawn = draw_genotype(Genotype("x", (cell,)), tmp_path / "c.svg").read_text()
    # Into a 1x1 convolution, max pooling and the output; no colour of an operation unknown.
    for colour, present in (("e8912d", 1), ("2e9e6b", 2), ("7b8794", 2), ("2f6fdb", 0)):
        assert drawn.count(f"fill: #{colour}") == present
    assert "#8c6d46" not in drawn


def test_an_operation_without_a_style_gets_a_colour(tmp_path: Path) -> None:
    edges = (EdgeChoice(0, 1, "odd_operation"), EdgeChoice(0, 1, "skip_connect"))
    path = draw_genotype(Genotype("x", (Cell("c", edges, (1,)),)), tmp_path / "c.svg")
    assert "#8c6d46" in path.read_text()


@pytest.mark.parametrize("cells", [3, 20])
def test_many_cells_share_one_legend_in_a_grid(cells: int, tmp_path: Path) -> None:
    edges = (EdgeChoice(0, 1, "sep_conv_3x3"), EdgeChoice(0, 2, "dil_conv_3x3"))
    drawn = tuple(Cell(f"cell_{place}", edges, (1, 2)) for place in range(cells))
    svg = draw_genotype(Genotype("x", drawn), tmp_path / "cells.svg").read_text()
    # In the text of an SVG every drawn text stands once as a comment.
    assert [svg.count(f"<!-- cell_{place} -->") for place in range(cells)] == [1] * cells
    assert svg.count("<!-- sep conv 3×3 -->") == svg.count("<!-- dil conv 3×3 -->") == 1
    # A link and its head for every cell, and a line in the legend.
    assert svg.count("#2f6fdb") == 2 * cells + 1


def test_two_panels_stand_below_each_other_at_full_size() -> None:
    grid = arrange([(7.0, 3.0), (4.0, 2.0)], 6.0)
    assert (grid.columns, grid.scale, grid.width, grid.heights) == (1, 1.0, 7.0, (3.0, 2.0))
    assert list(grid.panels(2, 6.0)) == [Panel(0.0, 6.0, 7.0, 3.0), Panel(0.0, 3.0, 7.0, 2.0)]
    assert arrange([(4.0, 2.0)], 6.0).width == 6.0


@pytest.mark.parametrize("count", [3, 8, 20, 50])
def test_panels_of_a_grid_do_not_overlap_and_are_in_reading_order(count: int) -> None:
    sizes = [(6.0 + index % 3, 2.0 + index % 2) for index in range(count)]
    grid = arrange(sizes, 6.0)
    assert 0.6 < grid.width / sum(grid.heights) < 2.6
    total = sum(grid.heights)
    panels = list(grid.panels(count, total))
    assert [(panel.top, -panel.left) for panel in panels] == sorted(
        ((panel.top, -panel.left) for panel in panels), reverse=True
    )
    for panel, (width, height) in zip(panels, sizes, strict=True):
        assert panel.width >= grid.scale * width - 1e-9
        assert panel.height >= grid.scale * height - 1e-9
        assert panel.left + panel.width <= grid.width + 1e-9
        assert panel.top - panel.height >= -1e-9
    for one, two in itertools.combinations(panels, 2):
        beside = one.left + one.width <= two.left + 1e-9 or two.left + two.width <= one.left + 1e-9
        assert beside or one.top - one.height >= two.top - 1e-9


def test_an_empty_cell_can_be_drawn(tmp_path: Path) -> None:
    genotype = parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    assert draw_genotype(genotype, tmp_path / "empty.png").stat().st_size > 1000


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"must end in \.png or \.svg, got '.*cell\.pdf'"):
        draw_genotype(named("DARTS_V1"), tmp_path / "cell.pdf")


def test_layers_are_longest_paths_and_links_run_through_the_layers_between() -> None:
    links = [(0, 1), (1, 2), (0, 2), (0, 3), (2, 3)]
    placed = positions([0, 1, 2, 3], links)
    assert [placed.nodes[node][0] for node in range(4)] == [0, 1, 2, 3]
    for (source, target), route in zip(links, placed.routes, strict=True):
        assert route[0] == placed.nodes[source]
        assert route[-1] == placed.nodes[target]
        assert [x for x, _ in route] == list(range(int(route[0][0]), int(route[-1][0]) + 1))


def test_nodes_of_a_layer_keep_their_distance() -> None:
    links = [(0, node) for node in range(1, 6)]
    placed = positions(range(6), links)
    heights = sorted(y for x, y in placed.nodes.values() if x == 1)
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(heights))
    assert placed.nodes[0][1] == pytest.approx(0.0)
    assert heights[0] == pytest.approx(-heights[-1])


def test_crossings_are_avoided_where_they_can_be() -> None:
    # Two inputs, whose order is fixed; each second layer's node hangs on the other input.
    placed = positions([0, 1, 2, 3], [(0, 3), (1, 2)])
    assert placed.nodes[0][1] < placed.nodes[1][1]
    assert placed.nodes[3][1] < placed.nodes[2][1]
