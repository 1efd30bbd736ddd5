"""A genotype that a person names: a file, an official text, or the name of a published cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spaces.core.errors import SpaceError, near_miss

if TYPE_CHECKING:
    from spaces.core.genotype import Genotype

_LONGEST_PATH = 4096


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

    path = Path(text)
    if len(text) < _LONGEST_PATH and is_file(path):
        try:
            return parse(path.read_text(encoding="utf-8"), space)
        except UnicodeDecodeError as error:
            raise SpaceError(f"{path} is no text file: {error}") from error
        except SpaceError as error:
            raise SpaceError(f"{path}: {error}") from error
    if text in named.names():
        return named.named(text)
    if any(sign in text for sign in "|{[("):
        return parse(text, space)
    hint = near_miss(text, named.names()) or " `nas list genotypes` has the names."
    raise SpaceError(f"{text!r} is no file, no official genotype text and no name.{hint}")


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a genotype's text is no path and never one."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or odd, for a path
        return False
