"""Search steps as public code takes them: every gradient in every pass, NCHW, a new model a step.

They are the baseline of `nas bench`, for the methods that have public code to be compared with.
Source: the papers' algorithms; the cost model is that of the authors' code (quark0/darts and
SmoothDARTS), of which nothing is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
Matrices = dict[str, Tensor]

STEPS = ("darts", "darts_unrolled", "sdarts_rs", "sdarts_adv")
"""Methods whose reference step is here."""

_WEIGHT_LR, _MOMENTUM, _WEIGHT_DECAY, _CLIP = 0.025, 0.9, 3e-4, 5.0
_RADIUS, _ATTACK_STEPS = 0.03, 7
_PROBE = 1e-2


class ReferenceSearch:
    """A search of the reference supernet.

    Args:
        net: The reference supernet.
        alphas: By cell type, `(num_edges, num_ops)`; trained.
        method: One of `STEPS`.
    """

    def __init__(self, net: nn.Module, alphas: Mapping[str, Tensor], method: str) -> None:
        self.net, self.method = net, method
        self.alphas = {n: alpha.detach().clone().requires_grad_() for n, alpha in alphas.items()}
        self.sgd = torch.optim.SGD(
            net.parameters(), lr=_WEIGHT_LR, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY
        )
        self.adam = torch.optim.Adam(
            list(self.alphas.values()), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )

    def op_weights(self) -> Matrices:
        """Return the softmax of the alphas, with a graph."""
        return {name: alpha.softmax(-1) for name, alpha in self.alphas.items()}

    def loss(self, net: nn.Module, batch: Batch, op_weights: Matrices) -> Tensor:
        """Return the mean cross entropy of a batch."""
        return functional.cross_entropy(net(batch[0], op_weights), batch[1])

    def step(self, train_batch: Batch, val_batch: Batch) -> None:
        """Take an alpha step, then a weight step."""
        if self.method == "darts_unrolled":
            self._unrolled_alpha_step(train_batch, val_batch)
        else:
            self.adam.zero_grad()
            self.loss(self.net, val_batch, self.op_weights()).backward()
            self.adam.step()
        op_weights = {name: matrix.detach() for name, matrix in self.op_weights().items()}
        if self.method == "sdarts_rs":
            op_weights = {n: _moved(matrix, _noise(matrix)) for n, matrix in op_weights.items()}
        elif self.method == "sdarts_adv":
            op_weights = self._attacked(op_weights, train_batch)
        elif self.method in ("darts", "darts_unrolled"):
            op_weights = self.op_weights()  # its alpha gradients are computed and thrown away
        self.sgd.zero_grad()
        self.loss(self.net, train_batch, op_weights).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), _CLIP)
        self.sgd.step()

    def _unrolled_alpha_step(self, train_batch: Batch, val_batch: Batch) -> None:
        weights = list(self.net.parameters())
        gradients = torch.autograd.grad(
            self.loss(self.net, train_batch, self.op_weights()), weights, allow_unused=True
        )
        unrolled = copy.deepcopy(self.net)
        with torch.no_grad():
            for new, weight, gradient in zip(
                unrolled.parameters(), weights, gradients, strict=True
            ):
                momentum = self.sgd.state[weight].get("momentum_buffer")
                change = _WEIGHT_DECAY * weight
                change = change if gradient is None else change + gradient
                change = change if momentum is None else change + _MOMENTUM * momentum
                new -= _WEIGHT_LR * change
        self.adam.zero_grad()
        self.loss(unrolled, val_batch, self.op_weights()).backward()
        vector = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad
            for weight in unrolled.parameters()
        ]
        radius = _PROBE / torch.cat([part.flatten() for part in vector]).norm()
        sides = []
        for shift in (radius, -2 * radius):
            with torch.no_grad():
                for weight, part in zip(weights, vector, strict=True):
                    weight += shift * part
            loss = self.loss(self.net, train_batch, self.op_weights())
            sides.append(torch.autograd.grad(loss, list(self.alphas.values())))
        with torch.no_grad():
            for weight, part in zip(weights, vector, strict=True):
                weight += radius * part
            for alpha, plus, minus in zip(self.alphas.values(), *sides, strict=True):
                assert alpha.grad is not None
                alpha.grad -= _WEIGHT_LR * (plus - minus) / (2 * radius)
        self.adam.step()

    def _attacked(self, clean: Matrices, batch: Batch) -> Matrices:
        self.net.eval()
        moved = {name: _moved(matrix, _noise(matrix)) for name, matrix in clean.items()}
        for _ in range(_ATTACK_STEPS):
            leaves = {name: matrix.requires_grad_() for name, matrix in moved.items()}
            self.net.zero_grad()
            self.loss(self.net, batch, leaves).backward()
            for name, leaf in leaves.items():
                assert leaf.grad is not None
                shift = leaf.detach() + 2 * _RADIUS / _ATTACK_STEPS * leaf.grad.sign() - clean[name]
                moved[name] = _moved(clean[name], shift.clamp(-_RADIUS, _RADIUS))
        with torch.no_grad():
            higher = bool(self.loss(self.net, batch, moved) >= self.loss(self.net, batch, clean))
        self.net.train()
        return {name: matrix.detach() for name, matrix in (moved if higher else clean).items()}


def _noise(matrix: Tensor) -> Tensor:
    return torch.empty_like(matrix).uniform_(-_RADIUS, _RADIUS)


def _moved(matrix: Tensor, shift: Tensor) -> Tensor:
    # Back onto the simplex, row by row, as a loop over rows does it.
    rows = []
    for row in matrix + shift:
        clamped = row.clamp(0.0, 1.0)
        rows.append(clamped / clamped.sum())
    return torch.stack(rows)
