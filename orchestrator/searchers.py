"""Ray Searchers of a study: a list of known configurations, and Optuna by ask and tell.

Neither keeps state of its own on disk. A study is resumed, repaired after a crash and extended in
one way: both are built anew from the ledger, also where Ray Tune goes on with the trials that it
had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from orchestrator.budget import Budget
from orchestrator.ray_state import LiveObject
from orchestrator.units import Unit
from trainables.worst import worst_value

_OF_AN_EPOCH = ("epoch", "epoch_time_s")
MakeConfig = Callable[[Unit], dict[str, Any]]


class StatelessSearcher(LiveObject, Searcher):
    """A searcher whose state is the ledger; Tune saves nothing of it."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: the ledger is the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Write nothing: the ledger is the state."""

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Read nothing: the ledger is the state."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note of nothing."""


class ListSearcher(StatelessSearcher):
    """Runs a fixed list of units in order (searchers `grid` and `random`, and retraining)."""

    def __init__(self, units: Sequence[Unit], config: MakeConfig) -> None:
        super().__init__()
        self._queue = list(units)
        self._config = config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of the next unit."""
        if not self._queue:
            return Searcher.FINISHED
        return self._config(self._queue.pop(0))


class BudgetSearcher(ListSearcher):
    """Runs a list of units in order for as long as each fits into a budget.

    A unit that does not fit waits for those that run, whose last epochs may be shorter than they
    were taken to be; where nothing runs any more it and all behind it are left out.
    """

    def __init__(self, units: Sequence[Unit], config: MakeConfig, budget: Budget) -> None:
        super().__init__(units, config)
        self._budget = budget
        self._running: dict[str, Unit] = {}
        self.left_out: list[Unit] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of the next unit, or None while it has to wait."""
        if self._queue and not self._budget.fits(self._queue[0], self._running.values()):
            if self._running:
                return None
            self.left_out, self._queue = self._queue, []
        if self._queue:
            self._running[trial_id] = self._queue[0]
        return super().suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take note of an epoch's time; Tune hands results on with flat keys."""
        unit = self._running.get(trial_id)
        for seed, key in unit.rows.items() if unit is not None else ():
            entry = {name: result.get(f"seeds/{seed}/{name}") for name in _OF_AN_EPOCH}
            if None not in entry.values():
                self._budget.note(key, entry)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note of the last epoch's time, and that the unit runs no more."""
        if result is not None:
            self.on_trial_result(trial_id, result)
        self._running.pop(trial_id, None)


@dataclass(frozen=True)
class Known:
    """A configuration that the study has met before.

    Attributes:
        block: Index of its grid block.
        params: Its sampled values.
        config_id: Its identity.
        value: Mean of the metric over its seeds, or None if it has to run (again).
        stopped_at: Epochs after which a scheduler stopped it; None if it came to its own end.
        trial_id: The Ray trial in which it runs already, or None.
    """

    block: int
    params: Mapping[str, Any]
    config_id: str
    value: float | None
    stopped_at: int | None = None
    trial_id: str | None = None


@dataclass
class _BlockState:
    """The Optuna study of one grid block."""

    study: Any
    block: Any
    left: int
    values: dict[str, float] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)


class OptunaSearcher(StatelessSearcher):
    """One `optuna.Study` per grid block, asked in turn, so that each block gets the same budget.

    Differs from Ray's OptunaSearch: the space is conditional, by suggest calls; a configuration
    that a scheduler stopped is told as pruned instead of complete; a non-finite value is told as
    the finite worst instead of leaving its trial running for ever; and the state comes from the
    ledger.

    Args:
        blocks: Grid blocks with their sampled dimensions.
        make_unit: Makes the unit of a configuration.
        config: Makes the Ray configuration of a unit.
        num_samples: Configurations per block.
        metric: Key of the result that is optimised.
        mode: "max" or "min".
        seed: Seed of the sampler.
        known: What the study has met before: those with a value become Optuna trials, those that
            run in Ray are asked at once, the others are asked first.
    """

    MAX_REPEATS = 100

    def __init__(
        self,
        blocks: Sequence[Any],
        *,
        make_unit: Callable[[Any], Unit],
        config: MakeConfig,
        num_samples: int,
        metric: str,
        mode: str,
        seed: int,
        known: Sequence[Known] = (),
    ) -> None:
        import optuna

        from orchestrator import factors

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        super().__init__(metric=metric, mode=mode)
        self._factors = factors
        self._make_unit = make_unit
        self._config = config
        self._trials: dict[str, tuple[_BlockState, Any, Unit]] = {}
        self._blocks: list[_BlockState] = []
        self._turn = 0
        for block in blocks:
            mine = [item for item in known if item.block == block.index]
            sampler = optuna.samplers.TPESampler(seed=seed + len(mine))
            study = optuna.create_study(
                study_name=f"block-{block.index}",
                sampler=sampler,
                direction="maximize" if mode == "max" else "minimize",
            )
            most = factors.size(block)
            left = num_samples if most is None else min(num_samples, most)
            left = left if block.dimensions else 1
            state = _BlockState(study, block, left)
            self._blocks.append(state)
            self._enter(state, mine)

    def _enter(self, state: _BlockState, known: Sequence[Known]) -> None:
        for item in known:
            if item.value is not None:
                self._add(state, item, item.value)
        running = [item for item in known if item.trial_id is not None]
        for item in running:
            state.study.enqueue_trial(dict(item.params))
            self._ask(state, str(item.trial_id))
        for item in known:
            if item.value is None and item not in running:
                state.study.enqueue_trial(dict(item.params), skip_if_exists=True)

    def _add(self, state: _BlockState, item: Known, value: float) -> None:
        import optuna

        distributions = self._factors.distributions(state.block)
        states = optuna.trial.TrialState
        epochs = item.stopped_at
        state.left -= 1
        if epochs is None:
            state.values[item.config_id] = value
        state.study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if epochs is None else states.PRUNED,
                params=dict(item.params),
                distributions={name: distributions[name] for name in item.params},
                value=value,
                intermediate_values={} if epochs is None else {epochs: value},
            )
        )

    def running(self) -> dict[str, Unit]:
        """Return the units that have been asked and not ended, by Ray trial."""
        return {trial_id: unit for trial_id, (_, _, unit) in self._trials.items()}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Ask the block whose turn it is; no configuration is run twice."""
        for _ in self._blocks:
            state = self._blocks[self._turn % len(self._blocks)]
            self._turn += 1
            if state.left <= 0:
                continue
            unit = self._ask(state, trial_id)
            if unit is not None:
                return self._config(unit)
        return Searcher.FINISHED

    def _ask(self, state: _BlockState, trial_id: str) -> Unit | None:
        import optuna

        for _ in range(self.MAX_REPEATS):
            trial = state.study.ask()
            configuration = self._factors.suggest(state.block, trial)
            identity = configuration.config_id
            if identity in state.values:
                state.study.tell(trial, state.values[identity])
                continue
            if identity in state.running.values():
                state.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            state.left -= 1
            state.running[trial_id] = identity
            unit = self._make_unit(configuration)
            self._trials[trial_id] = (state, trial, unit)
            return unit
        state.left = 0  # a small discrete space is used up before num_samples
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a configuration ended."""
        import optuna

        if trial_id not in self._trials:
            return
        state, trial, unit = self._trials.pop(trial_id)
        identity = state.running.pop(trial_id)
        if error or result is None or self.metric not in result:
            state.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        value = finite(result[self.metric], self.metric)
        trial.report(value, int(result["training_iteration"]))
        if result["training_iteration"] < unit.epochs and not result.get("ended", False):
            state.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        state.values[identity] = value
        state.study.tell(trial, value)

    def knowledge(self) -> dict[str, Any]:
        """Return {"complete": [config_id, ...], "pruned": number, "running": number}."""
        import optuna

        pruned = optuna.trial.TrialState.PRUNED
        trials = [trial for state in self._blocks for trial in state.study.trials]
        return {
            "complete": sorted(name for state in self._blocks for name in state.values),
            "pruned": sum(trial.state == pruned for trial in trials),
            "running": len(self._trials),
        }

    @property
    def studies(self) -> list[Any]:
        """The Optuna studies, one per block, in order."""
        return [state.study for state in self._blocks]


def finite(value: Any, metric: str) -> float:
    """Return `value` as a float, or the metric's finite worst value where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else worst_value(metric)
