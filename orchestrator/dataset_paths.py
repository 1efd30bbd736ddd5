"""Paths in settings of plug-ins: sought beside the experiment file, then in the current folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.problems import Problems
from spaces.core import plugins
from trainables.official_files import prepare_command

# A text setting of a dataset or an oracle with one of these names is a path.
PATH_SETTINGS = ("file", "folder", "path", "root", "test", "train")


@dataclass(frozen=True)
class Folders:
    """Where relative paths are looked for, in order.

    Attributes:
        file: Folder of the experiment file.
        current: Folder in which the command runs.
    """

    file: Path
    current: Path

    def candidates(self, text: str) -> list[Path]:
        """Return the places that `text` may mean; one if it is absolute."""
        path = Path(text)
        with suppress(RuntimeError):  # ~NAME of nobody here is taken as it is written
            path = path.expanduser()
        if path.is_absolute():
            return [path]
        places = [self.file / path, self.current / path]
        return list(dict.fromkeys(Path(_normal(place)) for place in places))


def absolute_paths(
    given: Mapping[str, Any], folders: Folders, problems: Problems, where: str = "dataset"
) -> dict[str, Any]:
    """Return a plug-in's settings with absolute paths.

    Args:
        given: The checked settings.
        folders: Where relative paths are looked for.
        problems: Takes paths that are not there, with the places tried.
        where: Key of the file under which they stand.
    """
    settings = dict(given)
    for key in PATH_SETTINGS:
        text = settings.get(key)
        if not isinstance(text, str):
            continue
        tried = folders.candidates(text)
        found = [place for place in tried if _exists(place)]
        if found:
            settings[key] = str(found[0])
            continue
        places = " and ".join(str(place) for place in tried)
        problems.add(
            f"{where}.{key}",
            f"{where}.{key} must be an existing path, got {text!r}; tried {places}."
            f"{_download_hint(settings['name'], key, text) if where == 'dataset' else ''}",
        )
    return settings


def offers(name: str, function: str) -> bool:
    """Return whether a dataset's file has a function of that name, without importing it."""
    source = plugins.describe("datasets", name).path.read_text(encoding="utf-8")
    return f"\ndef {function}(" in source


def _download_hint(name: str, key: str, text: str) -> str:
    """Say how to get a dataset whose module can, or nothing."""
    if key != "root" or not offers(name, "prepare"):
        return ""
    return f" To get it: {prepare_command(name, text)}"


def _normal(path: Path) -> str:
    """Return the absolute path without `..`, keeping symbolic links as the user wrote them."""
    parts: list[str] = []
    for part in path.absolute().parts:
        if part == ".." and len(parts) > 1:
            parts.pop()
        elif part != "..":
            parts.append(part)
    return str(Path(*parts))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no permission, a name too long, a NUL character
        return False
