"""Runs units on Ray Tune: resources, searcher, scheduler, stopping, and what the driver records.

Every epoch of every trial is in the study folder before Tune hears of it, so a lost, torn or
doubled Tune state cannot lose a trial: a new Tuner can always be made, and trials that have epochs
already report them again before they go on. What Tune knew is restored only where a scheduler has
compared trials (`orchestrator.ray_state`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.draining import Draining
from orchestrator.errors import StudyError
from orchestrator.failures import MOVED, node_died, preempted
from orchestrator.ray_state import LiveObject, NotRestoredError, make_guard, shorten
from orchestrator.watchdog import Watchdog
from spaces.core import plugins

# Set before ray is imported: none of Tune's per-trial files, no usage statistics, no nagging.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# How often Tune saves what it knows, unless the user says: "auto" takes at most 5 % of the time.
# State that nobody will read is not worth even that.
_SAVE_EVERY = "TUNE_GLOBAL_CHECKPOINT_S"
_SAVE_EVERY_GIVEN = os.environ.get(_SAVE_EVERY)
_SAVE_SELDOM_S = "600"

_ANSWER_S = 3.0


def check_address(address: str) -> None:
    """Refuse at once an address that nobody answers at; Ray itself would try for minutes.

    Args:
        address: "local", "auto" or "host:port".

    Raises:
        StudyError: Nothing listens there.
    """
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = target.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise _no_cluster(target, str(error)) from error


def _no_cluster(address: str, why: str) -> StudyError:
    return StudyError(
        f"ray.address: no Ray cluster answers at {address!r} ({why}). Start one with "
        "`ray start --head`, or set ray.address: local."
    )


@contextlib.contextmanager
def cluster(address: str, cpus: int | None, log: Path) -> Iterator[Mapping[str, float]]:
    """Connect to a Ray cluster, or start a local one, and yield its resources.

    Args:
        address: "local" starts one on this machine; "auto" or "host:port" joins one.
        cpus: CPUs that a local one offers; None is all.
        log: File that Ray's own messages go to.

    Raises:
        StudyError: No cluster answers at `address`.
    """
    check_address(address)
    os.environ.update({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()})
    import ray

    _quiet(log)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        options |= {"address": address}
        kept = os.environ.get(plugins.ENVIRONMENT_VARIABLE)
        if kept:  # a copy in the study folder, which every node sees
            options["runtime_env"] = {"env_vars": {plugins.ENVIRONMENT_VARIABLE: kept}}
    # A thread of Ray's prints what it hears of nodes that die, whenever it hears of it.
    with log.open("a") as told, contextlib.redirect_stdout(told):
        started = not ray.is_initialized()
        if started:
            try:
                ray.init(**options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise _no_cluster(address, first) from error
        try:
            yield dict(ray.cluster_resources())
        finally:
            if started:
                ray.shutdown()


class _Quiet(logging.FileHandler):
    """A file of messages that says nothing on the terminal where its disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the message."""


def _quiet(log: Path) -> None:
    """Send the messages of Ray's Python side to a file instead of the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = _Quiet(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("ray")
    logger.handlers[:] = [handler]
    logger.propagate = False


def fits(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many trials of that size run side by side.

    Raises:
        StudyError: Not one of them fits; Ray would wait for ever.
    """
    has_cpus, has_gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus > has_cpus or gpus > has_gpus:
        raise StudyError(
            f"tune.per_trial asks for {cpus:g} CPUs and {gpus:g} GPUs, and the cluster has "
            f"{has_cpus:g} CPUs and {has_gpus:g} GPUs. Lower tune.per_trial (or retrain.workers) "
            "or add a node."
        )
    by_cpu = has_cpus / cpus if cpus > 0 else float("inf")
    by_gpu = has_gpus / gpus if gpus > 0 else float("inf")
    return max(1, int(min(by_cpu, by_gpu, 10_000)))


def make_scheduler(settings: Mapping[str, Any], epochs: int) -> Any:
    """Return the scheduler of `tune.scheduler`, or None.

    Args:
        settings: {"name": "none" | "asha" | "median", ...}.
        epochs: Epochs of a whole search.
    """
    from orchestrator.schedulers import Asha, Median

    name = settings.get("name", "none")
    if name == "asha":
        return Asha(
            time_attr="training_iteration",
            max_t=int(settings.get("max_epochs") or epochs),
            grace_period=int(settings["grace_epochs"]),
            reduction_factor=float(settings["reduction_factor"]),
            stop_last_trials=bool(settings.get("max_epochs")),
        )
    if name == "median":
        return Median(
            time_attr="training_iteration",
            grace_period=float(settings["grace_epochs"]),
            min_samples_required=int(settings["min_trials"]),
        )
    return None


def run_tuner(
    trainable: type,
    searcher: Any,
    scheduler: Any,
    callback: Any,
    *,
    folder: Path,
    num_units: int,
    concurrent: int,
    per_trial: Mapping[str, float],
    metric: str,
    mode: str,
    max_failures: int,
    time_budget_s: float | None,
    driver_metric: bool = False,
    restored: Sequence[str] | None = None,
) -> None:
    """Run one stage to its end, or until it is told to stop (SIGINT, SIGUSR1, the time budget).

    Args:
        trainable: A `BlockTrainable`.
        searcher: Gives the units.
        scheduler: Stops them early, or None.
        callback: Records what happens.
        folder: Where Tune puts its own state.
        num_units: Units at most.
        concurrent: Units side by side.
        per_trial: {"cpu": ..., "gpu": ...} of one unit, or of each of its workers. A unit may have
            GPUs of its own, as `more_room.with_gpus` says.
        metric: Key of the result that searcher and scheduler look at.
        mode: "max" or "min".
        max_failures: Retries of a unit whose process died.
        time_budget_s: Seconds after which everything stops; None is no limit.
        driver_metric: Whether the driver adds `metric` to the results, which lack it when they
            come: Ray is then not to miss it.
        restored: Ids of the trials that are in `folder`, healed and prepared, with which Tune goes
            on; None starts anew in an empty folder.

    Raises:
        NotRestoredError: Tune did not come back with just those trials. Nothing has been run.
    """
    if driver_metric:
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    stateful = getattr(scheduler, "stateful", False)
    os.environ[_SAVE_EVERY] = _SAVE_EVERY_GIVEN or ("auto" if stateful else _SAVE_SELDOM_S)
    from ray import tune

    if restored is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    guard = make_guard(folder, scheduler, restored) if stateful else None
    resourced = tune.with_resources(trainable, functools.partial(_bundles, dict(per_trial)))
    tuner = tune.Tuner(
        resourced,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=max(1, num_units),
            max_concurrent_trials=concurrent,
            metric=metric,
            mode=mode,
            reuse_actors=True,
            time_budget_s=time_budget_s,
            trial_dirname_creator=_short_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            callbacks=[callback] if guard is None else [callback, guard],
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=0, checkpoint_at_end=False
            ),
            verbose=0,
        ),
    )
    with (
        (folder / "driver.log").open("a") as log,
        contextlib.redirect_stdout(log),
    ):
        if restored is None:
            tuner.fit()
        else:
            _go_on(folder, resourced, guard)


def _go_on(folder: Path, trainable: Any, guard: Any) -> None:
    """Run on from the state in `folder`; its `tuner.pkl` is the one just written.

    Raises:
        NotRestoredError: Tune did not come back with the trials that `guard` expects.
    """
    from ray import tune

    try:
        tune.Tuner.restore(str(folder), trainable=trainable, resume_unfinished=True).fit()
    except Exception as error:
        if guard.checked:
            raise
        raise NotRestoredError(f"{type(error).__name__}: {error}") from error
    if not guard.checked:
        raise NotRestoredError("it took all of them for ended")


def _bundles(per_trial: dict[str, float], config: Mapping[str, Any]) -> Any:
    """Return what a trial occupies: as much for each of its workers, as near as possible."""
    from ray import tune

    from trainables.ray_trial import num_workers

    gpus = config.get("unit", {}).get("gpus", per_trial["gpu"])
    bundle = {"CPU": per_trial["cpu"], "GPU": gpus}
    given = {name: value for name, value in bundle.items() if value > 0}
    return tune.PlacementGroupFactory([given] * num_workers(config), strategy="PACK")


def _short_name(trial: Any) -> str:
    """Return a short folder name: paths of sockets and shared file systems are limited."""
    return str(trial.trial_id)


def make_callback(
    *,
    on_result: Callable[[dict[str, Any], dict[str, Any]], None],
    on_end: Callable[[dict[str, Any], dict[str, Any], str | None], None],
    on_tick: Callable[[int], None],
    on_begin: Callable[[], None] = lambda: None,
    on_retry: Callable[[dict[str, Any], str], None] | None = None,
    watchdog: Watchdog | None = None,
    draining: Draining | None = None,
    tick_s: float = 0.5,
) -> Any:
    """Return a Tune callback that hands the driver plain data.

    Args:
        on_result: Called with the configuration and the result of each epoch.
        on_end: Called with the configuration, the last result and the error text, or None, when
            Tune has done with a trial.
        on_tick: Called at most every `tick_s` seconds with the number of running trials.
        on_begin: Called when Tune has set itself up, before its first trial.
        on_retry: Called with the configuration and the error text of a trial that has failed and
            is to start again.
        watchdog: Is told of every epoch, and looks at the trials as often as `on_tick` is called.
        draining: The same, of nodes that are to go.
        tick_s: Seconds between ticks.
    """
    from ray import tune

    class StudyCallback(LiveObject, tune.Callback):
        """Forwards what Tune tells."""

        def __init__(self) -> None:
            self.last_tick = 0.0

        def setup(self, **_: Any) -> None:
            on_begin()

        def on_trial_recover(self, trial: Any, **_: Any) -> None:
            if draining is not None and draining.is_moved(trial):
                return
            error = _error_text(trial)
            # That is no fault of the trial; what Ray knows to be preempted it has not counted.
            if node_died(error) and not preempted(error):
                trial.run_metadata.num_failures = max(0, trial.run_metadata.num_failures - 1)
                trial.run_metadata.invalidate_cache()
            if on_retry is not None:
                on_retry(trial.config, error)

        def on_trial_result(self, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if watchdog is not None:
                watchdog.heard(trial)
            if draining is not None:
                draining.heard(trial, result)
            on_result(trial.config, result)

        def on_trial_complete(self, trial: Any, **_: Any) -> None:
            on_end(trial.config, trial.last_result or {}, None)
            shorten(trial)

        def on_trial_error(self, trial: Any, **_: Any) -> None:
            error = _error_text(trial)
            if draining is not None and draining.is_moved(trial):
                error += f"\n{MOVED}"
            on_end(trial.config, trial.last_result or {}, error)
            shorten(trial)

        def on_step_end(self, trials: Any, **_: Any) -> None:
            if time.monotonic() - self.last_tick >= tick_s:
                self.last_tick = time.monotonic()
                # Nothing else of a tick goes through all trials: there may be thousands.
                running = [trial for trial in trials if trial.status == "RUNNING"]
                if watchdog is not None:
                    watchdog.look(running)
                if draining is not None:
                    draining.look(running)
                on_tick(len(running))

    return StudyCallback()


def _error_text(trial: Any) -> str:
    path = getattr(trial, "error_file", None)
    if path and Path(path).is_file():
        return Path(path).read_text(errors="replace")[-20_000:]
    return "The trial's process died without a traceback."
