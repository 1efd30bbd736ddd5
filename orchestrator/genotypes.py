"""A genotype that a person names: a file, an official text, or the name of a published cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.core.errors import SpaceError, near_miss

if TYPE_CHECKING:
    from spaces.core.genotype import Genotype

_LONGEST_PATH = 4096
_LONGEST_SHOWN = 200


def find_genotype(text: str, space: str | None = None) -> Genotype:
    """Return the genotype that `text` stands for.

    Args:
        text: Path of a file that holds a genotype in any of its forms, such a form itself (JSON,
            the NAS-Bench-201 string, the DARTS normal/reduce form, the NAS-Bench-101 spec), or a
            name.
        space: Space of a form that does not say its own.

    Raises:
        SpaceError: It is none of these; the message says what was tried.
    """
    # Imported here: `nas --help` needs no space.
    from spaces.core import named
    from spaces.core.text import parse

    content = _content(text)
    if content is not None:
        try:
            return parse(content, space)
        except SpaceError as error:
            raise SpaceError(f"{text}: {error}") from error
    if text in named.names():
        return named.named(text)
    if any(sign in text for sign in "|{[("):
        return parse(text, space)
    hint = near_miss(text, named.names()) or " `nas list genotypes` has the names."
    shown = ascii(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
    raise SpaceError(f"{shown} is no file, no official genotype text and no name.{hint}")


def find_with_space(text: str) -> Genotype | None:
    """Return the genotype that `text` stands for where it says its own space, else None.

    A name says it, and so does JSON with `space`; the official texts may be of several spaces.

    Raises:
        SpaceError: It says its space and is no genotype.
    """
    from spaces.core import named

    content = _content(text)
    if content is None and text in named.names():
        return named.named(text)
    try:
        document = json.loads(text if content is None else content)
    except (ValueError, RecursionError):
        return None
    says = isinstance(document, dict) and "space" in document
    return find_genotype(text) if says else None


def _content(text: str) -> str | None:
    """Return what the file of that path holds; None where there is none."""
    path = Path(text)
    if len(text) >= _LONGEST_PATH or not is_file(path):
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpaceError(f"{path} is no text file: {error}") from error


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a genotype's text is no path and never one."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or odd, for a path
        return False
