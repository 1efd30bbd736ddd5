"""What Ray Tune knew: healed, fitted to the plan, given back; and rebuilt where it is not whole."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.train._internal.storage import StorageContext
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from orchestrator import outbox, ray_state, sweep, tracking
from orchestrator.config import load_experiment
from orchestrator.ledger import write_row
from orchestrator.ray_state import NotRestoredError, Remembered
from orchestrator.restoring import known_to_tune, plan_list, recorded_epochs
from orchestrator.runner import run_study
from orchestrator.schedulers import Asha, Median
from orchestrator.searchers import Known
from orchestrator.shown_scheduler import ShownScheduler
from orchestrator.simulating import simulated
from orchestrator.units import Unit
from tests.orchestrator import drive
from tests.orchestrator.fake_study import make_study, search_row
from tests.orchestrator.test_schedulers import Controller
from tests.orchestrator.test_schedulers import Trial as ReportingTrial
from tests.spaces.tables import columns201, write

STATE_FILES = (
    "experiment_state-2026-01-0{}.json",
    "search_gen_state-2026-01-0{}.json",
    "callback-states-2026-01-0{}.pkl",
)


def unit(key: str) -> Unit:
    return Unit("search", {}, {0: key}, f"id-{key}", 0, {"x": key}, "label", 4)


def config(of: Unit) -> dict[str, Any]:
    return of.ray_config("/study", "cpu")


def state_of(trial_id: str, status: str, key: str) -> list[str]:
    trial = {"trial_id": trial_id, "status": status, "config": config(unit(key))}
    return [json.dumps(trial), "metadata"]


def write_set(folder: Path, session: int, trials: list[list[str]]) -> None:
    """Write what Tune writes at one moment."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment, suggestions, callbacks = (name.format(session) for name in STATE_FILES)
    (folder / experiment).write_text(json.dumps({"trial_data": trials, "runner_data": {"n": 1}}))
    limiter = {"max_concurrent": 1, "live_trials": {"gone"}}
    state = {"counter": 9, "total_samples": 9, "finished": True, "experiment": "e"}
    (folder / suggestions).write_bytes(pickle.dumps({**state, "name:ConcurrencyLimiter": limiter}))
    (folder / callbacks).write_bytes(pickle.dumps({1: {"scheduler": session}}))


def about(folder: Path) -> None:
    (folder / "guard").mkdir(parents=True, exist_ok=True)
    (folder / "guard" / "about.json").write_text(json.dumps(ray_state._about()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tune's folder of a driver that was killed: two whole copies, and files of its own."""
    about(tmp_path)
    write_set(tmp_path / "guard" / "00001", 1, [state_of("a", "TERMINATED", "ka")])
    both = [state_of("a", "TERMINATED", "ka"), state_of("b", "RUNNING", "kb")]
    write_set(tmp_path / "guard" / "00002", 1, [*both, state_of("c", "ERROR", "kc")])
    write_set(tmp_path / "guard" / ".tmp-00003", 1, [state_of("z", "TERMINATED", "kz")])
    write_set(tmp_path, 1, [state_of("a", "RUNNING", "ka")])
    return tmp_path


def ids(trials: list[Remembered]) -> list[str]:
    return [trial.trial_id for trial in trials]


# Copying


class Rungs:
    """A scheduler whose state is one number."""

    def study_state(self) -> int:
        return 3


def test_copies_follow_tune_s_writes_without_looking_through_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "staging", tmp_path / "stage"
    write_set(source, 1, [state_of("old", "TERMINATED", "kz")])
    for path in source.iterdir():
        os.utime(path, (1.0, 1.0))
    (whole,) = source.glob("experiment_state-*")
    trials = [SimpleNamespace(storage=SimpleNamespace(experiment_driver_staging_path=str(source)))]
    guard = ray_state.make_guard(folder, Rungs())

    def copies() -> list[list[str]]:
        guard.on_step_end(trials=trials)
        found = sorted((folder / "guard").glob("[0-9]*"))
        return [ids_of(path) for path in found]

    def ids_of(copy: Path) -> list[str]:
        (file,) = copy.glob("experiment_state-*")
        return [
            json.loads(text)["trial_id"] for text, _ in json.loads(file.read_text())["trial_data"]
        ]

    away = whole.rename(tmp_path / whole.name)
    assert copies() == []  # the searcher's file comes first
    away.rename(whole)
    assert copies() == [["old"]]  # restored: Tune has not written yet
    write_set(source, 2, [state_of("a", "RUNNING", "ka")])
    assert copies() == [["old"], ["a"]]
    real = Path.glob

    def glob(path: Path, pattern: str) -> Any:
        assert path != source, "the folder has an entry for each trial"
        return real(path, pattern)

    monkeypatch.setattr(Path, "glob", glob)
    assert copies() == [["old"], ["a"]]
    time.sleep(0.02)
    write_set(source, 2, [state_of("b", "RUNNING", "ka")])
    assert copies() == [["a"], ["b"]]
    names = {name.format(2) for name in STATE_FILES}
    assert {path.name for path in max((folder / "guard").glob("[0-9]*")).iterdir()} == names


@pytest.fixture
def ended(tmp_path: Path) -> Trial:
    """A trial of two seeds that has ended after two epochs."""
    of = Unit("search", {"search": {"epochs": 4}}, {0: "k0", 1: "k1"}, "id", 2, {"x": 1}, "lab", 4)
    trial = Trial("none", stub=True, _setup_default_resource=False, config=config(of))
    trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])
    trial.set_storage(StorageContext(str(tmp_path), "stage"))
    trial.evaluated_params, trial.experiment_tag = {"a/b": 1}, "a tag"
    entry = {"epoch": 2, "val_accuracy": 0.5, "ended": 9.0}
    for epoch in (1, 2):
        result = {"training_iteration": epoch, "val_accuracy": 0.5, "config": trial.config}
        trial.update_last_result({**result, "seeds": {"0": entry, "1": entry}, "pid": 7})
    trial.set_status(Trial.TERMINATED)
    return trial


@pytest.mark.parametrize("how", ["on_trial_complete", "on_trial_error"])
def test_the_driver_has_all_of_a_trial_s_end_and_tune_keeps_less(
    ended: Trial, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_error_text", lambda trial: "its file is in a session of Ray")
    told: list[Any] = []
    callback = sweep.make_callback(
        on_result=told.append, on_end=lambda *end: told.append(end[:2]), on_tick=told.append
    )
    getattr(callback, how)(trial=ended)
    ((settings, result),) = told
    assert settings["search"] == {"epochs": 4}
    assert set(result["seeds"]) == {"0", "1"}
    assert set(ended.config) == {"unit"}
    assert "seeds" not in ended.last_result


def test_of_a_trial_that_ended_tune_keeps_what_is_read_again(ended: Trial) -> None:
    trial = ended

    def state() -> tuple[str, str]:
        trial.run_metadata.invalidate_cache()
        text, metadata = trial.get_json_state()
        return text, metadata

    before, known = state(), ray_state._remembered(json.loads(state()[0]))
    assert known == Remembered(trial.trial_id, ("k0", "k1"), {"x": 1}, "id", 2, ended=True)
    ray_state.shorten(trial)
    after = state()
    assert ray_state._remembered(json.loads(after[0])) == known
    assert sum(map(len, after)) < 0.5 * sum(map(len, before))
    for text in ('"epochs"', '"a/b"'):  # of its settings there was more than one copy
        assert text in before[0]
        assert text not in after[0]
    assert trial.last_result["training_iteration"] == 2  # Tune asks for it at its end
    assert trial.last_result["val_accuracy"] == 0.5
    again = Trial.from_json_state(after[0], stub=True)
    again.restore_run_metadata(after[1])
    assert again.status == Trial.TERMINATED
    assert again.last_result["pid"] == 7


def test_every_record_says_how_far_a_row_went(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    ended = search_row("ended", 0, [0.5, 0.6])
    study.ledger.write(ended)
    begun = search_row("begun", 0, [0.5, 0.6, 0.7], status="running")
    write_row(study.checkpoints / begun.key / "row.json", begun)
    torn = study.checkpoints / ("c" * 16) / "row.json"
    torn.parent.mkdir()
    torn.write_text("{")
    with outbox.Outbox(study.outbox) as made:
        for key, epoch in (("c" * 16, 1), ("c" * 16, 4), (ended.key, 1), (begun.key, 2)):
            made.append(outbox.epoch_record(key, "search", {"epoch": epoch}, 1.0))
        made.append(outbox.row_record("d" * 16, 1.0))
    with study.outbox.open("a") as file:
        file.write('{"k":"epoch","key":"' + "e" * 16)
    found = recorded_epochs({ended.key: 2}, study.partial_rows(), study.outbox)
    assert found == {ended.key: 2, begun.key: 3, "c" * 16: 4}


# Healing


def test_the_newest_whole_copy_is_put_in_place(folder: Path) -> None:
    trials = ray_state.heal(folder)
    assert trials == [
        Remembered("a", ("ka",), {"x": "ka"}, "id-ka", 0, ended=True),
        Remembered("b", ("kb",), {"x": "kb"}, "id-kb", 0, ended=False),
    ]
    for name in STATE_FILES:
        copied = folder / "guard" / "00002" / name.format(1)
        assert (folder / name.format(1)).read_bytes() == copied.read_bytes()


@pytest.mark.parametrize("name", STATE_FILES)
@pytest.mark.parametrize("damage", ["torn", "lost"])
def test_a_copy_that_is_not_whole_is_passed_over(folder: Path, name: str, damage: str) -> None:
    path = folder / "guard" / "00002" / name.format(1)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    assert ids(ray_state.heal(folder)) == ["a"]


def test_a_torn_file_of_a_later_driver_does_not_win(folder: Path) -> None:
    # Tune reads the newest by name.
    for name in STATE_FILES:
        (folder / name.format(7)).write_bytes(b"")
    assert ids(ray_state.heal(folder)) == ["a", "b"]
    assert not list(folder.glob("*-2026-01-07*"))


def test_nothing_is_restored_without_a_whole_copy(folder: Path) -> None:
    for snapshot in (folder / "guard").glob("0*"):
        shutil.rmtree(snapshot)
    assert ray_state.heal(folder) == []


@pytest.mark.parametrize("key", ["ray", "python", "format"])
def test_nothing_is_restored_from_another_version(folder: Path, key: str) -> None:
    file = folder / "guard" / "about.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: "other"}))
    assert ray_state.heal(folder) == []
    file.write_text("")
    assert ray_state.heal(folder) == []


# Fitting to the plan


def test_a_healed_state_is_made_to_fit_the_plan(folder: Path) -> None:
    ray_state.heal(folder)
    configs = {"a": None, "b": {"unit": "new"}}
    ray_state.prepare(folder, configs, ["a"], new=5, concurrent=3)
    (file,) = folder.glob("experiment_state-*")
    state = json.loads(file.read_text())
    assert state["runner_data"] == {"n": 1}
    trials = [json.loads(text) for text, _ in state["trial_data"]]
    assert [trial["trial_id"] for trial in trials] == ["a", "b"]  # c failed: it runs anew
    assert [trial["config"] for trial in trials] == [config(unit("ka")), {"unit": "new"}]
    assert {metadata for _, metadata in state["trial_data"]} == {"metadata"}
    (file,) = folder.glob("search_gen_state-*")
    state = pickle.loads(file.read_bytes())
    assert (state["counter"], state["total_samples"], state["finished"]) == (2, 7, False)
    assert state["name:ConcurrencyLimiter"] == {"max_concurrent": 3, "live_trials": {"b"}}


def remembered(trial_id: str, key: str, *, ended: bool) -> Remembered:
    return Remembered(trial_id, (key,), {"x": key}, f"id-{key}", 0, ended)


def drain(searcher: Any) -> list[str]:
    found = []
    while isinstance(suggested := searcher.suggest("t"), dict):
        found.append(suggested["unit"]["rows"]["0"])
    return found


def test_each_unit_is_planned_once_in_an_old_trial_or_a_new_one() -> None:
    plan = plan_list(
        [unit(key) for key in "abcd"],
        config,
        [
            remembered("1", "a", ended=True),
            remembered("2", "b", ended=False),
            remembered("3", "c", ended=True),  # but the ledger says that it failed
            remembered("4", "b", ended=False),  # twice
            remembered("5", "other", ended=True),
        ],
        lambda of: "a" in of.rows.values(),
    )
    assert plan.configs == {"1": None, "2": config(unit("b"))}
    assert plan.ended == ["1"]
    assert plan.new == 2
    assert not plan.is_empty
    assert drain(plan.searcher) == ["c", "d"]


def test_a_plan_of_which_all_has_ended_is_empty() -> None:
    old = [remembered("1", "a", ended=True)]
    assert plan_list([unit("a")], config, old, lambda _: True).is_empty
    running = [remembered("1", "a", ended=False)]
    assert not plan_list([unit("a")], config, running, lambda _: True).is_empty
    assert not plan_list([unit("a"), unit("b")], config, old, lambda _: True).is_empty


def test_optuna_is_told_which_of_its_trials_ray_has() -> None:
    met = [Known(0, {"x": key}, f"id-{key}", None) for key in "abc"]
    settled = {"id-a": Known(0, {"x": "a"}, "id-a", 0.5, stopped_at=2)}
    old = [
        remembered("1", "a", ended=True),
        remembered("2", "b", ended=True),  # the ledger has it not: it is asked first again
        remembered("3", "d", ended=False),  # it had no row yet
        remembered("4", "d", ended=False),
    ]
    known, ended = known_to_tune(met, old, settled.get)
    assert ended == ["1"]
    assert {item.config_id: (item.value, item.stopped_at, item.trial_id) for item in known} == {
        "id-a": (0.5, 2, None),
        "id-b": (None, None, None),
        "id-c": (None, None, None),
        "id-d": (None, None, "3"),
    }


# Schedulers


def asha() -> Asha:
    made = Asha(max_t=9, grace_period=1, reduction_factor=2, stop_last_trials=False)
    made.set_search_properties("v", "max")
    return made


def median() -> Median:
    made = Median(time_attr="training_iteration", grace_period=1, min_samples_required=2)
    made.set_search_properties("v", "max")
    return made


def tell(scheduler: Any, trial: ReportingTrial, epoch: int, value: float) -> str:
    result = {"training_iteration": epoch, "v": value}
    return str(scheduler.on_trial_result(Controller(), trial, result))


Epochs = list[list[float]]
curves = st.lists(
    st.lists(st.integers(0, 20).map(float), min_size=6, max_size=6), min_size=3, max_size=6
)


def play(make: Callable[[], Any], values: Epochs, cut: int | None) -> list[tuple[int, int, str]]:
    """Let trials report in turn; after `cut` reports go on with a scheduler from its state."""
    scheduler = make()
    trials = [ReportingTrial(str(index)) for index in range(len(values))]
    epochs = [0] * len(values)
    decisions: list[tuple[int, int, str]] = []

    def report(index: int) -> str:
        epochs[index] += 1
        value = values[index][epochs[index] - 1]
        decision = tell(scheduler, trials[index], epochs[index], value)
        if decision == "STOP":
            trials[index].status = "TERMINATED"
        return decision

    for trial in trials:
        scheduler.on_trial_add(None, trial)
    for turn in range(6 * len(values)):
        if turn == cut:
            state = json.loads(json.dumps(scheduler.study_state()))
            scheduler = make()
            scheduler.set_study_state(state)
            trials = [ReportingTrial(trial.trial_id, trial.status) for trial in trials]
            done, epochs = epochs, [0] * len(values)
            for index, trial in enumerate(trials):
                scheduler.on_trial_add(None, trial)
                if trial.status == "TERMINATED":
                    epochs[index] = done[index]
                    continue
                for _ in range(done[index]):  # a trial reports again what it had run
                    assert report(index) == "CONTINUE"  # that has been decided
        index = turn % len(values)
        if trials[index].status == "RUNNING":
            decisions.append((index, epochs[index], report(index)))
    return decisions


@pytest.mark.parametrize("make", [asha, median])
@settings(max_examples=60, deadline=None)
@given(values=curves, data=st.data())
def test_a_scheduler_goes_on_as_if_nothing_had_happened(
    make: Callable[[], Any], values: Epochs, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, 6 * len(values) - 1))
    assert play(make, values, cut) == play(make, values, None)


@pytest.mark.parametrize("make", [asha, median])
def test_trials_that_run_anew_are_forgotten(make: Callable[[], Any]) -> None:
    full, told = make(), make()
    for scheduler, names in ((full, "abcd"), (told, "bd")):
        for name in names:
            trial = ReportingTrial(name)
            scheduler.on_trial_add(None, trial)
            tell(scheduler, trial, 1, float(ord(name)))
    full.forget({"b", "d"})
    assert (
        full.study_state()["rungs" if make is asha else "results"]
        == (told.study_state()["rungs" if make is asha else "results"])
    )


def test_rungs_of_another_experiment_are_not_taken() -> None:
    other = Asha(max_t=9, grace_period=2, reduction_factor=2)
    with pytest.raises(NotRestoredError, match="rungs"):
        other.set_study_state(asha().study_state())


def test_a_shown_scheduler_has_the_state_of_the_one_inside() -> None:
    inner = asha()
    shown = ShownScheduler(inner, lambda config, result: None)
    assert shown.stateful
    assert not ShownScheduler(None, lambda config, result: None).stateful
    trial = ReportingTrial("a")
    inner.on_trial_add(None, trial)
    tell(inner, trial, 1, 0.5)
    second = ShownScheduler(asha(), lambda config, result: None)
    second.set_study_state(shown.study_state())
    assert second.study_state() == inner.study_state()
    second.forget(set())
    assert all(not recorded for _, recorded in second.study_state()["rungs"])


def test_a_live_object_comes_out_of_a_pickle_as_itself() -> None:
    scheduler = asha()
    data = pickle.dumps({"scheduler": scheduler})
    assert pickle.loads(data)["scheduler"] is scheduler
    del scheduler
    with pytest.raises(pickle.UnpicklingError, match="driver that is gone"):
        pickle.loads(data)


# On Ray

SWEEP = """
name: s
space: {{name: nasbench201, channels: 2, cells_per_stage: 1}}
dataset: digits
method: darts
search: {{epochs: 9, batch_size: 64, weight_lr: {{loguniform: [0.001, 0.1]}}}}
oracle: {{name: nasbench201, path: {table}}}
tune:
  num_samples: 40
  max_concurrent: 1
  searcher: {searcher}
  scheduler: {scheduler}
"""


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[None]:
    """Keep the paths of Ray's sockets short."""
    with drive.short_ray_folder():
        yield


def outcomes(study: Path) -> dict[str, Any]:
    return {
        row["key"]: (row["status"], row["stop"], [entry["val_accuracy"] for entry in row["curve"]])
        for row in drive.rows(study)
    }


@pytest.fixture
def killed(tmp_path: Path, ray_folder: None) -> Callable[[str, str], Path]:
    """Start a sweep of 40 configurations, one after the other, and kill it on its way."""

    def kill(searcher: str, scheduler: str) -> Path:
        table = write(columns201(), tmp_path / "nb201.parquet")
        file = tmp_path / "s.yaml"
        file.write_text(SWEEP.format(table=table, searcher=searcher, scheduler=scheduler))
        often = {"TUNE_GLOBAL_CHECKPOINT_S": "0"}
        process = drive.nas("simulate", file, root=tmp_path, env=often)
        study = tmp_path / "s-simulated"
        drive.wait_for(lambda: len(list(study.glob("ledger/*.json"))) > 15, tmp_path)
        drive.kill_group(process)
        assert len(drive.rows(study)) < 40
        return study

    return kill


def resume(study: Path) -> str:
    """Resume a study and return what the command said."""
    code = drive.finish(drive.nas("resume", study.name, root=study.parent), study.parent)
    log = (study.parent / "nas.log").read_text()
    assert code == 0, log
    return log


def test_a_killed_sweep_goes_on_with_what_ray_knew_or_is_rebuilt(
    tmp_path: Path, killed: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = killed("random", "{name: asha, grace_epochs: 1, reduction_factor: 3}")
    copy = tmp_path / "copy" / study.name
    shutil.copytree(study, copy)
    for path in (copy / "ray").glob("*/guard/*/experiment_state-*"):
        # Whole to all appearances; Ray restores none of it and would start over.
        state = json.loads(path.read_text())
        state["trial_data"] = [[text, "{}"] for text, _ in state["trial_data"]]
        path.write_text(json.dumps(state))

    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
    monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
    planned = simulated(load_experiment(tmp_path / "s.yaml"), ray=False)
    reporter: Any = SimpleNamespace(update=print, message=print, close=print)
    run_study(planned, tmp_path / "whole", command="nas simulate", reporter=reporter)
    expected = outcomes(tmp_path / "whole" / study.name)
    assert len(expected) == 40
    assert {status for status, _, _ in expected.values()} == {"finished", "stopped"}

    said = resume(study)
    assert "trials that Ray had" in said
    assert "rebuilding" not in said
    assert outcomes(study) == expected
    assert "Ray did not restore them" in resume(copy)
    assert outcomes(copy) == expected


def test_a_killed_optuna_sweep_with_the_median_rule_goes_on(
    killed: Callable[[str, str], Path],
) -> None:
    study = killed("optuna", "{name: median, grace_epochs: 1, min_trials: 3}")
    before = outcomes(study)
    said = resume(study)
    assert "trials that Ray had" in said
    assert "rebuilding" not in said
    after = outcomes(study)
    assert len(after) == 40
    assert {key: after[key] for key in before} == before
