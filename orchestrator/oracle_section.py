"""The section `oracle` of an experiment file."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from orchestrator.dataset_paths import Folders, absolute_paths
from orchestrator.experiment import has_sweep, sweep_word
from orchestrator.problems import Problems
from orchestrator.settings_tree import check_plugin
from orchestrator.sweep_words import candidates
from spaces.core import plugins


def check_oracle(
    value: Any, space: Mapping[str, Any] | None, problems: Problems, folders: Folders | None
) -> dict[str, Any] | None:
    """Return the oracle with all its settings, or None where there is none or it is wrong.

    Args:
        value: What the file says.
        space: The checked space, which may be swept; None where that is wrong.
        problems: Takes what is wrong.
        folders: Where a relative path is looked for; None takes it as it is.
    """
    if value is None or value == "none":
        return None
    oracle = check_plugin("oracles", value, "oracle", problems)
    if oracle is None:
        return None
    known = plugins.describe("oracles", oracle["name"]).spaces
    for name in space_names(space) if space else ():
        if not any(fnmatchcase(name, pattern) for pattern in known):
            problems.add(
                "oracle",
                f"oracle {oracle['name']} is a table of the space {' or '.join(known)}, and this "
                f"experiment searches {name}: it has none of its genotypes. Leave the oracle out.",
            )
    return oracle if folders is None else absolute_paths(oracle, folders, problems, "oracle")


def title_of(oracle: Mapping[str, Any]) -> str:
    """Return how reports call a checked section `oracle`: name and settings, without the path."""
    chosen = [str(value) for key, value in oracle.items() if key not in ("name", "path")]
    return " ".join([str(oracle["name"]), *chosen])


def space_names(space: Mapping[str, Any]) -> list[str]:
    """Return the names of the spaces that a checked section `space` can mean, each once."""
    return list(dict.fromkeys(str(each["name"]) for each in _alternatives(space)))


def fixed_spaces(space: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the spaces that a checked section `space` can mean, but for those with swept settings.

    Their settings are what an oracle is asked with before any row is there.
    """
    return [each for each in _alternatives(space) if not has_sweep(each)]


def _alternatives(space: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if sweep_word(space) is None:
        return [space]
    return [each for inner in candidates(space) for each in _alternatives(inner)]
