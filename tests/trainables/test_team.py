"""One retraining in two processes: the same as in one with the same batch, and resumed."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from tests.trainables.test_retrain import SIZES, genotype, small_digits
from trainables.datasets import digits
from trainables.errors import StateError
from trainables.retrain import RetrainTrial
from trainables.settings import RetrainSettings
from trainables.team import Team, share_batch_norms

DOUBLE = {"precision": "float64", "epochs": 2, "batch_size": 48, "cutout": 2, "lr": 0.05}
# Everything that is drawn: crops, flips, cuts of some images, dropped paths.
DRAWN = {"augment": "crop_flip", "cutout_ramp": True, "drop_path": 0.4, "val_share": 0.2}


def trial(space: str, **changes: Any) -> RetrainTrial:
    original = digits.load
    count = {"train": 150, "test": 100}
    digits.load = lambda config, split: small_digits(original(config, split), count[split])
    try:
        return RetrainTrial(
            genotype=genotype(space),
            space=space,
            dataset="digits",
            retrain={**DOUBLE, **SIZES[space], **changes},
        )
    finally:
        digits.load = original


def everything(rank: int, folder: str) -> None:
    """What one of two processes does for the tests below, which look at what it leaves."""
    torch.set_num_threads(1)
    try:
        where = f"file://{folder}/meeting"
        distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
        for space in ("nasbench201", "darts"):
            train(rank, folder, space, space, DRAWN)
        train(rank, folder, "apart", "nasbench201", {"shared_batch_norm": False})
        stop_and_go_on(rank, folder)
        with pytest.raises(StateError, match="this one has BatchNorm2d"):
            share_batch_norms(nn.Sequential(nn.BatchNorm2d(2)), Team(rank, 2))
        distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc())
        raise


def train(rank: int, folder: str, name: str, space: str, changes: dict[str, Any]) -> None:
    one = trial(space, workers=2, **changes)
    one.run()
    torch.save((one.curve, weights_of(one)), f"{folder}/{name}{rank}.pt")


def stop_and_go_on(rank: int, folder: str) -> None:
    cut = trial("darts", workers=2, **DRAWN)
    cut.run_epoch()
    if rank == 0:
        cut.save_state(f"{folder}/state.pt")
    distributed.barrier()
    resumed = trial("darts", workers=2, **DRAWN)
    resumed.load_state(f"{folder}/state.pt")
    resumed.run()
    torch.save((resumed.curve, weights_of(resumed)), f"{folder}/resumed{rank}.pt")


def weights_of(one: RetrainTrial) -> dict[str, torch.Tensor]:
    return dict(one.network.state_dict())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Run everything in two processes, once; give curve and weights by name and rank."""
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=everything, args=(r, str(folder))) for r in (0, 1)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(300)
    errors = [path.read_text() for path in sorted(folder.glob("error*"))]
    assert not errors, errors[0]
    assert [each.exitcode for each in processes] == [0, 0]
    return lambda name: torch.load(folder / f"{name}.pt")


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_two_workers_train_as_one_does(space: str, both: Callable[[str], Any]) -> None:
    alone = trial(space, **DRAWN)
    alone.run()
    curve, weights = both(f"{space}0")
    others_curve, others = both(f"{space}1")
    torch.testing.assert_close(weights, weights_of(alone), atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(others, weights, atol=0, rtol=0)
    for entry, own in zip(curve, alone.curve, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert entry[name] == pytest.approx(own[name], rel=1e-7)
    assert curve[-1]["test_loss"] == pytest.approx(alone.curve[-1]["test_loss"], rel=1e-7)
    # The test split and the held-out part are the first worker's.
    assert not {"test_loss", "val_loss"} & set(others_curve[-1])


def test_without_shared_batch_norms_each_normalises_its_own_rows(
    both: Callable[[str], Any],
) -> None:
    alone = trial("nasbench201")
    alone.run()
    name = "trunk.head.classifier.weight"
    (_, weights), (_, others) = both("apart0"), both("apart1")
    assert torch.equal(weights[name], others[name])
    assert not torch.allclose(weights[name], weights_of(alone)[name], rtol=1e-3)


def test_resume_of_two_workers_is_bit_exact(both: Callable[[str], Any]) -> None:
    (_, whole), (_, resumed) = both("darts0"), both("resumed0")
    torch.testing.assert_close(resumed, whole, atol=0, rtol=0)


def test_the_rows_of_a_batch_are_divided() -> None:
    assert Team().rows(8) is None
    assert [Team(rank, 4).rows(8) for rank in range(4)] == [
        *(slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8))
    ]


def test_alone_a_trial_of_two_workers_says_what_is_missing() -> None:
    with pytest.raises(StateError, match=r"retrain\.workers is 2, .* belongs to a group of 1"):
        trial("nasbench201", workers=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 5}, r"workers must divide batch_size \(96\), got 5"),
        ({"workers": 2, "compile": True}, "compile is for one worker, got 2"),
        ({"shared_batch_norm": False}, "no effect with one worker"),
        ({"workers": 0}, "workers must be > 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RetrainSettings(**settings)
