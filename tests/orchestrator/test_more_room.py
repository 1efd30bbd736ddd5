"""The second pass over trials that ran out of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.monitor import Monitor
from orchestrator.more_room import Room, is_short_of_memory, rooms, with_gpus
from orchestrator.study import Study
from orchestrator.study_trial import StudySearch, shortage
from orchestrator.units import Unit
from tests.orchestrator import here
from tests.orchestrator.test_study_trial import search_config
from tests.orchestrator.test_sweep import timeless

HUNGRY = '''"""DARTS that finds no memory as often as it is told to."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainables.method import Method, softmax

SOURCE = "a test"
RESULTS_VERSION = 1


@dataclass(frozen=True)
class Config:
    folder: str
    times: int = 0


def relax(alphas, at, *, config):
    tries = Path(config.folder) / "tries"
    if at.epoch == 1 and config.times:
        with tries.open("a") as file:
            file.write("x")
        if len(tries.read_text()) <= config.times:
            raise MemoryError("no room on purpose")
    return softmax(alphas, at)


def build(config):
    return Method(relax=partial(relax, config=config))
'''

STUDY = """
name: hungry
space: {{name: nasbench201, channels: 2, cells_per_stage: 1}}
dataset: digits
method: {{name: hungry, folder: {folder}, times: {{grid: [0, {times}]}}}}
search: {{epochs: 2, batch_size: 256}}
retrain: null
tune: {{max_failures: 0}}
ray: {{address: auto}}
"""


def hungry(folder: Path, nas: here.Nas, times: int) -> tuple[str, Study, list[str]]:
    """Run a study, one of whose two searches finds no memory so many times."""
    methods = folder / "mine" / "methods"
    methods.mkdir(parents=True)
    (methods / "hungry.py").write_text(HUNGRY)
    file = folder / "hungry.yaml"
    file.write_text(STUDY.format(folder=folder, times=times))
    _, said = nas("--plugins", folder / "mine", "run", file, root=folder)
    study = Study.open("hungry", folder)
    rows = sorted(study.rows("search"), key=lambda row: row.settings["method"]["times"])
    assert rows[0].status == "finished"
    return said, study, [row.status for row in rows]


def test_what_ran_out_of_memory_runs_again_from_its_last_epoch(
    tmp_path: Path, nas_here: here.Nas
) -> None:
    said, study, statuses = hungry(tmp_path, nas_here, times=1)
    assert statuses == ["finished", "finished"]
    assert "out of memory: 1 run again one at a time" in said
    assert "checkpointing" not in said
    plain, again = sorted(study.rows("search"), key=lambda row: row.settings["method"]["times"])
    assert timeless(plain.curve) == timeless(again.curve)
    assert again.error is None


def test_a_third_time_the_cells_are_checkpointed_and_then_it_stays_out_of_memory(
    tmp_path: Path, nas_here: here.Nas
) -> None:
    said, study, statuses = hungry(tmp_path, nas_here, times=3)
    assert statuses == ["finished", "oom"]
    assert said.count("run again one at a time") == 2
    assert said.count("with checkpointing of cells") == 1
    (row,) = (row for row in study.rows("search") if row.status == "oom")
    assert row.epochs_done == 1
    assert row.settings["search"]["checkpointing"] == "cell"
    assert "MemoryError: no room on purpose" in str(row.error)
    assert "search.checkpointing" not in str(row.error)  # it had that


def test_there_is_more_room_on_a_gpu_that_was_shared(experiment: Any) -> None:
    for gpus in ("auto", "0.25"):
        first, second = rooms(experiment(f"tune.per_trial.gpus={gpus}"), "search", 2)
        assert (first.gpus, first.words) == (1.0, "with a whole GPU")
        assert (second.gpus, dict(second.search)) == (1.0, {"checkpointing": "cell"})
    (only,) = rooms(experiment("tune.per_trial.gpus=2"), "search", 2)
    assert (only.gpus, only.words) == (None, "with checkpointing of cells")
    assert rooms(experiment("tune.per_trial.gpus=1"), "retrain", 2) == []
    (alone,) = rooms(experiment(), "retrain", 2)
    assert alone.alone
    assert rooms(experiment(), "retrain", 1) == []  # it had the machine to itself


def test_a_setting_that_was_given_is_not_changed() -> None:
    room = Room("", search={"checkpointing": "cell"})
    for given, expected in ((None, True), ("auto", True), ("none", False), ("cell", False)):
        search = {} if given is None else {"checkpointing": given}
        unit = Unit("search", {"search": search}, {0: "a"}, "a", 0, {}, "a", 1)
        assert room.takes(unit) is expected
    assert Room("", gpus=1.0).takes(unit)


def test_every_worker_of_a_retraining_has_the_share_and_the_row_pays_for_all() -> None:
    unit = {"per_trial": {"cpu": 2.0, "gpu": 2.0}, "label": "a"}
    changed = with_gpus({"unit": unit, "retrain": {"workers": 4}}, 0.5)
    assert changed["unit"] == {"per_trial": {"cpu": 2.0, "gpu": 2.0}, "label": "a", "gpus": 0.5}
    assert with_gpus({"unit": unit}, 0.5)["unit"]["per_trial"]["gpu"] == 0.5
    assert unit["per_trial"] == {"cpu": 2.0, "gpu": 2.0}


def test_the_row_says_what_there_was_and_what_helps(tmp_path: Path) -> None:
    config = search_config(tmp_path)
    said = shortage(config)
    assert said.startswith("Its process had ")
    assert "; the machine has " in said
    assert said.endswith(
        "What helps: tune.max_concurrent: 1, search.checkpointing: cell, "
        f"a search.batch_size below {config['search']['batch_size']}."
    )
    block = StudySearch(config)

    def no_room() -> dict[str, Any]:
        raise MemoryError("on purpose")

    block.trials[0].run_epoch = no_room  # type: ignore[method-assign]
    block.step()
    (row,) = block.ledger.iterate()
    assert row.status == "oom"
    assert str(row.error).startswith("MemoryError: on purpose\nIts process had ")


@pytest.mark.parametrize(
    ("error", "short"),
    [
        ("Failure # 1\nray.exceptions.OutOfMemoryError: Memory on the node was 9.6GB", True),
        ("Failure # 1\nThe node was running low on memory", True),
        ("Failure # 1\nray.exceptions.OutOfMemoryError\nFailure # 2\nshape mismatch", False),
        ("Failure # 1\nThe actor died unexpectedly", False),
    ],
)
def test_what_ray_says_when_it_ends_a_process_for_memory(error: str, short: bool) -> None:
    assert is_short_of_memory(error) is short


def test_an_interrupted_stage_has_no_second_pass(
    tmp_path: Path, nas_here: here.Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Monitor.ended
    stopped = [False]

    def is_ended(monitor: Monitor, unit: Unit) -> bool:
        return ended(monitor, unit) and not (stopped[0] and unit.settings["method"]["times"] == 0)

    give_up = Monitor.give_up

    def give_up_and_stop(monitor: Monitor) -> None:
        give_up(monitor)
        stopped[0] = True

    monkeypatch.setattr(Monitor, "ended", is_ended)
    monkeypatch.setattr(Monitor, "give_up", give_up_and_stop)
    said, _, statuses = hungry(tmp_path, nas_here, times=1)
    assert statuses == ["finished", "oom"]
    assert "run again" not in said
