"""One search step, ours against the reference: time, kernels, saved activations, the floor.

Several engines are timed in turns with one reference, and each has a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import (
    Floor,
    Work,
    count_kernels,
    count_launches,
    interleaved,
    peak_bytes,
    saved_bytes,
)
from benchmarks.reference.steps import Batch, ReferenceSearch
from benchmarks.reference.supernets import DartsReference, NasBench201Reference, copy_weights
from spaces.core import plugins
from spaces.core.mixture import Form
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

ENGINES: tuple[Engine, ...] = get_args(Engine)
PRECISIONS: tuple[SearchPrecision, ...] = get_args(SearchPrecision)

_CLASSES, _EPOCHS = 10, 50


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
class Passes:
    """Passes of a step through the supernet, counted where all of them go: at its call.

    Attributes:
        with_gradient, without: Forward passes.
        backward: Backward passes, counted at the logits.
    """

    with_gradient: int
    without: int
    backward: int


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    Attributes:
        step: Takes a step.
        loss: Runs the forward pass of a weight step; the reference's has a graph to the alphas
            too, as public code has it.
        net: The supernet.
        search: What takes the steps: a `Bilevel` or a `ReferenceSearch`.
        alphas: Those that the backward pass of a weight step computes gradients of.
    """

    step: Work
    loss: Callable[[], Tensor]
    net: nn.Module
    search: Any
    alphas: tuple[Tensor, ...] = ()

    def saved_bytes(self) -> int:
        """Return the bytes that the forward pass of a weight step keeps for its backward pass."""
        return saved_bytes(self.loss, list(self.net.parameters()))

    def launches(self, form: Form | None = None) -> int:
        """Return the operators with work of their own in both passes of a weight step.

        Args:
            form: In which the supernet runs its operations, "wide" being that of a GPU; None is
                the one that it has.
        """
        if form is not None:
            self.net.use_form(form)  # type: ignore[operator]
        leaves = [*self.net.parameters(), *self.alphas]

        def passes() -> None:
            torch.autograd.grad(self.loss(), leaves, allow_unused=True)

        try:
            passes()  # joins the weights of the wide form
            return count_launches(passes)
        finally:
            if form is not None:
                self.net.use_form(self.search.engine.form)  # type: ignore[operator]


@dataclass(frozen=True)
class Pair:
    """A step of ours and the reference's, from equal weights and alphas.

    Attributes:
        ours, reference: Both sides.
        passes: Of our first step, which has been taken.
    """

    ours: Side
    reference: Side
    passes: Passes


def make_pair(
    space_name: str,
    method: str,
    size: Size,
    device: torch.device,
    *,
    precision: SearchPrecision = "float32",
    engine: Engine = "auto",
) -> Pair:
    """Build both searches; ours has then taken a step.

    Args:
        space_name: One of `SPACES`.
        method: One of `METHODS`.
        size: Of supernet and batches.
        device: Where both run.
        precision: Of ours; the reference has the type of our weights.
        engine: How our steps are run.
    """
    space = size.space(space_name)
    ours = make_ours(space, method, size, device, precision, engine)
    reference = make_reference(space, method, size, device, ours.search)
    return Pair(ours, reference, count_passes(ours))


def make_ours(
    space: Space,
    method: str,
    size: Size,
    device: torch.device,
    precision: SearchPrecision,
    engine: Engine,
) -> Side:
    """Return a search of ours at its start."""
    search = make_search(space, method, device, precision, engine)
    train_batch, val_batch = _batches(size, device, search.engine.dtype)
    at = search.point(0)
    clocks = Stopwatch(device), Stopwatch(device)
    mixture = search.training_mixture(search.relaxed(at), at)
    return Side(
        lambda: search.step(at, train_batch, val_batch, clocks),
        lambda: search.loss_on(mixture, train_batch, "batch"),
        search.supernet,
        search,
    )


def make_reference(
    space: Space, method: str, size: Size, device: torch.device, ours: Bilevel
) -> Side:
    """Return the reference's search from the weights and alphas of ours."""
    dtype = ours.engine.dtype
    net = reference_of(space).to(device, dtype)
    copy_weights(ours.supernet, net)  # type: ignore[arg-type]
    search = ReferenceSearch(net, ours.alphas, method)
    train_batch, val_batch = _batches(size, device, dtype)
    return Side(
        lambda: search.step(train_batch, val_batch),
        lambda: search.loss(net, train_batch, search.op_weights()),
        net,
        search,
        tuple(search.alphas.values()),
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
    space_name: str,
    method: str,
    size: Size,
    device: torch.device,
    *,
    rounds: int,
    floor: Floor,
    engine: Engine = "auto",
    precision: SearchPrecision = "float32",
) -> dict[str, Any]:
    """Return the row of a case; times in seconds, sizes in bytes."""
    (row,) = measure_engines(
        space_name,
        method,
        size,
        device,
        rounds=rounds,
        floor=floor,
        engines=[engine],
        precision=precision,
    )
    return row


def measure_engines(
    space_name: str,
    method: str,
    size: Size,
    device: torch.device,
    *,
    rounds: int,
    floor: Floor,
    engines: Sequence[Engine],
    precision: SearchPrecision = "float32",
) -> list[dict[str, Any]]:
    """Return the rows of a case, one for each engine, all timed in turns with one reference.

    Args:
        space_name: One of `SPACES`.
        method: One of `METHODS`.
        size: Of supernet and batches.
        device: Where all run.
        rounds: How often each is timed.
        floor: Of the device.
        engines: How our steps are run.
        precision: Of our passes; the reference has float32, and float64 beside float64.
    """
    space = size.space(space_name)
    ours = {e: make_ours(space, method, size, device, precision, e) for e in engines}
    first = ours[engines[0]]
    reference = make_reference(space, method, size, device, first.search)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        first.loss()
    passes = {engine: count_passes(side) for engine, side in ours.items()}
    count_passes(reference)  # as many steps for all: optimizers have their states from here on
    # Before there are recordings, whose memory is not seen.
    peaks = {engine: peak_bytes(side.step, device) for engine, side in ours.items()}
    reference_peak = peak_bytes(reference.step, device)
    recorded = device.type == "cuda" and any(s.search.engine.name == "graph" for s in ours.values())
    times = interleaved(
        {**{engine: side.step for engine, side in ours.items()}, "": reference.step},
        rounds,
        device,
        warm_up=WARM_UP if recorded else 0,
    )
    theirs = {
        "reference_s": times[""].least,
        "reference_median_s": times[""].median,
        "reference_kernels": count_kernels(reference.step, device),
        "reference_launches": reference.launches(),
        "reference_saved_bytes": reference.saved_bytes(),
        "reference_peak_bytes": reference_peak,
    }
    rows = []
    for engine, side in ours.items():
        named = "" if engine == "auto" else f" engine={engine}"
        named += "" if precision == "float32" else f" precision={precision}"
        row = {
            "case": f"step {space_name} {method} C={size.channels} batch={size.batch}{named}",
            "engine": side.search.engine.label,
            "precision": side.search.engine.precision,
            "ours_s": times[engine].least,
            "ours_median_s": times[engine].median,
            "kernels": count_kernels(side.step, device),
            "launches": side.launches(None if side.search.engine.form == "plain" else "wide"),
            "saved_bytes": side.saved_bytes(),
            "peak_bytes": peaks[engine],
        }
        flops = counter.get_total_flops()
        row = _completed(row | theirs, size, passes[engine], flops, floor)
        rows.append(row | {"rounds": rounds})
    return rows


def _completed(
    row: dict[str, Any], size: Size, passes: Passes, pass_flops: int, floor: Floor
) -> dict[str, Any]:
    # A backward pass to all that a pass reads costs two forward ones; what it saved is written once
    # and read once.
    flops = pass_flops * (3 * passes.with_gradient + passes.without)
    moved = 2.0 * row["saved_bytes"] * passes.with_gradient
    least = floor.seconds(flops, moved)
    return {
        "case": row.pop("case"),
        "speedup": row["reference_s"] / row["ours_s"],
        "speedup_of_medians": row["reference_median_s"] / row["ours_median_s"],
        **row,
        "images_per_s": 2 * size.batch / row["ours_s"],
        "floor_s": least,
        "floor_of_flops_s": flops / floor.flops,
        "floor_of_bytes_s": moved / floor.bytes,
        "times_floor": row["ours_s"] / least,
        "flops_per_s": flops / row["ours_s"],
        "machine_flops_per_s": floor.flops,
        "machine_bytes_per_s": floor.bytes,
        "passes_with_gradient": passes.with_gradient,
        "passes_without": passes.without,
        "backward_passes": passes.backward,
    }


def _batches(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Batch, Batch]:
    generator = torch.Generator().manual_seed(1)
    shape = (size.batch, 3, size.image, size.image)

    def batch() -> Batch:
        labels = torch.randint(_CLASSES, (size.batch,), generator=generator)
        return torch.randn(shape, generator=generator).to(device, dtype), labels.to(device)

    return batch(), batch()


def count_passes(side: Side) -> Passes:
    """Take a step and return its passes."""
    forward: list[bool] = []
    backward: list[Tensor] = []

    def note(_net: nn.Module, _inputs: Any, logits: Tensor) -> None:
        forward.append(logits.requires_grad)
        if logits.requires_grad:
            logits.register_hook(backward.append)  # type: ignore[no-untyped-call]

    handle = side.net.register_forward_hook(note)
    side.step()
    handle.remove()
    return Passes(sum(forward), len(forward) - sum(forward), len(backward))
