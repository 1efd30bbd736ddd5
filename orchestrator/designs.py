"""Sampling designs of a sensitivity study: where in its ranges a block's configurations lie.

All of a design is known before anything has run, and is the same whenever it is made again, so that
a study is resumed with the design that it began with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.dimensions import Dimension, holds
from orchestrator.experiment import Design

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_POINTS = 10_000
_MOST_POWER = 14


def points(design: Design, dimensions: Sequence[Dimension], samples: int) -> list[dict[str, Any]]:
    """Return the drawn values of each point, by the name of the dimension, in the design's order.

    Whole numbers and values that round can make two points the same.

    Args:
        design: The design, checked by `problems_of`.
        dimensions: What is drawn in a block.
        samples: Points of a Sobol sequence; without effect on the other designs.
    """
    if not dimensions:
        return [{}]
    if design.name == "grid":
        return _grid(dimensions, design.levels)
    if design.name == "one_at_a_time":
        return _one_at_a_time(dimensions, design)
    cube = unit_points(design, len(dimensions), samples)
    return [
        {each.name: place(each, float(u)) for each, u in zip(dimensions, line, strict=True)}
        for line in cube
    ]


def unit_points(design: Design, count: int, samples: int) -> NDArray[np.float64]:
    """Return the points of a Sobol design in the unit cube, `(points, count)`.

    With `indices` they are Saltelli's `samples * (count + 2)`, of which first-order and total Sobol
    indices are estimated.
    """
    import numpy as np

    if design.indices:
        from SALib.sample import sobol

        found = sobol.sample(
            problem_of(count), samples, calc_second_order=False, scramble=True, seed=design.seed
        )
        return np.asarray(found, dtype=float)
    from scipy.stats import qmc

    sequence = qmc.Sobol(count, scramble=True, rng=np.random.default_rng(design.seed))
    return np.asarray(sequence.random_base2(samples.bit_length() - 1), dtype=float)


def problem_of(count: int) -> dict[str, Any]:
    """Return the unit cube as SALib describes it."""
    names = [f"x{place}" for place in range(count)]
    return {"num_vars": count, "names": names, "bounds": [[0.0, 1.0]] * count}


def place(dimension: Dimension, share: float) -> Any:
    """Return the value at a place in a range, from 0 to 1: in the logarithm of a loguniform one."""
    low, high = dimension.args
    if dimension.kind == "randint":
        return int(min(low + math.floor(share * (high - low)), high - 1))
    if dimension.kind == "uniform":
        value = low + share * (high - low)
    else:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    # 0.3 and not 0.30000000000000004: it is the centre too, and a grid's value in another study.
    return min(max(float(f"{value:.12g}"), low), high)


def levels(dimension: Dimension, count: int) -> list[Any]:
    """Return evenly placed values of a range, ends included, or all values of a choice."""
    if dimension.kind == "choice":
        return list(dimension.texts)
    low, high = dimension.args
    if dimension.kind == "randint":
        last = high - 1
        steps = min(count, high - low)
        spread = [low + (last - low) * i / max(steps - 1, 1) for i in range(steps)]
        return list(dict.fromkeys(round(value) for value in spread))
    return [place(dimension, i / (count - 1)) for i in range(count)]


def problems_of(
    design: Design, dimensions: Sequence[Dimension], samples: int | None
) -> list[tuple[str, str]]:
    """Return what is wrong with a design in a block: settings and sentences; mostly none.

    Args:
        design: The design.
        dimensions: What is drawn in the block.
        samples: `tune.num_samples` where the file gives it.
    """
    at = "tune.design"
    if not dimensions:
        return [
            (at, f"{at} has nothing to place: no setting is a range or a choice. Leave it out.")
        ]
    if design.name == "sobol":
        return _problems_of_sobol(design, dimensions, samples)
    found = []
    if samples is not None:
        found.append(
            ("tune.num_samples", f"tune.num_samples has no effect with {at} {design.name}, "
             f"whose size is that of its levels, got {samples}. Leave it out.")
        )  # fmt: skip
    if design.name == "grid":
        size = grid_size(dimensions, design.levels)
        if size > MOST_POINTS:
            found.append(
                (at, f"{at} grid must have at most {MOST_POINTS} points, got {size}: "
                 f"{len(dimensions)} settings of {design.levels} levels. Use sobol, or fewer.")
            )  # fmt: skip
        return found
    return found + _problems_of_centre(design, dimensions)


def grid_size(dimensions: Sequence[Dimension], count: int) -> int:
    """Return the points of a grid, without making them; at most, where settings are conditional."""
    return math.prod(len(levels(each, count)) for each in dimensions if each.condition is None)


def _grid(dimensions: Sequence[Dimension], count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{}]
    for dimension in dimensions:  # a choice stands before what hangs on it
        grown: list[dict[str, Any]] = []
        for params in found:
            if not holds(dimension, params):
                grown.append(params)
                continue
            grown += [{**params, dimension.name: value} for value in levels(dimension, count)]
        found = grown
    return found


def _one_at_a_time(dimensions: Sequence[Dimension], design: Design) -> list[dict[str, Any]]:
    centre = {each.name: _at_centre(each, design) for each in dimensions}
    moved = [
        {**centre, each.name: value}
        for each in dimensions
        for value in levels(each, design.levels)
        if value != centre[each.name]
    ]
    return [centre, *moved]


def _at_centre(dimension: Dimension, design: Design) -> Any:
    value = design.centre[dimension.path]
    if dimension.kind == "choice":
        return dimension.texts[list(dimension.args).index(value)]
    return int(value) if dimension.kind == "randint" else float(value)


def _problems_of_sobol(
    design: Design, dimensions: Sequence[Dimension], samples: int | None
) -> list[tuple[str, str]]:
    at = "tune.design"
    choices = [each.path for each in dimensions if each.kind == "choice"]
    if choices:
        return [
            (at, f"{at} sobol needs ranges, and {choices[0]} is a choice, which has no distances. "
             "Write it as a grid, whose every value gets the same points, or use the design grid.")
        ]  # fmt: skip
    key = "tune.num_samples"
    if samples is None:
        return [(key, f"{key} must be given with {at} sobol: how many points, a power of 2.")]
    if samples < 2 or samples & (samples - 1) or samples.bit_length() > _MOST_POWER:
        lower = 2 ** (max(samples, 2).bit_length() - 1)
        near = f" {lower} or {2 * lower} would do." if 2 <= samples < 2**_MOST_POWER else ""
        return [
            (key, f"{key} must be a power of 2 from 2 to {2 ** (_MOST_POWER - 1)} with {at} sobol, "
             f"or its points do not fill the ranges evenly, got {samples}.{near}")
        ]  # fmt: skip
    total = samples * (len(dimensions) + 2) if design.indices else samples
    if total > MOST_POINTS:
        return [(key, f"{key} makes {total} points with {at}.indices; at most {MOST_POINTS}.")]
    return []


def _problems_of_centre(design: Design, dimensions: Sequence[Dimension]) -> list[tuple[str, str]]:
    at = "tune.design.centre"
    found = []
    conditional = [each.path for each in dimensions if each.condition is not None]
    if conditional:
        return [
            ("tune.design", f"tune.design one_at_a_time needs one centre, and {conditional[0]} is "
             "there for some choices alone. Use the design grid.")
        ]  # fmt: skip
    paths = [each.path for each in dimensions]
    missing = [path for path in paths if path not in design.centre]
    if missing:
        found.append(
            (at, f"{at} must say where all other settings stay while one moves; it lacks "
             f"{', '.join(missing)}.")
        )  # fmt: skip
    for path in design.centre:
        if path not in paths:
            found.append((at, f"{at} has {path}, which is no range or choice here."))
    for each in dimensions:
        if each.path in missing:
            continue
        value = design.centre[each.path]
        if each.kind == "choice":
            if value not in each.args:
                found.append((at, f"{at}.{each.path} must be one of the choice, got {value!r}."))
            continue
        low, high = each.args
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = each.kind != "randint" or isinstance(value, int)
        if not number or not whole or not low <= value <= high - (each.kind == "randint"):
            kind = "a whole number" if each.kind == "randint" else "a number"
            end = high - 1 if each.kind == "randint" else high
            found.append((at, f"{at}.{each.path} must be {kind} in [{low}, {end}], got {value!r}."))
    return found
