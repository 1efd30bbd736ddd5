"""Text forms of genotypes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spaces.core.errors import SpaceError
from spaces.core.genotype import EdgeChoice
from spaces.core.named import named
from spaces.core.text import from_mapping, parse
from tests.spaces.helpers import space_of

OFFICIAL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('dil_conv_3x3', 3), ('max_pool_3x3', 0), "
    "('skip_connect', 4)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], "
    "reduce_concat=[2, 3, 4, 5])"
)


def test_the_official_string_is_read_by_node() -> None:
    genotype = parse(OFFICIAL)
    assert genotype.space == "nasbench201"
    assert genotype.cell("cell").edges == (
        EdgeChoice(0, 1, "nor_conv_3x3"),
        EdgeChoice(0, 2, "none"),
        EdgeChoice(1, 2, "skip_connect"),
        EdgeChoice(0, 3, "avg_pool_3x3"),
        EdgeChoice(1, 3, "nor_conv_1x1"),
        EdgeChoice(2, 3, "none"),
    )
    assert genotype.cell("cell").concat == (3,)
    assert space_of("nasbench201").format(genotype) == OFFICIAL


def test_the_darts_form_is_read_pair_by_pair() -> None:
    genotype = parse(DARTS)
    assert genotype.space == "darts"
    normal = genotype.cell("normal")
    assert EdgeChoice(0, 2, "skip_connect") in normal.edges
    assert EdgeChoice(1, 2, "sep_conv_3x3") in normal.edges
    assert EdgeChoice(4, 5, "skip_connect") in normal.edges
    assert normal.concat == genotype.cell("reduction").concat == (2, 3, 4, 5)


@pytest.mark.parametrize(
    "text",
    [
        f"DARTS_X = {DARTS}",
        f"  {DARTS}\n",
        DARTS.replace("range(2, 6)", "list(range(2, 6))"),
        json.dumps(parse(DARTS).to_json()),
    ],
)
def test_every_form_gives_the_same_genotype(text: str) -> None:
    assert parse(text) == parse(DARTS)
    space = space_of("darts")
    assert space.parse(space.format(parse(text))) == parse(DARTS)


def test_the_mapping_form_is_read_as_json_and_as_python_text() -> None:
    mapping = {
        "normal": [["sep_conv_3x3", 1], ["skip_connect", 0]] * 4,
        "normal_concat": [2, 3, 4, 5],
        "reduce": [["max_pool_3x3", 0], ["max_pool_3x3", 1]] * 4,
        "reduce_concat": [2, 3, 4, 5],
    }
    genotype = from_mapping(mapping)
    assert parse(json.dumps(mapping)) == genotype
    assert parse(repr(mapping)) == genotype
    assert len(genotype.cell("reduction").edges) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "must be a NAS-Bench-201 string"),
        ("", "must be a NAS-Bench-201 string"),
        ("|nor_conv_3x3~0|+|none~0|", "must have each of the edges|one|once"),
        ("|nor_conv_3x3~1|", r"Node 1 must be written \|op~0\|"),
        ("|nor_conv_3x3~0|+none~0", r"Node 2 must be written"),
        (OFFICIAL.replace("avg_pool_3x3", "avg_pool_3x"), "Did you mean 'avg_pool_3x3'"),
        ("{", "no valid JSON"),
        ("{1: 2}", "text keys"),
        ('{"normal": []}', "must have the keys"),
        ("Genotype(", "no valid text"),
        ("Genotype(3)", "must be a NAS-Bench-201 string"),
        ("Genotype(normal=open('x'))", r"literals alone, got \"open\('x'\)\""),
        (
            "Genotype(normal=[], normal_concat=range(10**9), reduce=[], reduce_concat=[])",
            "literals",
        ),
        (DARTS.replace("('sep_conv_3x3', 1), ", "", 1), "normal must be a list of pairs"),
        (DARTS.replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', '1')", 1), r"normal\[0\] must be"),
        (DARTS.replace("range(2, 6)", "3", 1), "normal_concat must be a list of nodes"),
        (DARTS.replace("'sep_conv_3x3', 1", "'sep_conv_3x3', 2", 1), "to a later one, got 2 -> 2"),
        (DARTS.replace("dil_conv_3x3", "dil_conv_7x7"), "no operation 'dil_conv_7x7'"),
    ],
)
def test_what_cannot_be_read_is_explained(text: str, message: str) -> None:
    space = space_of("nasbench201" if text.startswith("|") else "darts")
    with pytest.raises(SpaceError, match=message):
        space.parse(text)


def test_a_genotype_of_another_space_is_refused() -> None:
    with pytest.raises(SpaceError, match="is one of space 'darts', not of 'nasbench201'"):
        parse(json.dumps(named("DARTS_V1").to_json()), "nasbench201")


def test_every_published_genotype_of_the_space_is_read(shared_data: Path) -> None:
    space = space_of("darts")
    published = json.loads((shared_data / "genotypes" / "published.json").read_text())
    read = 0
    for entry in published.values():
        entry.pop("source")
        genotype = from_mapping(entry)
        operations = {edge.operation for cell in genotype.cells for edge in cell.edges}
        if operations <= set(space.operations["normal"]):
            assert space.parse(space.format(genotype)) == genotype
            read += 1
    assert read >= 20
