"""GDAS: draws and gradients in loops, the distribution of draws, a second plain search."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from spaces.core.errors import PluginSettingsError
from tests.trainables.plain_search import PlainSearch, note_mixtures, one_step
from tests.trainables.searches import small_search
from tests.trainables.test_passes import counted
from trainables.compose import build_method
from trainables.method import OpWeights, SearchPoint
from trainables.methods.gdas import Config
from trainables.search import SearchTrial

pytestmark = pytest.mark.usefixtures("tiny_plugins")

Rows = list[list[float]]


def point(epoch: int, epochs: int, seed: int = 0) -> SearchPoint:
    return SearchPoint(epoch, epochs, torch.Generator().manual_seed(seed))


def random_alphas(seed: int, *shapes: tuple[int, int]) -> OpWeights:
    source = torch.Generator().manual_seed(seed)
    return {
        f"cell {index}": torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()
        for index, shape in enumerate(shapes)
    }


# The second implementation: one entry at a time.


def plain_gumbel(shape: torch.Size, generator: torch.Generator) -> Rows:
    waits = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator).tolist()
    return [[-math.log(wait) for wait in row] for row in waits]


def plain_soft(alpha: Tensor, gumbel: Rows, tau: float) -> list[list[Tensor]]:
    """Softmax of (log softmax(alpha) + noise) / tau, with a graph, entry by entry."""
    found = []
    for row, noise in zip(alpha, gumbel, strict=True):
        total = torch.stack([entry.exp() for entry in row]).sum()
        scores = [
            ((entry.exp() / total).log() + g) / tau for entry, g in zip(row, noise, strict=True)
        ]
        norm = torch.stack([score.exp() for score in scores]).sum()
        found.append([score.exp() / norm for score in scores])
    return found


def plain_draw(alpha: Tensor, tau: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The straight-through sample, with a graph, and what is drawn, as booleans."""
    rows = plain_soft(alpha, plain_gumbel(alpha.shape, generator), tau)
    drawn = [[entry is max(row) for entry in row] for row in rows]
    sample = [
        torch.stack([p + (one - p.item()) for p, one in zip(row, hot, strict=True)])
        for row, hot in zip(rows, drawn, strict=True)
    ]
    return torch.stack(sample), torch.tensor(drawn)


@pytest.mark.parametrize(("epoch", "epochs"), [(0, 5), (2, 5), (4, 5), (0, 1)])
def test_draws_and_gradients_equal_the_plain_ones(epoch: int, epochs: int) -> None:
    # tau of epoch 2 of 5: half way from 10 to 0.1.
    tau = {0: 10.0, 2: 5.05, 4: 0.1}[epoch]
    alphas = random_alphas(1, (14, 8), (6, 5))
    relax = build_method("gdas", Config(), epochs=epochs).relax
    found = relax(alphas, point(epoch, epochs, seed=4))
    generator = torch.Generator().manual_seed(4)
    costs = random_alphas(2, (14, 8), (6, 5))
    for name, alpha in alphas.items():
        expected, drawn = plain_draw(alpha, tau, generator)
        torch.testing.assert_close(found[name], drawn.double(), rtol=0, atol=1e-15)
        assert (found[name][~drawn] == 0.0).all()
        mine, theirs = (
            torch.autograd.grad((q * costs[name].detach()).sum(), alpha)[0]
            for q in (found[name], expected)
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        # At tau 0.1 most rows are sharp, but not all of them.
        assert mine.abs().max() > 0.01


@pytest.mark.parametrize("tau", [10.0, 0.1])
def test_an_operation_is_drawn_with_its_softmax_whatever_the_temperature(tau: float) -> None:
    row = torch.tensor([-2.0, 0.0, 0.5, 1.5], dtype=torch.float64)
    alphas = {"cell": row.expand(8000, 4).contiguous()}
    relax = build_method("gdas", Config(tau_max=tau, tau_min=tau), epochs=3).relax
    counts = relax(alphas, point(1, 3))["cell"].sum(dim=0)
    expected = 8000 * row.softmax(dim=-1)
    # Noise of the other sign draws the first far too seldom; p < 1e-100.
    assert chisquare(counts.tolist(), expected.tolist()).pvalue > 0.01


def test_every_pass_draws_anew_and_cell_types_draw_in_turn() -> None:
    alphas = {"a": torch.zeros(40, 4), "b": torch.zeros(40, 4)}
    relax, at = build_method("gdas", Config(), epochs=3).relax, point(0, 3)
    first, second = relax(alphas, at), relax(alphas, at)
    seen = [first["a"], first["b"], second["a"], second["b"]]
    for index, matrix in enumerate(seen):
        assert all(not torch.equal(matrix, other) for other in seen[:index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exponential_of_zero_leaves_everything_finite(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(Tensor, "exponential_", lambda self, **_: self.zero_())
    alphas = {"cell": torch.randn(5, 4, dtype=dtype).mul(100).requires_grad_()}
    found = build_method("gdas", Config(), epochs=3).relax(alphas, point(2, 3))["cell"]
    (gradient,) = torch.autograd.grad((found * torch.arange(4.0)).sum(), alphas["cell"])
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    assert (found.sum(dim=-1) - 1.0).abs().max() < 1e-5


def test_the_temperature_falls_to_its_end_in_the_last_epoch() -> None:
    log = build_method("gdas", Config(), epochs=5).log
    found = [log(point(epoch, 5))["tau"] for epoch in range(5)]
    assert found == pytest.approx([10.0, 7.525, 5.05, 2.575, 0.1])
    assert log(point(0, 1)) == {"tau": 10.0}
    log = build_method("gdas", Config(tau_max=4.0, tau_min=2.0), epochs=3).log
    assert [log(point(epoch, 3))["tau"] for epoch in range(3)] == [4.0, 3.0, 2.0]


def test_it_is_judged_by_its_most_likely_path() -> None:
    method = build_method("gdas", Config(), epochs=3)
    assert method.mean is not None
    assert method.shown is not None
    alphas = {"cell": torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, -1.0]])}
    mean = method.mean(alphas, point(0, 3))
    torch.testing.assert_close(mean["cell"], alphas["cell"].softmax(dim=-1))
    assert method.shown(mean)["cell"].tolist() == [[0, 1, 0], [1, 0, 0]]
    trial = small_search("gdas", epochs=1)
    seen = note_mixtures(trial)
    trial.run()
    largest = {n: q.argmax(dim=-1) for n, q in trial.op_weights.items()}
    for mixture in seen[-2:]:  # the validation split is two batches
        assert mixture.active is not None
        for name, rows in largest.items():
            assert torch.equal(mixture.op_weights[name].argmax(dim=-1), rows)
            assert torch.equal(mixture.active[name], mixture.op_weights[name] == 1.0)
    assert trial.genotype == trial.space.discretize(trial.op_weights)


# In a search.


class SampledSearch(PlainSearch):
    """A plain search in which an edge runs what is drawn and adds the numbers of the others."""

    scalars = True

    def loss(self, op_weights: OpWeights, batch: Any, **mixed: Any) -> Tensor:
        active = {name: q.detach() > 0.5 for name, q in op_weights.items()}
        if self.scalars:
            mixed["offsets"] = {
                name: torch.stack([row[~on].sum() for row, on in zip(q, active[name], strict=True)])
                for name, q in op_weights.items()
            }
        loss = super().loss(op_weights, batch, active=active, **mixed)
        # Weights that were not used have the gradient 0, so that momentum and decay go on.
        return loss + 0.0 * torch.stack([weight.sum() for weight in self.net.parameters()]).sum()

    def assert_equal(self, trial: SearchTrial) -> None:
        # One pool serves all edges of a node here, and each edge has its own there.
        for module in trial._bilevel.supernet.modules():
            if hasattr(module, "pool_norms"):
                for norm in module.pool_norms.values():
                    norm.running_mean.zero_()
                    norm.running_var.fill_(1.0)
        for module in self.net.modules():
            if isinstance(module, nn.Sequential) and isinstance(
                module[0], nn.MaxPool2d | nn.AvgPool2d
            ):
                for norm in list(module)[1:]:
                    if isinstance(norm, nn.BatchNorm2d):
                        norm.reset_running_stats()
        super().assert_equal(trial)


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
@pytest.mark.parametrize("unsampled", ["scalars", "dropped"])
def test_steps_equal_those_of_a_plain_search(unsampled: str, space: str) -> None:
    settings = {"name": "gdas", "unsampled": unsampled}
    trial = small_search(settings, space=space, precision="float64", batch_size=6)
    generator = torch.Generator()
    generator.set_state(trial._bilevel.generators["method"].get_state())
    plain = SampledSearch(trial)
    plain.scalars = unsampled == "scalars"
    for epoch in range(3):
        tau = [10.0, 5.05, 0.1][epoch]
        plain.relax = lambda alpha, tau=tau: plain_draw(alpha, tau, generator)[0]
        train_batch, val_batch = trial._data.next_batches()
        plain.alpha_step(val_batch)
        plain.weight_step(epoch, train_batch, plain.op_weights())
        one_step(trial, epoch, train_batch, val_batch)
        plain.assert_equal(trial)


@pytest.mark.parametrize("unsampled", ["scalars", "dropped"])
def test_only_the_drawn_operation_of_an_edge_runs(unsampled: str) -> None:
    trial = small_search({"name": "gdas", "unsampled": unsampled}, space="darts", batch_size=6)
    seen = note_mixtures(trial)
    for _ in range(4):
        one_step(trial, 0, *trial._data.next_batches())
    assert len(seen) == 8
    drawn = []
    for mixture in seen:
        assert mixture.active is not None
        assert (mixture.offsets is None) == (unsampled == "dropped")
        for name, active in mixture.active.items():
            assert (active.sum(dim=-1) == 1).all()
            assert (mixture.op_weights[name][~active] == 0.0).all()
        drawn.append(torch.cat([active.flatten() for active in mixture.active.values()]))
    # Each pass has a draw of its own: alpha and weight passes alike.
    for index, mask in enumerate(drawn):
        assert all(not torch.equal(mask, other) for other in drawn[:index])


def test_a_step_is_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, backwards = counted(small_search("gdas", batch_size=6), 0, monkeypatch)
    assert forwards == Counter(batch_and_update=2)
    assert backwards == Counter(alphas=1, weights=1)


def test_a_sampled_pass_runs_no_convolution_that_was_not_drawn() -> None:
    trial = small_search("gdas", space="darts", batch_size=6)
    ran: list[int] = []
    operations = [
        (index, row, mix.operations[0].index(name), operation)
        for index, cell in enumerate(trial._bilevel.supernet.trunk.layers)
        for mix in cell.mixes  # type: ignore[union-attr]
        for name, each in mix.edge_operations.items()  # type: ignore[union-attr]
        for row, operation in zip(mix.rows, each, strict=True)  # type: ignore[arg-type]
        if name.startswith("sep")
    ]
    for number, (*_, operation) in enumerate(operations):
        operation.register_forward_hook(lambda *_, number=number: ran.append(number))
    seen = note_mixtures(trial)
    one_step(trial, 0, *trial._data.next_batches())
    expected = []
    for mixture in seen:
        assert mixture.active is not None
        for number, (index, row, column, _) in enumerate(operations):
            cell = trial._bilevel.supernet.trunk.layers[index].topology.name
            if mixture.active[cell][row, column]:
                expected.append(number)
    assert len(expected) > 3
    assert sorted(ran) == sorted(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau_max": 0.0}, "tau_max must be a finite number > 0, got 0.0"),
        ({"tau_min": -1.0}, "tau_min must be a finite number > 0, got -1.0"),
        ({"tau_max": math.inf}, "tau_max must be a finite number > 0, got inf"),
        ({"tau_max": 0.05}, r"tau_max must be >= tau_min \(0.1\), got 0.05"),
    ],
)
def test_it_refuses_impossible_temperatures(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**settings)  # type: ignore[arg-type]


def test_it_takes_no_perturbation() -> None:
    with pytest.raises(PluginSettingsError, match="gdas runs one drawn operation on an edge"):
        small_search({"name": "gdas", "perturb": "sdarts_rs"})
