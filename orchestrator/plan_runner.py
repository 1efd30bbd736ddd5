"""Runs the plans of a study: on Ray, which is started when the first one needs it, or, for a
simulation, in this process.

A plan says which trials run; it is made, and what comes of it is judged, by the driver. Here is how
they run: scheduler, resources, watchdog, moving, stopping.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from orchestrator import (
    cluster_nodes,
    knowledge,
    more_room,
    node_load,
    planning,
    preflight,
    ray_state,
    restoring,
    sweep,
)
from orchestrator.draining import Draining
from orchestrator.experiment import Experiment
from orchestrator.kept_actors import KeptActors
from orchestrator.monitor import Monitor
from orchestrator.more_room import Room
from orchestrator.oracle_metric import OracleMetric
from orchestrator.packing import Packing
from orchestrator.population_trial import PopulationRetrain
from orchestrator.progress import Reporter, Stage
from orchestrator.restoring import MakePlan, Plan, plan_list
from orchestrator.shown_scheduler import ShownScheduler
from orchestrator.simulated_loop import run_here
from orchestrator.simulating import DEFAULT_CONCURRENT, SimulatedStudy
from orchestrator.stopping import Stopping
from orchestrator.study import Study
from orchestrator.study_trial import StudyRetrain, StudySearch
from orchestrator.units import Unit
from orchestrator.watchdog import Watchdog

OnResult = Callable[[dict[str, Any], dict[str, Any]], None]


@dataclass
class PlanRunner:
    """Runs plans of a study that this process holds.

    Attributes:
        study: The study.
        reporter: Shows what happens.
        stopping: Ends a plan early.
        stack: Ends Ray when it ends.
        started: Unix time in seconds from which `max_hours` counts.
        digest: Content digest of the dataset.
        simulation: The study as a simulation, or None.
        packing: Decides shares of GPUs where the experiment leaves them open, or None.
        oracle_metric: Completes results that the searcher is told, or None.
        concurrent: The most trials that have run side by side.
    """

    study: Study
    reporter: Reporter
    stopping: Stopping
    stack: ExitStack
    started: float
    digest: str
    simulation: SimulatedStudy | None
    packing: Packing | None
    oracle_metric: OracleMetric | None
    concurrent: int = 1
    experiment: Experiment = field(init=False)
    gpus: float = field(init=False)

    def __post_init__(self) -> None:
        self.experiment = self.study.experiment
        self.gpus = self.experiment.tune.per_trial.most_gpus
        self.room: Room | None = None
        self.resources: Mapping[str, float] | None = None

    @contextlib.contextmanager
    def with_room(self, room: Room) -> Iterator[None]:
        """Give each trial more memory meanwhile; no scheduler looks at them."""
        self.room = room
        try:
            yield
        finally:
            self.room = None

    def listed(self, monitor: Monitor, units: Sequence[Unit]) -> MakePlan:
        """Return what plans to run units, each once."""
        return lambda remembered: plan_list(units, self.config, remembered, monitor.ended)

    def run(self, monitor: Monitor, make_plan: MakePlan) -> None:
        """Run a stage: with the trials that Ray Tune had, where they can be restored, or anew."""
        adaptive = self.experiment.tune.scheduler is not None and self.room is None
        swept = monitor.stage == self.experiment.trainable
        on_ray = self.simulation is None or self.simulation.ray
        if adaptive and swept and on_ray:
            folder, told = self.study.ray / monitor.stage, self.reporter.message
            if restoring.go_on(folder, make_plan, lambda plan: self.run_plan(monitor, plan), told):
                return
        self.run_plan(monitor, make_plan(()))

    def run_plan(self, monitor: Monitor, plan: Plan) -> None:
        """Run trials to their ends, or until the study is told to stop."""
        tune = self.experiment.tune
        searching = monitor.stage == "search"
        swept = monitor.stage == self.experiment.trainable
        scheduled = swept and self.room is None
        settings = tune.scheduler.model_dump() if tune.scheduler and scheduled else {}
        scheduler = sweep.make_scheduler(settings, planning.longest_epochs(self.experiment))
        if scheduler is not None:
            partial, events = self.study.partial_rows(), self.study.outbox
            scheduler.recorded = restoring.recorded_epochs(monitor.epochs, partial, events)
        on_result: OnResult = monitor.on_result
        if self.oracle_metric is not None and searching:
            scheduler = ShownScheduler(scheduler, self.oracle_metric.add)
            on_result = self._with_oracle_metric(monitor)
        if self.simulation is not None and not self.simulation.ray:
            self._run_here(monitor, plan.searcher, scheduler, on_result, plan.new)
            return
        scheduler = scheduler or KeptActors()
        resources = self._cluster()
        room = self.room or Room("")
        per_trial = {"cpu": tune.per_trial.cpus, "gpu": room.gpus or self.gpus}
        if self.simulation is not None:
            per_trial = {"cpu": 1, "gpu": 0}  # what is asked for costs a simulated trial nothing
        workers = self.experiment.workers if monitor.stage == "retrain" else 1
        fitting = sweep.fits(resources, *(workers * each for each in per_trial.values()))
        compared = swept and self.experiment.held_out
        concurrent = 1 if room.alone else min(fitting, tune.max_concurrent or fitting)
        self.concurrent = max(self.concurrent, concurrent)
        folder = self.study.ray / (monitor.stage if self.room is None else "more_room")
        if plan.configs:
            ray_state.prepare(folder, plan.configs, plan.ended, new=plan.new, concurrent=concurrent)
        callback = sweep.make_callback(
            on_result=on_result,
            on_end=monitor.on_end,
            on_tick=self._ticking(monitor),
            on_begin=self.stopping.take_over,
            on_retry=monitor.on_retry,
            watchdog=Watchdog(tune.trial_timeout, self.reporter.message, monitor.on_timeout),
            draining=Draining(self.reporter.message, monitor.on_move),
        )
        try:
            with self.stopping.of_tune():
                sweep.run_tuner(
                    self._trainable(monitor.stage),
                    plan.searcher,
                    scheduler,
                    callback,
                    folder=folder,
                    num_units=plan.new,
                    concurrent=concurrent,
                    per_trial=per_trial,
                    metric=tune.metric if compared else "train_accuracy",
                    mode=tune.mode if compared else "max",
                    max_failures=tune.max_failures,
                    time_budget_s=self._time_left(),
                    driver_metric=self.oracle_metric is not None and searching,
                    restored=sorted(plan.configs) or None,
                )
        finally:
            monitor.on_tick(0)
            with contextlib.suppress(OSError):  # a full disk: nothing depends on it
                knowledge.note(folder, plan.searcher, scheduler)

    def _ticking(self, monitor: Monitor) -> Callable[[int], None]:
        """Return what is done again and again while trials run."""
        beat = None if self.simulation is not None else node_load.Beat(self.study.path)

        def on_tick(running: int) -> None:
            monitor.on_tick(running)
            self.stopping.look()
            if beat is not None:
                beat.look()

        return on_tick

    def _with_oracle_metric(self, monitor: Monitor) -> OnResult:
        """Return what completes a result for the searcher, which is told last, and passes it on."""

        def on_result(config: dict[str, Any], result: dict[str, Any]) -> None:
            if self.oracle_metric is not None:
                self.oracle_metric.add(config, result)
            monitor.on_result(config, result)

        return on_result

    def _run_here(
        self, monitor: Monitor, searcher: Any, scheduler: Any, on_result: OnResult, count: int
    ) -> None:
        """Run simulated trials in this process."""
        tune = self.experiment.tune
        run_here(
            self._trainable(monitor.stage),
            searcher,
            scheduler,
            on_result=on_result,
            on_end=monitor.on_end,
            on_tick=self._ticking(monitor),
            num_units=count,
            concurrent=tune.max_concurrent or DEFAULT_CONCURRENT,
            metric=tune.metric,
            mode=tune.mode,
            time_budget_s=self._time_left(),
        )
        monitor.on_tick(0)

    def _trainable(self, stage: Stage) -> type:
        if self.simulation is not None:
            return self.simulation.trainables[stage]
        if self.experiment.tune.pbt is not None:
            return PopulationRetrain
        return StudySearch if stage == "search" else StudyRetrain

    def _cluster(self) -> Mapping[str, float]:
        if self.resources is None:
            settings = self.experiment.ray
            where = "Ray on this machine" if settings.address == "local" else settings.address
            self.reporter.message(f"starting {where}; trials follow in a moment")
            log = self.study.logs / "ray.log"
            cluster = sweep.cluster(settings.address, settings.cpus, log)
            self.resources = self.stack.enter_context(cluster)
            self.stopping.listen()
            self._look_at_nodes()
        return self.resources

    def _look_at_nodes(self) -> None:
        """Refuse a cluster of others on which the study cannot run; say what should be known."""
        if self.experiment.ray.address == "local" or self.simulation is not None:
            return
        nodes = cluster_nodes.ask(self.experiment, self.study.root)
        digest = self.digest
        for sentence in preflight.refuse_cluster(self.experiment, nodes, digest):
            self.reporter.message(sentence)

    def _time_left(self) -> float | None:
        if self.experiment.max_hours is None:
            return None
        return max(1.0, self.experiment.max_hours * 3600 - (time.time() - self.started))

    def config(self, unit: Unit) -> dict[str, Any]:
        """Return the configuration of the Ray trial of a unit."""
        device = "cuda" if self.experiment.tune.per_trial.on_gpu else "cpu"
        config = unit.ray_config(str(self.study.path), device)
        if self.packing is not None:
            config = more_room.with_gpus(config, self.packing.share(unit))
        return config if self.room is None else self.room.applied(config)

    def pack(self, units: Sequence[Unit]) -> None:
        """Find out what share of a GPU units get, where the experiment leaves that open."""
        if self.packing is not None:
            self._cluster()
            self.gpus = self.packing.least(units)
