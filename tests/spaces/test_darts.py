"""The DARTS space: networks, published cost, discretization, auxiliary head, drop path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from spaces.core.cost import network_cost
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.genotype import Genotype
from spaces.core.layers import Source
from spaces.core.mixture import Mixture
from spaces.core.named import named
from spaces.core.network import Network, drop_samples
from tests.spaces.helpers import space_of


def test_the_published_network_has_the_published_cost() -> None:
    space = space_of("darts")
    cost = network_cost(space, named("DARTS_V2"))
    assert cost.params == 3_349_342
    assert round(cost.macs / 1e6, 2) == 528.36
    network = space.build_network(named("DARTS_V2"), 3, 10, auxiliary=True)
    assert sum(weight.numel() for weight in network.parameters()) == 3_825_768


def test_the_size_of_the_search_is_that_of_the_supernet() -> None:
    space = space_of({"name": "darts", "channels": 6, "cells": 5})
    assert space.search_size() == (6, 5)
    assert len(space.supernet_layout(3, 10).layers) == 5
    assert space_of("darts").search_size() == (16, 8)


def test_cost_scales_as_asked() -> None:
    space = space_of("darts")
    genotype = named("DARTS_V1")
    small = network_cost(space, genotype, channels=8, cells=3, classes=4, image_size=8)
    assert network_cost(space, genotype, channels=8, cells=3, classes=5, image_size=8).params == (
        small.params + 4 * 32 + 1  # one more row of the classifier: 4 nodes of 8 * 2 * 2 channels
    )
    assert network_cost(
        space, genotype, channels=8, cells=3, classes=4, image_size=16
    ).macs - 4 * 128 == 4 * (small.macs - 4 * 128)
    grey = network_cost(
        space, genotype, channels=8, cells=3, classes=4, image_size=8, in_channels=1
    )
    assert small.params - grey.params == 2 * 9 * 24


def edge_weights(space_operations: tuple[str, ...]) -> tuple[torch.Tensor, Callable[..., None]]:
    edges = [(source, target) for target in range(2, 6) for source in range(target)]
    op_weights = torch.full((14, len(space_operations)), 0.01)

    def put(source: int, target: int, operation: str, value: float) -> None:
        op_weights[edges.index((source, target)), space_operations.index(operation)] = value

    return op_weights, put


@pytest.mark.parametrize("operations", [7, 8])
def test_discretize_keeps_the_two_strongest_edges_without_none(operations: int) -> None:
    space = space_of({"name": "darts", "operations": operations})
    names = space.operations["normal"]
    assert len(names) == operations
    op_weights, put = edge_weights(names)
    for target in range(2, 6):
        put(0, target, "max_pool_3x3", 0.3)
        put(target - 1, target, "dil_conv_5x5", 0.6)
    put(1, 4, "sep_conv_3x3", 0.4)
    if operations == 8:
        put(2, 4, "none", 0.9)  # the weight of none neither makes an edge strong ...
        put(3, 4, "none", 0.8)  # ... nor is none what is kept of it
    genotype = space.discretize({"normal": op_weights, "reduction": op_weights})
    kept = [(e.source, e.target, e.operation) for e in genotype.cell("normal").edges]
    assert kept == [
        (0, 2, "max_pool_3x3"),
        (1, 2, "dil_conv_5x5"),
        (0, 3, "max_pool_3x3"),
        (2, 3, "dil_conv_5x5"),
        (1, 4, "sep_conv_3x3"),
        (3, 4, "dil_conv_5x5"),
        (0, 5, "max_pool_3x3"),
        (4, 5, "dil_conv_5x5"),
    ]
    assert genotype.cell("reduction").edges == genotype.cell("normal").edges


def test_ties_go_to_the_lower_index() -> None:
    space = space_of("darts")
    op_weights = {name: torch.full((14, 8), 0.125) for name in space.cell_types}
    edges = space.discretize(op_weights).cell("normal").edges
    assert {edge.operation for edge in edges} == {"max_pool_3x3"}
    assert [edge.source for edge in edges] == [0, 1] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": 2}, "cells must be >= 3"),
        ({"channels": 1}, "channels must be >= 2, got 1"),
        ({"operations": 6}, "operations must be 7 or 8, got 6"),
        ({"nodes": 3}, "nodes is not a setting"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        space_of({"name": "darts", **change})


@pytest.mark.parametrize(
    ("image_size", "in_channels"), [(8, 1), (28, 1), (32, 3), (35, 3), (64, 3), (4, 3)]
)
def test_networks_take_images_of_any_size(image_size: int, in_channels: int) -> None:
    space = space_of({"name": "darts", "channels": 4, "cells": 3})
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, in_channels, image_size, image_size, generator=generator)
    network = space.build_network(
        named("DARTS_V2"),
        in_channels,
        5,
        channels=4,
        cells=3,
        auxiliary=True,
        image_size=image_size,
    )
    logits, auxiliary = network(images)
    assert logits.shape == auxiliary.shape == (2, 5)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    logits, auxiliary = network.eval()(images)
    assert logits.shape == (2, 5)
    assert auxiliary is None


def imagenet_network(channels: int = 4, cells: int = 6) -> Network:
    space = space_of("darts")
    sizes = {"channels": channels, "cells": cells, "auxiliary": True, "image_size": 224}
    return space.build_network(named("DARTS_V2"), 3, 5, **sizes)


def test_the_imagenet_stem_is_that_of_the_darts_authors() -> None:
    # Convolution, norm, ReLU, convolution, norm: the first input. ReLU, convolution, norm of it:
    # the second.
    stem = imagenet_network().trunk.stem
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shapes = [tuple(w.shape) for w in stem.parameters() if w.dim() == 4]
    assert shapes == [(2, 3, 3, 3), (4, 2, 3, 3), (4, 4, 3, 3)]

    def step(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
        return torch.nn.functional.batch_norm(x, None, None, training=True)

    first, second, third = (w for w in stem.parameters() if w.dim() == 4)
    earlier = step(step(images, first).relu(), second)
    later = step(earlier.relu(), third)
    got = stem(images, "batch")
    torch.testing.assert_close(got[0].raw, earlier, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1].raw, later, rtol=1e-4, atol=1e-5)


def test_the_first_imagenet_cells_read_the_stem_s_last_two_outputs() -> None:
    network = imagenet_network()
    first, second = network.trunk.layout.layers[:2]
    # (input_channels, input_strides): 56x56 and 28x28 features of 4 channels, then 28x28 and the
    # 16 channels of the first cell's output.
    assert (first.input_channels, first.input_strides) == ((4, 4), (2, 1))
    assert (second.input_channels, second.input_strides) == ((4, 16), (1, 1))
    sizes: list[tuple[int, ...]] = []
    for layer in network.trunk.layers:
        layer.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[-2:])))
    network(torch.zeros(2, 3, 224, 224))
    assert sizes == [(28, 28)] * 2 + [(14, 14)] * 2 + [(7, 7)] * 2


def test_the_auxiliary_head_for_imagenet_pools_7x7_with_stride_2_and_has_one_norm() -> None:
    head = imagenet_network().trunk.auxiliary
    assert head.second_norm is None
    features = torch.randn(3, 64, 7, 7, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool2d(features.relu(), 5, stride=2)  # 2x2
    x = torch.nn.functional.conv2d(pooled, head.first.weight)
    x = torch.nn.functional.batch_norm(x, None, None, training=True).relu()
    x = torch.nn.functional.conv2d(x, head.second.weight).relu()
    expected = head.classifier(x.flatten(1))
    torch.testing.assert_close(head(features, "batch"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 7), (7, 8), (5, 5)])
def test_supernets_take_images_with_odd_sides(shape: tuple[int, int]) -> None:
    space = space_of({"name": "darts", "channels": 2, "cells": 3})
    mixture = Mixture({name: torch.ones(size) for name, size in space.alpha_shapes().items()})
    images = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    logits = space.build_supernet(1, 4, seed=0)(images, mixture)
    assert logits.shape == (2, 4)
    assert torch.isfinite(logits).all()


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    x = torch.ones(4000, 2, 3, 3)
    dropped = drop_samples(x, 0.25, torch.Generator().manual_seed(0))
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.min(1).values, per_sample.max(1).values)
    kept = (per_sample[:, 0] > 0).float()
    assert per_sample[:, 0].max().item() == pytest.approx(1 / 0.75)
    # The standard error of a share of 0.75 over 4000 samples is 0.007.
    assert kept.mean().item() == pytest.approx(0.75, abs=0.03)


def only(operation: str) -> Genotype:
    """Return a genotype whose every edge has one operation."""
    pairs = str([(operation, 0), (operation, 1)] * 4)
    concat = "range(2, 6)"
    return space_of("darts").parse(
        f"Genotype(normal={pairs}, normal_concat={concat}, reduce={pairs}, reduce_concat={concat})"
    )


@pytest.mark.parametrize("operation", ["skip_connect", "max_pool_3x3", "sep_conv_3x3"])
def test_drop_path_comes_from_the_generator_alone(operation: str) -> None:
    # In a reduction cell a skip from an input is a convolution, and is dropped like one.
    space = space_of("darts")
    network = space.build_network(only(operation), 3, 5, channels=4, cells=3)
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def logits(share: float, seed: int) -> torch.Tensor:
        return network(images, share, torch.Generator().manual_seed(seed))[0]

    state = torch.get_rng_state()
    assert torch.equal(logits(0.5, 1), logits(0.5, 1))
    assert not torch.equal(logits(0.5, 1), logits(0.5, 2))
    assert torch.equal(logits(0.0, 1), logits(0.0, 2))
    assert torch.equal(torch.get_rng_state(), state)
    network.eval()
    assert torch.equal(logits(0.5, 1), logits(0.0, 2))


def test_skip_connections_that_keep_their_input_are_never_dropped() -> None:
    # The first of four cells is a normal one, so that its skips have stride 1.
    space = space_of("darts")
    cell = space.build_network(only("skip_connect"), 3, 5, channels=4, cells=4).trunk.layers[0]
    inputs = [Source(torch.randn(4, 4, 8, 8)) for _ in range(2)]
    plain = cell(inputs, "batch", 0.0, None)
    assert torch.equal(cell(inputs, "batch", 0.9, torch.Generator().manual_seed(0)), plain)


def test_a_genotype_must_have_two_edges_into_each_node() -> None:
    space = space_of("darts")
    data = named("DARTS_V1").to_json()
    data["cells"][0]["edges"][0][1] = 3
    with pytest.raises(SpaceError, match="must have two edges into each"):
        space.check(Genotype.from_json(data))
    data["cells"].pop()
    with pytest.raises(SpaceError, match=r"must have the cells \['normal', 'reduction'\]"):
        space.check(Genotype.from_json(data))
