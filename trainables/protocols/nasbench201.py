"""NAS-Bench-201 as the benchmark trains: 200 epochs of 3 x 5 cells and 16 channels."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Dong & Yang, NAS-Bench-201, ICLR 2020; AutoDL-Projects, hyper-opts/200E.config"
SOURCES = {
    "epochs": "hyper-opts/200E.config, epochs",
    "batch_size": "hyper-opts/200E.config, batch_size",
    "lr": "hyper-opts/200E.config, LR",
    "lr_min": "hyper-opts/200E.config, eta_min",
    "schedule": "hyper-opts/200E.config, scheduler",
    "warmup_epochs": "hyper-opts/200E.config, warmup",
    "momentum": "hyper-opts/200E.config, momentum",
    "weight_decay": "hyper-opts/200E.config, decay",
    "nesterov": "hyper-opts/200E.config, nesterov",
    "gradient_clip": "the benchmark's training clips nothing",
    "channels": "the paper: 16 channels in the first stage",
    "cells": "the paper: 5 cells a stage",
    "stem": "the paper: one 3x3 convolution",
    "auxiliary_weight": "the benchmark's networks have no auxiliary head",
    "drop_path": "the benchmark's training drops none",
    "label_smoothing": "hyper-opts/200E.config, criterion Softmax",
    "cutout": "the paper: flips and crops alone",
    "cutout_ramp": "the paper: no cutout",
    "ema_decay": "the benchmark's training averages nothing",
}


@dataclass(frozen=True)
class Config:
    """What the protocol sets; SOURCES says where each value is from."""

    epochs: int = 200
    batch_size: int = 256
    lr: float = 0.1
    lr_min: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    gradient_clip: float = 0.0
    channels: int = 16
    cells: int = 5
    stem: str = "cifar"
    auxiliary_weight: float = 0.0
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    cutout: int = 0
    cutout_ramp: bool = False
    ema_decay: float = 0.0
