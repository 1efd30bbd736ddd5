"""What one node says of itself before a study runs on it. Imports nothing heavy.

It runs as a Ray task on each node of a cluster, and as a plain call on the driver's machine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from spaces.core import plugins
from spaces.core.errors import NasError

PACKAGES = ("torch", "ray", "numpy")
DRIVER_MARK = "driver"
_TORCH = "import torch; print(torch.cuda.device_count())"
_TORCH_S = 120.0


@dataclass(frozen=True)
class Request:
    """What a node is asked.

    Attributes:
        folder: Folder below that of the studies, made by the driver, with a file of its own.
        token: Content of that file.
        mark: Name of the file that the node is to write there.
        dataset: Settings of the dataset, or None where no trial reads one.
        gpus: Whether trials need GPUs, so that torch is asked for them.
    """

    folder: str
    token: str
    mark: str
    dataset: Mapping[str, Any] | None = None
    gpus: bool = False


@dataclass(frozen=True)
class Report:
    """What a node answers; None where it could not be told.

    Attributes:
        host: Its name.
        time: Unix time in seconds on its clock when it was asked.
        version: Version of this package.
        code: Digest of this package's sources.
        versions: Versions of Python and of what results depend on.
        shared: Whether it read what the driver wrote to the folder of studies.
        storage_error: Why it could not read or write there, or None.
        free_bytes: Free space there.
        digest: Content digest of the dataset.
        data_error: Why the dataset cannot be read, or None.
        gpus: GPUs that torch has there.
    """

    host: str
    time: float
    version: str | None
    code: str
    versions: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    storage_error: str | None = None
    free_bytes: int | None = None
    digest: str | None = None
    data_error: str | None = None
    gpus: int | None = None


def probe(request: Request) -> Report:
    """Look at the node that this runs on."""
    now = time.time()
    shared, storage_error = _storage(request)
    digest, data_error = _data(request.dataset)
    free = None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(request.folder).free
    return Report(
        host=platform.node(),
        time=now,
        version=_version("nas-orchestrator"),
        code=code_digest(),
        versions={"python": platform.python_version()}
        | {name: found for name in PACKAGES if (found := _version(name)) is not None},
        shared=shared,
        storage_error=storage_error,
        free_bytes=free,
        digest=digest,
        data_error=data_error,
        gpus=_gpus() if request.gpus else None,
    )


@functools.lru_cache(maxsize=1)
def code_digest() -> str:
    """Return 12 hex characters of the sources of this package: two versions may share a number."""
    root = Path(__file__).resolve().parents[1]
    content = hashlib.sha256()
    for package in ("orchestrator", "spaces", "trainables"):
        for path in sorted((root / package).rglob("*.py")):
            content.update(path.relative_to(root).as_posix().encode())
            content.update(path.read_bytes())
    return content.hexdigest()[:12]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _storage(request: Request) -> tuple[bool, str | None]:
    folder = Path(request.folder)
    try:
        shared = (folder / DRIVER_MARK).read_text() == request.token
        (folder / request.mark).write_text(request.token)
    except OSError as error:
        return False, f"{error.filename or folder}: {error.strerror}"
    return shared, None


def _data(settings: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    if settings is None:
        return None, None
    try:
        name, config = plugins.make_config("datasets", settings)
        return str(plugins.load("datasets", name).digest(config)), None
    except NasError as error:
        return None, str(error)


def _gpus() -> int | None:
    """Ask torch in a process of its own: Ray hides the GPUs from a task that asked for none."""
    hidden = ("CUDA_VISIBLE_DEVICES", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH],
            capture_output=True,
            check=True,
            timeout=_TORCH_S,
            env=environment,
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
