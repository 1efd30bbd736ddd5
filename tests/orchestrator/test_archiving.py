"""`nas archive`: what comes back is what was there, whatever was cut off or damaged on the way."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem, _MockFileSystem

from orchestrator import archiving, cli
from orchestrator.archiving import MANIFEST, PARTS, archive, restore
from orchestrator.errors import StudyError
from orchestrator.study import Study
from tests.orchestrator.fake_driver import make_row, make_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = make_study(tmp_path / "studies")
    for seed in range(3):
        made.ledger.write(make_row(seed))
        folder = made.checkpoints / make_row(seed).key
        folder.mkdir(parents=True)
        (folder / "final.pt").write_bytes(bytes([seed]) * 3_000_000)
    (made.path / "ray" / "search").mkdir(parents=True)
    (made.path / "ray" / "search" / "tuner.pkl").write_bytes(b"of this machine")
    (made.path / ".torn.abc123").write_bytes(b"left by a killed writer")
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("lock", ".torn.abc123")
        and "ray" not in path.relative_to(folder).parts
    }


def buckets(tmp_path: Path) -> dict[str, FileSystem]:
    (tmp_path / "tree").mkdir(exist_ok=True)
    return {
        "sub tree": SubTreeFileSystem(str(tmp_path / "tree"), LocalFileSystem()),
        "mock": _MockFileSystem(datetime.datetime(2026, 1, 1)),
    }


@pytest.fixture(params=["a folder", "sub tree", "mock"])
def target(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "a folder":
        return str(tmp_path / "kept")
    system = buckets(tmp_path)[request.param]
    monkeypatch.setattr(archiving, "file_system", lambda target: (system, "bucket/studies"))
    return "s3://bucket/studies"


def test_a_study_comes_back_byte_for_byte(study: Study, target: str, tmp_path: Path) -> None:
    done = archive(study, target)
    before = content(study.path)
    assert (done.files, done.sent) == (len(before), len(before))
    assert done.place == f"{target}/fake"
    assert archive(study, target).sent == 0
    back = restore(target, "fake", tmp_path / "elsewhere")
    assert back.files == done.files
    assert content(tmp_path / "elsewhere" / "fake") == before
    again = Study.open("fake", tmp_path / "elsewhere")
    assert again.id == study.id
    assert len(again.rows()) == 3
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["fake"]


def test_what_is_new_is_sent_and_what_is_gone_goes(
    study: Study, target: str, tmp_path: Path
) -> None:
    archive(study, target)
    study.ledger.write(make_row(3))
    (study.checkpoints / make_row(0).key / "final.pt").unlink()
    done = archive(study, target)
    assert done.sent == 1
    restore(target, "fake", tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere" / "fake") == content(study.path)


class CutError(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("cut_at", [1, 3, 6])
def test_an_archive_that_was_cut_off_is_no_archive_and_goes_on(
    cut_at: int, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "kept")
    monkeypatch.setattr(archiving, "_SAVE_EVERY_S", -1.0)
    archive(study, target)
    study.ledger.write(make_row(0, label="changed"))
    for seed in range(3, 9):
        study.ledger.write(make_row(seed))
    verify, seen = archiving._verify, 0

    def cut(*arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == cut_at:
            raise CutError
        verify(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(archiving, "_verify", cut)
        with pytest.raises(CutError):
            archive(study, target)
    assert not (tmp_path / "kept" / "fake" / MANIFEST).exists()
    with pytest.raises(StudyError, match="no whole archive of 'fake'"):
        restore(target, "fake", tmp_path / "elsewhere")
    assert archive(study, target).sent == 7 - (cut_at - 1)
    assert not (tmp_path / "kept" / "fake" / PARTS).exists()
    restore(target, "fake", tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere" / "fake") == content(study.path)


def test_damage_is_found_on_the_way_back_and_a_repaired_one_goes_on(
    study: Study, tmp_path: Path
) -> None:
    target = str(tmp_path / "kept")
    archive(study, target)
    victim = tmp_path / "kept" / "fake" / "checkpoints" / make_row(1).key / "final.pt"
    data = victim.read_bytes()
    victim.write_bytes(b"\xff" + data[1:])
    with pytest.raises(StudyError, match=r"final.pt is damaged"):
        restore(target, "fake", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "fake").exists()
    # The same size, so that a plain look does not see it: the archive believes what it verified.
    victim.unlink()
    assert archive(study, target).sent == 1
    done = restore(target, "fake", tmp_path / "elsewhere")
    assert done.sent < done.files  # the rest was there from the first attempt


def test_a_place_that_changes_what_is_written_is_found_out(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lossy:
        def __init__(self) -> None:
            self.inner = LocalFileSystem()

        def open_input_stream(self, path: str) -> Any:
            if path.endswith("final.pt"):
                Path(path).write_bytes(b"")
            return self.inner.open_input_stream(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    monkeypatch.setattr(archiving, "file_system", lambda target: (Lossy(), str(tmp_path / "k")))
    with pytest.raises(StudyError, match="is not what was written there"):
        archive(study, "k")


def test_other_studies_and_names_are_left_alone(study: Study, tmp_path: Path) -> None:
    target = str(tmp_path / "kept")
    archive(study, target)
    other = make_study(tmp_path / "others")
    with pytest.raises(StudyError, match="another study of the name fake"):
        archive(other, target)
    with pytest.raises(StudyError, match="exists already"):
        restore(target, "fake", study.root)
    with study.hold(), pytest.raises(StudyError, match="is running"):
        archive(Study.open(study.path), target)
    with pytest.raises(StudyError, match="a study's name must be"):
        restore(target, "../fake", tmp_path)
    with pytest.raises(StudyError, match=r"is no place for an archive"):
        archive(study, "nowhere://ann:secret@host/x")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_an_archive_cannot_write_outside_the_study(name: str, study: Study, tmp_path: Path) -> None:
    target = tmp_path / "kept"
    archive(study, str(target))
    manifest = json.loads((target / "fake" / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (target / "fake" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StudyError, match="would leave the study's folder"):
        restore(str(target), "fake", tmp_path / "elsewhere")


def test_the_command_both_ways(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nas(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["archive", "fake", str(tmp_path / "kept"), *words])
        assert not ended.value.code
        return capsys.readouterr().out

    assert "all copied; verified" in nas("--root", str(study.root))
    assert "were there already" in nas("--root", str(study.root))
    document = json.loads(nas("--restore", "--json", "--root", str(tmp_path / "new")))
    assert (document["restored"], document["copied"]) == (True, document["files"])
