"""Settings of a search and of a retraining. No torch: experiment files are checked by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Augment = Literal["auto", "none", "crop_flip"]
Precision = Literal["float32", "float64"]
SearchPrecision = Literal["float32", "float64", "bf16", "auto"]
Engine = Literal["auto", "eager", "graph", "compile", "reference"]
Checkpointing = Literal["auto", "none", "cell"]


def _check(settings: Any, **rules: str) -> None:
    """Raise ValueError where a field breaks its rule: 'positive', 'not negative' or 'share'."""
    for name, rule in rules.items():
        value = getattr(settings, name)
        if value is None:
            continue
        finite = math.isfinite(value)
        if rule == "positive" and not (finite and value > 0):
            raise ValueError(f"{name} must be > 0, got {value!r}.")
        if rule == "not negative" and not (finite and value >= 0):
            raise ValueError(f"{name} must be >= 0, got {value!r}.")
        if rule == "share" and not (finite and 0 <= value < 1):
            raise ValueError(f"{name} must be in [0, 1), got {value!r}.")


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the bilevel search; the defaults are those of DARTS on CIFAR-10.

    Attributes:
        epochs: Epochs of the search; the cosine schedule spans them.
        batch_size: Images per step, of each of the two splits.
        weight_lr: Learning rate of the weights (SGD) in the first epoch.
        weight_lr_min: Learning rate that the cosine schedule ends at.
        weight_momentum: Momentum of the weights' SGD.
        weight_decay: L2 penalty of the weights.
        nesterov: Whether the weights' SGD uses Nesterov momentum.
        gradient_clip: L2 norm that the weight gradient is clipped to; 0 switches it off.
        alpha_lr: Learning rate of the alphas (Adam).
        alpha_beta1, alpha_beta2: Adam's decay rates for the alphas.
        alpha_weight_decay: L2 penalty of the alphas.
        train_share: Share of the training set that trains weights; the rest is for validation.
        validation_norm: Batch-norm statistics of the validation accuracy.
        augment: "auto" follows the dataset.
        cutout: Side of the square that is cut out of training images, in pixels; 0 is off.
        precision: Floating-point type of weights and images. "bf16" has those in float32 and runs
            passes in bfloat16 where torch's autocast says so; "auto" is float32.
        threads: CPU threads of the trial.
        engine: How a step is run, which changes last bits at most: operation by operation for the
            device ("eager"), recorded once and replayed ("graph"), with cells that torch.compile
            has turned into code for this machine ("compile", which takes minutes before the first
            step), or with nothing shared, to compare with ("reference"). "auto" decides by device
            and method, and never compiles.
        checkpointing: What a pass keeps for its gradients: all activations ("none"), or of each
            cell only inputs and output, from which it runs again ("cell"): less memory, more time,
            the same results. "auto" is "none", and "cell" where a study's trial ran out of memory.

    Raises:
        ValueError: A value is out of range.

    Source:
        Liu et al., DARTS, ICLR 2019, and its authors' code (cnn/train_search.py).
    """

    epochs: int = 50
    batch_size: int = 64
    weight_lr: float = 0.025
    weight_lr_min: float = 0.001
    weight_momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = False
    gradient_clip: float = 5.0
    alpha_lr: float = 3e-4
    alpha_beta1: float = 0.5
    alpha_beta2: float = 0.999
    alpha_weight_decay: float = 1e-3
    train_share: float = 0.5
    validation_norm: Literal["running", "batch"] = "running"
    augment: Augment = "auto"
    cutout: int = 0
    precision: SearchPrecision = "float32"
    threads: int = 1
    engine: Engine = field(default="auto", metadata={"later": True})
    checkpointing: Checkpointing = field(default="auto", metadata={"later": True})

    def __post_init__(self) -> None:
        _check(
            self,
            epochs="positive",
            batch_size="positive",
            weight_lr="positive",
            weight_lr_min="not negative",
            weight_momentum="share",
            weight_decay="not negative",
            gradient_clip="not negative",
            alpha_lr="positive",
            alpha_beta1="share",
            alpha_beta2="share",
            alpha_weight_decay="not negative",
            cutout="not negative",
            threads="positive",
        )
        if not 0 < self.train_share < 1:
            raise ValueError(f"train_share must be in (0, 1), got {self.train_share!r}.")
        if self.nesterov and self.weight_momentum == 0:
            raise ValueError("nesterov needs weight_momentum > 0, got 0.")


def resolved(precision: SearchPrecision) -> Literal["float32", "float64", "bf16"]:
    """Return the precision that a setting stands for.

    `auto` is float32 on every device: bf16 changes results, and no measurement says yet what it is
    worth. What `auto` stands for depends on nothing but this version, so that keys of rows, which
    have it resolved, are known before there is a device.
    """
    return "float32" if precision == "auto" else precision


def identifying_search(search: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a search's settings tells its row from others: all that changes its result.

    The engine does not, but for last bits, and checkpointing not at all: they stay out.
    `precision` is what it stands for.
    """
    apart = ("engine", "checkpointing")
    kept = {key: value for key, value in search.items() if key not in apart}
    if "precision" in kept:
        kept["precision"] = resolved(kept["precision"])
    return kept


@dataclass(frozen=True)
class Hessian:
    """The Hessian of the validation loss in the alphas, as a diagnostic.

    Attributes:
        every: Epochs between two measurements; the last epoch is always measured.
        norm: Statistics of the batch norms.

    Raises:
        ValueError: A value is out of range.
    """

    every: int = 5
    norm: Literal["batch", "running"] = "batch"

    def __post_init__(self) -> None:
        _check(self, every="positive")


@dataclass(frozen=True)
class DiscretizationGap:
    """What the supernet loses when its genotype alone is left, as a diagnostic.

    Attributes:
        every: Epochs between two measurements; the last epoch is always measured.
        statistics: Of the batch norms: those of the batch, or running ones estimated anew.

    Raises:
        ValueError: A value is out of range.
    """

    every: int = 5
    statistics: Literal["batch", "re_estimated"] = "batch"

    def __post_init__(self) -> None:
        _check(self, every="positive")


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics that cost time; they change no result.

    Attributes:
        hessian: Of the validation loss in the alphas; None is off.
        discretization_gap: Accuracy and loss of the mixture against its genotype; None is off.
    """

    hessian: Hessian | None = None
    discretization_gap: DiscretizationGap | None = None


DIAGNOSTICS: dict[str, type[Hessian | DiscretizationGap]] = {
    "hessian": Hessian,
    "discretization_gap": DiscretizationGap,
}
"""Settings of each diagnostic, by its name."""


@dataclass(frozen=True)
class RetrainSettings:
    """Settings of training a genotype from scratch; the defaults are those of DARTS on CIFAR-10.

    Attributes:
        epochs: Epochs; the schedule spans them.
        batch_size: Images per step.
        lr: Learning rate of the first epoch.
        lr_min: Learning rate that the schedule ends at.
        schedule: Form of the schedule, from lr to lr_min: half a cosine wave, or a straight line.
        warmup_epochs: First epochs in which the schedule's rate is scaled by 1/n, 2/n, ... 1.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty.
        nesterov: Whether SGD uses Nesterov momentum.
        gradient_clip: L2 norm that the gradient is clipped to; 0 switches it off.
        channels: Channels of the first cell; None is the space's published evaluation network.
        cells: Number of cells (per stage in NAS-Bench-201); None likewise.
        stem: What stands before the cells: the one of CIFAR, or that of ImageNet, which makes
            images 8 times smaller.
        auxiliary_weight: Weight of the auxiliary head's loss; 0 builds none.
        drop_path: Probability of dropping a path: `drop_path * epoch / epochs`, epochs from 0.
        label_smoothing: Share of the label mass spread over all classes.
        val_share: Share of the training set held out and reported as validation accuracy.
        augment: "auto" follows the dataset.
        cutout: Side of the square that is cut out of training images, in pixels; 0 is off.
        cutout_ramp: Whether the share of images that are cut grows linearly by epoch, from none in
            the first to all in the last; otherwise all are.
        ema_decay: Accuracies are those of an average of the weights over all steps, in which the
            average so far has this share at each step; 0 is off.
        precision: Floating-point type of weights and images.
        mixed_precision: Whether forward passes run in bfloat16 where torch's autocast says so, with
            weights in float32.
        threads: CPU threads of the trial, of each of its workers.
        compile: Whether torch.compile turns training steps into code for this machine.
        workers: Processes that share every batch, each with the resources of a trial.
        shared_batch_norm: Whether several workers normalise by statistics of the whole batch, as
            one would, or each by those of its own share.

    Raises:
        ValueError: A value is out of range.

    Source:
        Liu et al., DARTS, ICLR 2019, and its authors' code (cnn/train.py).
    """

    epochs: int = 600
    batch_size: int = 96
    lr: float = 0.025
    lr_min: float = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = False
    gradient_clip: float = 5.0
    channels: int | None = None
    cells: int | None = None
    stem: Literal["cifar", "imagenet"] = "cifar"
    auxiliary_weight: float = 0.4
    drop_path: float = 0.2
    label_smoothing: float = 0.0
    val_share: float = 0.0
    augment: Augment = "auto"
    cutout: int = 16
    cutout_ramp: bool = False
    ema_decay: float = 0.0
    precision: Precision = "float32"
    mixed_precision: bool = False
    threads: int = 1
    compile: bool = False
    workers: int = 1
    shared_batch_norm: bool = True

    def __post_init__(self) -> None:
        _check(
            self,
            epochs="positive",
            batch_size="positive",
            lr="positive",
            lr_min="not negative",
            warmup_epochs="not negative",
            momentum="share",
            weight_decay="not negative",
            gradient_clip="not negative",
            channels="positive",
            cells="positive",
            auxiliary_weight="not negative",
            drop_path="share",
            label_smoothing="share",
            val_share="share",
            cutout="not negative",
            ema_decay="share",
            threads="positive",
            workers="positive",
        )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0, got 0.")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs must be <= epochs ({self.epochs}), got {self.warmup_epochs}."
            )
        if self.cutout_ramp and self.cutout == 0:
            raise ValueError("cutout_ramp has no effect where cutout is 0: leave out one of them.")
        if self.mixed_precision and self.precision != "float32":
            raise ValueError(f"mixed_precision needs precision float32, got {self.precision}.")
        self._check_workers()

    def _check_workers(self) -> None:
        if self.batch_size % self.workers:
            raise ValueError(
                f"workers must divide batch_size ({self.batch_size}), got {self.workers}."
            )
        if self.compile and self.workers > 1:
            raise ValueError(f"compile is for one worker, got {self.workers}: leave out one.")
        if self.workers < 2 and not self.shared_batch_norm:
            raise ValueError("shared_batch_norm has no effect with one worker: leave it out.")


_LATER_NAMES = (
    *("schedule", "warmup_epochs", "stem", "cutout_ramp", "ema_decay", "mixed_precision"),
    *("compile", "workers", "shared_batch_norm"),
)
_LATER = {
    field.name: field.default for field in fields(RetrainSettings) if field.name in _LATER_NAMES
}
"""Settings that came when rows had been written, with the values that those rows were run at."""


def identifying(settings: RetrainSettings) -> dict[str, Any]:
    """Return what tells a retraining from others: its settings, but for later ones at defaults.

    A setting that came later so changes the key of no row, and no stored state, from before it.
    """
    return {
        key: value
        for key, value in asdict(settings).items()
        if key not in _LATER or value != _LATER[key]
    }


CHANGEABLE = (
    *("lr", "lr_min", "momentum", "weight_decay", "nesterov", "gradient_clip", "auxiliary_weight"),
    *("drop_path", "label_smoothing", "augment", "cutout", "ema_decay"),
)
"""Settings of a retraining that a state may go on under other values of: `RetrainTrial.adopt`."""

SWITCHES = ("auxiliary_weight", "ema_decay")
"""Those of them whose 0 leaves out a head or averages, which a state then lacks."""

_PLANS = "it is a plan over all epochs"
_SHAPES = "it gives the network its shape, and so its weights"
_COMPUTING = "it says how numbers are computed and not what is learnt"
_FIXED = {
    "epochs": "what is compared runs for as long",
    "batch_size": "the order of the images is stored in batches",
    **dict.fromkeys(("channels", "cells", "stem"), _SHAPES),
    **dict.fromkeys(("schedule", "warmup_epochs", "cutout_ramp"), _PLANS),
    "val_share": "the images that are held out stay the same",
    **dict.fromkeys(("precision", "mixed_precision", "threads", "compile"), _COMPUTING),
    **dict.fromkeys(("workers", "shared_batch_norm"), _COMPUTING),
}


def why_fixed(name: str, values: Sequence[Any]) -> str | None:
    """Return why a setting of a retraining cannot go over from one of these values to another.

    Args:
        name: The setting.
        values: What it may be.

    Returns:
        None where it can.
    """
    if name in _FIXED:
        return _FIXED[name]
    if name in SWITCHES and 0 in values:
        return "0 switches off what other values need the state of"
    return None


def with_later(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored settings of a retraining with those that came later at their defaults."""
    return {**_LATER, **settings}


_SHARED = {
    "batch_size": "batch_size",
    "lr": "weight_lr",
    "lr_min": "weight_lr_min",
    "momentum": "weight_momentum",
    "weight_decay": "weight_decay",
    "nesterov": "nesterov",
    "gradient_clip": "gradient_clip",
    "augment": "augment",
    "cutout": "cutout",
    "threads": "threads",
}
"""Fields of a retraining that a consistent one takes from the search, by their names there."""


def consistent_with(
    search: SearchSettings, own: RetrainSettings, *, channels: int, cells: int
) -> RetrainSettings:
    """Return retraining settings that share size, optimizer and regularisation with the search.

    What the search does not have, the retraining has not: no auxiliary head, drop-path, label
    smoothing, warm-up or averaged weights; mixed precision where the search had bf16.

    Args:
        search: Settings of the search.
        own: Its epochs and val_share are kept.
        channels, cells: Size of the supernet, as `Space.search_size` gives it.

    Source:
        Bi et al., Stabilizing DARTS with Amended Gradient Estimation, arXiv 1910.11831, on the
        consistency of search and re-training; which settings it lists is our reading.
    """
    precision = resolved(search.precision)
    return replace(
        own,
        channels=channels,
        cells=cells,
        stem="cifar",
        schedule="cosine",
        warmup_epochs=0,
        cutout_ramp=False,
        ema_decay=0.0,
        precision="float32" if precision == "bf16" else precision,
        mixed_precision=precision == "bf16",
        compile=False,
        workers=1,
        shared_batch_norm=True,
        auxiliary_weight=0.0,
        drop_path=0.0,
        label_smoothing=0.0,
        **{name: getattr(search, there) for name, there in _SHARED.items()},
    )


def own_of_consistent() -> tuple[str, ...]:
    """Return the retraining settings that can be given where the rest is the search's."""
    return ("epochs", "val_share")


def field_names(settings: type[Any]) -> tuple[str, ...]:
    """Return the names of a settings class, in order."""
    return tuple(field.name for field in fields(settings))
