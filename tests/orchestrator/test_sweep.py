"""Whole sweeps through the command and Ray: blocks, schedulers, failures, plug-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import sweep
from orchestrator.errors import StudyError
from orchestrator.study import Study
from tests.orchestrator import drive, here
from trainables.search import TIME_FIELDS, SearchTrial

ADAPTIVE = """
name: adaptive
space: {name: nasbench201, channels: 2, cells_per_stage: 1}
dataset: digits
seeds: [0, 1]
method: {grid: [{name: darts}, {name: sdarts_rs, radius_max: {uniform: [0.1, 0.5]}}]}
search: {epochs: 4, batch_size: 256, weight_lr: {loguniform: [0.001, 0.5]}}
retrain: null
tune:
  num_samples: 3
  searcher: optuna
  scheduler: {name: asha, grace_epochs: 1, reduction_factor: 2}
ray: {address: auto}
"""

# One after the other: they share a cluster.

BROKEN = '''"""DARTS that fails for seed 1 once its second epoch begins."""

from dataclasses import dataclass
from functools import partial

from trainables.method import Method, softmax

SOURCE = "a test"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    fail: bool = True


def relax(alphas, at, *, config):
    if config.fail and at.epoch == 1:
        raise RuntimeError("the plug-in broke on purpose")
    return softmax(alphas, at)


def build(config):
    return Method(relax=partial(relax, config=config))
'''


def timeless(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ignore = {*TIME_FIELDS, "ended"}
    return [{k: v for k, v in entry.items() if k not in ignore} for entry in curve]


def test_optuna_and_asha_decide_on_configurations_and_a_resume_runs_nothing(
    tmp_path: Path, nas_here: here.Nas
) -> None:
    file = tmp_path / "adaptive.yaml"
    file.write_text(ADAPTIVE)
    code, said = nas_here("run", file, root=tmp_path)
    assert code == 0, said
    study = Study.open("adaptive", tmp_path)
    rows = study.rows("search")
    by_configuration: dict[str, list[Any]] = {}
    for row in rows:
        by_configuration.setdefault(row.config_id, []).append(row)
    # Three samples in each of the two blocks, both seeds each, and seeds never parted.
    assert sorted(group[0].block for group in by_configuration.values()) == [0, 0, 0, 1, 1, 1]
    for group in by_configuration.values():
        assert {row.seed for row in group} == {0, 1}
        assert len({(row.status, row.epochs_done) for row in group}) == 1
        expected = {"search.weight_lr"} | ({"method.radius_max"} if group[0].block else set())
        assert set(group[0].params) == expected
    stopped = [row for row in rows if row.status == "stopped"]
    finished = [row for row in rows if row.status == "finished"]
    assert stopped
    assert finished
    for row in stopped:
        assert row.stop == {"epoch": row.epochs_done, "reason": "scheduler asha"}
        assert (study.checkpoints / row.key / "state.pt").is_file()
    # A seed of a block, in Ray and beside others, is the search it would be alone.
    row = finished[0]
    alone = SearchTrial(
        **{kind: row.settings[kind] for kind in ("space", "dataset", "method", "search")},
        seed=row.seed,
    )
    alone.run()
    assert timeless(row.curve) == timeless(alone.curve)
    before = drive.results(study.path)
    assert nas_here("resume", "adaptive", root=tmp_path)[0] == 0
    assert drive.results(study.path) == before


def test_a_failed_search_stays_in_the_table_and_a_resume_runs_it_again(
    tmp_path: Path, nas_here: here.Nas
) -> None:
    folder = tmp_path / "mine" / "methods"
    folder.mkdir(parents=True)
    plugin = folder / "broken.py"
    plugin.write_text(BROKEN)
    file = tmp_path / "b.yaml"
    text = drive.TINY.format(name="b", epochs=2).replace("{name: sdarts_rs}", "{name: broken}")
    more = "tune: {max_failures: 0, max_concurrent: 1}\n"
    file.write_text(text.replace("seeds: [0, 1]", "seeds: [0]") + more + here.ON_RAY)
    drive.without_retraining(file)
    code, said = nas_here("--plugins", tmp_path / "mine", "run", file, root=tmp_path)
    assert code == 1, said
    rows = {row["method"]: row for row in drive.rows(tmp_path / "b") if row["stage"] == "search"}
    assert rows["darts"]["status"] == "finished"
    broken = rows["broken"]
    assert (broken["status"], broken["epochs_done"]) == ("failed", 1)
    assert "the plug-in broke on purpose" in broken["error"]
    report = (tmp_path / "b" / "report" / "report.md").read_text()
    assert "the plug-in broke on purpose" in report
    # The study carries its plug-ins: a resume needs neither the option nor the folder.
    plugin.unlink()
    # Workers get them on a cluster, as before, and on a Ray of the driver's own.
    stored = tmp_path / "b" / "experiment.yaml"
    stored.write_text(stored.read_text().replace("address: auto", "address: local"))
    code, said = nas_here("resume", "b", root=tmp_path)
    assert code == 1, said
    again = Study.open("b", tmp_path).ledger.read(broken["key"])
    assert again is not None
    assert again.status == "failed"
    assert again.ended is not None
    assert again.ended > broken["ended"]
    assert "the plug-in broke on purpose" in str(again.error)


def test_a_time_limit_stops_the_study_resumably(tmp_path: Path, nas_here: here.Nas) -> None:
    more = "max_hours: 0.0001\ntune: {max_concurrent: 1}\n" + here.ON_RAY
    file = drive.write_experiment(tmp_path, "late", epochs=200, more=more)
    code, said = nas_here("run", file, root=tmp_path)
    assert code == 130, said
    assert "nas resume late" in said
    assert drive.rows(tmp_path / "late") == []
    progress = json.loads((tmp_path / "late" / "progress.json").read_text())
    assert progress["total"] == 4


def test_trials_that_fit_nowhere_are_refused_with_the_numbers() -> None:
    assert sweep.fits({"CPU": 8.0, "GPU": 1.0}, 2.0, 0.25) == 4
    assert sweep.fits({"CPU": 2.0}, 1.0, 0.0) == 2
    with pytest.raises(StudyError, match=r"asks for 1 CPUs and 1 GPUs.* has 2 CPUs and 0 GPUs"):
        sweep.fits({"CPU": 2.0}, 1.0, 1.0)


def test_an_address_where_no_cluster_answers_is_refused(tmp_path: Path, nas_here: here.Nas) -> None:
    more = "ray: {address: '127.0.0.1:9'}\n"
    file = drive.write_experiment(tmp_path, "far", more=more)
    code, said = nas_here("run", file, root=tmp_path)
    assert code == 2
    assert "\nray.address: no Ray cluster answers at '127.0.0.1:9'" in said
    assert not (tmp_path / "far").exists()
