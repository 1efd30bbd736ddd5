"""RetrainTrial: a genotype's network trained from scratch; the only reader of the test split.

trial = RetrainTrial(
    genotype=genotype, space="nasbench201", dataset="digits", retrain={"epochs": 5}
)
print(trial.run()["test_accuracy"])
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from spaces.core import plugins
from spaces.core.cost import network_cost
from spaces.core.genotype import Genotype
from spaces.core.space import LARGE_IMAGES, Space
from trainables.choices import Plugin, choose_plugin, choose_settings
from trainables.errors import DataError, StateError
from trainables.exporting import data_of
from trainables.images import split_train_val
from trainables.settings import CHANGEABLE, SWITCHES, RetrainSettings, identifying
from trainables.state import (
    DTYPES,
    Fingerprint,
    load_state,
    make_generator,
    purpose_seed,
    resolve_device,
    save_state,
    taking,
)
from trainables.streams import Images, make_augmentation, make_batches
from trainables.team import Team
from trainables.timing import peak_memory_bytes, reset_peak_memory
from trainables.training import Training
from trainables.worst import worst_value

Entry = dict[str, Any]

STATE_FORMAT = 1
EXCLUDED_FROM_IDENTITY = ("threads", "precision")
"""Settings under which another trial's state may be continued; the fingerprint notes it."""


class RetrainTrial:
    """Training of one genotype's network from scratch, with one seed.

    The test split is read once, at the end of the last epoch, and its result stands in that epoch's
    entry of the curve: a trial continued from a later state has it already and reads nothing. There
    is no choice of an epoch by its accuracy: the last one counts.

    With `retrain.workers` above 1 there is such a trial in each of so many processes, which
    torch.distributed has been set up for. All train; the first one alone evaluates and reads.

    Args:
        genotype: The architecture.
        space: Its space: a name, a mapping with `name` and settings, or a pair (name, Config).
        dataset: Dataset, in the same three forms.
        retrain: Settings, or a mapping of those that differ from the defaults.
        seed: Fixes initialisation, batch order, augmentation, dropped paths and the held-out part,
            each by a generator of its own; the global generators are neither read nor changed.
        device: "cpu", "cuda", "cuda:1" or "auto".
        on_test_read: Called before the test split is read, with what it is read for: a JSON-able
            record of `genotype_hash`, `space`, `dataset`, `seed` and `epoch`.
        on_epoch: Entered for the training of each epoch: where there are several workers, it has
            the others train with this one.

    Attributes:
        curve: One entry per epoch, JSON-able. Shares are 0-1, losses in nats, times in seconds.
        epoch: Epochs done.
        diverged: Whether a loss or weight was not finite. The trial then holds the state of the
            last epoch that was good, and ends without reading the test split.
        resumed_elsewhere: Whether it was ever continued under another fingerprint, so that it may
            differ in the last bits from an uninterrupted one.
        test_reads: How often the test split was read: 0, then 1.
        notes: What the settings ask for and the network cannot have, as sentences; often empty.

    Raises:
        NasError: A genotype, plug-in, setting, device or dataset that cannot be used.

    Source:
        Liu et al., DARTS, ICLR 2019, and its authors' code (cnn/train.py). Differs: the test split
        is not evaluated each epoch; the last, smaller batch of an epoch is left out; a network of a
        space without auxiliary head is trained without one.
    """

    def __init__(
        self,
        *,
        genotype: Genotype,
        space: Plugin,
        dataset: Plugin,
        retrain: RetrainSettings | Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        on_test_read: Callable[[Mapping[str, Any]], None] | None = None,
        on_epoch: Callable[[RetrainTrial], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.settings = choose_settings(RetrainSettings, retrain, "retrain")
        self.genotype = genotype
        self.seed = seed
        self.device = resolve_device(device)
        torch.set_num_threads(self.settings.threads)
        self.fingerprint = Fingerprint.of(self.device, self.settings.precision)
        if self.settings.compile:
            engine = f"compiled-{self.device.type}"
            self.fingerprint = replace(self.fingerprint, engine=engine)
        self.team = Team.of(self.settings.workers)
        self._on_test_read = on_test_read
        self._on_epoch = on_epoch
        space_name, space_config = choose_plugin("spaces", space)
        self.space: Space = plugins.load("spaces", space_name).build(space_config, space_name)
        self._dataset_name, self._dataset_config = choose_plugin("datasets", dataset)
        self.description: dict[str, Any] = {
            "genotype": genotype.to_json(),
            "spaces": plugins.settings_of(space_name, space_config),
            "datasets": plugins.settings_of(self._dataset_name, self._dataset_config),
            "retrain": asdict(self.settings),
            "seed": seed,
        }
        self._prepare_data()
        self._prepare_state()

    def _prepare_data(self) -> None:
        settings = self.settings
        module = plugins.load("datasets", self._dataset_name)
        # Now, not after 600 epochs: both files must be there. The digest needs every file's bytes.
        if "test" not in module.splits(self._dataset_config):
            raise DataError(
                f"dataset '{self._dataset_name}' has no test split with these settings, and "
                "retraining reads one at its end: name it in the dataset's settings (dataset.test)."
            )
        self.data_digest: str = module.digest(self._dataset_config)
        images: Images = module.load(self._dataset_config, "train")
        self._in_channels, self._num_classes = images.in_channels, images.num_classes
        self._image_size = images.image_size
        augmentation = make_augmentation(images, settings.augment, settings.cutout)
        self._val: Images | None = None
        if settings.val_share > 0:
            parts = split_train_val(len(images), 1.0 - settings.val_share, self.seed)
            self._val = images.subset(parts[1]).to(self.device)
            images = images.subset(parts[0])
        self._train = make_batches(
            images.to(self.device),
            settings.batch_size,
            generator=make_generator(self.seed, "retrain batches"),
            augmentation=augmentation,
            dtype=DTYPES[settings.precision],
            rows=self.team.rows(settings.batch_size),
        )

    def _prepare_state(self) -> None:
        settings = self.settings
        self.notes: list[str] = []
        auxiliary = settings.auxiliary_weight > 0
        if auxiliary and not self.space.has_auxiliary:
            auxiliary = False
            self.notes.append(
                f"The networks of space '{self.space.name}' have no auxiliary head: "
                f"auxiliary_weight {settings.auxiliary_weight} has no effect."
            )
        if settings.stem == "cifar" and self._image_size >= LARGE_IMAGES:
            self.notes.append(
                f"Images of {self._image_size} pixels go through the stem for small ones; "
                "retrain.stem=imagenet makes them 8 times smaller before the first cell."
            )
        self.network: nn.Module = self.space.build_network(
            self.genotype,
            self._in_channels,
            self._num_classes,
            channels=settings.channels,
            cells=settings.cells,
            auxiliary=auxiliary,
            image_size=self._image_size,
            stem=settings.stem,
            seed=purpose_seed(self.seed, "retrain init"),
        )
        self.network.to(device=self.device, dtype=DTYPES[settings.precision])
        self._training = Training(
            self.network,
            self._train,
            settings,
            make_generator(self.seed, "drop path", self.device),
            self.team,
        )
        self.epoch = 0
        self.curve: list[Entry] = []
        self.diverged = False
        self.resumed_elsewhere = False
        self.test_reads = 0

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left to run."""
        return self.diverged or self.epoch >= self.settings.epochs

    @property
    def lr(self) -> float:
        """Learning rate in this epoch: a cosine or a line from the first epoch's to the least.

        With T epochs the rate would reach its least in epoch T, counted from 0, one past the last.
        In n epochs of warm-up it is scaled by (epoch + 1) / n.
        """
        settings = self.settings
        if settings.schedule == "linear":
            left = 1.0 - self.epoch / settings.epochs
        else:
            left = (1.0 + math.cos(math.pi * self.epoch / settings.epochs)) / 2.0
        rate = settings.lr_min + (settings.lr - settings.lr_min) * left
        if self.epoch < settings.warmup_epochs:
            rate *= (self.epoch + 1) / settings.warmup_epochs
        return rate

    @property
    def drop_path(self) -> float:
        """Probability of dropping a path in this epoch, counted from 0: `drop_path` epoch / T."""
        return self.settings.drop_path * self.epoch / self.settings.epochs

    @property
    def cutout_share(self) -> float:
        """Share of the images that are cut in this epoch, counted from 0: epoch / (T - 1), or 1."""
        if not self.settings.cutout_ramp:
            return 1.0
        return self.epoch / max(1, self.settings.epochs - 1)

    def run(self) -> Entry:
        """Run all epochs that are left and return the last entry of the curve."""
        while not self.finished:
            self.run_epoch()
        return self.curve[-1]

    def run_epoch(self) -> Entry:
        """Run one epoch and return its entry of the curve.

        Raises:
            StateError: The trial is finished.
            DataError: The test split cannot be read.
        """
        if self.finished:
            raise StateError(f"The retraining is finished after {self.epoch} epochs.")
        torch.set_num_threads(self.settings.threads)
        before = self.state_dict()
        start = time.perf_counter()
        reset_peak_memory(self.device)
        entry: Entry = {"epoch": self.epoch + 1, "lr": self.lr, "drop_path": self.drop_path}
        self._train.augmentation = replace(self._train.augmentation, cutout_share=self.cutout_share)
        with self._on_epoch(self) if self._on_epoch is not None else nullcontext():
            loss, accuracy = self._training.run_epoch(lr=self.lr, drop_path=self.drop_path)
        measured = {"train_loss": loss, "train_accuracy": accuracy}
        if self._val is not None and self.team.leads:
            measured["val_loss"], measured["val_accuracy"] = self._training.evaluate(self._val)
        if not (all(map(math.isfinite, measured.values())) and self._training.is_finite()):
            self.load_state_dict(before)
            self.diverged = True
            measured = {name: worst_value(name) for name in measured}
        elif self.epoch + 1 == self.settings.epochs and self.team.leads:
            measured |= self._read_test()
            entry |= self.cost()
        entry |= measured
        entry["diverged"] = int(self.diverged)
        entry["epoch_time_s"] = time.perf_counter() - start
        entry["peak_memory_bytes"] = peak_memory_bytes(self.device)
        self.curve.append(entry)
        self.epoch += not self.diverged
        return entry

    def cost(self) -> dict[str, int]:
        """Return `params` and `macs` (per image) of the network, auxiliary head excluded."""
        cost = network_cost(
            self.space,
            self.genotype,
            channels=self.settings.channels,
            cells=self.settings.cells,
            classes=self._num_classes,
            in_channels=self._in_channels,
            image_size=self._image_size,
            stem=self.settings.stem,
        )
        return {"params": cost.params, "macs": cost.macs}

    def time_steps(self, count: int = 3) -> float:
        """Return the seconds of a training step, the least of `count`; the trial is unchanged."""
        return self._training.time_steps(count, lr=self.lr, drop_path=self.drop_path)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch."""
        return len(self._train)

    def _read_test(self) -> dict[str, float]:
        if self._on_test_read is not None:
            self._on_test_read(
                {
                    "genotype_hash": self.genotype.hash,
                    "space": self.description["spaces"],
                    "dataset": self.description["datasets"],
                    "seed": self.seed,
                    "epoch": self.epoch + 1,
                }
            )
        self.test_reads += 1
        images = plugins.load("datasets", self._dataset_name).load(self._dataset_config, "test")
        loss, accuracy = self._training.evaluate(images.to(self.device))
        # Finite weights can still overflow on images that they were not trained on.
        loss = loss if math.isfinite(loss) else worst_value("test_loss")
        return {"test_loss": loss, "test_accuracy": accuracy}

    def state_dict(self) -> dict[str, Any]:
        """Return everything the trial needs to go on bit for bit; tensors are copies."""
        return {
            "format": STATE_FORMAT,
            "kind": "retrain",
            "identity": self._identity(),
            "fingerprint": asdict(self.fingerprint),
            "training": self._training.state_dict(),
            "epoch": self.epoch,
            "curve": json.dumps(self.curve),
            "diverged": self.diverged,
            "resumed_elsewhere": self.resumed_elsewhere,
            "test_reads": self.test_reads,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Under another machine, thread count, precision, engine or torch the trial goes on and marks
        itself `resumed_elsewhere`.

        Raises:
            StateError: The state is of another trial, or of an unknown format.
        """
        _check_format(state)
        if state["identity"] != self._identity():
            raise StateError(
                "The stored state belongs to another retraining: genotype, space, data, settings "
                "and seed must be the same. Start anew, or build the trial with its settings."
            )
        self._training.load_state_dict(state["training"])
        self._load(state)

    def adopt(self, state: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the state of a trial that may differ in the settings of `CHANGEABLE`.

        Weights, averages, momentum, generators and the place in the batches are those of the
        state; the settings are this trial's own, from the next epoch on.

        Args:
            state: What `state_dict` of that trial returned.
            curve: Entries that stand in the place of the state's: one for each of its epochs.

        Raises:
            StateError: The trials differ in more, the state is one that diverged, or the curve is
                of another length.
        """
        _check_format(state)
        other, own = _unchangeable(state["identity"]), _unchangeable(self._identity())
        if other != own:
            named = ", ".join(key for key in own if own[key] != other.get(key))
            raise StateError(
                f"The state can be gone on from with other values of {', '.join(CHANGEABLE)} "
                f"alone, and it differs in {named or 'others'}."
            )
        if state["diverged"] or len(curve) != int(state["epoch"]):
            raise StateError(
                f"The state must be a good one of {len(curve)} epochs, as many as the curve has, "
                f"got one of {state['epoch']}{' that diverged' if state['diverged'] else ''}."
            )
        self._training.adopt(state["training"])
        self._load(state)
        self.curve = [dict(entry) for entry in curve]

    def _load(self, state: Mapping[str, Any]) -> None:
        self.epoch = int(state["epoch"])
        self.curve = json.loads(state["curve"])
        self.diverged = bool(state["diverged"])
        self.test_reads = int(state["test_reads"])
        elsewhere = state["fingerprint"] != asdict(self.fingerprint)
        self.resumed_elsewhere = bool(state["resumed_elsewhere"]) or elsewhere

    def _identity(self) -> str:
        retrain = {
            key: value
            for key, value in identifying(self.settings).items()
            if key not in EXCLUDED_FROM_IDENTITY
        }
        # The content of the data counts, not where it lies.
        data = {"name": self._dataset_name, "digest": self.data_digest}
        return json.dumps(self.description | {"retrain": retrain, "datasets": data}, sort_keys=True)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the state atomically."""
        save_state(self.state_dict(), path)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save_state` wrote.

        Raises:
            StateError: The file is missing, damaged or of another trial.
        """
        state = load_state(path)
        with taking(path):
            self.load_state_dict(state)

    def final_state(self) -> dict[str, Any]:
        """Return weights, buffers and what they belong to; `weights_only` loading accepts it.

        They are those that the accuracies are of: averages where `ema_decay` asks for them.
        """
        state = self._training.evaluated_state()
        return {
            "weights": {name: state[name] for name, _ in self.network.named_parameters()},
            "buffers": {name: state[name] for name, _ in self.network.named_buffers()},
            "genotype": json.dumps(self.genotype.to_json()),
            "settings": json.dumps(self.description, sort_keys=True),
            "data": json.dumps(data_of(self._train.images)),
        }


def _check_format(state: Mapping[str, Any]) -> None:
    if state.get("kind") != "retrain" or state.get("format") != STATE_FORMAT:
        raise StateError(
            f"The stored state must be a retraining's of format {STATE_FORMAT}, got kind "
            f"{state.get('kind')!r} of format {state.get('format')!r}."
        )


def _unchangeable(identity: str) -> dict[str, Any]:
    """Return the parts of an identity without the settings that may change, `retrain` flat."""
    parts: dict[str, Any] = json.loads(identity)
    retrain = parts.pop("retrain")
    kept = {key: value for key, value in retrain.items() if key not in CHANGEABLE}
    switched = {key: retrain.get(key, 0) > 0 for key in SWITCHES}
    return parts | {f"retrain.{key}": value for key, value in (kept | switched).items()}
