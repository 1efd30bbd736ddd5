"""Checks of the settings of an experiment file, each a value or a sweep word."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from orchestrator.experiment import SWEEP_WORDS, sweep_word
from orchestrator.problems import Problems
from orchestrator.sweep_words import (
    candidates,
    check_distinct,
    check_list,
    check_word,
    checked,
    plain,
)
from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, UnknownPluginError

REQUIRED: Any = dataclasses.MISSING
_MOST_WRONG = 20  # alternatives of a list that are all named
_COMBINATIONS = 1000  # extremes of settings that are tried together; more add only time


@dataclasses.dataclass(frozen=True)
class Spec:
    """Type and default of one setting, and whether it came later: see `plugins.settings_of`."""

    hint: Any
    default: Any
    later: bool = False


def specs_of(record: type[Any]) -> dict[str, Spec]:
    """Return the settings of a dataclass or a pydantic record, in order."""
    hints = typing.get_type_hints(record)
    if issubclass(record, BaseModel):
        return {
            name: Spec(hints[name], REQUIRED if info.is_required() else info.default)
            for name, info in record.model_fields.items()
        }
    specs = {}
    for field in dataclasses.fields(record):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        later = bool(field.metadata.get("later"))
        specs[field.name] = Spec(hints[field.name], default, later)
    return specs


def check_fields(
    specs: Mapping[str, Spec],
    given: Mapping[Any, Any],
    where: str,
    owner: str,
    problems: Problems,
    *,
    words: Sequence[str] = (),
) -> dict[str, Any]:
    """Return every setting of `specs`: as given and checked, or its default.

    Args:
        specs: The settings that there are.
        given: What the file says.
        where: Key of the file, for messages.
        owner: Who has these settings, for messages.
        problems: Takes what is wrong; a wrong value is replaced by the default.
        words: Sweep words that a value may be.
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        at = f"{where}.{key}"
        if key not in specs:
            problems.add(at, f"{where}.{plugins.not_a_setting(key, specs, owner)}")
            continue
        slot = specs[key].hint
        if value is None and _left_out(key, specs[key]):
            continue
        if isinstance(slot, plugins.Slot):
            part = _check_part(slot, value, at, problems, words)
            if part is not None:
                values[key] = part
            continue
        try:
            whole = plugins.takes_mapping(specs[key].hint) and sweep_word(value) is None
            if words and isinstance(value, Mapping) and not whole:
                values[key] = check_word(value, specs[key].hint, at, words)
            else:
                values[key] = plain(checked(value, specs[key].hint, at))
        except PluginSettingsError as error:
            problems.add(at, str(error))
    for key, spec in specs.items():
        if key in values:
            continue
        if spec.default is REQUIRED and key not in given:
            problems.add(where, f"{where}.{key} must be given: {owner} has no default for it.")
        elif spec.default is not REQUIRED and not _left_out(key, spec):
            values[key] = plain(spec.default)
    return {
        key: values[key]
        for key, spec in specs.items()
        if key in values and not (spec.later and values[key] == plain(spec.default))
    }


def _left_out(key: str, spec: Spec) -> bool:
    """Return whether a setting is not written where it is not given: see `settings_of`."""
    return spec.default is None and plugins.is_of_every_method(key)


def _check_part(
    slot: plugins.Slot, node: Any, where: str, problems: Problems, words: Sequence[str]
) -> dict[str, Any] | None:
    """Return a plug-in that fills a slot, with its own settings; a grid of plug-ins may be it."""
    choosing = ["grid"] if "grid" in words else []
    found = check_plugin(slot.kind, node, where, problems, words=words, choosing=choosing, own=True)
    if found is None:
        return None
    for item in found.get("grid", [found]):
        try:
            plugins.check_filling(slot, item["name"], where)
        except PluginSettingsError as error:
            problems.add(where, str(error))
            return None
    return found


def check_construction(
    make: Callable[..., Any],
    tree: Mapping[str, Any],
    specs: Mapping[str, Spec],
    where: str,
    problems: Problems,
) -> None:
    """Report what the settings class itself refuses, in any combination of swept values.

    Args:
        make: The settings dataclass.
        tree: All its settings, values or sweep words.
        specs: Their types and defaults.
        where: Key of the file, for messages.
        problems: Takes what is wrong.
    """
    # Parts from other plug-ins have been checked by themselves.
    tree = {k: v for k, v in tree.items() if not isinstance(specs[k].hint, plugins.Slot)}
    options = [candidates(value) for value in tree.values()]
    before = len(problems.found)
    for combination in itertools.islice(itertools.product(*options), _COMBINATIONS):
        values = dict(zip(tree, combination, strict=True))
        # After a refusal the named setting gets its default, so that the next one is found too.
        while (message := _refusal(make, values, specs)) is not None:
            key = message.split()[0]
            problems.add(f"{where}.{key}", f"{where}.{message}")
            if key not in values or values[key] == plain(specs[key].default):
                break
            values[key] = plain(specs[key].default)
        if len(problems.found) > before:
            return


def check_plugin(
    kind: str,
    node: Any,
    where: str,
    problems: Problems,
    *,
    words: Sequence[str] = (),
    choosing: Sequence[str] = ("grid", "choice"),
    own: bool = False,
) -> dict[str, Any] | None:
    """Return a plug-in with all its settings, {"name": ..., ...}, or a sweep word over such.

    Args:
        kind: One of `plugins.PACKAGES`.
        node: What the file says: a name, a mapping with a name, or a sweep word over these.
        where: Key of the file, for messages.
        problems: Takes what is wrong.
        words: Sweep words that may be used here.
        choosing: Those of them that may choose between plug-ins.
        own: Whether to take only its own settings, without those of every method.

    Returns:
        None where something is wrong.
    """
    if isinstance(node, str):
        node = {"name": node}
    if not isinstance(node, Mapping):
        choosing = [word for word in choosing if word in words]
        expected = f"a name or a mapping with a name{_or_words(choosing)}"
        problems.add(where, f"{where} must be {expected}, got {node!r}.")
        return None
    used = [word for word in node if word in SWEEP_WORDS]
    if used:
        return _check_alternatives(kind, node, used[0], where, problems, words, choosing, own=own)
    if "name" not in node:
        problems.add(where, f"{where}.name is missing, got keys {[*node]!r}.")
        return None
    name = node["name"]
    if not isinstance(name, str):
        hint = f" Write {where}: {{grid: [...]}}." if sweep_word(name) else ""
        problems.add(f"{where}.name", f"{where}.name must be text, got {name!r}.{hint}")
        return None
    try:
        info = plugins.describe(kind, name)
        config = info.own if own else info.config
    except UnknownPluginError as error:
        problems.add(f"{where}.name", f"{where}: {error}")
        return None
    before = len(problems.found)
    specs = specs_of(config)
    given = {key: value for key, value in node.items() if key != "name"}
    fields = check_fields(specs, given, where, name, problems, words=words)
    if len(problems.found) == before:
        check_construction(config, fields, specs, where, problems)
    return {"name": name, **fields} if len(problems.found) == before else None


def _check_alternatives(
    kind: str,
    node: Mapping[Any, Any],
    word: str,
    where: str,
    problems: Problems,
    words: Sequence[str],
    choosing: Sequence[str],
    *,
    own: bool,
) -> dict[str, Any] | None:
    at = f"{where}.{word}"
    if len(node) > 1:
        problems.add(at, f"{where} must be either {word} alone or settings, got {[*node]!r}.")
        return None
    allowed = [each for each in choosing if each in words]
    if word not in allowed:
        must = f"use {' or '.join(allowed)}" if allowed else "be one fixed plug-in"
        problems.add(where, f"{where} must {must} here, got {word}.")
        return None
    try:
        check_list(node[word], at)
    except PluginSettingsError as error:
        problems.add(at, str(error))
        return None
    # A grid factor is an outer block; inside something that is drawn it would have no meaning.
    inner = words if word == "grid" else [w for w in words if w != "grid"]
    found: list[dict[str, Any]] = []
    wrong = 0
    for index, item in enumerate(node[word]):
        checked_item = check_plugin(
            kind,
            item,
            f"{at}[{index}]",
            problems,
            words=inner,
            # A part's alternatives are one flat list.
            choosing=() if own else choosing,
            own=own,
        )
        if checked_item is not None:
            found.append(checked_item)
        else:
            wrong += 1
        if wrong == _MOST_WRONG:
            break
    if wrong:
        return None
    if word == "choice" and any(sweep_word(item) for item in found):
        problems.add(at, f"{at} cannot hold another choice; write one list.")
        return None
    try:
        check_distinct(found, at)
    except PluginSettingsError as error:
        problems.add(at, str(error))
    return {word: found}


def _refusal(
    make: Callable[..., Any], values: Mapping[str, Any], specs: Mapping[str, Spec]
) -> str | None:
    """Return why the settings class does not take these values, or None."""
    typed = {key: plugins.coerce(value, specs[key].hint, key) for key, value in values.items()}
    try:
        make(**typed)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _or_words(words: Sequence[str]) -> str:
    both = (word for word in words if word in ("grid", "choice"))
    return "".join(f", or {word} over these" for word in both)
