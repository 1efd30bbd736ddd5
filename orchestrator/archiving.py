"""`nas archive`: a study copied whole to a folder or a bucket, verified, and brought back.

Below the target lies `<study>/`: its files as they are, and `manifest.json` with the size and
SHA-256 of each. The manifest is written last, and removed before a file is replaced, so that an
archive without one is one that was cut off; the same command then goes on with what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from orchestrator.errors import StudyError
from orchestrator.study import Study, check_name
from orchestrator.tracking_location import scrubbed, without_password

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MANIFEST = "manifest.json"
PARTS = "manifest.part.json"
FORMAT = 1
_CHUNK = 1 << 20
_SAVE_EVERY_S = 10.0  # how often it is noted what is there, so that repeating is cheap
# What a driver needs while it runs, what it makes anew, and what is of one machine.
_LEFT_OUT = ("lock", "stop.json", "ray", "nodes")
Told = Callable[[str], None]


@dataclass(frozen=True)
class Archived:
    """What an archive has.

    Attributes:
        place: Where it is, without passwords.
        files: Number of files.
        size: Their bytes.
        sent: Files that were copied by this command; the others were there already.
    """

    place: str
    files: int
    size: int
    sent: int


def file_system(target: str) -> tuple[FileSystem, str]:
    """Return the file system of a path or URI, and the path in it.

    Raises:
        StudyError: It is none, or what it needs is not installed.
    """
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not urlsplit(target).scheme:
        return LocalFileSystem(), str(Path(target).expanduser().absolute())
    try:
        found, path = FileSystem.from_uri(target)
    except (ArrowException, OSError, ValueError) as error:
        raise StudyError(
            f"{without_password(target)} is no place for an archive: {_first(error)}. Name a "
            "folder, s3://bucket/folder, gs://bucket/folder or another URI of pyarrow."
        ) from error
    return found, path


def archive(study: Study, target: str, told: Told = lambda _: None) -> Archived:
    """Copy a study to `target`, as `<target>/<name>/`; what is there already is not sent again.

    Args:
        study: The study; nobody may be running it.
        target: A folder or a URI.
        told: Takes lines on the progress.

    Raises:
        StudyError: It is running, the target cannot be written to or holds another study.
    """
    system, base = file_system(target)
    place = f"{base.rstrip('/')}/{study.name}"
    with study.hold(), _translated(target):
        whole = _read(system, place, MANIFEST)
        there = whole or _read(system, place, PARTS)
        _check_same(study, there, target)
        known: dict[str, Any] = dict(there.get("files", {}))
        files = {name: _entry(study.path / name) for name in _files(study.path)}
        todo = [name for name in files if not _has(system, f"{place}/{name}", known, name, files)]
        if whole and (todo or known.keys() != files.keys()):
            _write(system, place, PARTS, whole)
            system.delete_file(f"{place}/{MANIFEST}")
        saved = time.monotonic()
        for count, name in enumerate(todo, start=1):
            path = f"{place}/{name}"
            system.create_dir(str(PurePosixPath(path).parent), recursive=True)
            with system.open_output_stream(path) as sink, (study.path / name).open("rb") as source:
                shutil.copyfileobj(source, sink, _CHUNK)
            _verify(system, path, files[name], target)
            known[name] = files[name]
            if time.monotonic() - saved > _SAVE_EVERY_S:
                _write(system, place, PARTS, _manifest(study, known))
                told(f"{count} of {len(todo)} files sent")
                saved = time.monotonic()
        for name in known.keys() - files.keys():  # `nas clean` has removed it since
            if _size(system, f"{place}/{name}") is not None:
                system.delete_file(f"{place}/{name}")
        if todo or not whole or known.keys() != files.keys():
            _write(system, place, MANIFEST, _manifest(study, files))
        if _size(system, f"{place}/{PARTS}") is not None:
            system.delete_file(f"{place}/{PARTS}")
    size = sum(entry["bytes"] for entry in files.values())
    shown = f"{without_password(target).rstrip('/')}/{study.name}"
    return Archived(shown, len(files), size, len(todo))


def restore(target: str, name: str, root: Path, told: Told = lambda _: None) -> Archived:
    """Bring a study back from an archive; the digests of all files are checked.

    It is built beside its place and moved there when it is whole. A restore that was cut off goes
    on with what is missing.

    Args:
        target: Folder or URI that was archived to.
        name: Name of the study.
        root: Folder of studies.
        told: Takes lines on the progress.

    Raises:
        StudyError: There is a study of that name, or no whole archive, or a file is damaged.
    """
    system, base = file_system(target)
    final, work = root / check_name(name), root / f".{name}.restoring"
    if final.exists():
        raise StudyError(f"{final} exists already. Choose another --root, or move it aside.")
    place, received, said = f"{base.rstrip('/')}/{name}", 0, time.monotonic()
    with _translated(target):
        manifest = _read(system, place, MANIFEST)
        if not manifest:
            raise StudyError(
                f"{without_password(target)} has no whole archive of {name!r}: there is no "
                f"{name}/{MANIFEST}. If it was cut off, archive it again."
            )
        for part, entry in manifest["files"].items():
            path = _inside(work, part)
            if path.is_file() and _entry(path) == entry:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with system.open_input_stream(f"{place}/{part}") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
            if _entry(path) != entry:
                path.unlink()
                raise StudyError(
                    f"{without_password(target)}: {name}/{part} is damaged: its digest is not the "
                    "one that was archived. Archive the study again if you still have it."
                )
            received += 1
            if time.monotonic() - said > _SAVE_EVERY_S:
                told(f"{received} files received")
                said = time.monotonic()
        for path in _strangers(work, set(manifest["files"])):
            path.unlink()
        work.replace(final)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return Archived(str(final), len(manifest["files"]), size, received)


def _has(
    system: FileSystem,
    path: str,
    known: Mapping[str, Any],
    name: str,
    files: Mapping[str, Mapping[str, Any]],
) -> bool:
    """Return whether an archive has a file as it is now."""
    return known.get(name) == files[name] and _size(system, path) == files[name]["bytes"]


def _files(folder: Path) -> list[str]:
    """Return the files of a study that an archive has, in a fixed order."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.relative_to(folder).parts[0] not in _LEFT_OUT
        and not path.name.startswith(".")  # what a killed writer left
    )


def _strangers(work: Path, names: set[str]) -> Iterator[Path]:
    for path in sorted(work.rglob("*")):
        if path.is_file() and path.relative_to(work).as_posix() not in names:
            yield path


def _entry(path: Path) -> dict[str, Any]:
    content = hashlib.sha256()
    with path.open("rb") as file:
        size = _digest(file, content)
    return {"bytes": size, "sha256": content.hexdigest()}


def _digest(file: BinaryIO, content: Any) -> int:
    size = 0
    while chunk := file.read(_CHUNK):
        content.update(chunk)
        size += len(chunk)
    return size


def _verify(system: FileSystem, path: str, entry: Mapping[str, Any], target: str) -> None:
    """Read a file back from where it was sent to."""
    content = hashlib.sha256()
    with system.open_input_stream(path) as source:
        _digest(source, content)
    if content.hexdigest() != entry["sha256"]:
        raise StudyError(
            f"{without_password(target)}: {path} is not what was written there. Is the place full?"
        )


def _manifest(study: Study, files: Mapping[str, Any]) -> dict[str, Any]:
    head = {"format": FORMAT, "id": study.id, "name": study.name}
    head["archived"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return {**head, "files": dict(sorted(files.items()))}


def _check_same(study: Study, there: Mapping[str, Any], target: str) -> None:
    if there and there.get("id") != study.id:
        raise StudyError(
            f"{without_password(target)} has another study of the name {study.name} (made anew, or "
            "on another machine). Archive this one to another place."
        )


def _read(system: FileSystem, place: str, name: str) -> dict[str, Any]:
    if _size(system, f"{place}/{name}") is None:
        return {}
    with system.open_input_stream(f"{place}/{name}") as file:
        data = file.read()
    try:
        manifest = json.loads(data)
        good = isinstance(manifest["files"], dict) and isinstance(manifest["id"], str)
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        return {}  # cut off while it was written: all is compared anew
    if manifest.get("format", FORMAT) > FORMAT:
        raise StudyError(
            f"{place}/{name} has format {manifest['format']}, but this version reads formats up to "
            f"{FORMAT}. Update nas-orchestrator."
        )
    return dict(manifest)


def _write(system: FileSystem, place: str, name: str, manifest: Mapping[str, Any]) -> None:
    system.create_dir(place, recursive=True)
    with system.open_output_stream(f"{place}/{name}") as sink:
        sink.write(json.dumps(manifest, indent=1).encode())


def _size(system: FileSystem, path: str) -> int | None:
    from pyarrow.fs import FileType

    info = system.get_file_info(path)
    return int(info.size) if info.type == FileType.File else None


def _inside(folder: Path, name: str) -> Path:
    """Return the place of a file of an archive, which must be in the folder."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise StudyError(f"the archive has a file {name!r}, which would leave the study's folder.")
    return folder.joinpath(*parts)


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return scrubbed(lines[0]).rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def _translated(target: str) -> Iterator[None]:
    """Turn the errors of a file system into a sentence."""
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ArrowException) as error:
        raise StudyError(
            f"{without_password(target)} cannot be used: {_first(error)}. What was copied is kept; "
            "the same command goes on."
        ) from error
