"""`nas merge`: rows of both studies once, as they were; what contradicts itself is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import cli, merging, runner, tracking
from orchestrator.errors import ConfigError, StudyError
from orchestrator.ledger import write_row
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain
from tests.orchestrator.fake_study import YAML, make_study, retrain_row, search_row
from tests.orchestrator.memory_store import MemoryStore
from tests.orchestrator.test_simulate import DRAWN, PLAIN, Quiet, experiment, outcomes, simulate
from tests.spaces.tables import columns201, write

FEW = YAML.replace("seeds: [0, 1, 2]", "seeds: [{}]")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = columns201()
    columns["cifar10_val"] = [100.0 - value for value in columns["cifar10_test"]]
    return write(columns, tmp_path_factory.mktemp("tables") / "nb201.parquet")


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
    monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)


def made(root: Path, name: str, seeds: str = "0", text: str = FEW) -> Study:
    """Return a study without rows that was made elsewhere."""
    text = text.replace("[{}]", f"[{seeds}]").replace("name: tiny", f"name: {name}")
    study = make_study(root / name, text)
    study.path.rename(root / f"study-{name}")
    return Study.open(root / f"study-{name}")


def merge(*studies: Study, **words: Any) -> merging.Merged:
    root = studies[0].path.parent
    return merging.merge(studies, "both", root, command="nas merge", **words)


def test_simulated_studies_of_other_seeds_and_methods_are_one_and_go_on(
    table: Path, tmp_path: Path
) -> None:
    east = simulate(experiment(table, tmp_path / "e", PLAIN, "seeds=[0,1]"), tmp_path / "e" / "s")
    west_file = experiment(table, tmp_path / "w", PLAIN, "seeds=[1,2]")
    west = simulate(west_file, tmp_path / "w" / "s")
    west.path.rename(tmp_path / "w" / "s" / "west")
    record = json.loads((tmp_path / "w" / "s" / "west" / "study.json").read_text())
    record["name"] = "west"
    (tmp_path / "w" / "s" / "west" / "study.json").write_text(json.dumps(record))
    west = Study.open(tmp_path / "w" / "s" / "west")
    before = {**outcomes(east), **outcomes(west)}
    merged = merging.merge([east, west], "all-simulated", tmp_path, command="nas merge")
    assert (merged.asked, merged.present) == (6, 6)
    assert outcomes(merged.study) == before
    reads = merged.study.test_reads.read_text().splitlines()
    assert len(reads) == len(set(reads)) > 0
    searched = {row.key for row in merged.study.rows("search")}
    outcome = runner.resume_study(merged.study, command="", reporter=Quiet())
    assert not outcome.interrupted
    assert {row.key for row in merged.study.rows("search")} == searched
    assert merged.study.id not in (east.id, west.id)


def test_states_and_unfinished_rows_come_along(tmp_path: Path) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b", "0, 1")
    done, other = search_row("darts", 0, [0.5, 0.7, 0.9]), search_row("darts", 1, [0.5])
    a.ledger.write(replace(done, status="failed", curve=done.curve[:1], epochs_done=1))
    b.ledger.write(done)
    for study, epochs in ((a, 2), (b, 1)):
        part = replace(other, status="running", epochs_done=epochs, ended=None)
        write_row(study.checkpoints / other.key / "row.json", part)
        (study.checkpoints / other.key / "state.pt").write_bytes(study.name.encode())
    merged = merge(a, b)
    new = merged.study
    assert [row.status for row in new.rows()] == ["finished"]
    assert [row.epochs_done for row in new.partial_rows()] == [2]
    assert (new.checkpoints / other.key / "state.pt").read_bytes() == b"a"
    assert new.experiment.seeds == (0, 1)
    assert merged.rows == {"a": 1, "b": 1}
    assert json.loads((new.path / "study.json").read_text())["merged"][1]["id"] == b.id
    # Taken along, not shared: the sources stay whatever becomes of the new study.
    shutil.rmtree(new.path)
    assert b.ledger.read(done.key) == done


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genotype_hash": "f" * 12}, "genotype .* and f{12}"),
        ({"status": "diverged"}, "finished and diverged"),
        ({"curve": [{"epoch": 1}]}, "3 and 1 epochs"),
    ],
)
def test_two_results_of_one_key_are_refused_and_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    row = search_row("darts", 0, [0.5, 0.7, 0.9])
    a.ledger.write(row)
    b.ledger.write(replace(row, **changes))
    with pytest.raises(StudyError, match=message):
        merge(a, b)
    assert not (tmp_path / "both").exists()
    assert not (tmp_path / ".both.merging").exists()
    assert merge(a, b, prefer="b").study.ledger.read(row.key) == b.ledger.read(row.key)


def test_times_of_a_row_may_differ_and_values_may_not(tmp_path: Path) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    row = search_row("darts", 0, [0.5, 0.7, 0.9])
    slow = [{**entry, "epoch_time_s": 9.0, "peak_memory_bytes": 1} for entry in row.curve]
    a.ledger.write(row)
    b.ledger.write(replace(row, curve=slow, cost={"time_s": 99.0}))
    assert merge(a, b).doubled == 1
    shutil.rmtree(tmp_path / "both")
    slow[1]["val_accuracy"] = 0.71
    b.ledger.write(replace(row, curve=slow))
    with pytest.raises(StudyError, match=r"darts seed 0\): epoch 2: val_accuracy 0.7 and 0.71"):
        merge(a, b)


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("dataset: digits", "dataset: digits\nselection: {name: operation_strength}", "selection"),
        ("{epochs: 2, batch", "{epochs: 4, batch", "retrain.epochs: a has 2, b has 4"),
        ("name: tiny", "name: tiny\ntune: {scheduler: {name: asha, grace_epochs: 1}}", "tune.sch"),
    ],
)
def test_other_experiments_are_refused_with_all_differences(
    line: str, other: str, message: str, tmp_path: Path
) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b", text=FEW.replace(line, other))
    with pytest.raises(ConfigError, match=message):
        merge(a, b)


def test_grids_are_joined_and_draws_of_other_streams_are_not(table: Path, tmp_path: Path) -> None:
    one, two = (FEW.replace("search: {", f"search: {{weight_lr: {lr}, ") for lr in (0.1, 0.2))
    merged = merge(made(tmp_path, "a", text=one), made(tmp_path, "b", text=two))
    assert merged.study.experiment.search["weight_lr"] == {"grid": [0.1, 0.2]}
    assert (merged.asked, merged.present) == (4, 0)
    drawn = [
        experiment(table, tmp_path / n, DRAWN, f"search.weight_lr={word}", searcher="random",
                   scheduler="none")
        for n, word in (("x", "{uniform: [0.1, 0.2]}"), ("y", "{uniform: [0.1, 0.3]}"))
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="for y"):
        merging.join([("x", drawn[0]), ("y", drawn[1])], "z")


def test_studies_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b")
    with pytest.raises(StudyError, match="two studies or more"):
        merge(a, Study.open(a.path))
    with pytest.raises(StudyError, match="--prefer must be one of a, b, got 'c'"):
        merge(a, b, prefer="c")
    with b.hold(), pytest.raises(StudyError, match="is running"):
        merge(a, Study.open(b.path))
    (b.plugins / "0123" / "0").mkdir(parents=True)
    with pytest.raises(StudyError, match="other plug-ins"):
        merge(a, b)
    shutil.rmtree(b.plugins)
    merge(a, b)
    with pytest.raises(StudyError, match="exists already"):
        merge(a, b)


def test_rows_of_other_images_are_refused(tmp_path: Path) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b", "1")
    from orchestrator import planning

    identity = planning.identity(a.experiment, plugins_digest=None)
    settings = {
        "method": {"name": "darts"}, "space": {"name": "nasbench201"},
        "selection": {"name": "magnitude"}, "search": {"epochs": 3},
    }  # fmt: skip
    for study, seed, of in (
        (a, 0, identity),
        (b, 1, replace(identity, dataset={"name": "digits", "digest": "other"})),
    ):
        key = planning.key_of_search(settings, of, seed)
        row = search_row("darts", seed, [0.5, 0.7, 0.9], key=key, settings=settings)
        study.ledger.write(row)
    with pytest.raises(StudyError, match=r"other images, .*\n  b: 1 of 1"):
        merge(a, b)


def test_the_command_joins_and_mlflow_is_filled_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = made(tmp_path, "a"), made(tmp_path, "b", "1")
    a.ledger.write(search_row("darts", 0, [0.5, 0.7, 0.9]))
    a.ledger.write(retrain_row("nor_conv_3x3", 0, 0.97))
    b.ledger.write(search_row("darts", 1, [0.5, 0.7, 0.8]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["merge", str(a.path), str(b.path), "--into", "both", "--root", str(tmp_path)])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "2 of a, 1 of b" in out
    assert "2 of the 4 rows" in out
    store = MemoryStore()
    both = Study.open(tmp_path / "both")
    Drain(both, store, "memory").send()
    assert set(store.picture()) == {"study", *both.ledger.keys()}
