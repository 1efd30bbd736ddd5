"""`nas extend`: what may grow does, rows stay byte for byte, and the rest is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, config, extending, history, runner, tracking
from orchestrator.errors import ConfigError, StudyError
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from tests.orchestrator.fake_study import fill, make_study
from tests.orchestrator.memory_store import MemoryStore
from tests.orchestrator.test_simulate import DRAWN, PLAIN, Quiet, experiment, outcomes, simulate
from tests.spaces.tables import columns201, write


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = columns201()
    columns["cifar10_val"] = [100.0 - value for value in columns["cifar10_test"]]
    return write(columns, tmp_path_factory.mktemp("tables") / "nb201.parquet")


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
    monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)


@pytest.fixture
def study(table: Path, finished: Path, tmp_path: Path) -> Study:
    """A copy of a simulated study of two methods and three seeds."""
    shutil.copytree(finished, tmp_path / "s" / finished.name)
    return Study.open(tmp_path / "s" / finished.name)


@pytest.fixture(scope="module")
def finished(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "start_drain", lambda study, uri: None)
        patch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
        return simulate(experiment(table, root, PLAIN), root / "studies").path


def extend(study: Study, *overrides: str, **words: Any) -> extending.Extension:
    opened = Study.open(study.path)
    return extending.extend(opened, command="nas extend", overrides=overrides, **words)


def resume(study: Study) -> Study:
    opened = Study.open(study.path)
    outcome = runner.resume_study(opened, command="nas resume", reporter=Quiet())
    assert not outcome.interrupted
    return opened


def ledger(study: Study) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in study.ledger.folder.glob("*.json")}


def test_more_seeds_run_and_the_rows_that_were_there_stay(
    study: Study, table: Path, tmp_path: Path
) -> None:
    before = {name: data for name, data in ledger(study).items() if b'"search"' in data[:60]}
    grown = extend(study, seeds=[0, 1, 2, 3, 4])
    assert (grown.before, grown.after, grown.present) == (6, 10, 6)
    assert grown.changes == {"seeds": ([0, 1, 2], [0, 1, 2, 3, 4])}
    resumed = resume(study)
    assert {row.seed for row in resumed.rows("search")} == {0, 1, 2, 3, 4}
    after = ledger(resumed)
    assert before.items() <= after.items()
    # What was asked for at once is what was asked for in two steps.
    whole = simulate(experiment(table, tmp_path, PLAIN, "seeds=[0,1,2,3,4]"), tmp_path / "whole")
    searched = {row.key for row in whole.rows("search")}
    grown_rows, at_once = outcomes(resumed), outcomes(whole)
    assert {key: grown_rows.get(key) for key in searched} == {key: at_once[key] for key in searched}


def test_what_is_there_already_changes_nothing_and_is_no_entry(study: Study) -> None:
    text = study.experiment_file.read_bytes()
    assert not extend(study, "search.epochs=4", seeds=[2, 1, 0]).changes
    assert study.experiment_file.read_bytes() == text
    assert not (study.path / history.FOLDER).exists()
    extend(study, seeds=[0, 1, 2, 3])
    assert not extend(study, seeds=[0, 1, 2, 3]).changes
    assert len(history.read(Study.open(study.path))) == 1


def test_the_history_says_what_was_asked_when(study: Study) -> None:
    first = study.experiment.resolved()
    extend(study, seeds=[0, 1, 2, 3])
    extend(study, "method=[darts,sdarts_rs,gdas]")
    entries = history.read(Study.open(study.path))
    assert [list(entry.changes) for entry in entries] == [["seeds"], ["method"]]
    assert entries[0].experiment == json.loads(json.dumps(first))
    # Cut off between noting and changing: the entry counts for nothing, and its place is taken.
    opened = Study.open(study.path)
    history.write(opened, "nas extend", {"seeds": [[0], [1]]})
    assert len(history.read(opened)) == 2
    extend(study, seeds=[0, 1, 2, 3, 4])
    assert [list(e.changes) for e in history.read(Study.open(study.path))][-1] == ["seeds"]
    assert history.count(study.path) == 3


def test_values_are_added_to_a_setting_that_was_not_swept_and_labels_say_so(
    table: Path, tmp_path: Path
) -> None:
    text = PLAIN.replace(
        "method: {{grid: [{{name: darts}}, {{name: sdarts_rs}}]}}", "method: darts"
    )
    study = simulate(experiment(table, tmp_path, text), tmp_path / "s")
    lr = study.experiment.search["weight_lr"]
    known = {row.key for row in study.rows("search")}
    extend(study, f"search.weight_lr=[0.2, {lr}]")
    assert Study.open(study.path).experiment.search["weight_lr"] == {"grid": [0.2, lr]}
    resumed = resume(study)
    rows = resumed.rows("search")
    assert len(rows) == 6
    assert known < {row.key for row in rows}
    labels = {row.label for row in rows if row.key in known}
    assert labels == {f"simulated darts weight_lr={lr}"}
    assert {row.block for row in rows if row.key in known} == {1}


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_more_samples_keep_the_draws_that_were_made(
    searcher: str, table: Path, tmp_path: Path
) -> None:
    asked = experiment(table, tmp_path, DRAWN, searcher=searcher, scheduler="none")
    study = simulate(asked, tmp_path / "s")
    before = ledger(study)
    extend(study, num_samples=40)
    resumed = resume(study)
    assert len(resumed.rows("search")) == 40
    assert before.items() <= ledger(resumed).items()


def test_an_optuna_study_draws_from_a_wider_range_and_more_methods(
    table: Path, tmp_path: Path
) -> None:
    text = DRAWN.replace("method: darts", "method: {{grid: [darts, gdas]}}")
    asked = experiment(table, tmp_path, text, searcher="optuna", scheduler="none")
    study = simulate(asked, tmp_path / "s")
    before = outcomes(study)
    extend(
        study,
        "search.weight_lr={loguniform: [0.0001, 0.5]}",
        "method=[sdarts_rs,darts,gdas]",
        num_samples=32,
    )
    resumed = resume(study)
    rows = {row.key: row for row in resumed.rows("search")}
    assert len(rows) == 3 * 32
    assert set(before) <= set(rows)
    # Blocks have moved: each row's place is that of its method.
    places = {row.method: row.block for row in rows.values()}
    assert places == {"sdarts_rs": 0, "darts": 1, "gdas": 2}
    assert {row.block for row in rows.values() if row.method == "gdas"} == {2}


@pytest.mark.parametrize(
    ("overrides", "words", "message"),
    [
        ([], {"seeds": [0, 1]}, "seeds must keep 2"),
        (["search.epochs=5"], {}, "would lose simulated|would lose darts"),
        (["method=[darts]"], {}, "would lose sdarts_rs"),
        (["dataset=fashion_mnist"], {}, "dataset"),
        (["retrain.epochs=9"], {}, "retrain.epochs must stay 2, got 9"),
        (["retrain.seeds=[1]"], {}, "retrain.seeds must keep 0"),
        (["retrain=none"], {}, "retrain must stay"),
        (["name=other"], {"seeds": [1]}, "seeds must keep 0, 2"),
        (["search.epoch=5"], {}, "Did you mean 'epochs'"),
        ([], {"num_samples": 5}, "num_samples has no effect"),
    ],
)
def test_what_rows_depend_on_is_refused(
    overrides: list[str], words: dict[str, Any], message: str, study: Study
) -> None:
    text = study.experiment_file.read_bytes()
    with pytest.raises(ConfigError, match=message):
        extend(study, *overrides, **words)
    assert study.experiment_file.read_bytes() == text
    assert not (study.path / history.FOLDER).exists()


def test_draws_are_not_shrunk_or_drawn_anew(table: Path, tmp_path: Path) -> None:
    asked = experiment(table, tmp_path, DRAWN, searcher="random", scheduler="none")
    study = simulate(asked, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"tune.num_samples must be >= 30"):
        extend(study, num_samples=29)
    with pytest.raises(ConfigError, match="come from one stream"):
        extend(study, "search.weight_lr={loguniform: [0.0001, 0.5]}")
    with pytest.raises(ConfigError, match=r"tune.searcher.* must stay"):
        extend(study, "tune.searcher.seed=3")
    asked = experiment(table, tmp_path, DRAWN, searcher="optuna", scheduler="none")
    study = simulate(asked, tmp_path / "t")
    with pytest.raises(ConfigError, match="may be drawn from more"):
        extend(study, "search.weight_lr={loguniform: [0.01, 0.5]}")


def test_a_running_study_is_refused(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    with Study.open(study.path).hold(), pytest.raises(StudyError, match="is running"):
        extend(study, seeds=[0, 1, 2, 3])


def test_mlflow_gets_the_experiment_again(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    fill(study)
    store = MemoryStore()
    Drain(Study.open(study.path), store, "memory").send()
    (parent,) = [run for run in store.all.values() if "nas.key" not in run.tags]
    first = parent.artifacts["experiment.yaml"]
    extend(study, seeds=[0, 1, 2, 3])
    Drain(Study.open(study.path), store, "memory").send()
    assert parent.artifacts["experiment.yaml"] != first
    assert parent.tags["nas.row"] == "study 1"


@pytest.mark.parametrize(("text", "seeds"), [("0-3,7", [0, 1, 2, 3, 7]), ("5", [5]), ("1, 1", [1])])
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert extending.read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3-1", "a", "0-", "-1", "0-99999999"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds must be numbers and ranges"):
        extending.read_seeds(text)


def test_the_command_says_what_is_new_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(make_study(tmp_path / "studies"))
    nas: Callable[..., str] = lambda *words: _run(capsys, *words)  # noqa: E731
    out = nas("extend", "tiny", "--seeds", "0-4")
    assert "6 -> 10, 6 in the ledger" in out
    assert "nas resume tiny" in out
    assert json.loads(nas("status", "tiny", "--json"))["state"] == "incomplete"
    assert "nothing was changed" in nas("extend", "tiny", "--seeds", "0-4")
    grown = json.loads(nas("extend", "tiny", "--seeds", "0-5", "--json"))
    assert grown["rows"] == {"before": 10, "after": 12, "present": 6}


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert not ended.value.code
    return capsys.readouterr().out


def test_a_list_sweeps_what_was_one_value_and_stays_a_list_where_one_was(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    changed = config.load_changed(study.experiment_file, ["search.weight_lr=[0.1,0.025]"])
    assert changed.search["weight_lr"] == {"grid": [0.1, 0.025]}
    changed = config.load_changed(study.experiment_file, ["seeds=[4]"])
    assert changed.seeds == (4,)
