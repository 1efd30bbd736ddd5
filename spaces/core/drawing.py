"""Drawings of genotypes: every cell as a graph in layers, one colour for each operation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.core.errors import SpaceError
from spaces.core.genotype import NONE, Cell, Genotype
from spaces.core.graph_layout import Node, Point, Positions, positions
from spaces.core.panels import Panel, arrange

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

_OUTPUT = "output"
_INPUTS = {0: r"$c_{k-2}$", 1: r"$c_{k-1}$"}  # as the cells are drawn in the DARTS paper
_INK = "#1f2933"
_FAINT = "#c3ccd5"
_HALF_WIDTH = 0.21
_HALF_HEIGHT = 0.27
_LAYER_INCHES = 1.5
_HEIGHT_INCHES = 0.82
_LEAST_WIDTH_INCHES = 6.0
_TITLE_INCHES = 0.52
_MARGIN_INCHES = 0.2
_LEGEND_INCHES = 0.26
_LEGEND_COLUMNS = 4
_LEGEND_COLUMN_INCHES = 1.5


@dataclass(frozen=True)
class _Style:
    """How an operation is drawn; operations without weights are dashed."""

    label: str
    colour: str
    dashes: tuple[float, ...] | None = None


_STYLES: Mapping[str, _Style] = {
    "skip_connect": _Style("skip", "#7b8794", (1.2, 1.6)),
    "max_pool_3x3": _Style("max pool 3×3", "#2e9e6b", (4.0, 1.8)),
    "avg_pool_3x3": _Style("avg pool 3×3", "#14a3b8", (4.0, 1.8)),
    "noise": _Style("noise", "#b8860b", (1.2, 1.6)),
    "nor_conv_1x1": _Style("conv 1×1", "#e8912d"),
    "nor_conv_3x3": _Style("conv 3×3", "#2f6fdb"),
    "sep_conv_3x3": _Style("sep conv 3×3", "#2f6fdb"),
    "sep_conv_5x5": _Style("sep conv 5×5", "#7a4fd0"),
    "dil_conv_3x3": _Style("dil conv 3×3", "#e8912d"),
    "dil_conv_5x5": _Style("dil conv 5×5", "#d6456b"),
    "maxpool3x3": _Style("into max pool 3×3", "#2e9e6b", (4.0, 1.8)),
    "conv1x1-bn-relu": _Style("into conv 1×1", "#e8912d"),
    "conv3x3-bn-relu": _Style("into conv 3×3", "#2f6fdb"),
    "output": _Style("into the output", "#7b8794"),
}
_OTHER_COLOURS = ("#8c6d46", "#b5408f", "#5b7c2a", "#3d4f8a")


def draw_genotype(genotype: Genotype, path: str | Path) -> Path:
    """Draw every cell of a genotype, one panel each, and write PNG or SVG by the suffix of `path`.

    Nodes are numbered as in the genotype; `none` edges are left out; thin grey links lead to the
    cell's output. Three cells or more stand in a grid, smaller, in reading order.

    Returns:
        The path written.

    Raises:
        SpaceError: The suffix is neither .png nor .svg.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SpaceError(f"A drawing must end in {' or '.join(SUFFIXES)}, got '{path}'.")
    # matplotlib is slow to import and needed for drawings alone.
    from matplotlib import rc_context

    metadata: dict[str, Any] = {"Date": None} if path.suffix.lower() == ".svg" else {}
    # The salt makes the names inside an SVG the same each time.
    with rc_context({"svg.hashsalt": "genotype"}):
        genotype_figure(genotype).savefig(path, dpi=200, metadata=metadata)
    return path


def genotype_figure(genotype: Genotype) -> Figure:
    """Return the drawing of `draw_genotype` as a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    graphs = [_Graph(cell) for cell in genotype.cells]
    styles = _styles(genotype)
    head = _TITLE_INCHES if len(graphs) > 1 else _MARGIN_INCHES
    grid = arrange(
        [(graph.width, head + graph.height + _MARGIN_INCHES) for graph in graphs],
        _LEAST_WIDTH_INCHES,
    )
    columns = _LEGEND_COLUMNS
    if len(grid.heights) < len(graphs):
        columns = max(columns, int(grid.width / _LEGEND_COLUMN_INCHES))
    rows = -(-max(len(styles), 1) // columns)
    total = sum(grid.heights) + _LEGEND_INCHES * rows + _MARGIN_INCHES
    figure = Figure(figsize=(grid.width, total), facecolor="white")
    FigureCanvasAgg(figure)
    for graph, panel in zip(graphs, grid.panels(len(graphs), total), strict=True):
        if len(graphs) > 1:
            _draw_title(figure, graph.cell.name, panel, grid.scale)
        _draw_panel(figure, graph, styles, panel, head=head, scale=grid.scale)
    _draw_legend(figure, styles, columns)
    return figure


class _Graph:
    """A cell with its output as a node of its own, and where everything is."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.edges = tuple(edge for edge in cell.edges if edge.operation != NONE)
        self.concatenates = len(cell.concat) > 1
        nodes: list[Node] = list(range(cell.num_nodes))
        links: list[tuple[Node, Node]] = [(edge.source, edge.target) for edge in self.edges]
        if self.concatenates:
            nodes.append(_OUTPUT)
            links.extend((node, _OUTPUT) for node in cell.concat)
        self.links = links
        self.placed: Positions = positions(nodes, links)
        boxes = [
            y + side
            for _, y in self.placed.nodes.values()
            for side in (-_HALF_HEIGHT, _HALF_HEIGHT)
        ]
        extent = [*boxes, *(y for route in self.placed.routes for _, y in route)]
        self.top, self.bottom = min(extent), max(extent)
        self.last_layer = max(x for x, _ in self.placed.nodes.values())
        self.width = (self.last_layer + 1.0) * _LAYER_INCHES
        self.height = (self.bottom - self.top) * _HEIGHT_INCHES

    def label(self, node: Node) -> str:
        if node == _OUTPUT:
            return "out"
        if isinstance(node, int) and node < self.cell.num_inputs:
            return "in" if self.cell.num_inputs == 1 else _INPUTS.get(node, f"in {node}")
        if not self.concatenates and node in self.cell.concat:
            return "out"
        return str(node)


def _styles(genotype: Genotype) -> dict[str, _Style]:
    """Return the styles of the operations that occur, in the order of the table."""
    used = {e.operation for cell in genotype.cells for e in cell.edges if e.operation != NONE}
    styles = {name: style for name, style in _STYLES.items() if name in used}
    for index, name in enumerate(sorted(used - set(_STYLES))):
        colour = _OTHER_COLOURS[index % len(_OTHER_COLOURS)]
        styles[name] = _Style(name.replace("_", " "), colour)
    return styles


def _draw_title(figure: Figure, title: str, panel: Panel, scale: float) -> None:
    width, height = figure.get_size_inches()
    margin = scale * _MARGIN_INCHES
    place = ((panel.left + margin) / width, (panel.top - margin) / height)
    figure.text(*place, title, va="top", color=_INK, fontsize=11.5 * scale, fontweight="bold")


def _draw_panel(
    figure: Figure,
    graph: _Graph,
    styles: Mapping[str, _Style],
    panel: Panel,
    *,
    head: float,
    scale: float,
) -> None:
    """Draw a cell; `head` is the room for its title, in inches at full size."""
    width, height = figure.get_size_inches()
    bottom = panel.top - panel.height
    axes = figure.add_axes(
        (panel.left / width, bottom / height, panel.width / width, panel.height / height)
    )
    middle, half = graph.last_layer / 2, panel.width / (scale * _LAYER_INCHES) / 2
    # Inputs below each other are easier to compare; a drawing at full size is centred.
    start = middle - half if scale == 1 else -0.5
    axes.set_xlim(start, start + 2 * half)
    # Heights grow downwards; one inch is the same in every panel.
    upper = graph.top - head / _HEIGHT_INCHES
    axes.set_ylim(upper + panel.height / (scale * _HEIGHT_INCHES), upper)
    axes.axis("off")
    _draw_cell(axes, graph, styles, scale)


def _draw_cell(axes: Axes, graph: _Graph, styles: Mapping[str, _Style], scale: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    ends = _ports(graph)
    for index, route in enumerate(graph.placed.routes):
        start, end = ends[index]
        points = [start, *route[1:-1], end]
        if index < len(graph.edges):
            style = styles[graph.edges[index].operation]
            _draw_link(axes, points, style.colour, 2.2 * scale, style.dashes, head=True)
        else:
            _draw_link(axes, points, _FAINT, 1.1 * scale, None, head=False)
    # A node that nothing reaches, where all edges into it are none, is drawn faintly.
    reached = {*range(graph.cell.num_inputs), *(target for _, target in graph.links)}
    for node, (x, y) in graph.placed.nodes.items():
        inner = isinstance(node, int) and node >= graph.cell.num_inputs
        plain = inner and graph.label(node) != "out"
        box = FancyBboxPatch(
            (x - _HALF_WIDTH, y - _HALF_HEIGHT),
            2 * _HALF_WIDTH,
            2 * _HALF_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.1",
            mutation_aspect=_LAYER_INCHES / _HEIGHT_INCHES,
            facecolor="white" if plain else "#eef2f6",
            edgecolor=_INK if node in reached else _FAINT,
            linewidth=1.2 * scale,
            zorder=3,
        )
        axes.add_patch(box)
        colour = _INK if node in reached else _FAINT
        axes.text(
            x, y, graph.label(node), ha="center", va="center_baseline", color=colour, zorder=4,
            fontsize=10 * scale,
        )  # fmt: skip


def _ports(graph: _Graph) -> list[tuple[Point, Point]]:
    """Spread the ends of links over the sides of their nodes, in the order of where they go."""
    routes = graph.placed.routes
    starts: dict[int, Point] = {}
    ends: dict[int, Point] = {}
    for node, (x, y) in graph.placed.nodes.items():
        leaving = [i for i, link in enumerate(graph.links) if link[0] == node]
        arriving = [i for i, link in enumerate(graph.links) if link[1] == node]
        for group, into, side, neighbour in (
            (leaving, starts, _HALF_WIDTH, 1),
            (arriving, ends, -_HALF_WIDTH, -2),
        ):
            group.sort(key=lambda i, at=neighbour: (routes[i][at][1], i))  # type: ignore[misc]
            for place, i in enumerate(group):
                share = (place + 1) / (len(group) + 1) - 0.5
                into[i] = (x + side, y + 1.8 * share * _HALF_HEIGHT)
    return [(starts[i], ends[i]) for i in range(len(routes))]


def _draw_link(
    axes: Axes,
    points: Sequence[Point],
    colour: str,
    width: float,
    dashes: tuple[float, ...] | None,
    *,
    head: bool,
) -> None:
    """Draw a smooth curve through points, level at each of them, with an arrow head at the end."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path as Curve

    length = 0.1 if head else 0.0
    tip = points[-1]
    stops = [*points[:-1], (tip[0] - length, tip[1])]
    vertices: list[Point] = [stops[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(stops):
        bend = 0.5 * (x1 - x0)
        vertices += [(x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
    codes = [Curve.MOVETO] + [Curve.CURVE4] * (len(vertices) - 1)
    patch = PathPatch(
        Curve(vertices, codes),
        fill=False,
        edgecolor=colour,
        linewidth=width,
        zorder=2 if head else 1,
    )
    patch.set_capstyle("butt")
    if dashes is not None:
        patch.set_linestyle((0, dashes))
    axes.add_patch(patch)
    if head:
        spread = 0.062
        corners = [tip, (tip[0] - length, tip[1] - spread), (tip[0] - length, tip[1] + spread)]
        axes.add_patch(Polygon(corners, closed=True, facecolor=colour, edgecolor="none", zorder=2))


def _draw_legend(figure: Figure, styles: Mapping[str, _Style], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for style in styles.values():
        line = Line2D([], [], color=style.colour, linewidth=2.2, label=style.label)
        if style.dashes is not None:
            line.set_linestyle((0, style.dashes))
        handles.append(line)
    if handles:
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(len(handles), columns),
            frameon=False,
            fontsize=9.5,
            labelcolor=_INK,
            handlelength=2.4,
            columnspacing=1.8,
        )
