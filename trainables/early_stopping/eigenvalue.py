"""DARTS-ES and DARTS-ADA: what to do when the alpha Hessian's largest eigenvalue grows too fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from trainables.probes import probe_hessian
from trainables.settings import Hessian
from trainables.watching import EarlyStop, GoBack

SOURCE = "Zela et al.: Understanding and Robustifying Differentiable Architecture Search, ICLR 2020, arXiv 1909.09656"  # noqa: E501
RESULTS_VERSION = 1

_PUBLISHED_EPOCHS = 50
_PUBLISHED_EVERY = 2
_PUBLISHED_START = 10
_ADAPTIVE = {"weight_decay_factor": 3.0, "max_weight_decay": 243e-4, "extra_epochs": 0}


@dataclass(frozen=True)
class Config:
    """Settings of the rule; the defaults are those of the authors' code.

    Attributes:
        factor: The search ends when the mean eigenvalue has grown by more than this factor.
        window: Measurements that a mean is taken over.
        delta: How many measurements lie between the two means that are compared.
        every: Epochs between two measurements; None is the published share, 2 of 50, at least 1.
        start: Earliest epoch, counted from 0, whose genotype can be the result of an ended search;
            None is the published share, 10 of 50.
        norm: Statistics of the batch norms.
        then: "end" is DARTS-ES: the search ends, and its result is the genotype of the earlier of
            the two means. "regularize" is DARTS-ADA: it goes back to the state of that epoch and
            goes on from there with more weight decay.
        weight_decay_factor: What the weight decay is multiplied by each time; None is 3.
        max_weight_decay: It never exceeds this, and a search at the limit goes on to its end; None
            is 0.0243.
        extra_epochs: Epochs further back; None is 0.

    Raises:
        ValueError: A value is out of range, or belongs to "regularize" and has no effect.
    """

    factor: float = 1.3
    window: int = 5
    delta: int = 4
    every: int | None = None
    start: int | None = None
    norm: Literal["batch", "running"] = "batch"
    # Rows from before these settings keep their keys.
    then: Literal["end", "regularize"] = field(default="end", metadata={"later": True})
    weight_decay_factor: float | None = field(default=None, metadata={"later": True})
    max_weight_decay: float | None = field(default=None, metadata={"later": True})
    extra_epochs: int | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"factor must be > 0, got {self.factor!r}.")
        for name in ("window", "delta", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value!r}.")
        if self.start is not None and self.start < 0:
            raise ValueError(f"start must be >= 0, got {self.start!r}.")
        for name in ("weight_decay_factor", "max_weight_decay", "extra_epochs"):
            if self.then == "end" and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with then: end.")
        if self.weight_decay_factor is not None and not 1 < self.weight_decay_factor < float("inf"):
            raise ValueError(
                f"weight_decay_factor must be > 1 and finite, got {self.weight_decay_factor!r}."
            )
        if self.max_weight_decay is not None and not 0 < self.max_weight_decay < float("inf"):
            raise ValueError(
                f"max_weight_decay must be > 0 and finite, got {self.max_weight_decay!r}."
            )
        if self.extra_epochs is not None and self.extra_epochs < 0:
            raise ValueError(f"extra_epochs must be >= 0, got {self.extra_epochs!r}.")


def every(config: Config, epochs: int) -> int:
    """Return the epochs between two measurements."""
    if config.every is not None:
        return config.every
    return max(1, round(epochs * _PUBLISHED_EVERY / _PUBLISHED_EPOCHS))


def verdict(
    values: Sequence[tuple[int, float]], epochs: int, *, config: Config
) -> tuple[dict[str, float], int | None]:
    """Return the growth of the mean eigenvalue and, where it is too large, the epoch to go back to.

    With m_k the mean of the `window` measurements up to the k-th, which stands for the epoch in the
    middle of them: the search ends when m_k / m_j is above `factor`, j = k - `delta`, and its
    result is the genotype of the epoch that m_j stands for. At the published settings (50 epochs)
    the first epoch after which it can end is number 22, with the genotype of number 10, both
    counted from 0.

    Args:
        values: (epoch, eigenvalue), oldest first, epochs counted from 0.
        epochs: Epochs of the search.
        config: Settings.

    Source:
        Zela et al., ICLR 2020, and their code (src/utils.py, EVLocalAvg). Differs where the earlier
        mean is not positive: a ratio to it says nothing, and the search goes on.
    """
    start = config.start
    if start is None:
        start = round(epochs * _PUBLISHED_START / _PUBLISHED_EPOCHS)
    window, delta = config.window, config.delta
    if len(values) < window + delta:
        return {}, None
    eigenvalues = [value for _, value in values]
    latest = sum(eigenvalues[-window:]) / window
    earlier = sum(eigenvalues[-window - delta : -delta]) / window
    if earlier <= 0:
        return {}, None
    growth = latest / earlier
    target, _ = values[len(values) - 1 - window // 2 - delta]
    ends = target >= start and growth > config.factor
    return {"eigenvalue_growth": growth}, target if ends else None


def go_back(config: Config) -> GoBack | None:
    """Return how a search is taken back; None where it ends instead.

    Source:
        Zela et al., ICLR 2020, and their code (src/search/train_search.py, early_stop 3; defaults
        of src/search/args.py: factor 3, limit 243e-4, no extra epochs; its script of DARTS-ADA has
        10 and 0.03). The state is that after the named epoch, and the generators go on. Differs:
        measurements later than that epoch are forgotten, which in their code stay in the averages;
        there is none after the last epoch unless it is due; and the virtual step of a second-order
        gradient has the weight decay of the weight step, where in their code it stays one factor
        behind.
    """
    if config.then == "end":
        return None
    chosen = {
        name: default if getattr(config, name) is None else getattr(config, name)
        for name, default in _ADAPTIVE.items()
    }

    def reach(epochs: int) -> int:
        return (config.window // 2 + config.delta) * every(config, epochs)

    return GoBack(
        chosen["weight_decay_factor"],
        chosen["max_weight_decay"],
        int(chosen["extra_epochs"]),
        reach,
    )


def build(config: Config) -> EarlyStop:
    """Return the rule.

    It measures the exact joint Hessian on the first validation batch; the authors' code takes the
    last batch of a reshuffled split.
    """
    hessian = Hessian(every=1, norm=config.norm)
    return EarlyStop(
        due=lambda epoch, epochs: epoch % every(config, epochs) == 0,
        measure=lambda bilevel, data, at: probe_hessian(bilevel, data, at, hessian)[
            "hessian_eigenvalue"
        ],
        verdict=partial(verdict, config=config),
        name="early_stop_eigenvalue",
        go_back=go_back(config),
    )
