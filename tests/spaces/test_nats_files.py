"""Files of NATS-Bench, written here as the package nats_bench 1.8 writes them."""

from __future__ import annotations

import bz2
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spaces.core import nats_files
from spaces.core.errors import OracleError
from spaces.core.nats_files import nats_columns
from spaces.core.text import parse
from spaces.oracles.nasbench201 import Config, load
from tests.spaces.tables import CONV, accuracy201, cell201, columns201

CELLS = [cell201((CONV,) * n + ("none",) * (6 - n)) for n in (2, 0, 5)]
SETS = {
    "cifar10-valid": ("train", "x-valid", "ori-test"),
    "cifar10": ("train", "ori-test"),
    "cifar100": ("train", "x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("train", "x-valid", "x-test", "ori-test"),
}


def trial(dataset: str, seed: int, level: float, epochs: int) -> dict[str, Any]:
    """Return the state of one training: accuracies grow to a level of their set and seed.

    At the last epoch of a set it is the level, and 1 more for each letter of the data set's name,
    0.1 for each of the set's, and 0.01 for seed 999 rather than 777.
    """
    names = SETS[dataset][1:]
    ends = {s: level + len(dataset) + 0.1 * len(s) + (0.01 if seed == 999 else 0) for s in names}
    places = [(name, epoch) for name in names for epoch in range(epochs)]
    return {
        "name": dataset,
        "net_state_dict": None,
        "train_acc1es": {epoch: 1.0 for epoch in range(epochs)},
        "train_acc5es": None,
        "train_losses": {epoch: 1.0 for epoch in range(epochs)},
        "train_times": OrderedDict((epoch, 10.0 + len(dataset)) for epoch in range(epochs)),
        "arch_config": {"channel": 16, "num_cells": 5, "arch_str": "", "class_num": 10},
        "params": 1.5 if seed == 888 else 7.0,
        "flop": 20.25,
        "seed": seed,
        "epochs": epochs,
        "latency": [0.1],
        "eval_names": list(names),
        "eval_acc1es": {f"{s}@{e}": ends[s] - (epochs - 1 - e) for s, e in places},
        "eval_times": {f"{s}@{e}": 1.0 for s, e in places},
        "eval_losses": {f"{s}@{e}": 1.0 for s, e in places},
    }


def architecture(index: int, text: str, level: float, **changes: Any) -> dict[str, Any]:
    """Return the content of the file of one architecture."""
    seeds = {name: [777, 888, 999] if name == "cifar10-valid" else [777, 999] for name in SETS}
    return {
        epochs: {
            "arch_index": index,
            "arch_str": text,
            "all_results": {
                (name, seed): {**trial(name, seed, level - (epochs == "12"), 2), **changes}
                for name, own in seeds.items()
                for seed in own
            },
            "dataset_seed": seeds,
            "clear_net_done": True,
        }
        for epochs in ("12", "200")
    }


def save(content: Any, path: Path) -> Path:
    with bz2.BZ2File(path, "wb") as file:
        pickle.dump(content, file, protocol=4)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
    made.mkdir()
    save({"meta_archs": CELLS, "total_archs": 3}, made / "meta.pickle.pbz2")
    for index, text in enumerate(CELLS):
        save(architecture(index, text, 10.0 * index), made / f"{index:06d}.pickle.pbz2")
    return made


def check(columns: dict[str, Any]) -> None:
    """Compare with what `trial` says, after 200 epochs, mean over seeds."""
    assert columns["arch"].tolist() == CELLS
    levels = np.array([0.0, 10.0, 20.0])
    two, three = 0.005, 0.01 / 3  # one seed of two, or of three, has 0.01 more
    expected = {
        "cifar10_test": levels + 7 + 0.8 + two,
        "cifar10_val": levels + 13 + 0.7 + three,
        "cifar10_train_seconds": [2 * 23.0] * 3,
        "cifar100_test": levels + 8 + 0.6 + two,
        "cifar100_val": levels + 8 + 0.7 + two,
        "cifar100_train_seconds": [2 * 18.0] * 3,
        "imagenet16_test": levels + 14 + 0.6 + two,
        "imagenet16_val": levels + 14 + 0.7 + two,
        "imagenet16_train_seconds": [2 * 24.0] * 3,
        "params_m": [1.5] * 3,  # that of seed 888, since the others differ from it
        "flops_m": [20.25] * 3,
    }
    assert set(columns) == {"arch", *expected}
    for name, values in expected.items():
        assert columns[name].tolist() == pytest.approx(list(values)), name


def test_a_folder_gives_the_columns_of_every_data_set(folder: Path) -> None:
    check(nats_columns(str(folder)))


def test_the_one_file_gives_the_same(tmp_path: Path) -> None:
    content = {
        "meta_archs": CELLS,
        "arch2infos": {i: architecture(i, text, 10.0 * i) for i, text in enumerate(CELLS)},
        "evaluated_indexes": {0, 1, 2},
    }
    check(nats_columns(str(save(content, tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"))))


def test_what_was_read_is_kept_until_a_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nats_columns(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(nats_files, "_load", lambda file: pytest.fail("it was read again"))
        check(nats_columns(str(folder)))
    save(architecture(0, CELLS[0], 5.0), folder / "000000.pickle.pbz2")
    os.utime(folder / "000000.pickle.pbz2", (1, 1))
    assert nats_columns(str(folder))["cifar10_test"][0] == pytest.approx(5 + 7 + 0.8 + 0.005)


class Attack:
    """A pickle that would run a command where it is opened as one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_file_is_not_run(folder: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    content = architecture(0, CELLS[0], 0.0, net_state_dict=Attack(harm))
    save(content, folder / "000000.pickle.pbz2")
    check(nats_columns(str(folder)))  # what is not needed may be anything, as weights in -full are
    assert not harm.exists()
    save(Attack(harm), folder / "000001.pickle.pbz2")
    with pytest.raises(OracleError, match=r"000001.pickle.pbz2 is no file of NATS-Bench"):
        nats_columns(str(folder))
    assert not harm.exists()


def test_numbers_of_numpy_are_numbers(folder: Path) -> None:
    content = architecture(0, CELLS[0], 0.0)
    for result in content["200"]["all_results"].values():
        result["eval_acc1es"] = {k: np.float64(v) for k, v in result["eval_acc1es"].items()}
    save(content, folder / "000000.pickle.pbz2")
    check(nats_columns(str(folder)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "000001.pickle.pbz2").unlink(), "lacks 000001.pickle.pbz2"),
        (lambda f: (f / "000001.pickle.pbz2").write_bytes(b"x"), "000001.pickle.pbz2 cannot be"),
        (
            lambda f: save({"12": {}}, f / "000001.pickle.pbz2"),
            r"no results of 200 epochs for architecture 1 \(KeyError: '200'\)",
        ),
        (
            lambda f: save({"meta_archs": [[8, 8]]}, f / "meta.pickle.pbz2"),
            "no architectures of NATS-Bench's topology search space",
        ),
    ],
)
def test_a_damaged_folder_is_refused(change: Any, message: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(OracleError, match=message):
        nats_columns(str(folder))


def test_the_oracle_reads_them_and_wants_all_cells(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OracleError, match="must have all 15,625 cells, got 3"):
        load(Config(str(folder)))
    cells = columns201()["arch"]
    # Cells of one accuracy share their results, so that the file is small.
    levels = [accuracy201(text) / 2 for text in cells]
    results = {level: architecture(0, "", level) for level in set(levels)}
    content = {
        "meta_archs": cells,
        "arch2infos": {index: results[level] for index, level in enumerate(levels)},
        "evaluated_indexes": set(range(15_625)),
    }
    path = save(content, tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2")
    oracle = load(Config(str(path), "cifar10"))
    record = oracle.lookup(parse(CELLS[0]))
    assert record.test_accuracy == pytest.approx((29 + 7.805) / 100, abs=1e-6)
    assert record.val_accuracy == pytest.approx((29 + 13.7 + 0.01 / 3) / 100, abs=1e-6)
    assert (record.train_seconds, record.params, record.flops) == (46.0, 1_500_000, 20_250_000)
    assert oracle.searchable().genotypes == tuple(cells)
