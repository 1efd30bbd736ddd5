"""Reading JSON that may be damaged: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
import re
from typing import Any

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
