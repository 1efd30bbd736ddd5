"""Ray Tune Trainables: one importable class a method, found by name, for a block of seeds.

    from ray import tune
    from trainables.ray_trial import Darts

    tune.Tuner(Darts, param_space={"space": "nasbench201", "dataset": "digits", "seed": 0}).fit()

`Darts`, `SdartsRs` and so on are made on first use from the plug-in of that name (`darts`,
`sdarts_rs`), in the driver and in each worker alike, so that a new method needs no line here.
Everything heavy is imported in `setup`, since a worker that waits for its turn should cost nothing.
"""

from __future__ import annotations

import atexit
import gc
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ray import tune

from spaces.core import plugins
from spaces.core.errors import SpaceError, UnknownPluginError
from trainables.worst import worst_value

if TYPE_CHECKING:
    from trainables.ray_workers import Crew
    from trainables.retrain import RetrainTrial

_STATE = "block.pt"
Run = Callable[[], dict[str, Any]]
"""Runs an epoch of a trial, or tells how it went: see `trainables.block`."""


class Trial(Protocol):
    """What a block needs of a `SearchTrial` or a `RetrainTrial`."""

    curve: list[dict[str, Any]]

    @property
    def epoch(self) -> int:
        """Epochs done."""
        ...

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        ...

    @property
    def diverged(self) -> bool:
        """Whether the loss became infinite or NaN."""
        ...

    def run_epoch(self) -> dict[str, Any]:
        """Run one epoch and return its entry of the curve."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the trial needs to go on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


class BlockTrainable(tune.Trainable):
    """One configuration for a block of seeds, in lock-step by epoch; one `step` is one epoch.

    On a GPU searches take the steps of an epoch side by side: see `trainables.block`.

    The result holds the mean over the seeds of each metric of `METRICS`, and each seed's own values
    under `seeds/<seed>/`. A seed that diverged leaves the block and counts with its `worst_value`.

    An epoch that a trial has run already (it was restored from a later state) is reported from its
    curve: a scheduler always sees the epochs 1, 2, 3, ... in order.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("val_accuracy", "val_loss")

    def build(self, seed: int) -> Trial:
        """Make the trial of one seed from `self.config`."""
        raise NotImplementedError

    def advance(self, seed: int, trial: Trial, run: Run) -> None:
        """Run one epoch of one seed by `run`; may put another trial into `self.trials`."""
        run()

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics whose means over the seeds are reported."""
        return self.METRICS

    def setup(self, config: dict[str, Any]) -> None:
        """Build the trials of the block."""
        from trainables.block import Block

        self.config, self.block = config, Block()
        seeds = config.get("seeds") or [config.get("seed", 0)]
        self.trials: dict[int, Trial] = {}
        for seed in seeds:
            self.trials[int(seed)] = self.build(int(seed))
        self.reported = 0

    def step(self) -> dict[str, Any]:
        """Report the next epoch of every seed, running it where it has not run yet."""
        self.reported += 1
        while self._behind(self.reported):
            for seed, run in self.block.epochs(self._behind(self.reported)):
                self.advance(seed, self.trials[seed], run)
        entries: dict[int, dict[str, Any]] = {}
        for seed in self.trials:
            curve = self.trials[seed].curve
            if len(curve) >= self.reported:
                entries[seed] = curve[self.reported - 1]
            elif curve and getattr(self.trials[seed], "ended_early", False):
                entries[seed] = curve[-1]  # it ended itself, and stands where it ended
        return self._result(entries)

    def _behind(self, epoch: int) -> dict[int, Trial]:
        """Return the trials that have this epoch before them."""
        return {
            seed: trial
            for seed, trial in self.trials.items()
            if not (trial.epoch >= epoch or trial.finished or trial.diverged)
        }

    def _result(self, entries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {"epoch": self.reported, "seeds": {}}
        for metric in self.metrics():
            worst = worst_value(metric)
            values = [_finite(entries.get(seed, {}).get(metric), worst) for seed in self.trials]
            result[metric] = sum(values) / len(values)
        for seed, entry in entries.items():
            numbers = {key: value for key, value in entry.items() if _is_number(value)}
            result["seeds"][str(seed)] = numbers
        ended = all(trial.finished or trial.diverged for trial in self.trials.values())
        longest = max(len(trial.curve) for trial in self.trials.values())
        # Tune sets "done" too when a scheduler stops a trial; "ended" is the trial's own word.
        result["ended"] = result["done"] = ended and self.reported >= longest
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the state of every seed as one file, atomically."""
        import torch

        states = {seed: trial.state_dict() for seed, trial in self.trials.items()}
        handle, name = tempfile.mkstemp(dir=checkpoint_dir, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            torch.save({"reported": self.reported, "trials": states}, file)
        Path(name).replace(Path(checkpoint_dir) / _STATE)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a folder that `save_checkpoint` wrote."""
        import torch

        state = torch.load(Path(checkpoint) / _STATE, weights_only=True)
        self.reported = int(state["reported"])
        for seed, trial_state in state["trials"].items():
            self.trials[int(seed)].load_state_dict(trial_state)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another configuration in the same process."""
        self.trials = {}
        _collect()
        self._free_device_memory()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Let go of the trials."""
        self.trials = {}

    @staticmethod
    def _free_device_memory() -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class SearchTrainable(BlockTrainable):
    """A search; the keys of its configuration are the arguments of `SearchTrial`.

    Keys: `space`, `dataset`, `method` (each a name or a mapping with `name`), `search` (a mapping
    of `SearchSettings`), `selection`, `diagnostics`, `seed` or `seeds`, `device` ("auto" if
    absent).
    """

    METHOD: ClassVar[str | None] = None

    def build(self, seed: int) -> Trial:
        """Make the `SearchTrial` of one seed."""
        from trainables.search import SearchTrial

        config = self.config
        method = config.get("method", self.METHOD)
        if method is None:
            raise SpaceError("method is missing: name one, or use a class such as Darts.")
        if self.METHOD is not None and isinstance(method, Mapping):
            method = {"name": self.METHOD, **method}
        return SearchTrial(
            space=config["space"],
            dataset=config["dataset"],
            method=method,
            selection=config.get("selection", "magnitude"),
            search=dict(config.get("search", {})),
            seed=seed,
            device=config.get("device", "auto"),
            diagnostics=config.get("diagnostics"),
        )


class RetrainTrainable(BlockTrainable):
    """A genotype trained from scratch; the keys are the arguments of `RetrainTrial`.

    Keys: `genotype` (its JSON mapping), `space`, `dataset`, `retrain` (a mapping of
    `RetrainSettings`), `seed` or `seeds`, `device` ("auto" if absent).
    """

    METRICS: ClassVar[tuple[str, ...]] = ("train_accuracy",)
    crew: Crew | None = None

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that are reported: of the validation split where one is held out."""
        held_out = float(self.config.get("retrain", {}).get("val_share", 0.0)) > 0
        return (*self.METRICS, *BlockTrainable.METRICS) if held_out else self.METRICS

    def build(self, seed: int) -> Trial:
        """Make the `RetrainTrial` of one seed; the first one brings the other workers."""
        more: dict[str, Any] = {"on_test_read": lambda record: self.note_test_read(seed, record)}
        if num_workers(self.config) == 1:
            return retraining(self.config, seed, **more)
        from trainables.ray_workers import Crew

        self.crew = crew = self.crew or Crew(self.config)
        more["on_epoch"] = lambda trial: crew.epoch(seed, trial)
        with crew.making(seed):
            return retraining(self.config, seed, **more)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Return a bundle of a CPU for each worker; None for one worker, which is Tune's own."""
        workers = num_workers(config)
        return tune.PlacementGroupFactory([{"CPU": 1}] * workers) if workers > 1 else None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another configuration in the same process, with workers of its own."""
        self._dismiss()
        return super().reset_config(new_config)

    def cleanup(self) -> None:
        """Let go of the trials and of the other workers."""
        self._dismiss()
        super().cleanup()

    def _dismiss(self) -> None:
        if self.crew is not None:
            self.crew.dismiss()
        self.crew = None

    def note_test_read(self, seed: int, record: Mapping[str, Any]) -> None:
        """Called before the test split is read, with what it is read for."""


def num_workers(config: Mapping[str, Any]) -> int:
    """Return the processes that a configuration's training is spread over."""
    return int((config.get("retrain") or {}).get("workers", 1))


def retraining(config: Mapping[str, Any], seed: int, **more: Any) -> RetrainTrial:
    """Make the `RetrainTrial` of a configuration of `RetrainTrainable`, with `more` arguments."""
    from spaces.core.genotype import Genotype
    from trainables.retrain import RetrainTrial

    genotype = config["genotype"]
    if isinstance(genotype, str):
        genotype = json.loads(genotype)
    return RetrainTrial(
        genotype=Genotype.from_json(genotype),
        space=config["space"],
        dataset=config["dataset"],
        retrain=dict(config.get("retrain", {})),
        seed=seed,
        device=config.get("device", "auto"),
        **more,
    )


def trainable_class(method: str) -> type[SearchTrainable]:
    """Return the Trainable class of a method plug-in, importable from this module by its name.

    Raises:
        UnknownPluginError: There is no such method.
    """
    summary = plugins.describe("methods", method).summary
    name = class_name(method)
    known = globals().get(name)
    if isinstance(known, type):
        return known
    made = type(
        name,
        (SearchTrainable,),
        {"METHOD": method, "__doc__": summary, "__module__": __name__},
    )
    globals()[name] = made
    return made


def class_name(method: str) -> str:
    """Return "SdartsRs" for "sdarts_rs"."""
    return "".join(part.capitalize() for part in method.split("_"))


def __getattr__(name: str) -> type[SearchTrainable]:
    """Find the class of a method on first use; also when a worker unpickles it by name."""
    if re.fullmatch(r"[A-Z][A-Za-z0-9]*", name):
        for method in plugins.available("methods"):
            if class_name(method) == name:
                return trainable_class(method)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the classes of all methods too."""
    try:
        methods = plugins.available("methods")
    except UnknownPluginError:
        methods = ()
    return sorted({*globals(), *map(class_name, methods)})


def _collect() -> None:
    """Free what trials of this process have left behind.

    The first time, what is left is torch, Ray and their like: to look through it again for every
    trial would take longer than to build one, so it is looked at no more.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries complain at exit of what is never freed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any, worst: float) -> float:
    return float(value) if _is_number(value) and math.isfinite(value) else worst
