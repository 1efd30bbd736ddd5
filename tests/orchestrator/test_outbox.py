from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.errors import StudyError
from orchestrator.outbox import (
    Offset,
    Outbox,
    begins_line,
    end_of_records,
    last_study_status,
    offset_file,
    read_offsets,
    read_records,
    row_record,
    study_end_record,
    study_record,
    write_offset,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox" / "events.jsonl"


def test_what_was_appended_is_read_from_any_position(path: Path) -> None:
    records = [study_record(1.0), row_record("a", 2.0), study_end_record("finished", 3.0)]
    positions = [0]
    with Outbox(path) as outbox:
        for record in records:
            outbox.append(record)
            positions.append(path.stat().st_size)
    for first, position in enumerate(positions):
        assert read_records(path, position, 10**6) == (records[first:], positions[-1])
    # A limit within a line reads that line to its end.
    assert read_records(path, 0, 5) == (records[:1], positions[1])
    assert end_of_records(path) == positions[-1]


def test_a_torn_line_spoils_only_itself(path: Path) -> None:
    with Outbox(path) as outbox:
        outbox.append(row_record("a", 1.0))
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"k":"ro')
    assert end_of_records(path) == whole
    with Outbox(path) as outbox:
        outbox.append(row_record("b", 2.0))
    with Outbox(path):
        pass  # opening a whole file adds nothing
    assert path.read_bytes().count(b"\n") == 3
    records, position = read_records(path, 0, 10**6)
    assert [record["key"] for record in records] == ["a", "b"]
    assert position == end_of_records(path) == path.stat().st_size


def test_a_number_that_is_not_finite_is_refused(path: Path) -> None:
    with Outbox(path) as outbox, pytest.raises(ValueError, match="JSON"):
        outbox.append({"k": "row", "key": "a", "t": float("nan")})
    assert path.read_bytes() == b""


def test_a_full_disk_is_told_and_tears_no_other_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with Outbox(path) as outbox:
        outbox.append(row_record("a", 1.0))
        with monkeypatch.context() as patch:
            patch.setattr("os.write", lambda fd, data: write(fd, data[:7]))
            with pytest.raises(OSError, match="whole record"):
                outbox.append(row_record("b", 1.0))
        outbox.append(row_record("c", 1.0))
    assert [r["key"] for r in read_records(path, 0, 10**6)[0]] == ["a", "c"]


def test_each_store_has_its_own_offset(path: Path) -> None:
    assert read_offsets(path) == {}
    first, second = Offset("sqlite:///a", "run", 10, "me"), Offset("http://b", "run2", 20, "you")
    write_offset(path, first)
    write_offset(path, second)
    moved = Offset("sqlite:///a", "run", 30, "me")
    write_offset(path, moved)
    assert read_offsets(path) == {"sqlite:///a": moved, "http://b": second}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"position": 1}}'])
def test_a_damaged_offset_means_from_the_start(path: Path, text: str) -> None:
    Outbox(path).close()
    offset_file(path).write_text(text)
    assert read_offsets(path) == {}


def test_how_the_last_driver_left(path: Path) -> None:
    assert last_study_status(path) is None
    assert end_of_records(path) == 0
    with Outbox(path) as outbox:
        outbox.append(study_record(1.0))
        assert last_study_status(path) == "interrupted"
        outbox.append(study_end_record("failed", 2.0))
        assert last_study_status(path) == "failed"
        outbox.append(study_record(3.0))
        assert last_study_status(path) == "interrupted"


def test_the_end_is_found_behind_a_long_torn_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(json.dumps({"k": "row"}).encode() + b"\n" + b"x" * 200_000)
    assert end_of_records(path) == len(json.dumps({"k": "row"})) + 1


ODD = {
    "no mapping": "[1]",
    "brackets": "[" * 100_000,
    "kind that is a list": '{"k":[],"t":1}',
    "time that is none": '{"k":"study","t":NaN}',
    "time beyond all clocks": '{"k":"study","t":1e300}',
    "key that is a list": '{"k":"row","key":["a"],"t":1}',
    "key that leaves the folder": '{"k":"row","key":"../a","t":1}',
    "row of another key": '{"k":"start","key":"a","row":{"key":"b"},"t":1}',
    "row that is text": '{"k":"start","key":"a","row":"b","t":1}',
    "values that are a list": '{"k":"epoch","key":"a","step":1,"m":[],"t":1}',
    "value that is text": '{"k":"epoch","key":"a","step":1,"m":{"x":"y"},"t":1}',
    "step that is text": '{"k":"epoch","key":"a","step":"x","m":{},"t":1}',
}


@pytest.mark.parametrize("case", ODD)
def test_a_line_that_no_driver_writes_is_put_aside_and_said(
    path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = row_record("a", 1.0)
    with Outbox(path) as outbox:
        outbox.append(good)
    path.write_bytes(ODD[case].encode() + b"\n" + path.read_bytes())
    assert read_records(path, 0, 10**6)[0] == [good]
    assert path.with_suffix(".bad").read_text() == f"{ODD[case]}\n"
    assert "1 lines are no records" in caplog.text


@pytest.mark.parametrize(
    "offset", [{"position": -1}, {"position": "3"}, {"position": 1.5}, {"parent": None}]
)
def test_an_offset_of_a_wrong_kind_means_from_the_start(
    path: Path, offset: dict[str, object]
) -> None:
    path.parent.mkdir()
    form = {"memory:": {"parent": "run0", "position": 3, "writer": "w", **offset}}
    offset_file(path).write_text(json.dumps(form))
    assert read_offsets(path) == {}


def test_an_offset_within_a_line_is_none_of_a_drain(path: Path) -> None:
    with Outbox(path) as outbox:
        outbox.append(row_record("a", 1.0))
    end = path.stat().st_size
    good = [position for position in range(end + 2) if begins_line(path, position)]
    assert good == [0, end]


def test_a_folder_in_the_place_of_the_outbox_or_its_offset_is_named(path: Path) -> None:
    path.mkdir(parents=True)
    offset_file(path).mkdir()
    with pytest.raises(StudyError, match=r"events.jsonl is a folder"):
        read_records(path, 0, 10)
    with pytest.raises(StudyError, match=r"offset is a folder"):
        read_offsets(path)
