"""What a driver clears away at its end, and what it must not touch."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from orchestrator import cleaning, knowledge
from orchestrator.errors import StudyError
from orchestrator.outbox import Outbox
from orchestrator.runner import resume_study
from orchestrator.searchers import ListSearcher
from orchestrator.sweep import make_scheduler
from tests.orchestrator.fake_study import make_study, search_row
from tests.orchestrator.test_monitor import Silent


def test_what_killed_processes_left_goes_and_nothing_else_does(tmp_path: Path) -> None:
    study = make_study(tmp_path / "studies")
    states = {"finished": "gone", "diverged": "gone", "stopped": "kept", "failed": "kept"}
    wanted: dict[Path, bool] = {}
    for label, status in zip("abcd", states, strict=True):
        row = search_row(label, 0, [0.5], status=status)
        study.ledger.write(row)
        folder = study.checkpoints / row.key
        for name in ("state.pt", "row.json"):
            wanted[folder / name] = states[status] == "kept"
        wanted[folder / "final.pt"] = True
        wanted[folder / ".state.pt.k2j3h4g5"] = False
    begun = study.checkpoints / ("e" * 16)
    wanted |= {begun / "state.pt": True, begun / "row.json": True}
    old = study.path / "report" / ".report.html.a1b2c3d4"
    wanted |= {study.path / "ledger" / ".row.json.a1b2c3d4": False, old: False}
    wanted |= {study.path / "report" / ".report.md.a1b2c3d4": True}  # may be written just now
    wanted |= {study.path / "ledger" / ".notes.backup-1": True}  # a person's
    folder = study.path / "ledger" / ".folder.a1b2c3d4"
    wanted |= {study.path / "report" / "report.html": True, study.path / "outbox" / "x": True}
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    os.utime(old, (time.time() - 600,) * 2)
    folder.mkdir()
    cleaning.tidy(study)
    assert {path: path.exists() for path in wanted} == wanted
    assert folder.is_dir()


def test_what_a_searcher_without_values_knew_is_written_too(tmp_path: Path) -> None:
    asha = make_scheduler({"name": "asha", "grace_epochs": 1, "reduction_factor": 2.0}, 4)
    knowledge.note(tmp_path, ListSearcher([], lambda unit: {}), asha)
    known = json.loads((tmp_path / knowledge.FILE).read_text())
    assert known["searcher"] is None
    assert known["scheduler"]["rungs"] == [[4.0, 0], [2.0, 0], [1.0, 0]]
    assert abs(known["time"] - time.time()) < 60


def test_a_full_disk_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "studies")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Outbox, "append", full)
    with pytest.raises(StudyError, match=r"make room in .*, then `nas resume tiny`"):
        resume_study(study, command="nas resume tiny", reporter=Silent())
