"""Markdown descriptions of MLflow runs: the outcome, the cell, and links between runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger import Row
from orchestrator.tracking_view import row_label
from spaces.core.genotype import Genotype

# MLflow keeps 8,000 characters of a tag on some stores and fewer on others.
NOTE_LENGTH = 5000
_TABLE_LENGTH = 3500


@dataclass(frozen=True)
class Outcome:
    """What other runs and the study say about a run.

    Attributes:
        key: Key of its row.
        run_id: Its MLflow run.
        name, label, stage, status: As in its view; `status` is the row's.
        genotype_hash: Or None.
        value: Validation accuracy of a search, test accuracy of a retraining; or None.
        time_s: Or None.
        val_accuracy: Of a retraining that held images out; or None.
    """

    key: str
    run_id: str
    name: str
    label: str
    stage: str
    status: str
    genotype_hash: str | None
    value: float | None
    time_s: float | None
    val_accuracy: float | None = None


def run_link(experiment_id: str, run_id: str, text: str) -> str:
    """Return a Markdown link to a run that works within MLflow's own pages."""
    # Without the query MLflow shows training runs as evaluations of language models.
    return f"[{text}](#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning)"


def row_note(
    row: Row,
    own: Outcome,
    related: Iterable[Outcome],
    experiment_id: str,
    said: Sequence[str] = (),
    study: str = "",
) -> str:
    """Return the description of a row's run.

    Args:
        row: The row.
        own: Its outcome.
        related: Of a search, the retrainings of its genotype; of a retraining, the searches that
            found its genotype.
        experiment_id: MLflow's experiment, for links.
        said: What has to be said of the study first.
        study: Link to the study's run, or empty.

    Raises:
        SpaceError: The row's genotype is not one.
    """
    verb = "searched on" if row.stage == "search" else "retrained from scratch on"
    if row.simulated:
        verb = "searched by chance in a table, not on"
        verb = verb if row.stage == "search" else "looked up in a table, not trained on"
    lines = [
        *(line for sentence in said for line in (sentence, "")),
        f"**{row_label(row)}**, seed {row.seed}: `{row.space}` {verb} `{row.dataset}`,"
        f" {_ending(row)}.",
        "",
    ]
    if row.genotype and not row.simulated:
        # First, because MLflow folds away what comes after some lines.
        lines += [f"![artifact cell.png](get-artifact?path=cell.png&run_uuid={own.run_id})", ""]
    lines += _facts(row)
    heading = "Retrained by" if row.stage == "search" else "Found by"
    links = [
        f"- {run_link(experiment_id, other.run_id, other.name)}{_value_of(other)}"
        for other in sorted(related, key=lambda o: (o.name, o.key))
    ]
    if links:
        lines += ["", f"**{heading}**", "", *links[:20]]
        lines += [f"- and {len(links) - 20} more"] * (len(links) > 20)
    if row.genotype:
        lines += ["", *_cells(row.genotype)]
    if row.error:
        lines += ["", "**Error**", "", "```", row.error.strip()[-2000:], "```"]
    lines += ["", f"Row `{own.key}` of the ledger{f' of study {study}' if study else ''}."]
    return "\n".join(lines)[:NOTE_LENGTH]


def study_note(
    name: str, outcomes: Sequence[Outcome], experiment_id: str, said: Sequence[str] = ()
) -> str:
    """Return the description of a study's run: one line of a table per configuration.

    Args:
        name: Name of the study.
        outcomes: Of its rows.
        experiment_id: MLflow's experiment, for links.
        said: What has to be said of the study first.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.label, o.name, o.key)):
        if outcome.stage == "search":
            groups.setdefault(outcome.label, []).append(outcome)
    lines = _searched_table(groups, outcomes, experiment_id)
    if not groups and any(outcome.val_accuracy is not None for outcome in outcomes):
        lines = _compared_table(outcomes)
    lines = [*(line for sentence in said for line in (sentence, "")), *lines]
    odd = [o for o in outcomes if o.status not in ("finished", "running")]
    counts = {status: sum(o.status == status for o in odd) for status in {o.status for o in odd}}
    if counts:
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        lines += ["", f"Not finished: {told}."]
    lines += [
        "",
        "The report, with intervals over seeds, is among the artifacts: `report/report.html`; "
        f"`nas report {name}` writes it anew, `nas sync {name}` sends it.",
    ]
    return "\n".join(lines)[:NOTE_LENGTH]


def _searched_table(
    groups: Mapping[str, list[Outcome]], outcomes: Sequence[Outcome], experiment_id: str
) -> list[str]:
    retrained: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.name, o.key)):
        if outcome.stage == "retrain" and outcome.genotype_hash:
            retrained.setdefault(outcome.genotype_hash, []).append(outcome)
    lines = [
        "| method | n seeds | mean val accuracy | best val accuracy | genotype of the best"
        " | retrain test accuracy | time, all seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    ranked = sorted(groups.items(), key=lambda item: (-(_mean(item[1]) or -1.0), item[0]))
    shown = [_study_line(label, group, retrained, experiment_id) for label, group in ranked[:30]]
    return lines + _that_fit(shown, len(ranked))


def _compared_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table of a study that compares retrainings, best validation accuracy first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: (o.label, o.name, o.key)):
        groups.setdefault(outcome.label, []).append(outcome)
    found = []
    for label, group in groups.items():
        good = [o for o in group if o.status == "finished"]
        vals = [o.val_accuracy for o in good if o.val_accuracy is not None]
        mean = math.fsum(vals) / len(vals) if vals else None
        n = str(len(good)) + (f" of {len(group)}" if len(good) < len(group) else "")
        time_s = f"{sum(o.time_s or 0.0 for o in group):.1f} s"
        cells = [label, n, _share(mean), _share(_mean(good)), f"`{group[0].genotype_hash}`", time_s]
        found.append((-(-1.0 if mean is None else mean), f"| {' | '.join(cells)} |"))
    lines = [
        "| configuration | n seeds | mean val accuracy | mean test accuracy | genotype"
        " | time, all seeds |",
        "|---|---|---|---|---|---|",
    ]
    return lines + _that_fit([line for _, line in sorted(found)[:30]], len(found))


def _that_fit(lines: Sequence[str], count: int) -> list[str]:
    """Return the lines that leave room for what else a note says, and how many are not there."""
    kept: list[str] = []
    for line in lines:
        if sum(map(len, kept)) + len(line) > _TABLE_LENGTH:
            break
        kept.append(line)
    more = count - len(kept)
    return kept + [f"\n... and {more} more configurations."] * (more > 0)


def _study_line(
    label: str, group: list[Outcome], retrained: Mapping[str, list[Outcome]], experiment_id: str
) -> str:
    good = _valued(group)
    best = max(good, key=lambda o: o.value or -math.inf, default=None)
    tests = [
        run_link(experiment_id, other.run_id, f"{other.value:.4f}")
        for genotype in sorted({o.genotype_hash for o in group if o.genotype_hash})
        for other in retrained.get(genotype, [])
        if other.value is not None
    ]
    cells = [
        label,
        str(len(good)) + (f" of {len(group)}" if len(good) < len(group) else ""),
        _share(_mean(group)),
        _share(best.value if best else None),
        run_link(experiment_id, best.run_id, f"`{best.genotype_hash}`")
        if best and best.genotype_hash
        else "–",
        ", ".join(tests) or "–",
        f"{sum(o.time_s or 0.0 for o in group):.1f} s",
    ]
    return f"| {' | '.join(cells)} |"


def _valued(group: Iterable[Outcome]) -> list[Outcome]:
    return [o for o in group if o.status in ("finished", "stopped") and o.value is not None]


def _mean(group: Iterable[Outcome]) -> float | None:
    values = [o.value for o in _valued(group) if o.value is not None]
    return math.fsum(values) / len(values) if values else None


def _ending(row: Row) -> str:
    epochs = f"{row.epochs_done} of {row.epochs_total} epochs"
    if row.epochs_done > row.epochs_total:
        epochs = f"{row.epochs_done} epochs for {row.epochs_total}: it went back"
    if row.status == "finished":
        return f"finished ({epochs})"
    if row.status == "stopped" and row.stop:
        return f"stopped after {epochs}: {row.stop.get('reason', 'no reason given')}"
    word = {"running": "interrupted", "oom": "out of memory"}.get(row.status, row.status)
    return f"{word} after {epochs}"


def _facts(row: Row) -> list[str]:
    names = {
        "val_accuracy": "Validation accuracy",
        "test_accuracy": "Test accuracy",
        "train_accuracy": "Training accuracy",
    }
    facts = [(title, _share(row.value(name))) for name, title in names.items()]
    parameters, macs = row.value("params"), row.value("macs")
    facts.append(("Parameters", f"{parameters:,.0f}" if parameters is not None else "–"))
    facts.append(("Multiply-adds", f"{macs / 1e6:,.2f} M" if macs is not None else "–"))
    facts.append(("Genotype", f"`{row.genotype_hash}`" if row.genotype_hash else "–"))
    for result in row.selections.values():
        facts.append((f"Genotype by {result['label']}", f"`{result['genotype_hash']}`"))
    time_s = row.cost.get("time_s")
    facts.append(("Time", f"{time_s:.1f} s" if isinstance(time_s, int | float) else "–"))
    return ["| | |", "|---|---|", *(f"| {t} | {v} |" for t, v in facts if v != "–")]


def _cells(genotype: Mapping[str, Any]) -> list[str]:
    lines = []
    for cell in Genotype.from_json(genotype).cells:
        lines += [f"| {cell.name} | operation |", "|---|---|"]
        lines += [f"| {edge.source} → {edge.target} | {edge.operation} |" for edge in cell.edges]
        lines.append("")
    return lines


def _value_of(other: Outcome) -> str:
    word = "test" if other.stage == "retrain" else "val"
    return f", {word} accuracy {other.value:.4f}" if other.value is not None else ""


def _share(value: float | None) -> str:
    return f"{value:.4f}" if value is not None else "–"
