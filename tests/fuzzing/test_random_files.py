"""A few random files of every kind; `nas bench fuzz` tries more. The same ones each time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.fuzzing import outcomes
from benchmarks.fuzzing.checkpoints import Checkpoints
from benchmarks.fuzzing.damage import Damage
from benchmarks.fuzzing.experiments import Experiments, File
from benchmarks.fuzzing.genotypes import Genotypes
from benchmarks.fuzzing.outboxes import Mail, Outboxes
from benchmarks.fuzzing.outcomes import Finding, Kind
from benchmarks.fuzzing.studies import Studies
from orchestrator import json_files, ledger, outbox
from spaces.core.errors import NasError
from trainables import state

_QUICK = ("status", "status --json", "status of all", "stop", "clean", "resume", "frames", "sync")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    logging.getLogger("ray").setLevel(logging.ERROR)


def stands(kind: Kind, inputs: int) -> set[str]:
    """Try inputs, the same ones each time; return how they ended."""
    ends: set[str] = set()

    @settings(
        max_examples=inputs,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.inputs())
    def try_one(item: Any) -> None:
        ends.add(kind.check(item))

    try_one()
    return ends


def test_experiments_are_taken_or_refused(tmp_path: Path) -> None:
    assert stands(Experiments(tmp_path), 150) == {"accepted", "refused"}


def test_genotypes_are_taken_or_refused(tmp_path: Path) -> None:
    assert stands(Genotypes(tmp_path), 150) == {"accepted", "refused"}


def test_damaged_study_folders_lose_no_row_without_a_word(tmp_path: Path) -> None:
    assert "repaired" in stands(Studies(tmp_path, _QUICK), 60)


def test_damaged_outboxes_are_sent_whole_and_once(tmp_path: Path) -> None:
    assert {"accepted", "repaired"} <= stands(Outboxes(tmp_path), 60)


def test_damaged_states_are_dropped_aloud_and_run_no_code(tmp_path: Path) -> None:
    assert "repaired" in stands(Checkpoints(tmp_path), 15)


# -- what is looked for is found ----------------------------------------------------------------


def test_a_row_that_vanishes_silently_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger._log, "warning", lambda *_: None)
    # `nas status` would name it all the same: it looks at what was put aside.
    with pytest.raises(Finding, match=r"loss: a row is gone without a word"):
        stands(Studies(tmp_path, ("stop",)), 60)


def test_a_row_whose_checksum_nobody_looks_at_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "unsealed", lambda data: (json_files.parse(data), False))
    with pytest.raises(Finding, match=r"loss: a damaged row was taken for whole"):
        stands(Studies(tmp_path, ("status",)), 300)


def test_a_line_that_is_no_record_and_is_sent_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Outboxes(tmp_path)
    line = b'{"k":"epoch","key":"a","t":1,"step":"x","m":{"x":1}}\n'
    mail = Mail("lines", Damage("empty", 0.0, b"", None), ((0.5, line),), None, 0.0)
    assert kind.check(mail) == "repaired"
    monkeypatch.setitem(outbox._SHAPES, "epoch", lambda record: True)
    with pytest.raises(Finding, match="traceback: ValueError"):
        kind.check(mail)


def test_a_state_whose_numbers_nobody_looks_at_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_check_sums", lambda path: None)
    with pytest.raises(Finding, match=r"loss: a trial goes on from what no trial left"):
        stands(Checkpoints(tmp_path), 40)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (KeyError("x"), "traceback"),
        (RecursionError(), "traceback"),
        (NasError(""), "unclear"),
        (NasError("KeyError: 'x'"), "unclear"),
        (NasError("a\x1b[2Jb"), "unclear"),
        (NasError("a" * 5000), "unclear"),
    ],
)
def test_a_bad_end_is_a_finding(error: Exception, fault: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(Finding) as found:
        outcomes.tried(fail)
    assert found.value.fault == fault


def test_a_wait_is_a_finding() -> None:
    def wait() -> None:
        while True:
            pass

    with pytest.raises(Finding, match="slow"):
        outcomes.tried(wait, deadline_s=0.1)


def test_a_refusal_that_names_no_file_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Experiments(tmp_path)
    broken = File("noise", b"[]")
    assert kind.check(broken) == "refused"

    def refuse(*_: Any) -> None:
        raise NasError("it is wrong.")

    monkeypatch.setattr("orchestrator.config.load_experiment", refuse)
    with pytest.raises(Finding, match="does not name the file"):
        kind.check(broken)
