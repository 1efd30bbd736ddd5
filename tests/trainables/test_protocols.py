"""Protocols: every published value stands here once more, with where it is from."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from spaces.core import plugins
from spaces.core.errors import UnknownPluginError
from trainables.protocol import fixed_values_of, sources_of, values_of
from trainables.settings import RetrainSettings, field_names

# cnn/train.py of quark0/darts, run as `python train.py --auxiliary --cutout`.
DARTS: dict[str, Any] = {
    "epochs": 600,  # --epochs
    "batch_size": 96,  # --batch_size
    "lr": 0.025,  # --learning_rate
    "lr_min": 0.0,  # CosineAnnealingLR(optimizer, epochs)
    "schedule": "cosine",
    "warmup_epochs": 0,
    "momentum": 0.9,  # --momentum
    "weight_decay": 3e-4,  # --weight_decay
    "nesterov": False,
    "gradient_clip": 5.0,  # --grad_clip
    "channels": 36,  # --init_channels
    "cells": 20,  # --layers
    "stem": "cifar",  # model.py, NetworkCIFAR
    "auxiliary_weight": 0.4,  # --auxiliary_weight
    "drop_path": 0.2,  # --drop_path_prob
    "label_smoothing": 0.0,
    "cutout": 16,  # --cutout_length
    "cutout_ramp": False,
    "ema_decay": 0.0,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "darts_cifar": DARTS,
    # sota/cnn/train.py of MS-DARTS: --batch_size, and cutout_prob * epoch / (epochs - 1).
    "msdarts_cifar": {**DARTS, "batch_size": 48, "cutout_ramp": True},
    # train_imagenet.py of PC-DARTS and P-DARTS: --epochs, lr_scheduler linear, warm-up of 5 epochs,
    # --weight_decay, --init_channels, --layers, --drop_path_prob, --label_smooth; sota/cnn/
    # train_imagenet.py of SmoothDARTS: --batch_size, --learning_rate; model.py: NetworkImageNet.
    "imagenet_mobile": {
        **DARTS,
        "epochs": 250,
        "batch_size": 1024,
        "lr": 0.5,
        "schedule": "linear",
        "warmup_epochs": 5,
        "weight_decay": 3e-5,
        "channels": 48,
        "cells": 14,
        "stem": "imagenet",
        "drop_path": 0.0,
        "label_smoothing": 0.1,
        "cutout": 0,
    },
    # hyper-opts/200E.config of AutoDL-Projects: epochs, batch_size, LR, decay, nesterov; the paper:
    # 16 channels, 5 cells a stage, flips and crops alone.
    "nasbench201": {
        **DARTS,
        "epochs": 200,
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "nesterov": True,
        "gradient_clip": 0.0,
        "channels": 16,
        "cells": 5,
        "auxiliary_weight": 0.0,
        "drop_path": 0.0,
        "cutout": 0,
    },
    # Bi et al.: as the search.
    "consistent": {"consistent": True},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_protocol_sets_the_published_values(name: str) -> None:
    assert values_of(name, space="darts", dataset="cifar10") == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "dataset", "space", "channels", "cells"),
    [
        # 36 and 20 as DARTS: darts-pt, issue 2. 16 for S2 and S4: as R-DARTS, recalled.
        ("s1_s4_cifar", "cifar10", "s1", 36, 20),
        ("s1_s4_cifar", "cifar10", "s2", 16, 20),
        ("s1_s4_cifar", "cifar10", "s3", 36, 20),
        ("s1_s4_cifar", "cifar10", "s4", 16, 20),
        # exp_scripts/eval-c100.sh and eval-svhn.sh of darts-pt: --init_channels 16 --layers 8.
        *(("s1_s4_cifar", "cifar100", f"s{i}", 16, 8) for i in (1, 2, 3, 4)),
        *(("s1_s4_svhn", "svhn", f"s{i}", 16, 8) for i in (1, 2, 3, 4)),
    ],
)
def test_the_sizes_of_s1_to_s4(
    name: str, dataset: str, space: str, channels: int, cells: int
) -> None:
    # The rest is that of DARTS: train.py of SmoothDARTS has the same defaults.
    expected = {**DARTS, "channels": channels, "cells": cells}
    assert values_of(name, space=space, dataset=dataset) == expected


@pytest.mark.parametrize(
    ("name", "space", "dataset"),
    [
        ("s1_s4_cifar", "darts", "cifar10"),
        ("s1_s4_cifar", "s1", "svhn"),
        ("s1_s4_svhn", "s1", "cifar10"),
    ],
)
def test_sizes_that_were_not_published_are_refused(name: str, space: str, dataset: str) -> None:
    message = f"none for space {space} on dataset {dataset}: give retrain.channels"
    with pytest.raises(ValueError, match=message):
        values_of(name, space=space, dataset=dataset)


def test_the_defaults_of_a_retraining_are_those_of_darts() -> None:
    settings = RetrainSettings(channels=36, cells=20)
    assert dataclasses.asdict(settings) | DARTS == dataclasses.asdict(settings)


@pytest.mark.parametrize("name", plugins.available("protocols"))
def test_every_value_is_a_setting_with_a_source(name: str) -> None:
    space, dataset = ("s1", "svhn" if name.endswith("svhn") else "cifar10")
    values = values_of(name, space=space, dataset=dataset)
    assert fixed_values_of(name).items() <= values.items()
    sources = sources_of(name)
    assert set(sources) == set(values)
    assert all(sources.values())
    settings = {key: value for key, value in values.items() if key != "consistent"}
    assert set(settings) <= set(field_names(RetrainSettings))
    # Of the right type and in range: what the settings class itself checks.
    plugins.typed_config(RetrainSettings, settings, where="retrain", owner=name)


@pytest.mark.parametrize("space", ["darts", "darts_per_cell", "nasbench201"])
def test_quick_has_a_depth_for_every_kind_of_space(space: str) -> None:
    cells = values_of("quick", space=space, dataset="digits").get("cells")
    assert cells == {"darts": 5, "darts_per_cell": None, "nasbench201": 1}[space]


def test_an_unknown_protocol_is_explained() -> None:
    with pytest.raises(UnknownPluginError, match="Did you mean 'darts_cifar'"):
        values_of("dart_cifar", space="darts", dataset="cifar10")
