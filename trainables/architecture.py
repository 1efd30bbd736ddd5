"""The architecture side of a search: logits, and the mixtures that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spaces.core.mixture import PLAIN, Mixture
from spaces.core.space import Space
from trainables.implicit import Alphas
from trainables.method import Method, OpWeights, SearchPoint
from trainables.stages import Place, filled
from trainables.state import make_generator

_OF_EDGES = "/edges"
_SAMPLED = 0.5

ALPHA_SCALE = 1e-3
"""Standard deviation of the alphas at the start, as in the DARTS authors' code."""


class Architecture:
    """Logits of operations and edges, and how a method turns them into what a supernet mixes by.

    Args:
        alpha_shapes: `(num_edges, num_ops)` by cell type.
        method: What relaxes them.
        seed: Seed of the trial.
        device, dtype: Where and what the logits are.
        space: For methods that ask where they are in it.
        place: The stage of the search.

    Attributes:
        alphas: Logits of operations by cell type, leaves; of those that the stage has left.
        edge_alphas: Logits of edges by cell type, `(num_edges,)`, leaves; empty where the method
            has none.
        logits: Both, as the alpha optimizer has them.
        fixed: Op weights that are decided, NaN where they are not.
    """

    def __init__(
        self,
        alpha_shapes: Mapping[str, tuple[int, int]],
        method: Method,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        space: Space | None,
        place: Place,
    ) -> None:
        self.method = method
        self.space = space
        self.place = place
        self._num_ops = {name: shape[-1] for name, shape in alpha_shapes.items()}
        self._active = self.place.active(self._num_ops)
        self._columns: dict[str, Tensor] | None = None
        if self.place.columns is not None:
            alpha_shapes = {n: (len(c), c.shape[1]) for n, c in self.place.columns.items()}
            # A copy for each step would make a GPU wait.
            self._columns = {name: c.to(device) for name, c in self.place.columns.items()}
        suffix = self.place.suffix
        scale = 0.0 if method.alphas == "zero" else ALPHA_SCALE

        def drawn(shapes: Mapping[str, tuple[int, ...]], purpose: str) -> Alphas:
            source = make_generator(seed, purpose + suffix)
            return {
                name: (scale * torch.randn(shape, generator=source, dtype=torch.float64))
                .to(device, dtype)
                .requires_grad_()
                for name, shape in shapes.items()
            }

        self.alphas = drawn(alpha_shapes, "alphas")
        edges = {name: shape[:1] for name, shape in alpha_shapes.items()}
        self.edge_alphas = {} if method.relax_edges is None else drawn(edges, "edge alphas")
        self.logits = self.alphas | {
            f"{name}{_OF_EDGES}": alpha for name, alpha in self.edge_alphas.items()
        }
        self.fixed: OpWeights = {}

    def left(self, cell: str) -> Tensor:
        """Return which operations the stage has left: boolean `(num_edges, num_ops)`, CPU."""
        if self._active is not None:
            return self._active[cell]
        return torch.ones(len(self.alphas[cell]), self._num_ops[cell], dtype=torch.bool)

    def fix(self, cell: str, edge: int, operation: int) -> None:
        """Give an edge one operation of op weight 1, whatever the alphas; see `renew_optimizers`.

        Args:
            cell: Cell type.
            edge, operation: Row and column of its op weights.
        """
        decided = self._decided(cell)
        decided[edge] = 0.0
        decided[edge, operation] = 1.0

    def drop(self, cell: str, edge: int) -> None:
        """Take an edge away: op weights 0, in all cells of the type; see `renew_optimizers`."""
        self._decided(cell)[edge] = 0.0

    def remove(self, cell: str, edge: int, column: int) -> None:
        """Take one of a row's weights away: 0 whatever the alphas; see `renew_optimizers`."""
        self._decided(cell)[edge, column] = 0.0

    def _decided(self, cell: str) -> Tensor:
        if cell not in self.fixed:
            shape = len(self.alphas[cell]), self._num_ops[cell]
            self.fixed[cell] = self.alphas[cell].detach().new_full(shape, float("nan"))
        return self.fixed[cell]

    def mean(self, logits: Alphas, at: SearchPoint) -> OpWeights:
        """Return the op weights that logits stand for, without draws; fixed edges stay so."""
        relax = self.method.mean or self.method.relax
        return self.whole(relax(self.of_operations(logits), at))

    def drawn(self, logits: Alphas, at: SearchPoint) -> OpWeights:
        """Return the op weights of one training pass, of the operations that a stage has left."""
        return self.method.relax(self.of_operations(logits), at)

    def whole(self, op_weights: OpWeights) -> OpWeights:
        """Return op weights of all operations: 0 where a stage has none left, fixed edges fixed."""
        if self._columns is not None:
            op_weights = filled(op_weights, self._columns, self._num_ops)
        return self._with_fixed(op_weights)

    def of_operations(self, logits: Alphas) -> Alphas:
        """Return the logits of operations alone, by cell type."""
        return {name: logits[name] for name in self.alphas}

    def edge_weights(self, logits: Alphas, at: SearchPoint) -> OpWeights | None:
        """Return the edge weights that logits stand for; None where the method has none."""
        if self.method.relax_edges is None:
            return None
        return self.method.relax_edges(
            {name: logits[f"{name}{_OF_EDGES}"] for name in self.alphas}, at
        )

    @torch.no_grad()
    def strengths(self, op_weights: OpWeights, at: SearchPoint) -> OpWeights:
        """Return by what edges and operations compete: op weights times edge weights."""
        edges = self.edge_weights(self.logits, at)
        if edges is None:
            return op_weights
        return {name: matrix * edges[name].unsqueeze(-1) for name, matrix in op_weights.items()}

    def mixture(
        self, op_weights: OpWeights, at: SearchPoint, logits: Alphas | None = None
    ) -> Mixture:
        """Return what a measurement mixes by: op weights as given, the rest as the method has it.

        Args:
            op_weights: By cell type, of any values.
            at: Where the search is.
            logits: Those of the edge weights, with a graph to them; None is the search's own,
                without.
        """
        if logits is None:
            with torch.no_grad():
                edges = self.edge_weights(self.logits, at)
        else:
            edges = self.edge_weights(logits, at)
        if self.method.structure != PLAIN:
            # What an edge has besides its operations goes with the last of them.
            present = {n: (q != 0).any(dim=-1).to(q.dtype) for n, q in op_weights.items()}
            edges = present if edges is None else {n: edges[n] * present[n] for n in edges}
        scale = self.method.skip_scale
        return Mixture(
            op_weights, edges, self._active, skip_scale=None if scale is None else scale(at)
        )

    def shown(self, op_weights: OpWeights, at: SearchPoint) -> Mixture:
        """Return what validation accuracy is measured at, from the mean op weights."""
        if self.method.shown is None:
            return self.mixture(op_weights, at)
        return self.training_mixture(self.method.shown(op_weights), at)

    def training_mixture(
        self, op_weights: OpWeights, at: SearchPoint, logits: Alphas | None = None
    ) -> Mixture:
        """Return what a training pass mixes by: as `mixture`, with what the method draws."""
        mixture = self.mixture(op_weights, at, logits)
        if self.method.skip_dropout is not None:
            mixture = replace(mixture, skip_dropout=self.method.skip_dropout(at))
        if self.method.sampled is None:
            return mixture
        runs = {name: matrix.detach() > _SAMPLED for name, matrix in op_weights.items()}
        offsets = None
        if self.method.sampled == "scalars":
            offsets = {n: q.masked_fill(runs[n], 0.0).sum(dim=-1) for n, q in op_weights.items()}
        # Which operations run is for the host to know: a GPU has to be waited for.
        return replace(
            mixture, active={name: mask.cpu() for name, mask in runs.items()}, offsets=offsets
        )

    def _with_fixed(self, op_weights: OpWeights) -> OpWeights:
        if not self.fixed:
            return op_weights
        return op_weights | {
            name: torch.where(fixed.isnan(), op_weights[name], fixed)
            for name, fixed in self.fixed.items()
        }

    @torch.no_grad()
    def relaxed(self, at: SearchPoint) -> OpWeights:
        """Return the method's mean op weights at the current alphas, without a graph."""
        return self.mean(self.logits, at)
