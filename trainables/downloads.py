"""Downloads of published datasets: once, verified, safe to interrupt and to run side by side."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.official_files import OfficialFiles


@dataclass(frozen=True)
class Download:
    """One file to fetch.

    Attributes:
        urls: Where it is, tried in order.
        name: What it is called here.
        md5: Its published checksum.
    """

    urls: tuple[str, ...]
    name: str
    md5: str


def fetch(
    official: OfficialFiles,
    root: str,
    downloads: Sequence[Download],
    checksums: Mapping[str, str],
) -> Path:
    """Bring the official files into their folder, unless they are there and whole.

    Files are fetched into a folder beside and moved when all of them are verified, so that a file
    under its own name is never half a file. What an interrupted call has left is used or replaced.
    Of several processes one downloads, the others wait. A file that is not the official one is
    replaced.

    Args:
        official: Where the files belong.
        root: The root folder; made if it is missing.
        downloads: What to fetch: the files, or a tar archive that holds them under their folder.
        checksums: MD5 of every file by its name.

    Returns:
        The folder with the files.

    Raises:
        DataError: A file could not be fetched, is not the official one, or cannot be written.
    """
    from filelock import FileLock

    place = official.place(root)
    try:
        if not unfit(place, checksums):
            return place
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f".{official.name}.lock"):
            missing = unfit(place, checksums)
            if missing:
                _fetch(official, place, downloads, {name: checksums[name] for name in missing})
    except OSError as error:
        raise DataError(f"{place}: {official.title} could not be downloaded: {error}.") from error
    return place


def fetch_cifar(official: OfficialFiles, root: str, table: Any) -> Path:
    """Bring CIFAR-10 or CIFAR-100 into `root`, with URL and checksums of torchvision's class.

    Args:
        official: Where the files belong.
        root: The root folder.
        table: `torchvision.datasets.CIFAR10` or `CIFAR100`.

    Raises:
        DataError: As in `fetch`.
    """
    checksums = {name: md5 for name, md5 in (*table.train_list, *table.test_list)}
    checksums[table.meta["filename"]] = table.meta["md5"]
    return fetch(official, root, [Download((table.url,), table.filename, table.tgz_md5)], checksums)


def unfit(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """Return the names of the files that are missing or have another MD5."""
    return [name for name, md5 in checksums.items() if _md5(folder / name) != md5]


def _md5(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        # It tells a whole file from a damaged one; nothing is kept secret by it.
        return hashlib.file_digest(file, _new_md5).hexdigest()


def _new_md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _fetch(
    official: OfficialFiles, place: Path, downloads: Sequence[Download], checksums: dict[str, str]
) -> None:
    """Fetch the files of `checksums` beside `place`, verify and move them."""
    partial = place / f".{official.name}.partial"
    partial.mkdir(exist_ok=True)
    packed = [download for download in downloads if download.name.endswith(".tar.gz")]
    for download in downloads:
        if download in packed or download.name in checksums:
            _download(official, download, partial)
    for download in packed:
        _unpack(partial / download.name, official.folder, checksums, partial)
    wrong = unfit(partial, checksums)
    if wrong:
        shutil.rmtree(partial)
        raise DataError(
            f"{official.title}: {', '.join(wrong)} came with a wrong checksum and was thrown away. "
            "Try again later, or copy the official files by hand."
        )
    for name in checksums:
        (partial / name).replace(place / name)
    shutil.rmtree(partial)


def _download(official: OfficialFiles, download: Download, folder: Path) -> None:
    """Fetch one file; a whole one that is there already is kept."""
    from torchvision.datasets.utils import download_url

    problems = []
    for url in download.urls:
        try:
            download_url(url, str(folder), download.name, download.md5)
        except (OSError, RuntimeError, HTTPException) as error:
            problems.append(f"{url}: {error}")
            continue
        if _md5(folder / download.name) == download.md5:
            return
        problems.append(f"{url}: the checksum is wrong")
    raise DataError(
        f"{official.title} could not be downloaded: {'; '.join(problems)}. Check the network and "
        "run the command again, or get the file in another way, put it at "
        f"{folder / download.name} and run the command again."
    )


def _unpack(archive: Path, folder: str, names: Mapping[str, str], target: Path) -> None:
    """Copy the files `folder`/NAME of a tar archive to `target`/NAME."""
    with tarfile.open(archive) as packed:
        for member in packed:
            name = member.name.removeprefix(f"{folder}/")
            source = packed.extractfile(member) if name in names else None
            if source is not None:
                with source, (target / name).open("wb") as file:
                    shutil.copyfileobj(source, file)
