"""How a step grows: seconds, saved activations and peak memory over one size after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Work, interleaved, peak_bytes
from benchmarks.step import Side, Size, make_ours
from spaces.core import plugins
from spaces.core.space import Space
from trainables.capture import WARM_UP
from trainables.settings import Engine, SearchPrecision

BASE_CELLS = {"nasbench201": 2, "darts": 4}
"""Cells (per stage in nasbench201) where none are given: small enough for a curve in minutes."""

_FACTORS = (0.25, 0.5, 1.0, 2.0)
_SEEDS = (1, 2, 4, 8)
_LEAST = {"channels": 2, "cells": 1, "batch": 2, "image": 8}
_LEAST_DARTS_CELLS = 3
# Settings of `custom` that describe the same cells, and the order in which operations join.
_CELLS: Mapping[str, Mapping[str, Any]] = {
    "darts": {},
    "nasbench201": {
        "inputs": 1,
        "output": "last",
        "keep": "all",
        "cell_types": "one",
        "reduce_by": "block",
        "project_inputs": False,
        "stem_multiplier": 1,
        "final_norm": True,
        "pool_norm": False,
    },
}
_NODES = {"darts": 4, "nasbench201": 3}
_OPERATIONS = {
    "darts": (
        *("skip_connect", "sep_conv_3x3", "max_pool_3x3", "avg_pool_3x3"),
        *("dil_conv_3x3", "sep_conv_5x5", "dil_conv_5x5", "none"),
    ),
    "nasbench201": ("skip_connect", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "none"),
}


@dataclass(frozen=True)
class Point:
    """A place on a curve.

    Attributes:
        value: Of what the curve is over.
        space: What is searched there.
        size: Its batches.
        seeds: Searches that take a step, one after the other.
    """

    value: int
    space: Space
    size: Size
    seeds: int = 1


def points(over: str, space_name: str, base: Size) -> list[Point]:
    """Return the places of a curve, from small to large.

    Args:
        over: One of `OVER`.
        space_name: "darts" or "nasbench201".
        base: What stays, and the middle of what changes.
    """
    return sorted(OVER[over](over, space_name, base), key=lambda point: point.value)


def _of_size(over: str, space_name: str, base: Size) -> Iterator[Point]:
    least = _LEAST_DARTS_CELLS if (over, space_name) == ("cells", "darts") else _LEAST[over]
    middle = getattr(base, over)
    for value in {max(least, round(factor * middle)) for factor in _FACTORS}:
        size = replace(base, **{over: value})
        yield Point(value, size.space(space_name), size)


def _of_seeds(_over: str, space_name: str, base: Size) -> Iterator[Point]:
    for count in _SEEDS:
        yield Point(count, base.space(space_name), base, count)


def _of_operations(_over: str, space_name: str, base: Size) -> Iterator[Point]:
    names = _OPERATIONS[space_name]
    for count in range(2, len(names) + 1):
        yield Point(count, _described(space_name, base, operations=list(names[:count])), base)


def _of_edges(_over: str, space_name: str, base: Size) -> Iterator[Point]:
    for nodes in range(1, _NODES[space_name] + 1):
        names = list(_OPERATIONS[space_name])
        keep = {} if nodes > 1 or space_name == "nasbench201" else {"keep": 1}
        space = _described(space_name, base, nodes=nodes, operations=names, **keep)
        yield Point(len(next(iter(space.edges.values()))), space, base)


OVER: dict[str, Callable[[str, str, Size], Iterator[Point]]] = {
    "channels": _of_size,
    "cells": _of_size,
    "batch": _of_size,
    "image": _of_size,
    "seeds": _of_seeds,
    "ops": _of_operations,
    "edges": _of_edges,
}
"""What a curve can be over: sizes, seeds of a block, operations of an edge, edges of a cell."""


def _described(space_name: str, base: Size, **changed: Any) -> Space:
    """Return the cells of a space, with fewer nodes or operations, as a space of its own."""
    cells = base.cells or BASE_CELLS[space_name]
    settings = {"nodes": _NODES[space_name], **_CELLS[space_name], "channels": base.channels}
    if space_name == "nasbench201":
        # Its stages have as many cells each; a block halves the image before the next.
        settings |= {"cells": 3 * cells, "reductions": [cells, 2 * cells]}
    else:
        settings |= {"cells": cells}
    name, config = plugins.make_config("spaces", {"name": "custom", **settings, **changed})
    space: Space = plugins.load("spaces", name).build(config, name)
    return space


def measure(
    over: str,
    space_name: str,
    method: str,
    base: Size,
    device: torch.device,
    *,
    rounds: int,
    engine: Engine = "auto",
    precision: SearchPrecision = "float32",
) -> list[dict[str, Any]]:
    """Return the rows of a curve; its places are timed in turns.

    Args:
        over: One of `OVER`.
        space_name: "darts" or "nasbench201".
        method: One of `benchmarks.step.METHODS`.
        base: What stays, and the middle of what changes.
        device: Where it runs.
        rounds: How often each place is timed.
        engine: How steps are run.
        precision: Of passes.
    """
    places = points(over, space_name, base)
    blocks = {
        place.value: [
            make_ours(place.space, method, place.size, device, precision, engine)
            for _ in range(place.seeds)
        ]
        for place in places
    }
    cases = {str(value): _together(block) for value, block in blocks.items()}
    for work in cases.values():
        work()  # optimizers have their states from here on
    peaks = {name: peak_bytes(work, device) for name, work in cases.items()}
    recorded = any(block[0].search.engine.name == "graph" for block in blocks.values())
    times = interleaved(cases, rounds, device, warm_up=WARM_UP if recorded else 0)
    rows = []
    for place in places:
        block, found = blocks[place.value], times[str(place.value)]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            block[0].loss()
        weights = sum(weight.nbytes for weight in block[0].net.parameters())
        rows.append(
            {
                "case": f"scaling {space_name} {method} {over}={place.value}",
                "speedup": None,
                "over": over,
                "value": place.value,
                "step_s": found.least,
                "step_median_s": found.median,
                "images_per_s": 2 * place.size.batch * place.seeds / found.least,
                "saved_bytes": block[0].saved_bytes(),
                "peak_bytes": peaks[str(place.value)],
                "weight_bytes": weights * place.seeds,
                "pass_flops": counter.get_total_flops(),
                "rounds": rounds,
            }
        )
    return rows


def _together(block: Sequence[Side]) -> Work:
    def step() -> None:
        for side in block:
            side.step()

    return step
