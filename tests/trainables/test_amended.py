"""The amended alpha gradient: closed forms, what is claimed of it, and a plain implementation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces.core import layers, plugins
from spaces.core.mixture import Mixture, Norm
from tests.trainables.searches import differences, small_search, untimed
from trainables.compose import build_method
from trainables.implicit import (
    Alphas,
    AlphaStep,
    BilevelProblem,
    amended,
    by_difference,
    exactly,
    first_order,
)
from trainables.method import Method, SearchPoint
from trainables.search import SearchTrial
from trainables.timing import Stopwatch

pytestmark = pytest.mark.usefixtures("tiny_plugins")

Loss = Callable[[Sequence[Tensor], Alphas], Tensor]
AMENDED = {"name": "amended_darts"}
AT = SearchPoint(0, 1, torch.Generator())
# On quadratic losses a central difference is exact at every radius, and rounds least at large ones.
PRODUCTS = [partial(by_difference, radius=1.0), exactly]
both_products = pytest.mark.parametrize("product", PRODUCTS, ids=["difference", "exact"])


def float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def problem_of(
    weights: Sequence[Tensor], alphas: Alphas, train: Loss, val: Loss, *, weight_decay: float = 0.0
) -> BilevelProblem:
    for leaf in [*weights, *alphas.values()]:
        leaf.requires_grad_(True)
    return BilevelProblem(
        alphas=alphas,
        weights=weights,
        momentum_buffers=[None] * len(weights),
        train_loss=lambda given, _norm: train(weights, given),
        val_loss=lambda given, _norm: val(weights, given),
        weight_lr=0.1,
        weight_momentum=0.0,
        weight_decay=weight_decay,
    )


def quadratic(
    hessian: Tensor, mixed: Tensor, other: Tensor, direct: Tensor, *, weight_decay: float = 0.0
) -> tuple[BilevelProblem, Tensor]:
    """L_tr = w'Hw/2 + a'Aw and L_val = w'Gw/2 + c'a at some w, a; and v = Gw.

    The weights are two tensors and the alphas two cell types, so that a product has to put the
    parts together.
    """
    source = torch.Generator().manual_seed(0)
    size, rows = len(hessian), len(mixed)
    w = torch.randn(size, generator=source, dtype=torch.float64)
    weights = [w[:1].clone(), w[1:].clone()]
    alphas = {"normal": float64([[0.3] * (rows - 1)]), "reduction": float64([[-0.7]])}

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten() for part in parts])

    problem = problem_of(
        weights,
        alphas,
        lambda w, a: (
            joined(w) @ hessian @ joined(w) / 2 + joined(list(a.values())) @ mixed @ joined(w)
        ),
        lambda w, a: joined(w) @ other @ joined(w) / 2 + direct @ joined(list(a.values())),
        weight_decay=weight_decay,
    )
    return problem, other @ w


def flat(gradients: Alphas) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def symmetric(seed: int, size: int) -> Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    return (matrix + matrix.T) / 2


HESSIAN, OTHER = symmetric(1, 4), symmetric(2, 4)
MIXED = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)).double()
DIRECT = float64([0.5, -1.0, 2.0])


@both_products
@pytest.mark.parametrize("eta", [0.0, 0.1, 2.0])
def test_it_is_g1_less_eta_a_h_v(product: Any, eta: float) -> None:
    problem, v = quadratic(HESSIAN, MIXED, OTHER, DIRECT)
    found = amended(problem, product, eta=eta, weight_decay=0.0)
    # H of L_tr, not G of L_val; H first, then A.
    expected = DIRECT - eta * (MIXED @ (HESSIAN @ v))
    torch.testing.assert_close(flat(found.gradients), expected, rtol=0, atol=1e-10)
    assert found.gradients["normal"].shape == (1, 2)
    if eta:
        # What it must not be: the curvature of L_val, or a plain vector product.
        assert (flat(found.gradients) - (DIRECT - eta * (MIXED @ (OTHER @ v)))).abs().max() > 0.01
        assert (flat(found.gradients) - (DIRECT - eta * (MIXED @ v))).abs().max() > 0.01


@both_products
def test_weight_decay_adds_its_share_of_v_to_the_product(product: Any) -> None:
    problem, v = quadratic(HESSIAN, MIXED, OTHER, DIRECT)
    found = amended(problem, product, eta=0.3, weight_decay=0.7)
    # L_tr + 0.7 |w|^2 / 2 has the Hessian H + 0.7 I and the same A.
    expected = DIRECT - 0.3 * (MIXED @ (HESSIAN @ v + 0.7 * v))
    torch.testing.assert_close(flat(found.gradients), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("kind", ["methods", "alpha_gradients"])
def test_the_decay_is_that_of_the_weight_optimizer_where_it_counts(kind: str, counts: bool) -> None:
    problem, v = quadratic(HESSIAN, MIXED, OTHER, DIRECT, weight_decay=0.7)
    settings = {"eta": 0.3, "decay_in_hessian": counts, "product": "exact"}
    name = {"methods": "amended_darts", "alpha_gradients": "amended"}[kind]
    _, config = plugins.make_config(kind, {"name": name} | settings, own=True)
    built = plugins.load(kind, name).build(config)
    gradient = built.alpha_gradient if isinstance(built, Method) else built
    expected = DIRECT - 0.3 * (MIXED @ (HESSIAN @ v + 0.7 * counts * v))
    torch.testing.assert_close(flat(gradient(problem, AT).gradients), expected, rtol=0, atol=1e-10)


@both_products
def test_the_angle_to_the_exact_implicit_term_can_be_obtuse(product: Any) -> None:
    # H = diag(1, 10), A = [2, -1], v = (1, 1): A H^-1 v = 2 - 0.1 = 1.9 and A H v = 2 - 10 = -8,
    # whose product is -15.2. L_val = sum(w) has v = (1, 1) and g1 = 0.
    hessian, mixed = torch.diag(float64([1.0, 10.0])), float64([2.0, -1.0])
    problem = problem_of(
        [float64([0.4, -0.2])],
        {"cell": float64([[0.3]])},
        lambda w, a: w[0] @ hessian @ w[0] / 2 + a["cell"].flatten() @ (mixed @ w[0]).reshape(1),
        lambda w, a: w[0].sum() + 0.0 * a["cell"].sum(),
    )
    (gradient,) = amended(problem, product, eta=1.0, weight_decay=0.0).gradients.values()
    exact_term = -(2.0 * 1.0 - 1.0 / 10.0)
    assert gradient.item() == pytest.approx(8.0)
    assert gradient.item() * exact_term == pytest.approx(-15.2)


@examples(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(1.0, 1e4), st.integers(1, 6))
def test_the_angle_is_acute_where_the_mixed_derivatives_commute_with_the_curvature(
    seed: int, condition: float, rank: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=source, dtype=torch.float64))
    spectrum = torch.logspace(0, math.log10(condition), 6, dtype=torch.float64)
    hessian = basis @ torch.diag(spectrum) @ basis.T
    # A = S Q': A'A = Q S^2 Q' has the eigenvectors of H.
    mixed = (torch.diag(torch.randn(6, generator=source, dtype=torch.float64)) @ basis.T)[:rank]
    mixed = torch.cat([mixed, torch.zeros(1, 6, dtype=torch.float64)])
    direct = torch.zeros(rank + 1, dtype=torch.float64)
    problem, v = quadratic(hessian, mixed, symmetric(seed, 6), direct)
    implicit = -flat(amended(problem, exactly, eta=1.0, weight_decay=0.0).gradients)
    exact = mixed @ torch.linalg.solve(hessian, v)
    # v'H A'A H^-1 v = |A v|^2 where they commute.
    expected = (mixed @ v).square().sum().item()
    assert (implicit @ exact).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


# Networks.


@both_products
def test_the_curvature_in_a_normalised_layer_turns_its_weights_into_minus_the_gradient(
    product: Any,
) -> None:
    """Train-mode batch norm makes L(c w_l) = L(w_l), so g(c w_l) = g(w_l) / c and H w_l = -g_l."""
    source = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    images, targets = randn(6, 2, 5, 5), randn(6, 3)

    def train(weights: Sequence[Tensor], alphas: Alphas) -> Tensor:
        x = images
        for weight in weights:
            x = F.batch_norm(F.conv2d(x, weight), None, None, training=True, eps=1e-14)
            x = torch.tanh(alphas["cell"][0, 0] * x) + x.cos()
        return (x.mean(dim=(2, 3)) - targets).square().mean()

    weights = [randn(4, 2, 2, 2), randn(3, 4, 2, 2)]
    problem = problem_of(weights, {"cell": float64([[0.8]])}, train, train)
    gradients = torch.autograd.grad(train(weights, problem.alphas), weights)
    if product is not exactly:
        product = partial(by_difference, radius=1e-5)
    for layer in range(2):
        vector = [w.detach() * (index == layer) for index, w in enumerate(weights)]
        found = product(problem, vector, weights)
        # The other layer's gradient does not depend on the scale of this one: its share is 0.
        for index, (part, gradient) in enumerate(zip(found, gradients, strict=True)):
            expected = -gradient if index == layer else torch.zeros_like(gradient)
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-8)
        assert gradients[layer].abs().max() > 1e-4


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_so_it_is_in_the_first_layer_of_a_supernet(
    monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    monkeypatch.setattr(layers, "EPSILON", 1e-14)
    problem = next_problem(small_search(space=space, precision="float64", batch_size=8))
    stem = problem.weights[0]
    assert stem.dim() == 4
    gradient, *_ = torch.autograd.grad(problem.train_loss(problem.alphas, "batch"), problem.weights)
    vector = [w.detach() if w is stem else torch.zeros_like(w) for w in problem.weights]
    (found,) = exactly(problem, vector, [stem])
    assert gradient.norm() > 1e-3
    assert (found + gradient).norm() / gradient.norm() < 1e-6


def next_problem(trial: SearchTrial) -> BilevelProblem:
    """The problem of a search's next alpha step."""
    caught: list[BilevelProblem] = []

    def gradient(problem: BilevelProblem, _at: SearchPoint) -> AlphaStep:
        caught.append(problem)
        return first_order(problem)

    bilevel = trial._bilevel
    bilevel.method = Method(alpha_gradient=gradient)
    bilevel.alpha_step(bilevel.point(0), *trial._data.next_batches())
    return caught[0]


def step(trial: SearchTrial, epoch: int = 0) -> dict[str, Tensor]:
    bilevel = trial._bilevel
    clocks = Stopwatch(trial.device), Stopwatch(trial.device)
    return bilevel.step(bilevel.point(epoch), *trial._data.next_batches(), clocks)


@pytest.mark.parametrize("space", ["nasbench201", "darts"])
def test_differences_meet_the_exact_products_at_a_small_radius_on_a_supernet(space: str) -> None:
    """In float64, and only far below the authors' radius: the network has kinks."""
    trial = small_search(space=space, precision="float64", batch_size=8)
    step(trial)
    problem = next_problem(trial)
    direct = flat(first_order(problem).gradients)

    def implicit(product: Any) -> Tensor:
        return flat(amended(problem, product, eta=1.0, weight_decay=0.0).gradients) - direct

    exact = implicit(exactly)
    near = implicit(partial(by_difference, radius=1e-7))
    assert exact.abs().max() > 1e-4
    assert (near - exact).norm() / exact.norm() < 1e-4


def test_differences_err_by_the_square_of_the_radius_on_a_smooth_problem() -> None:
    source = torch.Generator().manual_seed(4)
    x = torch.randn(8, 3, generator=source, dtype=torch.float64)
    matrix = torch.randn(4, 3, generator=source, dtype=torch.float64)

    def loss(weights: Sequence[Tensor], alphas: Alphas) -> Tensor:
        p = torch.softmax(alphas["cell"], dim=-1)[0]
        h = x @ weights[0].T
        return (p[0] * torch.tanh(h) + p[1] * torch.sin(h) + p[2] * h * h).exp().mean()

    problem = problem_of([matrix], {"cell": float64([[0.2, -0.1, 0.4]])}, loss, loss)
    exact = flat(amended(problem, exactly, eta=1.0, weight_decay=0.0).gradients)

    def error(radius: float) -> float:
        product = partial(by_difference, radius=radius)
        found = amended(problem, product, eta=1.0, weight_decay=0.0)
        return float((flat(found.gradients) - exact).norm() / exact.norm())

    assert error(1e-2) < 1e-2
    # A tenth of the radius: a hundredth of the error; forward differences would give a tenth.
    assert error(1e-3) == pytest.approx(error(1e-2) / 100, rel=0.05)
    assert error(1e-4) == pytest.approx(error(1e-3) / 100, rel=0.2)


def test_a_noisy_network_gives_equal_products_again_and_again() -> None:
    """Fresh draws for each probe would measure noise / (2 R), which grows as the radius falls."""
    trial = small_search(precision="float64", batch_size=8)
    forward = trial._bilevel.supernet.forward

    def noisy(images: Tensor, *args: Any, generator: torch.Generator, **options: Any) -> Tensor:
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        return forward(images + noise, *args, generator=generator, **options)

    trial._bilevel.supernet.forward = noisy  # type: ignore[method-assign, assignment]
    problem = next_problem(trial)

    def gradient(product: Any) -> Tensor:
        return flat(amended(problem, product, eta=1.0, weight_decay=0.0).gradients)

    exact = gradient(exactly)
    for radius in (1e-2, 1e-5, 1e-7):
        product = partial(by_difference, radius=radius)
        assert torch.equal(gradient(product), gradient(product))
    assert (gradient(product) - exact).norm() / exact.norm() < 1e-4


# The measured angle.


def test_the_angle_is_that_between_the_gradient_and_its_direct_part() -> None:
    problem, v = quadratic(HESSIAN, MIXED, OTHER, DIRECT)
    for eta in (0.01, 0.1, 2.0, 50.0):
        found = amended(problem, exactly, eta=eta, weight_decay=0.0)
        whole = DIRECT - eta * (MIXED @ (HESSIAN @ v))
        # Over the alphas of both cell types together.
        cosine = (whole @ DIRECT / (whole.norm() * DIRECT.norm())).item()
        expected = math.degrees(math.acos(cosine))
        assert found.measured["amended_angle"].item() == pytest.approx(expected, abs=1e-5)
        assert expected > 0.1


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_angle_is_logged_as_the_mean_over_the_steps(precision: str) -> None:
    trial = small_search(AMENDED | {"eta": 5.0}, precision=precision)
    other = small_search(AMENDED | {"eta": 5.0}, precision=precision)
    angles = [step(other)["amended_angle"].item() for _ in range(2)]
    entry = trial.run_epoch()
    assert angles[0] != angles[1]
    assert entry["amended_angle"] == pytest.approx(sum(angles) / 2, rel=1e-12)
    assert 0 < entry["amended_angle"] < 180
    still = small_search(AMENDED | {"eta": 0.0}, precision=precision)
    assert still.run_epoch()["amended_angle"] == 0.0


# Whole searches.


def unequal(first: SearchTrial, second: SearchTrial) -> list[str]:
    """What differs besides the names of the methods."""
    return [path for path in differences(first, second) if path != "/identity"]


@pytest.mark.parametrize("product", ["difference", "exact"])
def test_without_amendment_the_search_is_first_order_darts(product: str) -> None:
    darts, still = small_search(), small_search(AMENDED | {"eta": 0.0, "product": product})
    darts.run()
    still.run()
    assert [entry["amended_angle"] for entry in still.curve] == [0.0] * 3
    left = [{k: v for k, v in e.items() if k != "amended_angle"} for e in untimed(still)]
    assert left == untimed(darts)
    assert torch.equal(still.alphas["cell"], darts.alphas["cell"])
    weights = zip(still._bilevel.weights, darts._bilevel.weights, strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in weights)


@pytest.mark.parametrize(
    "settings",
    [{}, {"eta": 2.0, "product": "exact", "decay_in_hessian": True}, {"probe_radius": 1e-3}],
    ids=str,
)
def test_as_a_part_of_darts_it_is_the_method_itself(settings: dict[str, Any]) -> None:
    methods = [
        AMENDED | settings,
        {"name": "darts", "alpha_gradient": {"name": "amended"} | settings},
        "darts",
    ]
    whole, part, plain = (small_search(method, epochs=2, batch_size=24) for method in methods)
    for trial in (whole, part, plain):
        trial.run()
    assert unequal(whole, part) == []
    assert not torch.equal(whole.alphas["cell"], plain.alphas["cell"])


def test_with_a_perturbation_the_implicit_term_is_taken_at_clean_op_weights() -> None:
    trials = [
        small_search({"name": "darts", "alpha_gradient": "amended"} | extra, batch_size=8)
        for extra in ({}, {"perturb": {"name": "sdarts_rs", "radius_start": 0.3}})
    ]
    for trial in trials:
        step(trial)
    # The first alpha step sees no perturbation; the first weight step does.
    assert torch.equal(trials[0].alphas["cell"], trials[1].alphas["cell"])
    weights = zip(*(trial._bilevel.weights for trial in trials), strict=True)
    assert not all(torch.equal(a, b) for a, b in weights)


def plain_alpha_gradient(
    supernet: torch.nn.Module,
    alphas: Alphas,
    train_batch: Any,
    val_batch: Any,
    *,
    eta: float,
    radius: float,
    weight_decay: float,
) -> list[Tensor]:
    """The pseudo-code: copies of a network, `backward` and `.grad`."""

    def gradients(network: torch.nn.Module, batch: Any, norm: Norm) -> tuple[list[Any], list[Any]]:
        leaves = {name: alpha.detach().clone().requires_grad_() for name, alpha in alphas.items()}
        op_weights = {name: torch.softmax(alpha, dim=-1) for name, alpha in leaves.items()}
        network.zero_grad()
        F.cross_entropy(network(batch[0], Mixture(op_weights), norm=norm), batch[1]).backward()
        return [leaf.grad for leaf in leaves.values()], [
            torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in network.parameters()
        ]

    def length(vector: list[Tensor]) -> float:
        return math.sqrt(sum(value**2 for part in vector for value in part.flatten().tolist()))

    def probe(vector: list[Tensor], scale: float) -> tuple[list[Tensor], list[Tensor]]:
        shifted = copy.deepcopy(supernet)
        with torch.no_grad():
            for weight, part in zip(shifted.parameters(), vector, strict=True):
                weight.add_(part, alpha=scale)
        return gradients(shifted, train_batch, "batch")

    direct, v = gradients(supernet, val_batch, "batch_and_update")
    first = radius / length(v)
    u = [
        (above - below) / (2 * first) + weight_decay * part
        for above, below, part in zip(probe(v, first)[1], probe(v, -first)[1], v, strict=True)
    ]
    second = radius / length(u)
    s = [
        (above - below) / (2 * second)
        for above, below in zip(probe(u, second)[0], probe(u, -second)[0], strict=True)
    ]
    return [g - eta * part for g, part in zip(direct, s, strict=True)]


@pytest.mark.parametrize(
    "settings", [{}, {"eta": 3.0, "probe_radius": 1e-4, "decay_in_hessian": True}], ids=str
)
def test_steps_equal_those_of_a_plain_implementation(settings: dict[str, Any]) -> None:
    trial, other, plain = (
        small_search(method, precision="float64", weight_decay=0.05)
        for method in (AMENDED | settings, AMENDED | settings, "darts")
    )
    supernet = copy.deepcopy(other._bilevel.supernet)
    alphas = {n: alpha.detach().clone().requires_grad_() for n, alpha in other.alphas.items()}
    sgd = torch.optim.SGD(supernet.parameters(), lr=0.025, momentum=0.9, weight_decay=0.05)
    adam = torch.optim.Adam(alphas.values(), lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3)
    for epoch in range(3):
        train_batch, val_batch = other._data.next_batches()
        found = plain_alpha_gradient(
            supernet,
            alphas,
            train_batch,
            val_batch,
            eta=settings.get("eta", 0.1),
            radius=settings.get("probe_radius", 0.01),
            weight_decay=0.05 if settings.get("decay_in_hessian") else 0.0,
        )
        for alpha, gradient in zip(alphas.values(), found, strict=True):
            alpha.grad = gradient
        adam.step()
        for group in sgd.param_groups:
            group["lr"] = 0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * epoch / 3)) / 2
        sgd.zero_grad()
        op_weights = {name: torch.softmax(alpha.detach(), dim=-1) for name, alpha in alphas.items()}
        logits = supernet(train_batch[0], Mixture(op_weights), norm="batch_and_update")
        F.cross_entropy(logits, train_batch[1]).backward()
        torch.nn.utils.clip_grad_norm_(supernet.parameters(), 5.0)
        sgd.step()

        step(trial, epoch)
        for name, alpha in alphas.items():
            torch.testing.assert_close(trial.alphas[name], alpha, rtol=0, atol=1e-9)
        for mine, theirs in zip(
            trial._bilevel.supernet.state_dict().values(),
            supernet.state_dict().values(),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    for epoch in range(3):
        step(plain, epoch)
    # Without this, an implicit term too small to see would pass.
    assert max((plain.alphas[n] - alphas[n]).abs().max().item() for n in alphas) > 1e-4


def test_the_method_has_no_other_part() -> None:
    name, config = plugins.make_config("methods", "amended_darts")
    method = build_method(name, config, epochs=1)
    assert method.perturb is None
    assert (method.alpha_start, method.genotype_of) == (0.0, "last_epoch")
