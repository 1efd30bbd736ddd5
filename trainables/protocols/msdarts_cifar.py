"""MS-DARTS on CIFAR: that of DARTS with batches of 48 and a cutout that sets in by and by.

Differs from the authors' code: they keep the epoch of the best test accuracy; here the last counts.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "aaron851113/MS-DARTS, sota/cnn/train.py"
SOURCES = {
    "epochs": "--epochs",
    "batch_size": "--batch_size",
    "lr": "--learning_rate",
    "lr_min": "CosineAnnealingLR over all epochs",
    "schedule": "CosineAnnealingLR",
    "warmup_epochs": "there is none",
    "momentum": "--momentum",
    "weight_decay": "--weight_decay",
    "nesterov": "torch.optim.SGD without it",
    "gradient_clip": "--grad_clip",
    "channels": "--init_channels",
    "cells": "--layers",
    "stem": "sota/cnn/model.py, Network",
    "auxiliary_weight": "--auxiliary_weight; --auxiliary is on by default",
    "drop_path": "--drop_path_prob",
    "label_smoothing": "there is none",
    "cutout": "--cutout_length; --cutout is on by default",
    "cutout_ramp": "probability --cutout_prob times epoch / (epochs - 1)",
    "ema_decay": "there is none",
}


@dataclass(frozen=True)
class Config:
    """What the protocol sets; SOURCES says where each value is from."""

    epochs: int = 600
    batch_size: int = 48
    lr: float = 0.025
    lr_min: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = False
    gradient_clip: float = 5.0
    channels: int = 36
    cells: int = 20
    stem: str = "cifar"
    auxiliary_weight: float = 0.4
    drop_path: float = 0.2
    label_smoothing: float = 0.0
    cutout: int = 16
    cutout_ramp: bool = True
    ema_decay: float = 0.0
