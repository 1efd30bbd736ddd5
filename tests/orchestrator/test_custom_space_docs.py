"""The worked example of docs/custom_space.md: its very files are searched and retrained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from orchestrator import factors
from orchestrator.cli import main
from orchestrator.config import check_methods, load_experiment
from spaces.core import plugins
from spaces.core.genotype import Genotype
from trainables.retrain import RetrainTrial
from trainables.search import SearchTrial

PAGE = Path(__file__).resolve().parents[2] / "docs" / "custom_space.md"
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes the files of the page, and names their folder to the plug-in look-up."""
    files = FILE.findall(PAGE.read_text(encoding="utf-8"))
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, str(tmp_path / "my"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def test_all_files_of_the_page_are_found(folder: Path) -> None:
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == [
        "cells.yaml",
        "gated.yaml",
        "my/operations/gated_conv_3x3.py",
        "my/spaces/gated_cells.py",
    ]
    assert "gated_conv_3x3" in plugins.available("operations")
    assert plugins.describe("spaces", "gated_cells").summary.startswith("Cells whose every node")


@pytest.mark.parametrize("name", ["gated.yaml", "cells.yaml"])
def test_the_experiments_search_and_retrain(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_experiment(folder / name)
    check_methods(experiment)
    found: Genotype | None = None
    for configuration in factors.configurations(experiment):
        settings = configuration.settings
        parts = {key: settings[key] for key in ("space", "dataset", "method", "selection")}
        trial = SearchTrial(**parts, search=settings["search"] | {"batch_size": 256})
        trial.run_epoch()
        found = trial.genotype
    assert found is not None
    assert experiment.retrain is not None
    training = RetrainTrial(
        genotype=found,
        space=settings["space"],
        dataset=settings["dataset"],
        retrain={"epochs": 1, "channels": 4, "cells": 3, "batch_size": 256},
    )
    training.run_epoch()
    assert 0 < training.curve[-1]["train_accuracy"] <= 1
    Path("genotype.json").write_text(json.dumps(found.to_json()))
    if name == "gated.yaml":
        names = {edge.operation for cell in found.cells for edge in cell.edges}
        assert names <= {
            *("skip_connect", "gated_conv_3x3", "avg_pool_3x3", "sep_conv_3x3", "max_pool_3x3")
        }
        sizes = ["--channels", "8", "--cells", "3"]
        with pytest.raises(SystemExit) as ended:
            main(["--plugins", "my", "show", "genotype.json", *sizes, "--json"])
        assert ended.value.code == 0
        document = json.loads(capsys.readouterr().out)
        assert document["hash"] == found.hash
        assert document["params"] > 0
