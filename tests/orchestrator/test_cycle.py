"""From search to report on real colour images, in spaces of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator import drive

EXPERIMENT = """
name: cycle
space:
  grid:
    - {{name: s2, channels: 4, cells: 3}}
    - {{name: darts, channels: 4, cells: 3}}
    - {{name: nasbench1shot1_1, channels: 4, cells: 3}}
    - {{name: darts_per_cell, channels: 4, cells: 3}}
dataset: {{name: parquet, train: {folder}/train.parquet, test: {folder}/test.parquet, limit: 192}}
seeds: [0]
method: sdarts_rs
search: {{epochs: 1, batch_size: 32}}
retrain: {{epochs: 1, batch_size: 64, channels: 4, cells: 3, auxiliary_weight: 0.0}}
"""

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module", autouse=True)
def ray_folder() -> Iterator[None]:
    """Keep the paths of Ray's sockets short."""
    with drive.short_ray_folder():
        yield


def test_search_promotion_retraining_and_report(shared_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "cycle.yaml"
    file.write_text(EXPERIMENT.format(folder=shared_data / "cifar10-small"))
    process = drive.nas("run", file, root=tmp_path)
    assert drive.finish(process, tmp_path) == 0, (tmp_path / "nas.log").read_text()[-4000:]
    rows = drive.rows(tmp_path / "cycle")
    searched = {row["space"]: row for row in rows if row["stage"] == "search"}
    retrained = {row["space"]: row for row in rows if row["stage"] == "retrain"}
    assert {row["status"] for row in rows} == {"finished"}
    assert searched.keys() == {"s2", "darts", "nasbench1shot1_1", "darts_per_cell"}
    # The promoted genotype of each space is the one that its search found.
    assert {name: row["genotype_hash"] for name, row in retrained.items()} == {
        name: row["genotype_hash"] for name, row in searched.items()
    }
    reads = (tmp_path / "cycle" / "test_reads.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in reads) == sorted(
        row["key"] for row in retrained.values()
    )
    folder = tmp_path / "cycle" / "report"
    lines = json.loads((folder / "table.json").read_text())["rows"]
    shown = {line["genotype_hash"]: line["test_accuracies"]["0"] for line in lines}
    accuracies = {
        row["genotype_hash"]: row["curve"][-1]["test_accuracy"] for row in retrained.values()
    }
    assert shown == accuracies
    report = (folder / "report.md").read_text()
    for genotype_hash, accuracy in accuracies.items():
        assert 0 <= accuracy <= 1
        assert genotype_hash in report
        assert f"{100 * accuracy:.2f}" in report
