"""DARTS-PT: keep the operations and edges without which the supernet's accuracy falls most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Literal

import torch

from spaces.core.space import Space
from trainables.method import OpWeights
from trainables.selecting import Selected, Selection, TrainedSupernet

SOURCE = "Wang et al.: Rethinking Architecture Selection in Differentiable NAS, ICLR 2021, https://arxiv.org/abs/2108.04392"
RESULTS_VERSION = 1

_LR_SHARE = 0.1
_OUT_OF_REACH = 1.0

Decision = Callable[[], None]


@dataclass(frozen=True)
class Config:
    """Settings of perturbation-based selection.

    Attributes:
        criterion: What a masked supernet is judged by, on the validation split.
        tune_epochs: Epochs of training between two rounds of decisions, at a tenth of the first
            learning rate. The authors' code has 5 in NAS-Bench-201 and 10 in the DARTS space.
        batches: Validation batches of an evaluation, from the first; None takes them all.
        norm: Statistics of the batch norms; the running ones belong to the mixture of the search.

    Raises:
        ValueError: A value is out of range.
    """

    criterion: Literal["accuracy", "loss"] = "accuracy"
    tune_epochs: int = 5
    batches: int | None = None
    norm: Literal["batch", "running"] = "batch"

    def __post_init__(self) -> None:
        if self.tune_epochs < 0:
            raise ValueError(f"tune_epochs must be >= 0, got {self.tune_epochs!r}.")
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"batches must be >= 1, got {self.batches!r}.")


@dataclass(frozen=True)
class Node:
    """A node into which a genotype has fewer edges than the supernet.

    Attributes:
        edges: Rows of its edges in the op weights.
        kept: How many of them stay.
    """

    edges: tuple[int, ...]
    kept: int


def crowded_nodes(space: Space, cell: str) -> list[Node]:
    """Return the nodes of a cell type that lose edges: those with over two in the DARTS space.

    They are read off the genotype of equal op weights: spaces whose genotypes have a fixed number
    of edges into a node are meant.
    """
    equal = torch.ones(space.alpha_shapes()[cell])
    kept = Counter(edge.target for edge in space.choose(cell, equal).edges)
    rows: dict[int, list[int]] = {}
    for row, (_, target) in enumerate(space.edges[cell]):
        rows.setdefault(target, []).append(row)
    return [Node(tuple(r), kept[node]) for node, r in rows.items() if len(r) > kept[node]]


def harms(
    supernet: TrainedSupernet,
    config: Config,
    cell: str,
    parts: Sequence[tuple[int, int | slice]],
) -> list[float]:
    """Return how much worse the supernet is without each of several parts of its mixtures.

    A part's op weights are 0 in all cells of the type; the others are not rescaled. All evaluations
    see the same images and the same draws of the network.

    Args:
        supernet: Evaluated once as it is, once without each part.
        config: Criterion, batches and norm.
        cell: Cell type.
        parts: Edge and operation, or slice of operations.

    Returns:
        Drop of the accuracy, a share, or rise of the loss in nats; negative where it helps.
    """
    clean = supernet.op_weights()

    def badness(op_weights: OpWeights) -> float:
        loss, accuracy = supernet.evaluate(op_weights, config.norm, batches=config.batches)
        return loss if config.criterion == "loss" else -accuracy

    whole = badness(clean)
    found = []
    for edge, operations in parts:
        masked = clean[cell].clone()
        masked[..., edge, operations] = 0.0
        found.append(badness(clean | {cell: masked}) - whole)
    return found


def choose_operation(
    supernet: TrainedSupernet, config: Config, scores: OpWeights, cell: str, edge: int
) -> None:
    """Leave on an edge the operation that is missed most, the first of equals; note its scores."""
    left = supernet.left(cell)[edge].tolist()
    columns = [column for column in supernet.space.selectable(cell) if left[column]]
    found = harms(supernet, config, cell, [(edge, column) for column in columns])
    scores[cell][edge] = min(found) - _OUT_OF_REACH
    scores[cell][edge, columns] = torch.tensor(found, dtype=torch.float64)
    supernet.fix(cell, edge, columns[found.index(max(found))])


def choose_edges(
    supernet: TrainedSupernet, config: Config, scores: OpWeights, cell: str, node: Node
) -> None:
    """Leave into a node the edges that are missed most, the first of equals.

    Each is masked with all others there. The scores of an edge that goes are moved as one below
    those of all that stay.
    """
    found = harms(supernet, config, cell, [(edge, slice(None)) for edge in node.edges])
    # sorted is stable.
    ranked = sorted(range(len(node.edges)), key=lambda place: -found[place])
    best = scores[cell][:, supernet.space.selectable(cell)].amax(dim=1)
    least = min(best[node.edges[place]] for place in ranked[: node.kept])
    for place in ranked[node.kept :]:
        edge = node.edges[place]
        supernet.drop(cell, edge)
        scores[cell][edge] += least - _OUT_OF_REACH - best[edge]


def choose_parents(supernet: TrainedSupernet, config: Config, scores: OpWeights, name: str) -> None:
    """Leave in a row that chooses among nodes those that are missed most, the first of equals."""
    kept = supernet.space.parents[name]
    columns = range(supernet.space.alpha_shapes()[name][1])
    found = harms(supernet, config, name, [(0, slice(node, node + 1)) for node in columns])
    scores[name][0] = torch.tensor(found, dtype=torch.float64)
    for node in sorted(columns, key=lambda node: -found[node])[kept:]:
        supernet.remove(name, 0, node)


def rounds(
    decisions: Mapping[str, Sequence[Decision]], generator: torch.Generator
) -> Iterator[list[Decision]]:
    """Yield one decision of every cell type at a time, each type's in an order of its own."""
    orders = []
    for by_type in decisions.values():
        order = torch.randperm(len(by_type), generator=generator, device=generator.device)
        orders.append([by_type[place] for place in order.tolist()])
    for turn in zip_longest(*orders):
        yield [decision for decision in turn if decision is not None]


def select(supernet: TrainedSupernet, *, config: Config) -> Selected:
    r"""Return the genotype that is left when edges, then nodes, are decided one after another.

    A round decides one random edge of every cell type, in the order of the types:
        o* = argmin_o accuracy(supernet without o on the edge), or argmax_o loss(...),
    fixes each, and trains weights and alphas on. Where genotypes have fewer edges into a node than
    the supernet, further rounds decide one random node of every type: those edges stay whose own
    absence hurts most. The others are absent when later nodes are decided. In NAS-Bench-1Shot1 the
    rows of operations come first, each as an edge, then those of parents, each as a node (our
    reading).

    Returns:
        Scores are, by cell type `(num_edges, num_ops)`, the harm of masking an operation when its
        edge was decided, and less than any of them where it cannot be selected. Rows of edges that
        did not stay are moved below the others.

    Source:
        The paper's algorithm 1, as in the authors' code (github.com/ruocwang/darts-pt,
        nasbench201/projection.py and sota/cnn/projection.py). Differs: evaluations see validation
        images in one order and without augmentation, there shuffled anew for each candidate, and
        update no running statistics; operations that a genotype cannot have are no candidates (in
        their DARTS space `none` is left out altogether); Adam starts anew together with the
        optimizer of the weights, as it must for a stored supernet; nothing is trained after
        the last decision; of equal edges the first stay, as there, where the last of them goes; and
        training is equally long before all but the first (theirs: an epoch less before the
        last of NAS-Bench-201).
    """
    space, generator = supernet.space, supernet.at.generator
    scores = {
        name: torch.zeros(shape, dtype=torch.float64)
        for name, shape in space.alpha_shapes().items()
    }
    operation = partial(choose_operation, supernet, config, scores)
    topology = partial(choose_edges, supernet, config, scores)
    edges = {
        name: [partial(operation, name, edge) for edge in range(rows)]
        for name, (rows, _) in space.alpha_shapes().items()
        if name not in space.parents
    }
    nodes: dict[str, list[Decision]] = {
        name: [partial(topology, name, node) for node in crowded_nodes(space, name)]
        for name in (edges if space.has_edges else ())
    }
    nodes |= {
        name: [partial(choose_parents, supernet, config, scores, name)] for name in space.parents
    }
    for number, turn in enumerate([*rounds(edges, generator), *rounds(nodes, generator)]):
        if number > 0:
            # One pair of optimizers for the whole projection, as in the authors' code.
            lr_share = _LR_SHARE if number == 1 else None
            supernet.tune(config.tune_epochs, lr_share=lr_share)
        for decide in turn:
            decide()
    return Selected(space.discretize(scores), scores)


def build(config: Config) -> Selection:
    """Return the selection rule."""
    return Selection(at_end=partial(select, config=config))
