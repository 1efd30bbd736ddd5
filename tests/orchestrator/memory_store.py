"""A tracking store in memory that keeps MLflow's rules and can be killed at any call."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.tracking_runs import RunRefusedError, StoreDownError, StoredRun
from orchestrator.tracking_view import Point
from trainables.errors import StateError


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the code under test may catch it."""


@dataclass
class MemoryRun:
    """A run; `points` is a set, since MLflow keeps an equal point once."""

    name: str
    start: int
    tags: dict[str, str]
    status: str = "RUNNING"
    end: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    points: set[Point] = field(default_factory=set)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)

    def metrics(self) -> dict[str, float]:
        """Return the last value of each metric, as MLflow does: of the last step and time."""
        ordered = sorted(self.points, key=lambda p: (p.step, p.t))
        return {p.metric: p.value for p in ordered}


class MemoryStore:
    """See `orchestrator.tracking_runs.Store`.

    Attributes:
        calls: Calls so far.
        kill_at: Call at which `error` is raised, or None.
        after: Whether that call takes effect before.
        given: Run, metric and step of each point, as often as it was sent.
    """

    def __init__(self) -> None:
        self.all: dict[str, MemoryRun] = {}
        self.deleted: set[str] = set()
        self.registered: dict[str, str] = {}
        self.calls = 0
        self.given: list[tuple[str, str, int]] = []
        self.kill_at: int | None = None
        self.after = False
        self.error: BaseException = KilledError()
        self.mutex = threading.RLock()

    def _call(self, effect: Any) -> Any:
        with self.mutex:
            self.calls += 1
            killed = self.calls - 1 == self.kill_at
            if killed and not self.after:
                raise self.error
            result = effect()
            if killed:
                raise self.error
            return result

    def _open(self, run_id: str) -> MemoryRun:
        if run_id in self.deleted:
            raise RunRefusedError(f"the run {run_id} must be in the 'active' state")
        return self.all[run_id]

    def experiment(self, name: str) -> str:
        return str(self._call(lambda: "1"))

    def find_experiment(self, name: str) -> str | None:
        return "1" if self._call(lambda: bool(self.all)) else None

    def runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        return self._runs(study_id, deleted=False)

    def deleted_runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        return self._runs(study_id, deleted=True)

    def delete(self, run_id: str) -> None:
        self._call(lambda: self.deleted.add(run_id))

    def restore(self, run_id: str) -> None:
        self._call(lambda: self.deleted.discard(run_id))

    def _runs(self, study_id: str, *, deleted: bool) -> list[StoredRun]:
        def effect() -> list[StoredRun]:
            return [
                StoredRun(run_id, r.name, r.status, r.end, dict(r.tags), set(r.params), r.metrics())
                for run_id, r in self.all.items()
                if r.tags.get("nas.study_id") == study_id and (run_id in self.deleted) == deleted
            ]

        found: list[StoredRun] = self._call(effect)
        return found

    def create(self, experiment_id: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        def effect() -> str:
            run_id = f"run{len(self.all)}"
            self.all[run_id] = MemoryRun(name, start, dict(tags))
            return run_id

        return str(self._call(effect))

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        def effect() -> None:
            run = self._open(run_id)
            for name, value in (params or {}).items():
                if run.params.setdefault(name, value) != value:
                    raise RunRefusedError("Changing param values is not allowed")
            added = list(points)
            self.given += [(run_id, point.metric, point.step) for point in added]
            run.points |= set(added)
            run.tags |= tags or {}

        self._call(effect)

    def steps(self, run_id: str, metrics: Iterable[str]) -> set[int]:
        def effect() -> set[int]:
            wanted = set(metrics)
            return {p.step for p in self._open(run_id).points if p.metric in wanted}

        found: set[int] = self._call(effect)
        return found

    def upload(self, run_id: str, folder: Path) -> None:
        def effect() -> None:
            run = self._open(run_id)
            files = (path for path in folder.rglob("*") if path.is_file())
            run.artifacts |= {str(p.relative_to(folder)): p.read_bytes() for p in files}

        self._call(effect)

    def log_dataset(self, run_id: str, dataset: Mapping[str, Any]) -> None:
        self._call(lambda: self._open(run_id).datasets.add(str(dataset["name"])))

    def register(self, experiment_id: str, run_id: str, name: str, tags: Mapping[str, str]) -> None:
        def effect() -> None:
            self.registered[name] = self._open(run_id).tags["nas.key"]

        self._call(effect)

    def set_status(self, run_id: str, status: str, end: int | None) -> None:
        def effect() -> None:
            run = self._open(run_id)
            run.status = status
            run.end = run.end if end is None else end

        self._call(effect)

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
        def effect() -> None:
            if final.read_bytes() == b"damaged":
                raise StateError(f"{final} is no readable stored state.")
            self._open(run_id).models[tags["nas.model"]] = step

        self._call(effect)

    def picture(self) -> dict[str, dict[str, Any]]:
        """Return all that a person would see, by row key; the study's own run is "study".

        Raises:
            AssertionError: A row or a study has two runs, or a step of a metric two points.
        """
        names = {run_id: run.name for run_id, run in self.all.items()}
        shown: dict[str, dict[str, Any]] = {}
        for run_id, run in self.all.items():
            if run_id in self.deleted:
                continue
            key = run.tags.get("nas.key", "study")
            assert key not in shown, f"two runs of {key}"
            places = [(p.metric, p.step) for p in run.points]
            assert len(places) == len(set(places)), f"two points at a step: {sorted(places)}"
            tags = dict(run.tags)
            for other, name in sorted(names.items(), key=lambda item: -len(item[0])):
                tags = {n: v.replace(other, name) for n, v in tags.items()}
            shown[key] = {
                "name": run.name,
                "status": run.status,
                "tags": tags,
                "params": run.params,
                "metrics": {(p.metric, p.step): p.value for p in run.points},
                "artifacts": run.artifacts,
                "datasets": sorted(run.datasets),
            }
        return shown


DOWN = StoreDownError("connection refused")
