"""`nas export`: which retraining is meant, what is kept, and the page that tells of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import exporting
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError, StudyError
from orchestrator.ledger import Row
from orchestrator.runner import _Driver
from orchestrator.study import Study
from spaces.core.text import parse
from tests.orchestrator.fake_study import CELL, YAML, make_study, retrain_row, search_row
from tests.orchestrator.test_cli import Nas, nas  # noqa: F401 (a fixture)
from trainables.retrain import RetrainTrial
from trainables.state import save_state

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
CONV, SKIP = (parse(CELL.format(name)).hash for name in ("nor_conv_3x3", "skip_connect"))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of two genotypes with two retrainings each, whose weights are stored."""
    made = make_study(tmp_path / "studies")
    # By validation the skips are better, by the test split the convolutions.
    made.ledger.write(search_row("darts", 0, [0.7]))
    made.ledger.write(search_row("darts", 1, [0.9], operation="skip_connect"))
    for operation, test in (("nor_conv_3x3", 0.99), ("skip_connect", 0.95)):
        for seed in (1, 0):
            write(made, retrain_row(operation, seed, test))
    return made


def write(study: Study, row: Row) -> Row:
    row = replace(row, final=f"checkpoints/{row.key}/final.pt")
    (study.path / str(row.final)).parent.mkdir(parents=True)
    (study.path / str(row.final)).write_bytes(b"weights")
    study.ledger.write(row)
    return row


def meant(text: str, study: Study) -> tuple[str | None, int]:
    _, row = exporting.find_run(text, study.root)
    return row.genotype_hash, row.seed


def test_a_study_means_its_best_by_validation_and_never_by_test(study: Study) -> None:
    assert meant("tiny", study) == (SKIP, 0)
    assert meant(str(study.path), study) == (SKIP, 0)


def test_a_held_out_split_of_the_retrainings_decides_before_the_searches(study: Study) -> None:
    for row, value in zip(study.rows("retrain"), (0.5, 0.8, 0.7, 0.6), strict=True):
        last = {**row.curve[-1], "val_accuracy": value}
        study.ledger.write(replace(row, curve=[row.curve[0], last]))
    order = exporting.best_first(study.rows("retrain"), study.rows("search"))
    assert [row.value("val_accuracy") for row in order] == [0.8, 0.7, 0.6, 0.5]


def test_a_key_or_a_genotype_can_be_named(study: Study) -> None:
    row = study.rows("retrain")[0]
    assert exporting.find_run(f"tiny:{row.key[:10]}", study.root)[1].key == row.key
    assert meant(f"tiny:{CONV[:8]}", study) == (CONV, 0)
    assert meant(CONV, study) == (CONV, 0)
    assert meant(CELL.format("nor_conv_3x3"), study) == (CONV, 0)


def test_what_names_nothing_is_explained(study: Study) -> None:
    with pytest.raises(StudyError, match=r"names no retrained network.* has tiny"):
        exporting.find_run("tinny", study.root)
    with pytest.raises(StudyError, match=r"0 finished retrainings .*'zz'.* It has [0-9a-f]{16} \("):
        exporting.find_run("tiny:zz", study.root)
    with pytest.raises(StudyError, match=r"no study .* retraining of 0123456789ab"):
        exporting.find_run("0123456789ab", study.root)


def test_a_genotype_of_two_studies_is_asked_for(study: Study, tmp_path: Path) -> None:
    other = make_study(tmp_path / "studies", YAML.replace("name: tiny", "name: other"))
    write(other, retrain_row("nor_conv_3x3", 0, 0.5))
    with pytest.raises(StudyError, match=r"in 2 studies. Name one: other:[0-9a-f]{16}, tiny:"):
        exporting.find_run(CONV, study.root)


def test_weights_that_are_gone_are_said_to_be(study: Study) -> None:
    rows = study.rows("retrain")
    for row in rows:
        (study.path / str(row.final)).unlink()
    with pytest.raises(StudyError, match=r"4 finished retrainings .* none \(retrain.keep: all\)"):
        exporting.find_run("tiny", study.root)
    with pytest.raises(StudyError, match=r"its weights, final\.pt, are not stored"):
        exporting.find_run(f"tiny:{rows[0].key}", study.root)


@pytest.mark.parametrize(("keep", "left"), [("all", 4), ("best_3", 3), ("none", 0)])
def test_the_experiment_says_which_weights_are_kept(keep: str, left: int, tmp_path: Path) -> None:
    text = YAML.replace("retrain: {", f"retrain: {{keep: {keep}, ")
    made = make_study(tmp_path / "studies", text)
    made.ledger.write(search_row("darts", 1, [0.9], operation="skip_connect"))
    for operation in ("nor_conv_3x3", "skip_connect"):
        for seed in (0, 1):
            write(made, retrain_row(operation, seed, 0.9))
    _Driver(Study.open(made.path), None, "")._keep()  # type: ignore[arg-type]
    kept = exporting.stored(made)
    assert len(kept) == left
    if left == 3:
        assert [row.seed for row in kept if row.genotype_hash == CONV] == [0]


def test_a_wrong_keep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML.replace("retrain: {", "retrain: {keep: best, "))
    with pytest.raises(ConfigError, match=r"retrain.keep must be all, none or best_K .* 'best'"):
        load_experiment(tmp_path / "a.yaml")


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Study, RetrainTrial]:
    """A study with one network that was really trained."""
    made = make_study(tmp_path / "studies")
    row = retrain_row("skip_connect", 0, 0.9)
    settings = {"epochs": 1, "batch_size": 256, "channels": 2, "cells": 1}
    genotype = parse(CELL.format("skip_connect"))
    trial = RetrainTrial(genotype=genotype, space="nasbench201", dataset="digits", retrain=settings)
    trial.run()
    row = write(made, row)
    save_state(trial.final_state(), made.path / str(row.final))
    return made, trial


def test_the_command_writes_a_file_and_says_what_is_in_it(
    nas: Nas,  # noqa: F811
    trained: tuple[Study, RetrainTrial],
    tmp_path: Path,
) -> None:
    code, out, err = nas("export", "tiny", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["file"] == f"tiny-{SKIP}-seed0.pt"
    assert (told["genotype_hash"], told["difference"]) == (SKIP, 0.0)
    about = json.loads(torch.load(tmp_path / told["file"], weights_only=True)["about"])
    assert (about["study"], about["key"], about["test_accuracy"]) == ("tiny", told["key"], 0.9)
    code, out, err = nas("export", f"tiny:{told['key']}", "-o", "deep/cell.pt")
    assert code == 0
    assert re.search(r"^checked  logits differ by 0\.0e\+00; at most", out, re.MULTILINE)
    assert (tmp_path / "deep" / "cell.pt").is_file()
    code, out, err = nas("export", "tiny", "-o", "cell.pt2", "--json")
    assert json.loads(out)["format"] == "pt2"


def test_the_command_explains_what_it_cannot_find(nas: Nas, study: Study) -> None:  # noqa: F811
    code, out, err = nas("export", "nothing")
    assert (code, out) == (2, "")
    assert "names no retrained network" in err


def test_the_python_of_the_page_rebuilds_the_network(
    nas: Nas,  # noqa: F811
    trained: tuple[Study, RetrainTrial],
    tmp_path: Path,
) -> None:
    _, trial = trained
    assert nas("export", "tiny", "-o", "cell.pt")[0] == 0
    (text,) = re.findall(r"```python\n(import json\n.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert len(text.split("\n")) <= 20
    scope: dict[str, Any] = {"images": torch.randn(3, 1, 8, 8)}
    exec(compile(text, str(DOCS), "exec"), scope)
    trial.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(scope["logits"], trial.network(scope["images"])[0])
