"""`nas doctor`: everything that `nas run` would refuse or warn of, at once, and nothing started."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator import checks as of_hardware
from orchestrator import cluster_nodes, costs, planning, preflight, sweep
from orchestrator.experiment import Experiment
from orchestrator.preflight import Check
from orchestrator.study import studies_root
from spaces.core.errors import NasError


def examine(experiment: Experiment, root: str | os.PathLike[str] | None) -> list[Check]:
    """Return every check of an experiment that would be run now."""
    found = [preflight.of_study(experiment, root)]
    data = _told("data", lambda: _data(experiment))
    methods = _told("experiment", lambda: _methods(experiment))
    state_bytes = 0
    if "bad" not in (data.state, methods.state):
        with suppress(NasError):  # another check says it
            state_bytes = _state_bytes(experiment)
    found += preflight.of_storage(experiment, studies_root(root), state_bytes)
    found.append(preflight.of_tracking(experiment, root))
    found += [methods, data]
    if experiment.ray.address == "local":
        found.append(_told("resources", lambda: _hardware(experiment)))
        return found
    return [*found, *_cluster(experiment, studies_root(root))]


def _cluster(experiment: Experiment, root: Path) -> list[Check]:
    try:
        with sweep.cluster(experiment.ray.address, None, Path(os.devnull)):
            nodes = cluster_nodes.ask(experiment, root)
    except NasError as error:
        return [Check("cluster", "bad", str(error))]
    digest = None
    with suppress(NasError):  # another check says it
        digest = planning.dataset_digest(experiment.dataset)
    offering = [node for node in nodes if node.cpus or node.gpus]
    return [
        Check("cluster", "good", f"{experiment.ray.address} answers"),
        *preflight.of_resources(experiment, offering),
        *preflight.of_nodes(experiment, nodes, digest),
    ]


def _hardware(experiment: Experiment) -> str:
    of_hardware.check_hardware(experiment)
    cpus, gpus = experiment.tune.per_trial.cpus, experiment.tune.per_trial.most_gpus
    here = preflight.this_machine(experiment)
    room = preflight.places(here, cpus, gpus)
    return (
        f"{room} at a time, each {cpus:g} CPUs and {gpus:g} GPUs; this machine, "
        f"{here.cpus:g} CPUs, {here.gpus:g} GPUs"
    )


def _data(experiment: Experiment) -> str:
    of_hardware.check_data(experiment)
    of_hardware.check_oracle(experiment)
    name = experiment.dataset["name"]
    return f"{name} ({planning.dataset_digest(experiment.dataset)}) is here"


def _methods(experiment: Experiment) -> str:
    of_hardware.check_methods(experiment)
    costs.check_limits(experiment)
    return f"{preflight.num_rows(experiment)} rows at most; their parts go together"


def _state_bytes(experiment: Experiment) -> int:
    """Return the bytes of the largest final state, by making one of each kind."""
    from orchestrator import estimate

    return estimate.state_bytes(experiment)


def _told(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "good", look())
    except NasError as error:
        return Check(name, "bad", "; ".join(str(error).splitlines()))
