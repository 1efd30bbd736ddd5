"""Genotypes that a person names: files and texts in all their forms, whole and broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from benchmarks.fuzzing.damage import VALUES, Damage, damaged, damages, paths_of, replaced, write
from benchmarks.fuzzing.outcomes import Finding, Outcome, nas, tried
from orchestrator.genotypes import find_genotype
from spaces.core import drawing, named
from spaces.core.genotype import Genotype
from spaces.core.text import parse

_COMMANDS = (*("find",) * 6, "show", "retrain", "export")
_HUGE = (10**9, 2**40, 10**400, -1)


@dataclass(frozen=True)
class Named:
    """What stands for a genotype.

    Attributes:
        text: The text itself, or what its file holds.
        damage: Of the file, or None for none.
        in_file: Whether it is in a file.
        sort: The command that is given it.
    """

    text: str
    damage: Damage | None
    in_file: bool
    sort: str


class Genotypes:
    """What commands do with a genotype.

    Args:
        folder: An empty folder.
    """

    name = "genotype"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "cell.json"
        self._out = folder / "cell.svg"
        self._root = folder / "studies"
        self._root.mkdir()

    def inputs(self) -> st.SearchStrategy[Named]:
        """Return texts and files of all forms."""
        texts = st.one_of(_official(), _broken(), _wide(), _noise())
        return st.builds(
            Named,
            texts,
            st.one_of(st.none(), st.none(), damages()),
            st.booleans(),
            st.sampled_from(_COMMANDS),
        )

    def check(self, item: Named) -> Outcome:
        """Give it to a command; what is taken has to come back from its own JSON."""
        text = item.text
        if item.in_file:
            data = text.encode("utf-8", "surrogatepass")
            write(self._file, data if item.damage is None else damaged(data, item.damage))
            text = str(self._file)
        elif "\x00" in text or not text:
            text = "|"  # no word of a command line
        try:
            if item.sort == "find":
                return self._found(text)
            return self._command(item.sort, text)
        finally:
            if self._file.is_dir():
                (self._file / "stray").unlink()
                self._file.rmdir()

    def _found(self, text: str) -> Outcome:
        found, _ = tried(lambda: _with_hash(find_genotype(text)))
        if found is None:
            return "refused"
        genotype, digest = found
        again, message = tried(lambda: _with_hash(Genotype.from_json(genotype.to_json())))
        if again is None or again[1] != digest:
            raise Finding("loss", f"its own JSON is another genotype: {message:.300}")
        return "accepted"

    def _command(self, command: str, text: str) -> Outcome:
        text = text.encode("utf-8", "surrogateescape" if text.isascii() else "replace").decode()
        words = {
            "show": ["show", "--json", "--channels", "4", "--cells", "3", "--", text],
            "retrain": ["retrain", "--root", str(self._root), "--like", "missing.yaml", "--", text],
            "export": ["export", "--root", str(self._root), "--", text],
        }
        with mock.patch.object(drawing, "draw_genotype"):
            said = nas(words[command])
        if said.code not in (0, 2):
            raise Finding("unclear", f"exit code {said.code}: {said.everything!r:.300}")
        return "refused" if said.code else "accepted"


def _with_hash(genotype: Genotype) -> tuple[Genotype, str]:
    return genotype, genotype.hash


def _official() -> st.SearchStrategy[str]:
    """Return names and official texts of published genotypes."""
    names = st.sampled_from([*named.names()])
    forms = names.map(lambda name: json.dumps(named.named(name).to_json()))
    operations = st.sampled_from(["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "pool"])
    cell = st.tuples(*[operations] * 6).map(
        lambda ops: "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*ops)
    )
    darts = st.just(
        "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1)] * 1, normal_concat=range(2, 3),"
        " reduce=[('max_pool_3x3', 0), ('skip_connect', 1)], reduce_concat=[2])"
    )
    return st.one_of(names, forms, cell, darts)


@st.composite
def _broken(draw: st.DrawFn) -> str:
    """Draw a good form and change values of it, or its text."""
    text = draw(_official())
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        put_in = draw(
            st.sampled_from(["|", "(", "[" * 3000, "{" * 3000, "9" * 5000, "~", "\ud800"])
        )
        return text[:at] + draw(st.just(put_in) | st.text(max_size=4)) + text[at:]
    form: Any = (
        parse(text).to_json() if text.startswith(("{", "|")) else named.named("DARTS_V2").to_json()
    )
    for _ in range(draw(st.integers(1, 3))):
        paths = [*paths_of(form)]
        if not paths:
            break
        value = draw(VALUES | st.sampled_from(_HUGE))
        form = replaced(form, draw(st.sampled_from(paths)), value)
    return json.dumps(form)


@st.composite
def _wide(draw: st.DrawFn) -> str:
    """Draw a cell of many nodes, whose relabelings nobody can try."""
    nodes = draw(st.sampled_from([6, 9, 12, 30, 200, 3000]))
    inputs = draw(st.integers(1, 2))
    chain = draw(st.booleans())
    edges = [[n - 1 if chain else 0, n, "skip_connect"] for n in range(inputs, inputs + nodes)]
    cells = [{"name": "cell", "edges": edges, "concat": [inputs + nodes - 1]}]
    return json.dumps({"space": draw(st.sampled_from(["custom", "darts"])), "cells": cells})


def _noise() -> st.SearchStrategy[str]:
    forms = st.dictionaries(
        st.sampled_from(["space", "cells", "stack", "matrix", "ops", "normal", "reduce"]), VALUES
    )
    return st.one_of(
        st.text(max_size=60), forms.map(json.dumps), st.text("|~+abc01(){}[]'\",=", max_size=40)
    )
