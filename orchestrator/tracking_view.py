"""How a ledger row looks in MLflow: one pure function, used live and by a rebuild alike."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.ledger import Row
from orchestrator.outbox import epoch_metrics
from spaces.core import plugins
from spaces.core.errors import NasError

if TYPE_CHECKING:
    from orchestrator.oracle import StudyOracle

# MLflow's own limits: longer values are cut by it, with a warning.
_PARAM_LENGTH, _TAG_LENGTH = 6000, 5000
# An earlier section keeps the plain name of a setting that a later one has too.
_SECTIONS = ("search", "retrain", "space", "method", "selection", "diagnostics", "pbt")
_RUN_STATUS = {
    "running": "KILLED",  # a partial row whose driver is gone
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "oom": "FAILED",
    "failed": "FAILED",
}


@dataclass(frozen=True)
class Point:
    """One value of one metric.

    Attributes:
        metric: MLflow's name of it.
        value: Finite.
        t: Milliseconds since 1970. A point sent again with the same time stays one point.
        step: Epoch, from 1.
    """

    metric: str
    value: float
    t: int
    step: int


@dataclass(frozen=True)
class RunView:
    """A row as an MLflow run.

    Attributes:
        name: Name shown in lists of runs.
        status: FINISHED, FAILED or KILLED; a row without an end looks KILLED until it goes on.
        start, end: Milliseconds since 1970; `end` is None for a row without an end.
        tags, params: As MLflow takes them.
        curve: Points of the epochs.
        totals: Points that hold for the whole row, at its last epoch.
    """

    name: str
    status: str
    start: int
    end: int | None
    tags: dict[str, str]
    params: dict[str, str]
    curve: list[Point]
    totals: list[Point]


def view_of(row: Row, study_id: str, parent: str, oracle: StudyOracle | None = None) -> RunView:
    """Return `row` as a run of the study `study_id` whose own run is `parent`.

    What the study's oracle says of a search is among the totals, its epochs too: it is told with
    the row's end and never while the search runs.
    """
    of_oracle = oracle if row.stage == "search" else None
    return RunView(
        name=run_name(row),
        status=_RUN_STATUS[row.status],
        start=milliseconds(row.started),
        end=None if row.ended is None else milliseconds(row.ended),
        tags=_tags(row, study_id, parent) | ({"oracle": of_oracle.title} if of_oracle else {}),
        params=flat_params(row),
        curve=_curve(row),
        totals=_totals(row) + (_truths(row, of_oracle) if of_oracle else []),
    )


def milliseconds(t: float) -> int:
    """Return unix seconds in MLflow's unit."""
    return round(1000 * t)


def row_label(row: Row) -> str:
    """Return how the row's configuration is called, without its seed."""
    words = [row.label or _default_label(row)]
    shown = [word.partition("=") for word in words[0].split()]
    for path, value in row.params.items():
        name = path.rpartition(".")[2]
        # The label may have it with more digits.
        if not any(said == name and _is(text, value) for said, _, text in shown):
            words.append(f"{name}={_short(value)}")
    return " ".join(words)


def run_name(row: Row) -> str:
    """Return the name of the row's run, such as "darts unrolled · seed 0"."""
    prefix = "retrain " if row.stage == "retrain" else ""
    return f"{prefix}{row_label(row)} · seed {row.seed}"


def digest(row: Row, oracle: StudyOracle | None = None) -> str:
    """Return 16 hex characters of what a run shows: equal where nothing has to be sent again."""
    text = json.dumps(row.to_json(), sort_keys=True)
    if oracle is not None and row.stage == "search":
        text += oracle.digest
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flat_params(row: Row) -> dict[str, str]:
    """Return the settings as flat params: plain names, numbers as plain numbers."""
    params = {"method": row.method, "space": row.space, "dataset": row.dataset}
    params["seed"] = str(row.seed)
    for section in _SECTIONS:
        settings = row.settings.get(section)
        if section == "selection" and "select" in params:
            continue  # the method's own rule stands in its place
        if isinstance(settings, str):
            params.setdefault(section, settings)
        if not isinstance(settings, Mapping):
            continue
        if "name" in settings:
            params.setdefault(section, str(settings["name"]))
        for name, value in _flat_settings(settings).items():
            params[name if name not in params else f"{section}.{name}"] = _text(value)
    # A data set's settings are paths and limits, whose bare names would say nothing.
    dataset = row.settings.get("dataset")
    for name, value in dataset.items() if isinstance(dataset, Mapping) else ():
        if name != "name":
            params[f"dataset.{name}"] = _text(value)
    return {name: value[:_PARAM_LENGTH] for name, value in params.items() if value}


def _flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without their name; a part from another plug-in as `part`, `part.setting`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and "name" in value:
            flat[name] = value["name"]
            flat |= {f"{name}.{inner}": v for inner, v in _flat_settings(value).items()}
        elif name != "name":
            flat[name] = value
    return flat


def _tags(row: Row, study_id: str, parent: str) -> dict[str, str]:
    status = "interrupted" if row.status == "running" else row.status
    tags = {
        "stage": row.stage,
        "status": status,
        "method": row.method,
        "space": row.space,
        "dataset": row.dataset,
        "seed": str(row.seed),
        "label": row_label(row),
        "config_id": row.config_id,
        "nas.key": row.key,
        "nas.study_id": study_id,
        "mlflow.parentRunId": parent,
        "mlflow.source.name": "nas",
        "mlflow.source.type": "LOCAL",
    }
    git = row.environment.get("git")
    if row.genotype_hash:
        tags["genotype_hash"] = row.genotype_hash
    for name, result in row.selections.items():
        tags[f"genotype_hash.{name}"] = str(result["genotype_hash"])
    if row.resumed_elsewhere:
        tags["resumed_elsewhere"] = "true"
    if isinstance(git, str):
        tags["mlflow.source.git.commit"] = git
    if row.error:
        tags["error"] = row.error.strip().splitlines()[-1] if row.error.strip() else "unknown"
    return {name: value[:_TAG_LENGTH] for name, value in tags.items()}


def _curve(row: Row) -> list[Point]:
    return [
        Point(name, value, t, step)
        for step, t, entry in _epochs(row)
        for name, value in epoch_metrics(row.stage, entry).items()
    ]


def _epochs(row: Row) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yield epoch, milliseconds since 1970 of its end, and entry of the curve."""
    seconds = row.started
    for place, entry in enumerate(row.curve, start=1):
        # An entry may lack the time its epoch ended at; its length then stands in for it.
        seconds += _number(entry.get("epoch_time_s")) or 0.0
        seconds = _number(entry.get("ended")) or seconds
        yield int(entry.get("epoch", place)), milliseconds(seconds), entry


def _truths(row: Row, oracle: StudyOracle) -> list[Point]:
    """Return the true test accuracy and regret of every epoch's genotype, and of the row's own."""
    by_epoch = oracle.by_epoch(row)
    points = [
        Point(f"oracle/{name}", getattr(by_epoch[step], name), t, step)
        for step, t, _ in _epochs(row)
        if step in by_epoch
        for name in ("test_accuracy", "test_regret")
    ]
    own = oracle.of_row(row)
    if own is None:
        return points
    # Not the last epoch's where a method takes the genotype of its best one.
    t = milliseconds(row.ended if row.ended is not None else row.started)
    final = {name: float(getattr(own, name)) for name in ("test_accuracy", "test_regret", "rank")}
    step = row.epochs_done or len(row.curve)
    return points + [Point(f"oracle/final_{name}", value, t, step) for name, value in final.items()]


def _totals(row: Row) -> list[Point]:
    step = row.epochs_done or len(row.curve)
    t = milliseconds(row.ended if row.ended is not None else row.started)
    values = {name: _number(value) for name, value in row.cost.items()}
    for name in ("params", "macs", "peak_memory_bytes"):
        values[name] = row.value(name)
    # A retraining has counted its network itself.
    for name in ("params", "macs") if row.evaluation else ():
        values[name] = _number((row.evaluation or {}).get(name))
    return [
        Point(f"cost/{name}", value, t, step) for name, value in values.items() if value is not None
    ]


def _default_label(row: Row) -> str:
    settings = row.settings.get("method")
    if not isinstance(settings, Mapping):
        return row.method
    return " ".join([row.method, *_changed_words("methods", settings)])


def _changed_words(kind: str, settings: Mapping[str, Any]) -> list[str]:
    """Return what differs from a plug-in's defaults, a part of another plug-in by its name."""
    defaults = _defaults(kind, str(settings.get("name")))
    words = []
    for name, value in sorted(settings.items()):
        if isinstance(value, Mapping) and name in plugins.SLOTS:
            words.append(str(value.get("name")))
            words += _changed_words(plugins.SLOTS[name].kind, value)
        elif name in defaults and value != defaults[name]:
            words.append(value if isinstance(value, str) else f"{name}={_short(value)}")
    return words


@functools.cache  # finding a plug-in looks through every installed package
def _defaults(kind: str, method: str) -> dict[str, Any]:
    try:
        name, config = plugins.make_config(kind, method)
    except NasError:
        return {}  # a plug-in that this process does not have
    return plugins.settings_of(name, config)


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _is(text: str, value: Any) -> bool:
    """Return whether a text in a label is a value, to as many digits as names have."""
    if isinstance(value, float):
        with contextlib.suppress(ValueError):
            return _short(float(text)) == _short(value)
    return text == str(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if value is None:
        return "none"
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, sort_keys=True)
