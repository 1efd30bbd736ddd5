"""OStr-DARTS: keep the operations whose removal would change the validation loss most."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from trainables.method import OpWeights
from trainables.selecting import Selected, Selection, TrainedSupernet, gate_gradients

SOURCE = "Yang et al.: OStr-DARTS: Differentiable Neural Architecture Search based on Operation Strength, arXiv 2409.14433"  # noqa: E501
RESULTS_VERSION = 1

_OUT_OF_REACH = 1.0


@dataclass(frozen=True)
class Config:
    """Settings of operation strength.

    The paper says that an operation's strength is its effect on the final loss, and that the search
    is unchanged. No code is public: formula, data, topology rule and settings are our reading.

    Attributes:
        variant: "absolute", |mean of dL/dz over batches|; "squared", the mean of its square, which
            depends on the batch size; "signed", minus its mean: positive where taking the operation
            away raises the loss.
        batches: Validation batches that are looked at, from the first; None takes them all.
        norm: Statistics of the batch norms; the running ones belong to the mixture of the search.
        progressive: "off" chooses all edges at once; "edge_wise" fixes the edge of the clearest
            choice, trains on, and measures again.
        tune_epochs: Epochs of training after each fixed edge, of "edge_wise" only.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    variant: Literal["absolute", "squared", "signed"] = "absolute"
    batches: int | None = None
    norm: Literal["batch", "running"] = "batch"
    progressive: Literal["off", "edge_wise"] = "off"
    tune_epochs: int = 0

    def __post_init__(self) -> None:
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"batches must be >= 1, got {self.batches!r}.")
        if self.tune_epochs < 0:
            raise ValueError(f"tune_epochs must be >= 0, got {self.tune_epochs!r}.")
        if self.progressive == "off" and self.tune_epochs:
            raise ValueError(
                f"tune_epochs has no effect with progressive off; leave it out, "
                f"got {self.tune_epochs!r}."
            )


def strengths(supernet: TrainedSupernet, config: Config) -> OpWeights:
    """Return the strength of every operation: one forward and one backward a batch.

    Weights and alphas stay as they are. An operation of op weight 0 has strength 0, and so has
    `none`, which can only be chosen where everything else is worse than nothing ("signed").

    Returns:
        By cell type `(num_edges, num_ops)`, float64 on the CPU.
    """
    batches = itertools.islice(supernet.validation(), config.batches)
    sums: OpWeights = {}
    images = 0
    for gates, count in gate_gradients(supernet, batches, config.norm):
        images += count
        for name, gate in gates.items():
            value = gate.square() if config.variant == "squared" else gate
            sums[name] = sums.get(name, 0.0) + count * value
    found = {}
    for name, total in sums.items():
        mean = (total / images).cpu()
        strength = mean.abs() if config.variant == "absolute" else mean
        strength = -strength if config.variant == "signed" else strength
        # An operation that a stage of the search has taken away is not to come back.
        gone = ~supernet.left(name)
        found[name] = strength.masked_fill(gone, float(strength.min()) - _OUT_OF_REACH)
    return found


def select(supernet: TrainedSupernet, *, config: Config) -> Selected:
    """Return the genotype of the strongest operations and edges.

    An edge is as strong as its strongest operation; which edges stay is the space's own rule with
    strengths in the place of op weights: two a node in the DARTS space, all in NAS-Bench-201.
    In NAS-Bench-1Shot1 what leads into a block or the output is measured as operations are.
    """
    if config.progressive == "off":
        scores = strengths(supernet, config)
        return Selected(supernet.space.discretize(scores), scores)
    space = supernet.space
    chosen: dict[tuple[str, int], int] = {}
    free = [(name, edge) for name, edges in space.edges.items() for edge in range(len(edges))]
    while free:
        scores = strengths(supernet, config)
        margins = {}
        for name, edge in free:
            columns = space.selectable(name)
            ranked = scores[name][edge, columns].sort(descending=True, stable=True)
            chosen[name, edge] = columns[int(ranked.indices[0])]
            values = ranked.values.tolist()
            margins[name, edge] = values[0] - values[1] if len(values) > 1 else 0.0
        # max keeps the first of equals.
        clearest = max(free, key=lambda place: margins[place])
        supernet.fix(*clearest, chosen[clearest])
        free.remove(clearest)
        supernet.tune(config.tune_epochs, lr_share=0.1)
    scores = strengths(supernet, config)
    for (name, edge), operation in chosen.items():
        row = scores[name][edge]
        others = torch.arange(len(row)) != operation
        # Whatever the sign of the chosen one's strength, nothing else on its edge is left.
        row[others] = row[operation] - _OUT_OF_REACH
    return Selected(space.discretize(scores), scores)


def build(config: Config) -> Selection:
    """Return the selection rule."""
    by_edge = config.progressive == "edge_wise"
    return Selection(at_end=partial(select, config=config), of_edges=by_edge)
