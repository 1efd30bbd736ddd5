"""S1 to S4: candidates edge by edge, noise, equality with the plain reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reference.supernets import DartsReference, copy_weights, matched
from spaces.core import plugins
from spaces.core.cost import network_cost
from spaces.core.errors import SpaceError
from spaces.core.genotype import Genotype
from spaces.core.mixture import PLAIN, Mixture, Norm, Structure
from spaces.core.source_mix import SourceMix
from spaces.core.space import Space
from tests.spaces.helpers import give_weights, one_hot, space_of
from tests.spaces.pairs import AUXILIARY, HALF, batch, close, gradient_of, mixture_of, seeded

# Zela et al., ICLR 2020, src/spaces.py, in short: s skip, m and a max and average pooling, d and D
# dilated 3x3 and 5x5, c separable 3x3; edges into nodes 2, 3, 4 and 5.
TABLE = {
    "normal": "sd sD | sD sc sd | ms sc sc sd | sc ms sd dD dD",
    "reduction": "ma md | ma ma sD | ma mc sd sD | ma ma sD sD sD",
}
LETTERS = {
    "s": "skip_connect",
    "m": "max_pool_3x3",
    "a": "avg_pool_3x3",
    "d": "dil_conv_3x3",
    "D": "dil_conv_5x5",
    "c": "sep_conv_3x3",
}
OPERATIONS = {
    "s2": ("skip_connect", "sep_conv_3x3"),
    "s3": ("none", "skip_connect", "sep_conv_3x3"),
    "s4": ("noise", "sep_conv_3x3"),
}
NAMES = ("s1", "s2", "s3", "s4")


def table(space: str) -> dict[str, list[tuple[str, ...]]]:
    if space != "s1":
        return {cell: [OPERATIONS[space]] * 14 for cell in TABLE}
    return {
        cell: [tuple(LETTERS[x] for x in pair) for pair in text.replace("|", "").split()]
        for cell, text in TABLE.items()
    }


def small(name: str, **settings: Any) -> Space:
    return space_of({"name": name, "channels": 4, "cells": 4, **settings})


@pytest.mark.parametrize("name", NAMES)
def test_every_edge_has_the_published_candidates(name: str) -> None:
    space = small(name)
    for cell, edges in table(name).items():
        assert [space.operations_of(cell, row) for row in range(14)] == edges
        assert space.edges[cell] == tuple((s, t) for t in range(2, 6) for s in range(t))
    assert set(space.alpha_shapes().values()) == {(14, 3 if name == "s3" else 2)}


def pair_of(name: str, structure: Structure = PLAIN) -> tuple[Any, DartsReference]:
    space = small(name)
    engine = space.build_supernet(3, 5, seed=1, structure=structure).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, value in (*engine.named_buffers(), *engine.named_parameters()):
            if "norm" in key:
                value.uniform_(0.5, 1.5, generator=generator)
    reference = DartsReference(4, 4, 3, 5, names=table(name), structure=structure).double()
    copy_weights(engine, reference)
    return engine, reference


CASES = [
    *((name, PLAIN, ("edge_weights",), norm) for name in NAMES for norm in get_args(Norm)),
    *((name, PLAIN, ("active", "edge_weights", "offsets"), "batch") for name in NAMES),
    ("s1", AUXILIARY, ("skip_scale",), "batch_and_update"),
    ("s4", HALF, ("edge_weights",), "batch_and_update"),
    ("s1", PLAIN, ("skip_dropout",), "batch"),
]


@pytest.mark.parametrize(("name", "structure", "extras", "norm"), CASES)
def test_the_supernet_equals_the_reference(
    name: str, structure: Structure, extras: tuple[str, ...], norm: Norm
) -> None:
    engine, reference = pair_of(name, structure)
    reference.train(norm != "running")
    images, labels = batch()
    mine, plain = (mixture_of(engine, extras) for _ in range(2))
    for mixture in (mine, plain):
        for value in mixture.op_weights.values():
            value.requires_grad_()
    logits = engine(images, mine, norm=norm, generator=seeded())
    expected = reference(images, plain.op_weights, plain, seeded())
    functional.cross_entropy(logits, labels).backward()
    functional.cross_entropy(expected, labels).backward()
    assert close(logits, expected)
    for cell, value in mine.op_weights.items():
        assert close(gradient_of(value), gradient_of(plain.op_weights[cell])), cell
        # On running statistics these logits may be so large that the loss is flat.
        assert norm == "running" or value.grad.abs().sum() > 0
    for key, ours, rows, theirs in matched(engine, reference):
        if isinstance(ours, nn.Parameter):
            assert close(gradient_of(ours)[rows], gradient_of(theirs)), key


def test_an_edge_has_no_weights_of_what_it_has_not() -> None:
    engine = small("s1").build_supernet(3, 5, seed=0)
    mix = engine.trunk.layers[0].mixes[0]
    assert isinstance(mix, SourceMix)
    # From node 0 of the normal cell: skip dil3, skip dil5, max skip, skip sep3.
    assert [len(mix.edge_operations[name]) for name in mix.edge_operations] == [1, 1, 1]
    assert set(mix.edge_operations) == {"dil_conv_3x3", "dil_conv_5x5", "sep_conv_3x3"}


@pytest.mark.parametrize("name", NAMES)
def test_a_one_hot_supernet_is_the_network(name: str) -> None:
    space = small(name)
    generator = torch.Generator().manual_seed(5)
    genotype = space.discretize(
        {k: torch.rand(s, generator=generator) for k, s in space.alpha_shapes().items()}
    )
    supernet = space.build_supernet(3, 5, seed=1).double()
    network = space.build_network(genotype, 3, 5, channels=4, cells=4, seed=2).double().eval()
    give_weights(supernet, network)
    images, _ = batch()
    mixture = Mixture(one_hot(space, genotype, torch.float64))
    if name != "s4":
        logits = supernet(images, mixture, norm="running", generator=seeded())
        assert close(logits, network(images)[0])
        return
    # The supernet also draws the noise of edges that are left out; without any the two agree.
    with torch.no_grad():
        logits = supernet(images, mixture, norm="running", generator=Silent())
        assert close(logits, network(images, generator=Silent())[0])


class Silent(torch.Generator):
    """A generator whose noise the tests below replace."""


@pytest.fixture(autouse=True)
def silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., Tensor] = torch.randn

    def randn(*shape: Any, generator: Any = None, **options: Any) -> Tensor:
        if isinstance(generator, Silent):
            return plain(*shape, generator=torch.Generator().manual_seed(0), **options)
        return plain(*shape, generator=generator, **options)

    monkeypatch.setattr(torch, "randn", randn)


def test_noise_is_standard_normal_whatever_goes_in_and_drawn_from_the_generator_alone() -> None:
    space = small("s4")
    engine = space.build_supernet(3, 5, seed=1)
    images = torch.randn(64, 3, 8, 8, generator=seeded())
    mixture = Mixture({k: torch.ones(s) for k, s in space.alpha_shapes().items()})
    before = torch.get_rng_state()
    generator = seeded()
    first = engine(images, mixture, norm="running", generator=generator)
    second = engine(images, mixture, norm="running", generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert torch.equal(engine(images, mixture, norm="running", generator=seeded()), first)
    with pytest.raises(SpaceError, match="'noise' needs a generator"):
        engine(images, mixture)
    operation = plugins.load("spaces", "s4") and space.build_network(
        noisy(space), 3, 5, channels=4, cells=3
    )
    with pytest.raises(SpaceError, match="'noise' needs a generator"):
        operation(images)
    values = next(m for m in operation.modules() if type(m).__name__ == "Noise")
    from spaces.core.layers import Source

    drawn = values(Source(1e6 * torch.ones(64, 8, 16, 16)), "batch", seeded())
    assert drawn.mean().abs() < 0.02
    assert abs(float(drawn.std()) - 1.0) < 0.02


def noisy(space: Space) -> Genotype:
    return space.discretize({k: torch.tensor([[1.0, 0.0]] * 14) for k in space.alpha_shapes()})


def test_noise_can_be_selected_and_marks_a_collapse() -> None:
    from trainables.diagnostics import collapsed, skip_count

    space = small("s4")
    genotype = noisy(space)
    assert {edge.operation for edge in genotype.cell("normal").edges} == {"noise"}
    assert skip_count(space, genotype) == 0
    assert collapsed(space, genotype)
    assert space.parse(space.format(genotype)) == genotype
    assert network_cost(space, genotype, channels=4, cells=3).params > 0


def test_none_is_never_selected_in_s3() -> None:
    space = small("s3")
    genotype = space.discretize(
        {k: torch.tensor([[5.0, 1.0, 2.0]] * 14) for k in space.alpha_shapes()}
    )
    assert {edge.operation for cell in genotype.cells for edge in cell.edges} == {"sep_conv_3x3"}


def test_operations_are_read_edge_by_edge() -> None:
    space = small("s1")
    second = space.discretize({k: torch.tensor([[0.0, 1.0]] * 14) for k in space.alpha_shapes()})
    # The first two edges into every node win ties; each has the second of its own candidates.
    for cell, letters in {"normal": "dDDcsccs", "reduction": "adaaacaa"}.items():
        names = [edge.operation for edge in second.cell(cell).edges]
        assert names == [LETTERS[letter] for letter in letters]


def test_an_operation_that_its_edge_has_not_is_refused() -> None:
    space = small("s1")
    # The first of two operations everywhere: skip connections come first in the normal cell.
    good = space.discretize(
        {k: torch.tensor([[1.0, 0.0]]).expand(s) for k, s in space.alpha_shapes().items()}
    )
    text = space.format(good).replace("skip_connect", "avg_pool_3x3", 1)
    with pytest.raises(
        SpaceError, match=r"Edge \d -> \d of cell 'normal' of 's1' has no operation"
    ):
        space.parse(text)


@pytest.mark.parametrize(("name", "channels"), [("s1", 36), ("s2", 16), ("s3", 36), ("s4", 16)])
def test_the_evaluation_network_has_the_width_of_its_space(name: str, channels: int) -> None:
    assert (small(name).evaluation.channels, small(name).evaluation.cells) == (channels, 20)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"channels": 1}, "channels must be >= 2"), ({"cells": 2}, "cells must be >= 3")],
)
def test_sizes_that_cannot_be_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(Exception, match=words):
        small("s2", **settings)
    for name in NAMES:
        assert plugins.describe("spaces", name).summary.startswith(name.upper())
