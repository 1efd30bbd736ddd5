"""What `nas status` knows, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import StudyError
from orchestrator.ledger import replace_file

SUFFIX = ".prom"
_STAGES = ("search", "retrain")
_OUTCOMES = ("useful", "begun", "wasted")
_CAUSES = 8  # a label has few values, or a store of metrics fills up
Sample = tuple[str, dict[str, str], float]

HELP = {
    "nas_running": "Whether a driver runs the study.",
    "nas_trials": "Trials by stage and status.",
    "nas_trials_planned": "Trials of the stage that runs.",
    "nas_epochs": "Epochs by what became of their trials.",
    "nas_trial_hours": "Hours of epochs by what became of their trials.",
    "nas_cpu_hours": "The same times the CPUs that were occupied.",
    "nas_gpu_hours": "The same times the GPUs that were occupied.",
    "nas_failures": "Trials that failed, by cause; the commonest causes.",
    "nas_trials_per_hour": "Trials that ended within the last hour, per hour.",
    "nas_seconds_left": "Estimated time until the stage that runs is complete.",
    "nas_node_heard_seconds": "Time since a node said something.",
    "nas_node_cpu_ratio": "How busy the CPUs of a node are, 0-1.",
    "nas_node_memory_bytes": "Memory of a node.",
    "nas_node_memory_used_bytes": "Memory of a node that is taken.",
    "nas_gpu_busy_ratio": "How busy a GPU is, 0-1.",
    "nas_gpu_memory_bytes": "Memory of a GPU.",
    "nas_gpu_memory_used_bytes": "Memory of a GPU that is taken.",
    "nas_status_time_seconds": "Unix time of these numbers.",
}
"""What is given, all of them gauges."""


def exposition(states: Iterable[Mapping[str, Any]], now: float | None = None) -> str:
    """Return the numbers of studies, each with the label `study`.

    Args:
        states: What `nas status --json` says of each.
        now: Unix time in seconds; None is now.
    """
    samples: dict[str, list[str]] = {}
    for state in states:
        for name, labels, value in _samples(state):
            samples.setdefault(name, []).append(
                _line(name, {"study": state["name"], **labels}, value)
            )
    written = time.time() if now is None else now
    samples["nas_status_time_seconds"] = [_line("nas_status_time_seconds", {}, written)]
    lines = []
    for name, text in HELP.items():
        if name in samples:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", *samples[name]]
    return "\n".join(lines) + "\n"


def write(text: str, path: Path) -> None:
    """Write an exposition so that a reader sees the old one or the new one.

    Raises:
        StudyError: node_exporter would not read a file of that name.
    """
    if path.suffix != SUFFIX:
        raise StudyError(
            f"-o must end in {SUFFIX}, got {str(path)!r}: node_exporter reads no other files."
        )
    replace_file(path, text.encode(), durable=False)


def _samples(state: Mapping[str, Any]) -> Iterator[Sample]:
    yield "nas_running", {}, float(state["state"] == "running")
    for stage in _STAGES:
        for status, count in sorted(state[stage].items()):
            yield "nas_trials", {"stage": stage, "status": status}, count
    progress, stands = state["progress"] or {}, state["standing"]
    if progress:
        yield "nas_trials_planned", {"stage": progress["stage"]}, progress["total"]
    for outcome in _OUTCOMES:
        cost, label = stands[outcome], {"outcome": outcome}
        for name in ("epochs", "trial_hours", "cpu_hours", "gpu_hours"):
            yield f"nas_{name}", label, cost[name]
    for failure in stands["failures"][:_CAUSES]:
        yield "nas_failures", {"cause": failure["cause"]}, failure["rows"]
    yield "nas_trials_per_hour", {}, stands["rows_per_hour"] or 0.0
    if progress.get("left_s") is not None:
        yield "nas_seconds_left", {}, progress["left_s"]
    for node in state["nodes"]:
        yield from _of_node(node)


def _of_node(node: Mapping[str, Any]) -> Iterator[Sample]:
    host = {"host": node["host"]}
    yield "nas_node_heard_seconds", host, node["heard_s"]
    yield "nas_node_cpu_ratio", host, node["cpu_percent"] / 100
    yield "nas_node_memory_bytes", host, node["memory_bytes"]
    yield "nas_node_memory_used_bytes", host, node["used_bytes"]
    gpus: Sequence[Mapping[str, Any]] = node["gpus"]
    for number, gpu in enumerate(gpus):
        which = {**host, "gpu": str(number)}
        if gpu["percent"] is not None:
            yield "nas_gpu_busy_ratio", which, gpu["percent"] / 100
        yield "nas_gpu_memory_bytes", which, gpu["memory_bytes"]
        yield "nas_gpu_memory_used_bytes", which, gpu["used_bytes"]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    if not labels:
        return f"{name} {_number(value)}"
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {_number(value)}"


def _number(value: float) -> str:
    return repr(float(value)) if value != int(value) else str(int(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
