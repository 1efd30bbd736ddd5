"""Described spaces in experiment files: sweeps, labels, the resolved file, messages, the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import factors
from orchestrator.config import dump, load_experiment, load_resolved
from orchestrator.errors import ConfigError
from orchestrator.schema import json_schema

SPACE: dict[str, Any] = {
    "name": "custom",
    "nodes": 2,
    "edges": [[0, 2], [1, 2], [1, 3, ["skip_connect", "sep_conv_3x3"]], [2, 3]],
    "operations": ["skip_connect", "max_pool_3x3"],
    "keep": 1,
    "by_type": {"reduction": {"edges": "all", "keep": [2, 1]}},
}


def written(folder: Path, **space: Any) -> Path:
    document = {
        "name": "described",
        "space": SPACE | space,
        "dataset": "digits",
        "method": "darts",
    }
    path = folder / "described.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_resolved_experiment_is_the_same_experiment(tmp_path: Path) -> None:
    experiment = load_experiment(written(tmp_path))
    space = experiment.settings("space")
    assert {key: space[key] for key in SPACE} == SPACE
    assert space["reductions"] == "thirds"  # a default, filled in
    dump(experiment, tmp_path / "resolved.yaml")
    assert load_resolved(tmp_path / "resolved.yaml") == experiment


def test_every_setting_can_be_swept_as_a_whole(tmp_path: Path) -> None:
    other = {"reduction": {"nodes": 1, "edges": "all"}}
    swept = {
        "keep": {"grid": [1, "all"]},
        "by_type": {"grid": [SPACE["by_type"], other]},
        "channels": {"grid": [4, 8]},
    }
    experiment = load_experiment(written(tmp_path, **swept))
    found = factors.configurations(experiment)
    settings = [configuration.settings["space"] for configuration in found]
    assert len(settings) == 8
    assert {(s["keep"], s["channels"]) for s in settings} == {
        *((1, 4), (1, 8), ("all", 4), ("all", 8))
    }
    assert [s["by_type"] for s in settings].count(other) == len(settings) / 2
    assert len({configuration.config_id for configuration in found}) == len(found)
    labels = [block.label for block in factors.blocks(experiment)]
    assert len(set(labels)) == 8
    assert "keep=1" in labels[0]
    assert "keep=all" in labels[-1]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"edges": [[0, 2], [3, 2]]}, r"space\.edges\[1\] must lead to a later node, .* got 3"),
        ({"operations": ["sep_conv_33"]}, r"space\.operations\[0\] .* Did you mean 'sep_conv_3"),
        ({"by_type": {"reduction": {"keep": 7}}}, r"space\.by_type\.reduction\.keep must be from"),
        ({"by_type": {"reduction": {"keep": {"grid": [1]}}}}, r"by_type\.reduction\.keep must be "),
        ({"by_type": {"reduction": 2}}, r"space\.by_type\.reduction must be a mapping, got 2"),
        ({"by_type": [1]}, r"space\.by_type must be "),
        ({"keep": {"grid": [1, 5]}}, r"space\.keep must be from 1 to 2, .* into node 2, got 5"),
        ({"keep": 1.5}, r"space\.keep must be all or int or a list, got 1\.5"),
        ({"edge": "all"}, r"space\.edge is not a setting\. Did you mean 'edges'"),
        ({"reductions": {"range": [1, 2]}}, r"space\.reductions must be thirds or a list"),
    ],
)
def test_mistakes_name_the_file_and_the_key(
    tmp_path: Path, space: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/described\.yaml: .*{message}"):
        load_experiment(written(tmp_path, **space))


def test_the_schema_takes_what_the_check_takes() -> None:
    described = json_schema()["$defs"]["spaces"]["anyOf"]
    (custom,) = (item for item in described if item.get("title") == "custom")
    keep = custom["properties"]["keep"]["anyOf"][0]["anyOf"]
    assert keep == [
        {"enum": ["all"]},
        {"type": "integer"},
        {"type": "array", "items": {"type": "integer"}},
    ]
    by_type = custom["properties"]["by_type"]["anyOf"][0]["anyOf"]
    assert by_type == [{"type": "object"}, {"type": "null"}]
