"""A supernet and its reference, mixtures for both, and what compares them."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

from benchmarks.reference.supernets import (
    DartsReference,
    NasBench201Reference,
    copy_weights,
)
from spaces.core.mixture import PLAIN, Mixture, Structure
from spaces.core.space import Space
from spaces.core.supernet import Supernet
from tests.spaces.helpers import space_of

TOLERANCE = 1e-10
CASES = {
    "nasbench201": {"name": "nasbench201", "channels": 4, "cells_per_stage": 1},
    "darts": {"name": "darts", "channels": 4, "cells": 4},
}
AUXILIARY = Structure(auxiliary_skip=True)
HALF, QUARTER = Structure(partial_channels=2), Structure(partial_channels=4)
EVERYTHING = ("edge_weights", "active", "offsets", "skip_dropout")


@functools.cache
def _built(
    case: str, structure: Structure
) -> tuple[Space, Supernet, nn.Module, list[dict[str, Tensor]]]:
    space = space_of(CASES[case])
    engine = space.build_supernet(3, 5, seed=1, structure=structure).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in (*engine.named_buffers(), *engine.named_parameters()):
            if "norm" in name:
                value.uniform_(0.5, 1.5, generator=generator)
    sizes = (*space.search_size(), 3, 5)
    make = NasBench201Reference if case == "nasbench201" else DartsReference
    reference = make(*sizes, structure=structure).double()
    copy_weights(engine, reference)
    return space, engine, reference, [copy.deepcopy(n.state_dict()) for n in (engine, reference)]


def pair_of(case: str, structure: Structure = PLAIN) -> tuple[Space, Supernet, nn.Module]:
    """Return a space, its supernet in float64 with uneven statistics, and the equal reference."""
    space, engine, reference, states = _built(case, structure)
    for net, state in zip((engine, reference), states, strict=True):
        net.double().train().load_state_dict(state)
        net.zero_grad()
    return space, engine, reference


def batch(side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, side, side, generator=generator, dtype=torch.float64)
    return images, torch.tensor([0, 1, 4, 2])


def mixture_of(
    engine: Supernet, extras: tuple[str, ...], *, per_cell: bool = False, seed: int = 4
) -> Mixture:
    """Return op weights and the named extras, of both signs and off the simplex.

    "active" leaves out about half of the operations; "one_active" all but one on each edge.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(with_operations: bool) -> dict[str, Tensor]:
        values = {}
        for name, topology in engine.topologies.items():
            shape = topology.shape[: 1 + with_operations]
            shape = (engine.num_cells[name], *shape) if per_cell else shape
            values[name] = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values

    settings: dict[str, object] = {"op_weights": draw(True)}
    for what in ("edge_weights", "offsets"):
        if what in extras:
            settings[what] = draw(False)
    if "active" in extras:
        settings["active"] = {name: value > 0 for name, value in draw(True).items()}
    if "one_active" in extras:
        settings["active"] = {
            name: value == value.amax(-1, keepdim=True) for name, value in draw(True).items()
        }
    if "skip_scale" in extras:
        settings["skip_scale"] = torch.tensor(0.7, dtype=torch.float64)
    if "skip_dropout" in extras:
        settings["skip_dropout"] = 0.4
    return Mixture(**settings)


def variables(mixture: Mixture) -> dict[str, Tensor]:
    """Make everything differentiable in a mixture a leaf, and return it by name."""
    found: dict[str, Tensor] = {}
    for what in ("op_weights", "edge_weights", "offsets"):
        for name, value in (getattr(mixture, what) or {}).items():
            found[f"{what} {name}"] = value.requires_grad_()
    if isinstance(mixture.skip_scale, Tensor):
        found["skip_scale"] = mixture.skip_scale.requires_grad_()
    return found


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> bool:
    return (ours - theirs).abs().max().item() <= tolerance * max(1.0, theirs.abs().max().item())


def gradient_of(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)
