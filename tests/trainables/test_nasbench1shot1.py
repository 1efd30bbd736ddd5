"""Searches in NAS-Bench-1Shot1: all architecture parameters move, are perturbed, and resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spaces.core import graph101, plugins
from spaces.core.errors import SpaceError
from spaces.core.mixture import Mixture
from spaces.nasbench1shot1 import NasBench1Shot1
from tests.trainables.searches import EDGELESS, differences, small_search
from trainables.compose import build_method, build_selection, check_space
from trainables.diagnostics import collapsed, skip_count
from trainables.probes import probe_gap
from trainables.retrain import RetrainTrial
from trainables.settings import DiscretizationGap

pytestmark = pytest.mark.usefixtures("tiny_plugins")

METHODS = ["darts", "sdarts_rs", "sdarts_adv", "ms_darts", "amended_darts", "random"]
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


@pytest.mark.parametrize("method", ["gdas", "pc_darts", "darts_minus", "p_darts"])
@pytest.mark.parametrize("space", EDGELESS)
def test_methods_of_edges_are_refused_before_anything_is_built(method: str, space: str) -> None:
    name, config = plugins.make_config("methods", method)
    built = build_method(name, config, epochs=100)
    chosen, settings = plugins.make_config("spaces", space)
    where = plugins.load("spaces", chosen).build(settings, chosen)
    with pytest.raises(SpaceError, match=f"'{space}' has blocks with weighted inputs and no edges"):
        check_space(where, built, build_selection("magnitude"), epochs=100)


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
