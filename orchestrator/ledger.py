"""The ledger: one atomic file per row, the lossless record of a study.

A row is one configuration with one seed. Workers write rows, possibly from other nodes on a shared
file system, so a row is written whole or not at all and needs no lock. Its key is a hash of all
that changes its result; git commit, versions and hardware are recorded in it but never keyed.
This module imports no torch, ray or mlflow.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from orchestrator import json_files, row_checks
from orchestrator.errors import StudyError

ROW_FORMAT = 1
Stage = Literal["search", "retrain"]
Status = Literal["running", "finished", "stopped", "diverged", "oom", "failed"]

_KEY = re.compile(r"[0-9a-f]{16}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One configuration with one seed, searched or retrained.

    Attributes:
        key: 16 hex characters of `row_key`.
        stage: What was run.
        status: How it ended; "running" only in the partial rows kept beside checkpoints.
        config_id: 10 hex characters of the configuration, equal over its seeds.
        block: Index of the grid block that the configuration was drawn in.
        seed: The seed, as given in the experiment.
        method, space, dataset: Names of the plug-ins. A retraining has the method it was found by.
        settings: Resolved settings by section (method, space, dataset, search or retrain, ...).
        params: What was sampled, flat: `{"search.weight_lr": 0.01}`.
        label: How tables name the configuration, by what differs in the study; may be empty.
        curve: One mapping per epoch, in order.
        genotype: JSON form of the genotype at the end, or None.
        genotype_hash: Its canonical hash, or None.
        genotype_epoch: The epoch that it is of, where a method takes the best and not the last.
        epochs_done, epochs_total: Epochs run, and asked for.
        stop: `{"epoch": ..., "reason": ...}` of a row that a scheduler or a limit stopped.
        error: Traceback of a failed row.
        cost: time_s, gpu_hours, cpu_hours.
        environment: git, versions, hardware, fingerprint: recorded, never keyed.
        resumed_elsewhere: Whether a part ran under another fingerprint.
        started, ended: Unix time in seconds; `ended` is None while it runs.
        final: Path of `final.pt` relative to the study folder, or None.
        selections: What rules found later in the stored supernet, by name of the rule: its
            settings, label, genotype, genotype_hash, scores and time_s.
        landscape: Loss and accuracy around the final alphas, where measured.
        evaluation: Of a search, `params` and `macs` of its genotype's evaluation network and the
            size of that network; None where they have not been counted.
        history: Of a member of a population, the settings that change while it trains: mappings of
            `epoch`, the first one with them, `settings` and `copied_from`, a member or None.
        format: Format of the file.
    """

    key: str
    stage: Stage
    status: Status
    config_id: str
    seed: int
    method: str
    space: str
    dataset: str
    block: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    curve: list[dict[str, Any]] = field(default_factory=list)
    genotype: dict[str, Any] | None = None
    genotype_hash: str | None = None
    genotype_epoch: int | None = None
    epochs_done: int = 0
    epochs_total: int = 0
    stop: dict[str, Any] | None = None
    error: str | None = None
    cost: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    resumed_elsewhere: bool = False
    started: float = 0.0
    ended: float | None = None
    final: str | None = None
    selections: dict[str, Any] = field(default_factory=dict)
    landscape: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    format: int = ROW_FORMAT

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; numbers that are not finite become None.

        Genotypes of epochs are kept once, in the list `genotypes`; an entry of the curve holds its
        place in that list. They are most of a row and change rarely.
        """
        form = {f.name: getattr(self, f.name) for f in fields(self)}
        if not self.history:
            del form["history"]  # so that rows of other studies are what they were before
        places: dict[str, int] = {}
        genotypes: list[Any] = []
        curve = []
        for entry in self.curve:
            genotype = entry.get("genotype")
            if isinstance(genotype, Mapping):
                place = places.setdefault(json.dumps(genotype), len(places))
                genotypes += [genotype] * (place == len(genotypes))
                entry = {**entry, "genotype": place}
            curve.append(entry)
        plain: dict[str, Any] = _plain({**form, "curve": curve, "genotypes": genotypes})
        return plain

    @classmethod
    def from_json(cls, form: object, *, sealed: bool = False) -> Row:
        """Read the JSON form; fields that this version does not know are dropped.

        Args:
            form: The form.
            sealed: Whether a checksum says that it is as `to_json` gave it.

        Raises:
            StudyError: The row was written in a newer format.
            ValueError: It is not a row.
        """
        if not isinstance(form, dict):
            raise ValueError(f"a row must be a mapping, got {type(form).__name__}")
        version = form.get("format")
        if isinstance(version, int) and version > ROW_FORMAT:
            raise StudyError(
                f"ledger row {form.get('key')} has format {version}, but this version reads formats"
                f" up to {ROW_FORMAT}. Update nas-orchestrator."
            )
        known = {f.name: form[f.name] for f in fields(cls) if f.name in form}
        missing = [f.name for f in fields(cls) if f.name not in known and _is_required(f)]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        row = cls(**known)
        row._check()
        genotypes = form.get("genotypes", [])
        for entry in row.curve:
            place = entry.get("genotype")
            if isinstance(place, int):
                try:
                    entry["genotype"] = genotypes[place]
                except (IndexError, TypeError, KeyError) as error:
                    raise ValueError(f"genotype {place} of its curve is missing") from error
        if not sealed:
            row_checks.check(row)
        return row

    def _check(self) -> None:
        kinds: dict[str, type | tuple[type, ...]] = {
            "key": str, "config_id": str, "method": str, "space": str, "dataset": str,
            "label": str, "block": int, "seed": int, "epochs_done": int, "epochs_total": int,
            "settings": dict, "params": dict, "selections": dict, "cost": dict,
            "landscape": (dict, type(None)), "evaluation": (dict, type(None)),
            "environment": dict, "curve": list, "history": list,
            "genotype": (dict, type(None)), "stop": (dict, type(None)), "format": int,
            "started": (int, float), "ended": (int, float, type(None)),
            "genotype_hash": (str, type(None)), "genotype_epoch": (int, type(None)),
            "error": (str, type(None)), "final": (str, type(None)), "resumed_elsewhere": bool,
        }  # fmt: skip
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} has the wrong type: {getattr(self, name)!r:.80}")
        if self.stage not in get_args(Stage) or self.status not in get_args(Status):
            raise ValueError(f"stage {self.stage!r} or status {self.status!r} is not known")
        if self.genotype_epoch is not None and not 1 <= self.genotype_epoch <= len(self.curve):
            raise ValueError(f"genotype_epoch {self.genotype_epoch} is not in its curve")
        for name in ("curve", "history"):
            if not all(isinstance(entry, dict) for entry in getattr(self, name)):
                raise ValueError(f"every entry of {name} must be a mapping")

    @property
    def simulated(self) -> bool:
        """Whether it was looked up in a table by `nas simulate`, and nothing was trained."""
        return "simulation" in self.settings

    def value(self, metric: str) -> float | None:
        """Return `metric` at the last epoch of the curve that has it as a finite number."""
        return _first(self.curve[::-1], metric)

    def genotype_value(self, metric: str) -> float | None:
        """Return `metric` at the epoch that the genotype is of.

        Where a method takes the best epoch's, that is a maximum over epochs: it ranks the seeds of
        one method, and is not compared with the last epoch's of another.
        """
        if self.genotype_epoch and self.status in ("finished", "stopped"):
            return _first([self.curve[self.genotype_epoch - 1]], metric)
        return self.value(metric)

    def quality(self, metric: str) -> float:
        """Return `metric` at the epoch that the genotype is of, so turned that more is better."""
        value = self.genotype_value(metric)
        if value is None:
            return -math.inf
        return -value if metric.endswith(("loss", "regret")) else value


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _first(entries: Iterable[Mapping[str, Any]], metric: str) -> float | None:
    for entry in entries:
        number = entry.get(metric)
        if isinstance(number, int | float) and math.isfinite(number):
            return float(number)
    return None


def with_selections(rows: Iterable[Row]) -> list[Row]:
    """Return rows, each followed by one more for each genotype that a rule found in it later.

    Such a row is that of the search with the rule's genotype, and a label and a configuration of
    its own. It is in no ledger.
    """
    found = []
    for row in rows:
        found.append(row)
        for name, result in row.selections.items():
            # Chosen from the supernet of the last epoch, whichever the search's own genotype is of.
            other = replace(row, genotype_epoch=None, selections={})
            found.append(
                replace(
                    other,
                    config_id=f"{row.config_id}-{name}",
                    label=f"{row.label or row.method} select={result['label']}",
                    genotype=result["genotype"],
                    genotype_hash=result["genotype_hash"],
                    evaluation=result.get("evaluation"),
                )
            )
    return found


def row_key(stage: Stage, identity: Mapping[str, Any]) -> str:
    """Return 16 hex characters that name a result: equal identities, equal key.

    `1.0` and `1` are one setting and give one key, however the experiment file spells them.

    Raises:
        ValueError: The identity holds a number that is not finite or a value JSON cannot hold.
    """
    content = {"stage": stage, **_unify(identity)}
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"a row's identity must be plain JSON: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """The rows of a study, one file each.

    Args:
        folder: The study's `ledger/`; made when the first row is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def write(self, row: Row, *, durable: bool = True) -> bool:
        """Write `row` whole; return False where a finished row was kept instead.

        A worker that lost touch with its driver may end late and badly: it never takes the place
        of a finished row.

        Args:
            row: The row.
            durable: Whether it has to outlive a loss of power; a simulated one is made again.

        Raises:
            ValueError: The row is still running, or its key is not one.
        """
        if row.status == "running":
            raise ValueError("a running row belongs beside its checkpoint, not in the ledger")
        if not _KEY.fullmatch(row.key):
            raise ValueError(f"key must be 16 hex characters, got {row.key!r}")
        if row.status != "finished" and self.has_finished(row.key):
            return False
        write_row(self.folder / f"{row.key}.json", row, durable=durable)
        return True

    def read(self, key: str) -> Row | None:
        """Return the row, or None where there is none (or only a damaged file, put aside).

        Raises:
            StudyError: The row was written in a newer format.
        """
        return self._read(self.folder / f"{key}.json")

    def keys(self) -> list[str]:
        """Return the keys of all rows, sorted, without reading them."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            names = (entry.name for entry in entries)
            return sorted(n[:16] for n in names if n.endswith(".json") and _KEY.fullmatch(n[:-5]))
        return []

    def iterate(self, stage: Stage | None = None) -> Iterator[Row]:
        """Yield the rows in the order of their keys, one in memory at a time."""
        for key in self.keys():
            row = self.read(key)
            if row is not None and stage in (None, row.stage):
                yield row

    def rows(self, stage: Stage | None = None) -> list[Row]:
        """Return the rows, of one stage or all, in the order in which they were started."""
        return sorted(self.iterate(stage), key=lambda row: (row.started, row.key))

    def has_finished(self, key: str) -> bool:
        """Return whether `key` has a row with status "finished"."""
        row = self.read(key)
        return row is not None and row.status == "finished"

    def damaged(self) -> list[Path]:
        """Return the files that were put aside because they are not rows."""
        return sorted((self.folder / "damaged").glob("*"))

    def lost(self) -> list[str]:
        """Return the keys of the rows that were put aside and have not run again."""
        put_aside = {path.name[:16] for path in self.damaged()}
        return sorted(put_aside.difference(self.keys()))

    def _read(self, path: Path) -> Row | None:
        try:
            row = read_row(path)
            if row is None or row.key == path.stem:
                return row
            reason = f"it holds the key {row.key}"
        except ValueError as error:
            reason = str(error)
        aside = self.folder / "damaged" / f"{path.name}.{path.stat().st_mtime_ns}"
        try:
            aside.parent.mkdir(exist_ok=True)
            path.replace(aside)
        except OSError as error:
            aside = path
            _log.warning("%s could not be put aside: %s", path, error)
        _log.warning("%s is not a ledger row (%s); its search will run again", aside, reason)
        return None


def write_row(path: Path, row: Row, *, durable: bool = True) -> None:
    """Write a row, finished or partial, so that a reader sees the old file or the new one."""
    text = json.dumps(row.to_json(), separators=(",", ":"), allow_nan=False)
    replace_file(path, json_files.sealed(text.encode()), durable=durable)


def read_row(path: Path) -> Row | None:
    """Read a row; None where there is no such file.

    Raises:
        StudyError: The row was written in a newer format.
        ValueError: The file is not a row.
    """
    for attempt in range(3):
        try:
            form, sealed = json_files.unsealed(path.read_bytes())
            return Row.from_json(form, sealed=sealed)
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise ValueError("it is a folder") from error
        except OSError as error:
            # Over NFS a file that was replaced while it was read is stale: read the new one.
            if error.errno != errno.ESTALE or attempt == 2:
                raise
    return None


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path` atomically; makes the folder.

    Args:
        path: The file.
        data: All of its content.
        durable: Whether it has to outlive a loss of power, which takes some milliseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # mkstemp gives 0600: others on a cluster read studies
            if durable:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Some network file systems refuse to sync a folder; the file itself is safe there.
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _unify(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _unify(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unify(item) for item in value]
    return value
