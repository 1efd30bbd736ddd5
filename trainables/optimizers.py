"""The two optimizers of a search, and what of their state is no part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.settings import SearchSettings

_OF_THE_DEVICE = ("foreach", "fused", "capturable")


def weight_optimizer(
    weights: Sequence[Tensor], settings: SearchSettings, *, on_gpu: bool
) -> torch.optim.SGD:
    """Return SGD for the weights; on a GPU in one kernel, with its rate as a tensor there."""
    return torch.optim.SGD(
        weights,
        lr=_rate(settings.weight_lr, weights[0]) if on_gpu else settings.weight_lr,
        momentum=settings.weight_momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
        foreach=not on_gpu,
        fused=on_gpu,
    )


def alpha_optimizer(
    logits: Sequence[Tensor], settings: SearchSettings, *, on_gpu: bool
) -> torch.optim.Adam:
    """Return Adam for the alphas; on a GPU it counts its steps there, as a graph needs it."""
    optimizer = torch.optim.Adam(
        logits,
        lr=_rate(settings.alpha_lr, logits[0]) if on_gpu else settings.alpha_lr,
        betas=(settings.alpha_beta1, settings.alpha_beta2),
        weight_decay=settings.alpha_weight_decay,
        foreach=not on_gpu,
        fused=on_gpu,
        capturable=on_gpu and logits[0].is_cuda,
    )
    # torch warns where such an optimizer steps outside of a graph, as before every recording.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from a stored state, taken on whatever device."""
    groups = []
    for stored, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        kept = {name: own[name] for name in _OF_THE_DEVICE if name in own}
        rate = float(stored["lr"])
        on_gpu = isinstance(own["lr"], Tensor)
        groups.append({**stored, **kept, "lr": _rate(rate, own["lr"]) if on_gpu else rate})
    optimizer.load_state_dict({**state, "param_groups": groups})


def _rate(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, device=like.device)
