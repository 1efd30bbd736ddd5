"""One epoch of a search, and one of the retraining that follows, on real colour images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainables.retrain import RetrainTrial
from trainables.search import SearchTrial

SMALL = {
    "nasbench201": {"name": "nasbench201", "channels": 4, "cells_per_stage": 1},
    "darts": {"name": "darts", "channels": 4, "cells": 3},
}


@pytest.mark.parametrize("space", list(SMALL))
def test_an_epoch_of_search_and_of_retraining(space: str, shared_data: Path) -> None:
    folder = shared_data / "cifar10-small"
    dataset: dict[str, Any] = {
        "name": "parquet",
        "train": str(folder / "train.parquet"),
        "test": str(folder / "test.parquet"),
        "limit": 256,
    }
    search = SearchTrial(
        space=SMALL[space], dataset=dataset, method="sdarts_rs", search={"epochs": 1}
    )
    entry = search.run_epoch()
    # ten classes: an untrained network is near ln 10 = 2.30
    assert entry["train_loss"] < 2.8
    assert not search.diverged
    retrain = RetrainTrial(
        genotype=search.genotype,
        space=SMALL[space],
        dataset=dataset,
        retrain={"epochs": 1, "channels": 4, "cells": 1 if space == "nasbench201" else 3},
    )
    assert 0 <= retrain.run()["test_accuracy"] <= 1
    assert retrain.test_reads == 1
