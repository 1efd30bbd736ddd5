"""SearchTrial: one search with one seed, from plain Python; it knows neither Ray nor MLflow.

from trainables.search import SearchTrial

trial = SearchTrial(
    space={"name": "nasbench201", "channels": 4, "cells_per_stage": 1},
    dataset="digits",
    method="sdarts_rs",
    search={"epochs": 5, "batch_size": 32},
    seed=0,
)
while not trial.finished:
    entry = trial.run_epoch()
genotype = trial.genotype
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from spaces.core import plugins
from spaces.core.genotype import Genotype
from spaces.core.space import Space
from trainables.bilevel import Bilevel
from trainables.capture import WARM_UP
from trainables.choices import Plugin, choose_diagnostics, choose_plugin, choose_settings
from trainables.compose import build_method, build_selection, check_going_back, check_space
from trainables.diagnostics import (
    ALPHA_DIAGNOSTICS,
    alpha_diagnostics,
    genotype_diagnostics,
    worst_of,
)
from trainables.engine import choose_engine
from trainables.errors import StateError
from trainables.implicit import Alphas
from trainables.method import Method, OpWeights, SearchPoint
from trainables.probes import probe_gap, probe_hessian, time_hessian
from trainables.search_data import SearchData
from trainables.selecting import Selected, Selection, TrainedSupernet
from trainables.settings import Diagnostics, SearchSettings
from trainables.stages import Place, kept_columns, space_of
from trainables.state import (
    Fingerprint,
    check_identity,
    cloned,
    identity_of,
    load_state,
    on_cpu,
    purpose_seed,
    resolve_device,
    save_state,
    taking,
)
from trainables.streams import stem_for_search
from trainables.timing import Stopwatch, peak_memory_bytes, reset_peak_memory
from trainables.watching import EarlyStop, descent

_LOG = logging.getLogger(__name__)

Entry = dict[str, Any]

STATE_FORMAT = 2
TIME_FIELDS = (
    "alpha_step_time_s",
    "weight_step_time_s",
    "epoch_time_s",
    "diagnostics_time_s",
    "peak_memory_bytes",
)
"""Fields of an entry that measure the machine; two equal searches differ in them."""


class SearchTrial:
    """A differentiable architecture search: weights of a supernet and alphas, epoch by epoch.

    A step is an alpha step on a validation batch, then a weight step on a training batch. After
    each epoch the whole validation split is evaluated and the genotype is taken; the entry of the
    curve holds both. The test split is never read.

    Args:
        space, dataset, method, selection: Plug-ins: a name, a mapping with `name` and settings, or
            a pair (name, Config).
        search: Settings, or a mapping of those that differ from the defaults.
        seed: Fixes split, initialisation, batch order and the method's draws, each by a generator
            of its own; torch's global generators are neither read nor changed.
        device: "cpu", "cuda", "cuda:1" or "auto".
        diagnostics: What is measured besides; it changes no result and is not part of the state.

    Attributes:
        curve: One entry per epoch, JSON-able. Shares are 0-1, losses nats, times seconds.
        epoch: Epochs done.
        position: Epochs of the schedule done; fewer than `epoch` once the search has gone back.
        genotype: The result so far: of the last epoch done, or, where the method says so, of the
            one with the best validation accuracy; of the initial alphas before the first.
        scores: What a selection rule chose the genotype by after the last epoch; else empty.
        genotype_epoch: The epoch that it is of, counted from 1; 0 before the first.
        op_weights: Likewise, by cell type `(num_edges, num_ops)`.
        stopped_at: Where an early stop ended the search: the epoch that the genotype is of; else
            None.
        engine: How steps are run, and why so; a step that could not be recorded has changed it.
        diverged: Whether a loss was not finite. The trial then holds the state of the last good
            epoch, and ends.
        resumed_elsewhere: Whether it was ever continued under another fingerprint, so that it may
            differ in the last bits from an uninterrupted search.

    Raises:
        NasError: A plug-in, setting, device or dataset that cannot be used.
    """

    def __init__(
        self,
        *,
        space: Plugin,
        dataset: Plugin,
        method: Plugin,
        search: SearchSettings | Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        selection: Plugin = "magnitude",
        diagnostics: Diagnostics | Mapping[str, Any] | None = None,
    ) -> None:
        self.diagnostics = choose_diagnostics(diagnostics)
        self.settings = choose_settings(SearchSettings, search, "search")
        self.seed = seed
        self.device = resolve_device(device)
        torch.set_num_threads(self.settings.threads)
        given = {"space": space, "dataset": dataset, "method": method, "selection": selection}
        chosen = {what: choose_plugin(f"{what}s", value) for what, value in given.items()}
        self.description: dict[str, Any] = {
            **{what: plugins.settings_of(*pair) for what, pair in chosen.items()},
            "search": asdict(self.settings),
            "seed": seed,
        }
        name, config = chosen["space"]
        self.space: Space = plugins.load("spaces", name).build(config, name)
        name, config = chosen["method"]
        self.method: Method = build_method(name, config, epochs=self.settings.epochs)
        name, config = chosen["selection"]
        self._selection = build_selection(
            (name, config), self.description["method"], of_method=self.method
        )
        check_space(self.space, self._selection)
        self.engine = choose_engine(self.settings, self.device, self.method, self.space)
        asked = self.settings.engine
        asked_in_vain = asked in ("graph", "compile") and self.engine.name != asked
        _LOG.log(logging.WARNING if asked_in_vain else logging.INFO, "Steps: %s.", self.engine)
        precision = self.engine.precision
        self.fingerprint = Fingerprint.of(self.device, precision, self.engine.label)
        name, config = chosen["dataset"]
        dataset_module = plugins.load("datasets", name)
        self.data_digest: str = dataset_module.digest(config)
        images = dataset_module.load(config, "train")
        self._data = SearchData(images, self.settings, seed=seed, device=self.device)
        self._image_shape = images.in_channels, images.num_classes
        self._stem = stem_for_search(images) if self.space.has_imagenet_stem else None
        self._stages = self.method.stages_of(self.settings.epochs)
        for stage in self._stages:
            space_of(self.space, stage)  # a stage that cannot be is refused before the first
        check_going_back(self.method, self.settings.weight_decay)
        self._bilevel = self._build_stage(0)
        self.epoch = self.position = 0
        self._past: dict[int, dict[str, Any]] = {}
        self.curve: list[Entry] = []
        self.diverged = self.resumed_elsewhere = False
        self.stopped_at: int | None = None
        self.op_weights = cloned(self._bilevel.relaxed(self._bilevel.point(0)))
        self.genotype = self._by_each_epoch(self._selection)
        self.genotype_epoch = 0
        self.scores: OpWeights = {}

    def _build_stage(self, index: int, columns: Mapping[str, Tensor] | None = None) -> Bilevel:
        """Return a stage of the search at its start; `columns` are the operations left."""
        stage = self._stages[index]
        start = sum(before.epochs for before in self._stages[:index])
        place = Place(index, start, stage.epochs, columns)
        return Bilevel(
            space_of(self.space, stage).build_supernet(
                *self._image_shape,
                seed=purpose_seed(self.seed, "init" + place.suffix),
                structure=self.method.structure,
                stem=self._stem,
            ),
            self.space.alpha_shapes(),
            self.method,
            self.settings,
            seed=self.seed,
            device=self.device,
            space=self.space,
            place=place,
            engine=self.engine,
        )

    def _enter_stage(self) -> None:
        """Go to the next stage where the one before is done; it keeps the strongest operations."""
        place = self._bilevel.place
        if self.position < place.start + place.epochs:
            return
        index = place.index + 1
        count, columns = self._stages[index].operations, place.columns
        if count is not None:
            columns = kept_columns(self.op_weights, count, whole=self.space.parents)
        self._bilevel = self._build_stage(index, columns)

    @property
    def alphas(self) -> Alphas:
        """Logits by cell type, `(num_edges, num_ops)`; in later stages of those that are left."""
        return self._bilevel.alphas

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: full batches of the training split, or 1 where nothing is trained."""
        return self._data.num_steps if self.method.trains else 1

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to run."""
        return self._is_over()

    def _is_over(self) -> bool:
        ended = self.diverged or self.stopped_at is not None
        return ended or self.position >= self.settings.epochs

    @property
    def ended_early(self) -> bool:
        """Whether it has its result, with which it stands though others of its block go on."""
        return self._is_over() and not self.diverged

    @property
    def chooses_epoch(self) -> bool:
        """Whether the genotype is of an epoch that a rule has chosen, and not simply the last."""
        return self.method.genotype_of == "best_epoch" or self.stopped_at is not None

    def run(self) -> Genotype:
        """Run the epochs that are left and return the genotype."""
        while not self.finished:
            self.run_epoch()
        return self.genotype

    def run_epoch(self) -> Entry:
        """Run one epoch and return its entry of the curve.

        Raises:
            StateError: No epoch is left.
        """
        run = self.epoch_in_steps()
        while True:
            try:
                next(run)
            except StopIteration as over:
                entry: Entry = over.value
                return entry

    def epoch_in_steps(self) -> Generator[None, None, Entry]:
        """Run one epoch as `run_epoch` does, but stop after each step; a GPU may still be at it.

        What is not run to its end leaves the trial within an epoch, from where it cannot go on.

        Returns:
            The entry of the curve.

        Raises:
            StateError: No epoch is left.
        """
        if self.finished:
            raise StateError(
                f"The search has ended after {self.epoch} epochs; none is left to run."
            )
        torch.set_num_threads(self.settings.threads)
        before = self.state_dict()
        start = time.perf_counter()
        reset_peak_memory(self.device)
        clocks = Stopwatch(self.device), Stopwatch(self.device)
        self._enter_stage()
        epoch, bilevel = self.epoch, self._bilevel
        at = bilevel.point(self.position)
        decay = bilevel.weight_decay
        values: dict[str, list[Tensor]] = {}
        for step in range(self.steps_per_epoch):
            measured = bilevel.step(replace(at, step=step), *self._data.next_batches(), clocks)
            for name, value in measured.items():
                values.setdefault(name, []).append(value.double())
            yield
        self._note_engine()
        self.op_weights = cloned(bilevel.relaxed(at))
        metrics = self._metrics(at, values)
        if all(math.isfinite(value) for value in metrics.values()):
            self.epoch += 1
            self.position += 1
            selected = self._genotype()
            genotype = selected.genotype
            metrics |= selected.measured
        else:
            self.load_state_dict(before)
            self.diverged = True
            metrics = worst_of(metrics, self.alphas, self.op_weights)
            genotype = self._by_each_epoch(self._selection)
        watched, target = ({}, None) if self.diverged else self._watch(at)
        over = self._is_over() and target is None
        probed = {} if self.diverged else self._probe(at, genotype, last=over)
        entry: Entry = {
            "epoch": epoch + 1,
            **metrics,
            "diverged": int(self.diverged),
            **genotype_diagnostics(self.space, genotype),
            **watched,
            **probed,
            "weight_lr": bilevel.weight_lr(at.epoch),
            **self.method.log(at),
            "alpha_step_time_s": clocks[0].mean(),
            "weight_step_time_s": clocks[1].mean(),
            "epoch_time_s": time.perf_counter() - start,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "genotype": genotype.to_json(),
            "genotype_hash": genotype.hash,
        }
        if self._rule_goes_back:
            entry |= {"schedule_epoch": at.epoch + 1, "weight_decay": decay}
        if over and not self.diverged:
            # How far seeds agree is seen in the op weights alone; once is enough.
            entry["op_weights"] = {name: m.tolist() for name, m in self.op_weights.items()}
        self.curve.append(entry)
        if target is not None:
            self._go_back(target)
        self.genotype_epoch = self._chosen_epoch()
        if self.genotype_epoch:
            chosen = self.curve[self.genotype_epoch - 1]["genotype"]
            self.genotype = Genotype.from_json(chosen)
        return entry

    def _note_engine(self) -> None:
        """Take over the engine of the steps, which is another where they could not be recorded."""
        if self.engine != self._bilevel.engine:
            self.engine = self._bilevel.engine
            self.fingerprint = replace(self.fingerprint, engine=self.engine.label)

    def _genotype(self) -> Selected:
        """Return the genotype of the epoch just done; after the last one it may take long."""
        if self.position < self.settings.epochs or self._selection.at_end is None:
            return Selected(self._by_each_epoch(self._selection))
        selected = self.select(self._selection)
        self.scores = selected.scores
        return selected

    def select(self, rule: Selection | Plugin) -> Selected:
        """Return what a selection rule finds in the supernet as it is now; the trial is unchanged.

        Args:
            rule: A plug-in of kind "selections", or ready made.

        Raises:
            NasError: No such rule, settings that it does not take, or a space that it cannot.
        """
        if not isinstance(rule, Selection):
            rule = build_selection(rule, of_method=self.method)
            check_space(self.space, rule)
        if rule.at_end is not None and self.stopped_at is not None:
            raise StateError(
                f"The search was stopped early for its genotype of epoch {self.stopped_at}; the "
                "supernet of that epoch, which the rule would have to look at, is gone."
            )
        if rule.at_end is None:
            return Selected(self._by_each_epoch(rule), cloned(self.op_weights))
        before = self._bilevel.state_dict(), self._data.state_dict()
        at = self._bilevel.point(max(0, self.position - 1))
        try:
            return rule.at_end(TrainedSupernet(self.space, self._bilevel, self._data, at))
        finally:
            self._bilevel.load_state_dict(before[0])
            self._data.load_state_dict(before[1])

    def load_final(self, state: Mapping[str, Any]) -> None:
        """Take weights, statistics and alphas from a `final_state`; see `trainables.stored`."""
        self._load_stage(state)
        self.stopped_at = state.get("stopped_at")
        self._bilevel.load_final(state["weights"] | state["buffers"], state["alphas"])
        self.epoch = int(state["epoch"])
        self.position = int(state.get("position", self.epoch))
        self.op_weights = cloned(
            self._bilevel.relaxed(self._bilevel.point(max(0, self.position - 1)))
        )
        self.genotype = Genotype.from_json(json.loads(state["genotype"]))

    def _load_stage(self, state: Mapping[str, Any]) -> None:
        """Have the supernet of the stage that a state is of."""
        index, columns = state.get("stage", 0), state.get("columns")
        place = self._bilevel.place
        if index != place.index or not _same_columns(columns, place.columns):
            self._bilevel = self._build_stage(index, columns)

    def _by_each_epoch(self, rule: Selection) -> Genotype:
        at = self._bilevel.point(max(0, self.position - 1))
        return rule.each_epoch(self.space, self._bilevel.strengths(self.op_weights, at))

    def _chosen_epoch(self) -> int:
        """Return the epoch, counted from 1, whose genotype is the result; 0 before the first."""
        if self.stopped_at is not None:
            return self.stopped_at
        whole = self._selection.at_end is not None and self.position == self.settings.epochs
        if self.method.genotype_of == "last_epoch" or whole:
            return self.epoch
        first = min(self._bilevel.first_alpha_epoch, self.epoch - 1)
        candidates = self.curve[max(first, 0) : self.epoch]
        # max keeps the first of equals.
        best = max(candidates, key=lambda entry: entry["val_accuracy"], default={"epoch": 0})
        return int(best["epoch"])

    def _metrics(self, at: SearchPoint, values: Mapping[str, list[Tensor]]) -> dict[str, float]:
        """Measure the epoch; `values` are those of `Bilevel.step`, from the steps that had them."""
        val = self._bilevel.evaluate(
            self._bilevel.shown(self.op_weights, at),
            self._data.validation(),
            self.settings.validation_norm,
            # To look for operations of op weight 0 is worth a wait only where there are many.
            sparse=self.method.alphas == "at_start",
        )
        names = [*values, "val_loss", "val_accuracy"]
        found = [torch.stack([torch.stack(each).mean() for each in values.values()]), val]
        if self.method.alphas == "trained":
            names += ALPHA_DIAGNOSTICS
            found.append(alpha_diagnostics(self.alphas, self.op_weights))
        # The only wait for a GPU in an epoch, but for methods that draw operations.
        return dict(zip(names, torch.cat(found).tolist(), strict=True))

    def _watch(self, at: SearchPoint) -> tuple[Entry, int | None]:
        """Ask the rule that may end the search or take it back; `at` is the epoch just done.

        Returns:
            What it logs, and the epoch of the schedule, from 0, to whose end the search goes back.
        """
        rule, epochs = self.method.early_stop, self.settings.epochs
        if rule is None:
            return {}, None
        found: Entry = {}
        target = None
        if rule.due(at.epoch, epochs) and at.epoch >= self._bilevel.first_alpha_epoch:
            value = rule.measure(self._bilevel, self._data, at)
            # What is not finite has no place in a curve; the search itself may well go on.
            found = {rule.name: value} if math.isfinite(value) else {}
            measured = descent([*self.curve, {"schedule_epoch": at.epoch + 1, **found}])
            values = [(epoch, entry[rule.name]) for epoch, entry in measured if rule.name in entry]
            logged, target = rule.verdict(values, epochs)
            found |= logged
        if rule.go_back is None:
            self.stopped_at = None if target is None else target + 1
            return found | {"stopped_early": int(target is not None)}, None
        self._remember(at.epoch, rule)
        if rule.go_back.raised(self._bilevel.weight_decay) is None:
            target = None  # at the limit a search goes on to its end
        return found | {"went_back": int(target is not None)}, target

    @property
    def _rule_goes_back(self) -> bool:
        return self.method.early_stop is not None and self.method.early_stop.go_back is not None

    def _remember(self, epoch: int, rule: EarlyStop) -> None:
        """Keep the state after `epoch` of the schedule, and of those before what may be needed.

        A rule names an epoch that was measured, of its reach, and once back it may name an earlier
        one, as often as the weight decay can grow.
        """
        back, epochs = rule.go_back, self.settings.epochs
        if back is None:
            return
        first = not self._past
        if first or rule.due(epoch + back.extra_epochs, epochs):
            # On the CPU: a device has better use for its memory.
            self._past[epoch] = on_cpu(self._bilevel.state_dict())
        times = back.times(self._bilevel.weight_decay)
        oldest = epoch - times * back.reach(epochs) - back.extra_epochs
        kept = {done: state for done, state in self._past.items() if done >= oldest}
        self._past = kept if times else {}

    def _go_back(self, target: int) -> None:
        """Go back to the end of epoch `target` of the schedule, from 0, with more weight decay."""
        rule = self.method.early_stop.go_back if self.method.early_stop else None
        decay = rule.raised(self._bilevel.weight_decay) if rule else None
        if rule is None or decay is None:
            raise StateError("This search has nothing to go back with.")
        epoch = max(target - rule.extra_epochs, min(self._past))
        self._bilevel.go_back(self._past[epoch], weight_decay=decay)
        self._past = {done: state for done, state in self._past.items() if done <= epoch}
        self.position = epoch + 1
        self.op_weights = cloned(self._bilevel.relaxed(self._bilevel.point(epoch)))

    def _probe(self, at: SearchPoint, genotype: Genotype, *, last: bool) -> Entry:
        """Run the diagnostics that are due after the epoch just done."""
        found: Entry = {}
        if self.method.alphas == "at_start":
            return found  # nothing in it is of the genotype that is found
        hessian, gap = self.diagnostics.hessian, self.diagnostics.discretization_gap
        start = time.perf_counter()
        if hessian is not None and (last or self.position % hessian.every == 0):
            found |= probe_hessian(self._bilevel, self._data, at, hessian)
        if gap is not None and (last or self.position % gap.every == 0):
            found |= probe_gap(
                self._bilevel, self._data, at, gap, space=self.space, genotype=genotype
            )
        # What is not finite has no place in a curve; the search itself may well go on.
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        return found | {"diagnostics_time_s": time.perf_counter() - start} if found else {}

    def time_diagnostics(self) -> dict[str, float]:
        """Return the seconds of each diagnostic that is on, by its name; changes no result."""
        bilevel, data = self._bilevel, self._data
        at = bilevel.point(self.position)
        seconds: dict[str, float] = {}
        if self.diagnostics.hessian is not None:
            seconds["hessian"] = time_hessian(bilevel, data, at, self.diagnostics.hessian)
        gap = self.diagnostics.discretization_gap
        if gap is not None:
            start = time.perf_counter()
            probe_gap(bilevel, data, at, gap, space=self.space, genotype=self.genotype)
            seconds["discretization_gap"] = time.perf_counter() - start
        return seconds

    def time_steps(self, count: int = 3) -> float:
        """Return the seconds of a step in which the alphas move; changes no result.

        Of a search in stages it is the mean over its epochs; what an early stop measures is shared
        out over the steps.

        Args:
            count: Steps to time in each stage, after one that is not counted.
        """
        before = self.state_dict()
        seconds = 0.0
        try:
            for index, stage in enumerate(self._stages):
                if index:
                    columns, left = self._bilevel.place.columns, stage.operations
                    if left is not None:
                        columns = kept_columns(self.op_weights, left, whole=self.space.parents)
                    self._bilevel = self._build_stage(index, columns)
                seconds += stage.epochs / self.settings.epochs * self._time_steps(count)
        finally:
            self.load_state_dict(before)
        rule, epochs = self.method.early_stop, self.settings.epochs
        if rule is not None:
            start = time.perf_counter()
            rule.measure(self._bilevel, self._data, self._bilevel.point(self.position))
            share = sum(rule.due(epoch, epochs) for epoch in range(epochs)) / epochs
            seconds += share * (time.perf_counter() - start) / self.steps_per_epoch
        return seconds

    def _time_steps(self, count: int) -> float:
        at = self._bilevel.point(max(self.position, self._bilevel.first_alpha_epoch))
        clocks = Stopwatch(self.device), Stopwatch(self.device)
        # Before a graph is replayed its step is taken a few times, and recorded.
        first = WARM_UP if self.engine.name == "graph" and not self.engine.is_stub else 0
        for number in range(first + count + 1):
            self._bilevel.step(at, *self._data.next_batches(), clocks)
            if number == first:
                clocks = Stopwatch(self.device), Stopwatch(self.device)
        return clocks[0].mean() / self.method.weight_steps + clocks[1].mean()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that the rest of the search depends on, and its results."""
        return {
            "kind": "search",
            "format": STATE_FORMAT,
            "identity": json.dumps(self._identity()),
            "fingerprint": asdict(self.fingerprint),
            "resumed_elsewhere": self.resumed_elsewhere,
            "epoch": self.epoch,
            "position": self.position,
            # Never changed once kept, so that a copy would only cost memory.
            "past": dict(self._past),
            "stopped_at": self.stopped_at,
            "diverged": self.diverged,
            "curve": [dict(entry) for entry in self.curve],
            "genotype": self.genotype.to_json(),
            "genotype_epoch": self.genotype_epoch,
            "op_weights": cloned(self.op_weights),
            "scores": cloned(self.scores),
            "stage": self._bilevel.place.index,
            "columns": cloned(self._bilevel.place.columns),
            "bilevel": self._bilevel.state_dict(),
            "data": self._data.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; under the same fingerprint, bit for bit.

        Raises:
            StateError: The state is of another search, or of a newer format.
        """
        kind, form = state.get("kind"), state.get("format")
        if (kind, form) != ("search", STATE_FORMAT):
            raise StateError(
                f"The stored state must be a search of format {STATE_FORMAT}, got {kind} of {form}."
            )
        check_identity(state["identity"], self._identity())
        self._data.load_state_dict(state["data"])
        self._load_stage(state)
        self._bilevel.load_state_dict(state["bilevel"])
        self.epoch, self.diverged = state["epoch"], state["diverged"]
        self.position = state.get("position", self.epoch)
        self._past = dict(state.get("past", {}))
        self.stopped_at = state.get("stopped_at")
        self.curve = [dict(entry) for entry in state["curve"]]
        self.genotype = Genotype.from_json(state["genotype"])
        self.genotype_epoch = state["genotype_epoch"]
        for name, alpha in self.alphas.items():
            self.op_weights[name] = state["op_weights"][name].to(alpha, copy=True)
        self.scores = cloned(state["scores"])
        elsewhere = state["fingerprint"] != asdict(self.fingerprint)
        self.resumed_elsewhere = state["resumed_elsewhere"] or elsewhere

    def _identity(self) -> dict[str, Any]:
        # The content of the data counts, not where it lies.
        data = {"name": self.description["dataset"]["name"], "digest": self.data_digest}
        search = identity_of(self.description["search"])
        return self.description | {"dataset": data, "search": search}

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict` to a file, atomically."""
        save_state(self.state_dict(), path)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file of `save_state`.

        Raises:
            StateError: The file is missing, damaged, or of another search.
        """
        state = load_state(path)
        with taking(path):
            self.load_state_dict(state)

    def final_state(self) -> dict[str, Any]:
        """Return the result for later analysis; `torch.load(weights_only=True)` reads it back."""
        supernet = self._bilevel.supernet
        return {
            "weights": cloned(dict(supernet.named_parameters())),
            "buffers": cloned(dict(supernet.named_buffers())),
            "alphas": cloned(self._bilevel.logits),
            "op_weights": cloned(self.op_weights),
            "scores": cloned(self.scores),
            "stage": self._bilevel.place.index,
            "columns": cloned(self._bilevel.place.columns),
            "stopped_at": self.stopped_at,
            "epoch": self.epoch,
            "position": self.position,
            "genotype": json.dumps(self.genotype.to_json()),
            "settings": json.dumps(self.description),
        }


def _same_columns(one: Mapping[str, Tensor] | None, other: Mapping[str, Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(torch.equal(one[name], other[name]) for name in one)
