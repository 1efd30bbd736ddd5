"""What a selection rule is, and the trained supernet that it may look at after the search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from spaces.core.genotype import Genotype
from spaces.core.mixture import Norm
from spaces.core.space import Space
from trainables.bilevel import Batch, Bilevel
from trainables.method import OpWeights, SearchPoint
from trainables.search_data import SearchData
from trainables.timing import Stopwatch


def by_magnitude(space: Space, op_weights: Mapping[str, Tensor]) -> Genotype:
    """Return the genotype of the largest op weights, by the space's own rule."""
    return space.discretize(op_weights)


@dataclass(frozen=True)
class Selected:
    """What a rule found.

    Attributes:
        genotype: The choice.
        measured: Values that stand in the curve in the place of those of the last epoch, where the
            mixture of that epoch says nothing of the choice.
        scores: By cell type `(num_edges, num_ops)`, float64 on the CPU: what it was chosen by.
    """

    genotype: Genotype
    scores: OpWeights = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """A rule that turns a supernet into a genotype.

    Attributes:
        each_epoch: The genotype after an epoch, from the op weights alone, which costs nothing.
        at_end: The genotype after the last epoch, from the trained supernet; None is `each_epoch`.
            It may also be applied to any stored supernet later.
        of_edges: Whether the rule decides edge by edge, leaving one operation on each.
    """

    each_epoch: Callable[[Space, Mapping[str, Tensor]], Genotype] = by_magnitude
    at_end: Callable[[TrainedSupernet], Selected] | None = None
    of_edges: bool = False


class TrainedSupernet:
    """A supernet after its search, for a selection rule: evaluate, fix edges, train on.

    Whoever hands it out puts the search's own state back afterwards; a rule may do as it likes.

    Args:
        space: The space.
        bilevel: State of the search; `fix` and `tune` change it.
        data: Batches of both splits.
        at: The last point of the search; its generator is the rule's.
    """

    def __init__(self, space: Space, bilevel: Bilevel, data: SearchData, at: SearchPoint) -> None:
        self.space, self.at = space, at
        self._bilevel, self._data = bilevel, data

    def op_weights(self) -> OpWeights:
        """Return the op weights as they are now, without a graph; fixed edges are one-hot."""
        return self._bilevel.relaxed(self.at)

    def left(self, cell: str) -> Tensor:
        """Return which operations the search has left on each edge: boolean, on the CPU.

        Returns:
            `(num_edges, num_ops)`; only those can be chosen.
        """
        return self._bilevel.left(cell)

    def validation(self) -> Iterator[Batch]:
        """Yield the whole validation split, in batches of nearly equal size."""
        return self._data.validation()

    def losses(
        self, op_weights: OpWeights, batches: Sequence[Batch] | Iterator[Batch], norm: Norm
    ) -> Iterator[tuple[Tensor, int]]:
        """Yield the mean loss of each batch and its size; every pass over them draws equally.

        Args:
            op_weights: With a graph where gradients are wanted.
            batches: Such as `validation()`.
            norm: Statistics of the batch norms; "batch_and_update" would change the supernet.
        """
        mixture = self._bilevel.mixture(op_weights, self.at)
        for batch in batches:
            with self._bilevel.draws_kept("network"):
                yield self._bilevel.loss_on(mixture, batch, norm), len(batch[1])

    def evaluate(
        self, op_weights: OpWeights, norm: Norm, *, batches: int | None = None
    ) -> tuple[float, float]:
        """Return loss in nats and accuracy on the validation split; every call draws equally.

        Args:
            op_weights: Such as `op_weights()`.
            norm: Statistics of the batch norms; "batch_and_update" would change the supernet.
            batches: How many are looked at, from the first; None takes the whole split.
        """
        mixture = self._bilevel.mixture(op_weights, self.at)
        seen = islice(self.validation(), batches)
        with self._bilevel.draws_kept("network"):
            loss, accuracy = self._bilevel.evaluate(mixture, seen, norm).tolist()
        return loss, accuracy

    def fix(self, cell: str, edge: int, operation: int) -> None:
        """Leave one operation on an edge, with op weight 1, in all cells of the type."""
        self._bilevel.fix(cell, edge, operation)

    def drop(self, cell: str, edge: int) -> None:
        """Leave nothing on an edge: all its op weights are 0, in all cells of the type."""
        self._bilevel.drop(cell, edge)

    def remove(self, cell: str, edge: int, column: int) -> None:
        """Take one weight of a row away, in all cells of the type, and leave the others as free."""
        self._bilevel.remove(cell, edge, column)

    def tune(self, epochs: int, *, lr_share: float | None) -> None:
        """Train weights and alphas on.

        Args:
            epochs: Epochs of the search's own length.
            lr_share: Constant learning rate of the weights, as a share of the search's first, with
                new optimizers; None goes on with the rate and the optimizers of the last call.
        """
        if lr_share is not None:
            self._bilevel.renew_optimizers(lr_share)
        clocks = Stopwatch(self._bilevel.device), Stopwatch(self._bilevel.device)
        for step in range(epochs * self._data.num_steps):
            at = replace(self.at, step=step % self._data.num_steps)
            self._bilevel.step(at, *self._data.next_batches(), clocks)


def gate_gradients(
    supernet: TrainedSupernet, batches: Sequence[Batch] | Iterator[Batch], norm: Norm
) -> Iterator[tuple[OpWeights, int]]:
    r"""Yield, for each batch, the gradient of its loss in gates z = 1 on every operation.

    With y_e = sum_o z_eo p_eo o(x) it is dL/dz_eo = p_eo dL/dp_eo, summed with its sign over all
    cells of a type. To first order, taking an operation away (z: 1 -> 0, the others as they are)
    changes the loss by minus that.

    Yields:
        By cell type `(num_edges, num_ops)`, float64, and the number of images.
    """
    clean = supernet.op_weights()
    leaves = {name: matrix.detach().requires_grad_() for name, matrix in clean.items()}
    for loss, count in supernet.losses(leaves, batches, norm):
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        gates = {}
        for (name, matrix), gradient in zip(leaves.items(), gradients, strict=True):
            product = (matrix.detach() * gradient).double()
            gates[name] = product.sum(dim=0) if product.dim() == 3 else product
        yield gates, count
