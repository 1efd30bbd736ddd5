"""`nas sync`: what differs between a study's folder and its runs in a tracking store, and its cure.

The folder is the truth. A run that is missing, half sent or left running is sent again, one of two
runs of a row is deleted, and a run that a person deleted is restored. MLflow keeps what is deleted
until `mlflow gc`, so that nothing here is final.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.holding import locked
from orchestrator.oracle import of_study
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from orchestrator.tracking_runs import Store, StoredRun
from orchestrator.tracking_view import digest, view_of

Kind = Literal["missing", "deleted", "doubled", "running", "outdated", "unknown"]
SAID: dict[Kind, str] = {
    "missing": "rows without a run",
    "deleted": "rows whose run was deleted",
    "doubled": "runs beside another one of the same row",
    "running": "runs that are shown running, and are not",
    "outdated": "runs that show an earlier state of their row",
    "unknown": "runs of rows that the folder does not have: `nas resume` runs those again",
}
STUDY = "study"


@dataclass(frozen=True)
class Finding:
    """One difference.

    Attributes:
        kind: What is wrong.
        key: Key of the row, or "study" for the run of the study itself.
        run_id: The run, or None where there is none.
    """

    kind: Kind
    key: str
    run_id: str | None


def compare(study: Study, store: Store) -> list[Finding]:
    """Return what differs; nothing is changed, and no experiment is made.

    Of a study that is running, what has not ended is left out: it is on its way.

    Raises:
        StoreDownError: The store does not work now.
    """
    experiment_id = store.find_experiment(study.name)
    active: dict[str, list[StoredRun]] = {}
    deleted: dict[str, list[StoredRun]] = {}
    if experiment_id is not None:
        active = _by_key(store.runs(experiment_id, study.id))
        deleted = _by_key(store.deleted_runs(experiment_id, study.id))
    live = study.holder() is not None
    oracle, _ = of_study(study)
    found: list[Finding] = []
    known = {STUDY}
    for row in study.ledger.iterate():
        known.add(row.key)
        status = view_of(row, study.id, "").status
        expected = digest(row, oracle if row.stage == "search" else None)
        found += _of_row(row.key, active, deleted, status, expected, live)
    for row in study.partial_rows():
        known.add(row.key)
        found += _of_row(row.key, active, deleted, "RUNNING" if live else "KILLED", None, live)
    found += _of_row(STUDY, active, deleted, "RUNNING" if live else "", None, live)
    for key in active.keys() - known:
        if not live:
            found += [Finding("unknown", key, run.run_id) for run in active[key]]
    return found


def mend_runs(study: Study, store: Store) -> list[Finding]:
    """Restore runs that were deleted and delete those beside another one.

    To be done before anything is sent: a row whose run is deleted would get another one.

    Returns:
        Those, and the runs that are left running, which whatever is sent next will end.

    Raises:
        StoreDownError: The store does not work now; what was done is done, and may be repeated.
    """
    with locked(study.outbox.with_name("drain.lock")):
        found = [f for f in compare(study, store) if f.kind in ("deleted", "doubled", "running")]
        for finding in found:
            if finding.run_id is not None and finding.kind == "deleted":
                store.restore(finding.run_id)
            elif finding.run_id is not None and finding.kind == "doubled":
                store.delete(finding.run_id)
    return found


def repair(study: Study, store: Store, uri: str) -> tuple[list[Finding], list[Finding]]:
    """Repair what differs; return what did, and what differs still.

    Raises:
        StoreDownError: The store does not work now.
    """
    found = list(dict.fromkeys([*mend_runs(study, store), *compare(study, store)]))
    if any(finding.kind != "unknown" for finding in found):
        Drain(study, store, uri, models=False).rebuild()
    return found, compare(study, store) if found else []


def _by_key(runs: Iterable[StoredRun]) -> dict[str, list[StoredRun]]:
    found: dict[str, list[StoredRun]] = {}
    for run in runs:
        found.setdefault(run.tags.get("nas.key", STUDY), []).append(run)
    return found


def _of_row(
    key: str,
    active: dict[str, list[StoredRun]],
    deleted: dict[str, list[StoredRun]],
    status: str,
    expected: str | None,
    live: bool,
) -> list[Finding]:
    """Return what is wrong with the runs of one row.

    Args:
        key: Its key.
        active, deleted: Runs by key.
        status: What MLflow is to call it; "" is any that is not running.
        expected: Digest of a row that has ended.
        live: Whether a driver runs the study.
    """
    runs = active.get(key, [])
    if not runs:
        if key in deleted:
            return [Finding("deleted", key, _best(deleted[key], status, expected).run_id)]
        # A row that a driver began is told to MLflow within seconds.
        return [] if live and expected is None else [Finding("missing", key, None)]
    kept = runs[0] if key == STUDY else _best(runs, status, expected)
    found = [Finding("doubled", key, run.run_id) for run in runs if run is not kept]
    if status in ("", "KILLED", "FINISHED", "FAILED") and kept.status == "RUNNING":
        found.append(Finding("running", key, kept.run_id))
    elif expected is not None and (kept.tags.get("nas.row"), kept.status) != (expected, status):
        found.append(Finding("outdated", key, kept.run_id))
    return found


def _best(runs: Sequence[StoredRun], status: str, expected: str | None) -> StoredRun:
    """Return the run that shows most of a row; of equal ones the oldest."""
    return max(
        runs,  # the first of equal ones
        key=lambda run: (
            expected is not None and run.tags.get("nas.row") == expected,
            run.status == status,
            len(run.metrics),
        ),
    )
