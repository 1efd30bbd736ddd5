"""What search and retraining share: generators by purpose, stored states, device, fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import platform
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from spaces.core.errors import NasError
from trainables.errors import StateError
from trainables.settings import SearchPrecision

Device = torch.device
DTYPES: Mapping[SearchPrecision, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bf16": torch.float32,
}
"""Type of weights and images, by precision: with bf16, passes are in another than weights."""


# Half a pickle can end in almost anything; what else torch raises here is no matter of the file.
_DAMAGE = (
    *(OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, OverflowError),
)


def purpose_seed(seed: int, purpose: str) -> int:
    """Return the seed of one purpose of a trial, by hashing: purposes never share a stream.

    Args:
        seed: Seed of the trial.
        purpose: Such as "split" or "train batches". It does not name the method, so that every
            method sees the same split, initialisation and batch order.

    Returns:
        An integer in [0, 2**63), as both `torch.Generator.manual_seed` and NumPy accept it.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device`, seeded by `purpose_seed`."""
    return torch.Generator(device).manual_seed(purpose_seed(seed, purpose))


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of a trial; "auto" is CUDA where there is one.

    Raises:
        StateError: torch knows no such device, or sees no CUDA.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise StateError(f"device must be cpu, cuda, cuda:N or auto, got {device!r}.") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise StateError(f"device must be one that torch sees, got {device!s}: CUDA is missing.")
    return resolved


@dataclass(frozen=True)
class Fingerprint:
    """What bit-exact resuming depends on; two runs agree in the last bit only if it is equal.

    Attributes:
        machine: Operating system, processor model and instruction set, accelerator model.
        threads: CPU threads of torch.
        precision: Floating-point type.
        engine: Form of the supernet's code path.
        torch: Version of torch.
    """

    machine: str
    threads: int
    precision: str
    engine: str
    torch: str

    @classmethod
    def of(
        cls, device: Device, precision: SearchPrecision, engine: str | None = None
    ) -> Fingerprint:
        """Return the fingerprint of this process for a trial on `device`.

        Args:
            device: Where it runs.
            precision: Of its passes.
            engine: Name of its code path; None is operation by operation.
        """
        machine = [platform.system(), _processor(), torch.backends.cpu.get_cpu_capability()]
        if device.type == "cuda":
            machine.append(torch.cuda.get_device_name(device))
        return cls(
            machine=" / ".join(machine),
            threads=torch.get_num_threads(),
            precision=precision,
            engine=engine or f"eager-{device.type}",
            torch=str(torch.__version__),
        )


@lru_cache(maxsize=1)
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def identity_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal for a stored trial to be continued: not how the machine computes.

    Under another thread count, precision or engine a trial goes on, and its fingerprint notes it;
    with or without checkpointing it goes on bit for bit.
    """
    apart = ("threads", "precision", "engine", "checkpointing")
    return {key: value for key, value in settings.items() if key not in apart}


def check_identity(stored: str, own: Mapping[str, Any]) -> None:
    """Refuse a state of another trial.

    Args:
        stored: JSON text of the identity in the state.
        own: Identity of the trial that should go on from it.

    Raises:
        StateError: They differ; the message says in what.
    """
    other = json.loads(stored)
    for what, value in json.loads(json.dumps(own)).items():
        if other.get(what) != value:
            raise StateError(
                f"The stored state belongs to another trial: its {what} is {other.get(what)}, "
                f"here it is {value}. Start anew, or build the trial with its settings."
            )


def cloned(state: Any) -> Any:
    """Return a nested state (dicts, lists, tuples) whose tensors are copies of their own."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: cloned(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(cloned(value) for value in state)
    return state


def on_cpu(state: Any) -> Any:
    """Return a nested state (dicts, lists, tuples) whose tensors are on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, Mapping):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_cpu(value) for value in state)
    return state


def save_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state so that `path` holds either the old or the whole new one, never a part.

    Args:
        state: Tensors, numbers, text and nestings of them: what `weights_only` loading accepts.
        path: File to write; its folder is created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: os.replace is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _check_sums(path: Path) -> None:
    """Refuse a file of which anything was changed; torch itself does not look at checksums."""
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise zipfile.BadZipFile(f"the checksum of {bad} is that of another content")


@contextlib.contextmanager
def taking(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let a block take a trial's state from what `load_state` read.

    Raises:
        StateError: The state is whole, and not one of this trial.
    """
    try:
        yield
    except (StateError, torch.OutOfMemoryError, MemoryError):
        raise
    except (*_DAMAGE, NasError) as error:  # a genotype that is none, too
        if "can't allocate memory" in str(error):
            raise
        raise StateError(f"{path} holds no state of this trial ({error!r:.200}).") from error


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state written by `save_state`, onto the CPU; no code stored in it is executed.

    Raises:
        StateError: The file is missing, damaged or holds no state.
    """
    try:
        _check_sums(Path(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is refused anyway
            state = torch.load(Path(path), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise StateError(f"{path}: there is no such stored state.") from error
    except _DAMAGE as error:
        raise StateError(f"{path} is no readable stored state ({error!r}).") from error
    if not isinstance(state, dict):
        raise StateError(f"{path} must hold a mapping, got {type(state).__name__}.")
    return state
