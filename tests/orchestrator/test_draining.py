"""Nodes that are to go, and workers that are told to: trials finish their epoch and move, free."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import sweep
from orchestrator.draining import LEAVING, Draining
from orchestrator.failures import MOVED, node_died, preempted
from orchestrator.leaving import Leaving
from orchestrator.monitor import Monitor
from orchestrator.study_trial import StudySearch
from orchestrator.trial_log import log_file, parse
from tests.orchestrator import drive, here
from tests.orchestrator.test_monitor import KEY, monitor, ray_config
from tests.orchestrator.test_retries import NODE
from tests.orchestrator.test_study_trial import search_config

__all__ = ["monitor"]  # a fixture

PREEMPTED = (
    "Failure # 1 (occurred at ...)\nThe actor died unexpectedly before finishing this task.\n"
    "The actor died because its node has died. Node Id: 1c8d\n"
    "\tthe actor's node was preempted: spot"
)


class Cluster:
    """Trials a and b on nodes 1 and 2, of which some drain, and what is done about it."""

    def __init__(self) -> None:
        self.now, self.going = 1000.0, dict[str, int]()
        self.told, self.killed = list[str](), list[str]()
        self.of = {"a": "node-1", "b": "node-2"}
        self.draining = Draining(
            self.told.append,
            lambda config: None,
            nodes=lambda: self.going,
            node_of=lambda trial: self.of[trial.trial_id],
            kill=lambda trial: self.killed.append(trial.trial_id),
            clock=lambda: self.now,
        )
        self.trials = {name: self.trial(name) for name in self.of}

    @staticmethod
    def trial(name: str) -> Any:
        data = SimpleNamespace(num_failures=0, invalidate_cache=lambda: None, last_result={})
        return SimpleNamespace(
            trial_id=name,
            status="RUNNING",
            config=ray_config(),
            run_metadata=data,
            set_experiment_tag=lambda tag: None,
        )

    def look(self, seconds: float = 2.0) -> list[str]:
        """Let time pass and return the trials whose processes have been ended by now."""
        self.now += seconds
        self.draining.look([t for t in self.trials.values() if t.status == "RUNNING"])
        return self.killed

    def epoch(self, name: str, **result: Any) -> None:
        self.draining.heard(self.trials[name], result)


def test_a_trial_finishes_its_epoch_before_it_moves() -> None:
    cluster = Cluster()
    cluster.epoch("a")
    assert cluster.look() == []
    cluster.going = {"node-1": 1_062_000}
    assert cluster.look(0.5) == []
    assert cluster.look() == []
    assert cluster.told == ["node node-1 is to go in 58 s: its trials finish their epoch and move"]
    cluster.epoch("b")
    assert cluster.look() == []
    cluster.epoch("a")
    assert cluster.look(0.0) == ["a"]
    assert cluster.trials["a"].run_metadata.num_failures == -1
    assert cluster.draining.is_moved(cluster.trials["a"])
    assert not cluster.draining.is_moved(cluster.trials["a"])
    assert not cluster.draining.is_moved(cluster.trials["b"])


def test_after_it_has_moved_it_is_left_alone() -> None:
    cluster = Cluster()
    cluster.look()
    cluster.going = {"node-1": 0}
    cluster.look()
    cluster.epoch("a")
    cluster.look()
    cluster.trials["a"].status = "PENDING"
    cluster.look()
    cluster.trials["a"].status, cluster.of["a"] = "RUNNING", "node-2"
    cluster.look()
    cluster.epoch("a")
    assert cluster.look() == ["a"]
    assert len(cluster.told) == 2


def test_what_begins_on_a_node_that_drains_moves_at_once() -> None:
    cluster = Cluster()
    cluster.going = {"node-1": 0}
    cluster.look()
    cluster.trials["c"], cluster.of["c"] = cluster.trial("c"), "node-1"
    assert cluster.look() == ["c"]


def test_a_worker_that_says_that_it_leaves_moves_wherever_it_is() -> None:
    cluster = Cluster()
    cluster.look()
    cluster.epoch("b", **{LEAVING: 1})
    assert cluster.look(0.0) == ["b"]


def test_a_trial_that_ended_meanwhile_is_not_ended_again() -> None:
    cluster = Cluster()
    cluster.look()
    cluster.going = {"node-1": 0}
    cluster.look()
    cluster.epoch("a")
    cluster.trials["a"].status = "TERMINATED"
    assert cluster.look() == []
    # Nor one that was lost with the node before it could be moved.
    cluster.trials["a"].status, cluster.of["a"] = "RUNNING", "node-2"
    assert cluster.look() == []


def callback(cluster: Cluster, monitor: Monitor) -> Any:
    def ignore(*_: Any) -> None:
        pass

    return sweep.make_callback(
        on_result=ignore,
        on_end=monitor.on_end,
        on_tick=ignore,
        on_retry=monitor.on_retry,
        draining=cluster.draining,
        tick_s=0.0,
    )


def test_tune_counts_no_move_and_no_preemption(monitor: Monitor, tmp_path: Path) -> None:
    cluster, error = Cluster(), tmp_path / "error.txt"
    told = callback(cluster, monitor)
    trial = cluster.trials["a"]
    trial.error_file = str(error)
    error.write_text("Failure # 1\nThe actor died: it was killed by `ray.kill`")
    told.on_trial_result(iteration=1, trials=[trial], trial=trial, result={LEAVING: 1})
    told.on_step_end(iteration=1, trials=[trial])
    trial.run_metadata.num_failures += 1  # as Tune does
    told.on_trial_recover(iteration=1, trials=[trial], trial=trial)
    assert trial.run_metadata.num_failures == 0
    assert not log_file(monitor.study.path, KEY).exists()  # it has not failed
    # Tune leaves out what was preempted; taking it off once more would be a retry for nothing.
    for text, left in ((PREEMPTED, 1), (NODE, 0)):
        trial.run_metadata.num_failures = 1
        error.write_text(text)
        told.on_trial_recover(iteration=1, trials=[trial], trial=trial)
        assert trial.run_metadata.num_failures == left
    assert preempted(PREEMPTED)
    assert not preempted(NODE)


def test_a_move_that_tune_gives_up_costs_no_round(monitor: Monitor, tmp_path: Path) -> None:
    cluster = Cluster()
    told, trial = callback(cluster, monitor), cluster.trials["a"]
    trial.error_file, trial.last_result = str(tmp_path / "error.txt"), None
    Path(trial.error_file).write_text("Failure # 1\nThe actor died: it was killed")
    cluster.epoch("a", **{LEAVING: 1})
    cluster.look()
    told.on_trial_error(iteration=1, trials=[trial], trial=trial)
    ((_, error),) = monitor.lost.values()
    assert error.endswith(MOVED)
    assert node_died(error)


def test_sigterm_lets_a_worker_finish_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leaving, "_told", False)
    monkeypatch.setattr("orchestrator.leaving.PATIENCE_S", 0.0)
    block = StudySearch(search_config(tmp_path, epochs=3))
    assert LEAVING not in block.step()
    run, before = block.trials[0].run_epoch, signal.getsignal(signal.SIGTERM)

    def told() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return run()

    block.trials[0].run_epoch = told  # type: ignore[method-assign]
    result = block.step()
    assert (result[LEAVING], result["done"]) == (1, False)
    assert block.trials[0].epoch == 2
    assert signal.getsignal(signal.SIGTERM) == before
    block.trials[0].run_epoch = run  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        block.step()
    again = StudySearch(search_config(tmp_path, epochs=3))
    assert again.trials[0].epoch == 2


def test_a_second_sigterm_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaving, "_told", False)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with Leaving() as leaving:
            os.kill(os.getpid(), signal.SIGTERM)
            assert leaving.told
            assert not heard
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


# -- on a real cluster ----------------------------------------------------------------------------


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """Return the address of a cluster of two nodes with a CPU each, and a head that has none."""
    with drive.short_ray_folder():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            from ray.cluster_utils import Cluster as RayCluster

            head = {"num_cpus": 0, "include_dashboard": False}
            running = RayCluster(initialize_head=True, head_node_args=head)
            for _ in range(2):
                running.add_node(num_cpus=1)
        try:
            yield str(running.address)
        finally:
            running.shutdown()


def drain(address: str, node: str) -> None:
    """Do what `ray drain-node` does, as a spot notice of a minute would."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = ray._raylet.GcsClient(address=address)
    accepted, why = client.drain_node(node, reason, "spot", int((time.time() + 60) * 1000))
    assert accepted, why


def test_trials_of_a_real_node_that_drains_move_and_nothing_counts(
    two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked often and with epochs to spare, for the trials not to end before the driver has asked.
    monkeypatch.setattr("orchestrator.draining.EVERY_S", 0.1)
    file = drive.write_experiment(tmp_path, "s", epochs=20, more=here.ON_RAY)
    drive.without_retraining(file)
    drained: list[str] = []

    def watch() -> None:
        import ray
        from ray._private import state

        # Once each of the two has a trial that is through an epoch.
        parts = [path for path in (tmp_path / "s" / "logs" / "trials").glob("*.jsonl")]
        done = [p for p in parts if any(e["event"] == "epoch" for e in parse(p.read_bytes()))]
        if drained or len(done) < 2:
            return
        actors = state.actors().values()
        nodes = {each["Address"]["NodeID"] for each in actors if each["State"] == "ALIVE"}
        head = {each["NodeID"] for each in ray.nodes() if not each["Resources"].get("CPU")}
        drained.append(sorted(nodes - head)[0])
        drain(two_nodes, drained[0])

    words = ["--set", "method=darts", "--set", "tune.max_failures=0"]
    code, out = here.Nas(two_nodes)("run", file, *words, root=tmp_path, watch=watch)
    assert code == 0, out
    assert f"node {drained[0][:8]} is to go in" in out
    rows = drive.rows(tmp_path / "s")
    assert [(row["status"], row["epochs_done"]) for row in rows] == [("finished", 20)] * 2
    moved = 0
    for row in rows:
        told = parse(log_file(tmp_path / "s", row["key"]).read_bytes())
        names = [entry["event"] for entry in told]
        assert not {"again", "lost", "error", "failed"} & set(names), json.dumps(told)
        if "moved" in names:
            moved += 1
            on = told[names.index("continued")]
            # Nothing is lost: it goes on behind the epoch after which it was moved.
            assert on["epoch"] >= told[names.index("moved")]["epoch"] >= 1
            assert [e["epoch"] for e in told if e["event"] == "epoch"] == list(range(1, 21))
    assert moved == 1
