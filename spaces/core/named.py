"""Published genotypes that can be asked for by name; `spaces/genotypes.json` holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from spaces.core.errors import SpaceError, near_miss
from spaces.core.genotype import Genotype
from spaces.core.text import parse

_FILE = Path(__file__).resolve().parents[1] / "genotypes.json"


@dataclass(frozen=True)
class Named:
    """A published genotype.

    Attributes:
        space: Space that it is of: where it was searched.
        summary: Method, dataset of the search and space of the search.
        source: Repository, file and name there, with the commit it was read at.
        text: Official text form of the space.
        network: Size of the published network, where the space does not say it: `channels`, `cells`
            and `classes`. That of S2 and S4 on CIFAR-10 is recalled and not checked.
    """

    space: str
    summary: str
    source: str
    text: str
    network: Mapping[str, int] = field(default_factory=dict)


def names() -> tuple[str, ...]:
    """Return the names of the published genotypes."""
    return tuple(_read())


def named(name: str) -> Genotype:
    """Return a published genotype.

    Raises:
        SpaceError: There is none of that name.
    """
    entry = describe(name)
    return parse(entry.text, entry.space)


def describe(name: str) -> Named:
    """Return what is known of a published genotype.

    Raises:
        SpaceError: There is none of that name.
    """
    found = _read()
    if name not in found:
        hint = near_miss(name, found) or " `nas list genotypes` has the names."
        raise SpaceError(f"There is no genotype named '{name}'.{hint}")
    return found[name]


def network_of(text: str) -> Mapping[str, int]:
    """Return the size of the published network of a name; empty for what is none, or says none."""
    return _read()[text].network if text in _read() else {}


@cache
def _read() -> Mapping[str, Named]:
    entries = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Named(**entry) for name, entry in entries.items()}
