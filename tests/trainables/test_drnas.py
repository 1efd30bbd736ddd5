"""DrNAS: draws and their gradients against torch's own and expectations, penalties, a search."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from scipy import integrate, special
from torch import Tensor

from tests.trainables.plain_search import PlainSearch, note_mixtures, one_step
from tests.trainables.searches import small_search
from tests.trainables.test_passes import counted
from trainables.compose import build_method
from trainables.method import Method, OpWeights, SearchPoint
from trainables.methods.drnas import Config, concentrations, draw_dirichlet, mean_weights

pytestmark = pytest.mark.usefixtures("tiny_plugins")


def point(seed: int = 0) -> SearchPoint:
    return SearchPoint(0, 3, torch.Generator().manual_seed(seed))


def method_of(**settings: Any) -> Method:
    return build_method("drnas", Config(**settings), epochs=3)


def random_alphas(seed: int, *shapes: tuple[int, int]) -> OpWeights:
    source = torch.Generator().manual_seed(seed)
    return {
        f"cell {index}": torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()
        for index, shape in enumerate(shapes)
    }


def plain_concentration(value: float) -> float:
    return 1.0 + value if value > 0 else 1.0 + (math.exp(value) - 1.0)


def plain_beta(alpha: Tensor) -> Tensor:
    return torch.where(alpha > 0, alpha, alpha.exp() - 1.0) + 1.0


# Draws.


@pytest.mark.parametrize("value", [-5.0, -1.0, -0.1, 0.0, 0.1, 1.0, 4.0])
def test_concentrations_are_elu_plus_one(value: float) -> None:
    alpha = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    beta = concentrations(alpha)
    assert beta.item() == pytest.approx(plain_concentration(value), rel=1e-12)
    (slope,) = torch.autograd.grad(beta, alpha)
    # At 0 too: there a clamp would have no slope.
    assert slope.item() == pytest.approx(min(1.0, math.exp(value)), rel=1e-12)


def test_draws_and_gradients_are_those_of_torchs_dirichlet() -> None:
    alphas = random_alphas(1, (14, 8), (6, 5))
    costs = random_alphas(2, (14, 8), (6, 5))
    found = draw_dirichlet(alphas, point(seed=5))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name, alpha in alphas.items():
            expected = torch.distributions.Dirichlet(plain_beta(alpha)).rsample()
            torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-15)
            mine, theirs = (
                torch.autograd.grad((q * costs[name].detach()).sum(), alpha)[0]
                for q in (found[name], expected)
            )
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
            assert mine.abs().max() > 0.01


def test_mean_draws_and_mean_gradients_are_those_of_the_expectation() -> None:
    # E[sum_i c_i p_i^2] = sum_i c_i b_i (b_i + 1) / (b (b + 1)), with b the sum of all b_i.
    row = torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64)
    costs = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    number = 60_000
    alphas = {"cell": row.expand(number, 3).clone().requires_grad_()}
    drawn = draw_dirichlet(alphas, point())["cell"]

    def expectation(values: list[float]) -> float:
        betas = [plain_concentration(value) for value in values]
        total = sum(betas)
        terms = [c * b * (b + 1.0) for c, b in zip(costs.tolist(), betas, strict=True)]
        return sum(terms) / (total * (total + 1.0))

    value = (costs * drawn.square()).sum(dim=-1)
    (gradients,) = torch.autograd.grad(value.sum(), alphas["cell"])
    error = value.detach().std().item() / math.sqrt(number)
    assert abs(value.mean().item() - expectation(row.tolist())) < 4 * error
    for column in range(3):
        ends = []
        for step in (1e-5, -1e-5):
            moved = row.tolist()
            moved[column] += step
            ends.append(expectation(moved))
        slope = (ends[0] - ends[1]) / 2e-5
        entries = gradients[:, column]
        error = entries.std().item() / math.sqrt(number)
        assert error < 0.1 * abs(slope)
        assert abs(entries.mean().item() - slope) < 4 * error


def test_the_gradient_of_two_operations_is_that_of_the_beta_quantile() -> None:
    # At a fixed share u of the distribution of p_0 it is the derivative of the quantile at u.
    for seed in range(5):
        alpha = torch.tensor([[-0.7, 0.4]], dtype=torch.float64, requires_grad=True)
        drawn = draw_dirichlet({"cell": alpha}, point(seed))["cell"][0, 0]
        (found,) = torch.autograd.grad(drawn, alpha)
        first, second = (plain_concentration(value) for value in alpha[0].tolist())
        share = special.betainc(first, second, drawn.item())
        step = 1e-6

        def quantile(a: float, b: float, share: float = share) -> float:
            return float(special.betaincinv(a, b, share))

        slope = (quantile(first + step, second) - quantile(first - step, second)) / (2 * step)
        # d elu(alpha) / d alpha = exp(alpha) below 0.
        assert found[0, 0].item() == pytest.approx(slope * math.exp(-0.7), rel=1e-3)


def test_every_pass_draws_anew_and_cell_types_draw_in_turn() -> None:
    alphas = {"a": torch.zeros(4, 4), "b": torch.zeros(4, 4)}
    at = point()
    first, second = draw_dirichlet(alphas, at), draw_dirichlet(alphas, at)
    seen = [first["a"], first["b"], second["a"], second["b"]]
    for index, matrix in enumerate(seen):
        assert all(not torch.equal(matrix, other) for other in seen[:index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "row",
    [[-2000.0] * 5, [-30.0] * 5, [-2000.0, 0.0, 0.0, 0.0, 0.0], [-20.0, 50.0, -90.0, -10.0, 1.0]],
    ids=str,
)
def test_extreme_alphas_leave_everything_finite(dtype: torch.dtype, row: list[float]) -> None:
    alphas = {"cell": torch.tensor([row] * 50, dtype=dtype, requires_grad=True)}
    for found in (draw_dirichlet(alphas, point()), mean_weights(alphas, point())):
        matrix = found["cell"]
        assert matrix.isfinite().all()
        assert (matrix.sum(dim=-1) - 1.0).abs().max() < 1e-5
        (gradient,) = torch.autograd.grad((matrix * torch.arange(5.0)).sum(), alphas["cell"])
        assert gradient.isfinite().all()
    for reg in ("l2", "kl"):
        penalty = method_of(reg=reg).penalty
        assert penalty is not None
        value = penalty(alphas, point())
        (gradient,) = torch.autograd.grad(value, alphas["cell"])
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_the_mean_is_that_of_the_distribution() -> None:
    alphas = random_alphas(3, (6, 5))
    mean = mean_weights(alphas, point())["cell 0"]
    for row, alpha in zip(mean.tolist(), alphas["cell 0"].tolist(), strict=True):
        betas = [plain_concentration(value) for value in alpha]
        assert row == pytest.approx([beta / sum(betas) for beta in betas], rel=1e-13)
    assert torch.equal(mean.argmax(dim=-1), alphas["cell 0"].argmax(dim=-1))


# Penalties.


def plain_kl(betas: list[float]) -> float:
    """KL(Dirichlet(betas) || Dirichlet(1)) = log Gamma(b) - sum log Gamma(b_i) - log Gamma(K)
    + sum (b_i - 1) (digamma(b_i) - digamma(b))."""
    total = sum(betas)
    value = math.lgamma(total) - math.lgamma(len(betas))
    for beta in betas:
        value -= math.lgamma(beta)
        value += (beta - 1.0) * float(special.digamma(beta) - special.digamma(total))
    return value


def test_the_plain_divergence_is_an_integral() -> None:
    # Two operations: a beta density against 1.
    first, second = 2.0, 0.7

    def integrand(x: float) -> float:
        density = x ** (first - 1) * (1 - x) ** (second - 1) / special.beta(first, second)
        return float(density * math.log(density))

    value, _ = integrate.quad(integrand, 0.0, 1.0)
    assert plain_kl([first, second]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("reg_scale", [1e-3, 0.2])
def test_penalties_are_sums_over_all_edges(reg_scale: float) -> None:
    alphas = random_alphas(4, (6, 5), (3, 4))
    rows = [row for alpha in alphas.values() for row in alpha.tolist()]
    expected = {
        "l2": sum(value**2 / 2 for row in rows for value in row),
        "kl": sum(plain_kl([plain_concentration(value) for value in row]) for row in rows),
    }
    for reg, value in expected.items():
        penalty = method_of(reg=reg, reg_scale=reg_scale).penalty
        assert penalty is not None
        assert penalty(alphas, point()).item() == pytest.approx(reg_scale * value, rel=1e-10)
        uniform = {"cell": torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)}
        (pull,) = torch.autograd.grad(penalty(uniform, point()), uniform["cell"])
        assert pull.abs().max() < 1e-12
    assert method_of().penalty is None


# In a search.

PENALTIES: dict[str, Any] = {
    "none": None,
    "l2": lambda alphas: torch.stack([1e-3 * (a * a).sum() / 2 for a in alphas.values()]).sum(),
    "kl": lambda alphas: 0.05 * torch.stack([kl_of(a) for a in alphas.values()]).sum(),
}


def kl_of(alpha: Tensor) -> Tensor:
    beta = plain_beta(alpha)
    total = beta.sum(dim=-1, keepdim=True)
    inner = (beta - 1) * (torch.digamma(beta) - torch.digamma(total)) - torch.lgamma(beta)
    constant = torch.lgamma(total.squeeze(-1)) - math.lgamma(beta.shape[-1])
    return (inner.sum(dim=-1) + constant).sum()


@pytest.mark.parametrize(
    ("reg", "space"), [("none", "nasbench201"), ("kl", "darts"), ("l2", "nasbench201")]
)
def test_steps_equal_those_of_a_plain_search(reg: str, space: str) -> None:
    settings = {"name": "drnas", "reg": reg} | ({"reg_scale": 0.05} if reg == "kl" else {})
    trial = small_search(settings, space=space, precision="float64", batch_size=6)
    plain = PlainSearch(
        trial, relax=lambda alpha: torch.distributions.Dirichlet(plain_beta(alpha)).rsample()
    )
    seen = note_mixtures(trial)
    # torch's Dirichlet draws from the global generator.
    with torch.random.fork_rng():
        torch.set_rng_state(trial._bilevel.generators["method"].get_state())
        for epoch in range(3):
            train_batch, val_batch = trial._data.next_batches()
            plain.alpha_step(val_batch, PENALTIES[reg])
            plain.weight_step(epoch, train_batch, plain.op_weights())
            one_step(trial, epoch, train_batch, val_batch)
            plain.assert_equal(trial)
    firsts = [next(iter(mixture.op_weights.values())) for mixture in seen]
    assert len(firsts) == 6
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(firsts) for b in firsts[:i])


def test_l2_is_weight_decay() -> None:
    # The docstring's claim: l2 at 1e-3 without decay is the default decay of 1e-3 without l2.
    trials = [
        small_search({"name": "drnas"}, precision="float64"),
        small_search({"name": "drnas", "reg": "l2"}, precision="float64", alpha_weight_decay=0.0),
        small_search({"name": "drnas"}, precision="float64", alpha_weight_decay=0.0),
    ]
    for trial in trials:
        trial.run()
    decayed, penalized, free = (trial.alphas["cell"] for trial in trials)
    torch.testing.assert_close(decayed, penalized, rtol=0, atol=1e-9)
    assert (decayed - free).abs().max() > 1e-6


def test_a_step_is_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, backwards = counted(small_search("drnas", batch_size=6), 0, monkeypatch)
    assert forwards == Counter(batch_and_update=2)
    assert backwards == Counter(alphas=1, weights=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reg": "kl", "reg_scale": -1.0}, "reg_scale must be a finite number >= 0, got -1.0"),
        ({"reg": "l2", "reg_scale": math.inf}, "reg_scale must be a finite number >= 0, got inf"),
        ({"reg_scale": 0.1}, "reg_scale has no effect with reg none; leave it out, got 0.1"),
    ],
)
def test_it_refuses_penalties_of_no_effect(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**settings)
