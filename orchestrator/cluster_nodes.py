"""Asking every node of a Ray cluster something: what it is like, or to get a dataset."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import node_probe
from orchestrator.draining import draining_nodes
from orchestrator.errors import StudyError
from orchestrator.experiment import Experiment
from orchestrator.node_probe import DRIVER_MARK, Report, Request
from orchestrator.preflight import Node
from spaces.core.plugins import ENVIRONMENT_VARIABLE

PATIENCE_S = 90.0
_LOOKS, _LOOK_S = 10, 0.2  # a network file system shows a new file after a moment


def ask(experiment: Experiment, root: Path, patience_s: float = PATIENCE_S) -> list[Node]:
    """Return what each node that may run trials says of itself; Ray has been joined.

    A cluster of this machine alone is not asked: a task would find what the driver finds.

    Returns:
        The driver's machine first, without resources, then the nodes.
    """
    import ray

    alive = offering()
    dataset = None if experiment.simulation is not None else experiment.dataset
    gpus = experiment.tune.per_trial.on_gpu
    with _marked(root) as (folder, token):
        here = node_probe.probe(Request(str(folder), token, "own", dataset, gpus))
        driver = Node(f"{here.host} (driver)", 0.0, 0.0, here, skew_s=0.0, seen=True)
        own = ray.get_runtime_context().get_node_id()
        if [node["NodeID"] for node in alive] == [own]:
            return [driver, *(_node(node, here, seen=True) for node in alive)]
        requests = {
            node["NodeID"]: Request(str(folder), token, f"node-{index}", dataset, gpus)
            for index, node in enumerate(alive)
        }
        answers = on_each(node_probe.probe, requests, patience_s)
        clocks = _clocks([n for n, answer in answers.items() if isinstance(answer, Report)])
        nodes = [driver]
        for node in alive:
            answer = answers[node["NodeID"]]
            if not isinstance(answer, Report):
                nodes.append(_node(node, None, error=str(answer)))
                continue
            skew_s, uncertain_s = clocks.get(node["NodeID"], (None, 0.0))
            seen = _sees(folder / requests[node["NodeID"]].mark, token)
            nodes.append(_node(node, answer, skew_s=skew_s, uncertain_s=uncertain_s, seen=seen))
    return nodes


def offering() -> list[dict[str, Any]]:
    """Return the live nodes that have CPUs or GPUs for trials, as Ray describes them.

    One that drains is none of them: Ray starts nothing there any more.
    """
    import ray

    going = draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]
    return [node for node in nodes if node["Resources"].get("CPU") or node["Resources"].get("GPU")]


def on_each(
    function: Callable[[Any], Any], arguments: Mapping[str, Any], patience_s: float
) -> dict[str, Any]:
    """Call a function of this package on nodes; return what each gave, or a sentence why not.

    Args:
        function: Importable on the nodes.
        arguments: Its argument for each node, by the node's id.
        patience_s: Seconds to wait for all.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Without CPUs of its own, so that a node that is busy answers too.
    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    references = {
        remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(argument): node_id
        for node_id, argument in arguments.items()
    }
    done, waiting = ray.wait([*references], num_returns=len(references), timeout=patience_s)
    found = {references[each]: f"no answer within {patience_s:g} s" for each in waiting}
    for each in done:
        try:
            found[references[each]] = ray.get(each)
        except (RayError, ImportError, AttributeError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            found[references[each]] = lines[-1].strip() if lines else type(error).__name__
    return {node_id: found[node_id] for node_id in arguments}


def now(_nothing: None) -> float:
    """Return the unix time of a node in seconds."""
    return time.time()


def prepare(request: tuple[str, dict[str, Any], str | None]) -> str:
    """Get a dataset where this runs; return its folder.

    Args:
        request: Name, settings, and NAS_PLUGINS of the driver.
    """
    from spaces.core import plugins

    name, settings, folders = request
    if folders:
        os.environ[ENVIRONMENT_VARIABLE] = folders
    config = plugins.make_config("datasets", settings)[1]
    return str(plugins.load("datasets", name).prepare(config))


def prepare_everywhere(
    name: str, settings: Mapping[str, Any], patience_s: float
) -> list[tuple[str, str, str | None]]:
    """Get a dataset on every node of the cluster that has been joined.

    Returns:
        Of each node its name, the folder, and None; or its name, "" and why it has none.

    Raises:
        StudyError: No node of the cluster has anything for trials.
    """
    alive = offering()
    if not alive:
        raise StudyError("the cluster has no node with CPUs or GPUs for trials.")
    request = (name, dict(settings), os.environ.get(ENVIRONMENT_VARIABLE))
    answers = on_each(_prepared, {node["NodeID"]: request for node in alive}, patience_s)
    found: list[tuple[str, str, str | None]] = []
    for node in alive:
        answer = answers[node["NodeID"]]
        folder, error = answer if isinstance(answer, tuple) else ("", str(answer))
        found.append((_name(node), folder, error))
    return found


def _prepared(request: tuple[str, dict[str, Any], str | None]) -> tuple[str, str | None]:
    from spaces.core.errors import NasError

    try:
        return prepare(request), None
    except (NasError, OSError) as error:
        return "", str(error)


def _clocks(node_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return how far each node's clock is from this one, and how far that may be wrong, in s."""
    found = {}
    for node_id in node_ids:
        begun = time.time()
        answer = on_each(now, {node_id: None}, PATIENCE_S)[node_id]
        ended = time.time()
        if isinstance(answer, float):
            found[node_id] = (answer - (begun + ended) / 2, (ended - begun) / 2)
    return found


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _node(node: Mapping[str, Any], report: Report | None, **more: Any) -> Node:
    has = node["Resources"]
    return Node(_name(node), has.get("CPU", 0.0), has.get("GPU", 0.0), report, **more)


@contextlib.contextmanager
def _marked(root: Path) -> Iterator[tuple[Path, str]]:
    """Have a folder below `root` with a file that only this process can have written."""
    token = secrets.token_hex(8)
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".nas-doctor-", dir=root))
        folder.chmod(0o777)  # a node may work as another user
        (folder / DRIVER_MARK).write_text(token)
    except OSError as error:
        raise StudyError(f"{root} cannot be written to: {error.strerror}.") from error
    try:
        yield folder, token
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sees(path: Path, token: str) -> bool:
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError):
            if path.read_text() == token:
                return True
        time.sleep(_LOOK_S)
    return False
