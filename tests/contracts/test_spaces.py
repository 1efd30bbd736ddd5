"""What every space promises, over all that are found."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from spaces.core import plugins
from spaces.core.cost import network_cost
from spaces.core.errors import SpaceError
from spaces.core.genotype import Genotype
from spaces.core.mixture import Mixture, Structure
from spaces.core.space import Space

SPACES = plugins.available("spaces")
SMALL = ({"channels": 4, "cells": 3}, {"channels": 4, "cells_per_stage": 2})


@pytest.fixture(params=SPACES, scope="module")
def space(request: pytest.FixtureRequest) -> Space:
    """Return a space, small where its settings allow it."""
    name = request.param
    fields = plugins.describe("spaces", name).config.__dataclass_fields__
    sizes = next((small for small in SMALL if set(small) <= set(fields)), {})
    name, config = plugins.make_config("spaces", {"name": name, **sizes})
    return plugins.load("spaces", name).build(config, name)


def random_weights(space: Space, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).softmax(-1)
        for name, shape in space.alpha_shapes().items()
    }


def draws() -> torch.Generator:
    """Return a source of what is random inside a network: it may have noise for an operation."""
    return torch.Generator().manual_seed(7)


def small_network(space: Space, genotype: Genotype, **settings: object) -> torch.nn.Module:
    channels, cells = space.search_size()
    return space.build_network(
        genotype, 1, 4, channels=channels, cells=cells, image_size=8, **settings
    )


def test_it_is_described_without_being_imported(space: Space) -> None:
    info = plugins.describe("spaces", space.name)
    assert info.summary
    assert info.source


def test_the_description_of_cells_fits_together(space: Space) -> None:
    shapes = space.alpha_shapes()
    assert set(space.operations) == set(shapes)
    for name, (num_rows, num_ops) in shapes.items():
        of_rows = [space.operations_of(name, row) for row in range(num_rows)]
        assert {len(set(names)) for names in of_rows} == {num_ops}
        assert {op for names in of_rows for op in names} == set(space.operations[name])
    assert set(space.edges) == (set(space.cell_types) if space.has_edges else set())
    for name, edges in space.edges.items():
        assert len(set(edges)) == shapes[name][0]
        assert all(source < target for source, target in edges)
        assert space.parameter_free & set(space.operations[name])
    if space.skip_operation is not None:
        assert space.skip_operation in space.parameter_free


@pytest.mark.parametrize(
    ("structure", "skip_scale"),
    [(Structure(partial_channels=2), None), (Structure(auxiliary_skip=True), 0.5)],
    ids=["partial", "auxiliary"],
)
def test_what_methods_add_to_a_supernet_can_be_built_and_counts(
    space: Space, structure: Structure, skip_scale: float | None
) -> None:
    supernet = space.build_supernet(1, 4, seed=0, structure=structure)
    op_weights = random_weights(space, 1)
    halves = {name: torch.full(shape[:1], 0.5) for name, shape in space.alpha_shapes().items()}
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))

    def logits(**extras: Any) -> Tensor:
        mixture = Mixture(op_weights, **{"skip_scale": skip_scale} | extras)
        return supernet(images, mixture, generator=draws())

    plain = logits()
    changes: list[dict[str, Any]] = [{"edge_weights": halves}, {"offsets": halves}]
    changes += [{"skip_scale": 2.0}] if skip_scale is not None else []
    for change in changes:
        assert not torch.allclose(logits(**change), plain), change


def test_what_does_not_fit_a_supernet_is_refused(space: Space) -> None:
    supernet, op_weights = space.build_supernet(1, 4, seed=0), random_weights(space, 1)
    for what in ("edge_weights", "offsets", "skip_scale"):
        value = 1.0 if what == "skip_scale" else op_weights
        with pytest.raises(SpaceError, match=what):
            supernet(torch.zeros(4, 1, 8, 8), Mixture(op_weights, **{what: value}))


def test_gradient_reaches_every_weight_and_every_op_weight(space: Space) -> None:
    supernet = space.build_supernet(1, 4, seed=0)
    op_weights = {k: v.requires_grad_() for k, v in random_weights(space, 1).items()}
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    logits = supernet(images, Mixture(op_weights), generator=draws())
    assert logits.shape == (4, 4)
    logits.square().sum().backward()
    for name, weight in supernet.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
    for name, weights in op_weights.items():
        rows = range(len(weights))
        none = torch.tensor([[op == "none" for op in space.operations_of(name, r)] for r in rows])
        assert (weights.grad[~none].abs() > 0).all()
        assert (weights.grad[none] == 0).all()


def test_norm_decides_what_happens_to_running_statistics(space: Space) -> None:
    supernet = space.build_supernet(1, 4, seed=0)
    mixture = Mixture(random_weights(space, 1))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    before = {name: value.clone() for name, value in supernet.named_buffers()}
    batch = supernet(images, mixture, generator=draws())
    running = supernet(images, mixture, norm="running", generator=draws())
    assert all(torch.equal(value, before[name]) for name, value in supernet.named_buffers())
    updated = supernet(images, mixture, norm="batch_and_update", generator=draws())
    assert torch.equal(updated, batch)
    assert not torch.allclose(batch, running)
    assert all(not torch.equal(value, before[name]) for name, value in supernet.named_buffers())


def test_no_search_state_is_inside(space: Space) -> None:
    shapes = set(space.alpha_shapes().values())
    supernet = space.build_supernet(1, 4, seed=0)
    assert not any(tuple(value.shape) in shapes for value in supernet.state_dict().values())
    assert not any("num_batches" in name for name, _ in supernet.named_buffers())


def test_initialisation_depends_on_the_seed_alone(space: Space) -> None:
    torch.manual_seed(1)
    first = space.build_supernet(1, 4, seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    second = space.build_supernet(1, 4, seed=3).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    genotype = space.discretize(random_weights(space, 0))
    ours, same, other = (
        list(small_network(space, genotype, seed=seed).parameters()) for seed in (5, 5, 6)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))


def test_discretize_uses_only_the_order_of_op_weights(space: Space) -> None:
    for seed in range(20):
        op_weights = random_weights(space, seed)
        genotype = space.discretize(op_weights)
        space.check(genotype)
        scaled = {name: 3.0 * weights + 0.5 for name, weights in op_weights.items()}
        assert space.discretize(scaled) == genotype
        assert tuple(cell.name for cell in genotype.cells) == space.cell_types


def test_discretize_refuses_what_it_cannot_rank(space: Space) -> None:
    good = random_weights(space, 0)
    name = list(good)[-1]
    with pytest.raises(SpaceError, match="op_weights must have"):
        space.discretize({k: v for k, v in good.items() if k != name})
    with pytest.raises(SpaceError, match=r"must have shape \("):
        space.discretize({**good, name: good[name][:-1]})
    with pytest.raises(SpaceError, match="must be finite"):
        space.discretize({**good, name: good[name] * float("nan")})


def test_a_genotype_alone_stands_for_itself(space: Space) -> None:
    for seed in range(20):
        op_weights = random_weights(space, seed)
        genotype = space.discretize(op_weights)
        for like in (op_weights, random_weights(space, seed + 100)):
            alone = space.one_hot(genotype, like)
            assert {name: tuple(matrix.shape) for name, matrix in alone.items()} == (
                space.alpha_shapes()
            )
            assert all(((matrix == 0) | (matrix == 1)).all() for matrix in alone.values())
            assert space.discretize(alone) == genotype


def test_genotypes_survive_json_and_text(space: Space) -> None:
    for seed in range(10):
        genotype = space.discretize(random_weights(space, seed))
        assert Genotype.from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
        assert space.parse(space.format(genotype)) == genotype
        assert space.parse(json.dumps(genotype.to_json())).hash == genotype.hash


def test_networks_train_and_their_cost_is_that_of_their_weights(space: Space) -> None:
    genotype = space.discretize(random_weights(space, 4))
    network = small_network(space, genotype)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    logits, auxiliary = network(images, 0.2, torch.Generator().manual_seed(0))
    assert logits.shape == (4, 4)
    assert auxiliary is None
    logits.square().sum().backward()
    channels, cells = space.search_size()
    cost = network_cost(
        space, genotype, channels=channels, cells=cells, classes=4, in_channels=1, image_size=8
    )
    assert cost.params == sum(weight.numel() for weight in network.parameters())
    assert cost.macs > 0


def test_a_network_of_the_size_of_the_search_has_the_stack_of_the_supernet(space: Space) -> None:
    genotype = space.discretize(random_weights(space, 4))
    supernet = space.build_supernet(1, 4, seed=0)
    network = small_network(space, genotype)
    ours, theirs = (getattr(net, "trunk", net).layout for net in (network, supernet))
    if space.has_edges:
        assert ours == theirs
    else:  # blocks and vertices have other widths inside a cell; what leaves the cells is alike
        wide = [(layer.stride, layer.out_channels) for layer in theirs.layers]
        assert [(layer.stride, layer.out_channels) for layer in ours.layers] == wide
    cells = space.search_size()[1]
    assert space.network_cells(genotype, cells) == cells


def test_the_cells_that_tell_a_collapse_are_cells_of_the_genotype(space: Space) -> None:
    genotype = space.discretize(random_weights(space, 4))
    judged = space.normal_cells(genotype)
    assert judged
    assert [cell for cell in genotype.cells if cell in judged] == list(judged)
    assert judged[0].name == space.cell_types[0]


def test_the_auxiliary_head_is_there_where_the_space_says_so(space: Space) -> None:
    genotype = space.discretize(random_weights(space, 4))
    if not space.has_auxiliary:
        with pytest.raises(SpaceError, match="no auxiliary head"):
            small_network(space, genotype, auxiliary=True)
        return
    network = small_network(space, genotype, auxiliary=True)
    assert network(torch.zeros(4, 1, 8, 8), generator=draws())[1].shape == (4, 4)


def test_large_images_go_through_the_imagenet_stem_where_the_space_has_it(space: Space) -> None:
    genotype = space.discretize(random_weights(space, 4))
    if not space.has_imagenet_stem:
        with pytest.raises(SpaceError, match="have no stem for ImageNet"):
            small_network(space, genotype, stem="imagenet")
        return
    network = small_network(space, genotype, stem="imagenet", auxiliary=space.has_auxiliary)
    logits, auxiliary = network(torch.zeros(2, 1, 130, 128), generator=draws())
    assert logits.shape == (2, 4)
    assert (auxiliary is not None) == space.has_auxiliary
    channels, cells = space.search_size()
    stems = [
        space.build_network(genotype, 1, 4, channels=channels, cells=cells, image_size=size, **stem)
        for size, stem in ((127, {}), (128, {}), (128, {"stem": "cifar"}))
    ]
    assert [each.trunk.layout.stem for each in stems] == ["cifar", "imagenet", "cifar"]


def test_impossible_networks_are_refused(space: Space) -> None:
    genotype = space.discretize(random_weights(space, 0))
    with pytest.raises(SpaceError, match="cells must be >= 1, got 0"):
        space.build_network(genotype, 3, 10, cells=0)
    with pytest.raises(SpaceError, match="channels must be >= "):
        space.build_network(genotype, 3, 10, channels=0)
    with pytest.raises(SpaceError, match="of space 'elsewhere', not of"):
        space.build_network(Genotype("elsewhere", genotype.cells), 3, 10)


def test_the_published_evaluation_network_is_the_default(space: Space) -> None:
    genotype = space.discretize(random_weights(space, 0))
    published = space.evaluation
    assert network_cost(space, genotype) == network_cost(
        space,
        genotype,
        channels=published.channels,
        cells=published.cells,
        classes=published.classes,
        in_channels=published.in_channels,
        image_size=published.image_size,
    )
