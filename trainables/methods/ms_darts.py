"""MS-DARTS: the weight step sees op weights shifted to a kernel mean of samples around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from trainables.errors import MethodError
from trainables.method import Method, OpWeights, SearchPoint, linear
from trainables.simplex import clamp_and_rescale, uniform_noise

SOURCE = "Hsieh et al.: Mean-Shift Based Differentiable Architecture Search, IEEE Trans. AI 2024, arXiv 2108.09996"  # noqa: E501
RESULTS_VERSION = 1
PROVIDES = ("perturb",)

_SIGNS = {"higher": 1.0, "lower": -1.0, "none": 0.0}


@dataclass(frozen=True)
class Config:
    """Settings of MS-DARTS; the defaults are the constants of the authors' code.

    Attributes:
        samples: N, points drawn around the op weights in each shift.
        shifts: T, mean shifts in a row.
        bandwidth: h of the Gaussian kernel, in the Frobenius norm of a cell type's op weights.
        bandwidth_end: Bandwidth that a linear schedule would reach after the last epoch; None
            keeps it constant, as the authors' code does.
        radius_start: Half-width of the samples' noise in the first epoch; None is radius_max / 10.
        radius_max: Half-width that the linear growth would reach after the last epoch.
        loss_weighting: Which samples weigh more: "higher" training loss, as in the authors' code,
            "lower", or "none", where all weigh the same.
        temperature: Of the softmax over the samples' losses, in nats.
        project: Whether the result is rescaled onto the simplex; the authors' is not.

    Raises:
        ValueError: A value is out of range, or would have no effect.
    """

    samples: int = 3
    shifts: int = 2
    bandwidth: float = 1.0
    bandwidth_end: float | None = None
    radius_start: float | None = None
    radius_max: float = 0.25
    loss_weighting: Literal["higher", "lower", "none"] = "higher"
    temperature: float = 1.0
    project: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "shifts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)!r}.")
        for name in ("bandwidth", "bandwidth_end", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be > 0, got {value!r}.")
        for name in ("radius_max", "radius_start"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be >= 0, got {value!r}.")
        if self.radius_start is not None and self.radius_max < self.radius_start:
            raise ValueError(
                f"radius_max must be >= radius_start ({self.radius_start!r}), "
                f"got {self.radius_max!r}."
            )
        if self.loss_weighting == "none" and self.temperature != 1.0:
            raise ValueError(
                f"temperature has no effect with loss_weighting none; leave it out, "
                f"got {self.temperature!r}."
            )


def radius_at(at: SearchPoint, config: Config) -> float:
    """Return the half-width of the samples' noise in this epoch, which grows linearly."""
    start = config.radius_max / 10 if config.radius_start is None else config.radius_start
    return linear(start, config.radius_max, at)


def bandwidth_at(at: SearchPoint, config: Config) -> float:
    """Return h in this epoch: constant, or linear from `bandwidth` to `bandwidth_end`."""
    if config.bandwidth_end is None:
        return config.bandwidth
    return linear(config.bandwidth, config.bandwidth_end, at)


def mean_shift(op_weights: OpWeights, at: SearchPoint, *, config: Config) -> OpWeights:
    r"""Return op weights after T mean shifts towards samples X_n of higher training loss.

    One shift of the op weights a_c of cell type c:
        X_n = a + U(-radius, radius), drawn for all cell types jointly, Y_n = X_n on the simplex;
        l_n = L_train(w, Y_n) on running statistics, one loss for all cell types;
        a_c <- sum_n k_nc X_nc, k_c = softmax_n(l_n / temperature - |a_c - Y_nc|^2 / (2 h^2)).
    The mean is of the samples before the projection: rows of the result need not sum to one. The
    weights k are those of the authors' code, computed in the log domain, where its product of
    exponentials would be 0 / 0 for small h.

    N T forwards and no backward.

    Args:
        op_weights: On the simplex, each `(num_edges, num_ops)`; not changed.
        at: In a training step; its generator is drawn from for each shift, sample and cell type, in
            this order.

    Source:
        The authors' code of Hsieh et al. (attacker/perturb_ms.py, `Mean_Shift_alpha`); that it
        agrees with every formula of the paper is not established.
    """
    if at.train_loss is None:
        raise MethodError("MS-DARTS samples the loss of a training step, and there is none here.")
    radius, bandwidth = radius_at(at, config), bandwidth_at(at, config)
    shifted = dict(op_weights)
    for _ in range(config.shifts):
        samples: list[OpWeights] = []
        projected: list[OpWeights] = []
        losses: list[Tensor] = []
        for _ in range(config.samples):
            sample = {n: a + uniform_noise(a, radius, at.generator) for n, a in shifted.items()}
            samples.append(sample)
            projected.append({name: clamp_and_rescale(x) for name, x in sample.items()})
            with torch.no_grad():
                losses.append(at.train_loss(projected[-1], "running").double())
        loss_terms = _SIGNS[config.loss_weighting] * torch.stack(losses) / config.temperature
        for name, center in shifted.items():
            points = torch.stack([sample[name] for sample in samples])
            offsets = torch.stack([sample[name] for sample in projected]) - center
            distances = offsets.double().flatten(1).square().sum(dim=1)
            weights = torch.softmax(loss_terms - distances / (2.0 * bandwidth**2), dim=0)
            shifted[name] = torch.einsum("n,n...->...", weights.to(points.dtype), points)
    if config.project:
        shifted = {name: clamp_and_rescale(matrix) for name, matrix in shifted.items()}
    return shifted


def log_schedules(at: SearchPoint, *, config: Config) -> Mapping[str, float]:
    """Return the radius and the bandwidth of this epoch."""
    return {"radius": radius_at(at, config), "bandwidth": bandwidth_at(at, config)}


def build(config: Config) -> Method:
    """Return the method: alphas rest in the first 5 of 40 epochs; the best epoch's genotype.

    A rule that chooses once after the last epoch goes before the best epoch's genotype. As the
    perturbation of another method it brings neither of the two.
    """
    return Method(
        perturb=partial(mean_shift, config=config),
        log=partial(log_schedules, config=config),
        alpha_start=5 / 40,
        genotype_of="best_epoch",
    )
