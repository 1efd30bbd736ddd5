"""Whether a study can run where it is to run, known in seconds: `nas doctor`, and every run.

Checks are functions of the experiment and of what nodes report, so that each can be tried without a
cluster. A local run is judged from this machine alone, without Ray.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from orchestrator import factors, tracking_location
from orchestrator.errors import ConfigError, StudyError
from orchestrator.experiment import Experiment
from orchestrator.node_probe import Report
from orchestrator.statistics import show_bytes
from orchestrator.study import studies_root

State = Literal["good", "warn", "bad"]
LITTLE_BYTES = 1_000_000_000
_SKEW_S, _WRONG_CLOCK_S = 2.0, 60.0
_ANSWER_S = 1.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
# A row has its ledger file and its final state; while it runs a state and a partial row.
_FILES_PER_ROW, _FILES_PER_STUDY = 5, 60
_ROW_BYTES, _STUDY_BYTES = 2_000, 5_000_000  # an epoch of a row; logs, report and the like
_NAMED = 4


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        state: "good", "warn" (it will run, and this should be known) or "bad" (it cannot work).
        said: What was found, with numbers, and what to do.
    """

    name: str
    state: State
    said: str


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Attributes:
        name: What it is called in messages.
        cpus, gpus: What Ray may give to trials there.
        report: What it says of itself, or None.
        error: Why it said nothing, or None.
        skew_s: Its clock less the driver's, in seconds, or None.
        uncertain_s: How far that may be wrong.
        seen: Whether the driver reads what the node wrote.
    """

    name: str
    cpus: float
    gpus: float
    report: Report | None = None
    error: str | None = None
    skew_s: float | None = None
    uncertain_s: float = 0.0
    seen: bool = False


def refuse(experiment: Experiment, root: str | os.PathLike[str] | None) -> list[str]:
    """Look at what can be told without Ray, within some milliseconds; return warnings.

    Raises:
        StudyError: Something is bad.
    """
    checks = [
        *of_storage(experiment, studies_root(root)),
        of_tracking(experiment, root, quick=True),
    ]
    return _refused(checks)


def refuse_cluster(experiment: Experiment, nodes: Sequence[Node], digest: str | None) -> list[str]:
    """Refuse a cluster on which the study cannot run; return warnings.

    Raises:
        StudyError: Something is bad, with all that is.
    """
    offering = [node for node in nodes if node.cpus or node.gpus]
    return _refused([*of_resources(experiment, offering), *of_nodes(experiment, nodes, digest)])


def _refused(checks: Sequence[Check]) -> list[str]:
    bad = [check for check in checks if check.state == "bad"]
    if bad:
        raise StudyError("\n".join(f"{check.name}: {check.said}" for check in bad))
    return [f"{check.name}: {check.said}" for check in checks if check.state == "warn"]


def of_study(experiment: Experiment, root: str | os.PathLike[str] | None) -> Check:
    """Look for a study of the same name."""
    from orchestrator.study import Study

    path = studies_root(root) / experiment.name
    if not (path / "study.json").is_file():
        return Check("study", "good", f"{experiment.name} is new in {path.parent}")
    study = Study.open(path)
    holder = study.holder()
    if holder is None:
        return Check(
            "study",
            "warn",
            f"{study.name} exists with {len(study.ledger.keys())} rows: go on with it by "
            f"`nas resume {study.name}`, or choose another --name",
        )
    return Check(
        "study",
        "bad",
        f"{study.name} is running (pid {holder.pid} on {holder.host} since {holder.since}): "
        f"choose another --name, or end it by `nas stop {study.name}`",
    )


def of_storage(experiment: Experiment, root: Path, state_bytes: int = 0) -> list[Check]:
    """Look at the folder of studies: whether it can be written to, its space and its files.

    Args:
        experiment: What is to be run.
        root: Folder of studies; it need not be there.
        state_bytes: Bytes of the largest final state, where known.
    """
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        said = f"{there} cannot be written to ({error.strerror}); choose another --root"
        return [Check("storage", "bad", said)]
    checks = [Check("storage", "good", f"{root} can be written to")]
    try:
        free = shutil.disk_usage(there).free
        nodes = os.statvfs(there)
    except OSError as error:
        return [*checks, Check("disk", "warn", f"free space cannot be told: {error.strerror}")]
    rows = num_rows(experiment)
    needs = disk_bytes(experiment, rows, state_bytes)
    numbers = f"about {show_bytes(needs)} for {rows} rows, {show_bytes(free)} free in {there}"
    if not state_bytes:
        numbers = f"at least {numbers.removeprefix('about ')}"
    state: State = "bad" if free < needs else "warn" if free < LITTLE_BYTES + needs else "good"
    checks.append(Check("disk", state, numbers + ("" if state == "good" else "; see `keep`")))
    files = rows * _FILES_PER_ROW + _FILES_PER_STUDY
    if nodes.f_files and nodes.f_favail < files:  # 0: the file system counts none
        said = f"{files} files at most, {nodes.f_favail} can be made in {there}"
        checks.append(Check("files", "bad", said))
    else:
        checks.append(Check("files", "good", f"{files} files at most"))
    return checks


def num_rows(experiment: Experiment) -> int:
    """Return the rows of a study, with the most retrainings that can follow its searches."""
    configurations = factors.count(experiment)
    retrained = 0
    if experiment.retrain is not None:
        genotypes = min(configurations * len(experiment.seeds), experiment.retrain.top_k)
        groups = factors.count_blocks(experiment) if experiment.retrain.per == "method" else 1
        retrained = genotypes * groups * len(experiment.retrain.seeds)
    return configurations * len(experiment.seeds) + retrained


def disk_bytes(experiment: Experiment, rows: int, state_bytes: int) -> int:
    """Return the bytes that a study's folder grows to: curves, and final states that are kept."""
    from orchestrator import planning

    epochs = planning.longest_epochs(experiment)
    kept = rows if experiment.kept is None else min(rows, experiment.kept)
    return _STUDY_BYTES + 2 * rows * epochs * _ROW_BYTES + kept * state_bytes


def of_tracking(
    experiment: Experiment, root: str | os.PathLike[str] | None, *, quick: bool = False
) -> Check:
    """Look whether MLflow's store answers; the driver's host alone talks to it.

    Args:
        experiment: Names it, or not.
        root: Folder of studies.
        quick: Whether only what needs no connection is looked at.
    """
    try:
        uri = tracking_location.tracking_uri(experiment, studies_root(root))
    except ConfigError as error:
        return Check("tracking", "bad", str(error))
    shown = tracking_location.without_password(uri)
    file = tracking_location.database_file(uri)
    if file is not None:
        if tracking_location.on_network(file.absolute().parent):
            return Check(
                "tracking",
                "warn",
                f"{shown} is on a network file system, where SQLite damages its files: set "
                "mlflow.tracking_uri to a server",
            )
        return Check("tracking", "good", f"{shown}, from this host alone")
    parts = urlsplit(uri)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if quick or parts.hostname is None or port is None:
        return Check("tracking", "good", shown)
    try:
        socket.create_connection((parts.hostname, port), timeout=_ANSWER_S).close()
    except OSError as error:
        return Check(
            "tracking",
            "warn",
            f"{shown} does not answer ({error}): the study runs all the same and is sent later, by "
            "itself or by `nas sync`",
        )
    return Check("tracking", "good", f"{shown} answers; workers never talk to it")


def of_resources(experiment: Experiment, nodes: Sequence[Node]) -> list[Check]:
    """Look whether a trial fits on a node: Ray adds nodes up, and would wait for ever."""
    asked_cpus, asked_gpus = experiment.tune.per_trial.cpus, experiment.tune.per_trial.most_gpus
    stages = {"a trial": 1} | ({"a retraining": experiment.workers} if _spread(experiment) else {})
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    largest = ", ".join(f"{n.name}: {n.cpus:g} CPUs and {n.gpus:g} GPUs" for n in _most(nodes))
    checks = []
    for what, workers in stages.items():
        bundle = f"{asked_cpus:g} CPUs and {asked_gpus:g} GPUs"
        share = bundle if workers == 1 else f"{workers} times {bundle}"
        room = sum(places(node, asked_cpus, asked_gpus) for node in nodes) // workers
        if room:
            said = (
                f"{room} at a time, each {share}; {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs"
            )
            checks.append(Check("resources", "good", said))
            continue
        checks.append(
            Check(
                "resources",
                "bad",
                f"{what} needs {share}, each on one node, and no node has that much "
                f"({largest or 'there is none'}; {cpus:g} CPUs and {gpus:g} GPUs together). Lower "
                "tune.per_trial (or retrain.workers) or add a larger node",
            )
        )
    return checks


def _spread(experiment: Experiment) -> bool:
    retrains = experiment.retrain is not None or experiment.training is not None
    return retrains and experiment.workers > 1


def _most(nodes: Sequence[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: (-node.gpus, -node.cpus))[:_NAMED]


def places(node: Node, cpus: float, gpus: float) -> int:
    """Return how many bundles of that size a node has room for at once."""
    counts = [have / need for have, need in ((node.cpus, cpus), (node.gpus, gpus)) if need > 0]
    return math.floor(min(counts) + 1e-9) if counts else 0


def of_nodes(experiment: Experiment, nodes: Sequence[Node], digest: str | None) -> list[Check]:
    """Look at what the nodes say of code, storage, data, GPUs and clocks.

    Args:
        experiment: What is to be run.
        nodes: The nodes, the driver's own first.
        digest: Content digest of the dataset on the driver's machine; None where nobody reads it.
    """
    silent = {n.name: n.error or "no answer" for n in nodes if n.report is None}
    heard = {n.name: n.report for n in nodes if n.report is not None}
    checks = []
    if silent:
        said = f"{_listed(silent)}. Is the same package installed there, and is the node alive?"
        checks.append(Check("nodes", "bad", said))
    else:
        checks.append(Check("nodes", "good", f"{len(nodes)} answered"))
    if not heard:
        return checks
    here = next(iter(heard.values()))
    checks += _versions(here, heard)
    storage = {
        name: r.storage_error or "it does not see what the driver wrote"
        for name, r in heard.items()
        if r.storage_error or not r.shared
    }
    storage |= {
        n.name: "the driver does not see what it wrote"
        for n in nodes
        if n.report is not None and not n.seen and n.name not in storage
    }
    fix = "Put the folder of studies (--root) on a file system that all nodes mount at one path"
    checks.append(_one("shared folder", storage, "every node reads and writes it", f". {fix}"))
    if digest is not None:
        checks.append(_data(experiment, heard, digest))
    if experiment.tune.per_trial.on_gpu:
        blind = {
            n.name: f"Ray offers {n.gpus:g} GPUs and torch has {n.report.gpus or 0}"
            for n in nodes
            if n.report is not None and n.gpus > (n.report.gpus or 0)
        }
        fix = ". Look at the driver, and whether torch there is built for CUDA"
        checks.append(_one("gpus", blind, "torch has what Ray offers", fix))
    checks.append(_clocks(nodes))
    return checks


def _versions(here: Report, heard: Mapping[str, Report]) -> list[Check]:
    other = {
        name: f"{r.version} ({r.code})"
        for name, r in heard.items()
        if (r.version, r.code) != (here.version, here.code)
    }
    told = f"nas-orchestrator {here.version} ({here.code}) everywhere"
    fix = f"; the driver has {here.version} ({here.code}). Install one version on all nodes"
    checks = [_one("package", other, told, fix)]
    odd = {}
    for name, r in heard.items():
        differing = [key for key in here.versions if r.versions.get(key) != here.versions[key]]
        if differing:
            odd[name] = ", ".join(f"{key} {r.versions.get(key)}" for key in differing)
    shown = ", ".join(f"{key} {value}" for key, value in here.versions.items())
    fix = f"; the driver has {shown}. Curves of other versions may differ"
    checks.append(_one("libraries", odd, shown, fix, "warn"))
    return checks


def _data(experiment: Experiment, heard: Mapping[str, Report], digest: str) -> Check:
    name = experiment.dataset["name"]
    lacking = {node: r.data_error for node, r in heard.items() if r.data_error}
    lacking |= {
        node: f"it has other files ({r.digest}, here {digest})"
        for node, r in heard.items()
        if r.data_error is None and r.digest != digest
    }
    fix = f". Get it there: nas data prepare {name} --all-nodes"
    return _one("data", lacking, f"{name} ({digest}) on every node", fix)


def _clocks(nodes: Sequence[Node]) -> Check:
    skews = {n.name: abs(n.skew_s) - n.uncertain_s for n in nodes if n.skew_s is not None}
    late = {name: f"{skew:.1f} s off" for name, skew in skews.items() if skew > _SKEW_S}
    wrong = any(skew > _WRONG_CLOCK_S for skew in skews.values())
    fix = ". Times in rows and MLflow will be wrong by that: run NTP"
    most = max(skews.values(), default=0.0)
    told = f"less than {max(0.1, math.ceil(10 * most) / 10):g} s apart"
    return _one("clocks", late, told, fix, "bad" if wrong else "warn")


def _one(
    name: str, found: Mapping[str, str | None], good: str, fix: str, state: State = "bad"
) -> Check:
    """Return one check of all nodes: good, or what is wrong on which."""
    return Check(name, state, _listed(found) + fix) if found else Check(name, "good", good)


def _listed(found: Mapping[str, str | None]) -> str:
    shown = [f"{name}: {said}" for name, said in list(found.items())[:_NAMED]]
    more = [f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return "; ".join([*shown, *more])


def this_machine(experiment: Experiment) -> Node:
    """Return this machine as a private Ray would offer it to trials."""
    from orchestrator.checks import visible_gpus

    cpus = experiment.ray.cpus or os.cpu_count() or 1
    return Node(platform_name(), float(cpus), float(visible_gpus() or 0))


def platform_name() -> str:
    """Return the name of this machine."""
    with contextlib.suppress(OSError):
        return socket.gethostname()
    return "this machine"


def as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return checks as plain JSON."""
    return [{"check": c.name, "state": c.state, "said": c.said} for c in checks]
