from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.experiment import MlflowSettings
from orchestrator.ledger import Row
from orchestrator.study import Study
from orchestrator.tracking_location import (
    check_uri,
    default_uri,
    is_database,
    on_network,
    store_notice,
    tracking_uri,
)
from orchestrator.tracking_notes import NOTE_LENGTH, Outcome, row_note, study_note
from orchestrator.tracking_view import digest, flat_params, run_name, view_of
from tests.orchestrator.fake_driver import BEGIN, make_row, make_study


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (make_row(0), "darts · seed 0"),
        (make_row(2, alpha_gradient="unrolled"), "darts unrolled · seed 2"),
        (make_row(0, stage="retrain"), "retrain darts · seed 0"),
        (make_row(1, label="darts lr=0.1"), "darts lr=0.1 · seed 1"),
        (make_row(1, params={"search.weight_lr": 0.012345}), "darts weight_lr=0.0123 · seed 1"),
        (
            make_row(1, label="darts lr=0.012345678", params={"search.lr": 0.012345678}),
            "darts lr=0.012345678 · seed 1",
        ),
        (
            make_row(1, label="darts lr=0.0123457", params={"search.lr": 0.012345678}),
            "darts lr=0.0123457 · seed 1",
        ),
        (
            make_row(1, label="darts lr=0.01 op=max", params={"a.lr": 0.02, "b.op": "max"}),
            "darts lr=0.01 op=max lr=0.02 · seed 1",
        ),
        (make_row(1, method="of_another_machine"), "of_another_machine · seed 1"),
    ],
)
def test_runs_are_named_by_what_differs(row: Row, name: str) -> None:
    assert run_name(row) == name


def test_params_are_flat_short_and_plain() -> None:
    row = make_row()
    row.settings["search"] |= {"epochs": 50.0, "nesterov": False, "alpha_lr": 0.0003, "limit": None}
    row.settings["method"] |= {"epochs": 3, "radius_max": 0.3}
    row.settings["dataset"] |= {"train": "/data/train.parquet"}
    assert flat_params(row) == {
        "method": "darts",
        "space": "nasbench201",
        "dataset": "digits",
        "selection": "magnitude",
        "seed": "0",
        "epochs": "50",
        "nesterov": "false",
        "alpha_lr": "0.0003",
        "limit": "none",
        "weight_lr": "0.025",
        "batch_size": "64",
        "channels": "4",
        "cells_per_stage": "1",
        "method.epochs": "3",  # the search has the plain name
        "radius_max": "0.3",
        "dataset.digest": "0" * 16,
        "dataset.train": "/data/train.parquet",
    }


def test_a_value_longer_than_mlflow_takes_is_cut() -> None:
    row = make_row()
    row.settings["search"]["long"] = "x" * 7000
    assert len(flat_params(row)["long"]) == 6000


def test_epochs_have_the_time_they_ended_at_or_one_worked_out_from_their_length() -> None:
    row = make_row(0)
    metric = [p for p in view_of(row, "s", "p").curve if p.metric == "search/val_loss"]
    assert [p.t for p in metric] == [round(1000 * (BEGIN + 4 * n)) for n in (1, 2, 3)]
    curve = [{**entry, "ended": BEGIN + 7 * entry["epoch"]} for entry in row.curve]
    metric = view_of(replace(row, curve=curve), "s", "p").curve
    assert {p.t for p in metric} == {round(1000 * (BEGIN + 7 * n)) for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("finished", "FINISHED"),
        ("stopped", "FINISHED"),
        ("failed", "FAILED"),
        ("diverged", "FAILED"),
        ("oom", "FAILED"),
        ("running", "KILLED"),
    ],
)
def test_every_status_has_one_of_mlflows(status: str, shown: str) -> None:
    view = view_of(make_row(status=status), "s", "p")
    assert view.status == shown
    assert view.tags["status"] == ("interrupted" if status == "running" else status)


def test_the_digest_sees_every_field() -> None:
    row = make_row()
    changes = {"status": "failed", "error": "E", "ended": 1.0, "genotype": None, "curve": []}
    changes |= {"resumed_elsewhere": True, "stop": {}, "final": "f", "cost": {}, "label": "l"}
    digests = {digest(replace(row, **{name: value})) for name, value in changes.items()}
    assert changes.keys() <= {field.name for field in fields(Row)}
    assert len(digests | {digest(row)}) == len(changes) + 1


def outcome(label: str, value: float | None, key: str = "k", **changes: object) -> Outcome:
    base = Outcome(key, f"id-{key}", f"{label} · seed 0", label, "search", "finished", "h", None, 1)
    return replace(base, value=value, **changes)  # type: ignore[arg-type]


def test_the_note_of_a_study_has_a_line_per_configuration_best_first() -> None:
    outcomes = [
        outcome("a", 0.5, "1"),
        outcome("a", 0.7, "2", genotype_hash="best"),
        outcome("b", 0.9, "3", genotype_hash="g3"),
        outcome("b", 0.99, "4", status="diverged", genotype_hash=None),
        outcome("b", 0.8, "5", stage="retrain", genotype_hash="best", name="retrain"),
    ]
    lines = study_note("s", outcomes, "7").splitlines()

    def link(text: str, run: int) -> str:
        return f"[{text}](#/experiments/7/runs/id-{run}?workflowType=machine_learning)"

    assert lines[2] == f"| b | 1 of 2 | 0.9000 | 0.9000 | {link('`g3`', 3)} | – | 2.0 s |"
    best = link("`best`", 2)
    assert lines[3] == f"| a | 2 | 0.6000 | 0.7000 | {best} | {link('0.8000', 5)} | 2.0 s |"
    assert "Not finished: 1 diverged." in lines


def test_a_note_is_never_longer_than_mlflow_keeps() -> None:
    outcomes = [outcome(f"method {n}" + "x" * 200, 0.5, str(n)) for n in range(100)]
    note = study_note("s", outcomes, "7")
    assert len(note) <= NOTE_LENGTH
    assert "more configurations." in note  # whole lines are left out, and what follows is there
    assert note.endswith("sends it.")
    row = make_row(error="Traceback\n" + "x" * 9000)
    assert len(row_note(row, outcomes[0], outcomes, "7")) <= NOTE_LENGTH


def test_the_note_of_a_row_tells_how_it_ended() -> None:
    own = outcome("darts", 0.5)
    stopped = make_row(status="stopped", stop={"epoch": 2, "reason": "asha"}, epochs_done=2)
    assert "stopped after 2 of 3 epochs: asha" in row_note(stopped, own, [], "7")
    assert "out of memory after 3 of 3 epochs" in row_note(make_row(status="oom"), own, [], "7")
    back = make_row(epochs_done=5)
    assert "finished (5 epochs for 3: it went back)" in row_note(back, own, [], "7")
    assert "| 0 → 1 | nor_conv_3x3 |" in row_note(make_row(), own, [], "7")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


def test_the_store_is_that_of_the_file_then_the_environment_then_beside_the_studies(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = study.experiment
    assert tracking_uri(experiment, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(experiment, tmp_path) == "http://127.0.0.1:1"
    monkeypatch.chdir(tmp_path)
    named = MlflowSettings(tracking_uri="sqlite:///my.db")
    in_file = experiment.model_copy(update={"mlflow": named})
    assert tracking_uri(in_file, "elsewhere") == f"sqlite:///{tmp_path}/my.db"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlruns"])
def test_a_folder_is_no_store(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"--uri must be a database .* got"):
        check_uri(uri)


def test_databases_are_told_from_servers() -> None:
    for uri in ("sqlite:////a.db", "postgresql+psycopg2://h/d", "mysql://h/d"):
        assert is_database(uri)
    assert not is_database("http://127.0.0.1:5000")
    assert not is_database("databricks")


def test_sqlite_keeps_off_network_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my share" / "here").mkdir(parents=True)
    mounts = tmp_path / "mounts"
    share = str(tmp_path / "my share").replace(" ", "\\040")
    mounts.write_text(f"overlay / overlay rw 0 0\nserver:/x {share} nfs4 rw 0 0\n")
    assert on_network(tmp_path / "my share" / "not yet", mounts)
    assert not on_network(tmp_path / "my shared", mounts)
    mounts.write_text(f"{mounts.read_text()}tmpfs {share}/here tmpfs rw 0 0\n")
    assert not on_network(tmp_path / "my share" / "here" / "x", mounts)
    assert not on_network(tmp_path, tmp_path / "no such table")

    assert store_notice(tmp_path) is None
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("orchestrator.tracking_location.on_network", lambda folder: True)
    uri = default_uri("/shared/studies")
    assert uri.startswith(f"sqlite:///{tmp_path}/state/nas-orchestrator/mlflow/")
    assert uri == default_uri("/shared/studies")
    assert uri != default_uri("/shared/others")
    notice = store_notice("/shared/studies")
    assert notice is not None
    assert uri.removeprefix("sqlite:///") in notice
