"""Studies of retrainings (`trainable: retrain`): files, configurations, keys, tables, runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator import factors, planning, training
from orchestrator.commands_study import study_state
from orchestrator.config import (
    check_data,
    check_methods,
    dump,
    json_schema,
    load_experiment,
    load_resolved,
)
from orchestrator.errors import ConfigError
from orchestrator.estimate import estimate
from orchestrator.experiment import Experiment
from orchestrator.ledger import Row
from orchestrator.report import write_report
from orchestrator.results import caption, columns, tabulate_trainings
from orchestrator.runner import retrain_genotype, retrain_study
from orchestrator.study import Study
from orchestrator.tracking_notes import Outcome, study_note
from orchestrator.tracking_runs import study_totals
from spaces.core.text import parse
from tests.orchestrator import drive, here
from tests.orchestrator.fake_study import CELL, retrain_row
from trainables.ray_trial import RetrainTrainable
from trainables.retrain import RetrainTrial
from trainables.search import TIME_FIELDS

FIRST, SECOND = CELL.format("nor_conv_3x3"), CELL.format("skip_connect")
YAML = f"""
name: tuned
trainable: retrain
space: nasbench201
genotype: "{FIRST}"
dataset: digits
seeds: [0, 1]
retrain:
  epochs: 4
  batch_size: 256
  channels: 2
  cells: 1
  auxiliary_weight: 0.0
  lr: {{grid: [0.05, 0.2]}}
"""
BOTH = f'genotype={{grid: ["{FIRST}", "{SECOND}"]}}'
IDENTITY = planning.Identity({"name": "digits", "digest": "d"}, None, None, {})


def load(tmp_path: Path, *overrides: str, text: str = YAML) -> Experiment:
    file = tmp_path / "tuned.yaml"
    file.write_text(text)
    return load_experiment(file, list(overrides))


def labels(experiment: Experiment) -> list[str]:
    return list(factors.label(factors.configurations(experiment)).values())


def units(experiment: Experiment) -> list[Any]:
    configurations = planning.known_configurations(experiment)
    return training.training_units(
        experiment, configurations, IDENTITY, factors.label(configurations)
    )


def test_settings_and_genotypes_are_swept_like_those_of_a_search(tmp_path: Path) -> None:
    one, other = parse(FIRST).hash, parse(SECOND).hash
    assert labels(load(tmp_path)) == [f"{one} lr=0.05", f"{one} lr=0.2"]
    assert labels(load(tmp_path, BOTH, "retrain.lr=0.1")) == [one, other]
    assert len(labels(load(tmp_path, BOTH))) == 4
    drawn = load(
        tmp_path,
        "retrain.lr={loguniform: [0.01, 1.0]}",
        "retrain.nesterov={choice: [true, false]}",
        "tune.num_samples=5",
    )
    assert drawn.tune.searcher.name == "random"
    found = factors.configurations(drawn)
    assert len({item.config_id for item in found}) == 5
    assert {frozenset(item.params) for item in found} == {
        frozenset({"retrain.lr", "retrain.nesterov"})
    }


def test_a_row_has_the_key_of_the_same_retraining_of_a_search(tmp_path: Path) -> None:
    swept = units(load(tmp_path, BOTH, "tune.seeds_per_trial=all"))
    assert [list(unit.rows) for unit in swept] == [[0, 1]] * 4
    assert len({key for unit in swept for key in unit.rows.values()}) == 8
    searched = tmp_path / "searched.yaml"
    searched.write_text(
        "name: searched\nspace: nasbench201\ndataset: digits\nmethod: darts\n"
        "retrain: {epochs: 4, batch_size: 256, channels: 2, cells: 1, auxiliary_weight: 0.0,"
        " val_share: 0.1, lr: 0.2, seeds: [0, 1]}\n"
    )
    genotype = parse(SECOND)
    expected = planning.genotype_units(
        load_experiment(searched), genotype.to_json(), genotype.hash,
        space={"name": "nasbench201"}, search={}, label="", method="", identity=IDENTITY,
    )  # fmt: skip
    assert swept[3].label == f"{genotype.hash} lr=0.2"
    assert swept[3].rows == {seed: key for unit in expected for seed, key in unit.rows.items()}


def test_how_a_genotype_is_written_changes_no_configuration(tmp_path: Path) -> None:
    def found(*overrides: str) -> tuple[str, ...]:
        each = factors.configurations(load(tmp_path, *overrides))
        return tuple(item.config_id for item in each)

    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "mine.json").write_text(json.dumps(parse(FIRST).to_json()))
    mapping = json.dumps({"name": "other", **parse(FIRST).to_json()})
    assert found() == found("genotype=cells/mine.json") == found(f"genotype={mapping}")
    assert found() != found(f'genotype="{SECOND}"')
    # A file names it, also where another folder has one of the same name.
    assert labels(load(tmp_path, "genotype=cells/mine.json"))[0] == "mine lr=0.05"
    (tmp_path / "mine.json").write_text(SECOND)
    both = labels(load(tmp_path, "genotype={grid: [mine.json, cells/mine.json]}", "retrain.lr=1.0"))
    assert both == [f"mine-{parse(SECOND).hash}", f"mine-{parse(FIRST).hash}"]


def test_published_names_and_protocols_fill_the_file(tmp_path: Path) -> None:
    text = (
        "name: tuned\ntrainable: retrain\nspace: darts\ndataset: digits\n"
        "genotype: {grid: [DARTS_V2, PC_DARTS_cifar]}\n"
        "retrain: {protocol: quick, weight_decay: {grid: [3.0e-4, 1.0e-3]}}\n"
    )
    experiment = load(tmp_path, text=text)
    assert labels(experiment)[0] == "DARTS_V2 weight_decay=0.0003"
    assert experiment.training is not None
    assert experiment.training.protocol == "quick"
    assert (experiment.swept["epochs"], experiment.swept["cells"]) == (20, 5)


def test_the_documented_example_is_one(tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "retraining.md"
    (text,) = re.findall(r"```yaml\n(name: .*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    experiment = load(tmp_path, text=text)
    assert (experiment.swept["val_share"], experiment.tune.seeds_per_trial) == (0.1, "all")
    assert len(factors.blocks(experiment)) == 2


def test_the_study_keeps_what_the_file_meant(tmp_path: Path) -> None:
    experiment = load(tmp_path, BOTH, "tune.scheduler={name: asha, grace_epochs: 1}")
    assert experiment.tune.seeds_per_trial == "all"
    dump(experiment, tmp_path / "resolved.yaml")
    assert load_resolved(tmp_path / "resolved.yaml") == experiment
    again = load_experiment(tmp_path / "resolved.yaml")
    assert [unit.rows for unit in units(again)] == [unit.rows for unit in units(experiment)]


@pytest.mark.parametrize(
    ("overrides", "share"),
    [
        ([], 0.1),
        (["retrain.val_share=0.3"], 0.3),
        # Nothing is compared by it: all images train, as for what a search found.
        (["retrain.lr=0.1"], 0.0),
        ([BOTH, "retrain.lr=0.1"], 0.0),
        ([BOTH, "retrain.lr=0.1", "tune.scheduler={name: asha, grace_epochs: 1}"], 0.1),
    ],
)
def test_images_are_held_out_wherever_configurations_are_compared(
    tmp_path: Path, overrides: list[str], share: float
) -> None:
    experiment = load(tmp_path, *overrides)
    assert experiment.swept["val_share"] == share
    assert experiment.metric_of("retrain") == ("val_accuracy" if share else "test_accuracy")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=darts"], "method has no meaning with trainable: retrain"),
        (["search.epochs=3"], "search has no meaning with trainable: retrain"),
        (["selection=magnitude"], "selection has no meaning with trainable: retrain"),
        (["oracle={name: nasbench201, path: x}"], "oracle has no meaning with trainable"),
        (["diagnostics.hessian={}"], "diagnostics has no meaning with trainable"),
        (["trainable=train"], "trainable must be search or retrain, got 'train'"),
        (["trainable=search", "method=darts"], "genotype has no meaning in a study of searches"),
        (["genotype=DARTS_V9"], "'DARTS_V9' is no file, no official genotype text and no name"),
        (["genotype=DARTS_V2"], "of space 'nasbench201', got DARTS_V2, which is of 'darts'"),
        (["genotype=3"], "genotype: It must be a name of `nas list genotypes`"),
        ([f'genotype={{choice: ["{FIRST}"]}}'], "one genotype or a grid of them, got a choice"),
        ([f'genotype={{grid: ["{FIRST}", "{FIRST}"]}}'], "are the same genotype"),
        (["space={grid: [nasbench201, darts]}"], "space must be one fixed space with trainable"),
        (["retrain.top_k=2"], "retrain.top_k has no meaning with trainable: retrain"),
        (["retrain.seeds=[1]"], "they are the study's own: write the top-level key seeds"),
        (["retrain.consistent=true"], "there is no search whose settings it could take"),
        (["retrain.val_share=0.0"], "retrain.val_share must be > 0, got 0: retrain.lr is swept"),
        (["retrain.val_share={grid: [0.1, 0.2]}"], "retrain.val_share cannot be swept"),
        (["retrain.lr=0.1", "tune.metric=val_loss"], "tune.metric has no effect"),
        (["tune.metric=test_accuracy"], "must be of the validation split, got 'test_accuracy'"),
        (["retrain.lr={grid: [0.1, -1.0]}"], "retrain.lr must be > 0, got -1.0"),
        (["retrain.lr={uniform: [0.1, 0.2]}"], "tune.num_samples must be given"),
        (["retrain={grid: [1]}"], "retrain must be settings, got"),
        (["tune.scheduler={name: asha, grace_epochs: 4}"], r"must be < retrain.epochs \(4\)"),
        (["keep=best_9"], "at most best_4, the number of retrainings"),
        (["retrain.protocol=quik"], "protocols has no plug-in 'quik'"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides)


def test_a_missing_genotype_is_named(tmp_path: Path) -> None:
    text = "\n".join(line for line in YAML.splitlines() if not line.startswith("genotype"))
    with pytest.raises(ConfigError, match=r"genotype is missing\. An experiment with trainable"):
        load(tmp_path, text=text)


def test_a_search_points_to_the_other_kind_of_study(tmp_path: Path) -> None:
    text = "name: a\nspace: nasbench201\ndataset: digits\nmethod: darts\n"
    with pytest.raises(ConfigError, match="with trainable: retrain in genotype and retrain"):
        load(tmp_path, text=f"{text}retrain: {{lr: {{grid: [0.1]}}}}\n")


def test_batches_and_networks_are_checked_before_the_run(tmp_path: Path) -> None:
    # 1,437 images, a tenth of them held out: 1,293 train.
    check_data(load(tmp_path, "retrain.batch_size=1293"))
    with pytest.raises(ConfigError, match=r"retrain.batch_size must be <= 1293.*got 1294"):
        check_data(load(tmp_path, "retrain.batch_size={grid: [8, 1294]}"))
    with pytest.raises(ConfigError, match="holds out 1437 of the 1437"):
        check_data(load(tmp_path, "retrain.val_share=0.9999"))
    check_methods(load(tmp_path))
    with pytest.raises(ConfigError, match=r"retrain.stem cannot be imagenet in space nasbench201"):
        check_methods(load(tmp_path, "retrain.stem={grid: [cifar, imagenet]}"))


@pytest.mark.parametrize("genotype", ["DARTS_V2", {"grid": ["DARTS_V2", {"space": "darts"}]}])
def test_an_editor_takes_such_a_file(tmp_path: Path, genotype: Any) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    document = {
        "name": "a",
        "space": "darts",
        "dataset": "digits",
        "retrain": {"lr": {"grid": [1]}},
    }
    assert not validator.is_valid(document)
    assert validator.is_valid({**document, "trainable": "retrain", "genotype": genotype})
    assert validator.is_valid(json.loads(json.dumps(load(tmp_path, BOTH).resolved())))


def test_a_dry_run_counts_retrainings(tmp_path: Path) -> None:
    found = estimate(load(tmp_path, "seeds=[0]"), tmp_path)
    assert (found.stage, len(found.trials)) == ("retrain", 2)
    assert found.total_s > 0
    assert sorted(found.memory_bytes) == sorted(found.seconds_per_epoch)
    assert all(size > 10**8 for size in found.memory_bytes.values())  # a process with torch
    assert max(found.memory_bytes.values()) < (found.memory_there or 0)


def test_such_a_study_is_not_retrained(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    with pytest.raises(Exception, match="put the genotype there under `genotype`"):
        retrain_genotype(parse(FIRST), experiment, tmp_path, command="", reporter=None)  # type: ignore[arg-type]
    study = Study.create(tmp_path / "studies", experiment, "nas run tuned.yaml")
    with pytest.raises(Exception, match="go on with it by `nas resume tuned`"):
        retrain_study(study, command="", reporter=None)  # type: ignore[arg-type]


def test_a_block_reports_validation_where_images_are_held_out() -> None:
    config: dict[str, Any] = {
        "genotype": parse(FIRST).to_json(),
        "space": "nasbench201",
        "dataset": "digits",
        "retrain": {"epochs": 2, "batch_size": 256, "channels": 2, "cells": 1, "val_share": 0.1},
        "seeds": [0, 1],
        "device": "cpu",
    }
    result = RetrainTrainable(config).step()
    each = [result["seeds"][seed]["val_accuracy"] for seed in ("0", "1")]
    assert result["val_accuracy"] == pytest.approx(sum(each) / 2)
    config["retrain"]["val_share"] = 0.0
    assert "val_accuracy" not in RetrainTrainable(config).step()


def compared(label: str, seed: int, val: float, test: float, status: str = "finished") -> Row:
    row = retrain_row("none", seed, test, {"lr": label}, label=label, config_id=label)
    row.curve[-1]["val_accuracy"] = val
    return Row(**{**vars(row), "status": status})


ROWS = [
    compared("lr=1", 0, 0.8, 0.95),
    compared("lr=1", 1, 0.9, 0.97),
    compared("lr=2", 0, 0.9, 0.7),
    compared("lr=2", 1, 0.9, 0.8),
    compared("lr=2", 2, 0.1, 0.1, "stopped"),
]


def test_lines_are_configurations_and_the_test_split_sorts_nothing() -> None:
    lines = tabulate_trainings(ROWS)
    assert [line.label for line in lines] == ["lr=2", "lr=1"]
    assert lines[0].cells()[:2] == ("lr=2", "2 of 3")
    assert lines[0].accuracy.mean == pytest.approx(0.9)
    assert lines[0].test_accuracies == {0: 0.7, 1: 0.8}
    assert columns(lines)[3] == "test accuracy %, mean [95 %]"
    assert any("held-out training images" in line for line in caption(lines))


def test_the_study_in_mlflow_is_judged_by_validation() -> None:
    outcomes = [
        Outcome(row.key, "run", row.label, row.label, "retrain", row.status, row.genotype_hash,
                row.value("test_accuracy"), 1.0, row.value("val_accuracy"))
        for row in ROWS
    ]  # fmt: skip
    # The first has the best test accuracy, the second the best validation accuracy.
    points = study_totals([outcomes[0], outcomes[3]], 0)
    totals = {point.metric: point.value for point in points}
    assert (totals["study/best_val_accuracy"], totals["study/best_test_accuracy"]) == (0.9, 0.8)
    note = study_note("tuned", outcomes, "1")
    lines = [line for line in note.splitlines() if line.startswith("| lr")]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| lr=2", "2 of 3", "0.9000"],
        ["| lr=1", "2", "0.8500"],
    ]


def test_the_report_of_a_folder(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "studies", load(tmp_path), "nas run tuned.yaml")
    for row in ROWS:
        study.ledger.write(row)
    text = write_report(study).markdown.read_text()
    assert "| configuration | seeds | val accuracy %, mean [95 %] |" in text
    assert "| genotype | configuration | seed |" in text
    assert "of the supernet" not in text
    best = study.summary().best
    assert best is not None
    assert best.value("val_accuracy") == 0.9


def test_optuna_and_asha_never_see_the_test_split(tmp_path: Path, nas_here: here.Nas) -> None:
    file = tmp_path / "tuned.yaml"
    text = YAML.replace("{grid: [0.05, 0.2]}", "{loguniform: [0.001, 0.5]}")
    file.write_text(
        f"{text}tune: {{num_samples: 4, searcher: optuna, scheduler: {{name: asha, "
        f"grace_epochs: 1, reduction_factor: 2}}, max_concurrent: 1}}\nkeep: best_1\n{here.ON_RAY}"
    )
    code, said = nas_here("run", file, root=tmp_path)
    assert code == 0, said
    study = Study.open("tuned", tmp_path)
    rows = study.rows()
    assert {row.stage for row in rows} == {"retrain"}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.config_id, []).append(row)
    assert len(groups) == 4
    for group in groups.values():
        assert {row.seed for row in group} == {0, 1}
        assert len({(row.status, row.epochs_done) for row in group}) == 1
        assert set(group[0].params) == {"retrain.lr"}
    reads = [json.loads(line) for line in study.test_reads.read_text().splitlines()]
    finished = [row for row in rows if row.status == "finished"]
    stopped = [row for row in rows if row.status == "stopped"]
    assert finished
    assert stopped
    assert sorted(read["key"] for read in reads) == sorted(row.key for row in finished)
    for row in rows:
        assert all("val_accuracy" in entry for entry in row.curve)
        assert [row.status == "finished"] == [row.value("test_accuracy") is not None]
    kept = [row for row in finished if (study.path / str(row.final)).is_file()]
    best = max(finished, key=lambda row: row.value("val_accuracy") or 0.0)
    assert [row.value("val_accuracy") for row in kept] == [best.value("val_accuracy")]
    before = drive.results(study.path)
    assert nas_here("resume", "tuned", root=tmp_path)[0] == 0
    assert drive.results(study.path) == before


def test_a_sweep_that_was_cut_off_goes_on_as_if_it_had_not_been(
    tmp_path: Path, nas_here: here.Nas
) -> None:
    file = tmp_path / "tuned.yaml"
    text = YAML.replace("epochs: 4", "epochs: 12").replace("seeds: [0, 1]", "seeds: [3]")
    file.write_text(f"{text}tune: {{max_concurrent: 1}}\n{here.ON_RAY}")
    checkpoints = tmp_path / "tuned" / "checkpoints"

    begun: dict[str, list[dict[str, Any]]] = {}

    def cut_off() -> None:
        for path in checkpoints.glob("*/row.json"):
            row = json.loads(path.read_text())
            if row["epochs_done"] >= 2:
                begun[row["key"]] = row["curve"]
                raise KeyboardInterrupt

    code, said = nas_here("run", file, root=tmp_path, watch=cut_off)
    assert code == 130, said
    study = Study.open("tuned", tmp_path)
    state = study_state(study)
    assert state["state"] == "incomplete"
    assert state["retrain"].get("interrupted")
    code, said = nas_here("resume", "tuned", root=tmp_path)
    assert code == 0, said
    rows = study.rows()
    assert [row.status for row in rows] == ["finished", "finished"]
    curves = {row.key: row.curve for row in rows}
    # Epochs that were done are not run again: their times stay too.
    assert begun
    assert all(curves[key][: len(curve)] == curve for key, curve in begun.items())
    ignore = {*TIME_FIELDS, "ended"}
    for row in rows:
        alone = RetrainTrial(
            genotype=parse(FIRST),
            seed=3,
            **{kind: row.settings[kind] for kind in ("space", "dataset", "retrain")},
        )
        alone.run()
        assert [{k: v for k, v in entry.items() if k not in ignore} for entry in row.curve] == [
            {k: v for k, v in entry.items() if k not in ignore} for entry in alone.curve
        ]


def test_a_study_that_compares_nothing_can_be_opened_again(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(
        "name: plain\ntrainable: retrain\ngenotype: DARTS_V2\nspace: darts\ndataset: digits\n"
        "retrain: {epochs: 1, channels: 4, cells: 2, auxiliary_weight: 0.0}\n"
    )
    experiment = load_experiment(tmp_path / "plain.yaml")
    dump(experiment, tmp_path / "experiment.yaml")
    # tune.metric has no effect without validation images, and is refused where it is written.
    assert "metric" not in experiment.resolved()["tune"]
    assert load_resolved(tmp_path / "experiment.yaml") == experiment
