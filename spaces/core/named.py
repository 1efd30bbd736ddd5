"""Published genotypes that can be asked for by name; `spaces/genotypes.json` holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
        space: Space that it is of. A cell of a smaller space that is one of this space too, as
            those of S1 to S4 without noise, is given as such.
        summary: Method, dataset of the search and space of the search.
        source: Repository, file and name there, with the commit it was read at.
        text: Official text form of the space.
    """

    space: str
    summary: str
    source: str
    text: str


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


@cache
def _read() -> Mapping[str, Named]:
    entries = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Named(**entry) for name, entry in entries.items()}
