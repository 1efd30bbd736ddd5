"""The report of a study: report.md, report.html (one file) and table.json in its report folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from orchestrator import (
    analysis_sections,
    cost_report,
    diagnosis,
    frames,
    genotype_report,
    glance,
    hours_report,
    notices,
    oracle,
    oracle_metric,
    oracle_report,
    plots,
    population_report,
)
from orchestrator.budget import read_spending
from orchestrator.cost_report import CostView
from orchestrator.document import (
    Block,
    Code,
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
from orchestrator.experiment import sweep_word
from orchestrator.ledger import replace_file
from orchestrator.oracle_report import OracleView
from orchestrator.results import (
    NUMERIC,
    Result,
    by_label,
    caption,
    columns,
    counting,
    document,
    row_label,
    show_count,
    tabulate,
    tabulate_trainings,
)
from orchestrator.statistics import show_time
from orchestrator.sweep_words import candidates
from orchestrator.trial_log import shown_log

if TYPE_CHECKING:
    from orchestrator.ledger import Row
    from orchestrator.study import Study

Section: TypeAlias = "Callable[[Study, Sequence[Row], Path], list[Block]]"
SECTIONS: tuple[Section, ...] = (
    analysis_sections.told_apart,
    analysis_sections.sensitivity,
)
"""Sections between accuracy and cost: each takes a study, its rows and the report's folder."""

_MOST_TRACEBACKS, _MOST_SETTINGS = 20, 12
_SHOWS = "shows"
"""Key in table.json of a digest of what the report was made from."""
_STATUS_WORDS = {
    "finished": "finished",
    "stopped": "stopped early",
    "diverged": "diverged",
    "oom": "out of memory",
    "failed": "failed",
    "running": "running",
    "interrupted": "begun and not ended",
}


@dataclass(frozen=True)
class Report:
    """Where a report is written, the study's rows, its table, what its oracle says, and costs.

    The sentences are those below the table.
    """

    rows: list[Row]
    markdown: Path
    html: Path
    table: Path
    results: list[Result]
    sentences: list[str]
    oracle: OracleView
    costs: CostView

    def to_json(self) -> dict[str, Any]:
        """Return its tables as plain JSON."""
        shown = {"oracle": self.oracle.to_json(), "costs": self.costs.to_json()}
        return {**document(self.results), **shown}


def write_report(study: Study) -> Report:
    """Write the report of what a study's folder holds now, finished or not."""
    known = _known(study)  # before it is read: a row that comes meanwhile is not shown
    report = summarize(study)
    blocks, title = build(study, report)
    table = {**_document(study, report), _SHOWS: _fingerprint(study, report, known)}
    replace_file(report.html, to_html(blocks, title).encode())
    replace_file(report.markdown, to_markdown(blocks, study.report).encode())
    # The last: only a whole report says what it shows.
    replace_file(report.table, json.dumps(table, indent=2, allow_nan=False).encode())
    return report


def update_report(study: Study) -> Report:
    """Write the report unless the one that is there shows all that there is: pictures take long."""
    known = _known(study)
    report = summarize(study)
    try:
        shown = json.loads(report.table.read_bytes())[_SHOWS]
    except (OSError, ValueError, KeyError, TypeError):
        shown = None
    whole = report.html.is_file() and report.markdown.is_file()
    same = whole and shown == _fingerprint(study, report, known)
    return report if same else write_report(study)


def _known(study: Study) -> list[Any]:
    """Return what tells the files that a report is made from: rows, partial ones, and settings."""
    files = [
        study.experiment_file,
        *sorted((study.path / "ledger").glob("*.json")),
        *sorted((study.path / "checkpoints").glob("*/row.json")),
    ]
    known = []
    for file in files:
        with contextlib.suppress(OSError):
            stat = file.stat()
            known.append([file.name, file.parent.name, stat.st_size, stat.st_mtime_ns])
    return known


def _fingerprint(study: Study, report: Report, known: list[Any]) -> str:
    """Return a digest of all that a report shows."""
    state = [repr(block) for block in _state(study)]  # a driver may have ended since
    whole = [version("nas-orchestrator"), _document(study, report), state, known]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def summarize(study: Study) -> Report:
    """Return what a report has in numbers; nothing is written."""
    rows = oracle_metric.filled(study, study.rows())
    results, sentences = _table(study, rows)
    folder = study.report
    return Report(
        rows=rows,
        markdown=folder / "report.md",
        html=folder / "report.html",
        table=folder / "table.json",
        results=results,
        sentences=sentences,
        oracle=oracle_report.view(rows, *oracle.of_study(study)),
        costs=cost_report.view(_counted(study, rows), study.experiment.limits),
    )


def build(study: Study, report: Report) -> tuple[list[Block], str]:
    """Return the blocks of a study's report, whose pictures are written, and its title."""
    rows, results = report.rows, report.results
    stage = study.experiment.trainable
    swept = stage == "retrain"
    spending = read_spending(study.path)
    folder = study.report
    folder.mkdir(parents=True, exist_ok=True)
    said = notices.notices(study.experiment)
    title = f"Simulated study {study.name}" if study.simulated else f"Study {study.name}"
    asked = study.experiment.question
    blocks: list[Block] = [
        Heading(title, 1),
        *(Notice(sentence) for sentence in said),
        *([Paragraph(asked)] if asked else []),
        *_state(study),
        *glance.blocks(study, rows, results),
        Heading("Results"),
        Grid(
            columns(results),
            [result.cells() for result in results],
            NUMERIC,
            [_interval(result) for result in results] if len(results) > 1 else (),
        ),
        Paragraph(" ".join(report.sentences)),
        *([Paragraph(str(spending))] if spending is not None else []),
        *_compared_blocks(study, [row for row in rows if row.stage == stage], results, folder),
        *oracle_report.blocks(report.oracle, folder),
        *_diagnosis_blocks(rows, folder),
        *(block for section in SECTIONS for block in _section(section, study, rows, folder)),
        *cost_report.blocks(report.costs, folder),
        *hours_report.blocks(rows, results, folder),
        *genotype_report.blocks(rows, results, folder),
        *_retrain_blocks(rows, compared=swept),
        *_open_blocks(study),
        *_unfinished_blocks(study, rows),
        Heading("Settings"),
        *_differences(rows),
        Code(study.experiment_file.read_text(encoding="utf-8"), "Resolved experiment"),
        *_environment_blocks(rows),
        *_reproduce_blocks(study, rows),
    ]
    if study.simulated:
        blocks = [_as_simulated(block) for block in blocks]
    return blocks, title


def _section(section: Section, study: Study, rows: Sequence[Row], folder: Path) -> list[Block]:
    """Return a section, or why there is none: no analysis takes the rest of a report with it."""
    try:
        return section(study, rows, folder)
    except (StudyError, ValueError, ArithmeticError) as error:
        name = section.__name__.replace("_", " ")
        return [Paragraph(f"The section on {name} is left out: {error}")]


def _document(study: Study, report: Report) -> dict[str, Any]:
    """Return what table.json holds."""
    tune, spending = study.experiment.tune, read_spending(study.path)
    head = {"study": study.name, **notices.marks(study.experiment)}
    table = {**head, **report.to_json()}
    if spending is not None:
        table["budget"] = asdict(spending)
    if tune.pbt is not None:
        table["populations"] = population_report.to_json(report.rows, tune.metric)
    return table


def _interval(result: Result) -> Interval | None:
    summary = result.accuracy if result.accuracy.n else result.test
    if summary.mean is None:
        return None
    low, high = summary.low, summary.high
    return 100 * summary.mean, low and 100 * low, high and 100 * high


def _table(study: Study, rows: Sequence[Row]) -> tuple[list[Result], list[str]]:
    """Return the lines of the table of results, and the sentences below it."""
    experiment, retrain = study.experiment, study.experiment.retrain
    if experiment.tune.pbt is not None:
        return population_report.tabulate(rows, experiment.tune.metric), population_report.caption()
    by = retrain.by if retrain else "val_accuracy"
    if experiment.trainable == "retrain":
        results = tabulate_trainings(rows)
    else:
        given = retrain.given() if retrain else None
        results = tabulate(rows, given, by, experiment.limits)
    return results, caption(results, by, simulated=study.simulated)


def _counted(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose networks are compared by what they cost."""
    tune, retrain = study.experiment.tune, study.experiment.retrain
    if tune.pbt is not None:
        return population_report.best_rows(rows, tune.metric)
    return counting(rows, retrain.given() if retrain else None)


def _as_simulated(block: Block) -> Block:
    """Return a block that says what it is, also where it is looked at alone."""
    if isinstance(block, Heading) and block.level > 1:
        return replace(block, text=f"{block.text} (simulated)")
    if isinstance(block, Picture):
        return replace(block, caption=f"Simulated. {block.caption}")
    return block


def _state(study: Study) -> list[Block]:
    lines = []
    for stage, counts in study.summary().counts.items():
        parts = [f"{n} {_STATUS_WORDS.get(status, status)}" for status, n in sorted(counts.items())]
        if parts:
            lines.append(
                f"{'Searches' if stage == 'search' else 'Retrainings'}: {', '.join(parts)}."
            )
    experiment = study.experiment
    facts = f"Space {_name(experiment.space)}, dataset {_name(experiment.dataset)}."
    return [Paragraph(" ".join([facts, *lines]) if lines else f"{facts} No row has ended yet.")]


def _name(settings: Mapping[str, Any]) -> str:
    if sweep_word(settings) is None:
        return str(settings["name"])
    return ", ".join(dict.fromkeys(_name(each) for each in candidates(settings)))


def _curve(row: Row) -> list[float]:
    return [entry["val_accuracy"] for entry in row.curve if entry.get("val_accuracy") is not None]


def _curve_blocks(rows: Sequence[Row], results: Sequence[Result], folder: Path) -> list[Block]:
    """Return the curves of the rows that the study compares, all of one stage."""
    groups = by_label([row for row in rows if _curve(row)])
    # What a rule chose from later has the curves of its search.
    searched = [r.label for r in results if r.accuracy.n and r.label in groups]
    shown = searched[: plots.MOST_LABELS]
    series = {
        label: [_curve(row) for row in groups[label] if row.status == "finished"] for label in shown
    }
    others = [_curve(row) for group in groups.values() for row in group if row.status != "finished"]
    if not series and not others:
        return []
    path = folder / "val_accuracy.png"
    of_supernet = " of the supernet" if any(row.stage == "search" for row in rows) else ""
    simulated = any(row.simulated for row in rows)
    whose = "simulated val accuracy" if simulated else f"val accuracy{of_supernet}"
    plots.curves(series, path, ylabel=f"{whose}, %", stopped=others)
    text = "Validation accuracy: mean over seeds, 95 % interval shaded, for 3 seeds or more"
    if others:
        text += "; grey: rows that did not finish"
    if len(searched) > len(shown):
        text += f"; the first {len(shown)} lines of the table"
    return [Heading("Curves"), Picture(path, text + ".")]


def _compared_blocks(
    study: Study, rows: Sequence[Row], results: Sequence[Result], folder: Path
) -> list[Block]:
    tune = study.experiment.tune
    if tune.pbt is None:
        return _curve_blocks(rows, results, folder)
    return population_report.blocks(rows, tune.metric, study.path, folder)


def _diagnosis_blocks(rows: Sequence[Row], folder: Path) -> list[Block]:
    groups = by_label([row for row in rows if row.stage == "search" and not row.simulated])
    found = diagnosis.diagnose(groups)
    if not found:
        return []
    blocks: list[Block] = [
        Heading("Diagnostics"),
        Grid(diagnosis.COLUMNS, [line.cells() for line in found], diagnosis.COLUMNS[2:]),
        Paragraph(
            "After the last epoch. Collapsed: more than half of the normal cell is skip "
            "connections, or nothing in it has weights. Undecided: the lead of the largest op "
            "weight of an edge over the second, mean over edges, is below the standard deviation "
            "of an op weight over seeds, mean over op weights."
        ),
    ]
    for name, title in diagnosis.PROBES.items():
        epochs, values = diagnosis.probed(groups, name)
        if len(epochs) > 1:
            shown = dict(list(values.items())[: plots.MOST_LABELS])
            path = folder / f"{name}.png"
            ends = (0.0, 1.0) if name == "skip_share" else None
            plots.curves(shown, path, ylabel=title, epochs=epochs, percent=False, bounds=ends)
            blocks.append(Picture(path, f"{title}: mean over seeds, 95 % interval shaded."))
    return blocks


def _retrain_blocks(rows: Sequence[Row], *, compared: bool) -> list[Block]:
    retrains = [row for row in rows if row.stage == "retrain"]
    if not retrains:
        return []
    found_by: dict[str | None, list[str]] = {}
    for row in rows:
        if row.stage == "search" and row.status == "finished":
            found_by.setdefault(row.genotype_hash, []).append(f"{row_label(row)} seed {row.seed}")
    labels = {row.key: label for label, group in by_label(retrains).items() for row in group}
    lines = []
    for row in retrains:
        names = found_by.get(row.genotype_hash, [])
        test, params, macs = (row.value(name) for name in ("test_accuracy", "params", "macs"))
        lines.append(
            (
                row.genotype_hash or "–",
                labels[row.key] if compared else ", ".join(names) or "–",
                str(row.seed),
                "–" if test is None else f"{100 * test:.2f}",
                show_count(params),
                show_count(macs),
                show_time(row.cost.get("time_s")),
            )
        )
    second = "configuration" if compared else "found by"
    heads = ("genotype", second, "seed", "test accuracy %", "params", "macs", "time")
    return [Heading("Retraining"), Grid(heads, lines, heads[2:])]


def _open_blocks(study: Study) -> list[Block]:
    """Return the rows that were begun and have not ended; nothing where there is none."""
    rows = study.partial_rows()
    if not rows:
        return []
    held = study.holder() is not None
    heads = ("stage", "method", "seed", "epochs", "val accuracy %")
    lines = []
    for row in rows:
        value = row.value("val_accuracy")
        shown = "–" if value is None else f"{100 * value:.2f}"
        epochs = f"{row.epochs_done or len(row.curve)} of {row.epochs_total}"
        lines.append((row.stage, row_label(row), str(row.seed), epochs, shown))
    title = "Rows under way" if held else "Rows begun and not ended"
    return [Heading(title), Grid(heads, lines, heads[4:])]


def _unfinished_blocks(study: Study, rows: Sequence[Row]) -> list[Block]:
    unfinished = [row for row in rows if row.status != "finished"]
    moved = [row for row in rows if row.resumed_elsewhere]
    blocks: list[Block] = [Heading("Rows that did not finish")]
    if unfinished:
        lines = [
            (
                row.stage,
                row_label(row),
                str(row.seed),
                _STATUS_WORDS.get(row.status, row.status),
                f"{row.epochs_done} of {row.epochs_total}",
                frames.reason(row) or "–",
            )
            for row in unfinished
        ]
        blocks.append(Grid(("stage", "method", "seed", "status", "epochs", "reason"), lines))
        traced = [row for row in unfinished if row.error]
        for row in traced[:_MOST_TRACEBACKS]:
            log = shown_log(study.path, row.key)
            named = row.key if log is None else f"{row.key}, {log}"
            title = f"Traceback of {row_label(row)}, seed {row.seed} ({named})"
            blocks.append(Code(row.error or "", title))
        if len(traced) > _MOST_TRACEBACKS:
            more = len(traced) - _MOST_TRACEBACKS
            blocks.append(Paragraph(f"{more} more tracebacks are in the ledger."))
    else:
        blocks.append(Paragraph("None: every row in the ledger ran all its epochs."))
    if moved:
        names = ", ".join(f"{row_label(row)} seed {row.seed}" for row in moved)
        blocks.append(
            Paragraph(
                "Resumed on another machine type, thread count, precision or engine, so not bit "
                f"for bit what one machine gives: {names}."
            )
        )
    return blocks + _collapsed_blocks(rows)


def _collapsed_blocks(rows: Sequence[Row]) -> list[Block]:
    """Return the finished searches that degenerated; nothing where none was measured so."""
    lines = []
    for row in rows:
        if row.stage != "search" or row.status != "finished" or not row.curve:
            continue
        chosen = row.curve[(row.genotype_epoch or len(row.curve)) - 1]
        if chosen.get("collapsed") == 1:
            first = next(n for n, e in enumerate(row.curve, 1) if e.get("collapsed") == 1)
            share = chosen.get("skip_share")
            value = row.value("val_accuracy")
            lines.append(
                (
                    row_label(row),
                    str(row.seed),
                    row.genotype_hash or "–",
                    "–" if share is None else f"{100 * share:.0f}",
                    "–" if value is None else f"{100 * value:.2f}",
                    str(first),
                )
            )
    if not lines:
        return []
    heads = ("method", "seed", "genotype", "skips %", "val accuracy %", "first at epoch")
    return [
        Heading("Collapsed searches"),
        Paragraph("They finished and count in every mean above."),
        Grid(heads, lines, heads[3:]),
    ]


def _differences(rows: Sequence[Row]) -> list[Block]:
    """Return a table of the settings that differ between configurations; often nothing."""
    stage = "search" if any(row.stage == "search" for row in rows) else "retrain"
    own = [row for row in rows if row.stage == stage]
    settings = {row.key: given for row, given in zip(own, frames.settings_of(own), strict=True)}
    groups = by_label(own)
    found = {label: settings[group[0].key] for label, group in groups.items()}
    names = list(dict.fromkeys(name for given in found.values() for name in given))
    if not names or len(names) > _MOST_SETTINGS or len(groups) < 2:
        return []
    lines = [
        (label, *(_shown(given[name]) if name in given else "–" for name in names))
        for label, given in found.items()
    ]
    numeric = tuple(
        name
        for name in names
        if all(isinstance(given.get(name, 0), int | float) for given in found.values())
    )
    return [Paragraph("What differs:"), Grid(("configuration", *names), lines, numeric)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _environment_blocks(rows: Sequence[Row]) -> list[Block]:
    """Return what the rows ran on; facts that differ between rows are all given, with counts."""
    facts: dict[str, Counter[str]] = {}
    for row in rows:
        for key, value in _flat(row.environment):
            facts.setdefault(key, Counter())[value] += 1
    lines = []
    for key, values in facts.items():
        several = len(values) > 1
        shown = (f"{value} ({n} rows)" if several else value for value, n in values.most_common())
        lines.append((key, "; ".join(shown)))
    if not lines:
        return []
    return [Heading("Environment"), Grid(("what", "value"), lines)]


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", str(value)))
    return pairs


def _reproduce_blocks(study: Study, rows: Sequence[Row]) -> list[Block]:
    command = "simulate" if study.simulated else "run"
    name = f"{study.name}-again"
    again = shlex.join(["nas", command, str(study.experiment_file), "--name", name])
    commits = list(dict.fromkeys(str(row.environment.get("git") or "") for row in rows))
    commits = [commit for commit in commits if re.fullmatch(r"[0-9a-f]{6,40}", commit)]
    lines = [f"git checkout {commit}" for commit in commits[-1:]] + [again]
    blocks: list[Block] = [
        Heading("Reproduce"),
        Paragraph(f"The study was made on {study.created} by:"),
        Code(study.command),
        Paragraph("The resolved experiment is in its folder, and runs the same rows again by:"),
        Code("\n".join(lines)),
    ]
    if len(commits) > 1:
        blocks.append(Paragraph(f"Its rows are of {len(commits)} commits; that is the last one."))
    if study.test_reads.is_file():
        reads = len(study.test_reads.read_text(encoding="utf-8").splitlines())
        what = "A test accuracy of the table" if study.simulated else "The test split"
        blocks.append(Paragraph(f"{what} was read {reads} times in this study."))
    return blocks
