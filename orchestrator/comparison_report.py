"""Studies side by side: what differs between them, and what came of it on shared seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import notices, oracle_metric, plots
from orchestrator.document import (
    Block,
    Grid,
    Heading,
    Interval,
    Notice,
    Paragraph,
    Picture,
    to_html,
    to_markdown,
)
from orchestrator.errors import StudyError
from orchestrator.ledger import replace_file
from orchestrator.results import by_label
from orchestrator.statistics import MIN_SEEDS, Summary, show_share, show_time, summarize

if TYPE_CHECKING:
    from orchestrator.ledger import Row
    from orchestrator.study import Study

_METRICS = {"search": "val_accuracy", "retrain": "test_accuracy"}
_TITLES = {
    "search": "Val accuracy of the searches",
    "retrain": "Test accuracy of the retrainings",
}


@dataclass(frozen=True)
class Line:
    """A configuration that two studies have under one label.

    Attributes:
        label: The label.
        first, second: Accuracies of finished rows by seed, shares.
        difference: Second less first: over the seeds that both have, paired.
        paired: Those seeds.
    """

    label: str
    first: dict[int, float]
    second: dict[int, float]
    difference: Summary = field(default_factory=Summary)
    paired: tuple[int, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the line: label, both accuracies, their difference, what it says."""
        both = self.first and self.second
        return (
            self.label,
            _cell(self.first),
            _cell(self.second),
            show_share(self.difference),
            self.verdict if both else "only one study has it",
        )

    @property
    def verdict(self) -> str:
        """What the difference allows to say."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return f"fewer than {MIN_SEEDS} shared seeds say nothing"
        if low <= 0 <= high:
            return "cannot be told apart"
        return "the second is higher" if low > 0 else "the first is higher"


@dataclass(frozen=True)
class Comparison:
    """Where a comparison is written, and its lines by stage."""

    markdown: Path
    html: Path
    lines: dict[str, list[Line]]

    def to_json(self) -> dict[str, Any]:
        """Return the lines as plain JSON."""
        return {
            stage: [{**asdict(line), "verdict": line.verdict} for line in lines]
            for stage, lines in self.lines.items()
        }


def compare(
    first: Mapping[str, Mapping[int, float]], second: Mapping[str, Mapping[int, float]]
) -> list[Line]:
    """Return a line for each label of either study.

    Args:
        first, second: Accuracies by label and seed, shares.
    """
    lines = []
    for label in dict.fromkeys([*first, *second]):
        one, other = dict(first.get(label, {})), dict(second.get(label, {}))
        paired = tuple(sorted(set(one) & set(other)))
        difference = summarize([other[seed] - one[seed] for seed in paired], bounds=None)
        lines.append(Line(label, one, other, difference, paired))
    return lines


def write_comparison(studies: Sequence[Study]) -> Comparison:
    """Write the comparison of two studies into the report folder of the first.

    Raises:
        StudyError: They are one study, or one is simulated and the other not.
    """
    one, other = studies
    if one.path.resolve() == other.path.resolve():
        raise StudyError(f"two studies are compared, got {one.name} twice.")
    if one.simulated != other.simulated:
        simulated = one.name if one.simulated else other.name
        raise StudyError(
            f"{simulated} is simulated and the other study is not: what was trained and what was "
            "not are never in one table. Name two of a kind."
        )
    folder = one.report / f"with-{other.name}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [oracle_metric.filled(study, study.rows()) for study in studies]
    lines = {}
    for stage in _METRICS:
        values = [_values(each, stage) for each in rows]
        if any(values):
            lines[stage] = compare(*values)
    title = f"{one.name} and {other.name}"
    title = f"Simulated studies {title}" if one.simulated else f"Studies {title}"
    said = dict.fromkeys(s for study in studies for s in notices.notices(study.experiment))
    blocks: list[Block] = [
        Heading(title, 1),
        *(Notice(sentence) for sentence in said),
        *(
            Paragraph(f"{study.name}: {study.experiment.question}")
            for study in studies
            if study.experiment.question
        ),
        *_overview(studies, rows),
        *(b for stage, own in lines.items() for b in _results(stage, own, studies)),
        *_curves(studies, rows, folder),
        *_settings(studies),
        *_genotypes(studies, rows),
    ]
    written = Comparison(folder / "report.md", folder / "report.html", lines)
    document = {"studies": [study.name for study in studies], **written.to_json()}
    replace_file(folder / "table.json", json.dumps(document, indent=2).encode())
    replace_file(written.html, to_html(blocks, title).encode())
    replace_file(written.markdown, to_markdown(blocks, folder).encode())
    return written


def _values(rows: Sequence[Row], stage: str) -> dict[str, dict[int, float]]:
    groups = by_label([row for row in rows if row.stage == stage])
    found: dict[str, dict[int, float]] = {}
    for label, group in groups.items():
        for row in group:
            value = row.value(_METRICS[stage])
            # A retraining's label is that of its search; two genotypes of it share seeds.
            if row.status == "finished" and value is not None:
                found.setdefault(label, {}).setdefault(row.seed, value)
    return found


def _overview(studies: Sequence[Study], rows: Sequence[Sequence[Row]]) -> list[Block]:
    heads = ("study", "made", "searches", "retrainings", "not finished", "seeds", "time")
    lines = []
    for study, own in zip(studies, rows, strict=True):
        odd = sum(row.status != "finished" for row in own)
        stages = [row.stage for row in own]
        lines.append(
            (
                study.name,
                study.created[:10],
                str(stages.count("search")),
                str(stages.count("retrain")),
                str(odd),
                ", ".join(str(seed) for seed in study.experiment.seeds),
                show_time(sum(float(row.cost.get("time_s") or 0.0) for row in own)),
            )
        )
    return [Grid(heads, lines, heads[2:5])]


def _results(stage: str, lines: Sequence[Line], studies: Sequence[Study]) -> list[Block]:
    one, other = (study.name for study in studies)
    heads = (
        "configuration", f"{one}, %", f"{other}, %", "difference, points", "shared seeds",
        "what can be said",
    )  # fmt: skip
    shown = [(*line.cells()[:4], str(len(line.paired)), line.cells()[4]) for line in lines]
    return [
        Heading(_TITLES[stage]),
        Grid(
            heads, shown, ("difference, points", *heads[1:3]), [_interval(line) for line in lines]
        ),
        Paragraph(
            f"Means over finished rows with 95 % t-intervals for {MIN_SEEDS} seeds or more. The "
            f"difference is {other} less {one}, over the seeds that both have, seed by seed: an "
            "interval with zero in it tells the two not apart. It is not corrected for the number "
            "of lines."
        ),
    ]


def _cell(values: Mapping[int, float]) -> str:
    return f"{show_share(summarize(list(values.values())))} (n = {len(values)})" if values else "–"


def _interval(line: Line) -> Interval | None:
    summary = line.difference
    if summary.mean is None:
        return None
    low, high = summary.low, summary.high
    return (
        100 * summary.mean,
        None if low is None else 100 * low,
        None if high is None else 100 * high,
    )


def _curves(studies: Sequence[Study], rows: Sequence[Sequence[Row]], folder: Path) -> list[Block]:
    series: dict[str, list[list[float]]] = {}
    shared = [by_label([row for row in own if row.stage == "search"]) for own in rows]
    labels = [label for label in shared[0] if label in shared[1]] or [*shared[0], *shared[1]]
    for label in labels[: plots.MOST_LABELS // 2]:
        for study, groups in zip(studies, shared, strict=True):
            found = [
                [entry["val_accuracy"] for entry in row.curve if entry.get("val_accuracy")]
                for row in groups.get(label, ())
                if row.status == "finished"
            ]
            if any(found):
                series[f"{study.name}: {label}"] = found
    if not series:
        return []
    path = folder / "val_accuracy.png"
    plots.curves(series, path, ylabel="val accuracy, %")
    text = "Validation accuracy: mean over seeds, 95 % interval shaded, for 3 seeds or more"
    more = len(labels) - plots.MOST_LABELS // 2
    text += f"; the first configurations, {more} more are in the tables." if more > 0 else "."
    return [Heading("Curves"), Picture(path, text)]


def _settings(studies: Sequence[Study]) -> list[Block]:
    one, other = (_flat(study.experiment.resolved()) for study in studies)
    lines = [
        (name, one.get(name, "–"), other.get(name, "–"))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name) and name not in ("name", "question")
    ]
    heading = Heading("Settings that differ")
    if not lines:
        return [heading, Paragraph("None: the two experiments say the same.")]
    return [heading, Grid(("setting", *(study.name for study in studies)), lines)]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for name, inner in value.items():
            found |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: json.dumps(value)}


def _genotypes(studies: Sequence[Study], rows: Sequence[Sequence[Row]]) -> list[Block]:
    found = [
        {row.genotype_hash for row in own if row.stage == "search" and row.status == "finished"}
        - {None}
        for own in rows
    ]
    if not all(found):
        return []
    both = sorted(str(name) for name in found[0] & found[1])
    listed = f": {', '.join(both[:20])}{' and more' if len(both) > 20 else ''}" if both else ""
    return [
        Heading("Genotypes"),
        Paragraph(
            f"{studies[0].name} found {len(found[0])} distinct genotypes, {studies[1].name} "
            f"{len(found[1])}; both found {len(both)}{listed}."
        ),
    ]
