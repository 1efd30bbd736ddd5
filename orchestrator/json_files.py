"""Reading JSON that may be damaged: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

_CHECKSUM = "crc32"
_SEAL = b'{"crc32":"%08x",'
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def parse(data: bytes | str) -> Any:
    """Return what JSON in UTF-8 stands for.

    Raises:
        ValueError: It is no JSON, nested too deeply, or holds NaN, Infinity or half a character,
            which could not be written again.
    """
    text = data.decode() if isinstance(data, bytes) else data
    try:
        form = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _HALF_CHARACTER.search(text):
        json.dumps(form, ensure_ascii=False).encode()
    return form


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def sealed(data: bytes) -> bytes:
    """Return a JSON object with a checksum in front, since a flipped digit is JSON too.

    Args:
        data: As UTF-8; an object that is not empty.
    """
    return _SEAL % zlib.crc32(data) + data[1:]


def unsealed(data: bytes) -> tuple[Any, bool]:
    """Return the JSON form of a file, and whether it has a checksum: of earlier versions none has.

    Raises:
        ValueError: It is no JSON, or not what was written.
    """
    form = parse(data)
    if not isinstance(form, dict) or _CHECKSUM not in form:
        return form, False
    rest = b"{" + data[len(_SEAL % 0) :]
    if not data.startswith(_SEAL % zlib.crc32(rest)):
        raise ValueError("its checksum is that of another content")
    return form, True
