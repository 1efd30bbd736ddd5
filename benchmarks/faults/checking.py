"""What must hold after a round: every trial once, as in an undisturbed run, everywhere."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.nodes import runs
from benchmarks.faults.studies import (
    BLOCKS,
    CONFIGURATIONS,
    EPOCHS,
    ROWS,
    RUNGS,
    SEEDS,
    RoundStudy,
    Times,
)

_SECTIONS = ("space", "dataset", "method", "search")
_METRIC = "search/val_accuracy"
_PATIENCE_S = 60.0


@dataclass
class Verdict:
    """What was found after a round.

    Attributes:
        lost, doubled, wrong: What should not be, a sentence each.
        redone: Epochs that were recorded when a fault struck, and were computed again.
        destroyed: Such epochs of rows whose own record was damaged on purpose.
        knew: Whether searcher and scheduler were seen to know all trials; None where the last
            command had nothing left to run, and so made none.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    redone: int = 0
    destroyed: int = 0
    knew: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.doubled or self.wrong)


class Reference:
    """Undisturbed searches, run without Ray when they are first asked for."""

    def __init__(self) -> None:
        self._curves: dict[str, list[dict[str, Any]]] = {}
        self._coming: dict[str, Future[list[dict[str, Any]]]] = {}
        self._pool: ProcessPoolExecutor | None = None

    def prepare(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Begin those of rows that are not known, side by side in processes of their own."""
        for row in rows:
            name = _name(row)
            if name in self._curves or name in self._coming:
                continue
            if self._pool is None:
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(os.cpu_count(), mp_context=spawn)
            self._coming[name] = self._pool.submit(_undisturbed, _settings(row), row["seed"])

    def curve(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the curve that a row's search has if nothing happens to it, without times."""
        name = _name(row)
        if name not in self._curves:
            coming = self._coming.pop(name, None)
            found = coming.result() if coming else _undisturbed(_settings(row), row["seed"])
            self._curves[name] = found
        return self._curves[name]

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: row["settings"][kind] for kind in _SECTIONS}


def _name(row: Mapping[str, Any]) -> str:
    return json.dumps([_settings(row), row["seed"]], sort_keys=True)


def _undisturbed(settings: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    import torch

    from trainables.search import SearchTrial

    torch.set_num_threads(1)
    alone = SearchTrial(**settings, seed=seed)
    alone.run()
    return without_times(json.loads(json.dumps(alone.curve, default=str)))


def without_times(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a curve without what differs between two runs of one search."""
    from trainables.search import TIME_FIELDS

    ignored = {*TIME_FIELDS, "ended", "genotype"}  # the genotype is there by its hash
    return [{k: v for k, v in entry.items() if k not in ignored} for entry in curve]


def check(
    study: RoundStudy,
    reference: Reference,
    uri: str,
    struck: list[Times],
    destroyed: set[str],
) -> Verdict:
    """Look at everything that a round has left.

    Args:
        study: The study, resumed to its end.
        reference: Undisturbed searches.
        uri: Of the MLflow server, which works again.
        struck: What was recorded when each fault struck.
        destroyed: Rows whose own record was damaged.
    """
    verdict = Verdict()
    rows = study.rows()
    reference.prepare(rows.values())
    _check_plan(verdict, rows)
    for key, row in rows.items():
        _check_row(verdict, key, row, reference)
    _check_tracking(verdict, rows, study, uri)
    _check_knowledge(verdict, rows, study)
    _check_leftovers(verdict, rows, study)
    _count_redone(verdict, study.times(), struck, destroyed)
    return verdict


def _check_plan(verdict: Verdict, rows: Mapping[str, Mapping[str, Any]]) -> None:
    pairs = Counter((row["config_id"], row["seed"]) for row in rows.values())
    verdict.doubled += [f"{each} has {n} rows" for each, n in pairs.items() if n > 1]
    blocks = defaultdict(set)
    for row in rows.values():
        blocks[row["block"]].add(row["config_id"])
    for block in range(BLOCKS):
        count = len(blocks[block])
        if count > CONFIGURATIONS:
            verdict.doubled.append(f"block {block} has {count} configurations")
        if count < CONFIGURATIONS:
            verdict.lost.append(f"block {block} has {count} configurations")
    lost = [
        f"{config} has no seed {seed}"
        for config in sorted(set().union(*blocks.values()) if blocks else ())
        for seed in SEEDS
        if not pairs[config, seed]
    ]
    verdict.lost += lost
    if len(rows) != ROWS and not (verdict.lost or verdict.doubled):
        verdict.wrong.append(f"{len(rows)} rows of {ROWS}")


def _check_row(verdict: Verdict, key: str, row: Mapping[str, Any], reference: Reference) -> None:
    epochs = [entry["epoch"] for entry in row["curve"]]
    whole = {"finished": (EPOCHS,), "stopped": RUNGS}.get(row["status"], ())
    if len(epochs) not in whole or row["epochs_done"] != len(epochs):
        verdict.wrong.append(f"{key} is {row['status']} with {len(epochs)} epochs")
    if epochs != list(range(1, len(epochs) + 1)):
        verdict.wrong.append(f"{key} has the epochs {epochs}")
    found = without_times(row["curve"])
    if found != reference.curve(row)[: len(found)]:
        verdict.wrong.append(f"{key} differs from the undisturbed search")
    if row["curve"] and row["genotype_hash"] != row["curve"][-1]["genotype_hash"]:
        verdict.wrong.append(f"{key} has another genotype than its last epoch")


def _check_tracking(
    verdict: Verdict, rows: Mapping[str, Mapping[str, Any]], study: RoundStudy, uri: str
) -> None:
    """Every row is one run, ended, with each of its epochs once."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    study_id = json.loads((study.path / "study.json").read_text())["id"]
    places = [each.experiment_id for each in client.search_experiments()]
    runs_found = client.search_runs(
        places, filter_string=f"tags.`nas.study_id` = '{study_id}'", max_results=1000
    )
    by_key = defaultdict(list)
    for run in runs_found:
        by_key[run.data.tags.get("nas.key", "")].append(run)
    for key, found in by_key.items():
        if len(found) > 1:
            verdict.doubled.append(f"MLflow has {len(found)} runs of {key or 'the study'}")
        verdict.wrong += [
            f"MLflow shows {key or 'the study'} {run.info.status}"
            for run in found
            if run.info.status not in ("FINISHED", "FAILED", "KILLED")
        ]
    verdict.lost += [f"MLflow has no run of {key}" for key in rows if key not in by_key]
    if "" not in by_key:
        verdict.lost.append("MLflow has no run of the study")
    for key in set(by_key) - set(rows) - {""}:
        verdict.wrong.append(f"MLflow has a run of {key}, which is not in the ledger")
    for key, row in rows.items():
        for run in by_key.get(key, ()):
            steps = [m.step for m in client.get_metric_history(run.info.run_id, _METRIC)]
            if sorted(steps) != list(range(1, len(row["curve"]) + 1)):
                verdict.wrong.append(f"MLflow has the epochs {sorted(steps)} of {key}")


def _check_knowledge(
    verdict: Verdict, rows: Mapping[str, Mapping[str, Any]], study: RoundStudy
) -> None:
    """Searcher and scheduler had every trial in their comparison when the last one ended."""
    path = study.path / "ray" / "search" / "known.json"
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    ended = [float(row["ended"] or 0.0) for row in rows.values()]
    if not ended or known["time"] < max(ended):
        return  # it was left by a driver that was killed; nothing was left to run after that
    configurations = {row["config_id"]: len(row["curve"]) for row in rows.values()}
    complete = {row["config_id"] for row in rows.values() if row["status"] == "finished"}
    searcher = known["searcher"]
    if searcher is not None:  # or lost trials ran again from a list: nothing was to be suggested
        verdict.knew = True
        _check_searcher(verdict, searcher, complete, len(configurations))
    for milestone, recorded in known["scheduler"]["rungs"]:
        due = sum(epochs >= milestone for epochs in configurations.values())
        if recorded != due:
            verdict.knew = False
            verdict.wrong.append(f"the rung at {milestone:g} had {recorded} of {due} trials")


def _check_searcher(
    verdict: Verdict, searcher: Mapping[str, Any], complete: set[str], count: int
) -> None:
    if set(searcher["complete"]) != complete:
        verdict.knew = False
        verdict.wrong.append(
            f"the searcher knew {len(searcher['complete'])} of {len(complete)} whole configurations"
        )
    if len(complete) + searcher["pruned"] != count:
        verdict.knew = False
        verdict.wrong.append(
            f"the searcher knew {searcher['pruned']} stopped ones of {count - len(complete)}"
        )


def _check_leftovers(
    verdict: Verdict, rows: Mapping[str, Mapping[str, Any]], study: RoundStudy
) -> None:
    for folder, _, names in os.walk(study.path):
        for name in names:
            path = Path(folder) / name
            if name.startswith(".") and name not in (".validate_storage_marker",):
                verdict.wrong.append(f"left behind: {path.relative_to(study.path)}")
            if path.parent.parent.name == "checkpoints" and name in ("state.pt", "row.json"):
                row = rows.get(path.parent.name)
                if row is None or row["status"] == "finished":
                    verdict.wrong.append(f"left behind: {path.relative_to(study.path)}")
    verdict.wrong += [f"still running: {line[:120]}" for line in _going_on(study)]


def _going_on(study: RoundStudy) -> list[str]:
    """Return the command lines of processes that do not end; MLflow gets the report at the end."""
    end = time.monotonic() + _PATIENCE_S
    while (found := _processes(study)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def _processes(study: RoundStudy) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.info["cmdline"] or ())
            if "orchestrator" not in line or process.pid == os.getpid() or not runs(process):
                continue
            if process.environ().get("NAS_ROOT") == str(study.root):
                found.append(line)
    return found


def _count_redone(verdict: Verdict, final: Times, struck: list[Times], destroyed: set[str]) -> None:
    for before in struck:
        for (key, epoch), ended in before.items():
            if final.get((key, epoch), ended) != ended:
                if key in destroyed:
                    verdict.destroyed += 1
                else:
                    verdict.redone += 1
