"""`retrain.protocol`: published settings fill in what an experiment file does not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.experiment import sweep_word
from orchestrator.problems import Problems
from spaces.core.errors import UnknownPluginError
from trainables.protocol import fixed_values_of, values_of

_SIZES = ("channels", "cells")


def with_protocol(
    given: Mapping[Any, Any],
    space: Mapping[str, Any],
    dataset: Mapping[str, Any],
    problems: Problems,
) -> dict[Any, Any]:
    """Return the section `retrain` with what its protocol sets, where it does not say otherwise.

    Args:
        given: The section.
        space: The checked section `space`, which may be a sweep word over spaces.
        dataset: The checked section `dataset`.
        problems: Takes a protocol that there is not, or that cannot be followed here.
    """
    name = given.get("protocol")
    if not isinstance(name, str):
        return dict(given)  # none, or something whose type is refused with that of the others
    word = sweep_word(space)
    spaces = sorted({item["name"] for item in space[word]} if word else {space["name"]})
    try:
        values = fixed_values_of(name)
        if not all(key in given for key in _SIZES):
            found = [values_of(name, space=each, dataset=dataset["name"]) for each in spaces]
            values = found[0]
            if any(other != values for other in found):
                raise ValueError(
                    f"{name} has sizes that differ between the spaces {', '.join(spaces)}: give "
                    "retrain.channels and retrain.cells, or each space a study of its own."
                )
    except (UnknownPluginError, ValueError) as error:
        problems.add("retrain.protocol", f"retrain.protocol: {error}")
        return dict(given)
    consistent = values.get("consistent", False)
    if given.get("consistent", consistent) != consistent:
        problems.add(
            "retrain.consistent",
            f"retrain.consistent cannot be {given['consistent']} with the protocol {name}, which "
            "says how to train by itself. Leave out one of them.",
        )
        return dict(given)
    return {**values, **given}


def set_by_protocol(
    given: Mapping[Any, Any], written: Mapping[Any, Any], problems: Problems, start: int
) -> None:
    """Add to problems which of the settings that they name a protocol has set, and not the file.

    Args:
        given: The section `retrain`, filled in.
        written: What the file says of it.
        problems: Those from `start` on are looked at.
        start: Index of the first one.
    """
    filled = [key for key in given if key not in written]
    for index, (key, line) in enumerate(problems.found[start:], start):
        named = [name for name in filled if re.search(rf"\b{re.escape(str(name))}\b", line)]
        if named:
            listed = " and ".join(f"retrain.{name}" for name in named)
            extra = f" It is the protocol {given['protocol']} that sets {listed}: set it too."
            problems.found[index] = (key, line + extra)
