"""MLflow: the only module that imports it. `python -m orchestrator.tracking` is the drain process.

The study folder is the truth and MLflow a view of it. `drain` sends what the outbox says is new,
`rebuild` fills a store from the folder alone; both may be repeated at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator import sqlite_store
from orchestrator.errors import StudyError
from orchestrator.holding import locked
from orchestrator.reconciling import STUDY, Finding, compare, mend_runs, repair
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from orchestrator.tracking_follow import follow
from orchestrator.tracking_location import (
    check_uri,
    database_file,
    default_uri,
    has_tables,
    is_database,
    scrubbed,
    store_notice,
    tracking_uri,
    without_password,
)
from orchestrator.tracking_runs import RunRefusedError, StoreDownError, StoredRun
from orchestrator.tracking_view import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "StoreDownError",
    "check_uri",
    "default_uri",
    "drain",
    "prepare_store",
    "rebuild",
    "reconcile",
    "start_drain",
    "store_notice",
    "tracking_uri",
]

# Sending again is the drain's own work: MLflow's seven patient retries would hide an outage, and
# repeat a `create_run` whose answer was lost. Nothing of a study is told to anybody else.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_REFUSED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
_URI = "NAS_DRAIN_URI"
_log = logging.getLogger("orchestrator.tracking")


def drain(
    study_dir: str | os.PathLike[str] | Study, uri: str, *, models: bool | None = None
) -> int:
    """Send what the study's outbox holds to the store; return how many records were sent.

    Args:
        study_dir: The study, or its folder.
        uri: MLflow tracking URI.
        models: Whether retrained networks are sent as models; None is as the experiment says.

    Raises:
        StoreDownError: The store cannot be reached; nothing is lost.
    """
    study = _study(study_dir)
    return _connect(study, uri, models).send()


def rebuild(study: str | os.PathLike[str] | Study, uri: str, *, models: bool | None = None) -> int:
    """Fill the store from the study folder alone; return how many rows it has; see `drain`.

    Raises:
        StoreDownError: The store cannot be reached.
    """
    study = _study(study)
    return _connect(study, uri, models).rebuild()


def reconcile(
    study: str | os.PathLike[str] | Study, uri: str, *, check: bool = False
) -> tuple[list[Finding], list[Finding]]:
    """Compare a study with the store and repair what differs.

    Args:
        study: The study, or its folder.
        uri: MLflow tracking URI.
        check: Whether nothing is changed.

    Returns:
        What was found, and what of it is left.

    Raises:
        StoreDownError: The store cannot be reached.
    """
    study = _study(study)
    if check and database_file(uri) is not None and not has_tables(uri):
        missing = [Finding("missing", key, None) for key in [STUDY, *study.ledger.keys()]]
        return missing, missing  # to open the store would make it
    store = MlflowStore(uri, study)
    if check:
        found = compare(study, store)
        return found, found
    return repair(study, store, without_password(uri))


def mend(study: str | os.PathLike[str] | Study, uri: str) -> list[Finding]:
    """Restore runs of a study that were deleted, delete doubled ones, and return them.

    Raises:
        StoreDownError: The store cannot be reached.
    """
    study = _study(study)
    return mend_runs(study, MlflowStore(uri, study))


def prepare_store(uri: str) -> None:
    """Make the tables of a database store; nothing to do for a server.

    MLflow fails if two processes open an empty database at once, so this is done under a lock,
    before anything else opens it.

    Raises:
        StoreDownError: The database cannot be opened.
    """
    if not is_database(uri):
        return
    file = database_file(uri)
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"nas-store-{os.getuid()}-{name}.lock"
    if file is not None:
        lock = file.with_name(f".{file.name}.lock")
    try:
        with locked(lock), _translated():
            if file is not None:
                with _quiet():
                    sqlite_store.prepare(file)
            _client(uri).search_experiments(max_results=1)
    except OSError as error:
        raise StoreDownError(
            f"cannot make the MLflow store {without_password(uri)}: {error.strerror}."
        ) from error


def start_drain(study: Study, uri: str) -> subprocess.Popen[bytes]:
    """Start the drain process of a study; it follows this process and ends after it.

    Its messages go to the study's `logs/tracking.log`. It leaves by itself soon after the driver's
    last record, so waiting for it shows all of the study in MLflow, or gives up on a store that is
    down.
    """
    arguments = ["--study", os.fspath(study.path), "--follow", str(os.getpid())]
    study.logs.mkdir(parents=True, exist_ok=True)
    package = os.fspath(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with (study.logs / "tracking.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.tracking", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Not among the arguments, which everybody on the machine sees: it may hold a password.
            env={**os.environ, "PYTHONPATH": path, _URI: uri},
            start_new_session=True,  # Ctrl-C is for the driver
        )


def send_later(study: Study, uri: str) -> None:
    """Start a process that sends what is new, such as a report, and wait for nothing."""
    process = start_drain(study, uri)
    if process is not None:  # tests keep MLflow out
        _GOING_ON.append(process)


def wait_a_while(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Return whether a process ends well within so long; one that does not goes on by itself."""
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        _GOING_ON.append(process)
        return False


_GOING_ON: list[subprocess.Popen[bytes]] = []
"""Processes that nobody waits for any more; Python would warn of one that is merely dropped."""


class MlflowStore:
    """The study's experiment in an MLflow store; see `tracking_runs.Store`.

    Args:
        uri: MLflow tracking URI.
        study: Whose experiment it is.
    """

    def __init__(self, uri: str, study: Study) -> None:
        prepare_store(uri)
        self._uri = uri
        self._client = _client(uri)
        self._made: dict[str, str] = {}  # artifact URIs of the runs made here
        # A server knows where its artifacts go. For a database MLflow's own choice would be a
        # folder below whatever the current one is.
        folder = study.root / "mlflow-artifacts" / study.name
        self._artifacts = folder.as_uri() if is_database(uri) else None

    def experiment(self, name: str) -> str:
        """Return the id of the experiment, made if missing."""
        from mlflow.exceptions import MlflowException

        with _translated():
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    created = self._client.create_experiment(name, self._artifacts, _KIND)
                    return str(created)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise StoreDownError(
                f"the MLflow experiment {name!r} is deleted. Restore it (mlflow experiments"
                " restore) or remove it for good (mlflow gc); the study keeps its runs till then."
            )
        return str(found.experiment_id)

    def find_experiment(self, name: str) -> str | None:
        """Return the id of the experiment of that name, or None."""
        with _translated():
            found = self._client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        """Return the study's runs, oldest first."""
        return self._search(experiment_id, study_id, deleted=False)

    def deleted_runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        """Return the study's runs that a person, or a repair, has deleted, oldest first."""
        return self._search(experiment_id, study_id, deleted=True)

    def delete(self, run_id: str) -> None:
        """Delete a run; `mlflow gc` removes it for good."""
        with _translated():
            self._client.delete_run(run_id)

    def restore(self, run_id: str) -> None:
        """Restore a run that was deleted."""
        with _translated():
            self._client.restore_run(run_id)

    def _search(self, experiment_id: str, study_id: str, *, deleted: bool) -> list[StoredRun]:
        from mlflow.entities import ViewType

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        runs: list[StoredRun] = []
        token = None
        while True:
            with _translated():
                page = self._client.search_runs(
                    [experiment_id],
                    filter_string=f"tags.`nas.study_id` = '{study_id}'",
                    run_view_type=view,
                    max_results=1000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            for run in page:
                info, data = run.info, run.data
                name, status, end = info.run_name, info.status, info.end_time
                runs.append(
                    StoredRun(
                        info.run_id, name, status, end, data.tags, data.params.keys(), data.metrics
                    )
                )
            token = page.token
            if not token:
                return runs

    def create(self, experiment_id: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        """Make a run with status RUNNING and return its id."""
        with _translated():
            run = self._client.create_run(experiment_id, start, dict(tags), name)
            run_id = str(run.info.run_id)
            self._made[run_id] = str(run.info.artifact_uri)
            return run_id

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add params and points and set tags, in as few requests as MLflow takes, tags last."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(p.metric, p.value, p.t, p.step) for p in points]
        values = [Param(name, value) for name, value in (params or {}).items()]
        marks = [RunTag(name, value) for name, value in (tags or {}).items()]
        while metrics or values or marks:
            some, few = metrics[:_MOST_METRICS], values[:_MOST_OTHERS]
            metrics, values = metrics[_MOST_METRICS:], values[_MOST_OTHERS:]
            last = [] if metrics or values else marks[:_MOST_OTHERS]
            with _translated(refusable=True):
                self._client.log_batch(run_id, some, few, last)
            marks = marks[len(last) :]

    def steps(self, run_id: str, metrics: Iterable[str]) -> set[int]:
        """Return the steps at which the run has any of the metrics."""
        with _translated(refusable=True):
            return {
                point.step
                for metric in metrics
                for point in self._client.get_metric_history(run_id, metric)
            }

    def upload(self, run_id: str, folder: Path) -> None:
        """Copy the files of a folder to the run's artifacts."""
        made = self._made.get(run_id, "elsewhere://")
        with _translated(refusable=True):
            if urlsplit(made).scheme in _PLAIN_ARTIFACTS:
                from mlflow.store.artifact.artifact_repository_registry import (
                    get_artifact_repository,
                )

                # The client would ask for the whole run, to learn where its artifacts go.
                get_artifact_repository(made, self._uri).log_artifacts(os.fspath(folder))
            else:
                self._client.log_artifacts(run_id, os.fspath(folder))

    def log_model(
        self,
        experiment_id: str,
        run_id: str,
        final: Path,
        *,
        dataset: Mapping[str, Any] | None,
        tags: Mapping[str, str],
        step: int,
    ) -> None:
        """Give a run the network of a `final.pt`, unless it has it."""
        from orchestrator.tracking_models import log_model  # here: it brings torch
        from trainables.exporting import open_retrained

        retrained = open_retrained(final, dataset=dataset)
        with tempfile.TemporaryDirectory() as folder, _translated(refusable=True):
            log_model(
                self._client,
                experiment_id,
                run_id,
                retrained,
                tags=tags,
                step=step,
                scratch=Path(folder),
            )

    def log_dataset(self, run_id: str, dataset: Mapping[str, Any]) -> None:
        """Say which images a run was trained on; MLflow keeps an equal input once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        settings = json.dumps(dict(dataset), sort_keys=True)
        name = str(dataset["name"])
        known = Dataset(
            name=name,
            digest=hashlib.sha256(settings.encode()).hexdigest()[:8],
            source_type="local",
            source=json.dumps({"uri": str(dataset.get("root") or dataset.get("path") or name)}),
            profile=settings,
        )
        context = InputTag("mlflow.data.context", "training")
        with _translated(refusable=True):
            self._client.log_inputs(run_id, [DatasetInput(known, [context])])

    def register(self, experiment_id: str, run_id: str, name: str, tags: Mapping[str, str]) -> None:
        """Make a run's model a version of a registered model, its alias "best"."""
        from orchestrator.tracking_models import register

        with _translated(refusable=True):
            register(self._client, experiment_id, run_id, name, tags)

    def set_status(self, run_id: str, status: str, end: int | None) -> None:
        """Set the run's status, and its end unless None."""
        with _translated(refusable=True):
            if end is None:
                self._client.update_run(run_id, status)
            else:
                self._client.set_terminated(run_id, status, end)


# A request has 1000 entities at most, 100 of them params and 100 tags.
_MOST_METRICS, _MOST_OTHERS = 800, 100
_PLAIN_ARTIFACTS = ("", "file", "mlflow-artifacts")
# MLflow's pages open an experiment of this kind as a table of runs, not of traces.
_KIND = {"mlflow.experimentKind": "custom_model_development"}


def main(arguments: list[str] | None = None) -> int:
    """Run the drain process; return its exit code."""
    parser = argparse.ArgumentParser(description="Send a study to MLflow.")
    parser.add_argument("--study", required=True, help="folder of the study")
    parser.add_argument("--uri", help=f"MLflow tracking URI; otherwise {_URI} has it")
    parser.add_argument("--follow", type=int, help="process id of the driver to follow")
    options = parser.parse_args(arguments)
    uri = options.uri or os.environ[_URI]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver
    with contextlib.suppress(OSError):
        os.nice(10)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        study = Study.open(options.study)
        connect = partial(_connect, study, uri)
        return follow(study, connect, options.follow)
    except StudyError as error:
        _log.error("%s", error)
        return 2


def _connect(study: Study, uri: str, models: bool | None = None) -> Drain:
    return Drain(study, MlflowStore(uri, study), without_password(uri), models=models)


def _study(study: str | os.PathLike[str] | Study) -> Study:
    return study if isinstance(study, Study) else Study.open(study)


def _client(uri: str) -> MlflowClient:
    with _quiet():
        from mlflow import MlflowClient

        return MlflowClient(uri, uri)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MLflow says while it is imported and sets up its tables to itself."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SQLAlchemy, at what MLflow uses
        yield


@contextlib.contextmanager
def _translated(*, refusable: bool = False) -> Iterator[None]:
    # Refusable: a write to one run, which a person may have deleted. Anything else that fails is
    # taken for an outage and tried again.
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        said = scrubbed(str(error)).strip()
        text = said.splitlines()[0] if said else error.error_code
        if refusable and error.error_code in _REFUSED:
            raise RunRefusedError(text) from error
        raise StoreDownError(text) from error
    except (RequestException, SQLAlchemyError) as error:
        raise StoreDownError(scrubbed(f"{type(error).__name__}: {error}")) from error
    except OSError as error:
        # Not the network: a folder of artifacts that cannot be written to from here.
        kind = RunRefusedError if refusable else StoreDownError
        raise kind(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
