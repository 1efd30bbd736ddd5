"""`nas status --prometheus`: its format, its numbers, and what the docs say of Ray's exporter."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator import cli, prometheus
from orchestrator.commands_study import study_state
from orchestrator.ledger import write_row
from orchestrator.node_load import to_json
from orchestrator.study import Study
from tests.orchestrator.fake_driver import make_row, make_study
from tests.orchestrator.test_node_load import NODE
from tests.orchestrator.test_trial_log import nas

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
DOCS = Path(__file__).parents[2] / "docs" / "cluster.md"
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")


def parsed(text: str) -> Samples:
    """Read the text format, version 0.0.4, strictly: one block a metric, nothing twice."""
    assert text.endswith("\n")
    found: Samples = {}
    done: set[str] = set()
    name, state = "", ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, state = line.split(" ", 3)[2], "help"
            assert name not in done
            done.add(name)
        elif line.startswith("# TYPE "):
            assert (line, state) == (f"# TYPE {name} gauge", "help")
            state = "type"
        else:
            assert state == "type"
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] == name
            inner = match[2] or ""
            labels = _LABEL.findall(inner)
            assert "".join(f'{k}="{v}",' for k, v in labels) == (inner + "," if inner else "")
            values = frozenset((k, re.sub(r"\\(.)", _unescaped, v)) for k, v in labels)
            assert (name, values) not in found
            found[name, values] = float(match[3])
    return found


def _unescaped(match: re.Match[str]) -> str:
    return {"n": "\n"}.get(match[1], match[1])


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    cost = {"time_s": 1800.0, "cpu_hours": 2.0, "gpu_hours": 0.5}
    for seed in (0, 1):
        made.ledger.write(make_row(seed, cost=cost))
    error = 'Traceback\nValueError: say "no" to C:\\temp'
    made.ledger.write(make_row(2, status="failed", cost=cost, error=error))
    part = replace(make_row(3), status="running", ended=None, epochs_done=1)
    write_row(made.checkpoints / part.key / "row.json", part)
    return made


def test_the_numbers_are_those_of_status(study: Study) -> None:
    found = parsed(prometheus.exposition([study_state(study)], now=1234.5))
    mine = {"study": "fake"}
    assert of(found, "nas_trials", stage="search", status="finished", **mine) == 2
    assert of(found, "nas_trials", stage="search", status="interrupted", **mine) == 1
    assert of(found, "nas_running", **mine) == 0
    for outcome, epochs, hours in (("useful", 6, 1.0), ("wasted", 3, 0.5), ("begun", 1, 0.0)):
        assert of(found, "nas_epochs", outcome=outcome, **mine) == epochs
        assert of(found, "nas_gpu_hours", outcome=outcome, **mine) == hours
    cause = 'ValueError: say "no" to C:\\temp'
    assert of(found, "nas_failures", cause=cause, **mine) == 1
    assert of(found, "nas_status_time_seconds") == 1234.5


def test_a_study_that_runs_has_its_plan_and_its_nodes(study: Study) -> None:
    state = study_state(study)
    state["progress"] = {"stage": "retrain", "total": 7, "left_s": 61.5}
    state |= {"state": "running", "nodes": to_json([NODE], now=1002.0)}
    found = parsed(prometheus.exposition([state, {**state, "name": "other"}]))
    for name in ("fake", "other"):
        assert of(found, "nas_running", study=name) == 1
        assert of(found, "nas_trials_planned", study=name, stage="retrain") == 7
        assert of(found, "nas_seconds_left", study=name) == 61.5
        assert of(found, "nas_node_heard_seconds", study=name, host="gpu-a") == 2
        assert of(found, "nas_gpu_busy_ratio", study=name, host="gpu-a", gpu="0") == 0.87
    assert {name for name, _ in found} == set(prometheus.HELP)


def test_shares_are_ratios_and_what_a_gpu_does_not_tell_is_left_out(study: Study) -> None:
    silent = replace(NODE, gpus=(replace(NODE.gpus[0], percent=None),))
    # Its clock is ahead of the one that reads.
    state = study_state(study) | {"nodes": to_json([silent], now=silent.time - 3.0)}
    found = parsed(prometheus.exposition([state]))
    assert of(found, "nas_node_cpu_ratio", study="fake", host="gpu-a") == pytest.approx(0.932)
    assert of(found, "nas_node_heard_seconds", study="fake", host="gpu-a") == 0
    assert "nas_gpu_busy_ratio" not in {name for name, _ in found}
    gpu = {"study": "fake", "host": "gpu-a", "gpu": "0"}
    assert of(found, "nas_gpu_memory_bytes", **gpu) == NODE.gpus[0].memory_bytes


def test_a_label_has_few_values_and_those_in_one_line(study: Study) -> None:
    state = study_state(study)
    causes = [{"cause": f"a\nb {number}", "rows": 1} for number in range(20)]
    state["standing"] = state["standing"] | {"failures": causes}
    found = parsed(prometheus.exposition([state]))
    shown = {dict(labels)["cause"] for name, labels in found if name == "nas_failures"}
    assert shown == {f"a\nb {number}" for number in range(8)}


def test_the_command_writes_all_studies_whole(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(study.root, "second")
    file = tmp_path / "nas.prom"
    file.write_text("old\n")
    words = ["status", "--root", str(study.root), "--prometheus"]
    assert nas(capsys, *words, "-o", str(file)) == ""
    names = {dict(labels).get("study") for _, labels in parsed(file.read_text())}
    assert names == {"fake", "second", None}
    assert file.stat().st_mode & 0o777 == 0o644
    assert "nas_trials{" in nas(capsys, *words)
    for wrong in (["-o", "a.txt", "--prometheus"], ["-o", "a.prom"], ["--prometheus", "--json"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["status", "fake", "--root", str(study.root), *wrong])
        assert ended.value.code == 2


def test_the_docs_name_every_number_and_ray_s_own_files() -> None:
    text = DOCS.read_text()
    for name in prometheus.HELP:
        assert f"`{name}`" in text
    from ray._private import ray_constants
    from ray.dashboard.modules.metrics import templates
    from ray.scripts import scripts

    assert f"`{ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}`" in text
    assert "--metrics-export-port" in {o for p in scripts.start.params for o in p.opts}
    assert "file_sd_configs" in templates.PROMETHEUS_YML_TEMPLATE
    needed = [line for line in metadata.requires("ray") or [] if "prometheus_client" in line]
    assert needed
    assert all("extra ==" in line for line in needed)
    assert any('"default"' in line for line in needed)
