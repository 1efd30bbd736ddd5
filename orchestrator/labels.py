"""Short labels that name things by what differs between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.sweep_words import canonical, plain
from spaces.core import plugins
from trainables.settings import RetrainSettings, SearchSettings


def whole_labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Label configurations: "darts", "darts alpha_gradient=unrolled", "sdarts_rs weight_lr=0.1".

    Args:
        settings: Each with any of method, space, dataset, selection and search; or, where
            retrainings are swept, with genotype and retrain.

    Returns:
        One label each. Its method (its genotype's name) always; of the rest, what is not the same
        in all.
    """
    if settings and "genotype" in settings[0]:
        return _training_labels(settings)
    columns = [plugin_labels("methods", [item["method"] for item in settings])]
    for part, kind in (("space", "spaces"), ("dataset", "datasets"), ("selection", "selections")):
        parts = [item[part] for item in settings]
        if len({plug_in.get("name") for plug_in in parts}) > 1:
            columns.append(
                [f"{part}={text}" if text else "" for text in plugin_labels(kind, parts)]
            )
        else:
            columns.append(_differences(parts, _defaults(kind, parts)))
    defaults = {field.name: plain(field.default) for field in dataclasses.fields(SearchSettings)}
    columns.append(_differences([item["search"] for item in settings], defaults))
    return [" ".join(text for text in row if text) for row in zip(*columns, strict=True)]


def _training_labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Label retrainings: "DARTS_V2 lr=0.1"."""
    defaults = {field.name: plain(field.default) for field in dataclasses.fields(RetrainSettings)}
    differing = _differences([item["retrain"] for item in settings], defaults)
    names = [str(item["genotype"]["name"]) for item in settings]
    return [f"{name} {text}".rstrip() for name, text in zip(names, differing, strict=True)]


def plugin_labels(kind: str, parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Label settings of plug-ins: the name, and what differs from others of the same name.

    A word that is the default goes without saying; a number is always said.

    Args:
        kind: One of `plugins.PACKAGES`.
        parts: Settings, each {"name": ..., ...}; {} where the plug-in is drawn.
    """
    labels = [str(part.get("name", "")) for part in parts]
    for name in {label for label in labels if label}:
        rows = [index for index, label in enumerate(labels) if label == name]
        texts = _differences(same := [parts[index] for index in rows], _defaults(kind, same))
        for index, text in zip(rows, texts, strict=True):
            labels[index] = f"{name} {text}".rstrip()
    return labels


def _defaults(kind: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the defaults of the plug-in that all parts are of; {} where it is drawn."""
    name = parts[0].get("name")
    if name is None:
        return {}
    fields = dataclasses.fields(plugins.describe(kind, name).config)
    defaults = {field.name: plain(field.default) for field in fields}
    for key, slot in plugins.SLOTS.items():
        for filling in sorted({part[key]["name"] for part in parts if _is_part(part.get(key))}):
            own = dataclasses.fields(plugins.describe(slot.kind, filling).own)
            defaults |= {f"{key}.{filling}.{f.name}": plain(f.default) for f in own}
    return defaults


def _differences(parts: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> list[str]:
    """Return "key=value ..." of the keys in which the parts differ.

    A part from another plug-in is always named; its settings count among those alone that have the
    same one.
    """
    parts = [_flat(part) for part in parts]
    keys = list(dict.fromkeys(key for part in parts for key in part if key != "name"))
    words: list[list[str]] = [[] for _ in parts]
    for key in keys:
        texts = _texts([part.get(key) for part in parts])
        having = texts
        if "." in key:
            slot, name, *_ = key.split(".")
            # One that has the plug-in and not the setting has it at its default.
            both = zip(texts, parts, strict=True)
            having = [text for text, part in both if part.get(slot) == name]
        if len(set(having)) == 1 and key not in plugins.SLOTS:
            continue
        for index, part in enumerate(parts):
            if key in part and (_is_number(part[key]) or part[key] != defaults.get(key, parts)):
                words[index].append(f"{_shown(key)}={texts[index]}")
    return [" ".join(row) for row in words]


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"perturb": NAME, "perturb.NAME.radius": 1} for {"perturb": {"name": NAME, ...}}."""
    flat: dict[str, Any] = {}
    for key, value in part.items():
        if _is_part(value):
            name = flat[key] = value["name"]
            inside = {inner: item for inner, item in value.items() if inner != "name"}
            flat |= {f"{key}.{name}.{inner}": item for inner, item in inside.items()}
        else:
            flat[key] = value
    return flat


def _shown(key: str) -> str:
    """Return "perturb.radius" for "perturb.NAME.radius"; the name is said by itself."""
    slot, *rest = key.split(".")
    return f"{slot}.{rest[-1]}" if rest else slot


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" in value


def _texts(values: Sequence[Any]) -> list[str]:
    """Return values as text, numbers with as few digits as keep different ones different."""
    different = len({canonical(value) for value in values})
    for digits in (4, 8, 17):
        texts = [f"{value:.{digits}g}" if _is_number(value) else str(value) for value in values]
        if len(set(texts)) == different:
            break
    return texts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
