"""The tables of docs/retraining.md are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from spaces.core import named, plugins
from trainables.protocol import fixed_values_of, sources_of, values_of
from trainables.settings import RetrainSettings, field_names

DOCS = Path(__file__).resolve().parents[2] / "docs" / "retraining.md"
COLUMNS = ("darts_cifar", "msdarts_cifar", "imagenet_mobile", "nasbench201", "quick")
LINES = DOCS.read_text(encoding="utf-8").splitlines()


def row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def test_every_value_of_every_protocol_is_in_the_table() -> None:
    tables = {name: fixed_values_of(name) for name in COLUMNS}
    assert row("setting", *(f"`{name}`" for name in COLUMNS)) in LINES
    settings = [key for key in field_names(RetrainSettings) if key in tables["darts_cifar"]]
    for key in settings:
        # `quick` leaves published details at their defaults, and its depth depends on the space.
        cells = (shown(tables[name].get(key, "–")) for name in COLUMNS)
        assert row(f"`{key}`", *cells) in LINES
    for name in COLUMNS:
        assert set(tables[name]) <= set(settings)


def test_every_protocol_is_named_with_its_source() -> None:
    text = "\n".join(LINES)
    for name in plugins.available("protocols"):
        assert f"| `{name}` | {plugins.describe('protocols', name).source} |" in text


def test_s1_to_s4_differ_from_darts_in_size_alone() -> None:
    for name in ("s1_s4_cifar", "s1_s4_svhn"):
        fixed = fixed_values_of(name)
        assert fixed.items() <= fixed_values_of("darts_cifar").items()
        assert set(sources_of(name)) - set(fixed) == {"channels", "cells"}


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("s1_s4_cifar", "cifar10"), ("s1_s4_cifar", "cifar100"), ("s1_s4_svhn", "svhn")],
)
def test_the_sizes_of_s1_to_s4_are_in_their_table(name: str, dataset: str) -> None:
    sizes = (values_of(name, space=f"s{i}", dataset=dataset) for i in (1, 2, 3, 4))
    cells = [f"{each['channels']} x {each['cells']}" for each in sizes]
    assert row(f"`{name}`", f"`{dataset}`", *cells) in LINES


def test_the_number_of_named_genotypes_is_right() -> None:
    assert f"{len(named.names())} cells" in "\n".join(LINES)
