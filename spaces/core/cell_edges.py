"""Edges of a described cell: what is written of them, checked. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spaces.core import plugins
from spaces.core.errors import near_miss
from spaces.core.genotype import NONE

Edge = tuple[int, int]


def read(
    edges: Any,
    operations: Any,
    *,
    inputs: int,
    nodes: int,
    last_alone: bool,
    where: str = "",
) -> dict[Edge, tuple[str, ...]]:
    """Return the candidate operations of every edge, in the order of targets, then of sources.

    Args:
        edges: "all", or a list of [from, to] and [from, to, [operation, ...]].
        operations: Those of an edge that has none of its own.
        inputs: Number of input nodes.
        nodes: Number of inner nodes.
        last_alone: Whether the last node alone is the cell's output, so that all must lead there.
        where: What stands before a setting's name in messages.

    Raises:
        ValueError: An edge or an operation that cannot be.
    """
    if edges == "all":
        pairs = [(source, node) for node in range(inputs, inputs + nodes) for source in range(node)]
        written: list[tuple[Edge, Any, str]] = [(pair, None, "") for pair in pairs]
    elif isinstance(edges, list | tuple) and edges:
        written = [
            _edge(item, f"{where}edges[{index}]", inputs=inputs, nodes=nodes)
            for index, item in enumerate(edges)
        ]
    else:
        raise ValueError(f"{where}edges must be all or a list of [from, to], got {edges!r}.")
    common: tuple[str, ...] = ()
    if any(own is None for _, own, _ in written):
        common = read_operations(operations, f"{where}operations")
    found: dict[Edge, tuple[str, ...]] = {}
    for pair, own, at in written:
        if pair in found:
            raise ValueError(f"{at} repeats the edge {_shown(pair)}.")
        found[pair] = common if own is None else read_operations(own, f"{at}[2]")
    found = dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0])))
    _check_graph([*found], inputs=inputs, nodes=nodes, last_alone=last_alone, where=where)
    _check_alike(found, where)
    return found


def read_operations(names: Any, where: str) -> tuple[str, ...]:
    """Return checked candidate operations.

    Raises:
        ValueError: An unknown or a repeated name, or too few.
    """
    if not isinstance(names, list | tuple):
        raise ValueError(f"{where} must be a list of operations, got {names!r}.")
    known = plugins.available("operations")
    for index, name in enumerate(names):
        if name not in known:
            hint = near_miss(str(name), known) or f" There is {', '.join(known)}."
            raise ValueError(
                f"{where}[{index}] must be an operation, got {name!r}.{hint} One of your own goes "
                f"into DIR/operations/{name}.py, named by --plugins DIR."
            )
        if name in names[:index]:
            raise ValueError(f"{where} has {name!r} twice.")
    if len(names) < 2:
        raise ValueError(
            f"{where} must have at least two operations for a search to choose from (none counts), "
            f"got {[*names]}."
        )
    return tuple(names)


def read_keep(
    keep: Any, edges: Sequence[Edge], inner: Sequence[int], *, where: str = ""
) -> tuple[int, ...]:
    """Return how many edges are kept into each inner node.

    Raises:
        ValueError: A node has fewer edges than are to be kept.
    """
    arriving = [sum(target == node for _, target in edges) for node in inner]
    if keep == "all":
        return tuple(arriving)
    listed = isinstance(keep, list | tuple)
    each = list(keep) if listed else [keep] * len(inner)
    if len(each) != len(inner) or any(type(kept) is not int for kept in each):
        raise ValueError(
            f"{where}keep must be all, a number, or a list of {len(inner)} numbers, one for each "
            f"node, got {keep!r}."
        )
    for node, kept, most in zip(inner, each, arriving, strict=True):
        if not 1 <= kept <= most:
            hint = ""
            if not listed and kept > most:
                fitting = [min(kept, most) for most in arriving]
                hint = f" Did you mean keep: {fitting}, or keep: all?"
            raise ValueError(
                f"{where}keep must be from 1 to {most}, the number of edges into node {node}, got "
                f"{kept}.{hint}"
            )
    return tuple(each)


def _edge(item: Any, at: str, *, inputs: int, nodes: int) -> tuple[Edge, Any, str]:
    good = isinstance(item, list | tuple) and len(item) in (2, 3)
    if not good or any(type(node) is not int for node in item[:2]):
        raise ValueError(f"{at} must be [from, to] or [from, to, [operation, ...]], got {item!r}.")
    source, target = item[:2]
    last = inputs + nodes - 1
    if not (0 <= source <= last and 0 <= target <= last):
        raise ValueError(
            f"{at} must join two of the nodes 0 to {last}, of which 0 to {inputs - 1} are the "
            f"inputs, got {_shown((source, target))}."
        )
    if target < inputs:
        raise ValueError(f"{at} must not lead into an input, got {_shown((source, target))}.")
    if source >= target:
        turned = "" if source == target else f" Did you mean [{target}, {source}]?"
        raise ValueError(
            f"{at} must lead to a later node, so that the cell has no cycle, got "
            f"{_shown((source, target))}.{turned}"
        )
    return (source, target), item[2] if len(item) == 3 else None, at


def _check_graph(
    edges: Sequence[Edge], *, inputs: int, nodes: int, last_alone: bool, where: str
) -> None:
    left = {source for source, _ in edges}
    entered = {target for _, target in edges}
    for node in range(inputs + nodes):
        if node >= inputs and node not in entered:
            raise ValueError(f"{where}edges must lead into every node, and none does into {node}.")
        if node < inputs and node not in left:
            fewer = " Or set inputs: 1 and number the nodes from 1." if inputs == 2 else ""
            raise ValueError(
                f"{where}edges must leave every input, and none leaves input {node}.{fewer}"
            )
        if last_alone and inputs <= node < inputs + nodes - 1 and node not in left:
            raise ValueError(
                f"{where}edges must lead from node {node} on, since the output is the last node "
                "alone."
            )


def _check_alike(edges: Mapping[Edge, tuple[str, ...]], where: str) -> None:
    first, *rest = edges.items()
    for pair, names in rest:
        if len(names) != len(first[1]):
            raise ValueError(
                f"{where}edges must have equally many operations each, which are the columns of "
                f"one matrix, got {len(first[1])} on {_shown(first[0])} and {len(names)} on "
                f"{_shown(pair)}."
            )
        columns = [names.index(NONE) if NONE in names else None for names in (first[1], names)]
        if columns[0] != columns[1]:
            raise ValueError(
                f"{where}edges must all have {NONE!r} at the same place of their operations, or "
                f"none of them, got {list(first[1])} on {_shown(first[0])} and {list(names)} on "
                f"{_shown(pair)}."
            )


def _shown(edge: Edge) -> str:
    return f"{edge[0]} -> {edge[1]}"
