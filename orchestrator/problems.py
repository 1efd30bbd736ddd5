"""Everything that is wrong with an experiment file, collected before anything is raised."""

from __future__ import annotations

_LONGEST = 400  # characters of a line


class Problems:
    """Collects what is wrong, so that one look at the message is enough to mend a file."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self._known: set[tuple[str, str]] = set()

    def add(self, key: str, message: str) -> None:
        """Note a problem with `key`; `message` is a whole sentence that names the key."""
        line = plain_text(" ".join(message.split()))
        line = line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
        if (key, line) not in self._known:
            self._known.add((key, line))
            self.found.append((key, line))

    def under(self, *sections: str) -> bool:
        """Return whether something is wrong in one of these top-level keys."""
        return any(key.split(".")[0].split("[")[0] in sections for key, _ in self.found)

    def __bool__(self) -> bool:
        return bool(self.found)


def plain_text(text: str) -> str:
    """Return a text with what a terminal would obey, or cannot show, written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
