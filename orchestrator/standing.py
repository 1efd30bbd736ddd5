"""What an operator asks of a long sweep: its cost, its speed, and why rows failed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.ledger import Row
from orchestrator.results import row_label
from orchestrator.trial_log import shown_log

WASTED = ("failed", "oom", "diverged")
RECENT_S = 3600.0
_CAUSES = 8  # that are shown
_LENGTH = 160
# What differs between failures of one cause: addresses, ids, paths, numbers.
_DETAILS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|(?:/[\w.@+-]+)+|\d+(?:\.\d+)?")
_NO_CAUSE = "no error was recorded"


@dataclass(frozen=True)
class Cost:
    """What rows have taken.

    Attributes:
        rows: Their number.
        epochs: Epochs that they have.
        trial_hours: Hours of their epochs, whatever ran side by side.
        cpu_hours, gpu_hours: The same times the CPUs and GPUs that they occupied.
    """

    rows: int = 0
    epochs: int = 0
    trial_hours: float = 0.0
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Rows that failed of one cause.

    Attributes:
        cause: The last line of their errors, without what differs between them.
        statuses: What they are: failed, oom or diverged.
        rows: Their number.
        example: Label and seed of one of them.
        key: Its key: `ledger/<key>.json` has the whole traceback.
        said: The last line of its error as it is.
        log: The file in the study folder that says what happened to it, or None.
    """

    cause: str
    statuses: tuple[str, ...]
    rows: int
    example: str
    key: str
    said: str
    log: str | None = None


@dataclass(frozen=True)
class Standing:
    """Costs, speed and failures of a study's rows.

    Attributes:
        useful: Rows that finished, or that a scheduler stopped.
        wasted: Rows that failed, diverged or ran out of memory.
        begun: Rows that have epochs and no end.
        recent_rows: Rows that ended within the last hour.
        rows_per_hour: How many an hour that is, over the part of it since the first row began.
        failures: By cause, the commonest first.
    """

    useful: Cost = Cost()
    wasted: Cost = Cost()
    begun: Cost = Cost()
    recent_rows: int = 0
    rows_per_hour: float | None = None
    failures: tuple[Failure, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)


def standing(
    rows: Sequence[Row],
    partial: Sequence[Row],
    now: float | None = None,
    study: Path | None = None,
) -> Standing:
    """Return where rows of a study stand.

    Args:
        rows: Those of the ledger.
        partial: Those that were begun and are not in it.
        now: Unix time in seconds; None is now.
        study: Folder of the study, where logs are looked for; None does not look.
    """
    now = time.time() if now is None else now
    bad = [row for row in rows if row.status in WASTED]
    ended = [row.ended for row in rows if row.ended is not None]
    recent = [t for t in ended if 0.0 <= now - t <= RECENT_S]
    first = min((row.started for row in rows), default=now)
    span = min(RECENT_S, max(now - first, 1.0))
    return Standing(
        useful=_cost(row for row in rows if row.status not in WASTED),
        wasted=_cost(bad),
        begun=_cost(partial),
        recent_rows=len(recent),
        rows_per_hour=len(recent) * 3600.0 / span if recent else None,
        failures=_failures(bad, study),
    )


def from_json(form: dict[str, Any]) -> Standing:
    """Return what `Standing.to_json` gave."""
    costs = {name: Cost(**form[name]) for name in ("useful", "wasted", "begun")}
    failures = tuple(Failure(**failure) for failure in form["failures"])
    return Standing(**{**form, **costs, "failures": failures})


def lines(found: Standing) -> dict[str, str]:
    """Return what a person is shown, by head."""
    shown: dict[str, str] = {}
    if found.useful.rows or found.wasted.rows or found.begun.rows:
        shown["cost"] = _shown(found.useful)
    if found.begun.rows:
        shown["begun"] = _shown(found.begun)
    if found.wasted.rows:
        shown["wasted"] = _shown(found.wasted)
    if found.rows_per_hour is not None:
        shown["speed"] = f"{found.rows_per_hour:.3g} rows an hour, {found.recent_rows} in the last"
    for index, failure in enumerate(found.failures[:_CAUSES]):
        head = "failures" if index == 0 else " " * index
        shown[head] = (
            f"{failure.rows} {'/'.join(failure.statuses)}: {failure.said} "
            f"({failure.example}, {failure.log or f'ledger/{failure.key}.json'})"
        )
    if len(found.failures) > _CAUSES:
        shown[" " * _CAUSES] = f"and {len(found.failures) - _CAUSES} other causes"
    return shown


def _cost(rows: Iterable[Row]) -> Cost:
    count, epochs, hours, cpu, gpu = 0, 0, 0.0, 0.0, 0.0
    for row in rows:
        count += 1
        epochs += row.epochs_done
        hours += float(row.cost.get("time_s") or 0.0) / 3600
        cpu += float(row.cost.get("cpu_hours") or 0.0)
        gpu += float(row.cost.get("gpu_hours") or 0.0)
    return Cost(count, epochs, hours, cpu, gpu)


def _shown(cost: Cost) -> str:
    parts = [f"{cost.trial_hours:.3g} trial hours", f"{cost.cpu_hours:.3g} CPU hours"]
    if cost.gpu_hours:
        parts.append(f"{cost.gpu_hours:.3g} GPU hours")
    return f"{', '.join(parts)} in {cost.rows} rows"


def _failures(rows: Iterable[Row], study: Path | None) -> tuple[Failure, ...]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_DETAILS.sub("*", _last_line(row)), []).append(row)
    found = [
        Failure(
            cause=cause,
            statuses=tuple(sorted({row.status for row in group})),
            rows=len(group),
            example=f"{row_label(group[0])}, seed {group[0].seed}",
            key=group[0].key,
            said=_last_line(group[0]),
            log=shown_log(study, group[0].key),
        )
        for cause, group in groups.items()
    ]
    return tuple(sorted(found, key=lambda failure: (-failure.rows, failure.cause)))


def _last_line(row: Row) -> str:
    if row.error is None and row.status == "diverged":
        return "the loss became infinite or NaN"
    written = [line.strip() for line in (row.error or "").splitlines() if line.strip()]
    text = written[-1] if written else _NO_CAUSE
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."
