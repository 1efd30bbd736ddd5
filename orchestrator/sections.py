"""Checks that the sections of an experiment file share: mappings, records, lowest values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from orchestrator.experiment import Record
from orchestrator.problems import Problems
from orchestrator.settings_tree import REQUIRED, check_fields, specs_of

_R = TypeVar("_R", bound=Record)


def check_mapping(value: Any, where: str, problems: Problems) -> Mapping[Any, Any] | None:
    """Return a section as a mapping; one that is left out or empty is {}; None if it is wrong."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    problems.add(where, f"{where} must be a mapping of settings, got {value!r}.")
    return None


def check_record(
    record: type[_R],
    given: Mapping[Any, Any],
    where: str,
    problems: Problems,
    parts: Mapping[str, Any] | None = None,
) -> _R:
    """Return a record from what is given and from `parts`, which have been checked already."""
    every = specs_of(record)
    values = check_fields(every, given, where, where, problems)
    defaults = {key: spec.default for key, spec in every.items() if spec.default is not REQUIRED}
    return record(**(defaults | values | dict(parts or {})))


def check_lowest(values: Mapping[str, Any], where: str, problems: Problems, **lowest: int) -> None:
    """Report values below the lowest that is allowed."""
    for key, low in lowest.items():
        if values.get(key) is not None and values[key] < low:
            problems.add(f"{where}.{key}", f"{where}.{key} must be >= {low}, got {values[key]!r}.")
