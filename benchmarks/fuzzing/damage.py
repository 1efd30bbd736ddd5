"""What may become of a file: cut, flipped, overwritten, replaced; and odd values for its fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hypothesis import strategies as st

Sort = Literal["cut", "flip", "bytes", "json", "field", "other", "empty", "folder", "deep", "tail"]
SORTS: tuple[Sort, ...] = (
    *("cut", "flip", "bytes", "json", "field", "other", "empty", "folder", "deep", "tail"),
)

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**400, -(2**63), 2**64, 1e308, -0.0, 1e-320]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.text(max_size=6),
    st.sampled_from(["", "../../x", "\ud800", "\x1b[2J", "0" * 16, "finished", "1e5", "a" * 5000]),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(0, 3), max_size=2),
    st.just([[[]]]),
    st.just({"": {"": None}}),
)
"""Values of all sorts that JSON, YAML or a faulty writer can give."""

VALUES = st.recursive(
    ODD,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@dataclass(frozen=True)
class Damage:
    """What becomes of one file.

    Attributes:
        sort: What is done.
        place: Where in the file, or at which of its fields, as a share of all of it.
        data: Bytes that are written there.
        value: What a field, or the whole, is replaced by.
    """

    sort: Sort
    place: float
    data: bytes
    value: Any


def damages(sorts: Sequence[Sort] = SORTS) -> st.SearchStrategy[Damage]:
    """Return the strategy of damage to a file."""
    return st.builds(
        Damage,
        sort=st.sampled_from(sorts),
        place=st.floats(0, 1, exclude_max=True),
        data=st.binary(min_size=1, max_size=24),
        value=VALUES,
    )


def dumped(value: Any) -> bytes:
    """Return any value as JSON, with the NaN and Infinity that Python's own writer gives."""
    return json.dumps(value).encode()


def damaged(data: bytes, damage: Damage, others: Sequence[bytes] = ()) -> bytes | None:
    """Return what a file holds after the damage; None means a folder in its place."""
    at = int(damage.place * len(data))
    match damage.sort:
        case "cut":
            return data[:at]
        case "flip":
            if not data:
                return b""
            flipped = (data[at] ^ (1 << damage.data[0] % 8)).to_bytes()
            return data[:at] + flipped + data[at + 1 :]
        case "bytes":
            return data[:at] + damage.data + data[at + len(damage.data) :]
        case "tail":
            return data + damage.data
        case "json":
            return dumped(damage.value)
        case "field":
            return _with_field(data, damage)
        case "other":
            return others[int(damage.place * len(others))] if others else b""
        case "deep":
            opening = (b"[", b'{"a":')[damage.data[0] % 2]
            return opening * 100_000
        case "empty":
            return b""
        case "folder":
            return None


def write(path: Path, data: bytes | None) -> None:
    """Put what `damaged` returned in the place of a file."""
    path.unlink(missing_ok=True)
    if data is None:
        path.mkdir()
        (path / "stray").touch()
    else:
        path.write_bytes(data)


def _with_field(data: bytes, damage: Damage) -> bytes:
    """Replace one value, at any depth, of a file that holds JSON."""
    try:
        form = json.loads(data)
    except ValueError:
        return dumped(damage.value)
    paths = list(paths_of(form))
    if not paths:
        return dumped(damage.value)
    return dumped(replaced(form, paths[int(damage.place * len(paths))], damage.value))


def paths_of(node: Any, at: tuple[Any, ...] = ()) -> Any:
    """Yield the path of every value in nested mappings and lists."""
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield (*at, key)
        yield from paths_of(value, (*at, key))


def replaced(node: Any, path: Sequence[Any], value: Any) -> Any:
    """Return a copy of nested mappings and lists with another value at a path."""
    if not path:
        return value
    key, *rest = path
    if isinstance(node, dict):
        return {**node, key: replaced(node[key], rest, value)}
    return [replaced(item, rest, value) if i == key else item for i, item in enumerate(node)]
