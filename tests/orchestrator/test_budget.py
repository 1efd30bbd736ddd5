"""`retrain.budget_hours`: what is started, what is left out, and how a bigger budget runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator import memory
from orchestrator.budget import Budget, read_spending, write_spending
from orchestrator.commands_study import study_state
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.estimate import estimate
from orchestrator.report import write_report
from orchestrator.searchers import BudgetSearcher
from orchestrator.study import Study
from orchestrator.units import Unit
from tests.orchestrator import drive, here
from tests.orchestrator.fake_study import make_study, retrain_row
from tests.orchestrator.test_promotion import experiment, trained


def unit(genotype: str, seed: int, epochs: int = 10) -> Unit:
    key = f"{genotype}-{seed}"
    extra = {"genotype_hash": genotype}
    return Unit("retrain", {}, {seed: key}, genotype, 0, {}, "darts", epochs, extra)


UNITS = [unit("a", 0), unit("a", 1), unit("b", 0), unit("b", 1)]
HOUR = 3600.0
ONE_AT_A_TIME = "tune: {max_concurrent: 1}\n"  # a worker takes longer to start than to train


def spent(budget: Budget, key: str, epochs: int, seconds: float) -> None:
    for epoch in range(1, epochs + 1):
        budget.note(key, {"epoch": epoch, "epoch_time_s": seconds})


def test_what_is_left_is_judged_by_the_same_genotype_else_by_all() -> None:
    budget = Budget(1.0, UNITS, [])
    assert budget.left_s(UNITS[0]) is None
    spent(budget, "a-0", 4, 60.0)
    spent(budget, "a-0", 4, 60.0)  # reported again, as a trial that starts again does
    assert budget.used_s == 240.0
    assert [budget.left_s(each) for each in UNITS[:3]] == [360.0, 600.0, 600.0]
    spent(budget, "b-0", 1, 10.0)
    assert budget.left_s(UNITS[3]) == 100.0
    # Of another study of settings: its time counts and measures nothing.
    spent(budget, "other", 1, 1000.0)
    assert budget.used_s == 1250.0
    assert budget.left_s(UNITS[1]) == 600.0


def test_a_unit_fits_beside_what_still_runs() -> None:
    # 6 epochs of 60 s are left of the first; 240 + 360 + 600 s are needed with the second.
    for hours, fits in ((1200 / HOUR, True), (1199 / HOUR, False)):
        budget = Budget(hours, UNITS, [])
        spent(budget, "a-0", 4, 60.0)
        assert budget.fits(UNITS[1], [UNITS[0]]) is fits
    budget = Budget(0.001, UNITS, [])
    assert budget.fits(UNITS[0]) is True
    assert budget.fits(UNITS[1], [UNITS[0]]) is None
    spent(budget, "other", 1, 4.0)
    assert budget.fits(UNITS[0]) is False


def results(seed: int, epoch: int, seconds: float) -> dict[str, Any]:
    return {f"seeds/{seed}/epoch": epoch, f"seeds/{seed}/epoch_time_s": seconds}


def test_the_searcher_waits_for_a_measure_and_then_leaves_out_in_order() -> None:
    # 10 epochs of 60 s each: three of the four units.
    budget = Budget(1800 / HOUR, UNITS, [])
    searcher = BudgetSearcher(UNITS, lambda each: {"unit": each.config_id}, budget)
    assert searcher.suggest("1") == {"unit": "a"}
    assert searcher.suggest("2") is None
    searcher.on_trial_result("1", results(0, 1, 60.0))
    assert searcher.suggest("2") == {"unit": "a"}
    assert searcher.suggest("3") == {"unit": "b"}
    assert searcher.suggest("4") is None  # those that run may be quicker than they were
    for trial, seed in (("1", 0), ("2", 1), ("3", 0)):
        for epoch in range(1, 10):
            searcher.on_trial_result(trial, results(seed, epoch, 60.0))
        searcher.on_trial_complete(trial, results(seed, 10, 60.0))
    assert searcher.left_out == []
    assert searcher.suggest("4") == Searcher.FINISHED
    assert searcher.left_out == [UNITS[3]]
    assert budget.spending(searcher.left_out).left_out[0].hours == pytest.approx(1 / 6)


def test_quicker_last_epochs_let_another_one_in() -> None:
    budget = Budget(1700 / HOUR, UNITS[:3], [])
    searcher = BudgetSearcher(UNITS[:3], lambda each: {"unit": each.config_id}, budget)
    searcher.suggest("1")
    searcher.on_trial_result("1", results(0, 1, 60.0))
    assert searcher.suggest("2") is not None
    assert searcher.suggest("3") is None  # 3 x 600 s
    for trial, seed in (("1", 0), ("2", 1)):
        for epoch in range(2, 11):
            searcher.on_trial_result(trial, results(seed, epoch, 50.0))
        searcher.on_trial_complete(trial)
    assert searcher.suggest("3") == {"unit": "b"}


def test_a_trial_that_failed_runs_no_more() -> None:
    searcher = BudgetSearcher(UNITS, lambda each: {"unit": each.config_id}, Budget(1.0, UNITS, []))
    searcher.suggest("1")
    assert searcher.suggest("2") is None
    searcher.on_trial_complete("1", error=True)
    assert searcher.suggest("2") == {"unit": "a"}


def test_with_a_budget_the_best_genotype_is_first_with_all_its_seeds(tmp_path: Path) -> None:
    plan = "{epochs: 2, top_k: 2, seeds: [0, 7]"
    without = [name for name, _, _ in trained(tmp_path, f"{plan}}}")]
    assert without == ["skip_connect", "skip_connect", "none", "none", *2 * ["nor_conv_3x3"]]
    # 0.95, 0.92 and 0.90: darts' second genotype is the worst of the three.
    got = trained(tmp_path, f"{plan}, budget_hours: 2}}")
    assert [(name, seed) for name, seed, _ in got] == [
        ("skip_connect", 0), ("skip_connect", 7), ("nor_conv_3x3", 0), ("nor_conv_3x3", 7),
        ("none", 0), ("none", 7),
    ]  # fmt: skip
    least = trained(tmp_path, f"{plan}, by: val_loss, budget_hours: 2}}")
    # Losses 0.1, 0.2 and 0.3 or more.
    assert [name for name, _, _ in least][::2][:2] == ["nor_conv_3x3", "skip_connect"]


@pytest.mark.parametrize("hours", ["0", "-1.5"])
def test_a_budget_is_positive(tmp_path: Path, hours: str) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.budget_hours must be > 0, got"):
        experiment(tmp_path, f"{{epochs: 2, budget_hours: {hours}}}")


def test_the_report_and_the_status_say_what_was_left_out(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    row = retrain_row("none", 0, 0.9)
    study.ledger.write(row)
    budget = Budget(0.25, UNITS, [])
    spent(budget, "a-0", 10, 60.0)
    write_spending(study.path, budget.spending(UNITS[2:]))
    said = (
        "2 retrainings were left out for retrain.budget_hours 0.25, of which 0.167 are used: "
        "darts (b) seed 0 1."
    )
    report = write_report(study)
    assert said in report.markdown.read_text()
    table = json.loads(report.table.read_text())
    assert [item["key"] for item in table["budget"]["left_out"]] == ["b-0", "b-1"]
    assert study_state(study)["left_out"] == 2
    write_spending(study.path, budget.spending([]))
    assert read_spending(study.path) is None
    assert study_state(study)["left_out"] == 0
    assert "left out for" not in write_report(study).markdown.read_text()


def test_a_bigger_budget_runs_what_was_left_out(tmp_path: Path, nas_here: here.Nas) -> None:
    file = drive.write_experiment(tmp_path, "b", epochs=1, more=here.ON_RAY + ONE_AT_A_TIME)
    plan = "retrain: {epochs: 2, seeds: [0, 1, 2], per: study, budget_hours: 1.0e-6, "
    file.write_text(file.read_text().replace("retrain: {epochs: 2, ", plan))
    code, said = nas_here("run", file, root=tmp_path)
    assert code == 0, said
    study = Study.open("b", tmp_path)
    # Nothing was measured before the first one, and there is room for no other.
    first = study.rows("retrain")
    assert [(row.seed, row.status) for row in first] == [(0, "finished")]
    assert "2 retrainings were left out for retrain.budget_hours 1e-06" in said
    assert "nas resume b" in said
    assert study_state(study)["state"] == "complete"
    code, said = nas_here("resume", "b", root=tmp_path)
    assert code == 0, said
    assert len(study.rows("retrain")) == 1
    stored = study.experiment_file.read_text()
    assert "budget_hours: 1.0e-06" in stored
    study.experiment_file.write_text(stored.replace("budget_hours: 1.0e-06", "budget_hours: 9.0"))
    code, said = nas_here("resume", "b", root=tmp_path)
    assert code == 0, said
    rows = study.rows("retrain")
    assert sorted(row.seed for row in rows) == [0, 1, 2]
    assert {row.genotype_hash for row in rows} == {first[0].genotype_hash}
    assert next(row for row in rows if row.key == first[0].key).started == first[0].started
    assert read_spending(study.path) is None
    assert load_experiment(study.experiment_file).retrain is not None


def test_a_dry_run_says_for_how_many_the_budget_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "peaks", lambda requests: [None] * len(requests))
    plan = "{epochs: 2, batch_size: 256, channels: 2, cells: 1, auxiliary_weight: 0.0, top_k: 3"
    whole = estimate(experiment(tmp_path, f"{plan}, budget_hours: 100}}"))
    assert "at most 6 of 2 epochs" in whole.retrain
    assert "budget_hours" not in whole.retrain
    short = estimate(experiment(tmp_path, f"{plan}, budget_hours: 1.0e-9}}"))
    assert "; budget_hours 1e-09 is enough for about 1" in short.retrain
