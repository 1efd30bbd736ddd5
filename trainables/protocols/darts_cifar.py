"""DARTS on CIFAR: 600 epochs of 20 cells and 36 channels, auxiliary head, cutout, drop path."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Liu et al., DARTS, ICLR 2019; quark0/darts, cnn/train.py with --auxiliary --cutout"
SOURCES = {
    "epochs": "cnn/train.py, --epochs",
    "batch_size": "cnn/train.py, --batch_size",
    "lr": "cnn/train.py, --learning_rate",
    "lr_min": "cnn/train.py, CosineAnnealingLR over all epochs",
    "schedule": "cnn/train.py, CosineAnnealingLR",
    "warmup_epochs": "cnn/train.py has none",
    "momentum": "cnn/train.py, --momentum",
    "weight_decay": "cnn/train.py, --weight_decay",
    "nesterov": "cnn/train.py, torch.optim.SGD without it",
    "gradient_clip": "cnn/train.py, --grad_clip",
    "channels": "cnn/train.py, --init_channels",
    "cells": "cnn/train.py, --layers",
    "stem": "cnn/model.py, NetworkCIFAR",
    "auxiliary_weight": "cnn/train.py, --auxiliary_weight; README: --auxiliary",
    "drop_path": "cnn/train.py, --drop_path_prob",
    "label_smoothing": "cnn/train.py has none",
    "cutout": "cnn/train.py, --cutout_length; README: --cutout",
    "cutout_ramp": "cnn/utils.py cuts every image",
    "ema_decay": "cnn/train.py has none",
}


@dataclass(frozen=True)
class Config:
    """What the protocol sets; SOURCES says where each value is from."""

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
    channels: int = 36
    cells: int = 20
    stem: str = "cifar"
    auxiliary_weight: float = 0.4
    drop_path: float = 0.2
    label_smoothing: float = 0.0
    cutout: int = 16
    cutout_ramp: bool = False
    ema_decay: float = 0.0
