"""Positions for the drawing of a small directed graph, in layers from left to right.

The method of Sugiyama et al. (1981) for a few nodes: layers by longest path, a waypoint wherever an
edge crosses a layer, orders by least crossings, and heights that straighten the edges.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

Node = Hashable
Link = tuple[Node, Node]
Point = tuple[float, float]
_EXHAUSTIVE = 6  # layers up to this size are ordered by trying every order
_SWEEPS = 40


@dataclass(frozen=True)
class Positions:
    """Where nodes are and through which points links run.

    Attributes:
        nodes: (layer, height) of every node; layers count from 0, neighbours are at least 1 apart.
        routes: For every link in the order given, its points from source to target.
    """

    nodes: Mapping[Node, Point]
    routes: tuple[tuple[Point, ...], ...]


def positions(nodes: Sequence[Node], links: Sequence[Link], gap: float = 1.0) -> Positions:
    """Place nodes in layers.

    Args:
        nodes: All nodes, sources before targets.
        links: (source, target); parallel links get routes of their own.
        gap: Least vertical distance of a node from its neighbours; waypoints stay half as far.

    Returns:
        Positions, centred about height 0.
    """
    depth = _depths(nodes, links)
    layers: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in nodes:
        layers[depth[node]].append(node)
    chains = []
    for index, (source, target) in enumerate(links):
        waypoints = [(index, layer) for layer in range(depth[source] + 1, depth[target])]
        for waypoint in waypoints:
            layers[waypoint[1]].append(waypoint)
        chains.append([source, *waypoints, target])
    pieces = [piece for chain in chains for piece in itertools.pairwise(chain)]
    layers = _ordered(layers, pieces)
    heights = _heights(layers, pieces, set(nodes), gap)
    layer_of = {node: float(index) for index, layer in enumerate(layers) for node in layer}
    where = {node: (layer_of[node], heights[node]) for node in heights}
    routes = tuple(tuple(where[node] for node in chain) for chain in chains)
    return Positions({node: where[node] for node in nodes}, routes)


def _depths(nodes: Sequence[Node], links: Sequence[Link]) -> dict[Node, int]:
    depth = dict.fromkeys(nodes, 0)
    for node in nodes:
        before = [depth[source] + 1 for source, target in links if target == node]
        depth[node] = max(before, default=0)
    return depth


def _ordered(layers: list[list[Node]], pieces: Sequence[Link]) -> list[list[Node]]:
    """Reorder layer by layer while that lowers the number of crossings."""
    best = _crossings(layers, pieces)
    for _ in range(_SWEEPS):
        before = best
        # The first layer holds the inputs: they stay in the order of their numbers.
        for index, layer in enumerate(layers[1:], start=1):
            for candidate in _orders(layer):
                trial = [*layers[:index], list(candidate), *layers[index + 1 :]]
                crossings = _crossings(trial, pieces)
                if crossings < best:
                    layers, best = trial, crossings
        if best == before:
            break
    return layers


def _orders(layer: Sequence[Node]) -> list[list[Node]]:
    if len(layer) <= _EXHAUSTIVE:
        return [list(order) for order in itertools.permutations(layer)]
    orders = []
    for first, second in itertools.combinations(range(len(layer)), 2):
        order = list(layer)
        order[first], order[second] = order[second], order[first]
        orders.append(order)
    return orders


def _crossings(layers: Sequence[Sequence[Node]], pieces: Sequence[Link]) -> float:
    """Count crossings; the spread of the links breaks ties, so that links stay short."""
    place = {node: index for layer in layers for index, node in enumerate(layer)}
    level = {node: index for index, layer in enumerate(layers) for node in layer}
    middle = {node: (len(layers[level[node]]) - 1) / 2 for node in place}
    by_level: dict[int, list[tuple[int, int]]] = {}
    spread = 0.0
    for source, target in pieces:
        by_level.setdefault(level[source], []).append((place[source], place[target]))
        slope = place[source] - middle[source] - place[target] + middle[target]
        spread += slope * slope
    crossings = sum(
        (a[0] - b[0]) * (a[1] - b[1]) < 0
        for group in by_level.values()
        for a, b in itertools.combinations(group, 2)
    )
    return crossings + 1e-4 * spread


def _heights(
    layers: Sequence[Sequence[Node]], pieces: Sequence[Link], real: set[Node], gap: float
) -> dict[Node, float]:
    """Pull every node to the mean of its neighbours, keeping order and distances."""
    offsets = [_offsets(layer, real, gap) for layer in layers]
    heights = {
        node: offset - places[-1] / 2
        for layer, places in zip(layers, offsets, strict=True)
        for node, offset in zip(layer, places, strict=True)
    }
    neighbours: dict[Node, list[Node]] = {node: [] for node in heights}
    for source, target in pieces:
        neighbours[source].append(target)
        neighbours[target].append(source)
    for sweep in range(_SWEEPS):
        indices = range(len(layers)) if sweep % 2 == 0 else reversed(range(len(layers)))
        for index in indices:
            wished = [_wish(node, neighbours[node], heights) for node in layers[index]]
            shifted = [w - o for w, o in zip(wished, offsets[index], strict=True)]
            for node, value, offset in zip(
                layers[index], _monotone(shifted), offsets[index], strict=True
            ):
                heights[node] = value + offset
    centre = (max(heights.values()) + min(heights.values())) / 2
    return {node: height - centre for node, height in heights.items()}


def _offsets(layer: Sequence[Node], real: set[Node], gap: float) -> list[float]:
    """Return the heights of a layer packed as closely as allowed."""
    offsets = [0.0]
    for above, below in itertools.pairwise(layer):
        both_real = above in real and below in real
        one_real = above in real or below in real
        offsets.append(offsets[-1] + gap * (1.0 if both_real else 0.75 if one_real else 0.5))
    return offsets


def _wish(node: Node, others: Sequence[Node], heights: Mapping[Node, float]) -> float:
    if not others:
        return heights[node]
    return sum(heights[other] for other in others) / len(others)


def _monotone(values: Sequence[float]) -> list[float]:
    """Return the nearest non-decreasing sequence in least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [value for value, count in blocks for _ in range(count)]
