"""A study as one data frame: a line for each row of the ledger, its value and what was swept."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import StudyError
from orchestrator.experiment import ORACLE_METRICS
from orchestrator.ledger import Row, with_selections
from orchestrator.results import by_label
from spaces.core.errors import near_miss

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.experiment import Experiment
    from orchestrator.study import Study

ALIASES = {"oracle_test": "oracle/test_accuracy", "oracle_regret": "oracle/test_regret"}
RETRAINED = "retrain_accuracy"
COSTS = ("time_s", "gpu_hours", "cpu_hours")
_LESS_IS_BETTER = ("loss", "regret", "gap", "eigenvalue", "time_s", "hours", "params", "macs")
_SHARES = ("accuracy", "regret", "share", "gap")
_PARTS = ("method", "space", "search", "selection")
_OF_TRAINING = ("genotype", "retrain", "space")
_NO_EFFECT = ("search.engine", "search.threads", "retrain.workers", "retrain.compile")
_LOG_FROM = 8.0
_MOST_MIXED = 12


@dataclass(frozen=True)
class Factor:
    """A setting that differs between the rows of a study.

    Attributes:
        name: Its column in the frame: the path of the setting, as "search.weight_lr".
        short: The end of the path that no other factor has, as "weight_lr".
        kind: "number", or "category": text, truth values, and numbers beside a missing one.
        log: Whether the values of a number lie more evenly in their logarithm.
        levels: Its distinct values, in order.
        conditional: Whether some rows do not have the setting.
        aliases: Other settings that differ exactly where this one does.
    """

    name: str
    short: str
    kind: Literal["number", "category"]
    log: bool
    levels: tuple[Any, ...]
    conditional: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyFrame:
    """The rows of a study that are compared, with the value of one metric.

    Attributes:
        study: Name of the study.
        metric: What `value` is.
        maximize: Whether more of it is better.
        share: Whether it is a share, shown as percent.
        simulated: Whether nothing was trained.
        design: Name of the sampling design that was asked for, or "".
        table: One line a row: key, stage, status, outcome, label, method, space, dataset,
            config_id, block, seed, value, time_s, gpu_hours, cpu_hours, epochs_done, epochs_total,
            and a column for each factor, missing where a row does not have the setting. `outcome`
            is the status, or "collapsed" for a finished search whose cell has degenerated. `value`
            is missing where the row did not finish, or does not have the metric.
        factors: What differs between the rows.
        design_points: Of a design that Sobol indices are estimated of, for each block the
            config_id of each point in its order; else ().
        design_factors: What moves in it, in the order of its columns.
    """

    study: str
    metric: str
    maximize: bool
    share: bool
    simulated: bool
    design: str
    table: pd.DataFrame
    factors: tuple[Factor, ...]
    design_points: tuple[tuple[str, ...], ...] = ()
    design_factors: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Ends that an interval of the metric is cut at, or None."""
        return (0.0, 1.0) if self.metric.endswith(("accuracy", "regret", "share")) else None

    @property
    def used(self) -> pd.DataFrame:
        """The lines that have a value: finished, collapsed ones included."""
        return self.table[self.table["value"].notna()]

    @property
    def counts(self) -> dict[str, int]:
        """Number of lines by outcome."""
        return {str(name): int(n) for name, n in self.table["outcome"].value_counts().items()}

    def factor(self, name: str) -> Factor:
        """Return a factor by its name, or the end of it.

        Raises:
            StudyError: There is none, or more than one.
        """
        found = [each for each in self.factors if name in (each.name, each.short)] or [
            each for each in self.factors if each.name.endswith(f".{name}")
        ]
        if len(found) == 1:
            return found[0]
        known = [each.short for each in self.factors]
        said = f" It varies {', '.join(known)}." if known else " Nothing varies in it."
        miss = "" if found else near_miss(name, known)
        raise StudyError(f"study {self.study} does not vary {name!r}.{miss}{said}")


def study_frame(study: Study, metric: str | None = None) -> StudyFrame:
    """Return what a study's ledger holds now, finished or not; nothing else is read.

    Metrics of the oracle are looked up in its table, which has to be there.

    Args:
        study: The study, real or simulated.
        metric: A value of the curves ("val_accuracy", "val_loss", "hessian_eigenvalue", ...), taken
            at the last epoch; "retrain_accuracy", the mean test accuracy of the retrainings of a
            search's genotype; "oracle_test" or "oracle_regret"; "time_s" or "gpu_hours". None is
            what the study itself compares by.

    Raises:
        StudyError: No row has such a metric.
    """
    import pandas as pd

    experiment = study.experiment
    name = metric or experiment.metric_of(experiment.trainable)
    name = ALIASES.get(name, name)
    stage = experiment.trainable
    of_ledger = study.rows()
    rows = [row for row in of_ledger if row.stage == stage]
    labels = {row.key: label for label, group in by_label(rows).items() for row in group}
    values = _values(study, of_ledger, name)
    lines, settings = [], []
    for row in rows:
        own, *selected = with_selections([row])
        for each, chosen in zip((own, *selected), (None, *row.selections.values()), strict=True):
            label = labels[row.key] if chosen is None else each.label
            lines.append(_line(each, label, values(each), chosen is not None))
            settings.append(_settings(each, chosen))
    for row in study.partial_rows():
        if row.stage == stage:
            lines.append(_line(row, row.label or row.method, None, False))
            settings.append(_settings(row, None))
    heads = [*_line(Row(**_EMPTY), "", None, False)]
    table = pd.DataFrame(lines, columns=heads)
    table["value"] = table["value"].astype(float)
    _check_known(study, of_ledger, name, table)
    factors, columns = _factors(settings)
    for factor in factors:
        table[factor.name] = pd.Series(columns[factor.name], index=table.index, dtype=object)
        if factor.kind == "number":
            table[factor.name] = table[factor.name].astype(float)
    design = experiment.tune.design
    placed, moved = _design_points(experiment)
    return StudyFrame(
        study=study.name,
        metric=name,
        maximize=not name.endswith(_LESS_IS_BETTER),
        share=name.endswith(_SHARES),
        simulated=study.simulated,
        design="" if design is None else design.name,
        table=table,
        factors=factors,
        design_points=placed,
        design_factors=moved,
    )


def _design_points(
    experiment: Experiment,
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    design = experiment.tune.design
    if design is None or not design.indices:
        return (), ()
    from orchestrator import factors  # here: it reads every plug-in

    blocks = factors.blocks(experiment)
    placed = tuple(
        tuple(each.config_id for each in factors.design_points(experiment, block))
        for block in blocks
    )
    return placed, tuple(dimension.path for dimension in blocks[0].dimensions)


_EMPTY: dict[str, Any] = {
    "key": "", "stage": "search", "status": "running", "config_id": "", "seed": 0, "method": "",
    "space": "", "dataset": "",
}  # fmt: skip


def _values(study: Study, rows: Sequence[Row], metric: str) -> Any:
    """Return the function row -> value of the metric, or None."""
    if metric in ORACLE_METRICS:
        from orchestrator.oracle import of_study  # it reads a table

        oracle, reason = of_study(study)
        if oracle is None:
            said = reason or "its experiment names no oracle."
            raise StudyError(f"study {study.name} has no {metric}: {said}")
        known, name = oracle, metric.rpartition("/")[2]

        def of_oracle(row: Row) -> float | None:
            truth = known.of_row(row)
            return None if truth is None else float(getattr(truth, name))

        return _of_finished(of_oracle)
    if metric == RETRAINED:
        tests: dict[str, list[float]] = {}
        for row in rows:
            test = row.value("test_accuracy") if row.stage == "retrain" else None
            if test is not None and row.status == "finished" and row.genotype_hash:
                tests.setdefault(row.genotype_hash, []).append(test)
        means = {key: sum(found) / len(found) for key, found in tests.items()}
        return _of_finished(lambda row: means.get(row.genotype_hash or ""))
    if metric in COSTS:
        return _of_finished(lambda row: row.cost.get(metric))
    return _of_finished(lambda row: row.value(metric))


def _of_finished(value: Any) -> Any:
    return lambda row: value(row) if row.status == "finished" else None


def _check_known(study: Study, rows: Sequence[Row], metric: str, table: pd.DataFrame) -> None:
    if table["value"].notna().any() or not (table["status"] == "finished").any():
        return
    entries = {name for row in rows for name, value in (row.curve or [{}])[-1].items()
               if isinstance(value, int | float)}  # fmt: skip
    known = sorted({*entries, RETRAINED, *ALIASES, *COSTS} - {"epoch"})
    if metric == RETRAINED:
        raise StudyError(
            f"study {study.name} has no {metric}: none of its searches' genotypes has been "
            f"retrained. Do so by `nas retrain {study.name}`."
        )
    raise StudyError(
        f"no finished row of study {study.name} has the metric {metric!r}."
        f"{near_miss(metric, known)} It knows {', '.join(known)}."
    )


def _line(row: Row, label: str, value: float | None, chosen: bool) -> dict[str, Any]:
    chosen_at = row.curve[(row.genotype_epoch or len(row.curve)) - 1] if row.curve else {}
    collapsed = row.status == "finished" and not chosen and chosen_at.get("collapsed") == 1
    # A rule that chose later trained nothing: the search's own line has the cost.
    cost = {name: 0.0 if chosen else float(row.cost.get(name, 0.0)) for name in COSTS}
    return {
        "key": row.key,
        "stage": row.stage,
        "status": row.status,
        "outcome": "collapsed" if collapsed else row.status,
        "label": label,
        "method": row.method,
        "space": row.space,
        "dataset": row.dataset,
        "config_id": row.config_id,
        "block": row.block,
        "seed": row.seed,
        "value": value,
        **cost,
        "epochs_done": row.epochs_done,
        "epochs_total": row.epochs_total,
    }


def _settings(row: Row, chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a row that can be factors, by their path."""
    parts = _PARTS if row.stage == "search" else _OF_TRAINING
    given = {part: row.settings[part] for part in parts if row.settings.get(part)}
    if not given:
        return dict(row.params) | {"method": row.method}
    if chosen is not None:
        given["selection"] = chosen["settings"]
    if "genotype" in given:
        given["genotype"] = {"name": given["genotype"].get("name") or row.genotype_hash}
    return {
        ("method" if path == "method.name" else path.removesuffix(".name")): value
        for path, value in _flat(given)
        if path not in _NO_EFFECT
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", json.dumps(value)
        else:
            yield f"{prefix}{key}", value


_MISSING = object()


def _factors(
    settings: Sequence[Mapping[str, Any]],
) -> tuple[tuple[Factor, ...], dict[str, list[Any]]]:
    """Return what differs between rows, and its column, missing as None."""
    paths = list(dict.fromkeys(path for each in settings for path in each))
    columns: dict[str, list[Any]] = {}
    found: list[Factor] = []
    methods = [each.get("method") for each in settings]
    partitions: dict[tuple[int, ...], int] = {}
    for path in paths:
        raw = [each.get(path, _MISSING) for each in settings]
        present = [value for value in raw if value is not _MISSING]
        if len({_text(value) for value in present}) < 2 or _told_by(methods, raw, path):
            continue
        pattern = _pattern(raw)
        if pattern in partitions:
            place = partitions[pattern]
            found[place] = replace(found[place], aliases=(*found[place].aliases, path))
            continue
        partitions[pattern] = len(found)
        factor, columns[path] = _factor(path, raw, present)
        found.append(factor)
    return tuple(_with_short(found)), columns


def _pattern(raw: Sequence[Any]) -> tuple[int, ...]:
    """Return what two columns have in common where one tells the other.

    Of numbers that is their order, or the order turned round: drawn ones are all different, so
    that which of them are equal would say nothing. Of others it is which of them are equal.
    """
    if all(_is_number(value) for value in raw):
        places = {value: place for place, value in enumerate(sorted({float(v) for v in raw}))}
        up = tuple(places[float(value)] for value in raw)
        down = tuple(len(places) - 1 - place for place in up)
        return (-1, *min(up, down))
    order: dict[str, int] = {}
    return tuple(order.setdefault(_text(value), len(order)) for value in raw)


def _told_by(methods: Sequence[Any], raw: Sequence[Any], path: str) -> bool:
    """Return whether a setting is the same in all rows of a method: then it is not a choice."""
    if path == "method" or len(set(methods)) < 2:
        return False
    values: dict[Any, set[str]] = {}
    for method, value in zip(methods, raw, strict=True):
        values.setdefault(method, set()).add(_text(value))
    return path.startswith("method.") and all(len(each) == 1 for each in values.values())


def _text(value: Any) -> str:
    if value is _MISSING:
        return "missing"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    return json.dumps(value)


def _factor(path: str, raw: Sequence[Any], present: Sequence[Any]) -> tuple[Factor, list[Any]]:
    numbers = [v for v in present if isinstance(v, int | float) and not isinstance(v, bool)]
    nothing = any(value is None for value in present)
    number = len(numbers) + sum(value is None for value in present) == len(present)
    # None beside a few numbers is a setting of its own; beside many it is one that is not set.
    number = number and not (nothing and len(set(numbers)) <= _MOST_MIXED)
    if number:
        column: list[Any] = [float(value) if _is_number(value) else None for value in raw]
        levels: tuple[Any, ...] = tuple(sorted({float(value) for value in numbers}))
        log = _by_factors(levels)
        conditional = any(value is None for value in column)
        return Factor(path, path, "number", log, levels, conditional), column
    column = [None if value is _MISSING else _shown(value) for value in raw]
    ranked = sorted({(not _is_number(v), v if _is_number(v) else 0, _shown(v)) for v in present})
    levels = tuple(dict.fromkeys(text for _, _, text in ranked))
    return Factor(path, path, "category", False, levels, None in column), column


def _by_factors(levels: Sequence[float]) -> bool:
    """Return whether numbers lie more evenly in their logarithm than as they are."""
    if levels[0] <= 0 or levels[-1] / levels[0] < _LOG_FROM:
        return False
    logs = [math.log(level) for level in levels]
    widest = [
        max(after - before for before, after in itertools.pairwise(each)) / (each[-1] - each[0])
        for each in (logs, levels)
    ]
    return widest[0] < widest[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if _is_number(value):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _with_short(factors: Sequence[Factor]) -> list[Factor]:
    """Return factors with the shortest ends of their paths that tell them apart."""
    found = []
    for factor in factors:
        parts = factor.name.split(".")
        short = factor.name
        for length in range(1, len(parts)):
            end = ".".join(parts[-length:])
            same = [each for each in factors if f".{each.name}".endswith(f".{end}")]
            if len(same) == 1:
                short = end
                break
        found.append(replace(factor, short=short))
    return found
