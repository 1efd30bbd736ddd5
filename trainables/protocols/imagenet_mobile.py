"""ImageNet, mobile setting: 250 epochs of 14 cells and 48 channels, linear rate after warm-up.

Differs from the released code: there images are cropped at random sizes and their colours changed,
which here the dataset imagenet alone does; there the learning rate has a smaller slope in the last
5 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "SmoothDARTS, sota/cnn/train_imagenet.py; PC-DARTS and P-DARTS, train_imagenet.py"
SOURCES = {
    "epochs": "PC-DARTS, train_imagenet.py, --epochs",
    "batch_size": "SmoothDARTS, sota/cnn/train_imagenet.py, --batch_size (8 GPUs: its issue 8)",
    "lr": "SmoothDARTS, sota/cnn/train_imagenet.py, --learning_rate",
    "lr_min": "PC-DARTS, train_imagenet.py, adjust_lr",
    "schedule": "PC-DARTS, train_imagenet.py, --lr_scheduler",
    "warmup_epochs": "PC-DARTS, train_imagenet.py: 5 epochs for batches above 256",
    "momentum": "PC-DARTS, train_imagenet.py, --momentum",
    "weight_decay": "PC-DARTS, train_imagenet.py, --weight_decay",
    "nesterov": "PC-DARTS, train_imagenet.py, torch.optim.SGD without it",
    "gradient_clip": "PC-DARTS, train_imagenet.py, --grad_clip",
    "channels": "PC-DARTS, train_imagenet.py, --init_channels",
    "cells": "PC-DARTS, train_imagenet.py, --layers",
    "stem": "quark0/darts, cnn/model.py, NetworkImageNet",
    "auxiliary_weight": "PC-DARTS, train_imagenet.py, --auxiliary_weight; README: --auxiliary",
    "drop_path": "PC-DARTS, train_imagenet.py, --drop_path_prob",
    "label_smoothing": "PC-DARTS, train_imagenet.py, --label_smooth",
    "cutout": "PC-DARTS, train_imagenet.py has none",
    "cutout_ramp": "PC-DARTS, train_imagenet.py has no cutout",
    "ema_decay": "PC-DARTS, train_imagenet.py has none",
}


@dataclass(frozen=True)
class Config:
    """What the protocol sets; SOURCES says where each value is from."""

    epochs: int = 250
    batch_size: int = 1024
    lr: float = 0.5
    lr_min: float = 0.0
    schedule: str = "linear"
    warmup_epochs: int = 5
    momentum: float = 0.9
    weight_decay: float = 3e-5
    nesterov: bool = False
    gradient_clip: float = 5.0
    channels: int = 48
    cells: int = 14
    stem: str = "imagenet"
    auxiliary_weight: float = 0.4
    drop_path: float = 0.0
    label_smoothing: float = 0.1
    cutout: int = 0
    cutout_ramp: bool = False
    ema_decay: float = 0.0
