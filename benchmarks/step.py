"""One search step, ours against the reference: time, kernels, saved activations, the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import (
    Floor,
    Work,
    count_kernels,
    interleaved,
    peak_bytes,
    saved_bytes,
)
from benchmarks.reference.steps import Batch, ReferenceSearch
from benchmarks.reference.supernets import DartsReference, NasBench201Reference, copy_weights
from spaces.core import plugins
from spaces.core.space import Space
from trainables.bilevel import Bilevel
from trainables.capture import WARM_UP
from trainables.compose import build_method
from trainables.settings import Engine, SearchPrecision, SearchSettings
from trainables.timing import Stopwatch

SPACES = ("nasbench201", "darts")
"""Spaces with a reference supernet."""

METHODS: dict[str, Mapping[str, Any]] = {
    "darts": {"name": "darts"},
    "darts_unrolled": {"name": "darts", "alpha_gradient": {"name": "unrolled"}},
    "sdarts_rs": {"name": "sdarts_rs"},
    "sdarts_adv": {"name": "sdarts_adv"},
}
"""Settings of the methods with a reference step, of the same name."""

_CLASSES, _EPOCHS = 10, 50
_PRECISIONS: Mapping[torch.dtype, SearchPrecision] = {
    torch.float32: "float32",
    torch.float64: "float64",
}


@dataclass(frozen=True)
class Size:
    """Size of what is measured.

    Attributes:
        channels: C of the supernet.
        cells: Its cells (per stage in nasbench201); None is the published number.
        batch: Images of each of the two batches of a step.
        image: Side of an image, pixels.
    """

    channels: int = 16
    cells: int | None = None
    batch: int = 8
    image: int = 32

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings of a space of this size."""
        depth = "cells_per_stage" if name == "nasbench201" else "cells"
        cells = {} if self.cells is None else {depth: self.cells}
        return {"name": name, "channels": self.channels, **cells}

    def space(self, name: str) -> Space:
        """Return a space of this size."""
        name, config = plugins.make_config("spaces", self.settings(name))
        space: Space = plugins.load("spaces", name).build(config, name)
        return space


@dataclass(frozen=True)
class Pair:
    """A step of ours and the reference's, from equal weights and alphas.

    Attributes:
        ours, reference: Steps.
        forward: The forward pass of a weight step, by who; the reference's has a graph to the
            alphas too, as public code has it.
        weights: Parameters, by who.
        pass_flops: Multiplications and additions of one forward pass.
        passes: Forward passes of our step with a gradient, and without.
        bilevel, reference_search: What takes the steps.
    """

    ours: Work
    reference: Work
    forward: Mapping[str, Work]
    weights: Mapping[str, Sequence[Tensor]]
    pass_flops: int
    passes: tuple[int, int]
    bilevel: Bilevel
    reference_search: ReferenceSearch


def make_pair(
    space_name: str,
    method: str,
    size: Size,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    engine: Engine = "auto",
) -> Pair:
    """Build both searches; ours has then taken a step.

    Args:
        space_name: One of `SPACES`.
        method: One of `METHODS`.
        size: Of supernet and batches.
        device: Where both run.
        dtype: Precision of both.
        engine: How our steps are run.
    """
    space = size.space(space_name)
    bilevel = make_search(space, method, device, _PRECISIONS[dtype], engine)
    net = reference_of(space).to(device, dtype)
    copy_weights(bilevel.supernet, net)  # type: ignore[arg-type]
    theirs = ReferenceSearch(net, bilevel.alphas, method)
    train_batch, val_batch = _batches(size, device, dtype)
    at = bilevel.point(0)
    clocks = Stopwatch(device), Stopwatch(device)

    def ours() -> None:
        bilevel.step(at, train_batch, val_batch, clocks)

    op_weights = bilevel.relaxed(at)
    images = train_batch[0]
    mixture = bilevel.training_mixture(op_weights, at)
    forward = {
        "ours": lambda: bilevel.supernet(images, mixture, norm="batch"),
        "reference": lambda: net(images, theirs.op_weights()),
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward["ours"]()
    return Pair(
        ours,
        lambda: theirs.step(train_batch, val_batch),
        forward,
        {"ours": list(bilevel.weights), "reference": list(net.parameters())},
        counter.get_total_flops(),
        _count_passes(bilevel.supernet, ours),
        bilevel,
        theirs,
    )


def make_search(
    space: Space, method: str, device: torch.device, precision: SearchPrecision, engine: Engine
) -> Bilevel:
    """Return a search of ours at its start."""
    name, config = plugins.make_config("methods", dict(METHODS[method]))
    return Bilevel(
        space.build_supernet(3, _CLASSES, seed=0),
        space.alpha_shapes(),
        build_method(name, config, epochs=_EPOCHS),
        SearchSettings(epochs=_EPOCHS, precision=precision, engine=engine),
        seed=0,
        device=device,
        space=space,
    )


def compare_engines(
    space_name: str, method: str, size: Size, device: torch.device, *, rounds: int
) -> dict[str, Any]:
    """Return the row of our own step, recorded against eager: seconds, and of bf16 beside them."""
    variants: dict[str, tuple[Engine, SearchPrecision]] = {
        "eager": ("eager", "float32"),
        "graph": ("graph", "float32"),
        "bf16": ("graph", "bf16"),
    }
    space = size.space(space_name)
    batches = _batches(size, device, torch.float32)
    clocks = Stopwatch(device), Stopwatch(device)
    cases: dict[str, Work] = {}
    for what, (engine, precision) in variants.items():
        search = make_search(space, method, device, precision, engine)
        cases[what] = partial(search.step, search.point(0), *batches, clocks)
    times = interleaved(cases, rounds, device, warm_up=WARM_UP + 1)
    return {
        "case": f"engines {space_name} {method} C={size.channels} batch={size.batch}",
        "speedup": times["eager"].least / times["graph"].least,
        "ours_s": times["graph"].least,
        "reference_s": times["eager"].least,
        "against": "eager",
        "bf16_s": times["bf16"].least,
        "rounds": rounds,
    }


def reference_of(space: Space) -> nn.Module:
    """Return the op-by-op supernet of a space."""
    config = space.config
    if space.name == "nasbench201":
        return NasBench201Reference(config.channels, config.cells_per_stage, 3, _CLASSES)
    return DartsReference(config.channels, config.cells, 3, _CLASSES)


def measure(
    space_name: str, method: str, size: Size, device: torch.device, *, rounds: int, floor: Floor
) -> dict[str, Any]:
    """Return the row of a case; times in seconds, sizes in bytes."""
    pair = make_pair(space_name, method, size, device)
    times = interleaved({"ours": pair.ours, "reference": pair.reference}, rounds, device)
    ours, reference = times["ours"], times["reference"]
    saved = {who: saved_bytes(run, pair.weights[who]) for who, run in pair.forward.items()}
    with_gradient, without = pair.passes
    # A backward pass to all that a pass reads costs two forward ones; what it saved is written once
    # and read once.
    least = floor.seconds(
        pair.pass_flops * (3 * with_gradient + without), 2.0 * saved["ours"] * with_gradient
    )
    return {
        "case": f"step {space_name} {method} C={size.channels} batch={size.batch}",
        "speedup": reference.least / ours.least,
        "speedup_of_medians": reference.median / ours.median,
        "ours_s": ours.least,
        "ours_median_s": ours.median,
        "reference_s": reference.least,
        "reference_median_s": reference.median,
        "images_per_s": 2 * size.batch / ours.least,
        "kernels": count_kernels(pair.ours, device),
        "reference_kernels": count_kernels(pair.reference, device),
        "saved_bytes": saved["ours"],
        "reference_saved_bytes": saved["reference"],
        "peak_bytes": peak_bytes(pair.ours, device),
        "reference_peak_bytes": peak_bytes(pair.reference, device),
        "floor_s": least,
        "times_floor": ours.least / least,
        "passes_with_gradient": with_gradient,
        "passes_without": without,
        "rounds": rounds,
    }


def _batches(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Batch, Batch]:
    generator = torch.Generator().manual_seed(1)
    shape = (size.batch, 3, size.image, size.image)

    def batch() -> Batch:
        labels = torch.randint(_CLASSES, (size.batch,), generator=generator)
        return torch.randn(shape, generator=generator).to(device, dtype), labels.to(device)

    return batch(), batch()


def _count_passes(supernet: nn.Module, step: Callable[[], None]) -> tuple[int, int]:
    # Counted where every pass goes through: the call of the supernet.
    seen: list[bool] = []
    handle = supernet.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    step()
    handle.remove()
    return sum(seen), len(seen) - sum(seen)
