"""An experiment with `trainable: retrain`: the sections `genotype` and `retrain`, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.dataset_paths import Folders
from orchestrator.experiment import (
    OF_SEARCHES,
    SWEEP_WORDS,
    Retrain,
    Training,
    Tune,
    has_sweep,
    sweep_word,
)
from orchestrator.genotypes import find_genotype, is_file
from orchestrator.problems import Problems
from orchestrator.protocols import set_by_protocol
from orchestrator.sections import check_mapping
from orchestrator.settings_tree import check_construction, check_fields, specs_of
from orchestrator.sweep_words import check_list
from spaces.core import named
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.genotype import Genotype
from spaces.core.text import from_mapping
from trainables.settings import RetrainSettings

VAL_SHARE = 0.1
"""Share of the training images that a sweep compares by where the file says nothing."""

_MOST_WRONG = 20  # genotypes of a list that are all named
_OF_CHOOSING = {
    "top_k": "the genotypes are those of `genotype`",
    "by": "nothing is chosen among searches; tune.metric compares the retrainings",
    "per": "the genotypes are those of `genotype`",
    "seeds": "they are the study's own: write the top-level key seeds",
    "budget_hours": "max_hours at the top level limits a study",
    "consistent": "there is no search whose settings it could take",
}


def refuse_searching(given: Mapping[str, Any], problems: Problems) -> None:
    """Report the sections that only a study of searches has."""
    for key in OF_SEARCHES:
        if given.get(key) not in (None, "none"):
            problems.add(
                key,
                f"{key} has no meaning with trainable: retrain, which searches nothing. Leave it "
                "out, or leave out trainable.",
            )
    if has_sweep(given.get("space")):
        problems.add(
            "space",
            "space must be one fixed space with trainable: retrain: its genotypes are of one "
            f"space, got {given['space']!r}.",
        )


def check_genotypes(
    value: Any, space: Mapping[str, Any] | None, problems: Problems, folders: Folders | None
) -> dict[str, Any] | None:
    """Return the genotype {"name": ..., **its JSON form}, or {"grid": [...]} of such.

    Args:
        value: What the file says.
        space: The checked space; None where that is wrong.
        problems: Takes what is wrong.
        folders: Where a relative path of a genotype's file is looked for.
    """
    word = sweep_word(value)
    if word is None:
        return _genotype(value, "genotype", space, problems, folders)
    at = f"genotype.{word}"
    if word != "grid":
        problems.add(at, f"genotype must be one genotype or a grid of them, got a {word}.")
        return None
    try:
        check_list(value[word], at)
    except PluginSettingsError as error:
        problems.add(at, str(error))
        return None
    genotypes: list[dict[str, Any]] = []
    for index, item in enumerate(value[word]):
        found = _genotype(item, f"{at}[{index}]", space, problems, folders)
        if found is not None:
            genotypes.append(found)
        elif index - len(genotypes) == _MOST_WRONG:
            break  # for each of thousands the names that there are would be looked through
    if len(genotypes) <= index:
        return None
    return {word: _distinct(genotypes, at, problems)}


def _genotype(
    value: Any,
    at: str,
    space: Mapping[str, Any] | None,
    problems: Problems,
    folders: Folders | None,
) -> dict[str, Any] | None:
    name = (space or {}).get("name")  # None also where it is swept, which is refused
    try:
        found, title = _find(value, name, folders)
    except SpaceError as error:
        problems.add(at, f"{at}: {error}")
        return None
    if name is not None and found.space != name:
        problems.add(
            at,
            f"{at} must be a genotype of space '{name}', got {title}, which is of '{found.space}': "
            f"write space: {found.space}.",
        )
        return None
    return {"name": title, **found.to_json()}


def _find(value: Any, space: str | None, folders: Folders | None) -> tuple[Genotype, str]:
    """Return a genotype and what tables call it: its name, its file's, or its hash."""
    if isinstance(value, Mapping):
        form = {key: item for key, item in value.items() if key != "name"}
        found = from_mapping(form, None if "cells" in form else space)
        return found, str(value.get("name") or found.hash)
    if not isinstance(value, str):
        raise SpaceError(
            "It must be a name of `nas list genotypes`, the path of a file, an official text or "
            f"the mapping of a genotype, got {value!r}."
        )
    tried = [Path(value)] if folders is None else folders.candidates(value)
    for path in tried:
        if is_file(path):
            return find_genotype(str(path), space), path.stem
    found = find_genotype(value, space)
    return found, value if value in named.names() else found.hash


def _distinct(
    genotypes: Sequence[dict[str, Any]], at: str, problems: Problems
) -> list[dict[str, Any]]:
    """Report a genotype that stands there twice; give equal names of different ones their hash."""
    hashes = [Genotype.from_json(item).hash for item in genotypes]
    for index, digest in enumerate(hashes):
        if digest in hashes[:index]:
            first, second = genotypes[hashes.index(digest)]["name"], genotypes[index]["name"]
            problems.add(at, f"{at} must be distinct: {first} and {second} are the same genotype.")
    names = [item["name"] for item in genotypes]
    return [
        item if names.count(item["name"]) == 1 else {**item, "name": f"{item['name']}-{digest}"}
        for item, digest in zip(genotypes, hashes, strict=True)
    ]


def check_training(value: Any, problems: Problems, written: Any) -> Training:
    """Return the section `retrain`, whose values may be sweep words.

    Args:
        value: What the file says, filled in by a protocol.
        problems: Takes what is wrong; defaults stand in its place.
        written: What the file says by itself.
    """
    specs = specs_of(RetrainSettings)
    given = check_mapping(None if value == "none" else value, "retrain", problems) or {}
    before = len(problems.found)
    if any(key in SWEEP_WORDS for key in given):
        problems.add("retrain", f"retrain must be settings, got {[*given]!r}. Sweep each setting.")
        given = {}
    for key in [key for key in given if key in specs_of(Retrain) and key != "protocol"]:
        reason = _OF_CHOOSING.get(key, "it belongs to the retraining of what a search found")
        message = f"retrain.{key} has no meaning with trainable: retrain: {reason}."
        problems.add(f"retrain.{key}", message)
    rest = {key: item for key, item in given.items() if key not in specs_of(Retrain)}
    settings = check_fields(specs, rest, "retrain", "retrain", problems, words=SWEEP_WORDS)
    if len(problems.found) == before:
        check_construction(RetrainSettings, settings, specs, "retrain", problems)
    if has_sweep(settings["val_share"]):
        problems.add(
            "retrain.val_share",
            "retrain.val_share cannot be swept: configurations are compared on the same held-out "
            "images.",
        )
        settings["val_share"] = VAL_SHARE
    if len(problems.found) > before and isinstance(written, Mapping):
        set_by_protocol(given, written, problems, before)
    protocol = given.get("protocol")
    return Training(settings=settings, protocol=protocol if isinstance(protocol, str) else None)


def hold_out(
    training: Training, given: Mapping[str, Any], tune: Tune, problems: Problems
) -> Training:
    """Return the section with a held-out share wherever something is decided by its accuracy.

    The test split never decides: a study that sweeps a setting, stops retrainings early or lets
    Optuna choose has to hold images out.

    Args:
        training: The checked section.
        given: What the file says at its top level.
        tune: The checked section `tune`.
        problems: Takes a share of 0 that the file gives, and a metric without images.
    """
    settings = training.settings
    word = next((key for key, value in settings.items() if has_sweep(value)), None)
    compared = tune.searcher.name == "optuna" or tune.scheduler is not None or word is not None
    section = given.get("retrain")
    said = isinstance(section, Mapping) and "val_share" in section
    if compared and settings["val_share"] == 0:
        if not said:
            held_out = {**settings, "val_share": VAL_SHARE}
            return training.model_copy(update={"settings": held_out})
        why = f"retrain.{word} is swept" if word else "tune compares retrainings"
        problems.add(
            "retrain.val_share",
            f"retrain.val_share must be > 0, got 0: {why}, and they are compared on held-out "
            f"training images, never on the test split. Left out it is {VAL_SHARE}.",
        )
    section = given.get("tune")
    for key in ("metric", "mode"):
        if settings["val_share"] == 0 and isinstance(section, Mapping) and key in section:
            problems.add(
                f"tune.{key}",
                f"tune.{key} has no effect: retrain.val_share is 0, so that there are no "
                "validation images. Give a share, or leave it out.",
            )
    return training
