"""Selection rules applied to the supernets that a study has stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from orchestrator import planning, selecting
from orchestrator.cli import main
from orchestrator.errors import StudyError
from orchestrator.ledger import Row, row_key, with_selections
from orchestrator.outbox import read_records
from orchestrator.planning import Identity
from orchestrator.results import tabulate
from orchestrator.study import Study
from orchestrator.tracking_runs import write_artifacts
from orchestrator.tracking_view import digest, view_of
from spaces.core.errors import PluginSettingsError, UnknownPluginError
from spaces.core.genotype import Genotype
from tests.orchestrator.fake_study import make_study, search_row
from trainables.search import SearchTrial
from trainables.state import save_state
from trainables.stored import open_final

YAML = """
name: tiny
space: {name: nasbench201, channels: 2, cells_per_stage: 1}
dataset: digits
seeds: [0, 1]
method: darts
search: {epochs: 1, batch_size: 256, alpha_lr: 0.05}
retrain: {epochs: 1, batch_size: 32, channels: 4, cells: 1}
"""
RULE = "operation_strength"
ROOT = Path(__file__).resolve().parents[2]
IDENTITY = Identity({"name": "digits", "digest": "0" * 16}, None, None, {"cpu": 1.0, "gpu": 0.0})


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def searched(study: Study, seed: int) -> tuple[Row, SearchTrial]:
    """Search once as a worker would, and write the row and its final.pt."""
    experiment = study.experiment
    parts = ("space", "dataset", "method", "search", "selection")
    settings = {part: getattr(experiment, part) for part in parts}
    trial = SearchTrial(**settings, seed=seed)
    genotype = trial.run()
    key = row_key("search", {"settings": settings, "seed": seed})
    final = study.checkpoints / key / "final.pt"
    save_state(trial.final_state(), final)
    row = search_row(
        "darts",
        seed,
        [trial.curve[-1]["val_accuracy"]],
        key=key,
        settings=settings,
        genotype=genotype.to_json(),
        genotype_hash=genotype.hash,
        final=final.relative_to(study.path).as_posix(),
    )
    study.ledger.write(row)
    return row, trial


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[SearchTrial]]:
    study = make_study(tmp_path_factory.mktemp("selecting") / "studies", YAML)
    return study, [searched(study, seed)[1] for seed in (0, 1)]


@pytest.fixture
def study(filled: tuple[Study, list[SearchTrial]]) -> Iterator[Study]:
    """The study without what a test has added."""
    study = filled[0]
    before = study.rows()
    yield study
    for row in before:
        study.ledger.write(row)


def test_a_stored_search_is_opened_as_it_ended(
    filled: tuple[Study, list[SearchTrial]], study: Study
) -> None:
    ended = filled[1][0]
    trial = open_final(study.path / str(study.rows()[0].final), device="cpu")
    assert (trial.seed, trial.epoch, trial.finished) == (0, 1, True)
    assert trial.genotype == ended.genotype
    for name, value in ended.final_state()["weights"].items():
        assert torch.equal(trial.final_state()["weights"][name], value)
    for name, alpha in ended.alphas.items():
        assert torch.equal(trial.alphas[name], alpha)
        assert torch.equal(trial.op_weights[name], ended.op_weights[name])
    # Equal running statistics and validation split too: an equal loss.
    assert trial.select(RULE).scores["cell"].equal(ended.select(RULE).scores["cell"])


def test_select_adds_what_the_rule_finds_and_changes_nothing_else(
    filled: tuple[Study, list[SearchTrial]], study: Study
) -> None:
    before = study.rows()
    told: list[tuple[int, int]] = []
    plan = selecting.plan(study, {"name": RULE, "norm": "running"})
    assert plan.label == f"{RULE} norm=running"
    failed = selecting.select(
        study, plan, device="cpu", told=lambda count, row: told.append((count, row.seed))
    )
    assert (failed, told) == ([], [(1, 0), (2, 1)])
    for old, new, trial in zip(before, study.rows(), filled[1], strict=True):
        assert replace(new, selections={}, evaluation=None) == old  # what it costs is counted too
        result = new.selections[plan.name]
        expected = trial.select({"name": RULE, "norm": "running"})
        assert Genotype.from_json(result["genotype"]) == expected.genotype
        assert result["genotype_hash"] == expected.genotype.hash
        assert result["scores"] == {n: m.tolist() for n, m in expected.scores.items()}
    records, _ = read_records(study.outbox, 0, 10_000_000)
    assert [record["k"] for record in records[-2:]] == ["row", "row"]
    again = selecting.plan(study, {"name": RULE, "norm": "running"})
    assert (len(again.todo), again.done, again.missing) == (0, 2, 0)
    # Other settings are another rule; the defaults have the rule's own name.
    assert len(selecting.plan(study, RULE).todo) == 2
    assert selecting.plan(study, RULE).name == RULE != plan.name


def test_killed_in_the_middle_it_does_the_rest(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = selecting.plan(study, RULE)

    def killed(_count: int, _row: Row) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selecting.select(study, plan, device="cpu", told=killed)
    rest = selecting.plan(study, RULE)
    assert (len(rest.todo), rest.done) == (1, 1)


def test_tables_and_retrainings_have_the_rules_genotype_on_a_line_of_its_own(
    study: Study,
) -> None:
    selecting.select(study, selecting.plan(study, RULE), device="cpu")
    own, other = tabulate(study.rows())
    assert (own.label, other.label) == ("darts", f"darts select={RULE}")
    assert own.val_accuracies == other.val_accuracies
    rows = study.rows()
    best = max(rows, key=lambda row: (row.value("val_accuracy") or 0.0, -row.seed))
    assert other.genotype_hash == best.selections[RULE]["genotype_hash"]
    units = planning.retrain_units(study.experiment, rows, IDENTITY)
    trained = {unit.extra["genotype_hash"]: unit.label for unit in units}
    assert trained.keys() == {own.genotype_hash, other.genotype_hash}
    assert trained[other.genotype_hash] in (f"darts select={RULE}", f"darts + darts select={RULE}")
    assert len(with_selections(rows)) == 4


def test_mlflow_gets_tags_and_artifacts_of_it(study: Study, tmp_path: Path) -> None:
    before = study.rows()[0]
    selecting.select(study, selecting.plan(study, RULE), device="cpu")
    row = study.rows()[0]
    # Another digest: the drain sends the row's run again.
    assert digest(row) != digest(before)
    found = row.selections[RULE]["genotype_hash"]
    assert view_of(row, "study", "parent").tags[f"genotype_hash.{RULE}"] == found
    write_artifacts(tmp_path, row)
    names = {path.name for path in (tmp_path / "selections" / RULE).iterdir()}
    assert names == {"genotype.json", "cell.png", "scores.json"}


def test_a_rule_without_supernets_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies", YAML)
    with pytest.raises(StudyError, match="has no finished search"):
        selecting.plan(study, RULE)
    study.ledger.write(search_row("darts", 0, [0.5]))
    study.ledger.write(search_row("darts", 1, [0.5], final="checkpoints/gone/final.pt"))
    with pytest.raises(StudyError, match=r"no search has its final\.pt \(keep: all\)"):
        selecting.plan(study, RULE)
    with pytest.raises(UnknownPluginError, match="Did you mean 'operation_strength'"):
        selecting.plan(study, "operation_strengt")
    with pytest.raises(PluginSettingsError, match=r"rule\.variant must be one of absolute"):
        selecting.plan(study, {"name": RULE, "variant": "sign"})


def test_a_damaged_supernet_fails_alone(study: Study) -> None:
    first = study.rows()[0]
    final = study.path / str(first.final)
    whole = final.read_bytes()
    final.write_bytes(whole[:1000])
    try:
        ((row, reason),) = selecting.select(study, selecting.plan(study, RULE), device="cpu")
    finally:
        final.write_bytes(whole)
    assert row.key == first.key
    assert "no readable stored state" in reason
    assert [RULE in row.selections for row in study.rows()] == [False, True]


def test_the_commands_say_what_they_did(
    study: Study,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    root = ["--root", str(study.root)]
    with pytest.raises(SystemExit) as ended:
        main(["select", "tiny", "--rule", RULE, "--set", "batches=1", "--json", *root])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["selected"], said["failed"], said["before"]) == (2, 0, 0)
    assert f"darts select={RULE} batches=1" in {row["label"] for row in said["rows"]}
    drawing = tmp_path / "landscape.png"
    first = study.rows()[0]
    words = ["landscape", f"tiny:{first.key[:8]}", "--size", "3", "--images", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(drawing), "--json", *root])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert drawing.read_bytes().startswith(b"\x89PNG")
    row = study.ledger.read(first.key)
    assert row is not None
    assert said["landscapes"] == {first.key: row.landscape}
    # Both are in one row now, and MLflow has them.
    assert row.selections
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`nas.key` = '{first.key}'")
    names = {file.path for file in client.list_artifacts(runs[0].info.run_id)}
    assert {"landscape.png", "landscape.json", "selections"} <= names
    study.ledger.write(first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["landscape", "tiny:zz"], "0 finished searches of tiny have a key"),
        (["landscape", "tiny", "--size", "4"], "--size must be odd"),
        (["landscape", "tiny", "--extent", "-1"], "--extent > 0"),
        (["select", "tiny", "--rule", RULE, "--set", "batches"], "--set must be KEY=VALUE"),
    ],
)
def test_wrong_words_are_explained(
    study: Study, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--root", str(study.root)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_studys_own_plugins_are_used_and_a_newer_rule_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (ROOT / "trainables/methods/darts.py").read_text()
    (tmp_path / "old/methods").mkdir(parents=True)
    (tmp_path / "old/methods/own_darts.py").write_text(source)
    (tmp_path / "new/selections").mkdir(parents=True)
    rule = (ROOT / "trainables/selection/magnitude.py").read_text()
    (tmp_path / "new/selections/own_rule.py").write_text(rule)
    monkeypatch.setenv("NAS_PLUGINS", str(tmp_path / "old"))
    made = make_study(tmp_path / "studies", YAML.replace("darts", "own_darts"))
    planning.snapshot_plugins(made.plugins)
    searched(made, 0)
    # Another process: it knows nothing of the old folder, and names one with a rule.
    monkeypatch.setenv("NAS_PLUGINS", str(tmp_path / "new"))
    opened = Study.open("tiny", tmp_path / "studies")
    failed = selecting.select(opened, selecting.plan(opened, "own_rule"), device="cpu")
    assert failed == []
    assert "own_rule" in opened.rows()[0].selections
