"""Preflight: each check by made-up reports of nodes, and one small cluster that really answers."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cli, cluster_nodes, node_probe, preflight, runner, sweep, tracking_location
from orchestrator.config import load_experiment
from orchestrator.errors import StudyError
from orchestrator.experiment import Experiment
from orchestrator.node_probe import DRIVER_MARK, Report, Request, probe
from orchestrator.preflight import Check, Node
from spaces.core.plugins import ENVIRONMENT_VARIABLE
from tests.orchestrator import drive
from tests.orchestrator.fake_study import YAML, make_study
from tests.orchestrator.test_simulate import Quiet

SAID = Report("n", 0.0, "0.1.0", "abc", {"torch": "2.15.0"}, True, None, 10**12, "d1", None, 1)


def experiment(folder: Path, *overrides: str) -> Experiment:
    file = folder / "tiny.yaml"
    file.write_text(YAML)
    return load_experiment(file, overrides)


def node(name: str = "a", cpus: float = 4.0, gpus: float = 0.0, **changes: Any) -> Node:
    own = {k: changes.pop(k) for k in ("skew_s", "uncertain_s", "seen", "error") if k in changes}
    return Node(name, cpus, gpus, replace(SAID, **changes), **{"seen": True, "skew_s": 0.0, **own})


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def said(checks: list[Check], name: str) -> str:
    return next(check.said for check in checks if check.name == name)


# What a trial needs, and where it fits


@pytest.mark.parametrize(
    ("overrides", "nodes", "state", "text"),
    [
        (["tune.per_trial.cpus=2"], [(4, 0), (3, 0)], "good", "3 at a time, each 2 CPUs"),
        # Ray adds nodes up: 8 CPUs there are, and a trial of 6 would wait for ever.
        (["tune.per_trial.cpus=6"], [(4, 0), (4, 0)], "bad", "no node has that much (a: 4 CPUs"),
        (["tune.per_trial.gpus=0.5"], [(4, 1), (4, 0)], "good", "2 at a time"),
        (["tune.per_trial.gpus=2"], [(4, 1), (4, 1)], "bad", "8 CPUs and 2 GPUs together"),
        (["tune.per_trial.gpus=1"], [], "bad", "there is none"),
    ],
)
def test_a_trial_has_to_fit_on_one_node(
    overrides: list[str], nodes: list[tuple[int, int]], state: str, text: str, tmp_path: Path
) -> None:
    names = "abc"
    there = [node(names[i], cpus, gpus) for i, (cpus, gpus) in enumerate(nodes)]
    (check,) = preflight.of_resources(experiment(tmp_path, *overrides), there)
    assert (check.state, text in check.said) == (state, True), check.said


def test_workers_of_a_retraining_may_be_on_several_nodes(tmp_path: Path) -> None:
    asked = experiment(tmp_path, "retrain.workers=4", "tune.per_trial.cpus=2")
    assert {c.state for c in preflight.of_resources(asked, [node(), node()])} == {"good"}
    checks = preflight.of_resources(asked, [node(), node(cpus=3.0)])
    assert [check.state for check in checks] == ["good", "bad"]
    assert "a retraining needs 4 times 2 CPUs" in checks[1].said


# What nodes say


def test_nodes_that_agree_are_good(tmp_path: Path) -> None:
    checks = preflight.of_nodes(experiment(tmp_path), [node("a"), node("b")], "d1")
    assert set(states(checks).values()) == {"good"}
    assert set(states(checks)) == {
        "nodes", "package", "libraries", "shared folder", "data", "clocks",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name", "state", "text"),
    [
        ({"version": "0.2.0"}, "package", "bad", "b: 0.2.0 (abc); the driver has 0.1.0 (abc)"),
        ({"code": "xyz"}, "package", "bad", "b: 0.1.0 (xyz)"),
        ({"versions": {"torch": "2.6.0"}}, "libraries", "warn", "b: torch 2.6.0"),
        ({"shared": False}, "shared folder", "bad", "b: it does not see what the driver wrote"),
        ({"storage_error": "/x: no"}, "shared folder", "bad", "b: /x: no. Put the folder"),
        ({"seen": False}, "shared folder", "bad", "b: the driver does not see what it wrote"),
        ({"data_error": "gone"}, "data", "bad", "b: gone. Get it there: nas data prepare digits"),
        ({"digest": "d2"}, "data", "bad", "other files (d2, here d1)"),
        ({"skew_s": -5.0, "uncertain_s": 0.5}, "clocks", "warn", "b: 4.5 s off"),
        ({"skew_s": 500.0}, "clocks", "bad", "run NTP"),
    ],
)
def test_a_node_that_differs_is_named_with_what_to_do(
    changes: dict[str, Any], name: str, state: str, text: str, tmp_path: Path
) -> None:
    checks = preflight.of_nodes(experiment(tmp_path), [node("a"), node("b", **changes)], "d1")
    found = states(checks)
    assert found.pop(name) == state
    assert set(found.values()) == {"good"}
    assert text in said(checks, name)


def test_a_clock_that_may_be_right_is_not_called_wrong(tmp_path: Path) -> None:
    late = node("b", skew_s=5.0, uncertain_s=4.0)
    checks = preflight.of_nodes(experiment(tmp_path), [node("a"), late], "d1")
    assert states(checks)["clocks"] == "good"


def test_gpus_that_torch_lacks_are_bad_where_gpus_are_asked_for(tmp_path: Path) -> None:
    nodes = [node("a", gpus=1), node("b", gpus=2)]
    assert "gpus" not in states(preflight.of_nodes(experiment(tmp_path), nodes, "d1"))
    asked = experiment(tmp_path, "tune.per_trial.gpus=1")
    checks = preflight.of_nodes(asked, nodes, "d1")
    assert states(checks)["gpus"] == "bad"
    assert "b: Ray offers 2 GPUs and torch has 1" in said(checks, "gpus")


def test_many_bad_nodes_are_not_all_listed_and_a_silent_one_is(tmp_path: Path) -> None:
    nodes = [node("a"), *(node(f"n{i}", code="z") for i in range(9))]
    nodes.append(Node("dead", 4.0, 0.0, error="no answer within 90 s"))
    checks = preflight.of_nodes(experiment(tmp_path), nodes, "d1")
    assert "n3" in said(checks, "package")
    assert "n4" not in said(checks, "package")
    assert "and 5 more" in said(checks, "package")
    assert "dead: no answer within 90 s" in said(checks, "nodes")
    with pytest.raises(StudyError, match=r"(?s)nodes: dead.*package: n0"):
        preflight.refuse_cluster(experiment(tmp_path), nodes, "d1")


def test_warnings_do_not_refuse(tmp_path: Path) -> None:
    nodes = [node("a"), node("b", versions={"torch": "2.6.0"})]
    assert preflight.refuse_cluster(experiment(tmp_path), nodes, "d1") == [
        "libraries: b: torch 2.6.0; the driver has torch 2.15.0. Curves of other versions may "
        "differ"
    ]


# What a node looks at


def test_a_node_reads_the_drivers_mark_and_leaves_its_own(tmp_path: Path) -> None:
    (tmp_path / DRIVER_MARK).write_text("token")
    report = probe(Request(str(tmp_path), "token", "mine", {"name": "digits"}))
    assert (report.shared, report.storage_error, report.data_error) == (True, None, None)
    assert report.digest is not None
    assert (tmp_path / "mine").read_text() == "token"
    assert not probe(Request(str(tmp_path), "another", "mine")).shared
    elsewhere = probe(Request(str(tmp_path / "nowhere"), "token", "mine"))
    assert "nowhere" in (elsewhere.storage_error or "")
    lacking = probe(Request(str(tmp_path), "token", "mine", {"name": "cifar10", "root": "/none"}))
    assert "cifar10" in (lacking.data_error or "")


def test_the_digest_of_the_code_is_of_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    monkeypatch.setattr(node_probe, "__file__", str(tmp_path / "orchestrator" / "node_probe.py"))
    for text in ("a = 1", "a = 2"):
        (tmp_path / "spaces").mkdir(exist_ok=True)
        (tmp_path / "spaces" / "x.py").write_text(text)
        digests.add(node_probe.code_digest.__wrapped__())
    assert len(digests) == 2


# This machine


def test_a_folder_that_cannot_hold_the_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(tmp_path)
    assert set(states(preflight.of_storage(asked, tmp_path)).values()) == {"good"}
    little = SimpleNamespace(free=1_000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: little)
    assert states(preflight.of_storage(asked, tmp_path))["disk"] == "bad"
    with pytest.raises(StudyError, match="disk: at least"):
        preflight.refuse(asked, tmp_path)
    little.free = 500_000_000
    assert states(preflight.of_storage(asked, tmp_path))["disk"] == "warn"
    assert states(preflight.of_storage(asked, tmp_path, state_bytes=10**9))["disk"] == "bad"
    nodes = SimpleNamespace(f_files=1000, f_favail=10)
    monkeypatch.setattr(preflight.os, "statvfs", lambda _: nodes)
    assert states(preflight.of_storage(asked, tmp_path))["files"] == "bad"
    nodes.f_files = 0
    assert states(preflight.of_storage(asked, tmp_path))["files"] == "good"
    (check,) = preflight.of_storage(asked, Path("/proc/nowhere"))
    assert check.state == "bad"


def test_a_full_disk_is_known_before_there_is_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(StudyError, match="disk"):
        runner.run_study(experiment(tmp_path), tmp_path / "s", command="", reporter=Quiet())
    assert not (tmp_path / "s").exists()


def test_a_local_run_is_looked_at_in_milliseconds(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    preflight.refuse(asked, tmp_path)
    begun = time.process_time()
    preflight.refuse(asked, tmp_path)
    assert time.process_time() - begun < 0.1


def test_rows_are_counted_with_the_retrainings_that_may_follow(tmp_path: Path) -> None:
    asked = experiment(tmp_path, "retrain.seeds=[0,1]", "retrain.top_k=2")
    assert preflight.num_rows(asked) == 2 * 3 + 2 * 2 * 2
    assert preflight.num_rows(experiment(tmp_path, "retrain=none")) == 6


def test_a_study_of_the_name_is_found_and_a_live_one_is_bad(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    assert preflight.of_study(asked, tmp_path / "s").state == "good"
    study = make_study(tmp_path / "s")
    assert preflight.of_study(asked, tmp_path / "s").state == "warn"
    with study.hold():
        check = preflight.of_study(asked, tmp_path / "s")
    assert check.state == "bad"
    assert f"pid {os.getpid()}" in check.said


def test_a_store_that_does_not_answer_is_a_warning_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
    check = preflight.of_tracking(experiment(tmp_path), tmp_path)
    assert check.state == "warn"
    assert "secret" not in check.said
    assert f"127.0.0.1:{port}" in check.said
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert preflight.of_tracking(experiment(tmp_path), tmp_path).state == "good"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://u:p%40@h:1/db", "postgresql://h:1/db"),
        ("https://h/x?token=t", "https://h/x"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert tracking_location.without_password(uri) == shown


def test_the_command_is_a_table_or_json_and_its_code_says_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment(tmp_path)
    assert _nas("doctor", "tiny.yaml") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["check", "state", "found"]
    assert not (tmp_path / "studies").exists()
    assert _nas("doctor", "tiny.yaml", "--json", "--set", "tune.per_trial.gpus=64") == 1
    document = json.loads(capsys.readouterr().out)
    (bad,) = [check for check in document["checks"] if check["state"] == "bad"]
    assert bad["check"] == "resources"
    assert "tune.per_trial.gpus must be <=" in bad["said"]


def _nas(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


# A cluster of two nodes on this machine


@pytest.fixture
def two_nodes() -> Iterator[str]:
    with drive.short_ray_folder():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            from ray.cluster_utils import Cluster

            head = {"num_cpus": 1, "include_dashboard": False}
            running = Cluster(initialize_head=True, head_node_args=head)
            running.add_node(num_cpus=2)
        try:
            yield str(running.address)
        finally:
            running.shutdown()


DATASET = '''
"""A dataset that is got by writing a file."""
from dataclasses import dataclass
from pathlib import Path
@dataclass(frozen=True)
class Config:
    root: str
def prepare(config):
    Path(config.root).mkdir(exist_ok=True)
    (Path(config.root) / "got").write_text("x")
    return Path(config.root)
'''


def test_every_node_of_a_cluster_is_asked_and_gets_data(
    two_nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins" / "datasets").mkdir(parents=True)
    (tmp_path / "plugins" / "datasets" / "mine.py").write_text(DATASET)
    asked = experiment(tmp_path)
    monkeypatch.setattr(sweep, "_quiet", lambda log: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with sweep.cluster(two_nodes, None, tmp_path / "ray.log"):
            driver, *nodes = cluster_nodes.ask(asked, tmp_path / "studies")
            monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "plugins"))
            settings = {"name": "mine", "root": str(tmp_path / "data")}
            prepared = cluster_nodes.prepare_everywhere("mine", settings, 60)
            wrong = cluster_nodes.prepare_everywhere("mine", {**settings, "root": "/proc/x"}, 60)
    assert sorted(node.cpus for node in (driver, *nodes)) == [0.0, 1.0, 2.0]
    digest = driver.report.digest if driver.report else None
    checks = preflight.of_nodes(asked, [driver, *nodes], digest)
    assert set(states(checks).values()) == {"good"}, checks
    assert all(node.skew_s is not None and abs(node.skew_s) < 5 for node in nodes)
    assert not list((tmp_path / "studies").glob(".nas-doctor-*"))
    assert [(folder, error) for _, folder, error in prepared] == 2 * [
        (str(tmp_path / "data"), None)
    ]
    assert (tmp_path / "data" / "got").is_file()
    assert all(error for _, _, error in wrong)
