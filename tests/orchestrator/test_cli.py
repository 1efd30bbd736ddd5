"""The `nas` command: exit codes, what goes to stdout and stderr, and what is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import cli, commands_run, tracking
from orchestrator.progress import Estimate, Outcome, Progress, TrialPlan
from orchestrator.study import Study
from spaces.core import named
from spaces.core.plugins import ENVIRONMENT_VARIABLE
from tests.orchestrator.fake_study import CELL, YAML, fill, make_study, search_row
from tests.spaces.helpers import space_of
from tests.spaces.tables import columns201, write

ROOT = Path(__file__).resolve().parents[2]
STRING = CELL.format("skip_connect")
Nas = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nas(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nas:
    """Run `nas` in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    # It would follow the process of the tests for as long as that lives.
    monkeypatch.setattr(tracking, "send_later", lambda study, uri: None)
    for name in ("NAS_ROOT", "MLFLOW_TRACKING_URI", ENVIRONMENT_VARIABLE):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone too
        monkeypatch.delenv(name)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    fill(made)
    return made


@pytest.fixture
def experiment_file(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(YAML)
    return "tiny.yaml"


def fresh(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `nas` in a process of its own that names what heavy it imported on stderr."""
    code = (
        "import sys\nfrom orchestrator.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib', 'scipy'}\n"
        "    print('IMPORTED', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["list", "methods"], 0),
        (["validate", "--no-data", "tiny.yaml"], 0),
        (["run", "bad.yaml"], 2),
        (["status", "nowhere"], 2),
        (["show", "no-such-cell"], 2),
        (["data", "prepare", "imagenet16_120"], 2),
        (["data", "status"], 0),
    ],
)
def test_nothing_heavy_is_imported(words: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(YAML)
    (tmp_path / "bad.yaml").write_text(YAML.replace("epochs: 3", "epoch: 3"))
    done = fresh(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("IMPORTED []\n"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "resume",
        "status",
        "report",
        "retrain",
        "clean",
        "ui",
        "validate",
        "show",
        "list",
        "sync",
        "extend",
        "merge",
        "archive",
        "doctor",
        "stop",
        "logs",
    ],
)
def test_every_command_has_help_with_an_example(command: str, nas: Nas) -> None:
    code, out, err = nas(command, "--help")
    assert code == 0
    assert f"Example: nas {command}" in " ".join(out.split())
    assert err == ""


def test_a_user_error_is_one_line_on_stderr(nas: Nas) -> None:
    code, out, err = nas("status", "nowhere")
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "no study 'nowhere'" in err


def test_an_unknown_option_exits_2(nas: Nas) -> None:
    code, out, err = nas("list", "methods", "--jsn")
    assert code == 2
    assert out == ""
    assert "--jsn" in err


def test_an_unwritable_file_is_a_user_error(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "studies/x")

    monkeypatch.setattr("orchestrator.study.studies", refuse)
    assert nas("status") == (2, "", "studies/x cannot be used: Permission denied.\n")


def test_a_full_disk_is_a_user_error(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device", "studies/x")

    monkeypatch.setattr("orchestrator.study.studies", refuse)
    assert nas("status") == (2, "", "studies/x cannot be written: No space left on device.\n")


def test_plugins_must_be_folders(nas: Nas) -> None:
    code, _, err = nas("--plugins", "missing", "list", "methods")
    assert code == 2
    assert "--plugins must name a folder, got missing" in err


def test_plugin_folders_add_to_what_is_listed(nas: Nas, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "methods"
    folder.mkdir(parents=True)
    (folder / "coin.py").write_text(
        '"""Throws a coin."""\nfrom dataclasses import dataclass\nSOURCE = "none"\n'
        "@dataclass(frozen=True)\nclass Config:\n    heads: float = 0.5\n"
    )
    code, out, err = nas("--plugins", "mine", "list", "methods", "--json")
    assert (code, err) == (0, "")
    assert {"name": "coin", "summary": "Throws a coin.", "source": "none"} in json.loads(out)
    assert os.environ[ENVIRONMENT_VARIABLE] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    "kind",
    [
        "methods",
        "alpha_gradients",
        "spaces",
        "operations",
        "datasets",
        "selections",
        "oracles",
        "protocols",
        "genotypes",
    ],
)
def test_list_says_name_summary_and_source(kind: str, nas: Nas) -> None:
    code, out, err = nas("list", kind, "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)
    assert listed
    assert all(set(item) == {"name", "summary", "source"} and item["source"] for item in listed)
    _, text, _ = nas("list", kind)
    assert len(text.splitlines()) == 1 + len(listed)
    assert all(item["source"] in text for item in listed)


def test_validate_says_which_files_are_good(nas: Nas, experiment_file: str) -> None:
    Path("bad.yaml").write_text(YAML.replace("epochs: 3", "epoch: 3"))
    code, out, err = nas("validate", experiment_file, "bad.yaml")
    assert code == 2
    assert out == "tiny.yaml: good\n"
    assert "bad.yaml" in err
    assert "search.epoch is not a setting" in err
    code, out, _ = nas("validate", experiment_file, "bad.yaml", "--json")
    assert code == 2
    assert [item["valid"] for item in json.loads(out)] == [True, False]


def test_validate_loads_the_data_unless_told_not_to(nas: Nas) -> None:
    big = YAML.replace("batch_size: 32}\nretrain", "batch_size: 9999}\nretrain")
    Path("big.yaml").write_text(big)
    code, _, err = nas("validate", "big.yaml")
    assert code == 2
    assert "batch_size" in err
    assert nas("validate", "--no-data", "big.yaml")[0] == 0


def test_show_counts_and_draws(nas: Nas, tmp_path: Path) -> None:
    sizes = ("--channels", "4", "--cells", "1")
    code, out, err = nas("show", STRING, *sizes, "--out", "cell.svg", "--json")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert shown["channels"] == 4
    assert shown["drawing"] == "cell.svg"
    assert "<svg" in (tmp_path / "cell.svg").read_text()
    Path("cell.json").write_text(json.dumps(shown["genotype"]))
    again = json.loads(nas("show", "cell.json", *sizes, "--json")[1])
    assert again == {**shown, "drawing": None}
    code, out, _ = nas("show", STRING, *sizes)
    assert f"{shown['params']:,}" in out
    assert f"{shown['macs']:,}" in out
    assert (tmp_path / f"nasbench201-{shown['hash']}.png").is_file()


def test_show_uses_the_published_network_where_no_size_is_given(nas: Nas) -> None:
    shown = json.loads(nas("show", STRING, "--json")[1])
    assert (shown["channels"], shown["cells"], shown["classes"]) == (16, 5, 10)
    fewer = json.loads(nas("show", STRING, "--classes", "7", "--json")[1])
    # The classifier has 64 weights and one bias a class.
    assert shown["params"] - fewer["params"] == 3 * 65


def test_show_builds_the_network_for_images_of_the_size_that_is_given(nas: Nas) -> None:
    words = ("show", "DARTS_V2", "--channels", "4", "--cells", "4", "--json")
    small, large = (json.loads(nas(*words, "--image-size", size)[1]) for size in ("64", "128"))
    assert (small["image_size"], large["image_size"]) == (64, 128)
    # Three convolutions that make images 8 times smaller, in the place of one that does not.
    assert large["macs"] < small["macs"]
    assert large["params"] != small["params"]


def test_show_takes_the_depth_from_a_genotype_that_has_one(nas: Nas) -> None:
    cells = named.named(named.names()[0]).to_json()["cells"]
    # Of four cells the second and the third reduce.
    kinds = ("normal", "reduction", "reduction", "normal")
    stack = [
        {**cells[kind == "reduction"], "name": f"cell_{place}_{kind}"}
        for place, kind in enumerate(kinds)
    ]
    Path("cells.json").write_text(json.dumps({"space": "darts_per_cell", "cells": stack}))
    code, out, _ = nas("show", "cells.json", "--channels", "4", "--json")
    assert code == 0
    shown = json.loads(out)
    shared = json.loads(
        nas("show", named.names()[0], "--channels", "4", "--cells", "4", "--json")[1]
    )
    assert shown["cells"] == 4
    assert (shown["params"], shown["macs"]) == (shared["params"], shared["macs"])
    code, _, err = nas("show", "cells.json", "--cells", "20")
    assert code == 2
    assert "as many cells as its genotype, 4" in err


def test_show_knows_names(nas: Nas) -> None:
    name = named.names()[0]
    code, out, _ = nas("show", name, "--channels", "4", "--cells", "4", "--json")
    assert code == 0
    assert json.loads(out)["hash"] == named.named(name).hash


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "DARTS_V9"], "Did you mean 'DARTS_V"),
        (["show", "my-cell"], "`nas list genotypes` has the names"),
        (["show", STRING, "--out", "cell.jpg"], "must end in .png or .svg"),
        (["show", "|what~0|+"], "must be written"),
        (["show", "binary"], "is no text file"),
    ],
)
def test_show_refuses(words: list[str], message: str, nas: Nas) -> None:
    Path("binary").write_bytes(b"\xff\xfe\x00\x80")
    code, out, err = nas(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_status_of_one_study_and_of_all(nas: Nas, study: Study) -> None:
    code, out, _ = nas("status", "--json")
    assert code == 0
    (state,) = json.loads(out)
    assert state["search"] == {"finished": 5, "diverged": 1}
    assert state["retrain"] == {"finished": 2}
    assert (state["best"], state["best_seed"]) == (0.95, 1)
    assert "tiny" in nas("status")[1]
    code, out, _ = nas("status", "tiny")
    assert code == 0
    assert "5 finished" in out
    assert "95.00 %" in out


def test_status_says_running_and_how_to_go_on(nas: Nas, study: Study) -> None:
    study.progress.write_text(json.dumps({"stage": "search", "total": 9, "done": 6, "left_s": 60}))
    state = json.loads(nas("status", "tiny", "--json")[1])
    assert (state["state"], state["resume"]) == ("incomplete", "nas resume tiny")
    holder = (
        "import sys, time; from orchestrator.study import Study\n"
        "with Study.open(sys.argv[1]).hold():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(study.path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        state = json.loads(nas("status", "tiny", "--json")[1])
        code, _, err = nas("clean", "tiny")
        process.kill()
    assert (state["state"], state["holder"]["pid"]) == ("running", process.pid)
    assert state["progress"]["left_s"] == 60
    assert code == 2
    assert "is running" in err


def test_report_prints_the_table_and_writes_the_files(nas: Nas, study: Study) -> None:
    code, out, _ = nas("report", "tiny")
    assert code == 0
    assert "92.00 [87.03, 96.97]" in out
    assert "report  studies/tiny/report/report.html\n" in out
    document = json.loads(nas("report", "tiny", "--json")[1])
    assert Path(document["markdown"]).is_file()
    assert len(document["rows"]) == 2


def test_clean_removes_what_is_not_needed_and_says_its_size(nas: Nas, study: Study) -> None:
    done, open_row = study.rows("search")[0], search_row("other", 0, [0.1], status="stopped")
    study.ledger.write(open_row)
    kept = []
    for row in (done, open_row):
        folder = study.checkpoints / row.key
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(b"x" * 1000)
        (folder / "final.pt").write_bytes(b"x" * 10)
        kept.append(folder / "final.pt")
    other = search_row("another", 0, [0.1])  # of which nothing is kept, its folder neither
    study.ledger.write(other)
    (study.checkpoints / other.key).mkdir()
    (study.checkpoints / other.key / "row.json").write_bytes(b"x" * 3)
    kept.append(study.checkpoints / open_row.key / "state.pt")  # a stopped row can be continued
    kept += [study.experiment_file, *sorted((study.path / "ledger").glob("*.json"))]
    study.ray.mkdir()
    (study.ray / "state").write_bytes(b"x" * 500)
    (study.path / "ledger" / ".row.json.abcdefgh").write_bytes(b"x" * 7)
    removed = [study.checkpoints / done.key / "state.pt", study.ray]
    removed.append(study.path / "ledger" / ".row.json.abcdefgh")
    removed.append(study.checkpoints / other.key / "row.json")

    code, out, _ = nas("clean", "tiny", "--dry-run", "--json")
    planned = json.loads(out)
    assert (code, planned["bytes"], planned["removed"]) == (0, 1510, False)
    assert all(path.exists() for path in kept + removed)
    code, out, _ = nas("clean", "tiny")
    assert "1.5 kB freed" in out
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in removed)
    assert not (study.checkpoints / other.key).exists()
    assert json.loads(nas("clean", "tiny", "--json")[1])["paths"] == []


def fake_runner(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Put a module in the place of the runner: nothing is trained here."""
    module = types.ModuleType("orchestrator.runner")
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "orchestrator.runner", module)
    monkeypatch.setattr("orchestrator.runner", module, raising=False)


def fake_run(outcome: Outcome, seen: dict[str, Any]) -> Callable[..., Outcome]:
    def run_study(experiment: Any, root: Path, *, command: str, reporter: Any) -> Outcome:
        seen.update(experiment=experiment, root=root, command=command)
        study = Study.create(root, experiment, command)
        if outcome.finished == 8:
            fill(study)
        reporter.update(Progress("search", total=6, done=6))
        return outcome

    return run_study


@pytest.mark.parametrize(
    ("outcome", "code", "hint"),
    [
        (Outcome("mine", finished=8), 0, ""),
        (Outcome("mine", finished=7, diverged=1), 1, "1 rows failed or diverged"),
        (Outcome("mine", finished=7, failed=2), 1, "2 rows failed"),
        (Outcome("mine", finished=3, interrupted=True), 130, "nas resume mine --root there"),
    ],
)
def test_run_prints_the_table_where_to_look_and_the_outcome(
    outcome: Outcome,
    code: int,
    hint: str,
    nas: Nas,
    experiment_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}
    fake_runner(monkeypatch, run_study=fake_run(outcome, seen))
    words = (
        "run",
        experiment_file,
        "--set",
        "search.epochs=5",
        "--name",
        "mine",
        "--root",
        "there",
    )
    got, out, err = nas(*words)
    assert got == code
    assert seen["experiment"].search["epochs"] == 5
    assert seen["command"] == "nas run tiny.yaml --set search.epochs=5 --name mine --root there"
    assert ("92.00 [87.03, 96.97]" in out) == (code == 0)
    assert "there/mine/report/report.html" in out
    assert "nas ui --root there" in out
    assert "6/6 done" in err
    assert "6/6 done" not in out
    assert hint in err


def test_run_with_json_prints_one_document(
    nas: Nas, experiment_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runner(monkeypatch, run_study=fake_run(Outcome("tiny", finished=8), {}))
    code, out, _ = nas("run", experiment_file, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["study_name"], document["finished"]) == ("tiny", 8)
    assert len(document["table"]["rows"]) == 2


def test_ctrl_c_says_how_to_resume(
    nas: Nas, experiment_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Outcome:
        raise KeyboardInterrupt

    fake_runner(monkeypatch, run_study=interrupted)
    code, out, err = nas("run", experiment_file)
    assert (code, out) == (130, "")
    assert err.splitlines() == [
        "study tiny in studies/tiny",
        "Interrupted. Go on with: nas resume tiny",
    ]


def test_a_dry_run_starts_nothing(
    nas: Nas, experiment_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def estimate(experiment: Any, root: Path) -> Estimate:
        plans = [TrialPlan("darts", seed, "abc") for seed in experiment.seeds]
        return Estimate(plans, 1, 0, 2, 0, 2, {"darts": 1.5}, 60.0, 10**6)

    monkeypatch.setattr("orchestrator.estimate.estimate", estimate)
    code, out, _ = nas("run", experiment_file, "--dry-run")
    assert code == 0
    assert "Nothing was started." in out
    assert "batch_size: 32" in out
    document = json.loads(nas("run", experiment_file, "--dry-run", "--json")[1])
    assert document["experiment"]["name"] == "tiny"
    assert [plan["seed"] for plan in document["trials"]] == [0, 1, 2]
    assert not (tmp_path / "studies").exists()


def test_resume_goes_on_with_the_study(
    nas: Nas, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def resume_study(opened: Study, *, command: str, reporter: Any) -> Outcome:
        seen.append(opened.name)
        return Outcome(opened.name, finished=8)

    fake_runner(monkeypatch, resume_study=resume_study)
    code, out, _ = nas("resume", "tiny")
    assert (code, seen) == (0, ["tiny"])
    assert "browse  nas ui\n" in out


def test_retrain_of_a_study_and_of_a_genotype(
    nas: Nas, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def retrain_study(opened: Study, *, command: str, reporter: Any) -> Outcome:
        seen.append(opened.name)
        return Outcome(opened.name, finished=2)

    def retrain_genotype(
        genotype: Any, experiment: Any, root: Path, *, command: str, reporter: Any
    ) -> Outcome:
        seen.append((genotype.hash, experiment.name, experiment.retrain.settings.epochs))
        Study.create(root, experiment, command)
        return Outcome(experiment.name, finished=1)

    fake_runner(monkeypatch, retrain_study=retrain_study, retrain_genotype=retrain_genotype)
    assert nas("retrain", "tiny")[0] == 0
    assert nas("retrain", STRING, "--like", "tiny", "--set", "retrain.epochs=7")[0] == 0
    digest = json.loads(nas("show", STRING, "--channels", "4", "--cells", "1", "--json")[1])["hash"]
    assert seen == ["tiny", (digest, f"retrain-{digest}", 7)]


CUSTOM = {"name": "custom", "nodes": 2, "cells": 2, "reductions": [1], "keep": 1}
LIKES = {
    "of_darts": "space: darts\nretrain: {protocol: darts_cifar, epochs: 1}\n",
    "of_s2": "space: {name: s2, cells: 4}\nretrain: {epochs: 1, channels: 8}\n",
    "consistent": "space: darts\nretrain: {consistent: true}\n",
    "of_custom": f"space: {json.dumps(CUSTOM)}\nretrain: {{epochs: 1, channels: 4}}\n",
}


@pytest.mark.parametrize(
    ("name", "like", "space", "size"),
    [
        ("DARTS_V2", "of_darts", "darts", (36, 20)),
        ("SDARTS_c10_s1_random", "of_darts", "s1", (36, 20)),
        ("darts_pt_s2_1", "of_darts", "s2", (16, 20)),
        ("SDARTS_c100_s3_pgd", "of_darts", "s3", (16, 8)),
        ("DARTS_minus_cifar10_s4_1", "of_darts", "s4", (16, 20)),
        ("SDARTS_c10_s1_random", "of_s2", "s1", (8, 20)),
        ("darts_pt_s2_1", "of_s2", "s2", (8, 20)),
        ("darts_pt_s2_1", "consistent", "s2", None),
        ("own.json", "of_darts", "custom", (36, 20)),
        ("own.json", "of_custom", "custom", (4, None)),
    ],
)
def test_retrain_takes_space_and_size_from_a_published_name(
    nas: Nas,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    like: str,
    space: str,
    size: tuple[int | None, int | None] | None,
) -> None:
    rest = "name: like\ndataset: digits\nmethod: darts\nsearch: {epochs: 1, batch_size: 64}\n"
    Path("like.yaml").write_text(LIKES[like] + rest)
    own = space_of(CUSTOM)
    zeros = {key: torch.zeros(shape) for key, shape in own.alpha_shapes().items()}
    Path("own.json").write_text(json.dumps(own.discretize(zeros).to_json()))
    seen: list[Any] = []

    def retrain_genotype(genotype: Any, experiment: Any, root: Path, **rest: Any) -> Outcome:
        seen.append((genotype, experiment))
        Study.create(root, experiment, "nas")
        return Outcome(experiment.name, finished=1)

    fake_runner(monkeypatch, retrain_genotype=retrain_genotype)
    code, _, err = nas("retrain", name, "--like", "like.yaml")
    assert code == 0, err
    ((genotype, experiment),) = seen
    assert genotype.space == experiment.settings("space")["name"] == space
    settings = experiment.settings("space")
    space_of(settings).check(genotype)
    if like == "of_s2" and space == "s2":
        assert settings["cells"] == 4  # the file's own
    if size is not None:
        trained = experiment.retrain.settings
        assert (trained.channels, trained.cells) == size
    seen.clear()
    code, _, err = nas("retrain", name, "--like", "like.yaml", "--set", "space=nasbench201")
    assert code == 2
    assert "like.yaml has space 'nasbench201'" in err


def test_show_takes_the_published_size_of_a_name(nas: Nas) -> None:
    for name, space, size in (
        ("SDARTS_svhn_s2_pgd", "s2", (16, 8, 10)),
        ("DARTS_minus_cifar100_s4_0", "s4", (16, 8, 100)),
    ):
        shown = json.loads(nas("show", name, "--json")[1])
        assert shown["space"] == space
        assert (shown["channels"], shown["cells"], shown["classes"]) == size
        fewer = json.loads(nas("show", name, "--channels", "4", "--classes", "3", "--json")[1])
        assert (fewer["channels"], fewer["cells"], fewer["classes"]) == (4, 8, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["retrain", "tiny", "--set", "retrain.epochs=1"], "are for a genotype"),
        (["retrain", STRING], "takes --like FILE"),
        (["retrain", "no-such-cell", "--like", "tiny"], "is no file"),
        (["show", "DARTS_V2", "--space", "s2"], "of space 'darts', not of 's2': leave out --space"),
        (["retrain", "DARTS_V1", "--like", "tiny"], "of space 'darts', and tiny has space"),
        (["resume", "tinny"], "Did you mean 'tiny'?"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, nas: Nas, study: Study) -> None:
    code, out, err = nas(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_ui_serves_the_store_of_the_root_on_this_machine_alone(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("orchestrator.tracking.prepare_store", lambda uri: None)
    monkeypatch.setattr(os, "execve", lambda path, words, environment: started.append(words))
    code, out, _ = nas("ui", "--root", "there", "--port", "0")
    assert code == 2  # a port is 1 to 65535
    code, out, _ = nas("ui", "--root", "there", "--port", "54321")
    assert code == 0
    assert "http://127.0.0.1:54321" in out
    (words,) = started
    assert f"sqlite:///{tmp_path / 'there' / 'mlflow.db'}" in words
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "54321"


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.2", False), ("0.0.0.0", True)])
def test_ui_warns_where_others_can_reach_it(
    nas: Nas, monkeypatch: pytest.MonkeyPatch, host: str, warned: bool
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("orchestrator.tracking.prepare_store", lambda uri: None)
    monkeypatch.setattr(os, "execve", lambda path, words, environment: started.append(words))
    code, out, err = nas("ui", "--host", host, "--port", "54322")
    assert code == 0
    assert f"http://{host}:54322" in out
    (words,) = started
    assert words[words.index("--host") + 1] == host
    assert ("whoever reaches it can read, change and delete all runs" in err) is warned


def test_ui_refuses_an_address_of_another_machine(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.prepare_store", lambda uri: None)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("a server was started"))
    code, _, err = nas("ui", "--host", "192.0.2.1")
    assert code == 2
    assert "of 192.0.2.1 cannot be used" in err


def test_ui_names_a_server_instead_of_starting_one(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, out, _ = nas("ui")
    assert (code, out) == (0, "The studies are tracked by a server; open http://127.0.0.1:9\n")


def test_ui_refuses_a_port_in_use(nas: Nas) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = nas("ui", "--port", str(port))
    assert code == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in err


def test_sync_sends_or_rebuilds(nas: Nas, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str, bool | None]] = []
    monkeypatch.setattr("orchestrator.tracking.prepare_store", lambda uri: None)
    for name in ("drain", "rebuild"):

        def send(_: Any, uri: str, *, models: bool | None, name: str = name) -> int:
            calls.append((name, uri, models))
            return 7

        monkeypatch.setattr(f"orchestrator.tracking.{name}", send)
    monkeypatch.setattr("orchestrator.tracking.mend", lambda study, uri: [])
    monkeypatch.setattr("orchestrator.tracking.reconcile", lambda study, uri, check: ([], []))
    default = f"sqlite:///{study.root / 'mlflow.db'}"
    assert nas("sync", "tiny") == (0, f"7 records sent to {default}\n", "")
    _, out, _ = nas("sync", "tiny", "--rebuild", "--uri", "http://127.0.0.1:9", "--json")
    assert json.loads(out) == {
        "study": "tiny",
        "simulated": False,
        "simulated_response": None,
        "oracle_metric": None,
        "notices": [],
        "tracking_uri": "http://127.0.0.1:9",
        "sent": 7,
        "found": [],
        "left": [],
    }
    assert nas("sync", "tiny", "--models")[0] == 0
    other = "http://127.0.0.1:9"
    expected = [("drain", default, None), ("rebuild", other, None), ("drain", default, True)]
    assert calls == expected


@pytest.mark.parametrize(
    ("root", "command"),
    [("studies", "nas resume s"), ("my studies", "nas resume s --root 'my studies'")],
)
def test_the_hint_to_resume_can_be_pasted(root: str, command: str) -> None:
    assert commands_run.resume_command("s", Path(root)) == command


def test_report_says_what_the_oracle_says(nas: Nas, tmp_path: Path) -> None:
    table = write(columns201(), tmp_path / "nb201.parquet")
    text = f"{YAML}oracle: {{name: nasbench201, path: {table}}}\n"
    study = make_study(tmp_path / "studies", text)
    study.ledger.write(search_row("darts", 0, [0.5]))
    code, out, err = nas("report", "tiny")
    assert (code, err) == (0, "")
    # Of its six edges three have 3x3 convolutions: 40 + 3 * 9 of 94 %.
    assert "67.00 [–]" in out
    assert "27.00 [–]" in out
    table.unlink()
    code, out, err = nas("report", "tiny", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["oracle"]["reason"].startswith("left out what the oracle nasbench201")
    code, out, err = nas("report", "tiny")
    assert code == 0
    assert "67.00" not in out
    assert err.count("there is no such file") == 1


def test_a_wrong_oracle_ends_a_run_before_torch(tmp_path: Path) -> None:
    for name, oracle in (("lost", "no.parquet"), ("bad", "bad.csv")):
        (tmp_path / "bad.csv").write_text("arch,accuracy\n|none~0|,1.0\n")
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"{YAML}oracle: {{name: nasbench201, path: {oracle}}}\n")
        done = fresh("run", file.name, cwd=tmp_path)
        assert done.returncode == 2
        message, imported = done.stderr.strip().splitlines()
        assert "oracle.path" in message
        assert imported == "IMPORTED []"


def test_a_row_that_cannot_be_read_is_named_now_and_later(nas: Nas, study: Study) -> None:
    key = study.rows()[0].key
    (study.path / "ledger" / f"{key}.json").write_bytes(b"torn")
    code, out, _ = nas("status", "tiny")
    assert code == 0
    assert f"damaged      1 rows that could not be read ({key})" in out
    assert json.loads(nas("status", "tiny", "--json")[1])["damaged"] == [key]


def test_a_folder_where_a_file_is_needed_is_no_traceback(nas: Nas, study: Study) -> None:
    study.outbox.mkdir(parents=True)
    code, _, err = nas("sync", "tiny", "--uri", f"sqlite:///{study.path}/m.db")
    assert code == 2
    assert "events.jsonl" in err
    assert "is a folder" in err


def test_a_genotype_of_any_length_is_no_path(nas: Nas) -> None:
    long = '{"space": "darts", "cells": [' + '"normal", ' * 80 + "]}"
    code, _, err = nas("retrain", long, "--like", "missing.yaml")
    assert code == 2
    assert max(map(len, err.splitlines())) <= 1003
    code, _, err = nas("show", "DARTS_" + "9" * 3000)
    assert (code, len(err.splitlines())) == (2, 1)
    assert len(err) < 400
