"""A tracking store in memory, with no more than a drain needs of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.tracking_runs import StoredRun
from orchestrator.tracking_view import Point


@dataclass
class StoreRun:
    """A run."""

    name: str
    tags: dict[str, str]
    status: str = "RUNNING"
    end: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    points: set[Point] = field(default_factory=set)


class RunStore:
    """See `orchestrator.tracking_runs.Store`.

    Attributes:
        all: Runs by id.
    """

    def __init__(self) -> None:
        self.all: dict[str, StoreRun] = {}

    def experiment(self, name: str) -> str:
        """Return the id of the one experiment."""
        return "1"

    def find_experiment(self, name: str) -> str | None:
        """Return the id of the one experiment."""
        return "1"

    def runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        """Return the study's runs."""
        return [
            StoredRun(
                run_id, run.name, run.status, run.end, dict(run.tags), set(run.params),
                {point.metric: point.value for point in run.points},
            )
            for run_id, run in self.all.items()
            if run.tags.get("nas.study_id") == study_id
        ]  # fmt: skip

    def deleted_runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        """Return none."""
        return []

    def delete(self, run_id: str) -> None:
        """Delete a run."""
        del self.all[run_id]

    def restore(self, run_id: str) -> None:
        """Do nothing: no run comes back."""

    def create(self, experiment_id: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        """Make a run."""
        run_id = f"run{len(self.all)}"
        self.all[run_id] = StoreRun(name, dict(tags))
        return run_id

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add params and points and set tags."""
        run = self.all[run_id]
        run.params |= params or {}
        run.points |= set(points)
        run.tags |= tags or {}

    def steps(self, run_id: str, metrics: Iterable[str]) -> set[int]:
        """Return the steps at which the run has any of the metrics."""
        wanted = set(metrics)
        return {point.step for point in self.all[run_id].points if point.metric in wanted}

    def upload(self, run_id: str, folder: Path) -> None:
        """Take no files."""

    def set_status(self, run_id: str, status: str, end: int | None) -> None:
        """Set the run's status, and its end unless None."""
        run = self.all[run_id]
        run.status, run.end = status, run.end if end is None else end

    def log_dataset(self, run_id: str, dataset: Mapping[str, Any]) -> None:
        """Take no dataset."""

    def register(self, experiment_id: str, run_id: str, name: str, tags: Mapping[str, str]) -> None:
        """Register nothing."""

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
        """Take no network."""
