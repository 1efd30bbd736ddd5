"""PC-DARTS: edge weights per node, a second plain search, and what perturbations leave alone."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.mixture import Structure
from spaces.core.space import Space
from tests.spaces.helpers import space_of
from tests.trainables.plain_search import PlainSearch, note_mixtures, one_step, plain_per_node
from tests.trainables.searches import SPACES, WITH_EDGES, small_search
from tests.trainables.test_passes import counted
from tests.trainables.test_perturbations import plain_perturbation
from trainables.compose import build_method
from trainables.errors import MethodError
from trainables.method import Method, OpWeights, SearchPoint
from trainables.methods.pc_darts import Config, softmax_per_node
from trainables.search import SearchTrial

pytestmark = pytest.mark.usefixtures("tiny_plugins")

PC: dict[str, Any] = {"name": "pc_darts"}
PC_RS = PC | {"perturb": "sdarts_rs"}
PC_ADV = PC | {"perturb": {"name": "sdarts_adv", "steps": 2}}


def point(space: Any) -> SearchPoint:
    return SearchPoint(0, 1, torch.Generator(), space=space)


def random_logits(space: Space) -> OpWeights:
    source = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(len(edges), generator=source, dtype=torch.float64).requires_grad_()
        for name, edges in space.edges.items()
    }


@pytest.mark.parametrize("name", WITH_EDGES)
def test_edge_weights_are_the_softmax_of_the_edges_into_a_node(name: str) -> None:
    space = space_of(SPACES[name])
    logits = random_logits(space)
    found = softmax_per_node(logits, point(space))
    assert found.keys() == logits.keys()
    for cell, weights in found.items():
        expected = plain_per_node(logits[cell], space.edges[cell])
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-14)
        costs = torch.arange(len(weights), dtype=torch.float64)
        ours, theirs = (
            torch.autograd.grad((costs * w).sum(), logits[cell])[0] for w in (weights, expected)
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
        assert ours.abs().max() > 0.1


def test_edges_need_not_be_in_the_order_of_their_nodes() -> None:
    space = SimpleNamespace(has_edges=True, edges={"cell": ((0, 3), (0, 1), (1, 3), (0, 2))})
    logits = torch.tensor([1.0, 5.0, 1.0 + torch.tensor(3.0).log(), -4.0])
    found = softmax_per_node({"cell": logits}, point(space))["cell"]
    # Nodes 1 and 2 have one edge each.
    torch.testing.assert_close(found, torch.tensor([0.25, 1.0, 0.75, 1.0]))


def test_without_a_space_it_says_what_is_missing() -> None:
    with pytest.raises(MethodError, match="weighs the edges of a space"):
        softmax_per_node({"cell": torch.zeros(3)}, point(None))


def method_of(settings: dict[str, Any], epochs: int) -> Method:
    return build_method(PC["name"], Config(**settings), epochs=epochs)


def test_the_published_settings_are_the_defaults() -> None:
    method = method_of({}, 50)
    assert method.structure == Structure(partial_channels=4)
    assert [method.first_alpha_epoch(epochs) for epochs in (50, 100, 3)] == [15, 30, 1]
    assert method_of({"partial_channels": 2}, 50).structure.partial_channels == 2


def test_impossible_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"partial_channels must be >= 1, got 0\."):
        Config(partial_channels=0)
    with pytest.raises(PluginSettingsError, match="partial_channels must be >= 1"):
        small_search(PC | {"partial_channels": 0})
    with pytest.raises(SpaceError, match="must divide the channels of every cell, got 3 for 20"):
        small_search(PC | {"partial_channels": 3})


@pytest.mark.parametrize(
    ("settings", "space", "steps"),
    [
        (PC, "nasbench201", 4),
        (PC, "darts", 3),
        (PC_RS, "nasbench201", 4),
        (PC_ADV, "nasbench201", 4),
    ],
    ids=str,
)
def test_steps_equal_those_of_a_plain_search(
    settings: dict[str, Any], space: str, steps: int
) -> None:
    trial, other = (
        small_search(settings, space=space, precision="float64", batch_size=6, epochs=4)
        for _ in range(2)
    )
    plain = PlainSearch(trial, structure=Structure(partial_channels=4), has_edges=True)
    generator = torch.Generator()
    generator.set_state(trial._bilevel.generators["method"].get_state())
    mixtures = note_mixtures(trial)
    for epoch in range(steps):
        train_batch, val_batch = other._data.next_batches()
        # 15 of 50 epochs are one of four.
        if epoch >= 1:
            plain.alpha_step(val_batch)
        clean = {name: matrix.detach() for name, matrix in plain.op_weights().items()}
        seen = clean
        if "perturb" in settings:
            plain.net.eval()
            seen = plain_perturbation(
                {"name": "sdarts_rs"} if settings is PC_RS else PC_ADV["perturb"],
                epoch / 4,
                clean,
                generator,
                lambda q, batch=train_batch: plain.loss(q, batch),  # type: ignore[misc]
            )
        expected = plain.weight_step(epoch, train_batch, seen)

        mixtures.clear()
        found = one_step(trial, epoch, *trial._data.next_batches())
        assert found["train_loss"].item() == pytest.approx(expected, abs=1e-10)
        for name, matrix in seen.items():
            op_weights = mixtures[-1].op_weights[name]
            torch.testing.assert_close(op_weights, matrix, rtol=0, atol=1e-10)
        for mixture in mixtures[1 if epoch >= 1 else 0 :]:
            for name, weights in (plain.edge_weights() or {}).items():
                edges = mixture.edge_weights or {}
                torch.testing.assert_close(edges[name].detach(), weights.detach())
        plain.assert_equal(trial)
    # They have moved, by Adam's 0.05 a step.
    start = small_search(settings, space=space, precision="float64")._bilevel
    for name, logits in trial._bilevel.edge_alphas.items():
        assert (logits - start.edge_alphas[name]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("method", "epoch", "forwards", "alphas"),
    [
        (PC, 0, 1, 0),
        (PC, 1, 2, 1),
        (PC_RS, 1, 2, 1),
        # K + 2 passes of the attack, K of them with a gradient in the op weights.
        (PC_ADV, 0, 1 + 4, 2),
        (PC_ADV, 1, 2 + 4, 1 + 2),
    ],
    ids=str,
)
def test_passes_before_and_after_the_alphas_start(
    monkeypatch: pytest.MonkeyPatch, method: Any, epoch: int, forwards: int, alphas: int
) -> None:
    found, backwards = counted(small_search(method, batch_size=6), epoch, monkeypatch)
    assert found.total() == forwards
    assert backwards == Counter(alphas=alphas, weights=1, both=0)


@pytest.mark.parametrize("settings", [PC_RS, PC_ADV], ids=str)
def test_a_perturbation_moves_op_weights_and_no_edge_weights(settings: dict[str, Any]) -> None:
    trial = small_search(settings, precision="float64")
    bilevel = trial._bilevel
    with torch.no_grad():
        bilevel.edge_alphas["cell"].copy_(torch.linspace(-1, 1, 6))
    before = bilevel.edge_alphas["cell"].detach().clone()
    edges = plain_per_node(before, trial.space.edges["cell"])
    clean = bilevel.relaxed(bilevel.point(2))["cell"]
    mixtures = note_mixtures(trial)
    measured = bilevel.weight_step(bilevel.point(2), trial._data.next_batches()[0])
    assert measured["perturb_distance"] > 0.01
    assert (mixtures[-1].op_weights["cell"] - clean).abs().max() > 0.01
    for mixture in mixtures:
        assert mixture.edge_weights is not None
        torch.testing.assert_close(mixture.edge_weights["cell"], edges, rtol=0, atol=1e-14)
    assert torch.equal(bilevel.edge_alphas["cell"], before)


def set_logits(trial: SearchTrial, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in trial._bilevel.logits.values():
            logits.copy_(torch.randn(logits.shape, generator=source))


def plain_choice(space: Space, op_weights: Tensor, edges: Tensor | None) -> set[tuple[int, str]]:
    """Rows and operations of the two strongest edges into each node of a DARTS cell."""
    kept = set()
    for node in range(2, 6):
        rows = []
        for row, (_, target) in enumerate(space.edges["normal"]):
            if target == node:
                factor = 1.0 if edges is None else edges[row].item()
                strongest = max(
                    (factor * op_weights[row, column].item(), operation)
                    for column, operation in enumerate(space.operations["normal"])
                    if operation != "none"
                )
                rows.append((*strongest, row))
        kept |= {(row, operation) for _, operation, row in sorted(rows, reverse=True)[:2]}
    return kept


def test_edges_compete_by_edge_weight_times_op_weight() -> None:
    trial = small_search(PC, space="darts", precision="float64")
    space, differ = trial.space, 0
    for seed in range(5):
        set_logits(trial, seed)
        bilevel = trial._bilevel
        op_weights = torch.softmax(bilevel.alphas["normal"].detach(), -1)
        edges = plain_per_node(bilevel.edge_alphas["normal"].detach(), space.edges["normal"])
        trial.op_weights = bilevel.relaxed(bilevel.point(0))
        cell = trial._by_each_epoch(trial._selection).cell("normal")
        found = {
            (space.edges["normal"].index((e.source, e.target)), e.operation) for e in cell.edges
        }
        assert found == plain_choice(space, op_weights, edges)
        differ += found != plain_choice(space, op_weights, None)
    assert differ == 5
