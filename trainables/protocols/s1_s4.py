"""The spaces S1 to S4: that of DARTS, with widths and depths by space and dataset."""

from __future__ import annotations

from dataclasses import dataclass

EXPORTS = ("s1_s4_cifar", "s1_s4_svhn")
SOURCE = "Zela et al., ICLR 2020; SmoothDARTS, sota/cnn/train.py; darts-pt, exp_scripts/eval*.sh"
SOURCES = {
    "epochs": "SmoothDARTS, sota/cnn/train.py, --epochs",
    "batch_size": "darts-pt, exp_scripts/eval*.sh, --batch_size",
    "lr": "darts-pt, exp_scripts/eval*.sh, --learning_rate",
    "lr_min": "SmoothDARTS, sota/cnn/train.py, CosineAnnealingLR over all epochs",
    "schedule": "SmoothDARTS, sota/cnn/train.py, CosineAnnealingLR",
    "warmup_epochs": "SmoothDARTS, sota/cnn/train.py has none",
    "momentum": "SmoothDARTS, sota/cnn/train.py, --momentum",
    "weight_decay": "SmoothDARTS, sota/cnn/train.py, --weight_decay",
    "nesterov": "SmoothDARTS, sota/cnn/train.py, torch.optim.SGD without it",
    "gradient_clip": "SmoothDARTS, sota/cnn/train.py, --grad_clip",
    "stem": "SmoothDARTS, sota/cnn/model.py, Network",
    "auxiliary_weight": "SmoothDARTS, --auxiliary_weight; darts-pt, eval*.sh: --auxiliary",
    "drop_path": "SmoothDARTS, sota/cnn/train.py, --drop_path_prob",
    "label_smoothing": "SmoothDARTS, sota/cnn/train.py has none",
    "cutout": "SmoothDARTS, --cutout_length; darts-pt, eval*.sh: --cutout",
    "cutout_ramp": "SmoothDARTS, sota/cnn/train.py cuts with the probability 1",
    "ema_decay": "SmoothDARTS, sota/cnn/train.py has none",
    "channels": "CIFAR-100, SVHN: darts-pt, eval-c100.sh and eval-svhn.sh. CIFAR-10: 36 as DARTS "
    "(darts-pt, issue 2); 16 for S2 and S4 is recalled of R-DARTS, whose "
    "scripts/DARTS_cnn_eval.sh has it for memory, and not what DARTS-PT takes",
    "cells": "CIFAR-100, SVHN: darts-pt, eval-c100.sh and eval-svhn.sh. CIFAR-10: 20 as DARTS "
    "(darts-pt, issue 2)",
}

_SMALL = {"channels": 16, "cells": 8}
_NARROW = {"channels": 16, "cells": 20}
_LARGE = {"channels": 36, "cells": 20}
_SPACES = ("s1", "s2", "s3", "s4")
_SIZES = {
    "s1_s4_cifar": {
        "cifar10": {"s1": _LARGE, "s2": _NARROW, "s3": _LARGE, "s4": _NARROW},
        "cifar100": dict.fromkeys(_SPACES, _SMALL),
    },
    "s1_s4_svhn": {"svhn": dict.fromkeys(_SPACES, _SMALL)},
}


@dataclass(frozen=True)
class Config:
    """What the protocol sets besides sizes; SOURCES says where each value is from."""

    epochs: int = 600
    batch_size: int = 96
    lr: float = 0.025
    lr_min: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = False
    gradient_clip: float = 5.0
    stem: str = "cifar"
    auxiliary_weight: float = 0.4
    drop_path: float = 0.2
    label_smoothing: float = 0.0
    cutout: int = 16
    cutout_ramp: bool = False
    ema_decay: float = 0.0


def sizes(name: str, *, space: str, dataset: str) -> dict[str, int]:
    """Return channels and cells for a space and a dataset.

    Raises:
        ValueError: Nothing was published for them.
    """
    known = _SIZES[name]
    if space not in known.get(dataset, {}):
        raise ValueError(
            f"{name} has sizes for the spaces {', '.join(_SPACES)} on {' and '.join(known)}, and "
            f"none for space {space} on dataset {dataset}: give retrain.channels and retrain.cells."
        )
    return known[dataset][space]
