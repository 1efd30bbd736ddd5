"""Drives a study from its first search to its last retraining, and again after any interruption.

There is one path for a first run, a resume, a crash and an extension: find out which rows the
ledger lacks, run those, record, retrain, report the outcome.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import (
    cleaning,
    costs,
    estimate,
    exporting,
    extending,
    factors,
    growth,
    history,
    node_load,
    planning,
    population_run,
    population_units,
    preflight,
    second_pass,
    sweep,
    tracking,
    training,
    training_estimate,
)
from orchestrator.budget import Budget, Spending, write_spending
from orchestrator.errors import NO_ROOM, StudyError
from orchestrator.experiment import ORACLE_METRICS, Experiment, has_sweep
from orchestrator.ledger import Row
from orchestrator.monitor import Monitor
from orchestrator.notices import notices
from orchestrator.oracle_metric import OracleMetric, filled
from orchestrator.outbox import Outbox, row_record, study_end_record, study_record
from orchestrator.packing import make_packing
from orchestrator.plan_runner import PlanRunner
from orchestrator.progress import Outcome, Reporter, Stage
from orchestrator.ray_state import Remembered
from orchestrator.restoring import Plan, known_to_tune
from orchestrator.searchers import BudgetSearcher, Known, ListSearcher, OptunaSearcher, finite
from orchestrator.simulating import SimulatedStudy
from orchestrator.stopping import StoppedError, Stopping
from orchestrator.study import Study
from orchestrator.study_trial import ENDED
from orchestrator.units import Unit

if TYPE_CHECKING:
    from spaces.core.genotype import Genotype

DRAIN_PATIENCE_S = 15.0
SIMULATED_PATIENCE_S = 5.0
SIMULATED_ALONE_S = 15.0


def run_study(experiment: Experiment, root: Path, *, command: str, reporter: Reporter) -> Outcome:
    """Make a study and run it to its end.

    Args:
        experiment: What to run; data and hardware have been checked.
        root: Folder of studies.
        command: The command line, for the record.
        reporter: Shows the progress.

    Raises:
        StudyError: The study exists already or cannot be written.
    """
    sweep.check_address(experiment.ray.address)  # before there is a study
    for sentence in preflight.refuse(experiment, root):
        reporter.message(sentence)
    study = Study.create(root, experiment, command)
    planning.snapshot_plugins(study.plugins)
    return _Driver(study, reporter, command).run()


def resume_study(study: Study, *, command: str, reporter: Reporter) -> Outcome:
    """Run what a study lacks; finished rows are not run again, failed ones are.

    Raises:
        StudyError: The study is running.
    """
    return _Driver(study, reporter, command).run()


def retrain_study(study: Study, *, command: str, reporter: Reporter) -> Outcome:
    """Retrain the best genotypes of what a study has found so far; runs no search.

    Raises:
        StudyError: The study is running, or its experiment asks for no retraining.
    """
    if study.experiment.training is not None:
        raise StudyError(
            f"study {study.name} is one of retrainings (trainable: retrain): go on with it by "
            f"`nas resume {study.name}`."
        )
    if study.experiment.retrain is None:
        raise StudyError(
            f"study {study.name} has no `retrain` settings. Run its genotype by "
            "`nas retrain GENOTYPE --like FILE` with an experiment that has."
        )
    return _Driver(study, reporter, command).run(stages=("retrain",))


def retrain_genotype(
    genotype: Genotype, experiment: Experiment, root: Path, *, command: str, reporter: Reporter
) -> Outcome:
    """Retrain one genotype in a study of its own, as `experiment.retrain` says.

    Raises:
        StudyError: The study is running, or the experiment has no `retrain` settings.
    """
    if experiment.training is not None:
        raise StudyError(
            f"{experiment.name} sweeps retrainings itself (trainable: retrain): put the genotype "
            "there under `genotype` and start it by `nas run`."
        )
    if experiment.retrain is None:
        raise StudyError(f"{experiment.name} has no `retrain` settings: say how to train.")
    if experiment.retrain.consistent and has_sweep(experiment.search):
        raise StudyError(
            f"{experiment.name} trains as it searches (retrain.consistent), and its search is "
            "swept: fix it with --set, or set retrain.consistent=false."
        )
    with contextlib.suppress(StudyError):
        planning.snapshot_plugins(Study.create(root, experiment, command).plugins)
    study = Study.open(experiment.name, root)
    return _Driver(study, reporter, command, genotype).run(stages=("retrain",))


class _Driver:
    """One run of the driver over a study that it holds."""

    def __init__(
        self,
        study: Study,
        reporter: Reporter,
        command: str,
        genotype: Genotype | None = None,
    ) -> None:
        self.study = study
        self.experiment = study.experiment
        self.reporter = reporter
        self.command = command
        self.genotype = genotype
        self.started = time.time()
        self.stack = ExitStack()
        self.status = "interrupted"
        self.simulation: SimulatedStudy | None = None
        self.spending: Spending | None = None

    def run(self, stages: Sequence[Stage] = ("search", "retrain")) -> Outcome:
        """Run the stages in order; a stage that could not be completed ends the run.

        Raises:
            StudyError: The study is running, or its disk is full.
        """
        try:
            return self._run(stages)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StudyError(
                f"study {self.study.name} cannot be written to: {error.strerror}. What it has is "
                f"safe: make room in {self.study.path}, then `nas resume {self.study.name}`."
            ) from error

    def _run(self, stages: Sequence[Stage]) -> Outcome:
        if self.experiment.trainable == "retrain":
            stages = ("retrain",)
        with self.stack:
            self.stack.enter_context(self.study.hold())
            self.stopping = self.stack.enter_context(Stopping(self.study.path))
            self._note_command()
            node_load.forget(self.study.path)
            self.stack.callback(node_load.forget, self.study.path)  # after Ray has ended
            for sentence in notices(self.experiment):
                self.reporter.message(sentence)
            uri = tracking.tracking_uri(self.experiment, self.study.root)
            digest = planning.plugins_digest()
            packing = None
            if self.study.simulated:
                self.simulation = SimulatedStudy(self.study)
                identity = self.simulation.identity(plugins_digest=digest)
            else:
                packing = make_packing(self.experiment, self.reporter.message)
                identity = planning.identity(self.experiment, plugins_digest=digest)
            self.identity = identity
            metric, oracle = self.experiment.tune.metric, None
            if metric in ORACLE_METRICS:
                oracle = OracleMetric(self.study, metric)
            self.plans = PlanRunner(
                self.study,
                self.reporter,
                self.stopping,
                self.stack,
                self.started,
                digest=str(identity.dataset["digest"]),
                simulation=self.simulation,
                packing=packing,
                oracle_metric=oracle,
            )
            self.outbox = self.stack.enter_context(Outbox(self.study.outbox))
            self.stack.enter_context(self._tracking(uri))
            complete, planned = False, set[str]()
            try:
                complete, planned = self._run_stages(stages)
                self._keep()
            except StoppedError:
                planned = set(self.study.ledger.keys())
            cleaning.tidy(self.study)
            self.status = "finished" if complete else "interrupted"
        return self._outcome(planned, interrupted=not complete)

    def _run_stages(self, stages: Sequence[Stage]) -> tuple[bool, set[str]]:
        """Return whether all has run, and the keys of what was to run."""
        complete, planned = True, set[str]()
        for stage in stages:
            swept = stage == self.experiment.trainable
            keys = self._sweep(stage) if swept else self._retrain()
            if stage == "search":
                self._count_costs()
            planned |= keys
            complete = self._is_complete(keys)
            if not complete:
                break
            self.stopping.check()
        return complete, planned

    def _note_command(self) -> None:
        """Add the command to the list of all that ever worked on the study."""
        self.study.logs.mkdir(parents=True, exist_ok=True)
        with (self.study.logs / "commands.log").open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {self.command}\n")

    @contextlib.contextmanager
    def _tracking(self, uri: str) -> Iterator[None]:
        """Have the outbox drained by a process of its own while the study runs.

        It makes the tables of a new store too. Neither this process nor a worker waits for MLflow
        before the end.
        """
        notice = tracking.store_notice(self.study.root)
        if notice:
            self.reporter.message(notice)
        self.outbox.append(study_record(time.time()))
        drains: list[subprocess.Popen[bytes]] = []

        def start() -> None:
            drains.append(tracking.start_drain(self.study, uri))

        # A short simulation is over before MLflow has its first rows: sending them would slow it.
        timer = threading.Timer(SIMULATED_ALONE_S, start)
        timer.daemon = True
        if self.simulation:
            timer.start()
        else:
            start()
        status = "interrupted"
        try:
            yield
            status = self.status
        finally:
            self.outbox.append(study_end_record(status, time.time()))
            if self.simulation:
                timer.cancel()
                timer.join()
            if not drains:
                start()
            self._await(drains[0])

    def _await(self, drain: subprocess.Popen[bytes]) -> None:
        """Wait for MLflow to show all of the study, but not for long."""
        patience_s = DRAIN_PATIENCE_S if self.simulation is None else SIMULATED_PATIENCE_S
        if not tracking.wait_a_while(drain, patience_s):
            self.reporter.message(
                "MLflow has not got everything yet; a process of its own goes on sending it"
                f" ({self.study.logs / 'tracking.log'}). If MLflow is down, later:"
                f" nas sync {self.study.name}"
            )

    # -- the two stages -----------------------------------------------------------------------

    def _sweep(self, stage: Stage) -> set[str]:
        """Run the configurations that the study compares: searches, or retrainings."""
        experiment = self.experiment
        if experiment.tune.pbt is not None:
            return self._train_populations(stage)
        if experiment.tune.searcher.name == "optuna":
            return self._sweep_optuna(stage)
        configurations = planning.known_configurations(experiment)
        units = self._units(configurations, factors.label(configurations))
        self._relabel(units)
        self._run_list(stage, units)
        return _keys(units)

    def _units(
        self, configurations: Sequence[factors.Configuration], labels: Mapping[str, str]
    ) -> list[Unit]:
        make = planning.search_units
        if self.experiment.training is not None:
            make = training.training_units
        return self._as_simulated(make(self.experiment, configurations, self.identity, labels))

    def _relabel(self, units: Sequence[Unit]) -> None:
        """Let the rows of a study that has grown say what differs in it now."""
        if history.count(self.study.path):
            for key in extending.relabel(self.study, units):
                self.outbox.append(row_record(key, time.time()))

    def _train_populations(self, stage: Stage) -> set[str]:
        plans = population_units.plans(self.experiment, self.identity)
        populations = [population_units.Population(self.study, plan) for plan in plans]
        units = [unit for plan in plans for unit in plan.units()]
        self.plans.pack(units)
        self._relabel(units)
        monitor = population_run.PopulationMonitor(
            self.study, self.outbox, self.reporter, stage, units, len(units), self.started
        )
        population_run.train(
            populations,
            monitor,
            config=self.plans.config,
            run=lambda searcher, count: self.plans.run_plan(monitor, Plan(searcher, count)),
            told=self.reporter.message,
            max_failures=self.experiment.tune.max_failures,
        )
        return _keys(units)

    def _sweep_optuna(self, stage: Stage) -> set[str]:
        experiment = self.experiment
        blocks = factors.blocks(experiment)
        made: dict[str, Unit] = {}

        def make_unit(configuration: factors.Configuration) -> Unit:
            label = blocks[configuration.block].label
            labels = {configuration.config_id: label}
            (unit,) = self._units([configuration], labels)
            made[configuration.config_id] = unit
            monitor.add(unit)
            return unit

        if history.count(self.study.path):
            known = [*self.study.rows(stage), *self.study.partial_rows()]
            self._relabel(self._units_of(blocks, [row for row in known if row.stage == stage]))
        rows = self._rows_by_configuration(blocks, stage)
        wanted = factors.count(experiment, blocks)
        total = wanted * len(experiment.seeds)
        monitor = Monitor(self.study, self.outbox, self.reporter, stage, [], total, self.started)

        monitor.add_rows(self.study.rows(stage))

        def plan(remembered: Sequence[Remembered]) -> Plan:
            known, ended = known_to_tune(
                self._known(rows), remembered, lambda i: self._ended(rows, i)
            )
            searcher = OptunaSearcher(
                blocks,
                make_unit=make_unit,
                config=self.plans.config,
                num_samples=experiment.tune.num_samples,
                metric=experiment.tune.metric,
                mode=experiment.tune.mode,
                seed=experiment.tune.searcher.seed,
                known=known,
            )
            running = searcher.running()
            configs = {trial_id: self.plans.config(unit) for trial_id, unit in running.items()}
            left = wanted - len(configs) - sum(item.value is not None for item in known)
            return Plan(searcher, left, {**dict.fromkeys(ended), **configs}, ended)

        complete = sum(self._is_settled(seeds) for seeds in rows.values())
        if complete < wanted:
            make_units = estimate.units_of if stage == "search" else training_estimate.units_of
            self.plans.pack(make_units(experiment))
            for index, _ in enumerate(monitor.rounds(experiment.tune.max_failures)):
                lost = self._lost(monitor, made.values()) if index else []
                monitor.lost.clear()
                self.plans.run(monitor, self.plans.listed(monitor, lost) if index else plan)
                if not monitor.lost or not _all_ended_or_lost(monitor, made.values()):
                    break
            if _all_ended_or_lost(monitor, made.values()):
                monitor.give_up()
                again = self._again(monitor)
                second_pass.give_room(self.plans, monitor, list(made.values()), again)
        # What was drawn before counts too; what has not been drawn yet is missing all the same.
        keys = {row.key for row in self.study.rows(stage)} | _keys(made.values())
        return keys | {f"not drawn yet {index}" for index in range(total - len(keys))}

    def _lost(self, monitor: Monitor, made: Iterable[Unit]) -> list[Unit]:
        """Return what is run again after trials were lost before they ran.

        The searcher has nothing to say any more: all configurations have been drawn. A scheduler
        sees those that ended report again, where Tune's own trials cannot be restored.
        """
        made = list(made)
        if self.experiment.tune.scheduler is None:
            return [unit for unit in made if monitor.is_lost(unit)]
        return [unit for unit in made if monitor.is_lost(unit) or not monitor.failed(unit)]

    def _rows_by_configuration(
        self, blocks: Sequence[factors.Block], stage: Stage
    ) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in filled(self.study, [*self.study.rows(stage), *self.study.partial_rows()]):
            if row.stage == stage and row.block < len(blocks):
                found.setdefault(row.config_id, []).append(row)
        return found

    def _units_of(self, blocks: list[factors.Block], rows: Sequence[Row]) -> list[Unit]:
        """Return the units of configurations that an Optuna study has drawn before."""
        drawn = {row.config_id: row for row in rows}
        found = (growth.located(blocks, row) for row in drawn.values())
        configurations = [item for item in found if item is not None]
        labels = {item.config_id: blocks[item.block].label for item in configurations}
        return self._units(configurations, labels)

    def _is_settled(self, rows: Sequence[Row]) -> bool:
        """Return whether every seed of a configuration has come to an end of its own."""
        settled = [row for row in rows if row.status in ENDED or row.status == "stopped"]
        return len(settled) == len(self.experiment.seeds)

    def _ended(self, rows: Mapping[str, Sequence[Row]], config_id: str) -> Known | None:
        """Return a configuration that has ended in all its seeds, with its value."""
        seeds = rows.get(config_id, ())
        if not self._is_settled(seeds):
            return None
        first = seeds[0]
        value = sum(self._value(row) for row in seeds) / len(seeds)
        stopped = [row.epochs_done for row in seeds if row.status == "stopped"]
        return Known(first.block, first.params, config_id, value, max(stopped, default=None))

    def _known(self, configurations: Mapping[str, Sequence[Row]]) -> list[Known]:
        """Return what the searcher has to know of earlier configurations."""
        tune = self.experiment.tune
        known = []
        for identity, rows in configurations.items():
            # With a scheduler ended ones run through Tune again, to fill its rungs.
            ended = self._ended(configurations, identity) if tune.scheduler is None else None
            if ended is not None:
                known.append(replace(ended, stopped_at=None))
            else:
                known.append(Known(rows[0].block, rows[0].params, identity, None))
        return known

    def _value(self, row: Row) -> float:
        metric = self.experiment.metric_of(self.experiment.trainable)
        value = row.value(metric) if row.status != "diverged" else None
        return finite(math.nan if value is None else value, metric)

    def _retrain(self) -> set[str]:
        if self.genotype is not None:
            units = planning.genotype_units(
                self.experiment,
                self.genotype.to_json(),
                self.genotype.hash,
                space=self.experiment.settings("space"),
                search=self.experiment.search,
                label=self.genotype.hash,
                method="given",
                identity=self.identity,
            )
        else:
            self._count_costs()
            rows = filled(self.study, self.study.rows("search"))
            self._tell_limits(rows)
            units = planning.retrain_units(self.experiment, rows, self.identity)
        units = self._as_simulated(units)
        budget = self._budget(units)
        left_out = self._run_list("retrain", units, budget)
        self.spending = budget.spending(left_out) if budget is not None else None
        write_spending(self.study.path, self.spending)
        return _keys(units) - _keys(left_out)

    def _budget(self, units: Sequence[Unit]) -> Budget | None:
        retrain = self.experiment.retrain
        if retrain is None or retrain.budget_hours is None or self.simulation is not None:
            return None
        rows = [*self.study.rows("retrain"), *self.study.partial_rows()]
        return Budget(retrain.budget_hours, units, [r for r in rows if r.stage == "retrain"])

    def _count_costs(self) -> None:
        """Have every finished search know what its genotype's evaluation network costs."""
        if self.simulation is not None and self.experiment.limits is None:
            return  # thousands of networks would take longer than their simulated searches
        for row in costs.fill(self.study):
            self.outbox.append(row_record(row.key, time.time()))

    def _tell_limits(self, rows: Sequence[Row]) -> None:
        limits = self.experiment.limits
        over = [row for row in costs.found(rows) if limits and not planning.fits(row, limits)]
        if over:
            self.reporter.message(
                f"over the limits, and so not retrained: {len(over)} of the genotypes found; "
                "the report lists them"
            )

    def _as_simulated(self, units: list[Unit]) -> list[Unit]:
        return units if self.simulation is None else self.simulation.units(units)

    # -- running ------------------------------------------------------------------------------

    def _run_list(
        self, stage: Stage, units: Sequence[Unit], budget: Budget | None = None
    ) -> list[Unit]:
        """Run units in order; return those that were left out for the budget."""
        left_out: list[Unit] = []
        total = len(_keys(units))
        monitor = Monitor(self.study, self.outbox, self.reporter, stage, units, total, self.started)
        replay = stage == self.experiment.trainable and self.experiment.tune.scheduler is not None
        # Tune gives up a trial whose process dies before it is running, whatever max_failures says.
        for _ in monitor.rounds(self.experiment.tune.max_failures):
            monitor.lost.clear()
            left = [unit for unit in units if not monitor.ended(unit)]
            if budget is not None:
                left_out = self._run_within(budget, monitor, left)
            elif left:
                todo = list(units) if replay else left
                self.plans.pack(todo)
                self.plans.run(monitor, self.plans.listed(monitor, todo))
            if not monitor.lost:
                break
            dropped = _keys(left_out)
            if not _all_ended_or_lost(monitor, (u for u in units if not dropped & _keys([u]))):
                return left_out  # interrupted: a resume runs the lost ones too
        monitor.give_up()
        dropped = _keys(left_out)
        ran = [unit for unit in units if not dropped & _keys([unit])]
        left_out += second_pass.give_room(self.plans, monitor, ran, self._again(monitor, budget))
        if left_out:
            monitor.leave_out(_keys(left_out))
        return left_out

    def _run_within(self, budget: Budget, monitor: Monitor, left: list[Unit]) -> list[Unit]:
        """Run units for as long as they fit; return those that do not."""
        if not left or not budget.fits(left[0]):
            return left  # known without starting Ray
        self.plans.pack(left)
        searcher = BudgetSearcher(left, self.plans.config, budget)
        self.plans.run(monitor, lambda _: Plan(searcher, len(left)))
        return searcher.left_out

    def _again(
        self, monitor: Monitor, budget: Budget | None = None
    ) -> Callable[[list[Unit]], list[Unit]]:
        """Return what runs units a second time, and returns those left out for the budget."""

        def run(units: list[Unit]) -> list[Unit]:
            if budget is not None:
                return self._run_within(budget, monitor, units)
            self.plans.run_plan(monitor, Plan(ListSearcher(units, self.plans.config), len(units)))
            return []

        return run

    # -- the end ------------------------------------------------------------------------------

    def _is_complete(self, keys: set[str]) -> bool:
        """Return whether every row has come to an end of its own, a bad one included."""
        return keys <= set(self.study.ledger.keys())

    def _keep(self) -> None:
        """Remove the final states that `keep` and `retrain.keep` do not name."""
        kept, retrain = self.experiment.kept, self.experiment.retrain
        if kept is not None:
            sign = 1.0 if self.experiment.tune.mode == "max" else -1.0
            rows = filled(self.study, self.study.rows(self.experiment.trainable))
            rows = [row for row in rows if row.final is not None]
            rows.sort(key=lambda row: -sign * self._value(row))
            self._forget(rows[kept:])
        if retrain is not None and retrain.kept is not None:
            retrained = exporting.stored(self.study)
            self._forget(exporting.best_first(retrained, self.study.rows("search"))[retrain.kept :])

    def _forget(self, rows: Sequence[Row]) -> None:
        for row in rows:
            (self.study.path / str(row.final)).unlink(missing_ok=True)

    def _outcome(self, planned: set[str], *, interrupted: bool) -> Outcome:
        statuses = [row.status for row in self.study.ledger.iterate() if row.key in planned]
        return Outcome(
            study_name=self.study.name,
            finished=statuses.count("finished"),
            failed=statuses.count("failed") + statuses.count("oom"),
            stopped=statuses.count("stopped"),
            diverged=statuses.count("diverged"),
            interrupted=interrupted,
            left_out=len(self.spending.left_out) if self.spending is not None else 0,
            stopped_by=self.stopping.reason if interrupted else None,
        )


def _all_ended_or_lost(monitor: Monitor, units: Iterable[Unit]) -> bool:
    """Return whether nothing was interrupted."""
    return all(monitor.ended(unit) or monitor.is_lost(unit) for unit in units)


def _keys(units: Any) -> set[str]:
    return {key for unit in units for key in unit.rows.values()}
