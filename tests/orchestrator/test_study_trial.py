"""What a worker leaves in the study folder, without a Ray process: states, rows, test reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.ledger import Ledger
from orchestrator.study_trial import Replay, StudyRetrain, StudySearch
from trainables.block import Block
from trainables.search import TIME_FIELDS

KEYS = {"0": "0" * 16, "1": "1" * 16}
SPACE = {"name": "nasbench201", "channels": 2, "cells_per_stage": 1}


def search_config(study: Path, seeds: tuple[int, ...] = (0,), epochs: int = 2) -> dict[str, Any]:
    return {
        "space": SPACE,
        "dataset": {"name": "digits"},
        "method": {"name": "darts"},
        "selection": {"name": "magnitude"},
        "search": {"epochs": epochs, "batch_size": 256},
        "device": "cpu",
        "seeds": list(seeds),
        "unit": unit(study, "search", seeds, epochs),
    }


def unit(study: Path, stage: str, seeds: tuple[int, ...], epochs: int) -> dict[str, Any]:
    return {
        "study": str(study),
        "stage": stage,
        "rows": {str(seed): KEYS[str(seed)] for seed in seeds},
        "config_id": "c" * 10,
        "block": 0,
        "params": {},
        "label": "darts",
        "epochs": epochs,
        "git": "abc",
        "per_trial": {"cpu": 2.0, "gpu": 0.5},
    }


def timeless(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k not in {*TIME_FIELDS, "ended"}} for e in curve]


def test_each_epoch_leaves_a_state_and_the_end_leaves_a_row(tmp_path: Path) -> None:
    block = StudySearch(search_config(tmp_path))
    folder = tmp_path / "checkpoints" / KEYS["0"]
    assert json.loads((folder / "row.json").read_text())["status"] == "running"
    block.step()
    assert (folder / "state.pt").is_file()
    assert Ledger(tmp_path / "ledger").keys() == []
    assert block.step()["done"]
    row = Ledger(tmp_path / "ledger").read(KEYS["0"])
    assert row is not None
    assert (row.status, row.epochs_done, row.epochs_total) == ("finished", 2, 2)
    assert [path.name for path in folder.iterdir()] == ["final.pt"]
    assert torch.load(folder / "final.pt", weights_only=True)["alphas"]
    seconds = sum(entry["epoch_time_s"] for entry in row.curve)
    assert row.cost == pytest.approx(
        {"time_s": seconds, "cpu_hours": seconds * 2 / 3600, "gpu_hours": seconds * 0.5 / 3600}
    )
    assert row.environment["git"] == "abc"
    assert row.environment["fingerprint"]["threads"] == 1
    assert row.environment["engine"].startswith("eager-cpu in float32: on a CPU")


def test_a_new_process_goes_on_from_the_last_epoch_bit_for_bit(tmp_path: Path) -> None:
    whole = StudySearch(search_config(tmp_path / "whole", epochs=3))
    for _ in range(3):
        whole.step()
    StudySearch(search_config(tmp_path / "cut", epochs=3)).step()
    again = StudySearch(search_config(tmp_path / "cut", epochs=3))
    assert again.trials[0].epoch == 1
    reported = [again.step() for _ in range(3)]
    assert [result["epoch"] for result in reported] == [1, 2, 3]
    rows = [Ledger(tmp_path / name / "ledger").read(KEYS["0"]) for name in ("whole", "cut")]
    assert rows[0] is not None
    assert rows[1] is not None
    assert timeless(rows[0].curve) == timeless(rows[1].curve)
    assert not rows[1].resumed_elsewhere


def test_a_finished_row_is_reported_again_and_never_run(tmp_path: Path) -> None:
    first = StudySearch(search_config(tmp_path))
    results = [first.step(), first.step()]
    again = StudySearch(search_config(tmp_path))
    assert isinstance(again.trials[0], Replay)
    replayed = [again.step(), again.step()]
    for one, other in zip(results, replayed, strict=True):
        assert one["val_accuracy"] == other["val_accuracy"]
        assert one["done"] == other["done"]


def test_killed_between_the_last_state_and_the_row_only_the_row_is_written(tmp_path: Path) -> None:
    block = StudySearch(search_config(tmp_path))
    block.step()
    block._end = lambda seed, trial: None  # type: ignore[method-assign]  # the kill
    block.step()
    assert Ledger(tmp_path / "ledger").keys() == []
    StudySearch(search_config(tmp_path))
    assert Ledger(tmp_path / "ledger").has_finished(KEYS["0"])


def test_a_damaged_state_is_put_aside_and_the_search_runs_again(tmp_path: Path) -> None:
    StudySearch(search_config(tmp_path)).step()
    state = tmp_path / "checkpoints" / KEYS["0"] / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    again = StudySearch(search_config(tmp_path))
    assert again.trials[0].epoch == 0
    assert state.with_suffix(".damaged").is_file()


@pytest.mark.parametrize("beside", [False, True])
def test_out_of_memory_ends_the_seed_and_its_sibling_goes_on(tmp_path: Path, beside: bool) -> None:
    block = StudySearch(search_config(tmp_path, seeds=(0, 1)))
    block.block = Block(side_by_side=beside)

    def no_room(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    block.trials[0]._bilevel.step = no_room  # type: ignore[attr-defined]
    block.step()
    assert block.step()["done"]
    ledger = Ledger(tmp_path / "ledger")
    statuses = {key: ledger.read(key) for key in KEYS.values()}
    assert [row.status for row in statuses.values() if row] == ["oom", "finished"]
    assert "2.00 GiB" in str(statuses[KEYS["0"]].error)  # type: ignore[union-attr]


def test_a_block_that_runs_side_by_side_leaves_each_seed_s_own_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        alone = StudySearch(search_config(tmp_path / "alone", seeds=(seed,)))
        alone.step()
        alone.step()

    def in_block() -> StudySearch:
        block = StudySearch(search_config(tmp_path / "block", seeds=(0, 1)))
        block.block = Block(side_by_side=True)
        return block

    block = in_block()
    block.step()
    kept, taken = block.advance, []

    def killed(seed: int, *more: Any) -> None:
        if taken:
            raise KeyboardInterrupt
        taken.append(seed)
        kept(seed, *more)

    block.advance = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        block.step()
    again = in_block()
    assert [trial.epoch for trial in again.trials.values()] == [2, 1]
    assert [again.step()["done"] for _ in range(2)] == [False, True]
    for key in KEYS.values():
        rows = [Ledger(tmp_path / name / "ledger").read(key) for name in ("block", "alone")]
        assert rows[0] is not None
        assert rows[1] is not None
        assert timeless(rows[0].curve) == timeless(rows[1].curve)
        assert not rows[0].resumed_elsewhere


def test_after_its_end_a_seed_counts_as_it_ended(tmp_path: Path) -> None:
    """Out of memory is the worst there is; a search that a rule ended stands where it ended."""
    block = StudySearch(search_config(tmp_path, seeds=(0, 1)))
    first = block.step()["seeds"]["0"]["val_accuracy"]

    def no_room() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for ended, expected in ((False, 0.0), (True, first)):
        block.trials[0] = Replay(block.trials[0].curve[:1], ended_early=ended)
        block.reported = 1
        result = block.step()
        other = result["seeds"]["1"]["val_accuracy"]
        assert result["val_accuracy"] == pytest.approx((expected + other) / 2)
    block = StudySearch(search_config(tmp_path / "again", seeds=(0, 1)))
    block.step()
    block.trials[0].run_epoch = no_room  # type: ignore[method-assign]
    result = block.step()
    assert result["val_accuracy"] == pytest.approx(result["seeds"]["1"]["val_accuracy"] / 2)
    # The row of a search that a rule ended is reported again in the same way.
    finished = StudySearch(search_config(tmp_path, seeds=(1,)))
    assert isinstance(finished.trials[1], Replay)
    assert finished.trials[1].ended_early


def test_a_seed_stands_at_its_end_while_another_has_gone_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = search_config(tmp_path, seeds=(0, 1), epochs=3)
    rule = {"name": "eigenvalue", "window": 1, "delta": 1, "every": 1, "start": 0}
    config["method"] = {"name": "darts", "early_stop": rule | {"then": "regularize"}}
    block = StudySearch(config)
    other = block.trials[1]._bilevel  # type: ignore[attr-defined]

    def measured(bilevel: Any, data: Any, at: Any, settings: Any) -> dict[str, float]:
        # The second seed alone sees a jump, once: after epoch 1, counted from 0.
        jump = bilevel is other and at.epoch == 1 and bilevel.weight_decay < 5e-4
        return {"hessian_eigenvalue": 9.0 if jump else 1.0}

    monkeypatch.setattr("trainables.early_stopping.eigenvalue.probe_hessian", measured)
    results = []
    while not results or not results[-1]["done"]:
        results.append(block.step())
    assert len(results) == 4
    first, second = (results[index]["seeds"]["0"]["val_accuracy"] for index in (2, 3))
    assert first == second
    both = [results[3]["seeds"][seed]["val_accuracy"] for seed in ("0", "1")]
    assert results[3]["val_accuracy"] == pytest.approx(sum(both) / 2)
    rows = [block.ledger.read(KEYS[seed]) for seed in ("0", "1")]
    assert [(row.status, row.epochs_done, row.epochs_total) for row in rows if row] == [
        ("finished", 3, 3),
        ("finished", 4, 3),
    ]


def test_another_error_is_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    block = StudySearch(search_config(tmp_path))

    def broken() -> dict[str, Any]:
        raise RuntimeError("shape mismatch")

    block.trials[0].run_epoch = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        block.step()
    assert Ledger(tmp_path / "ledger").keys() == []


def test_a_retraining_notes_its_one_reading_of_the_test_split(tmp_path: Path) -> None:
    search = StudySearch(search_config(tmp_path))
    genotype = search.trials[0].genotype  # type: ignore[attr-defined]
    config = {
        "genotype": genotype.to_json(),
        "space": SPACE,
        "dataset": {"name": "digits"},
        "retrain": {"epochs": 1, "channels": 2, "cells": 1, "batch_size": 256},
        "device": "cpu",
        "seeds": [1],
        "unit": {**unit(tmp_path, "retrain", (1,), 1), "genotype_hash": genotype.hash},
    }
    for _ in range(2):  # the second time it is reported from the ledger
        assert StudyRetrain(config).step()["done"]
    (line,) = (tmp_path / "test_reads.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert (noted["key"], noted["genotype_hash"], noted["seed"]) == (KEYS["1"], genotype.hash, 1)
    row = Ledger(tmp_path / "ledger").read(KEYS["1"])
    assert row is not None
    assert row.genotype_hash == genotype.hash
    assert 0 <= row.curve[-1]["test_accuracy"] <= 1


@pytest.mark.parametrize("name", ["state.pt", "row.json"])
def test_a_folder_in_the_place_of_a_file_is_put_aside_and_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    StudySearch(search_config(tmp_path)).step()
    file = tmp_path / "checkpoints" / KEYS["0"] / name
    file.unlink()
    file.mkdir()
    again = StudySearch(search_config(tmp_path))
    assert again.trials[0].epoch == (0 if name == "state.pt" else 1)
    assert file.with_suffix(".damaged").is_dir()
    assert f"{name} cannot be used" in caplog.text
    again.step()
    assert file.is_file()


def test_a_state_that_holds_code_runs_none_and_the_search_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    StudySearch(search_config(tmp_path)).step()
    state = tmp_path / "checkpoints" / KEYS["0"] / "state.pt"
    torch.save({"kind": "search", "evil": Evil(str(tmp_path / "ran"))}, state)
    again = StudySearch(search_config(tmp_path))
    assert again.trials[0].epoch == 0
    assert not (tmp_path / "ran").exists()
    assert "state.pt cannot be used" in caplog.text


class Evil:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)
