"""Which code path a search runs on: the one place that decides what `engine: auto` means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from spaces.core.mixture import Form
from spaces.core.operations import NOISE
from trainables.compiled import missing_compiler
from trainables.method import Method, first_order_gradient
from trainables.settings import SearchSettings, resolved
from trainables.state import DTYPES

if TYPE_CHECKING:
    from spaces.core.space import Space


@dataclass(frozen=True)
class Engine:
    """How a search runs its steps. It changes results by last bits at most, but for the precision.

    Attributes:
        name: "eager", "graph", "compile" or "reference", as in the settings.
        form: In which form the supernet runs its operations.
        precision: Of passes; alphas, op weights, statistics and optimizers have float32 at least.
        device: Kind of device, "cpu" or "cuda".
        why: What decided it, a sentence without its end.
    """

    name: Literal["eager", "graph", "compile", "reference"]
    form: Form
    precision: Literal["float32", "float64", "bf16"]
    device: str
    why: str

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, alphas and images."""
        return DTYPES[self.precision]

    @property
    def is_stub(self) -> bool:
        """Whether steps have the buffers of a graph, and are taken anew where there is none."""
        return self.name == "graph" and self.device != "cuda"

    @property
    def label(self) -> str:
        """Name in fingerprints, such as "eager-cpu", "graph-wide-cuda" or "graph-stub-cpu"."""
        words = [self.name, *(["stub"] * self.is_stub), *(["wide"] * (self.form == "wide"))]
        return "-".join([*words, self.device])

    def without_graph(self, why: str) -> Engine:
        """Return the engine that takes the same steps one by one."""
        return replace(self, name="eager", why=why)

    def __str__(self) -> str:
        return f"{self.label} in {self.precision}: {self.why}"


def choose_engine(
    settings: SearchSettings, device: torch.device, method: Method, space: Space | None
) -> Engine:
    """Decide how a search is run.

    Args:
        settings: `engine` and `precision` are used.
        device: Where it runs. On a GPU supernets have their wide form, whose kernels are few.
        method: A step that has to be known to the host, or that draws the same numbers in several
            passes, is not recorded: "graph" is then "eager", and `why` says so.
        space: What is searched; None is one without noise.
    """
    on_gpu = device.type == "cuda"
    precision = resolved(settings.precision)
    form: Form = "wide" if on_gpu else "edge"
    eager = Engine("eager", form, precision, device.type, "search.engine asks for it")
    if settings.engine == "reference":
        return replace(eager, name="reference", form="plain")
    if settings.engine == "eager":
        return eager
    if settings.engine == "compile":
        why = _not_compiled(settings, device, method, space)
        if why is not None:
            return eager.without_graph(f"cells cannot be compiled, because {why}")
        return replace(eager, name="compile")
    hindrance = _hindrance(settings, method, space)
    if settings.engine == "auto" and not on_gpu:
        return eager.without_graph("on a CPU there is nothing to gain from graphs")
    if hindrance is not None:
        return eager.without_graph(f"steps cannot be recorded as graphs, because {hindrance}")
    if settings.engine == "auto":
        return replace(
            eager, name="graph", why="on a GPU a step of many kernels waits for the host"
        )
    graph = replace(eager, name="graph")
    if on_gpu:
        return graph
    why = "search.engine asks for it, but a CPU has no graphs: buffers as on a GPU, steps anew"
    return replace(graph, why=why)


def _not_compiled(
    settings: SearchSettings, device: torch.device, method: Method, space: Space | None
) -> str | None:
    """Return why cells of a search cannot be compiled; None where they can."""
    if not method.trains:
        return "the method does not train"
    if method.sampled is not None:
        return "the method draws in each step which operations run, and each choice is other code"
    if _draws_inside(method, space):
        return (
            "they draw random numbers, and compiled code cannot do so from the search's generator"
        )
    if settings.checkpointing == "cell":
        return "they are to run again in the backward pass (search.checkpointing)"
    missing = missing_compiler(device.type)
    return None if missing is None else f"this machine lacks {missing}"


def _draws_inside(method: Method, space: Space | None) -> bool:
    """Return whether cells draw random numbers."""
    noisy = space is not None and any(
        NOISE in space.operations_of(name, edge)
        for name, edges in space.edges.items()
        for edge in range(len(edges))
    )
    return noisy or method.skip_dropout is not None


def _hindrance(settings: SearchSettings, method: Method, space: Space | None) -> str | None:
    """Return why steps of a method cannot be replayed; None where they can."""
    if not method.trains:
        return "the method does not train"
    if method.sampled is not None:
        return "the method draws in each step which operations run, which the host has to know"
    draws_inside = _draws_inside(method, space)
    if draws_inside and settings.checkpointing == "cell":
        return "cells that run again have to draw the same random numbers"
    draws = draws_inside or method.mean is not None
    one_pass = method.alpha_gradient is first_order_gradient and method.perturb is None
    if draws and not one_pass:
        return "several passes of a step have to draw the same random numbers"
    return None
