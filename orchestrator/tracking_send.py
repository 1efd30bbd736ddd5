"""The runs of one study in a tracking store: made once, and brought up to the study folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from orchestrator import history, notices
from orchestrator.ledger import Row, Stage
from orchestrator.oracle import StudyOracle, of_study
from orchestrator.outbox import EPOCH_METRICS
from orchestrator.study import Study
from orchestrator.system_load import EVERY_S
from orchestrator.tracking_notes import row_note, run_link, study_note
from orchestrator.tracking_runs import (
    Run,
    RunRefusedError,
    Store,
    StoreDownError,
    Waiting,
    study_totals,
    write_artifacts,
)
from orchestrator.tracking_view import Point, RunView, digest, flat_params, milliseconds, view_of
from spaces.core.errors import NasError, SpaceError

_NOTE = "mlflow.note.content"
_MODEL, _REPORT = "nas.model", "nas.report"
_log = logging.getLogger(__name__)


class Sender:
    """What a store has of a study, and the writes that are missing there.

    Every write may be repeated. A row's run gets its digest last, so that a row that was sent in
    part is sent again.

    Args:
        study: The study.
        store: The store.

    Attributes:
        parent: Run id of the study itself.
        parent_status: Its MLflow status.
        runs: Runs of rows by key, as far as the store has them.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self._study = study
        self._store = store
        self._experiment_id = ""
        self._report: str | None = None
        self.parent = ""
        self.parent_status = ""
        self.runs: dict[str, Run] = {}

    def load(self) -> None:
        """Look up what the store has; make the study's own run if it is missing."""
        study = self._study
        self._experiment_id = self._store.experiment(study.name)
        self.parent, self.runs, whole, self._report = "", {}, False, None
        for stored in self._store.runs(self._experiment_id, study.id):
            key = stored.tags.get("nas.key")
            if key is not None:
                run = Run(
                    stored.run_id, stored.name, stored.status, stored.end, dict(stored.tags),
                    set(stored.params), dict(stored.metrics), stored.tags.get("nas.row"),
                )  # fmt: skip
                self.runs.setdefault(key, run)
            elif not self.parent:
                self.parent, self.parent_status = stored.run_id, stored.status
                whole = stored.tags.get("nas.row") == self._experiment_mark()
                self._report = stored.tags.get(_REPORT)
        if not self.parent:
            self._make_parent()
        if not whole:
            self._send_experiment()

    def _make_parent(self) -> None:
        study = self._study
        tags = {
            "stage": "study",
            "nas.study_id": study.id,
            "mlflow.source.name": study.command,
            "mlflow.source.type": "LOCAL",
            **notices.tags(study.experiment),
        }
        start = milliseconds(datetime.fromisoformat(study.created).timestamp())
        self.parent = self._store.create(self._experiment_id, study.name, start, tags)
        self.parent_status = "RUNNING"

    def _send_experiment(self) -> None:
        study = self._study
        with tempfile.TemporaryDirectory() as folder, forgiving("of the study itself"):
            for path in (study.experiment_file, study.path / "study.json"):
                (Path(folder) / path.name).write_bytes(path.read_bytes())
            self._store.upload(self.parent, Path(folder))
            self._store.log(self.parent, tags={"nas.row": self._experiment_mark()})

    def _experiment_mark(self) -> str:
        """Return what says that the store has the experiment as it is now."""
        changed = history.count(self._study.path)
        return f"study {changed}" if changed else "study"

    def add_load(self, values: Mapping[str, float], t: float) -> None:
        """Add the load of the driver's machine at unix time `t` to the study's run."""
        begun = datetime.fromisoformat(self._study.created).timestamp()
        step = max(0, int((t - begun) // EVERY_S))
        points = [Point(name, value, milliseconds(t), step) for name, value in values.items()]
        with forgiving("of the study itself"):
            self._store.log(self.parent, points=points)

    def send_report(self) -> None:
        """Give the study's own run the report that is in the folder, if it is another than before.

        Pages, tables and plots go to `report/` of its artifacts.
        """
        folder = self._study.report
        try:
            content = hashlib.sha256((folder / "report.html").read_bytes()).hexdigest()[:16]
        except OSError:
            return  # none has been written
        if content == self._report:
            return
        with tempfile.TemporaryDirectory() as scratch, forgiving("of the study itself"):
            copies = Path(scratch) / "report"
            copies.mkdir()
            for path in sorted(folder.iterdir()):
                if path.suffix in (".html", ".md", ".json", ".png"):
                    (copies / path.name).write_bytes(path.read_bytes())
            self._store.upload(self.parent, Path(scratch))
            self._store.log(self.parent, tags={_REPORT: content})
            self._report = content

    def run_of(self, key: str, head: Row | None) -> Run:
        """Return the run of a row, made if missing; what `head` says of it waits for `flush`.

        Raises:
            ValueError: There is neither a run nor a head.
        """
        run = self.runs.get(key)
        if run is not None:
            if head is not None:
                # A drain killed between making the run and describing it left it without params.
                self._add_params(run, flat_params(head))
            return run
        if head is None:
            raise ValueError(f"row {key} has neither a run nor a head")
        view = self._marked(view_of(head, self._study.id, self.parent))
        tags = {**view.tags, "status": "running"}
        run_id = self._store.create(self._experiment_id, view.name, view.start, tags)
        run = Run(run_id, view.name, "RUNNING", None, tags, set(), {}, steps=set())
        self.runs[key] = run
        self._add_params(run, view.params)
        return run

    def _add_params(self, run: Run, params: Mapping[str, str]) -> None:
        new = {name: value for name, value in params.items() if name not in run.params}
        run.waiting.params |= new
        run.params.update(new)

    def flush(self, run: Run) -> None:
        """Send what waits of a run, in one request; what is refused goes on waiting."""
        waiting = run.waiting
        if waiting:
            points = {(p.metric, p.step): p for p in waiting.points}.values()
            self._store.log(run.run_id, params=waiting.params, points=points, tags=waiting.tags)
            run.waiting = Waiting()

    def steps_of(self, run: Run) -> set[int]:
        """Return the epochs whose points the run has."""
        if run.steps is None:
            stage: Stage = "search" if run.tags["stage"] == "search" else "retrain"
            names = [f"{stage}/{name}" for name in EPOCH_METRICS[stage]]
            run.steps = self._store.steps(run.run_id, [n for n in names if n in run.metrics])
        return run.steps

    def add_points(self, run: Run, points: list[Point]) -> None:
        """Add points of epochs that the store lacks."""
        run.waiting.points += points
        self.steps_of(run).update(p.step for p in points)
        run.metrics.update({p.metric: p.value for p in sorted(points, key=lambda p: p.step)})

    def send_row(self, run: Run, row: Row, points: list[Point]) -> None:
        """Send artifacts and inputs of a row of the ledger; the rest goes out with `describe`.

        Args:
            run: Its run.
            row: The row.
            points: Points of epochs that were reported live and are not in the store.
        """
        view = self._view(row)
        if run.digest == digest(row, self._oracle) and run.status == view.status and not points:
            return
        steps = self.steps_of(run) | {p.step for p in points}
        points = points + [p for p in view.curve if p.step not in steps] + view.totals
        run.waiting.points += points
        run.waiting.tags |= view.tags
        steps.update(p.step for p in view.curve)
        run.steps, run.tags, run.digest = steps, {**run.tags, **view.tags}, None
        run.metrics |= {p.metric: p.value for p in [*view.curve, *view.totals]}
        dataset = row.settings.get("dataset")
        if isinstance(dataset, Mapping) and "name" in dataset and not row.simulated:
            self._store.log_dataset(run.run_id, dataset)
        with tempfile.TemporaryDirectory() as folder:
            write_artifacts(Path(folder), row)
            run.artifacts = False
            with forgiving(f"{row.key}: its artifacts"):
                self._store.upload(run.run_id, Path(folder))
                run.artifacts = True

    def _view(self, row: Row) -> RunView:
        return self._marked(view_of(row, self._study.id, self.parent, self._oracle))

    def _marked(self, view: RunView) -> RunView:
        """Return a view with the tags that every run of the study has."""
        return replace(view, tags=view.tags | notices.tags(self._study.experiment))

    @cached_property
    def _oracle(self) -> StudyOracle | None:
        """The study's oracle, read with the first row that has ended."""
        oracle, reason = of_study(self._study)
        if reason:
            _log.warning("%s", reason)
        return oracle

    def describe(self, keys: Iterable[str]) -> None:
        """Finish the runs of rows just sent, and tell the runs that are linked with them."""
        found: dict[tuple[str, str], list[str]] = {}
        for key, run in self.runs.items():
            if "genotype_hash" in run.tags:
                found.setdefault((run.tags["genotype_hash"], run.tags["stage"]), []).append(key)
        linked: dict[str, list[str]] = {}
        for key in keys:
            tags = self.runs[key].tags if key in self.runs else {}
            other = "retrain" if tags.get("stage") == "search" else "search"
            linked[key] = found.get((tags.get("genotype_hash", ""), other), [])
        for key in list(linked):
            for other in linked[key]:
                if other not in linked and self.runs[other].digest:
                    tags = self.runs[other].tags
                    linked[other] = found.get(
                        (tags["genotype_hash"], self.runs[key].tags["stage"]), []
                    )
        for key, others in linked.items():
            row = self._study.ledger.read(key)
            if row is not None and key in self.runs:
                with forgiving(key):
                    self._finish(self.runs[key], row, others)

    def _finish(self, run: Run, row: Row, related: Iterable[str]) -> None:
        view = self._view(row)
        others = [self.runs[key].outcome() for key in related]
        # Without its artifacts a row is not whole: a rebuild sends it again.
        tags = {"nas.row": digest(row, self._oracle) if run.artifacts else "incomplete"}
        said = notices.notices(self._study.experiment)
        with contextlib.suppress(SpaceError):
            study = run_link(self._experiment_id, self.parent, self._study.name)
            tags[_NOTE] = row_note(row, run.outcome(), others, self._experiment_id, said, study)
        run.waiting.tags |= {n: value for n, value in tags.items() if run.tags.get(n) != value}
        self.flush(run)
        run.tags |= tags
        run.digest = tags["nas.row"]
        if run.status != view.status or run.end != view.end:
            self._store.set_status(run.run_id, view.status, view.end)
            run.status, run.end = view.status, view.end

    def send_model(self, run: Run, row: Row) -> None:
        """Give a retraining's run its network, once; a network that cannot be sent is logged."""
        final = self._study.path / str(row.final)
        try:
            content = hashlib.sha256(final.read_bytes()).hexdigest()[:16]
            if run.tags.get(_MODEL) == content:
                return
            with forgiving(row.key):
                self._store.log_model(
                    self._experiment_id,
                    run.run_id,
                    final,
                    dataset=row.settings.get("dataset"),
                    tags={"nas.key": row.key, _MODEL: content},
                    step=row.epochs_done,
                )
                self._store.log(run.run_id, tags={_MODEL: content})
                run.tags[_MODEL] = content
        except StoreDownError:
            raise
        except (NasError, OSError) as error:
            _log.warning("row %s has no MLflow model: %s", row.key, error)

    def register(self, best: Row) -> None:
        """Make the network of a retraining the best version of the study's registered model."""
        run = self.runs.get(best.key)
        if run is None or _MODEL not in run.tags:
            return
        tags = {"nas.key": best.key, _MODEL: run.tags[_MODEL]}
        with forgiving(best.key):
            self._store.register(self._experiment_id, run.run_id, self._study.name, tags)

    def mark(self, run: Run, status: str) -> None:
        """Set a row without an end to RUNNING or KILLED."""
        word = {"RUNNING": "running", "KILLED": "interrupted"}[status]
        if run.status == status and run.tags.get("status") == word:
            return
        run.waiting.tags["status"] = word
        self.flush(run)
        end = milliseconds(time.time()) if status == "KILLED" else None
        self._store.set_status(run.run_id, status, end)
        run.tags["status"], run.status = word, status

    def send_partial(self, row: Row) -> None:
        """Send what is known of a row that was begun and has no end."""
        run = self.run_of(row.key, row)
        view = self._marked(view_of(replace(row, ended=None), self._study.id, self.parent))
        points = [p for p in view.curve if p.step not in self.steps_of(run)]
        tags = {n: v for n, v in view.tags.items() if n != "status" and run.tags.get(n) != v}
        run.waiting.points += points
        run.waiting.tags |= tags
        self.flush(run)
        self.steps_of(run).update(p.step for p in points)
        run.tags |= tags

    def describe_study(self, status: str) -> None:
        """Set the status, note and totals of the study's own run."""
        runs = list(self.runs.values())
        outcomes = [run.outcome() for run in runs]
        said = notices.notices(self._study.experiment)
        asked = self._study.experiment.question
        said = [*said, *([asked] if asked else [])]
        tags = {_NOTE: study_note(self._study.name, outcomes, self._experiment_id, said)}
        tags["status"] = {"RUNNING": "running", "KILLED": "interrupted"}.get(status, status.lower())
        for name in ("method", "space", "dataset"):
            searches = [run for run in runs if run.tags["stage"] == "search"]
            values = {run.tags[name] for run in searches or runs}
            if values:
                tags[name] = ", ".join(sorted(values))
        # Of rows in the ledger alone: what was interrupted has another end each time it is found.
        end = max((run.end or 0 for run in runs if run.digest), default=0)
        points = [] if status == "RUNNING" else study_totals(outcomes, end)
        with forgiving("of the study itself"):
            self._store.log(self.parent, tags=tags, points=points)
            if status != self.parent_status:
                close = None if status == "RUNNING" else (end or milliseconds(time.time()))
                self._store.set_status(self.parent, status, close)
                self.parent_status = status


@contextlib.contextmanager
def forgiving(key: str) -> Iterator[None]:
    """Log a run's refusal and go on with the others."""
    try:
        yield
    except RunRefusedError as error:
        _log.warning("row %s was left out: %s", key, error)
