"""Perturbations: the authors' numbers, closed forms, limits, and a second plain implementation."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from spaces.core import plugins
from spaces.core.mixture import Mixture, Norm
from tests.trainables.searches import small_search
from trainables.compose import build_method
from trainables.errors import MethodError
from trainables.method import Method, OpWeights, SearchPoint
from trainables.methods import ms_darts
from trainables.search import SearchTrial
from trainables.simplex import clamp_and_rescale, uniform_noise
from trainables.timing import Stopwatch

pytestmark = pytest.mark.usefixtures("tiny_plugins")

FLAT = 1e9
"""A bandwidth at which all samples are equally near."""

Rows = list[list[float]]
PlainLoss = Callable[[list[Rows]], float]
PlainGradient = Callable[[list[Rows]], list[Rows]]


def method_of(**settings: Any) -> Method:
    name, config = plugins.make_config("methods", settings)
    return build_method(name, config, epochs=100)


def perturbed(settings: dict[str, Any], op_weights: OpWeights, at: SearchPoint) -> OpWeights:
    perturb = method_of(**settings).perturb
    assert perturb is not None
    return perturb(op_weights, at)


def constant_radius(radius: float) -> dict[str, float]:
    return {"radius_start": radius, "radius_max": radius}


def point(
    seed: int, train_loss: Callable[[OpWeights], Tensor], norms: list[Norm] | None = None
) -> SearchPoint:
    def loss(op_weights: OpWeights, norm: Norm) -> Tensor:
        if norms is not None:
            norms.append(norm)
        return train_loss(op_weights)

    return SearchPoint(0, 1, torch.Generator().manual_seed(seed), loss)


def random_op_weights(seed: int, *shapes: tuple[int, int]) -> OpWeights:
    source = torch.Generator().manual_seed(seed)
    return {
        f"cell {index}": torch.randn(shape, generator=source, dtype=torch.float64).softmax(-1)
        for index, shape in enumerate(shapes)
    }


# The second implementation: straight from the pseudo-code, one entry at a time.


def plain_projection(rows: Rows) -> Rows:
    found = []
    for row in rows:
        clamped = [min(max(value, 0.0), 1.0) for value in row]
        if all(value == 0.0 for value in clamped):
            clamped[row.index(max(row))] = 1.0
        total = sum(clamped)
        found.append([value / total for value in clamped])
    return found


def plain_noise(shape: Rows, radius: float, generator: torch.Generator) -> Rows:
    draws = torch.zeros(len(shape), len(shape[0]), dtype=torch.float64)
    noise: Rows = draws.uniform_(-radius, radius, generator=generator).tolist()
    return noise


def plain_sum(first: Rows, second: Rows) -> Rows:
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(first, second, strict=True)]


def plain_smoothing(clean: list[Rows], radius: float, generator: torch.Generator) -> list[Rows]:
    return [
        plain_projection(plain_sum(rows, plain_noise(rows, radius, generator))) for rows in clean
    ]


def plain_attack(
    clean: list[Rows],
    radius: float,
    generator: torch.Generator,
    loss: PlainLoss,
    gradient: PlainGradient,
    *,
    steps: int = 7,
    random_start: bool = True,
) -> list[Rows]:
    found = plain_smoothing(clean, radius, generator) if random_start else copy.deepcopy(clean)
    for _ in range(steps):
        slopes = gradient(found)
        for cell, rows in enumerate(clean):
            for edge, row in enumerate(rows):
                for operation, center in enumerate(row):
                    slope = slopes[cell][edge][operation]
                    sign = (slope > 0) - (slope < 0)
                    moved = found[cell][edge][operation] + 2 * radius / steps * sign
                    shift = min(max(moved - center, -radius), radius)
                    found[cell][edge][operation] = center + shift
            found[cell] = plain_projection(found[cell])
    return found if loss(found) >= loss(clean) else clean


def plain_mean_shift(
    clean: list[Rows],
    radius: float,
    generator: torch.Generator,
    loss: PlainLoss,
    *,
    samples: int = 3,
    shifts: int = 2,
    bandwidth: float = 1.0,
) -> list[Rows]:
    centers = clean
    for _ in range(shifts):
        points: list[list[Rows]] = []
        for _ in range(samples):
            points.append([plain_sum(a, plain_noise(a, radius, generator)) for a in centers])
        inside = [[plain_projection(rows) for rows in sample] for sample in points]
        losses = [loss(sample) for sample in inside]
        shifted = []
        for cell, rows in enumerate(centers):
            weights = []
            for value, sample in zip(losses, inside, strict=True):
                squares = [
                    (a - x) ** 2
                    for pair in zip(rows, sample[cell], strict=True)
                    for a, x in zip(*pair, strict=True)
                ]
                # omega times the Gaussian, as products of exponentials: the naive form.
                weights.append(math.exp(value) * math.exp(-0.5 * sum(squares) / bandwidth**2))
            shifted.append(
                [
                    [
                        sum(
                            w * sample[cell][i][j]
                            for w, sample in zip(weights, points, strict=True)
                        )
                        / sum(weights)
                        for j in range(len(rows[0]))
                    ]
                    for i in range(len(rows))
                ]
            )
        centers = shifted
    return centers


# The authors' code.


def golden_loss(case: dict[str, Any]) -> Callable[[OpWeights], Tensor]:
    """sum_c [<C_c, q_c> + <D_c, q_c q_c> / 2] + (sum_c <E_c, q_c>)^2 / 2."""
    c, d, e = (
        [torch.tensor(matrix, dtype=torch.float64) for matrix in case[name]] for name in "CDE"
    )

    def loss(op_weights: OpWeights) -> Tensor:
        cells = list(op_weights.values())
        own = [(c[i] * q).sum() + (d[i] * q * q).sum() / 2 for i, q in enumerate(cells)]
        joint = torch.stack([(e[i] * q).sum() for i, q in enumerate(cells)]).sum()
        return torch.stack(own).sum() + joint.square() / 2

    return loss


@pytest.mark.parametrize(
    ("kind", "name", "keys", "at_least"),
    [
        ("rs", "sdarts_rs", (), 3),
        ("adv", "sdarts_adv", ("steps", "random_start"), 6),
        ("ms", "ms_darts", ("bandwidth", "shifts", "samples"), 5),
    ],
)
def test_it_equals_the_authors_code(
    shared_data: Path, kind: str, name: str, keys: tuple[str, ...], at_least: int
) -> None:
    cases = json.loads((shared_data / "golden/perturbations.json").read_text())
    assert {case["method"] for case in cases} == {"rs", "adv", "ms"}
    cases = [case for case in cases if case["method"] == kind]
    assert len(cases) >= at_least
    for case in cases:
        settings = {"name": name} | constant_radius(case["radius"]) | {k: case[k] for k in keys}
        alphas = {
            f"cell {index}": torch.tensor(alpha, dtype=torch.float64)
            for index, alpha in enumerate(case["alphas"])
        }
        loss = golden_loss(case)
        at = point(case["seed"], loss)
        clean = method_of(**settings).relax(alphas, at)
        found = perturbed(settings, clean, at)
        for matrix, expected in zip(found.values(), case["perturbed"], strict=True):
            wanted = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(matrix, wanted, rtol=0, atol=1e-12)
        assert loss(clean).item() == pytest.approx(case["loss_clean"], abs=1e-12)
        assert loss(found).item() == pytest.approx(case["loss_perturbed"], abs=1e-12)


# The projection.


@given(
    st.lists(
        st.lists(st.floats(-2.0, 2.0, allow_nan=False), min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_the_projection_equals_a_plain_loop(rows: Rows) -> None:
    matrix = torch.tensor(rows, dtype=torch.float64)
    # Smaller than any sum that could be told from 0 in the division.
    matrix[matrix.abs() < 1e-300] = 0.0
    expected = torch.tensor(plain_projection(matrix.tolist()), dtype=torch.float64)
    torch.testing.assert_close(clamp_and_rescale(matrix), expected, rtol=0, atol=1e-15)
    # Matrices of several cells of a type are projected row by row too.
    stacked = clamp_and_rescale(torch.stack([matrix, matrix.flip(0)]))
    torch.testing.assert_close(
        stacked, torch.stack([expected, expected.flip(0)]), rtol=0, atol=1e-15
    )


# The attack.


@pytest.mark.parametrize("radius", [0.03, 0.3])
@pytest.mark.parametrize("steps", [1, 3, 7])
@pytest.mark.parametrize("random_start", [True, False])
def test_an_attack_on_a_linear_loss_equals_a_plain_loop(
    radius: float, steps: int, random_start: bool
) -> None:
    clean = random_op_weights(1, (5, 4), (3, 6))
    costs = {
        name: torch.randn(matrix.shape, generator=torch.Generator().manual_seed(2)).double()
        for name, matrix in clean.items()
    }
    costs["cell 0"][:, 1] = 0.0  # an operation like `none`, which a sign step must not move
    slopes = [matrix.tolist() for matrix in costs.values()]
    norms: list[Norm] = []

    def loss(op_weights: OpWeights) -> Tensor:
        return torch.stack([(costs[n] * q).sum() for n, q in op_weights.items()]).sum()

    settings = {"name": "sdarts_adv", "steps": steps, "random_start": random_start}
    found = perturbed(settings | constant_radius(radius), clean, point(7, loss, norms))
    expected = plain_attack(
        [matrix.tolist() for matrix in clean.values()],
        radius,
        torch.Generator().manual_seed(7),
        lambda cells: loss({n: torch.tensor(q) for n, q in zip(clean, cells, strict=True)}).item(),
        lambda _cells: slopes,
        steps=steps,
        random_start=random_start,
    )
    for matrix, rows in zip(found.values(), expected, strict=True):
        wanted = torch.tensor(rows, dtype=torch.float64)
        torch.testing.assert_close(matrix, wanted, rtol=0, atol=1e-12)
    assert loss(found) > loss(clean)
    assert norms == ["running"] * (steps + 2)


@pytest.mark.parametrize(
    ("at_clean", "reverts"), [(1.0 + 1e-12, True), (1.0, False), (0.5, False), (2.0, True)]
)
def test_an_attack_is_undone_as_a_whole_exactly_where_the_loss_fell(
    at_clean: float, reverts: bool
) -> None:
    clean = random_op_weights(3, (5, 4), (3, 6))

    def loss(op_weights: OpWeights) -> Tensor:
        # The slope of the sum of squares, the value of a stub: 1 wherever the attack went.
        unchanged = all(torch.equal(q, clean[n]) for n, q in op_weights.items())
        slope = torch.stack([q.square().sum() for q in op_weights.values()]).sum()
        return slope - slope.detach() + (at_clean if unchanged else 1.0)

    found = perturbed({"name": "sdarts_adv"} | constant_radius(0.1), clean, point(0, loss))
    for name, matrix in clean.items():
        # Both cell types together: there is one loss, and so one decision.
        assert torch.equal(found[name], matrix) == reverts


# The mean shift.


def linear_loss(costs: OpWeights) -> Callable[[OpWeights], Tensor]:
    return lambda q: torch.stack([(costs[name] * q[name]).sum() for name in costs]).sum()


@st.composite
def mean_shifts(draw: st.DrawFn) -> tuple[dict[str, Any], OpWeights, OpWeights, int]:
    """Settings, op weights and costs of two cell types, seed of the draws."""
    radius = draw(st.sampled_from([0.0, 0.025, 0.25, 0.9]))
    settings: dict[str, Any] = {
        "name": "ms_darts",
        "samples": draw(st.integers(1, 4)),
        "shifts": draw(st.integers(1, 3)),
        "bandwidth": draw(st.sampled_from([1e-6, 0.05, 1.0, FLAT])),
        "loss_weighting": draw(st.sampled_from(["higher", "lower"])),
        "temperature": draw(st.sampled_from([1e-3, 1.0])),
    }
    shapes = ((draw(st.integers(1, 4)), 3), (2, draw(st.integers(2, 5))))
    op_weights = random_op_weights(draw(st.integers(0, 99)), *shapes)
    costs = {name: 10.0 * matrix.log() for name, matrix in random_op_weights(100, *shapes).items()}
    return settings | constant_radius(radius), op_weights, costs, draw(st.integers(0, 999))


@examples(deadline=None, max_examples=60)
@given(mean_shifts())
def test_no_entry_moves_further_than_the_shifts_reach(
    example: tuple[dict[str, Any], OpWeights, OpWeights, int],
) -> None:
    settings, clean, costs, seed = example
    found = perturbed(settings, clean, point(seed, linear_loss(costs)))
    reach = settings["shifts"] * settings["radius_max"]
    for name, matrix in found.items():
        # It fails for NaN too, which small bandwidths would give as 0 / 0.
        assert bool(((matrix - clean[name]).abs() <= reach + 1e-12).all())


@examples(deadline=None, max_examples=60)
@given(mean_shifts(), st.randoms(use_true_random=False))
def test_the_order_of_the_operations_does_not_matter(
    example: tuple[dict[str, Any], OpWeights, OpWeights, int], random: Any
) -> None:
    settings, clean, costs, seed = example
    order = {name: list(range(matrix.shape[1])) for name, matrix in clean.items()}
    for columns in order.values():
        random.shuffle(columns)
    shapes = {matrix.shape: name for name, matrix in clean.items()}
    assume(len(shapes) == len(clean))
    original = uniform_noise

    def reordered(matrix: Tensor, radius: float, generator: torch.Generator) -> Tensor:
        return original(matrix, radius, generator)[:, order[shapes[matrix.shape]]]

    plain = perturbed(settings, clean, point(seed, linear_loss(costs)))
    moved = [{n: q[n][:, order[n]] for n in clean} for q in (clean, costs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ms_darts, "uniform_noise", reordered)
        found = perturbed(settings, moved[0], point(seed, linear_loss(moved[1])))
    for name, columns in order.items():
        # Sums in another order differ by rounding, which the temperature of 1e-3 nats enlarges.
        torch.testing.assert_close(found[name], plain[name][:, columns], rtol=0, atol=1e-8)


def draws(
    clean: OpWeights, radius: float, samples: int, seed: int
) -> tuple[list[OpWeights], list[OpWeights]]:
    """The samples of the first shift, and the same projected."""
    generator = torch.Generator().manual_seed(seed)
    noise = [
        {n: plain_noise(q.tolist(), radius, generator) for n, q in clean.items()}
        for _ in range(samples)
    ]
    points = [
        {n: q + torch.tensor(x[n], dtype=torch.float64) for n, q in clean.items()} for x in noise
    ]
    inside = [
        {n: torch.tensor(plain_projection(q.tolist()), dtype=torch.float64) for n, q in x.items()}
        for x in points
    ]
    return points, inside


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_kernel_gives_the_mean_weighted_by_the_losses(seed: int) -> None:
    clean = random_op_weights(4, (5, 4), (3, 6))
    loss = linear_loss(random_op_weights(5, (5, 4), (3, 6)))
    points, inside = draws(clean, 0.25, 3, seed)
    settings = {"name": "ms_darts", "shifts": 1, "bandwidth": FLAT} | constant_radius(0.25)
    # The losses decide for all cell types jointly, more sharply where the temperature is low.
    for temperature in (1.0, 0.1):
        weights = [math.exp(loss(q).item() / temperature) for q in inside]
        found = perturbed(settings | {"temperature": temperature}, clean, point(seed, loss))
        for name, matrix in found.items():
            expected = sum(w * x[name] for w, x in zip(weights, points, strict=True)) / sum(weights)
            torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-12)


def test_a_narrow_kernel_takes_the_sample_whose_projected_copy_is_nearest() -> None:
    clean = random_op_weights(4, (5, 4), (3, 6))
    settings = {"name": "ms_darts", "shifts": 1, "bandwidth": 1e-6} | constant_radius(0.25)
    ties_with_unprojected, differing_cells = 0, 0
    for seed in range(20):
        points, inside = draws(clean, 0.25, 3, seed)
        found = perturbed(settings, clean, point(seed, linear_loss(clean)))
        nearest = {}
        for name, center in clean.items():
            lengths = [(q[name] - center).norm() for q in inside]
            nearest[name] = min(range(3), key=lambda n: float(lengths[n]))
            torch.testing.assert_close(found[name], points[nearest[name]][name], rtol=0, atol=1e-15)
            by_sample = [(q[name] - center).norm() for q in points]
            ties_with_unprojected += nearest[name] == by_sample.index(min(by_sample))
        differing_cells += len(set(nearest.values())) > 1
    # Both would leave the rule open: nearest by the sample itself, one winner for all cell types.
    assert ties_with_unprojected < 40
    assert differing_cells > 0


@examples(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 0.05, 1.0, FLAT]))
def test_one_sample_is_one_unprojected_draw_and_the_next_shift_starts_there(
    seed: int, bandwidth: float
) -> None:
    clean = random_op_weights(6, (4, 3))
    settings = {"name": "ms_darts", "samples": 1, "bandwidth": bandwidth} | constant_radius(0.25)
    generator = torch.Generator().manual_seed(seed)
    expected = clean["cell 0"]
    for shifts in (1, 2):
        noise = plain_noise(clean["cell 0"].tolist(), 0.25, generator)
        expected = expected + torch.tensor(noise, dtype=torch.float64)
        found = perturbed(settings | {"shifts": shifts}, clean, point(seed, linear_loss(clean)))
        torch.testing.assert_close(found["cell 0"], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("samples", "shifts"), [(3, 2), (1, 1), (5, 1), (2, 4)])
def test_equal_losses_leave_the_mean_and_a_known_spread(samples: int, shifts: int) -> None:
    clean = {"cell": torch.full((5000, 4), 0.25, dtype=torch.float64)}
    radius = 0.2
    settings = {"name": "ms_darts", "samples": samples, "shifts": shifts, "bandwidth": FLAT}
    at = point(0, lambda _q: torch.tensor(1.0, dtype=torch.float64))
    moved = perturbed(settings | constant_radius(radius), clean, at)["cell"] - 0.25
    # Var U(-r, r) = r^2 / 3, over N in a mean of N draws, times T in a sum of T such means.
    spread = math.sqrt(shifts / (3 * samples)) * radius
    # 20,000 entries: the deviation is known to 1/sqrt(40,000) = 0.5 %, the mean to spread/141.
    assert moved.std().item() == pytest.approx(spread, rel=0.03)
    assert abs(moved.mean().item()) < 5 * spread / 141
    # A mean of projected samples would keep the row sums at 1.
    assert moved.sum(dim=-1).std().item() == pytest.approx(2 * spread, rel=0.05)


@pytest.mark.parametrize(("sign", "weighting"), [(1, "higher"), (-1, "lower")])
def test_the_shift_is_towards_the_sample_of_higher_loss_or_of_lower(
    sign: int, weighting: str
) -> None:
    clean = random_op_weights(8, (4, 5))
    costs = {"cell 0": torch.zeros(4, 5, dtype=torch.float64)}
    costs["cell 0"][2, 3] = 1.0
    settings = {"name": "ms_darts", "shifts": 1, "samples": 2, "bandwidth": FLAT}
    settings |= {"temperature": 1e-9, "loss_weighting": weighting}
    for seed in range(10):
        points, inside = draws(clean, 0.1, 2, seed)
        # The loss is an op weight itself; at this temperature its larger value has all the weight.
        values = [sign * q["cell 0"][2, 3].item() for q in inside]
        winner = points[values.index(max(values))]["cell 0"]
        at = point(seed, linear_loss(costs))
        found = perturbed(settings | constant_radius(0.1), clean, at)["cell 0"]
        torch.testing.assert_close(found, winner, rtol=0, atol=1e-12)


def test_samples_of_equal_weight_whatever_their_losses() -> None:
    clean = random_op_weights(8, (4, 5))
    settings = {"name": "ms_darts", "shifts": 1, "bandwidth": FLAT, "loss_weighting": "none"}
    points, _ = draws(clean, 0.1, 3, 0)
    costs = {"cell 0": 100.0 * clean["cell 0"]}
    found = perturbed(settings | constant_radius(0.1), clean, point(0, linear_loss(costs)))
    mean = torch.stack([x["cell 0"] for x in points]).mean(dim=0)
    torch.testing.assert_close(found["cell 0"], mean, rtol=0, atol=1e-12)


def test_only_the_result_is_projected_and_only_if_asked() -> None:
    clean = random_op_weights(9, (6, 4))
    settings = {"name": "ms_darts"} | constant_radius(0.25)
    raw, inside = (
        perturbed(settings | {"project": project}, clean, point(0, linear_loss(clean)))["cell 0"]
        for project in (False, True)
    )
    assert (raw.sum(-1) - 1.0).abs().max() > 0.01
    expected = torch.tensor(plain_projection(raw.tolist()), dtype=torch.float64)
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (10, 0.25), (39, 39 / 40)])
def test_radius_and_bandwidth_grow_linearly_by_epoch(epoch: int, share: float) -> None:
    at = SearchPoint(epoch, 40, torch.Generator())
    logged = method_of(name="ms_darts", radius_max=0.2).log(at)
    # From a tenth of the largest radius, as in the authors' code; one bandwidth all along.
    assert logged == pytest.approx({"radius": 0.02 + 0.18 * share, "bandwidth": 1.0})
    narrowing = method_of(name="ms_darts", bandwidth_end=0.2, radius_start=0.1)
    logged = narrowing.log(at)
    assert logged == pytest.approx({"radius": 0.1 + 0.15 * share, "bandwidth": 1.0 - 0.8 * share})
    assert method_of(name="sdarts_adv").log(at) == pytest.approx({"radius": 0.03 + 0.27 * share})


@pytest.mark.parametrize("name", ["sdarts_adv", "ms_darts"])
def test_it_says_that_it_needs_the_loss_of_a_step(name: str) -> None:
    at = dataclasses.replace(point(0, linear_loss({})), train_loss=None)
    with pytest.raises(MethodError, match="the loss of a training step, and there is none here"):
        perturbed({"name": name}, random_op_weights(0, (2, 2)), at)


# In a search.

ZERO = {"radius_start": 0.0, "radius_max": 0.0}
STILL: list[dict[str, Any]] = [
    {"name": "sdarts_rs"},
    {"name": "sdarts_adv"},
    {"name": "sdarts_adv", "steps": 2, "random_start": False},
    {"name": "ms_darts", "alpha_start": 0},
    {"name": "ms_darts", "alpha_start": 0, "samples": 1, "shifts": 1, "bandwidth": 1e-6},
    {"name": "ms_darts", "alpha_start": 0, "samples": 4, "shifts": 3, "bandwidth": 0.05},
]


def largest_difference(first: SearchTrial, second: SearchTrial) -> float:
    pairs = [
        *zip(first._bilevel.weights, second._bilevel.weights, strict=True),
        *zip(first.alphas.values(), second.alphas.values(), strict=True),
        *zip(first._bilevel.supernet.buffers(), second._bilevel.supernet.buffers(), strict=True),
    ]
    return max((a - b).abs().max().item() for a, b in pairs)


def run(method: Any) -> SearchTrial:
    trial = small_search(method, precision="float64", epochs=2)
    trial.run()
    return trial


@pytest.fixture(scope="module")
def darts(tiny_plugins: None) -> SearchTrial:
    return run("darts")


@pytest.mark.parametrize("settings", STILL, ids=str)
def test_radius_zero_is_darts(settings: dict[str, Any], darts: SearchTrial) -> None:
    still = run(settings | ZERO)
    assert largest_difference(darts, still) < 1e-12
    assert still.curve[-1]["perturb_distance"] < 1e-15
    # Without this, two searches in which nothing happens would pass.
    assert largest_difference(darts, run(settings | ZERO | {"radius_max": 1e-3})) > 1e-9


def plain_perturbation(
    settings: dict[str, Any],
    progress: float,
    clean: OpWeights,
    generator: torch.Generator,
    loss_of: Callable[[OpWeights], Tensor],
) -> OpWeights:
    """One of the three plain implementations, at the authors' radii."""

    def tensors(cells: Iterable[Rows]) -> OpWeights:
        return {
            name: torch.tensor(rows, dtype=torch.float64)
            for name, rows in zip(clean, cells, strict=True)
        }

    def loss(cells: list[Rows]) -> float:
        with torch.no_grad():
            return loss_of(tensors(cells)).item()

    def gradient(cells: list[Rows]) -> list[Rows]:
        leaves = {name: matrix.requires_grad_() for name, matrix in tensors(cells).items()}
        loss_of(leaves).backward()
        return [
            [[0.0] * leaf.shape[1]] * len(leaf) if leaf.grad is None else leaf.grad.tolist()
            for leaf in leaves.values()
        ]

    rows = [matrix.tolist() for matrix in clean.values()]
    given = {key: value for key, value in settings.items() if key != "name"}
    if settings["name"] == "sdarts_rs":
        return tensors(plain_smoothing(rows, 0.03 + (0.3 - 0.03) * progress, generator))
    if settings["name"] == "sdarts_adv":
        radius = 0.03 + (0.3 - 0.03) * progress
        return tensors(plain_attack(rows, radius, generator, loss, gradient, **given))
    radius = 0.025 + (0.25 - 0.025) * progress
    return tensors(plain_mean_shift(rows, radius, generator, loss, **given))


@pytest.mark.parametrize(
    ("settings", "space", "steps"),
    [
        ({"name": "sdarts_rs"}, "nasbench201", 3),
        ({"name": "sdarts_adv"}, "nasbench201", 3),
        ({"name": "ms_darts"}, "nasbench201", 3),
        # Two cell types: the order of the draws, one loss for both. Fewer passes: it is slower.
        ({"name": "sdarts_adv", "steps": 2}, "darts", 2),
        ({"name": "ms_darts", "bandwidth": 0.2, "samples": 2}, "darts", 2),
    ],
    ids=str,
)
def test_steps_equal_those_of_a_plain_implementation(
    settings: dict[str, Any], space: str, steps: int
) -> None:
    trial, other = (
        small_search(settings, space=space, precision="float64", batch_size=6) for _ in range(2)
    )
    bilevel = trial._bilevel
    seen = watch_op_weights(trial)
    supernet = copy.deepcopy(other._bilevel.supernet)
    alphas = {n: alpha.detach().clone().requires_grad_() for n, alpha in other.alphas.items()}
    sgd = torch.optim.SGD(supernet.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(alphas.values(), lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3)
    generator = torch.Generator()
    generator.set_state(other._bilevel.generators["method"].get_state())

    def loss(op_weights: OpWeights, batch: Any, norm: Norm) -> Tensor:
        return F.cross_entropy(supernet(batch[0], Mixture(op_weights), norm=norm), batch[1])

    for epoch in range(steps):
        train_batch, val_batch = other._data.next_batches()
        # The alphas of the mean shift rest in the first 5 of 40 epochs, here in one of three.
        if settings["name"] != "ms_darts" or epoch >= 1:
            relaxed = {name: torch.softmax(alpha, dim=-1) for name, alpha in alphas.items()}
            adam.zero_grad()
            loss(relaxed, val_batch, "batch_and_update").backward()
            adam.step()
        clean = {name: torch.softmax(alpha.detach(), dim=-1) for name, alpha in alphas.items()}
        expected = plain_perturbation(
            settings,
            epoch / 3,
            clean,
            generator,
            lambda q, batch=train_batch: loss(q, batch, "running"),  # type: ignore[misc]
        )
        for group in sgd.param_groups:
            group["lr"] = 0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * epoch / 3)) / 2
        sgd.zero_grad()
        loss(expected, train_batch, "batch_and_update").backward()
        torch.nn.utils.clip_grad_norm_(supernet.parameters(), 5.0)
        sgd.step()

        seen.clear()
        clocks = Stopwatch(trial.device), Stopwatch(trial.device)
        bilevel.step(bilevel.point(epoch), *trial._data.next_batches(), clocks)
        for name, matrix in expected.items():
            torch.testing.assert_close(seen[-1][name], matrix, rtol=0, atol=1e-10)
            assert (matrix - clean[name]).abs().max() > 1e-3
            torch.testing.assert_close(trial.alphas[name], alphas[name], rtol=0, atol=1e-10)
        for mine, theirs in zip(
            bilevel.supernet.state_dict().values(), supernet.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def watch_op_weights(trial: SearchTrial) -> list[OpWeights]:
    """Note the op weights of every pass of the supernet; the last of a step is the weight pass."""
    seen: list[OpWeights] = []
    forward = trial._bilevel.supernet.forward

    def noted(images: Tensor, mixture: Mixture, **options: Any) -> Tensor:
        seen.append({name: matrix.detach() for name, matrix in mixture.op_weights.items()})
        return forward(images, mixture, **options)

    trial._bilevel.supernet.forward = noted  # type: ignore[method-assign, assignment]
    return seen


@pytest.mark.parametrize(("name", "passes"), [("sdarts_adv", 7 + 2), ("ms_darts", 2 * 3)])
def test_all_passes_of_a_perturbation_draw_equal_noise_inside_the_network(
    name: str, passes: int
) -> None:
    trial = small_search({"name": name, "alpha_start": 0}, precision="float64")
    bilevel = trial._bilevel
    forward = bilevel.supernet.forward
    drawn: list[Tensor] = []

    def noisy(images: Tensor, *args: Any, generator: torch.Generator, **options: Any) -> Tensor:
        drawn.append(torch.randn(images.shape, generator=generator, dtype=images.dtype))
        return forward(images + drawn[-1], *args, generator=generator, **options)

    bilevel.supernet.forward = noisy  # type: ignore[method-assign, assignment]
    train_batch, _ = trial._data.next_batches()
    firsts = []
    for _ in range(2):
        drawn.clear()
        bilevel.weight_step(bilevel.point(0), train_batch)
        assert len(drawn) == passes + 1
        # All but the weight pass, whose draws are those after the last pass's.
        assert all(torch.equal(noise, drawn[0]) for noise in drawn[:passes])
        firsts.append(drawn[0])
    assert not torch.equal(*firsts)
