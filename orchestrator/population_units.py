"""The populations of a study in its folder: what each has to run, and what it decides next."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import factors
from orchestrator.experiment import Experiment, Pbt
from orchestrator.ledger import Row, read_row, row_key
from orchestrator.pbt_section import setting
from orchestrator.planning import Identity, recorded
from orchestrator.population import Generation, Part, Rules, history, selected
from orchestrator.population_file import (
    FOLDER,
    Snapshot,
    read_snapshot,
    state_name,
    write_snapshot,
)
from orchestrator.study_trial import ENDED
from orchestrator.sweep_words import canonical
from orchestrator.units import Unit
from spaces.core import plugins
from spaces.core.genotype import Genotype
from trainables.settings import RetrainSettings, identifying

if TYPE_CHECKING:
    from orchestrator.study import Study


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a population is, wherever and however far it has run.

    Attributes:
        block: Its grid block.
        seed: Its seed: of initial weights, held-out images and batches, so that its members differ
            in the drawn settings alone.
        first: Settings that the members begin with.
        rules: How it goes on.
        epochs: Epochs of a whole retraining.
        metric: Value of the validation split that members are compared by.
        keys: Ledger key of each member.
        config_ids: What each member has in common with that of other seeds.
        extra: What every row records besides.
    """

    block: factors.Block
    seed: int
    first: tuple[Part, ...]
    rules: Rules
    epochs: int
    metric: str
    keys: tuple[str, ...]
    config_ids: tuple[str, ...]
    extra: dict[str, Any]

    @property
    def id(self) -> str:
        """16 hexadecimal characters, of the keys of its rows."""
        return hashlib.sha256(" ".join(self.keys).encode()).hexdigest()[:16]

    def label(self, member: int) -> str:
        """Return what tables call a member."""
        return f"{self.block.label} member {member}"

    def end(self, index: int) -> int:
        """Return the epochs done after a generation."""
        return min((index + 1) * self.rules.pbt.every, self.epochs)

    @property
    def generations(self) -> int:
        """Number of generations."""
        return -(-self.epochs // self.rules.pbt.every)

    def units(self) -> list[Unit]:
        """Return the members as they begin."""
        begun = (Generation(0, self.first),)
        return [self.unit(begun, member) for member in range(len(self.keys))]

    def unit(self, generations: Sequence[Generation], member: int) -> Unit:
        """Return a member's part in the last of these generations."""
        tree, index = self.block.tree, len(generations) - 1
        part = generations[index].parts[member]
        drawn = [setting(dimension) for dimension in self.rules.dimensions]
        genotype = Genotype.from_json(tree["genotype"])
        source = None if part.copied_from is None else self.keys[part.copied_from]
        of_population = self.rules.pbt.model_dump(exclude={"name"}, mode="json")
        return Unit(
            stage="retrain",
            settings={
                **tree,
                "genotype": genotype.to_json(),
                "retrain": {**tree["retrain"], **part.settings},
            },
            rows={self.seed: self.keys[member]},
            config_id=self.config_ids[member],
            block=self.block.index,
            params={},
            label=self.label(member),
            epochs=self.epochs,
            extra={
                **self.extra,
                "genotype_hash": genotype.hash,
                "method": "given",
                "generation": {
                    "index": index,
                    "start": generations[index].start,
                    "end": self.end(index),
                    "source": source,
                    "copied": part.copied_from,
                    "history": history(generations, member),
                    "drawn": {name: tree["retrain"][name] for name in drawn},
                    "pbt": {**of_population, "mutations": [*self.rules.mutated], "member": member},
                },
            },
        )


def plans(experiment: Experiment, identity: Identity) -> list[Plan]:
    """Return the populations of an experiment: one for each grid block and seed."""
    pbt = experiment.tune.pbt
    if pbt is None:
        return []
    drawn: dict[int, list[factors.Configuration]] = {}
    for configuration in factors.configurations(experiment):
        drawn.setdefault(configuration.block, []).append(configuration)
    return [
        _plan(experiment, pbt, identity, block, drawn[block.index], seed)
        for seed in experiment.seeds
        for block in factors.blocks(experiment)
    ]


def _plan(
    experiment: Experiment,
    pbt: Pbt,
    identity: Identity,
    block: factors.Block,
    first: Sequence[factors.Configuration],
    seed: int,
) -> Plan:
    names = [setting(dimension) for dimension in block.dimensions]
    parts = tuple(
        Part({name: configuration.settings["retrain"][name] for name in names})
        for configuration in first
    )
    searcher, tune = experiment.tune.searcher, experiment.tune
    rules = Rules(pbt, block.dimensions, (searcher.seed, seed), tune.mode)
    training = plugins.typed_config(
        RetrainSettings, first[0].settings["retrain"], where="retrain", owner="retrain"
    )
    fixed = {key: item for key, item in identifying(training).items() if key not in names}
    whole = {
        "genotype": Genotype.from_json(block.tree["genotype"]).hash,
        "space": block.tree["space"]["name"],
        "retrain": fixed,
        "drawn": canonical({name: block.tree["retrain"][name] for name in names}),
        "pbt": {**pbt.model_dump(mode="json"), "mutations": [*rules.mutated]},
        "draws": searcher.seed,
        "metric": [tune.metric, tune.mode],
        "dataset": dict(identity.dataset),
        "plugins": identity.plugins,
    }
    members = [{**whole, "member": member} for member in range(len(parts))]
    return Plan(
        block=block,
        seed=seed,
        first=parts,
        rules=rules,
        epochs=training.epochs,
        metric=tune.metric,
        keys=tuple(row_key("retrain", {**member, "seed": seed}) for member in members),
        config_ids=tuple(row_key("retrain", member)[:10] for member in members),
        extra=recorded(identity),
    )


class Population:
    """A population of a study, which this process holds.

    Args:
        study: The study.
        plan: What the population is.

    Raises:
        StudyError: Its snapshot is damaged.
    """

    def __init__(self, study: Study, plan: Plan) -> None:
        self.plan = plan
        self._study = study
        self._file = study.path / FOLDER / f"{plan.id}.json"
        snapshot = read_snapshot(self._file)
        if snapshot is None:
            self._clear()
            self.generations: tuple[Generation, ...] = ()
            self._commit((Generation(0, plan.first),))
        else:
            self.generations = snapshot.generations
            self._forget()

    @property
    def name(self) -> str:
        """What tells it from other populations."""
        return f"population {self.plan.block.label} seed {self.plan.seed}"

    def said(self) -> str:
        """Return a line on the last generation that has ended, and on who copies whom."""
        generations = [each for each in self.generations if each.values is not None]
        values, plan = generations[-1].values or (), self.plan
        line = f"{self.name}: epoch {plan.end(len(generations) - 1)} of {plan.epochs}"
        _, best = selected(values, plan.rules.pbt.quantile, plan.rules.mode)
        if not best:
            return f"{line}, all members diverged"
        line += f", best {plan.metric} {values[best[0]]:.4f} (member {best[0]})"
        if self.over:
            return line
        copies = [
            f"{member} copies {part.copied_from}"
            for member, part in enumerate(self.generations[-1].parts)
            if part.copied_from is not None
        ]
        return f"{line}; {', '.join(copies)}"

    @property
    def index(self) -> int:
        """Number of the generation that is under way, or was the last."""
        return len(self.generations) - 1

    @property
    def over(self) -> bool:
        """Whether there is nothing left to run."""
        values = self.generations[-1].values
        return values is not None

    def units(self) -> list[Unit]:
        """Return what the generation under way still lacks."""
        if self.over:
            return []
        return [
            self.plan.unit(self.generations, member)
            for member, value in enumerate(self._ends())
            if value is None
        ]

    @property
    def left(self) -> int:
        """Units that are left to run, of all generations."""
        if self.over:
            return 0
        later = self.plan.generations - len(self.generations)
        return len(self.units()) + later * len(self.plan.keys)

    def advance(self) -> bool:
        """Decide the next generation and commit it, if all members are through with this one.

        Returns:
            Whether anything was committed.
        """
        ends = self._ends()
        if self.over or any(end is None for end in ends):
            return False
        current = dataclasses.replace(
            self.generations[-1], values=tuple(end.value for end in ends if end is not None)
        )
        done = (*self.generations[:-1], current)
        if self.plan.end(self.index) == self.plan.epochs:
            self._commit(done)
            return True
        parts = self.plan.rules.next_parts(current, len(done))
        if parts is None:
            self._write_diverged()
            self._commit(done)
        else:
            self._commit((*done, Generation(self.plan.end(self.index), parts)))
        return True

    def _ends(self) -> list[_End | None]:
        """Return how each member stands at the end of this generation; None where it is not."""
        end = self.plan.end(self.index)
        last = end == self.plan.epochs
        return [self._end(key, end, last=last) for key in self.plan.keys]

    def _end(self, key: str, end: int, *, last: bool) -> _End | None:
        row = self._row(key)
        if row is None:
            return None
        if last:
            # Only then is a row in the ledger, and with its weights.
            if row.status not in ENDED:
                return None
            return _End(None if row.status == "diverged" else row.value(self.plan.metric))
        if len(row.curve) < end:
            return None
        entry = row.curve[end - 1]
        return _End(None if entry.get("diverged") else entry.get(self.plan.metric))

    def _row(self, key: str) -> Row | None:
        row = self._study.ledger.read(key)
        if row is not None and row.status in ENDED:
            return row
        with contextlib.suppress(ValueError):  # damaged: the generation runs again
            return read_row(self._folder(key) / "row.json")
        return None

    def _folder(self, key: str) -> Path:
        return self._study.checkpoints / key

    def _commit(self, generations: tuple[Generation, ...]) -> None:
        plan = self.plan
        snapshot = Snapshot(plan.block.label, plan.seed, plan.epochs, generations)
        write_snapshot(self._file, snapshot)
        self.generations = generations
        self._forget()

    def _forget(self) -> None:
        """Remove the states that nothing goes on from any more: after the commit, never before."""
        kept = {state_name(index) for index in (self.index - 1, self.index) if not self.over}
        for key in self.plan.keys:
            for path in self._folder(key).glob(state_name("*")):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove what is left of a population whose snapshot is gone."""
        for key in self.plan.keys:
            for path in (self._folder(key) / "row.json", *self._folder(key).glob("*.pt")):
                if path.name != "final.pt":
                    path.unlink(missing_ok=True)

    def _write_diverged(self) -> None:
        for key in self.plan.keys:
            row = self._row(key)
            if row is not None and row.status not in ENDED:
                ended = dataclasses.replace(row, status="diverged", ended=time.time())
                self._study.ledger.write(ended)
                (self._folder(key) / "row.json").unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _End:
    """A member's value at the end of a generation; None where it diverged."""

    value: float | None
