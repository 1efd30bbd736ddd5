"""DARTS and SDARTS-RS: the authors' numbers, equalities at the edges, refused settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, UnknownPluginError
from spaces.core.genotype import Genotype
from tests.trainables.searches import small_search
from trainables.method import Method, SearchPoint, softmax
from trainables.search import SearchTrial


def method_of(**settings: Any) -> Method:
    name, config = plugins.make_config("methods", settings)
    method: Method = plugins.load("methods", name).build(config)
    return method


def point(seed: int, epoch: int = 0, epochs: int = 1) -> SearchPoint:
    return SearchPoint(epoch, epochs, torch.Generator().manual_seed(seed))


def largest_difference(first: SearchTrial, second: SearchTrial) -> float:
    pairs = [
        *zip(first._bilevel.weights, second._bilevel.weights, strict=True),
        *zip(first.alphas.values(), second.alphas.values(), strict=True),
    ]
    return max((a - b).abs().max().item() for a, b in pairs)


def run(method: Any) -> SearchTrial:
    trial = small_search(method, precision="float64", epochs=2)
    trial.run()
    return trial


@pytest.mark.usefixtures("tiny_plugins")
def test_orders_differ_and_the_exact_second_order_is_the_limit_of_small_radii() -> None:
    first = run("darts")
    exact = run({"name": "darts", "alpha_gradient": {"name": "unrolled", "product": "exact"}})
    near = run({"name": "darts", "alpha_gradient": {"name": "unrolled", "probe_radius": 1e-7}})
    far = run({"name": "darts", "alpha_gradient": "unrolled"})
    assert largest_difference(first, exact) > 1e-4
    assert largest_difference(exact, near) < 1e-5
    assert largest_difference(exact, far) > 1e-5


@pytest.mark.parametrize("method", ["darts", {"name": "darts", "alpha_gradient": "unrolled"}])
@pytest.mark.usefixtures("tiny_plugins")
def test_darts_has_no_perturbation_and_logs_nothing(method: Any) -> None:
    trial = small_search(method)
    assert trial.method.perturb is None
    assert trial.method.log(point(0)) == {}


def test_an_unknown_part_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownPluginError, match="no plug-in 'second'; it has amended, first_o"):
        plugins.make_config("methods", {"name": "darts", "alpha_gradient": "second"})


def test_the_defaults_of_a_method_are_first_order_darts() -> None:
    assert method_of(name="darts") == Method()
    alphas = {"cell": torch.tensor([[0.0, 0.0], [0.0, 1.0986122886681098]], dtype=torch.float64)}
    # exp(ln 3) / (1 + 3)
    expected = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(softmax(alphas, point(0))["cell"], expected)


@pytest.mark.parametrize(("epoch", "radius"), [(0, 0.1), (5, 0.2), (9, 0.28)])
def test_the_radius_grows_linearly_by_epoch(epoch: int, radius: float) -> None:
    method = method_of(name="sdarts_rs", radius_start=0.1, radius_max=0.3)
    assert method.log(point(0, epoch, 10))["radius"] == pytest.approx(radius)
    assert method.perturb is not None
    # Large enough a matrix to come near the bound; off the border and of sum 1 before the noise.
    clean = {"cell": torch.full((4000, 2), 0.5, dtype=torch.float64)}
    moved = method.perturb(clean, point(0, epoch, 10))["cell"]
    # With noise a, b of a row it becomes (0.5 + a) / (1 + a + b): the noise difference over the
    # sum is what is left. Its extreme is a = -b = radius, which moves by the radius itself.
    largest = (moved - 0.5).abs().max().item()
    assert 0.97 * radius < largest <= radius / (1 - 2 * radius)
    assert (moved - 0.5).mean().abs() < 0.05 * radius


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "sdarts_rs", "radius_max": -1.0}, r"radius_max must be >= 0, got -1\.0"),
        ({"name": "sdarts_rs", "radius_start": float("nan")}, "radius_start must be >= 0, got nan"),
        (
            {"name": "sdarts_rs", "radius_start": 0.5},
            r"radius_max must be >= radius_start \(0\.5\)",
        ),
        (
            {"name": "darts", "alpha_gradient": {"name": "unrolled", "probe_radius": 0.0}},
            r"method.alpha_gradient.probe_radius must be > 0, got 0\.0",
        ),
        (
            {
                "name": "darts",
                "alpha_gradient": {"name": "unrolled", "product": "exact", "probe_radius": 0.1},
            },
            "probe_radius has no effect with product exact",
        ),
        ({"name": "darts", "alpha_gradient": 2}, "alpha_gradient must be a name or a mapping"),
        ({"name": "sdarts_rs", "radius": 0.1}, "radius is not a setting"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        plugins.make_config("methods", settings)


def test_magnitude_selection_is_the_spaces_rule() -> None:
    name, config = plugins.make_config("spaces", "nasbench201")
    space = plugins.load("spaces", name).build(config, name)
    selection = plugins.load("selections", "magnitude")
    select = selection.build(plugins.make_config("selections", "magnitude")[1]).each_epoch
    op_weights = {"cell": torch.eye(6, 5) + 0.1}
    op_weights["cell"][5, 2] = 3.0
    genotype = select(space, op_weights)
    assert isinstance(genotype, Genotype)
    operations = [space.operations["cell"][column] for column in (0, 1, 2, 3, 4, 2)]
    # Rows in the order of the space's edges, which the genotype sorts in its own way.
    chosen = {(e.source, e.target): e.operation for e in genotype.cells[0].edges}
    assert [chosen[edge] for edge in space.edges["cell"]] == operations


@pytest.mark.parametrize(("epoch", "progress"), [(0, 0.0), (1, 0.25), (3, 0.75)])
def test_progress_is_the_share_done_at_the_start_of_the_epoch(epoch: int, progress: float) -> None:
    assert point(0, epoch, 4).progress == progress
