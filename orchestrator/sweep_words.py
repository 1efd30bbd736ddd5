"""Sweep words: one value of a setting, or a grid, choice or range of values, checked."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.experiment import SWEEP_WORDS, sweep_word
from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, near_miss

_MOST_VALUES = 10_000


def plain(value: Any) -> Any:
    """Return a value as JSON and YAML know it: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def canonical(node: Any) -> str:
    """Return the one JSON text of a mapping or value."""
    return json.dumps(node, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checked(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint`, refusing infinity and NaN.

    Raises:
        PluginSettingsError: It is of another type or not finite.
    """
    if sweep_word(value) is not None:
        raise PluginSettingsError(
            f"{where} cannot be swept, got {value!r}. Sweep words go in method, space, "
            "search; with trainable: retrain in genotype and retrain."
        )
    result = plugins.coerce(value, hint, where)
    if isinstance(result, float) and not math.isfinite(result):
        raise PluginSettingsError(f"{where} must be a finite number, got {result!r}.")
    return result


def candidates(node: Any) -> list[Any]:
    """Return the values that a setting can take; of a range, its two ends."""
    word = sweep_word(node)
    if word is None:
        return [node]
    values = list(node[word])
    if word == "randint":
        return [values[0], values[1] - 1]
    return values


def check_word(
    node: Mapping[Any, Any], hint: Any, at: str, words: Sequence[str]
) -> dict[str, list[Any]]:
    """Return a sweep word over values of `hint`, checked."""
    word = sweep_word(node)
    if word is None:
        keys = [str(key) for key in node]
        miss = near_miss(keys[0], SWEEP_WORDS) if keys else ""
        raise PluginSettingsError(
            f"{at} must be {type_name(hint)} or one of {', '.join(words)}, "
            f"got {dict(node)!r}.{miss}"
        )
    if word not in words:
        raise PluginSettingsError(f"{at} cannot be a {word} inside a choice; use {words[0]}.")
    values, at = node[word], f"{at}.{word}"
    if word in ("grid", "choice"):
        check_list(values, at)
        values = [plain(checked(v, hint, f"{at}[{i}]")) for i, v in enumerate(values)]
        check_distinct(values, at)
        return {word: values}
    return {word: _check_range(word, values, hint, at)}


def _check_range(word: str, values: Any, hint: Any, at: str) -> list[Any]:
    """Return [low, high] of a range, or raise PluginSettingsError."""
    number = int if word == "randint" else float
    of_list = typing.get_origin(hint) is tuple
    if of_list or number not in (hint, *typing.get_args(hint)):
        instead = "randint or choice" if hint is int else "choice"
        raise PluginSettingsError(
            f"{at} draws {'whole' if number is int else 'real'} numbers, but the setting is "
            f"{type_name(hint)}. Use {instead}."
        )
    if not isinstance(values, list) or len(values) != 2:
        raise PluginSettingsError(f"{at} must be a list [low, high], got {values!r}.")
    low, high = (checked(value, number, f"{at}[{i}]") for i, value in enumerate(values))
    if not low < high:
        swap = f" Did you mean [{high!r}, {low!r}]?" if high < low else ""
        beyond = ", which is not drawn itself" if word == "randint" else ""
        raise PluginSettingsError(
            f"{at} must have low < high{beyond}, got [{low!r}, {high!r}].{swap}"
        )
    if word == "loguniform" and low <= 0:
        raise PluginSettingsError(f"{at} must have low > 0, got [{low!r}, {high!r}].")
    return [low, high]


def type_name(hint: Any) -> str:
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return hint.__name__
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if typing.get_origin(hint) is tuple:
        return "a list"
    if typing.get_origin(hint) is dict:
        return "a mapping"
    names = ("null" if a is type(None) else type_name(a) for a in arguments)
    return " or ".join(name.removeprefix("one of ") for name in names)


def check_list(values: Any, at: str) -> None:
    """Refuse what is not a list of at least one value, by PluginSettingsError."""
    if not isinstance(values, list) or not values:
        raise PluginSettingsError(f"{at} must be a list of at least one value, got {values!r}.")
    if len(values) > _MOST_VALUES:
        raise PluginSettingsError(
            f"{at} must be a list of at most {_MOST_VALUES} values, got {len(values)}."
        )


def check_distinct(values: Sequence[Any], at: str) -> None:
    """Refuse a value that stands in a list twice, by PluginSettingsError."""
    seen: set[str] = set()
    for text in map(canonical, values):
        if text in seen:
            raise PluginSettingsError(f"{at} has {text.replace(chr(34), '')} twice.")
        seen.add(text)
