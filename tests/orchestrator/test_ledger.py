from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StudyError
from orchestrator.ledger import (
    ROW_FORMAT,
    Ledger,
    Row,
    read_row,
    replace_file,
    row_key,
    with_selections,
    write_row,
)
from tests.orchestrator.fake_driver import genotype, make_row


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_a_row_survives_its_file(ledger: Ledger) -> None:
    row = make_row(3, stop={"epoch": 3, "reason": "asha"}, error="E", params={"search.lr": 0.1})
    assert ledger.write(row)
    assert ledger.read(row.key) == row
    assert ledger.keys() == [row.key]


def test_genotypes_of_epochs_are_kept_once_and_each_epoch_gets_its_own_back(
    ledger: Ledger,
) -> None:
    operations = ["skip_connect", "nor_conv_3x3", "nor_conv_3x3", "skip_connect"]
    curve = [{"epoch": n, "genotype": genotype(o)} for n, o in enumerate(operations, 1)]
    row = make_row(curve=curve)
    assert row.to_json()["genotypes"] == [genotype("skip_connect"), genotype("nor_conv_3x3")]
    ledger.write(row)
    assert ledger.rows() == [row]


def test_numbers_that_are_not_finite_become_null(ledger: Ledger) -> None:
    row = make_row(curve=[{"epoch": 1, "train_loss": float("nan"), "val_loss": float("inf")}])
    ledger.write(row)
    read = ledger.read(row.key)
    assert read is not None
    assert read.curve == [{"epoch": 1, "train_loss": None, "val_loss": None}]
    text = next(ledger.folder.glob("*.json")).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_key_depends_on_everything_in_the_identity_and_on_nothing_else() -> None:
    identity = {"method": {"name": "darts", "radius": 1.0}, "seed": 0, "plugins": None}
    key = row_key("search", identity)
    assert len(key) == 16
    assert row_key("search", dict(reversed(identity.items()))) == key
    assert row_key("search", {**identity, "method": {"radius": 1, "name": "darts"}}) == key
    changed = [
        row_key("retrain", identity),
        row_key("search", {**identity, "seed": 1}),
        row_key("search", {**identity, "plugins": "ab"}),
        row_key("search", {**identity, "method": {"name": "darts", "radius": 1.5}}),
        row_key("search", {**identity, "more": 1}),
    ]
    assert len({key, *changed}) == 1 + len(changed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_an_identity_that_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON"):
        row_key("search", {"seed": value})


def test_rows_come_in_the_order_of_their_start_and_by_stage(ledger: Ledger) -> None:
    rows = [make_row(seed, started=100.0 - seed) for seed in range(4)]
    other = make_row(9, stage="retrain", started=0.0)
    for row in [*rows, other]:
        ledger.write(row)
    assert ledger.rows() == [other, *reversed(rows)]
    assert ledger.rows("retrain") == [other]
    assert ledger.rows("search") == rows[::-1]


def test_a_finished_row_is_never_replaced_by_a_worse_one(ledger: Ledger) -> None:
    row = make_row()
    stopped = replace(row, status="stopped")
    assert ledger.write(stopped)
    assert not ledger.has_finished(row.key)
    assert ledger.write(row)
    assert ledger.has_finished(row.key)
    assert not ledger.write(replace(row, status="failed", error="late"))
    assert ledger.read(row.key) == row


def test_a_running_row_and_a_strange_key_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="beside its checkpoint"):
        ledger.write(make_row(status="running"))
    with pytest.raises(ValueError, match="16 hex"):
        ledger.write(make_row(key="../../escape"))


DAMAGE = {
    "empty": b"",
    "torn": b'{"key": "0',
    "binary": b"\x00\xff\xfe",
    "list": b"[]",
    "no fields": b"{}",
    "wrong type": None,
    "foreign key": None,
    "lost genotype": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_put_aside_and_the_others_are_read(
    ledger: Ledger, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = make_row(0), make_row(1)
    ledger.write(good)
    ledger.write(bad)
    path = ledger.folder / f"{bad.key}.json"
    form = json.loads(path.read_text())
    del form["crc32"]  # as earlier versions wrote it: what is wrong is found without it
    changed = {
        "wrong type": {**form, "seed": "one"},
        "foreign key": {**form, "key": good.key},
        "lost genotype": {**form, "genotypes": []},
    }
    data = DAMAGE[damage]
    path.write_bytes(json.dumps(changed[damage]).encode() if data is None else data)
    assert ledger.rows() == [good]
    assert ledger.read(bad.key) is None
    assert [p.name[:21] for p in ledger.damaged()] == [f"{bad.key}.json"]
    assert "will run again" in caplog.text
    assert ledger.write(bad)
    assert ledger.read(bad.key) == bad


@pytest.mark.parametrize("place", [0.0, 0.03, 0.3, 0.6, 0.9])
def test_one_flipped_digit_or_letter_is_no_row(ledger: Ledger, place: float) -> None:
    row = make_row(1)
    ledger.write(row)
    path = ledger.folder / f"{row.key}.json"
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    data[at] ^= 1
    path.write_bytes(data)
    assert ledger.read(row.key) is None
    assert ledger.lost() == [row.key]
    ledger.write(row)
    assert ledger.lost() == []  # it has run again


def test_a_folder_and_endless_brackets_in_the_place_of_a_row_are_put_aside(ledger: Ledger) -> None:
    first, second = make_row(0), make_row(1)
    ledger.write(first)
    (ledger.folder / f"{first.key}.json").unlink()
    (ledger.folder / f"{first.key}.json").mkdir()
    (ledger.folder / f"{second.key}.json").write_text("[" * 100_000)
    assert ledger.rows() == []
    assert ledger.lost() == sorted([first.key, second.key])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 10**30),
        ("seed", True),
        ("started", 1e300),
        ("cost", {"time_s": "long"}),
        ("cost", {"time_s": 10**400}),
        ("curve", [{"epoch": {}}]),
        ("curve", [{"epoch": 1, "val_accuracy": 10**400}]),
        ("settings", {"method": 3}),
        ("settings", {"pbt": {"member": "a"}, "retrain": {}}),
        ("params", {"search.weight_lr": [10**30]}),
        ("stop", {"epoch": [], "reason": "asha"}),
        ("genotype", {"space": "nasbench201"}),
        ("evaluation", {"params": None, "macs": 1.0}),
        ("selections", {"magnitude": 3}),
        ("selections", {"magnitude": {"label": "x", "genotype": None, "genotype_hash": "y"}}),
        ("history", [{"epoch": 1, "settings": None, "copied_from": None}]),
        ("landscape", {"loss": [["a", {}]]}),
    ],
)
def test_a_row_without_checksum_has_to_have_values_that_readers_can_take(
    name: str, value: Any
) -> None:
    form = make_row().to_json()
    form["genotypes"], form["curve"] = [], []
    Row.from_json(form)
    with pytest.raises(ValueError, match=name.rstrip("s")):
        Row.from_json({**form, name: value})


def test_every_field_of_the_wrong_type_is_noticed() -> None:
    form = make_row().to_json()
    for name in (field.name for field in fields(Row)):
        with pytest.raises((ValueError, StudyError)):
            Row.from_json({**form, name: object()})


def test_the_last_epoch_compares_rows_and_the_genotypes_epoch_ranks_seeds() -> None:
    curve = [{"epoch": e, "val_accuracy": v} for e, v in enumerate((0.5, 0.9, 0.7), start=1)]
    last = replace(make_row(), curve=curve)
    best = replace(last, genotype_epoch=2)
    assert (last.value("val_accuracy"), last.genotype_value("val_accuracy")) == (0.7, 0.7)
    assert (best.value("val_accuracy"), best.genotype_value("val_accuracy")) == (0.7, 0.9)
    diverged = replace(best, status="diverged")
    assert diverged.genotype_value("val_accuracy") == 0.7
    # A rule that looked at the supernet later saw that of the last epoch.
    result = {"label": "rule", "genotype": last.genotype, "genotype_hash": "x"}
    _, other = with_selections([replace(best, selections={"rule": result})])
    assert other.genotype_value("val_accuracy") == 0.7
    assert other.label.endswith("select=rule")
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="not in its curve"):
            Row.from_json(best.to_json() | {"genotype_epoch": wrong})


def test_a_newer_format_is_no_damage(ledger: Ledger) -> None:
    row = make_row()
    form = {**row.to_json(), "format": ROW_FORMAT + 1, "surprise": 1}
    replace_file(ledger.folder / f"{row.key}.json", json.dumps(form).encode())
    with pytest.raises(StudyError, match=r"format 2.*up to 1.*Update"):
        ledger.rows()
    assert ledger.keys() == [row.key]


def test_an_empty_ledger_has_no_rows(ledger: Ledger) -> None:
    assert ledger.rows() == []
    assert ledger.read("0" * 16) is None
    assert ledger.damaged() == []


def test_the_value_of_a_metric_is_its_last_finite_one() -> None:
    nan = float("nan")
    row = make_row(curve=[{"a": 1.0, "b": 2}, {"a": nan}, {"a": None, "c": "text"}])
    assert row.value("a") == 1.0
    assert row.value("b") == 2.0
    assert row.value("c") is None


def _write_for_ever(folder: str) -> None:
    row = make_row(0, epochs=40)
    while True:
        write_row(Path(folder) / f"{row.key}.json", row)


def test_a_writer_killed_at_any_moment_leaves_a_whole_row(ledger: Ledger) -> None:
    row = make_row(0, epochs=40)
    ledger.write(row)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_write_for_ever, args=(str(ledger.folder),))
    process.start()
    path = ledger.folder / f"{row.key}.json"
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:  # a process takes a while to start
        time.sleep(0.01)
    # Reads while it writes, then after SIGKILL.
    for _ in range(200):
        assert ledger.read(row.key) == row
    process.kill()
    process.join()
    assert ledger.rows() == [row]
    assert ledger.damaged() == []


def test_a_partial_row_may_be_missing(tmp_path: Path) -> None:
    assert read_row(tmp_path / "row.json") is None


def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "row.json"
    replace_file(path, b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_ledger_and_the_outbox_need_no_heavy_package() -> None:
    code = (
        "import sys, orchestrator.ledger, orchestrator.outbox, orchestrator.study;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'pandas', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
