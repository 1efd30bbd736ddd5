"""What a running study tells its display, and what it ends with. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Stage = Literal["search", "retrain"]


@dataclass(frozen=True)
class Progress:
    """Where a stage of a study stands.

    Attributes:
        stage: "search" or "retrain".
        total: Rows that the stage has.
        done: Rows that reached an end of any kind.
        running: Rows that are being trained now.
        failed: Rows of `done` that failed, diverged or ran out of memory.
        stopped: Rows of `done` that a scheduler stopped early.
        best: Best value of the study's metric so far, or None.
        best_label: Row label of the best value.
        metric: What the best value is of, such as "val_accuracy".
        elapsed_s: Seconds since the command started.
        left_s: Estimated seconds to the end of the stage, or None while unknown.
    """

    stage: Stage
    total: int
    done: int = 0
    running: int = 0
    failed: int = 0
    stopped: int = 0
    best: float | None = None
    best_label: str = ""
    metric: str = "val_accuracy"
    elapsed_s: float = 0.0
    left_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a command on a study ended: rows of both stages by status.

    Attributes:
        study_name: Name of the study.
        finished: Rows that ran all their epochs.
        failed: Rows that raised an error or ran out of memory.
        stopped: Rows that a scheduler or the time limit stopped.
        diverged: Rows whose loss became infinite or NaN.
        interrupted: Whether the study is incomplete and can be resumed.
        left_out: Retrainings that `retrain.budget_hours` left out.
        stopped_by: What told the study to stop: "Ctrl-C", "nas stop", "SIGTERM", "SIGUSR1" or None.
    """

    study_name: str
    finished: int = 0
    failed: int = 0
    stopped: int = 0
    diverged: int = 0
    interrupted: bool = False
    left_out: int = 0
    stopped_by: str | None = None


@dataclass(frozen=True)
class TrialPlan:
    """One row that a run would start.

    Attributes:
        label: Row label, what differs between configurations.
        seed: Its seed.
        config_id: Its configuration.
        cached: Whether the ledger holds its result already.
    """

    label: str
    seed: int
    config_id: str
    cached: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a dry run found out; nothing was started.

    Attributes:
        trials: Planned searches, or swept retrainings: one per configuration and seed.
        stage: Which of both they are.
        cpus_per_trial, gpus_per_trial: Resources asked for.
        cluster_cpus, cluster_gpus: Resources that there are.
        concurrent: Trials that fit side by side.
        seconds_per_epoch: Measured seconds of one search epoch, by row label.
        schedules: What changes over the epochs of a search, resolved, by row label.
        total_s: Estimated seconds of the whole study.
        disk_bytes: Estimated size of the study folder.
        memory_bytes: Peak memory of a trial, by row label: of its process, or of what torch has
            on a GPU. Without those that could not be measured.
        memory_there: Bytes of memory of the machine, or of its smallest GPU; None if unknown.
        retrain: One line on the retrainings, or an empty text.
        notes: Further lines for the reader.
        engines: How steps of a search are run and why so, by row label.
        packed: Whether the shares of a GPU were found by the memory that trials need.
    """

    trials: list[TrialPlan]
    cpus_per_trial: float
    gpus_per_trial: float
    cluster_cpus: float
    cluster_gpus: float
    concurrent: int
    seconds_per_epoch: Mapping[str, float]
    total_s: float
    disk_bytes: int
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    memory_there: int | None = None
    retrain: str = ""
    notes: list[str] = field(default_factory=list)
    schedules: Mapping[str, str] = field(default_factory=dict)
    stage: Stage = "search"
    engines: Mapping[str, str] = field(default_factory=dict)
    packed: bool = False


class Reporter(Protocol):
    """Receives the progress of a study; draws it or writes it."""

    def update(self, progress: Progress) -> None:
        """Show where the study stands."""
        ...

    def message(self, text: str) -> None:
        """Show one line that stays."""
        ...

    def close(self) -> None:
        """End the display; later calls do nothing."""
        ...
