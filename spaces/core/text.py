"""Text forms of genotypes: NAS-Bench-201 strings, DARTS genotypes, NAS-Bench-101 specs, JSON."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from spaces.core import graph101
from spaces.core.errors import SpaceError
from spaces.core.genotype import Cell, EdgeChoice, Genotype

NASBENCH201 = "nasbench201"
DARTS = "darts"
_FORMS = (
    "a NAS-Bench-201 string |op~0|+|op~0|op~1|+..., a DARTS Genotype(normal=[...], ...), a "
    "NAS-Bench-101 ModelSpec(matrix=[[...], ...], ops=[...]), or JSON"
)
_KEYS = {"normal": "normal", "reduce": "reduction"}


def parse(text: str, space: str | None = None) -> Genotype:
    """Read a genotype from text.

    Args:
        text: An official NAS-Bench-201 string, the text of a DARTS `Genotype(...)` or of a
            NAS-Bench-101 `ModelSpec(...)`, the JSON of `Genotype.to_json`, or the mappings
            {"normal": [[operation, node], ...], ...} and {"matrix": [[...], ...], "ops": [...]} as
            JSON or as Python text. It is read as syntax and never executed.
        space: Name of the space, None for the one whose form it is.

    Raises:
        SpaceError: The text is none of these, with what is wrong.
    """
    stripped = text.strip()
    if stripped.startswith("|"):
        return _parse_nasbench201(stripped, space or NASBENCH201)
    if stripped.startswith("{"):
        return from_mapping(_mapping(stripped), space)
    called = stripped.split("(")[0].split("=")[-1].strip()
    if called.rpartition(".")[2] in ("Genotype", "ModelSpec"):
        return from_mapping(_call(stripped), space)
    raise SpaceError(f"A genotype must be {_FORMS}, got {_shown(stripped)}.")


def from_mapping(data: Mapping[str, Any], space: str | None = None) -> Genotype:
    """Read a genotype from the mapping of `Genotype.to_json`, the DARTS or the NAS-Bench-101 form.

    Raises:
        SpaceError: A key is missing or unknown, or a value has the wrong form.
    """
    if "cells" in data:
        genotype = Genotype.from_json(data)
        if space is not None and genotype.space != space:
            raise SpaceError(f"The genotype is one of space '{genotype.space}', not of '{space}'.")
        return genotype
    if set(data) == {"matrix", "ops"}:
        return _from_spec(data["matrix"], data["ops"], space)
    expected = {key for name in _KEYS for key in (name, f"{name}_concat")}
    if set(data) != expected:
        raise SpaceError(
            f"A DARTS genotype must have the keys {sorted(expected)}, got "
            f"{_shown_value(list(data))}."
        )
    cells = tuple(
        _darts_cell(cell, key, data[key], data[f"{key}_concat"]) for key, cell in _KEYS.items()
    )
    return Genotype(space or DARTS, cells)


def format_nasbench201(genotype: Genotype) -> str:
    """Return the official NAS-Bench-201 string of a genotype that has all six edges."""
    edges = genotype.cell("cell").edges
    nodes = sorted({edge.target for edge in edges})
    return "+".join(
        "|" + "".join(f"{edge.operation}~{edge.source}|" for edge in edges if edge.target == node)
        for node in nodes
    )


def format_darts(genotype: Genotype) -> str:
    """Return the DARTS form `Genotype(normal=[(operation, node), ...], normal_concat=...)`."""
    fields = []
    for key, name in _KEYS.items():
        cell = genotype.cell(name)
        pairs = [(edge.operation, edge.source) for edge in cell.edges]
        concat = cell.concat
        contiguous = concat == tuple(range(concat[0], concat[-1] + 1))
        nodes = f"range({concat[0]}, {concat[-1] + 1})" if contiguous else str(list(concat))
        fields.append(f"{key}={pairs}, {key}_concat={nodes}")
    return f"Genotype({', '.join(fields)})"


def format_nasbench101(operations: tuple[str, ...], adjacency: graph101.Matrix) -> str:
    """Return the NAS-Bench-101 form `ModelSpec(matrix=[[...], ...], ops=['input', ...])`.

    Args:
        operations: Of the inner vertices, in order.
        adjacency: 0 or 1, `(n, n)`, input and output included.
    """
    ops = [graph101.INPUT, *operations, graph101.OUTPUT]
    return f"ModelSpec(matrix={[list(row) for row in adjacency]}, ops={ops})"


def _from_spec(matrix: Any, ops: Any, space: str | None) -> Genotype:
    """Read a NAS-Bench-101 cell; what is on no path from its input to its output is cut off."""
    if space is None:
        raise SpaceError("A NAS-Bench-101 cell does not say its space: name the one it is of.")
    rows = matrix if isinstance(matrix, list | tuple) else None
    if rows is None or not all(
        isinstance(row, list | tuple) and all(type(value) is int for value in row) for row in rows
    ):
        raise SpaceError(f"matrix must be a list of rows of 0 and 1, got {_shown_value(matrix)}.")
    if not isinstance(ops, list | tuple) or not all(isinstance(op, str) for op in ops):
        raise SpaceError(f"ops must be a list of names, got {_shown_value(ops)}.")
    if len(ops) < 2 or (ops[0], ops[-1]) != (graph101.INPUT, graph101.OUTPUT):
        raise SpaceError(f"ops must go from 'input' to 'output', got {_shown_value(list(ops))}.")
    adjacency = tuple(tuple(row) for row in rows)
    return Genotype(space, (graph101.to_cell("cell", tuple(ops[1:-1]), adjacency),))


def _parse_nasbench201(text: str, space: str) -> Genotype:
    edges = []
    for target, node in enumerate(text.split("+"), start=1):
        if len(node) < 2 or not (node.startswith("|") and node.endswith("|")):
            raise SpaceError(f"Node {target} must be written |op~0|...|, got {_shown(node)}.")
        for index, part in enumerate(node[1:-1].split("|")):
            operation, _, source = part.partition("~")
            if not operation or source != str(index):
                raise SpaceError(
                    f"Node {target} must be written |op~0|...|op~{target - 1}|, got {_shown(node)}."
                )
            edges.append(EdgeChoice(index, target, operation))
    return Genotype(space, (Cell("cell", tuple(edges), (text.count("+") + 1,)),))


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            data = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise SpaceError(f"The genotype is no valid JSON: {_shown(str(error))}.") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise SpaceError(f"A genotype must be a mapping with text keys, got {_shown(text)}.")
    return data


def _call(text: str) -> Mapping[str, Any]:
    """Read `Genotype(key=literal or range(a, b), ...)`, also after `name =`, without running it."""
    try:
        statement = ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise SpaceError(f"The genotype {_shown(text)} is no valid text: {error}.") from error
    value = statement[0].value if isinstance(statement[0], ast.Expr | ast.Assign) else None
    if len(statement) != 1 or not isinstance(value, ast.Call) or value.args:
        raise SpaceError(f"A genotype must be {_FORMS}, got {_shown(text)}.")
    return {str(keyword.arg): _literal(keyword.value) for keyword in value.keywords}


def _literal(node: ast.expr) -> Any:
    try:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"list", "tuple"} and len(node.args) == 1:
                return _literal(node.args[0])
            if node.func.id == "range" and 1 <= len(node.args) <= 2:
                bounds = [ast.literal_eval(argument) for argument in node.args]
                if all(isinstance(bound, int) and 0 <= bound < 1000 for bound in bounds):
                    return list(range(*bounds))
        return ast.literal_eval(node)
    except ValueError as error:
        raise SpaceError(
            f"A genotype holds literals alone, got {_shown(ast.unparse(node))}."
        ) from error


def _darts_cell(name: str, key: str, pairs: Any, concat: Any) -> Cell:
    if not isinstance(pairs, list | tuple) or not pairs or len(pairs) % 2:
        raise SpaceError(
            f"{key} must be a list of pairs, two for every node, got {_shown_value(pairs)}."
        )
    edges = []
    for index, pair in enumerate(pairs):
        good = isinstance(pair, list | tuple) and len(pair) == 2
        if not good or not isinstance(pair[0], str) or type(pair[1]) is not int:
            raise SpaceError(f"{key}[{index}] must be [operation, node], got {_shown_value(pair)}.")
        edges.append(EdgeChoice(pair[1], 2 + index // 2, pair[0]))
    if not isinstance(concat, list | tuple) or not all(type(node) is int for node in concat):
        raise SpaceError(f"{key}_concat must be a list of nodes, got {_shown_value(concat)}.")
    return Cell(name, tuple(edges), tuple(concat))


def _shown_value(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
