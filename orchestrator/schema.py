"""JSON schema of experiment files, for completion and checks in editors.

It is made from the records and from the plug-ins' sources, docstrings included, so nothing is said
twice. The schema is more lenient than `orchestrator.validation`, which has the last word.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.experiment import (
    Asha,
    Design,
    Experiment,
    Limits,
    Median,
    MlflowSettings,
    Pbt,
    PerTrial,
    RaySettings,
    Retrain,
    Searcher,
    Simulation,
    Tune,
)
from orchestrator.limits_section import PRESETS
from orchestrator.settings_tree import REQUIRED, Spec, specs_of
from orchestrator.sweep_words import plain
from orchestrator.validation import NAME
from spaces.core import plugins
from trainables.settings import DIAGNOSTICS, Diagnostics, RetrainSettings, SearchSettings

Schema = dict[str, Any]
_TYPES: Mapping[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}
_KEEP = "^(all|none|best_[1-9][0-9]*)$"
_SEEDS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 1,
    "uniqueItems": True,
}

_GENOTYPE: Schema = {"type": ["string", "object"]}


def json_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of experiment files, with the plug-ins there are."""
    about = _attributes(Experiment)
    properties: dict[str, Schema] = {
        "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
        "question": {"type": ["string", "null"], "maxLength": 1000, "default": None},
        "trainable": {"enum": ["search", "retrain"], "default": "search"},
        "genotype": {"anyOf": [_GENOTYPE, _word("grid", _GENOTYPE), {"type": "null"}]},
        "space": _plugin("spaces", swept=True),
        "dataset": _plugin("datasets"),
        "seeds": {**_SEEDS, "default": [0]},
        "method": _plugin("methods", swept=True),
        "selection": {**_plugin("selections"), "default": "magnitude"},
        "search": _record(SearchSettings, swept=True),
        "diagnostics": _diagnostics(),
        "oracle": {**_or_none(_plugin("oracles")), "default": None},
        "simulation": {**_or_none(_record(Simulation)), "default": None},
        "retrain": _or_none(_retrain()),
        "limits": {**_or_none(_limits()), "default": None},
        "tune": _tune(),
        "ray": _record(RaySettings),
        "mlflow": _record(MlflowSettings),
        "keep": {"type": "string", "pattern": _KEEP, "default": "all"},
        "max_hours": {"type": ["number", "null"], "exclusiveMinimum": 0, "default": None},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "NAS Orchestrator experiment",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "space", "dataset"],
        "anyOf": [{"required": ["method"]}, {"required": ["trainable", "genotype"]}],
        "properties": {key: {"description": about[key], **properties[key]} for key in properties},
        "$defs": {
            "spaces": _definition("spaces", swept=True),
            "methods": _definition("methods", swept=True),
            "datasets": _definition("datasets"),
            "selections": _definition("selections"),
            "oracles": _definition("oracles"),
            **{name: _part(slot) for name, slot in plugins.SLOTS.items()},
            "float": _words({"type": "number"}, "uniform", "loguniform"),
            "int": _words({"type": "integer"}, "randint"),
        },
    }


def write_schema(path: str | Path) -> None:
    """Write the schema as a JSON file."""
    Path(path).write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")


def _tune() -> Schema:
    schema = _record(Tune)
    searchers = list(typing.get_args(specs_of(Searcher)["name"].hint))
    designs = list(typing.get_args(specs_of(Design)["name"].hint))
    schedulers = [_named(Asha, "asha"), _named(Median, "median"), _named(Pbt, "pbt")]
    about = _attributes(Tune)
    schema["properties"] |= {
        "searcher": {
            "description": about["searcher"],
            "anyOf": [{"enum": searchers}, {**_record(Searcher), "required": ["name"]}],
        },
        "design": {
            "description": about["design"],
            "anyOf": [
                {"enum": ["none", None, *designs]},
                {**_record(Design), "required": ["name"]},
            ],
            "default": "none",
        },
        "scheduler": {
            "description": about["scheduler"],
            "anyOf": [{"enum": ["none", None]}, *schedulers],
            "default": "none",
        },
        "per_trial": {"description": about["per_trial"], **_record(PerTrial)},
        "seeds_per_trial": {
            "description": about["seeds_per_trial"],
            "anyOf": [{"enum": ["auto", "all"]}, {"type": "integer", "minimum": 1}],
            "default": "auto",
        },
    }
    return schema


def _limits() -> Schema:
    return {"anyOf": [{"enum": ["none", *PRESETS]}, _record(Limits)]}


def _diagnostics() -> Schema:
    about = _attributes(Diagnostics)
    properties = {
        name: {"description": about[name], **_or_none(_record(kind))}
        for name, kind in DIAGNOSTICS.items()
    }
    return _or_none({"type": "object", "additionalProperties": False, "properties": properties})


def _retrain() -> Schema:
    schema = _record(RetrainSettings, swept=True)  # with `trainable: retrain`
    plan = _record(Retrain)["properties"]
    plain_keys = ("top_k", "by", "per", "consistent", "budget_hours")
    schema["properties"] |= {key: plan[key] for key in plain_keys}
    schema["properties"]["seeds"] = {
        "description": _attributes(Retrain)["seeds"],
        **_SEEDS,
        "default": [0],
    }
    schema["properties"]["keep"] = {**plan["keep"], "pattern": _KEEP}
    schema["properties"]["protocol"] = {
        "description": _attributes(Retrain)["protocol"],
        **_or_none({"enum": list(plugins.available("protocols"))}),
    }
    return schema


def _plugin(kind: str, *, swept: bool = False) -> Schema:
    one = {"$ref": f"#/$defs/{kind}"}
    words = ("grid", "choice") if swept else ()
    return {"anyOf": [one, *(_word(word, one) for word in words)]} if words else one


def _definition(kind: str, *, swept: bool = False) -> Schema:
    """Return the schema of one plug-in of a kind: its name, or its name and settings."""
    names = list(plugins.available(kind))
    described: list[Schema] = []
    for info in (plugins.describe(kind, name) for name in names):
        settings = _named(info.config, info.name, swept=swept)
        described.append({"title": info.name, "description": info.summary, **settings})
    return {"anyOf": [{"enum": names}, *described]}


def _named(record: type[Any], name: str, *, swept: bool = False) -> Schema:
    """Return the schema of settings that begin with a name."""
    schema = _record(record, swept=swept)
    schema["properties"] = {"name": {"const": name}} | {
        key: value for key, value in schema["properties"].items() if key != "name"
    }
    schema["required"] = ["name", *[key for key in schema.get("required", []) if key != "name"]]
    return schema


def _record(record: type[Any], *, swept: bool = False) -> Schema:
    about = _attributes(record)
    properties = {}
    specs = specs_of(record)
    for key, spec in specs.items():
        described = {"description": about[key]} if key in about else {}
        properties[key] = described | _setting(spec, swept=swept)
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    required = [key for key, spec in specs.items() if spec.default is REQUIRED]
    return schema | ({"required": required} if required else {})


def _setting(spec: Spec, *, swept: bool) -> Schema:
    schema = _type(spec.hint)
    if swept and not isinstance(spec.hint, plugins.Slot):
        schema = {"anyOf": [schema, *_sweeps(spec.hint, schema)]}
    default = plain(spec.default)
    if spec.default is not REQUIRED and isinstance(default, str | int | float | list | None):
        schema["default"] = default
    return schema


def _sweeps(hint: Any, schema: Schema) -> list[Schema]:
    for number in (float, int):
        if number in (hint, *typing.get_args(hint)):
            return [{"$ref": f"#/$defs/{number.__name__}"}]
    return [_word("grid", schema), _word("choice", schema)]


def _type(hint: Any) -> Schema:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, plugins.Slot):
        (name,) = (name for name, slot in plugins.SLOTS.items() if slot == hint)
        return _or_none({"$ref": f"#/$defs/{name}"})
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0])}
    if origin in (typing.Union, types.UnionType):
        rest = [_type(argument) for argument in arguments if argument is not type(None)]
        one = rest[0] if len(rest) == 1 else {"anyOf": rest}
        return _or_none(one) if len(rest) < len(arguments) else one
    if origin is dict:
        return {"type": "object"}
    return {"type": _TYPES[hint]} if hint in _TYPES else {}


def _part(slot: plugins.Slot) -> Schema:
    """Return the schema of a plug-in that fills a slot: its name, or its name and own settings."""
    one: list[Schema] = [{"enum": list(slot.choices())}]
    for name in slot.choices():
        info = plugins.describe(slot.kind, name)
        settings = _named(info.own, name, swept=True)
        one.append({"title": name, "description": info.summary, **settings})
    return {"anyOf": [*one, _word("grid", {"anyOf": one})]}


def _or_none(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _words(value: Schema, *ranges: str) -> Schema:
    """Return the schema of the sweep words that a number may be."""
    pair = {"type": "array", "items": value, "minItems": 2, "maxItems": 2}
    words = [_word("grid", value), _word("choice", value)]
    return {"anyOf": [*words, *(_word_of(word, pair) for word in ranges)]}


def _word(word: str, item: Schema) -> Schema:
    return _word_of(word, {"type": "array", "items": item, "minItems": 1})


def _word_of(word: str, values: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [word],
        "properties": {word: values},
    }


def _attributes(record: type[Any]) -> dict[str, str]:
    """Return what the "Attributes" section of a docstring says of each setting."""
    about: dict[str, str] = {}
    for each in reversed(record.__mro__):
        text = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")[2]
        section = re.split(r"\n(?=\S)", text)[0]
        for entry in re.split(r"\n(?=    \S)", "\n" + section):
            names, colon, words = entry.partition(":")
            if colon:
                about |= {name.strip(): " ".join(words.split()) for name in names.split(",")}
    return about
