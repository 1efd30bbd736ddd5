"""P-DARTS: stages, what each keeps, the dropout on skips and the limit on their number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.mixture import Mixture
from spaces.core.space import Space
from tests.trainables.searches import SPACES, differences, small_search
from trainables.method import SearchPoint
from trainables.methods.p_darts import Config, restrict_skips, skip_dropout, stages
from trainables.search import SearchTrial
from trainables.stages import Place, filled, kept_columns
from trainables.stored import open_final

pytestmark = pytest.mark.usefixtures("tiny_plugins")

GROWING = {"name": "p_darts", "added_cells": [0, 1, 1], "operations": [3, 2]}


def space_of(name: str) -> Space:
    chosen, config = plugins.make_config("spaces", SPACES[name])
    space: Space = plugins.load("spaces", chosen).build(config, chosen)
    return space


def point(stage: int, done: int, total: int) -> SearchPoint:
    return SearchPoint(0, 75, torch.Generator(), stage=stage, stage_epoch=done, stage_epochs=total)


def test_published_stages_and_uneven_ones() -> None:
    published = stages(75, config=Config())
    assert [(s.epochs, s.added_cells, s.operations) for s in published] == [
        (25, 0, None),
        (25, 6, 5),
        (25, 12, 3),
    ]
    assert [stage.epochs for stage in stages(10, config=Config())] == [3, 3, 4]


@pytest.mark.parametrize(("stage", "first"), list(enumerate((0.1, 0.4, 0.7))))
def test_published_dropout(stage: int, first: float) -> None:
    for done in range(25):
        expected = (
            first * (25 - done - 1) / 25 if done < 10 else first * math.exp(-0.2 * (done - 10))
        )
        found = skip_dropout(point(stage, done, 25), config=Config(), rest=None)
        assert found == pytest.approx(expected, abs=1e-15)


def test_dropout_follows_the_epochs_in_which_the_alphas_rest() -> None:
    # Half of the published 25 epochs, and alphas that move from the fourth.
    assert skip_dropout(point(0, 3, 50), config=Config(), rest=4) == pytest.approx(0.1 * 46 / 50)
    assert skip_dropout(point(0, 4, 50), config=Config(), rest=4) == pytest.approx(0.1)
    assert skip_dropout(point(0, 14, 50), config=Config(), rest=4) == pytest.approx(
        0.1 * math.exp(-1)
    )
    assert skip_dropout(point(1, 0, 5), config=Config(), rest=0) == pytest.approx(0.4)


def run_to(epochs: int, **settings: Any) -> SearchTrial:
    trial = small_search(GROWING | settings, epochs=6, batch_size=12, alpha_lr=0.3)
    for _ in range(epochs):
        trial.run_epoch()
    return trial


def test_each_stage_is_a_new_deeper_supernet_with_fewer_operations() -> None:
    trial = run_to(2)
    first, before = trial._bilevel, {n: q.clone() for n, q in trial.op_weights.items()}
    assert first.supernet.num_cells == {"cell": 3}
    assert trial.alphas["cell"].shape == (6, 5)
    trial.run_epoch()
    second = trial._bilevel
    assert second.supernet.num_cells == {"cell": 6}
    columns = second.place.columns
    assert columns is not None
    for row in range(6):
        strongest = sorted(before["cell"][row].argsort(descending=True)[:3].tolist())
        assert columns["cell"][row].tolist() == strongest
        gone = [o for o in range(5) if o not in strongest]
        assert trial.op_weights["cell"][row, gone].tolist() == [0.0, 0.0]
    assert trial.alphas["cell"].shape == (6, 3)
    torch.testing.assert_close(trial.op_weights["cell"].sum(1), torch.ones(6))
    trial.run()
    third = trial._bilevel.place
    assert (third.index, third.start, third.epochs) == (2, 4, 2)
    assert third.columns is not None
    for row in range(6):
        assert set(third.columns["cell"][row].tolist()) < set(columns["cell"][row].tolist())


def test_weights_alphas_and_learning_rate_start_anew() -> None:
    trial = run_to(3)
    rates = [entry["weight_lr"] for entry in trial.curve]
    assert rates[0] == rates[2] == trial.settings.weight_lr
    assert rates[1] < rates[0]
    fresh = trial._build_stage(1, trial._bilevel.place.columns)
    # In the first epoch of a stage the alphas rest at their start, drawn anew.
    assert torch.equal(trial.alphas["cell"], fresh.alphas["cell"])
    start = small_search(GROWING, epochs=6)
    assert not torch.equal(start.alphas["cell"][:, :3], fresh.alphas["cell"])
    trial.run_epoch()
    assert not torch.equal(trial.alphas["cell"], fresh.alphas["cell"])


def test_two_stages_of_a_seed_do_not_share_their_draws() -> None:
    trial = small_search(GROWING, epochs=6)
    first, second = trial._bilevel, trial._build_stage(1)
    stem = [stage.supernet.trunk.stem.convolution.weight for stage in (first, second)]
    assert not torch.equal(*stem)
    for purpose in ("method", "network"):
        states = [stage.generators[purpose].get_state() for stage in (first, second)]
        assert not torch.equal(*states)


def test_a_perturbation_moves_the_operations_that_are_left_and_no_others() -> None:
    trial = run_to(4, perturb={"name": "sdarts_rs", "radius_start": 0.3, "radius_max": 0.3})
    bilevel = trial._bilevel
    seen: list[Mixture] = []
    loss = bilevel._loss

    def noted(mixture: Mixture, *rest: Any) -> tuple[Tensor, Tensor]:
        seen.append(mixture)
        return loss(mixture, *rest)

    bilevel._loss = noted  # type: ignore[method-assign]
    bilevel.weight_step(bilevel.point(3), trial._data.next_batches()[0])
    (mixture,) = seen
    columns = bilevel.place.columns
    assert columns is not None
    kept = torch.zeros(6, 5, dtype=torch.bool).scatter(1, columns["cell"], value=True)
    q = mixture.op_weights["cell"]
    assert (q[~kept] == 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones(6))
    assert not torch.equal(q, trial.op_weights["cell"])
    assert mixture.active is not None
    assert torch.equal(mixture.active["cell"], kept)
    assert mixture.skip_dropout > 0


def test_measurements_drop_nothing() -> None:
    trial = run_to(3)
    bilevel = trial._bilevel
    at = bilevel.point(2)
    assert bilevel.mixture(trial.op_weights, at).skip_dropout == 0
    assert bilevel.shown(trial.op_weights, at).skip_dropout == 0


def test_a_stored_search_is_opened_in_its_last_stage(tmp_path: Path) -> None:
    trial = run_to(6)
    torch.save(trial.final_state(), tmp_path / "final.pt")
    opened = open_final(tmp_path / "final.pt", device="cpu")
    assert opened._bilevel.place.index == 2
    assert opened.genotype.hash == trial.genotype.hash
    for name, matrix in trial.op_weights.items():
        assert torch.equal(opened.op_weights[name], matrix)
    rule = {"name": "operation_strength"}
    assert opened.select(rule).genotype.hash == trial.select(rule).genotype.hash


def test_a_state_of_any_stage_is_continued_by_a_trial_in_any_other() -> None:
    straight = run_to(6)
    late = run_to(5)
    early = run_to(1)
    late.load_state_dict(early.state_dict())
    assert late._bilevel.place.index == 0
    late.run()
    assert differences(straight, late) == []


def test_a_search_that_diverges_in_a_new_stage_keeps_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = run_to(2)
    kept = trial.state_dict()

    build = trial._build_stage

    def exploding(index: int, columns: Any = None) -> Any:
        bilevel = build(index, columns)
        if index == 1:
            with torch.no_grad():
                bilevel.weights[0].fill_(float("nan"))
        return bilevel

    monkeypatch.setattr(trial, "_build_stage", exploding)
    trial.run_epoch()
    assert trial.diverged
    assert trial._bilevel.place.index == 0
    assert torch.equal(trial.op_weights["cell"], kept["op_weights"]["cell"])
    assert trial.genotype.hash == trial.curve[1]["genotype_hash"]


def test_columns_are_kept_by_op_weight_with_ties_to_the_first() -> None:
    matrix = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    assert kept_columns({"c": matrix}, 2)["c"].tolist() == [[1, 3], [0, 1]]
    assert kept_columns({"c": matrix}, 9)["c"].shape == (2, 4)
    place = Place(1, 0, 1, {"c": torch.tensor([[1, 3], [0, 1]])})
    assert place.columns is not None
    left = {"c": torch.tensor([[0.6, 0.4], [0.9, 0.1]])}
    whole = filled(left, place.columns, {"c": 4})["c"]
    torch.testing.assert_close(whole, torch.tensor([[0.0, 0.6, 0.0, 0.4], [0.9, 0.1, 0.0, 0.0]]))
    active = place.active({"c": 4})
    assert active is not None
    assert active["c"].tolist() == [[False, True, False, True], [True, True, False, False]]


def op_weights_of_skips(space: Space, count: int) -> dict[str, Tensor]:
    """Op weights by which the first type's genotype has `count` skips, of rising op weight."""
    found = {}
    for name, (rows, columns) in space.alpha_shapes().items():
        matrix = torch.full((rows, columns), 0.1)
        skip = space.operations[name].index("skip_connect")
        second = next(i for i, op in enumerate(space.operations[name]) if op.endswith("conv_3x3"))
        matrix[:, second] = 0.2
        matrix[:count, skip] = 0.5 + 0.01 * torch.arange(count)
        found[name] = matrix
    return found


def skips_of(space: Space, op_weights: dict[str, Tensor], most: int) -> list[tuple[int, int]]:
    genotype = restrict_skips(space, op_weights, max_skips=most)
    cell = genotype.cell(space.cell_types[0])
    return [(e.source, e.target) for e in cell.edges if e.operation == "skip_connect"]


@pytest.mark.parametrize("most", range(7))
def test_the_weakest_skips_give_way_first(most: int) -> None:
    space = space_of("nasbench201")
    op_weights = op_weights_of_skips(space, 6)
    before = op_weights["cell"].clone()
    strongest = [space.edges["cell"][row] for row in range(6 - most, 6)]
    assert sorted(skips_of(space, op_weights, most)) == sorted(strongest)
    assert torch.equal(op_weights["cell"], before)
    # Their edges have the next operation, not nothing.
    genotype = restrict_skips(space, op_weights, max_skips=most)
    others = {e.operation for e in genotype.cells[0].edges} - {"skip_connect"}
    assert others <= {"nor_conv_3x3"}


def test_skips_of_reduction_cells_do_not_count() -> None:
    space = space_of("darts")
    op_weights = op_weights_of_skips(space, 14)
    genotype = restrict_skips(space, op_weights, max_skips=2)
    counts = {
        cell.name: sum(e.operation == "skip_connect" for e in cell.edges) for cell in genotype.cells
    }
    assert counts == {"normal": 2, "reduction": 8}


def test_a_space_without_a_deeper_form_is_refused() -> None:
    with pytest.raises(SpaceError, match="darts_per_cell"):
        small_search(GROWING, space="darts_per_cell", epochs=6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"added_cells": []}, "added_cells must have a number"),
        ({"operations": [5]}, "operations must have 2 values"),
        ({"skip_dropout": [0.1]}, "skip_dropout must have 3 values"),
        ({"operations": [3, 5]}, "must not grow"),
        ({"operations": [3, 0]}, "operations must be >= 1"),
        ({"skip_dropout": [0.1, 0.4, 1.0]}, r"in \[0, 1\)"),
        ({"max_skips": -1}, "max_skips must be >= 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginSettingsError, match=words):
        small_search({"name": "p_darts"} | settings, epochs=9)


def test_stages_too_short_to_search_in_are_refused() -> None:
    with pytest.raises(PluginSettingsError, match=r"of each of its 3 stages, the shortest of 1"):
        small_search({"name": "p_darts"}, epochs=5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "rule",
    [
        {"name": "perturbation", "tune_epochs": 0},
        {"name": "operation_strength", "variant": "signed"},
        {"name": "operation_strength", "progressive": "edge_wise"},
    ],
    ids=lambda rule: "-".join(str(value) for value in rule.values()),
)
def test_no_rule_brings_an_operation_back(rule: dict[str, Any], seed: int) -> None:
    trial = small_search(GROWING, epochs=6, batch_size=12, alpha_lr=0.3, seed=seed)
    trial.run()
    columns = trial._bilevel.place.columns
    assert columns is not None
    selected = trial.select(rule)
    for row, edge in enumerate(selected.genotype.cells[0].edges):
        assert (edge.source, edge.target) == trial.space.edges["cell"][row]
        chosen = trial.space.operations["cell"].index(edge.operation)
        assert chosen in columns["cell"][row].tolist()


def test_fewer_epochs_than_stages_are_refused() -> None:
    with pytest.raises(PluginSettingsError, match=r"3 stages, and search\.epochs is 2"):
        small_search({"name": "p_darts", "alpha_start": 0}, epochs=2)
