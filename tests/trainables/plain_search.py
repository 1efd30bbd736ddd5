"""A second plain implementation of a search: the reference supernet, torch's optimizers, loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.reference.supernets import (
    DartsReference,
    NasBench201Reference,
    copy_weights,
    matched,
)
from spaces.core.mixture import PLAIN, Mixture, Structure
from trainables.method import OpWeights
from trainables.search import SearchTrial
from trainables.timing import Stopwatch

Relax = Callable[[Tensor], Tensor]


def plain_softmax(alpha: Tensor) -> Tensor:
    """Softmax of each row, one row at a time."""
    return torch.stack([row.exp() / row.exp().sum() for row in alpha])


def plain_per_node(logits: Tensor, edges: Any) -> Tensor:
    """Softmax over the edges into the same node, one edge at a time."""
    weights = []
    for row, (_, target) in enumerate(edges):
        rivals = [logits[other].exp() for other, edge in enumerate(edges) if edge[1] == target]
        weights.append(logits[row].exp() / torch.stack(rivals).sum())
    return torch.stack(weights)


class PlainSearch:
    """Alpha and weight steps from the same start as a trial in float64, which it never changes.

    Args:
        trial: Before its first epoch, at the default settings but for `epochs` and `alpha_lr`.
        structure: Of the reference.
        relax: One cell type's alphas to op weights, differentiably.
        has_edges: Whether edges have logits, for `plain_per_node`.
    """

    def __init__(
        self,
        trial: SearchTrial,
        *,
        structure: Structure = PLAIN,
        relax: Relax = plain_softmax,
        has_edges: bool = False,
    ) -> None:
        self.relax, self.has_edges, self.space = relax, has_edges, trial.space
        make = {"nasbench201": NasBench201Reference, "darts": DartsReference}[trial.space.name]
        self.net = make(*trial.space.search_size(), 1, 2, structure=structure).double()
        bilevel = trial._bilevel
        copy_weights(bilevel.supernet, self.net)
        self.alphas = {n: a.detach().clone().requires_grad_() for n, a in bilevel.alphas.items()}
        self.edge_alphas = {
            n: a.detach().clone().requires_grad_() for n, a in bilevel.edge_alphas.items()
        }
        assert (self.edge_alphas.keys() == self.alphas.keys()) == has_edges
        self.epochs = trial.settings.epochs
        self.sgd = torch.optim.SGD(self.net.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(
            [*self.alphas.values(), *self.edge_alphas.values()],
            lr=trial.settings.alpha_lr,
            betas=(0.5, 0.999),
            weight_decay=1e-3,
        )

    def op_weights(self) -> OpWeights:
        """Return the op weights of the alphas, with a graph."""
        return {name: self.relax(alpha) for name, alpha in self.alphas.items()}

    def edge_weights(self) -> OpWeights | None:
        """Return the edge weights of the edge logits, with a graph."""
        if not self.has_edges:
            return None
        return {n: plain_per_node(a, self.space.edges[n]) for n, a in self.edge_alphas.items()}

    def loss(self, op_weights: OpWeights, batch: Any, **mixed: Any) -> Tensor:
        """Return the mean cross entropy at op weights and the edge weights of the logits."""
        mixture = Mixture(op_weights, self.edge_weights(), **mixed)
        return functional.cross_entropy(self.net(batch[0], op_weights, mixture), batch[1])

    def alpha_step(
        self, batch: Any, penalty: Callable[[OpWeights], Tensor] | None = None, **mixed: Any
    ) -> None:
        """Step down the validation loss and a penalty of the alphas."""
        self.net.train()
        loss = self.loss(self.op_weights(), batch, **mixed)
        if penalty is not None:
            loss = loss + penalty(self.alphas)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def weight_step(self, epoch: int, batch: Any, op_weights: OpWeights, **mixed: Any) -> float:
        """Step down the training loss at given op weights; returns it."""
        self.net.train()
        for group in self.sgd.param_groups:
            cosine = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            group["lr"] = 0.001 + (0.025 - 0.001) * cosine
        loss = self.loss({n: q.detach() for n, q in op_weights.items()}, batch, **mixed)
        self.sgd.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.sgd.step()
        return loss.item()

    def assert_equal(self, trial: SearchTrial) -> None:
        """Compare alphas, edge logits, weights and running statistics."""
        bilevel = trial._bilevel
        pairs = [(bilevel.alphas[n], alpha) for n, alpha in self.alphas.items()]
        pairs += [(bilevel.edge_alphas[n], alpha) for n, alpha in self.edge_alphas.items()]
        pairs += [
            (ours[rows], theirs) for _, ours, rows, theirs in matched(bilevel.supernet, self.net)
        ]
        assert len(pairs) > 10
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def one_step(trial: SearchTrial, epoch: int, train_batch: Any, val_batch: Any) -> dict[str, Tensor]:
    """Take a step of the trial itself, in a given epoch."""
    bilevel = trial._bilevel
    clocks = Stopwatch(trial.device), Stopwatch(trial.device)
    return bilevel.step(bilevel.point(epoch), train_batch, val_batch, clocks)


def note_mixtures(trial: SearchTrial) -> list[Mixture]:
    """Note the mixture of every pass of the supernet; the last of a step is the weight pass."""
    seen: list[Mixture] = []
    forward = trial._bilevel.supernet.forward

    def noted(images: Tensor, mixture: Mixture, **options: Any) -> Tensor:
        seen.append(copy.copy(mixture))
        return forward(images, mixture, **options)

    trial._bilevel.supernet.forward = noted  # type: ignore[method-assign, assignment]
    return seen
