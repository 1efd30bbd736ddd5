"""The section `limits` of an experiment file: the cost over which a genotype is not retrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.experiment import Limits
from orchestrator.problems import Problems
from orchestrator.sections import check_record
from spaces.core.errors import near_miss

PRESETS: Mapping[str, Limits] = {"mobile": Limits(max_macs=600e6)}
"""Limits by name. "mobile" is the mobile setting for ImageNet of Liu et al., DARTS, ICLR 2019: at
most 600 M multiply-adds, for images of 224 x 224 pixels."""


def check_limits(value: Any, problems: Problems) -> Limits | None:
    """Return the limits, or None where there are none or they are wrong.

    Args:
        value: What the file says: a preset's name, a mapping, "none" or nothing.
        problems: Takes what is wrong.
    """
    if value is None or value == "none":
        return None
    if isinstance(value, str):
        if value in PRESETS:
            return PRESETS[value]
        hint = near_miss(value, PRESETS) or f" There is {', '.join(PRESETS)}."
        problems.add("limits", f"limits has no preset {value!r}.{hint}")
        return None
    if not isinstance(value, Mapping):
        problems.add(
            "limits",
            "limits must be a mapping of max_params and max_macs, or the preset "
            f"{' or '.join(PRESETS)}, got {value!r}.",
        )
        return None
    before = len(problems.found)
    limits = check_record(Limits, value, "limits", problems)
    if len(problems.found) > before:
        return None
    given = {key: limit for key, limit in limits.model_dump().items() if limit is not None}
    if not given:
        problems.add(
            "limits", "limits has no effect: give max_params, max_macs or both, or leave it out."
        )
        return None
    for key, limit in given.items():
        if limit <= 0:
            problems.add(f"limits.{key}", f"limits.{key} must be > 0, got {limit!r}.")
    return limits if len(problems.found) == before else None
