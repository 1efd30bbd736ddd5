"""From search to report on real colour images, in spaces of every kind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.orchestrator import drive, here

EXPERIMENT = """
name: cycle
space:
  grid:
    - {{name: s2, channels: 4, cells: 3}}
    - {{name: darts, channels: 4, cells: 3}}
    - {{name: nasbench1shot1_1, channels: 4, cells: 3}}
    - {{name: darts_per_cell, channels: 4, cells: 3}}
dataset: {{name: parquet, train: {folder}/train.parquet, test: {folder}/test.parquet, limit: 96}}
seeds: [0]
method: sdarts_rs
search: {{epochs: 1, batch_size: 16}}
retrain: {{epochs: 1, batch_size: 32, channels: 4, cells: 3, auxiliary_weight: 0.0}}
tune: {{max_concurrent: 1}}
ray: {{address: auto}}
"""


def test_search_promotion_retraining_and_report(
    shared_data: Path, tmp_path: Path, nas_here: here.Nas
) -> None:
    file = tmp_path / "cycle.yaml"
    file.write_text(EXPERIMENT.format(folder=shared_data / "cifar10-small"))
    code, said = nas_here("run", file, root=tmp_path)
    assert code == 0, said
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
