"""A study as data frames with typed columns, read from its folder alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.ledger import with_selections
from orchestrator.results import by_label
from spaces.core.genotype import Genotype

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.ledger import Row, Stage
    from orchestrator.oracle import StudyOracle, Truth
    from orchestrator.study import Study

CATEGORIES = ("stage", "status", "label", "config_id", "method", "space", "dataset")
_COUNTS = ("params", "macs")
_OF_ROW = ("seed", "block", "epochs_done", "epochs_total", "genotype_epoch")
_WHOLE = (*_OF_ROW, *_COUNTS, "found", "retrained", "epoch", "oracle_rank")
_OF_CURVES = (*CATEGORIES[:5], "seed")
_MOMENTS = ("started", "ended")
_TEXTS = ("key", "genotype_hash", "reason")
_OBJECTS = ("labels", "keys", "genotype")
_TRUTHS = ("test_accuracy", "test_regret", "rank")
_NO_METRICS = ("epoch", "ended", "genotype", "genotype_hash")
_OF_SETTINGS = ("method", "space", "dataset", "search", "retrain", "selection", "pbt")


def all_rows(study: Study, stage: Stage | None = None) -> list[Row]:
    """Return the rows of the ledger and those begun and not ended, in the order of their starts."""
    rows = [*study.rows(), *study.partial_rows()]
    rows.sort(key=lambda row: (row.started, row.key))
    return [row for row in rows if stage in (None, row.stage)]


def labelled(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the labels that tables give them, which tell configurations apart."""
    labels: dict[str, str] = {}
    for stage in ("search", "retrain"):
        groups = by_label([row for row in rows if row.stage == stage])
        labels |= {row.key: label for label, group in groups.items() for row in group}
    return [replace(row, label=labels[row.key]) for row in rows]


def trials(
    study: Study, stage: Stage | None = None, *, every_setting: bool = False, oracle: bool = False
) -> pd.DataFrame:
    """Return one line per row, its index the row's key; see `Study.trials`."""
    table = _oracle_of(study) if oracle else None
    rows = labelled(all_rows(study, stage))
    held = study.holder() is not None
    settings = settings_of(rows, every=every_setting)
    metrics = sorted({name for row in rows for entry in row.curve for name in scalars(entry)})
    lines = []
    for row, given in zip(rows, settings, strict=True):
        line: dict[str, Any] = {
            "key": row.key,
            **{name: getattr(row, name) for name in CATEGORIES},
            "status": _status(row, held),
            **{name: getattr(row, name) for name in _OF_ROW},
            **{name: getattr(row, name) for name in _MOMENTS},
            **given,
            **{_column_of(name): row.value(name) for name in metrics},
            **{name: value for name, value in row.cost.items() if _is_number(value)},
            "genotype_hash": row.genotype_hash,
            "resumed_elsewhere": row.resumed_elsewhere,
            "reason": reason(row),
        }
        for name in _COUNTS:
            if line.get(name) is None:
                line[name] = (row.evaluation or {}).get(name)
        if table is not None:
            line |= _truths(table.of_row(row) if row.stage == "search" else None)
        lines.append(line)
    heads = ["key", *CATEGORIES, *_OF_ROW, *_MOMENTS, *_COUNTS]
    return typed(lines, [*heads, "genotype_hash", "resumed_elsewhere", "reason"]).set_index("key")


def curves(study: Study, stage: Stage | None = None, *, oracle: bool = False) -> pd.DataFrame:
    """Return one line per row and epoch; see `Study.curves`."""
    table = _oracle_of(study) if oracle else None
    held = study.holder() is not None
    lines = []
    for row in labelled(all_rows(study, stage)):
        truths = table.by_epoch(row) if table is not None and row.stage == "search" else {}
        for place, entry in enumerate(row.curve, start=1):
            epoch = int(entry.get("epoch", place))
            line: dict[str, Any] = {"key": row.key}
            line |= {name: getattr(row, name) for name in _OF_CURVES}
            line |= {"status": _status(row, held), "epoch": epoch}
            line |= {_column_of(name): value for name, value in scalars(entry).items()}
            line["genotype_hash"] = entry.get("genotype_hash")
            line["ended"] = entry.get("ended")
            if table is not None:
                line |= _truths(truths.get(epoch))
            lines.append(line)
    heads = ["key", *_OF_CURVES, "epoch", "genotype_hash", "ended"]
    return typed(lines, heads)


@dataclass
class Found:
    """A genotype and where it was found.

    Attributes:
        form: Its JSON form.
        space: Name of its space.
        searches: Finished searches that found it, also by a rule that chose later; the labels of
            the latter say so.
        retrains: Finished retrainings of it.
    """

    form: dict[str, Any]
    space: str
    searches: list[Row] = field(default_factory=list)
    retrains: list[Row] = field(default_factory=list)


def found(rows: Sequence[Row]) -> dict[str, Found]:
    """Return the genotypes of finished rows by their hash, those found most often first."""
    genotypes: dict[str, Found] = {}
    searches = with_selections([row for row in rows if row.stage == "search"])
    for row in [*searches, *(row for row in rows if row.stage == "retrain")]:
        if row.status != "finished" or row.genotype is None or row.genotype_hash is None:
            continue
        entry = genotypes.setdefault(row.genotype_hash, Found(row.genotype, row.space))
        (entry.searches if row.stage == "search" else entry.retrains).append(row)
    return dict(sorted(genotypes.items(), key=lambda item: -len(item[1].searches)))


def genotypes(study: Study) -> pd.DataFrame:
    """Return one line per distinct genotype, its index the hash; see `Study.genotypes`."""
    lines = []
    for genotype_hash, entry in found(labelled(study.rows())).items():
        own = [value for row in entry.searches if (value := row.genotype_value("val_accuracy"))]
        tests = [value for row in entry.retrains if (value := row.value("test_accuracy"))]
        counted = next((row.evaluation for row in entry.searches if row.evaluation), {})
        counted = counted or {
            name: row.value(name) for row in entry.retrains[-1:] for name in _COUNTS
        }
        lines.append(
            {
                "genotype_hash": genotype_hash,
                "space": entry.space,
                "found": len(entry.searches),
                "labels": tuple(dict.fromkeys(row.label for row in entry.searches)),
                "keys": tuple(row.key for row in entry.searches),
                "best_val_accuracy": max(own, default=None),
                "retrained": len(entry.retrains),
                "mean_test_accuracy": math.fsum(tests) / len(tests) if tests else None,
                **{name: counted.get(name) for name in _COUNTS},
                "genotype": Genotype.from_json(entry.form),
            }
        )
    heads = ["genotype_hash", "space", "found", "labels", "keys", "best_val_accuracy", "retrained"]
    heads += ["mean_test_accuracy", *_COUNTS, "genotype"]
    return typed(lines, heads).set_index("genotype_hash")


def reason(row: Row) -> str | None:
    """Return why a row did not finish, in one line, or None."""
    if row.stop is not None:
        return f"{row.stop.get('reason', '')} at epoch {row.stop.get('epoch', row.epochs_done)}"
    if row.error and row.error.strip():
        return row.error.strip().splitlines()[-1]
    return "the loss was no longer finite" if row.status == "diverged" else None


def scalars(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of an epoch; what is not finite is None in a ledger."""
    return {
        name: value
        for name, value in entry.items()
        if name not in _NO_METRICS and (value is None or _is_number(value))
    }


def settings_of(rows: Sequence[Row], *, every: bool = False) -> list[dict[str, Any]]:
    """Return of each row its flat settings, "search.weight_lr" and so on.

    Args:
        rows: Rows.
        every: Whether to return all of them, or those alone that differ between rows of a stage,
            with what was drawn.
    """
    flat = [
        {
            name: value
            for section in _OF_SETTINGS
            for name, value in _flat(row.settings.get(section), section)
        }
        | row.params
        for row in rows
    ]
    if every:
        return flat
    kept: set[str] = {name for row in rows for name in row.params}
    for stage in ("search", "retrain"):
        own = [each for row, each in zip(rows, flat, strict=True) if row.stage == stage]
        names = {name for each in own for name in each}
        kept |= {name for name in names if len({repr(each.get(name)) for each in own}) > 1}
    kept -= {f"{name}.name" for name in ("method", "space", "dataset")}  # columns already
    return [{name: value for name, value in each.items() if name in kept} for each in flat]


def typed(lines: Sequence[Mapping[str, Any]], heads: Iterable[str]) -> pd.DataFrame:
    """Return a frame with numbers as numbers, names as categories and times as UTC timestamps.

    Args:
        lines: One mapping each; what a line lacks is missing in it.
        heads: Columns that it has even without lines, the first ones.
    """
    import pandas as pd

    heads = list(heads)
    others = [name for line in lines for name in line if name not in heads]
    names = list(dict.fromkeys([*heads, *others]))
    columns: dict[str, Any] = {}
    for name in names:
        values = [line.get(name) for line in lines]
        columns[name] = _column(name, values)
    return pd.DataFrame(columns)


def _column(name: str, values: list[Any]) -> Any:
    import pandas as pd

    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if name in CATEGORIES:
        return pd.Series(pd.Categorical(values, categories=list(dict.fromkeys(known))))
    if name in _MOMENTS:
        return pd.to_datetime(pd.Series(values, dtype="float64"), unit="s", utc=True)
    if name in _WHOLE:
        return pd.Series(values, dtype="Int64")
    if name in _TEXTS:
        return pd.Series(values, dtype="string")
    if name in _OBJECTS:
        return pd.Series(values, dtype="object")
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64")
    if kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    if kinds == {str}:
        return pd.Series(pd.Categorical(values, categories=list(dict.fromkeys(known))))
    return pd.Series(values, dtype="object")  # such as a setting that is a list in some rows


def _column_of(metric: str) -> str:
    # P-DARTS has metrics called as a fact of the row is, such as its stage.
    return f"metric.{metric}" if metric in (*CATEGORIES, *_OF_ROW) else metric


def _status(row: Row, held: bool) -> str:
    return row.status if row.status != "running" or held else "interrupted"


def _flat(value: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, list(value) if isinstance(value, tuple) else value)]
    return [pair for name, inner in value.items() for pair in _flat(inner, f"{prefix}.{name}")]


def _truths(truth: Truth | None) -> dict[str, Any]:
    return {f"oracle_{name}": getattr(truth, name, None) for name in _TRUTHS}


def _oracle_of(study: Study) -> StudyOracle | None:
    from orchestrator.oracle import of_study

    return of_study(study)[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
