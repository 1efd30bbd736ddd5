"""Searches in NAS-Bench-1Shot1: all architecture parameters move, are perturbed, and resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spaces.core import graph101, plugins
from spaces.core.mixture import Mixture
from spaces.nasbench1shot1 import NasBench1Shot1
from tests.trainables.searches import differences, small_search
from trainables.diagnostics import collapsed, skip_count
from trainables.probes import alone, probe_gap
from trainables.retrain import RetrainTrial
from trainables.settings import DiscretizationGap

pytestmark = pytest.mark.usefixtures("tiny_plugins")

METHODS = ["darts", "sdarts_rs", "sdarts_adv", "ms_darts", "amended_darts", "random", "gdas"]
METHODS += ["pc_darts", "darts_minus"]
SPACE = "nasbench1shot1_2"
ROWS = {"operations", "output", "inputs_2", "inputs_3", "inputs_4"}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_search_equals_the_uninterrupted_one(method: str) -> None:
    settings = {"name": method, "candidates": 4, "finalists": 2} if method == "random" else method
    sizes: dict[str, Any] = {"space": SPACE, "batch_size": 24}
    straight, stopped = small_search(settings, **sizes), small_search(settings, **sizes)
    straight.run()
    stopped.run_epoch()
    resumed = small_search(settings, **sizes)
    resumed.load_state_dict(stopped.state_dict())
    resumed.run()
    assert differences(straight, resumed) == []
    moved = small_search(settings, **sizes)
    assert straight.alphas.keys() == ROWS
    still = [n for n, alpha in straight.alphas.items() if torch.equal(alpha, moved.alphas[n])]
    assert set(still) == (ROWS if method == "random" else set())


@pytest.mark.parametrize("method", ["sdarts_rs", "sdarts_adv", "ms_darts"])
def test_all_vectors_are_perturbed(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = small_search(method, space=SPACE, epochs=2)
    bilevel = trial._bilevel
    seen: list[Mixture] = []
    forward = bilevel.supernet.forward

    def watched(images: Any, mixture: Mixture, **given: Any) -> Any:
        seen.append(mixture)
        return forward(images, mixture, **given)

    monkeypatch.setattr(bilevel.supernet, "forward", watched)
    clean = bilevel.relaxed(bilevel.point(1))
    bilevel.weight_step(bilevel.point(1), trial._data.next_batches()[0])
    for name, matrix in seen[-1].op_weights.items():
        assert matrix.shape == trial.space.alpha_shapes()[name]
        assert (matrix - clean[name]).abs().max() > 1e-4, name


def test_stages_thin_out_operations_and_leave_all_parents() -> None:
    method = {"name": "p_darts", "added_cells": [0, 1], "operations": [2], "skip_dropout": [0.1, 0]}
    trial = small_search(method, space=SPACE, epochs=4, batch_size=24)
    trial.run_epoch()
    shapes = {name: tuple(alpha.shape) for name, alpha in trial.alphas.items()}
    assert shapes == trial.space.alpha_shapes()
    trial.run()
    shapes = {name: tuple(alpha.shape) for name, alpha in trial.alphas.items()}
    assert shapes == trial.space.alpha_shapes() | {"operations": (4, 2)}
    trial.space.check(trial.genotype)


def test_projection_decides_every_block_and_every_choice_of_parents() -> None:
    trial = small_search(space=SPACE, epochs=1)
    trial.run()
    bilevel = trial._bilevel
    removed: list[tuple[str, int]] = []
    fixed: list[tuple[str, int]] = []
    take, fix = bilevel.remove, bilevel.fix

    def watched_remove(name: str, row: int, column: int) -> None:
        removed.append((name, column))
        take(name, row, column)
        left = bilevel.relaxed(bilevel.point(0))[name][0]
        assert left[column] == 0
        assert left.count_nonzero() == len(left) - len([n for n, _ in removed if n == name])

    def watched_fix(name: str, row: int, column: int) -> None:
        assert not removed  # operations come first
        fixed.append((name, row))
        fix(name, row, column)

    bilevel.remove, bilevel.fix = watched_remove, watched_fix  # type: ignore[method-assign]
    selected = trial.select({"name": "perturbation", "tune_epochs": 0})
    assert sorted(fixed) == [("operations", row) for row in range(4)]
    space = trial.space
    for name, kept in space.parents.items():
        gone = [column for label, column in removed if label == name]
        assert len(gone) == space.alpha_shapes()[name][1] - kept
        scores = selected.scores[name][0]
        stay = [column for column in range(len(scores)) if column not in gone]
        assert min(scores[stay]) >= max(scores[gone])
    assert {name for name, _ in removed} == ROWS - {"operations"}


def test_the_gap_is_that_of_the_blocks_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = small_search(space=SPACE, epochs=2, alpha_lr=0.5)
    trial.run()
    bilevel, at = trial._bilevel, trial._bilevel.point(1)
    measured: list[Mixture] = []
    evaluate = bilevel.evaluate

    def watched(mixture: Mixture, *rest: Any) -> Any:
        measured.append(mixture)
        return evaluate(mixture, *rest)

    monkeypatch.setattr(bilevel, "evaluate", watched)
    gap = probe_gap(
        bilevel, trial._data, at, DiscretizationGap(), space=trial.space, genotype=trial.genotype
    )
    assert all(torch.tensor(value).isfinite() for value in gap.values())
    whole, alone = (mixture.op_weights for mixture in measured)
    for block, row in enumerate(alone["operations"]):
        if row.any():
            assert row.argmax() == whole["operations"][block].argmax()
            inputs = f"inputs_{block + 1}"
            if inputs in alone:
                kept = alone[inputs][0].bool()
                assert whole[inputs][0, kept].min() >= whole[inputs][0, ~kept].max()


def test_rows_of_a_genotype_alone_have_weight_one_also_with_two_parents() -> None:
    trial = small_search("pc_darts", space=SPACE, epochs=2)
    at = trial._bilevel.point(0)
    whole = trial._bilevel.mixture(trial._bilevel.relaxed(at), at)
    mixture = alone(trial.space, trial.genotype, whole)
    assert mixture.edge_weights is not None
    assert (mixture.op_weights["output"].sum(), mixture.edge_weights["output"]) == (3.0, 1.0)
    for name, weights in mixture.edge_weights.items():
        assert torch.equal(weights, mixture.op_weights[name].any(dim=-1).float()), name


def test_a_cell_without_convolutions_has_collapsed() -> None:
    chosen, settings = plugins.make_config("spaces", SPACE)
    space: NasBench1Shot1 = plugins.load("spaces", chosen).build(settings, chosen)
    weights = {name: torch.zeros(shape) for name, shape in space.alpha_shapes().items()}
    pools = space.discretize(weights)
    assert set(space.cell101(pools)[0]) == {graph101.MAX_POOL}
    assert collapsed(space, pools)
    weights["operations"][0, 1] = 1.0
    learns = space.discretize(weights)
    assert not collapsed(space, learns)
    assert skip_count(space, learns) == skip_count(space, pools) == 0


def test_its_genotypes_are_retrained() -> None:
    trial = small_search(space=SPACE, epochs=1)
    settings = {"epochs": 2, "batch_size": 256, "channels": 4, "cells": 3, "drop_path": 0.1}
    settings |= {"auxiliary_weight": 0.0, "lr": 0.1}
    genotype = trial.run()
    retrained = RetrainTrial(genotype=genotype, space=SPACE, dataset="digits", retrain=settings)
    retrained.run()
    assert retrained.curve[1]["train_loss"] < retrained.curve[0]["train_loss"]
