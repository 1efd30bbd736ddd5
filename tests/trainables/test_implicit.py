"""Alpha gradients against the authors' code, closed forms and exact differentiation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces.core.mixture import Norm
from trainables.implicit import (
    Alphas,
    BilevelProblem,
    by_difference,
    displaced,
    exactly,
    first_order,
    unrolled,
)

DIFFERENCE = partial(by_difference, radius=0.01)
Loss = Callable[[Sequence[Tensor], Alphas], Tensor]


def problem_of(
    weights: Sequence[Tensor],
    alphas: Alphas,
    train: Loss,
    val: Loss,
    *,
    weight_lr: float = 0.1,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    buffers: Sequence[Tensor | None] | None = None,
    calls: list[tuple[str, Norm]] | None = None,
) -> BilevelProblem:
    """A problem on analytic losses that notes its calls."""
    for leaf in [*weights, *alphas.values()]:
        leaf.requires_grad_(True)

    def noted(name: str, loss: Loss) -> Callable[[Alphas, Norm], Tensor]:
        def evaluate(given: Alphas, norm: Norm) -> Tensor:
            if calls is not None:
                calls.append((name, norm))
            return loss(weights, given)

        return evaluate

    return BilevelProblem(
        alphas=alphas,
        weights=weights,
        momentum_buffers=[None] * len(weights) if buffers is None else buffers,
        train_loss=noted("train", train),
        val_loss=noted("val", val),
        weight_lr=weight_lr,
        weight_momentum=momentum,
        weight_decay=weight_decay,
    )


def golden_problem(case: dict[str, Any]) -> BilevelProblem:
    def tensor(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def loss_on(split: str) -> Loss:
        x, y = tensor(case[f"x_{split}"]), tensor(case[f"y_{split}"])

        def loss(weights: Sequence[Tensor], alphas: Alphas) -> Tensor:
            w1, w2 = weights
            h = torch.tanh(x @ w1.T)
            p0, p1 = (torch.softmax(alpha, dim=-1) for alpha in alphas.values())
            m = p0[0, 0] * h + p0[0, 1] * torch.sin(h)
            k = p0[1, 0] * h * h + p0[1, 1] * torch.cos(h)
            z = p1[0, 0] * m + p1[0, 1] * k + p1[1, 0] * m * k + p1[1, 1] * torch.exp(-m * m)
            return F.softplus(-y * (z @ w2)).mean()

        return loss

    return problem_of(
        [tensor(case["W1"]), tensor(case["w2"])],
        {f"cell {index}": tensor(alpha) for index, alpha in enumerate(case["alphas"])},
        loss_on("train"),
        loss_on("val"),
        weight_lr=case["weight_lr"],
        momentum=case["momentum"],
        weight_decay=case["weight_decay"],
        buffers=[None if b is None else tensor(b) for b in case["momentum_buffers"]],
    )


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((shared_data / "golden/unrolled.json").read_text())
    # Both kinds must be there: without momentum buffers, and with them and weight decay.
    assert {case["momentum_buffers"][0] is None for case in cases} == {True, False}
    return cases


def test_gradients_equal_those_of_the_authors_code(golden: list[dict[str, Any]]) -> None:
    for case in golden:
        problem = golden_problem(case)
        for found, expected in (
            (first_order(problem), case["first_order"]),
            (unrolled(problem, DIFFERENCE), case["unrolled"]),
        ):
            for gradient, values in zip(found.gradients.values(), expected, strict=True):
                wanted = torch.tensor(values, dtype=torch.float64)
                torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lost", ["momentum", "weight_decay", "weight_lr"])
def test_momentum_decay_and_rate_are_in_the_virtual_step(
    golden: list[dict[str, Any]], lost: str
) -> None:
    case = next(c for c in golden if c["momentum_buffers"][0] is not None)
    whole = unrolled(golden_problem(case), DIFFERENCE).gradients
    without = unrolled(golden_problem(case | {lost: 0.0}), DIFFERENCE).gradients
    assert max((whole[n] - without[n]).abs().max() for n in whole) > 1e-6


def quadratic(
    weight_lr: float, momentum: float, weight_decay: float, buffer: float | None
) -> tuple[BilevelProblem, float]:
    """L_train = (w - a)^2 / 2 and L_val = (w - 1)^2 / 2 at w = 3, a = 2, and dL_val(w')/da."""
    w, a = 3.0, 2.0
    problem = problem_of(
        [torch.tensor(w, dtype=torch.float64)],
        {"cell": torch.tensor([[a]], dtype=torch.float64)},
        lambda weights, alphas: (weights[0] - alphas["cell"]).square().sum() / 2,
        lambda weights, alphas: (weights[0] - 1.0).square() / 2,
        weight_lr=weight_lr,
        momentum=momentum,
        weight_decay=weight_decay,
        buffers=[None if buffer is None else torch.tensor(buffer, dtype=torch.float64)],
    )
    # w' = w - lr (m b + (w - a) + decay w), so dw'/da = lr and dL_val(w')/da = lr (w' - 1).
    shifted = w - weight_lr * (momentum * (buffer or 0.0) + (w - a) + weight_decay * w)
    return problem, weight_lr * (shifted - 1.0)


@pytest.mark.parametrize("product", [DIFFERENCE, exactly], ids=["difference", "exact"])
@pytest.mark.parametrize("weight_lr", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(
    ("momentum", "decay", "buffer"), [(0.0, 0.0, None), (0.9, 0.3, None), (0.9, 0.3, -2.0)]
)
def test_unrolled_gradient_matches_the_closed_form(
    product: Any, weight_lr: float, momentum: float, decay: float, buffer: float | None
) -> None:
    problem, expected = quadratic(weight_lr, momentum, decay, buffer)
    assert unrolled(problem, product).gradients["cell"].item() == pytest.approx(expected, abs=1e-12)


def test_mixed_product_is_that_of_the_training_loss() -> None:
    # L_train = sum_ij M_ij a_i w_j + (other curvature), so d2/(da dw) v = M v, whatever L_val is.
    matrix = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 4.0]], dtype=torch.float64)
    vector = torch.tensor([0.3, -0.7, 2.0], dtype=torch.float64)
    problem = problem_of(
        [torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)],
        {"cell": torch.tensor([[0.2, -0.4]], dtype=torch.float64)},
        lambda w, a: (a["cell"] @ matrix @ w[0]).sum() + w[0].square().sum() * 5,
        lambda w, a: (w[0].square().sum()) * 7,
    )
    for product in (DIFFERENCE, exactly):
        (found,) = product(problem, [vector], [problem.alphas["cell"]])
        torch.testing.assert_close(found[0], matrix @ vector, rtol=0, atol=1e-10)
        # The other targets: H v = 10 v.
        (found,) = product(problem, [vector], problem.weights)
        torch.testing.assert_close(found, 10.0 * vector, rtol=0, atol=1e-10)


def test_a_zero_vector_gives_a_zero_product_and_no_nan() -> None:
    problem, _ = quadratic(0.1, 0.0, 0.0, None)
    for product in (DIFFERENCE, exactly):
        zero = [torch.zeros((), dtype=torch.float64)]
        for target in (problem.alphas["cell"], problem.weights[0]):
            (found,) = product(problem, zero, [target])
            assert found.item() == 0.0


def test_difference_converges_to_the_exact_product(golden: list[dict[str, Any]]) -> None:
    problem = golden_problem(golden[-1])
    vector = [torch.full_like(weight, 0.5) for weight in problem.weights]
    for targets in (list(problem.alphas.values()), list(problem.weights)):
        exact = exactly(problem, vector, targets)

        def error(radius: float, targets: list[Tensor] = targets, exact: Any = exact) -> float:
            found = by_difference(problem, vector, targets, radius=radius)
            return max((a - b).abs().max().item() for a, b in zip(found, exact, strict=True))

        # A central difference errs by O(radius^2) on a smooth loss; forward would be O(radius).
        assert error(1e-2) < 1e-2
        assert error(1e-3) == pytest.approx(error(1e-2) / 100, rel=0.1)


def test_passes_and_norms_are_those_that_are_documented() -> None:
    calls: list[tuple[str, Norm]] = []
    problem, _ = quadratic(0.1, 0.9, 0.0, None)
    noted = problem_of(
        problem.weights,
        problem.alphas,
        lambda w, a: (w[0] * a["cell"]).square().sum(),
        lambda w, a: (w[0] + a["cell"]).square().sum(),
        calls=calls,
    )
    first_order(noted)
    assert calls == [("val", "batch_and_update")]
    calls.clear()
    unrolled(noted, DIFFERENCE)
    assert calls == [
        ("train", "batch_and_update"),
        ("val", "batch"),
        ("train", "batch"),
        ("train", "batch"),
    ]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_weights_alphas_and_grads_are_untouched_even_after_an_error(fails_at: int) -> None:
    count = 0

    def train(weights: Sequence[Tensor], alphas: Alphas) -> Tensor:
        nonlocal count
        count += 1
        if count == fails_at:
            raise ArithmeticError("a failing pass")
        return (weights[0] * alphas["cell"]).square().sum()

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, generator=generator)
    alpha = torch.randn(1, 7, generator=generator)
    before = weight.clone(), alpha.clone()
    problem = problem_of(
        [weight], {"cell": alpha}, train, lambda w, a: (w[0] - a["cell"]).square().sum()
    )
    with pytest.raises(ArithmeticError):
        unrolled(problem, DIFFERENCE)
    count = 10
    unrolled(problem, DIFFERENCE)
    assert torch.equal(weight.detach(), before[0])
    assert torch.equal(alpha.detach(), before[1])
    assert weight.grad is None
    assert alpha.grad is None


def test_displaced_moves_from_the_entry_values_and_restores_bit_for_bit() -> None:
    weight = torch.tensor([0.1, 1e-8, 3.0], requires_grad=True)
    before = weight.detach().clone()
    shift = [torch.tensor([1.0, 1e8, 1e-9])]
    with displaced([weight]) as move:
        move(shift, 0.5)
        move(shift, 2.0)
        assert torch.equal(weight.detach(), before + 2.0 * shift[0])
    assert torch.equal(weight.detach(), before)


def test_losses_see_only_the_weights_they_are_given_a_gradient_for() -> None:
    problem, _ = quadratic(0.1, 0.0, 0.0, None)
    replaced = dataclasses.replace(
        problem, val_loss=lambda alphas, norm: alphas["cell"].square().sum()
    )
    # L_val without weights: the unrolled gradient is the direct one, 2 a = 4, and v is zero.
    assert unrolled(replaced, DIFFERENCE).gradients["cell"].item() == pytest.approx(4.0)
