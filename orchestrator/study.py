"""Study: a folder that holds everything about one experiment, and how to find and hold it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import json_files
from orchestrator.errors import StudyError
from orchestrator.experiment import ORACLE_METRICS
from orchestrator.holding import Holder, hold_folder, read_lock
from orchestrator.ledger import Ledger, Row, Stage, read_row, replace_file
from spaces.core.errors import near_miss
from spaces.core.plugins import ENVIRONMENT_VARIABLE

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.config import Experiment
    from orchestrator.figures import Figures

STUDY_FORMAT = 1
_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_RESERVED = ("mlflow-artifacts", "mlflow.db")


@dataclass(frozen=True)
class Summary:
    """Counts and the best row of a study.

    Attributes:
        counts: Rows by stage and status. Rows begun and not ended are "running" while the study is
            held by a live driver, and "interrupted" otherwise.
        best: The row with the best value of the experiment's metric, of the stage whose
            configurations it compares; or None.
        best_value: Its value.
        holder: The live driver, or None.
    """

    counts: dict[Stage, dict[str, int]]
    best: Row | None
    best_value: float | None
    holder: Holder | None


class Study:
    """A study folder. Make one with `Study.create` or `Study.open`."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._record = record
        self.ledger = Ledger(path / "ledger")
        self._told: set[Path] = set()

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str] | None,
        experiment: Experiment,
        command: str | Sequence[str],
    ) -> Study:
        """Make the folder `<root>/<experiment.name>` with the resolved experiment.

        Args:
            root: Folder of studies; see `studies_root`.
            experiment: The experiment; its name names the study.
            command: The command line that asked for it, for the record.

        Raises:
            StudyError: The study exists already, the name leaves the folder, or the folder cannot
                be written to.
        """
        from orchestrator.config import dump  # here: reading a study needs no YAML or pydantic

        path = studies_root(root) / check_name(experiment.name)
        try:
            path.mkdir(parents=True, exist_ok=True)
            strangers = {p.name for p in path.iterdir()} - {"lock", "experiment.yaml", "study.json"}
            if strangers and not (path / "study.json").exists():
                raise StudyError(
                    f"{path} exists and is not a study (it holds {min(strangers)})."
                    " Choose another --name or --root."
                )
            with hold_folder(path):
                if (path / "study.json").exists():
                    raise StudyError(
                        f"study {path.name} exists already in {path.parent}. Go on with it by"
                        f" `nas resume {path.name}`, or choose another --name."
                    )
                dump(experiment, path / "experiment.yaml")
                text = command if isinstance(command, str) else shlex.join(command)
                created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
                record = {"format": STUDY_FORMAT, "id": uuid.uuid4().hex, "name": path.name}
                record |= {"created": created, "command": text}
                record |= {"simulated": True} if experiment.simulation is not None else {}
                # Last: a folder without study.json is no study, and creating it again is safe.
                replace_file(path / "study.json", json.dumps(record, indent=2).encode())
        except OSError as error:
            raise StudyError(
                f"cannot write the study folder {path}: {error.strerror}. Choose another --root."
            ) from error
        return cls(path, record)

    @classmethod
    def open(
        cls, name_or_path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
    ) -> Study:
        """Open a study by its name under `root`, or by the path of its folder.

        Raises:
            StudyError: There is none, or it is damaged or of a newer format.
        """
        base = studies_root(root)
        text = os.fspath(name_or_path)
        named = base / text if _NAME.fullmatch(text) else None
        candidates = [path for path in (named, Path(text).absolute()) if path is not None]
        for path in candidates:
            if (path / "study.json").is_file():
                return cls(path, _read_record(path / "study.json"))
        known = studies(base)
        listed = f" It has {', '.join(known)}." if known else " It has no study."
        where = " or ".join(str(path) for path in candidates)
        raise StudyError(
            f"no study {text!r}: looked for {where}.{listed}{near_miss(text, known)}"
            " Say where studies are with --root or NAS_ROOT."
        )

    @property
    def id(self) -> str:
        """32 hex characters, unique to this study."""
        return str(self._record["id"])

    @property
    def name(self) -> str:
        """Name of the study, also of its folder when it was made."""
        return str(self._record["name"])

    @property
    def created(self) -> str:
        """When it was made, ISO 8601 with the offset of the local time."""
        return str(self._record["created"])

    @property
    def command(self) -> str:
        """The command line that made it."""
        return str(self._record["command"])

    @property
    def simulated(self) -> bool:
        """Whether `nas simulate` made it, so that nothing in it was trained."""
        return bool(self._record.get("simulated"))

    @property
    def root(self) -> Path:
        """The folder of studies that it is in."""
        return self.path.parent

    @property
    def experiment_file(self) -> Path:
        """The resolved experiment."""
        return self.path / "experiment.yaml"

    @cached_property
    def experiment(self) -> Experiment:
        """The resolved experiment, read from the folder.

        A study brings the plug-ins that it was started with, and they alone count: NAS_PLUGINS is
        set to them for the rest of this process. Others would change the keys of its rows.

        Raises:
            StudyError: It was made a simulation by hand, or a real one of a simulation.
        """
        from orchestrator.config import load_resolved

        kept = self.kept_plugins()
        if kept:
            os.environ[ENVIRONMENT_VARIABLE] = kept
        else:
            os.environ.pop(ENVIRONMENT_VARIABLE, None)
        experiment = load_resolved(self.experiment_file)
        if (experiment.simulation is not None) != self.simulated:
            made, said = ("nas simulate", "no") if self.simulated else ("nas run", "a")
            raise StudyError(
                f"study {self.name} was made by `{made}`, and its experiment.yaml has {said} "
                "section `simulation`: what was trained and what was not are never in one study. "
                f"Undo that in {self.experiment_file}."
            )
        return experiment

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, one folder per row key."""
        return self.path / "checkpoints"

    @property
    def outbox(self) -> Path:
        """File of the events that MLflow is filled from."""
        return self.path / "outbox" / "events.jsonl"

    @property
    def logs(self) -> Path:
        """Folder of logs."""
        return self.path / "logs"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    @property
    def ray(self) -> Path:
        """Folder of Ray Tune's own state."""
        return self.path / "ray"

    @property
    def plugins(self) -> Path:
        """Folder of plug-in folders copied into the study, one per content hash."""
        return self.path / "plugins"

    def kept_plugins(self) -> str:
        """Return the study's copies of plug-in folders, as NAS_PLUGINS names them; often empty."""
        return os.pathsep.join(str(folder) for folder in sorted(self.plugins.glob("*/*")))

    @property
    def test_reads(self) -> Path:
        """File with one JSON line for each reading of a test split."""
        return self.path / "test_reads.jsonl"

    @property
    def searchable(self) -> Path:
        """File with the part of the oracle's table that simulated searches see."""
        return self.path / "simulation" / "searchable.npz"

    @property
    def progress(self) -> Path:
        """File in which the driver keeps its latest progress."""
        return self.path / "progress.json"

    def read_progress(self) -> dict[str, Any]:
        """Return what the driver said last; empty where it has not begun, or was cut off."""
        try:
            progress = json_files.parse(self.progress.read_bytes())
        except (OSError, ValueError):
            return {}
        return progress if isinstance(progress, dict) else {}

    def rows(self, stage: Stage | None = None) -> list[Row]:
        """Return the ledger's rows in the order in which they were started."""
        return self.ledger.rows(stage)

    def partial_rows(self) -> list[Row]:
        """Return the rows that were begun and are not in the ledger, from beside checkpoints."""
        done = set(self.ledger.keys())
        rows = []
        for path in sorted(self.checkpoints.glob("*/row.json")):
            if path.parent.name in done:
                continue
            try:
                row = read_row(path)
                if row is not None and row.key != path.parent.name:
                    raise ValueError(f"it holds the key {row.key!r:.40}")
            except ValueError as error:
                if path not in self._told:
                    _log.warning(
                        "%s is no row (%s); nas resume goes on from its state", path, error
                    )
                self._told.add(path)
                continue
            if row is not None:
                rows.append(row)
        return rows

    def summary(self) -> Summary:
        """Return counts by stage and status, and the best row."""
        holder = self.holder()
        experiment = self.experiment
        metric = experiment.metric_of(experiment.trainable)
        sign = -1.0 if metric.endswith(("loss", "regret")) else 1.0
        counts: dict[Stage, Counter[str]] = {"search": Counter(), "retrain": Counter()}
        best, best_value = None, None
        rows: Iterable[Row] = self.ledger.iterate()
        if metric in ORACLE_METRICS:
            from orchestrator.oracle_metric import filled  # here: it reads a table

            rows = filled(self, rows)
        for row in rows:
            counts[row.stage][row.status] += 1
            value = row.value(metric)
            if (
                row.stage != experiment.trainable
                or row.status not in ("finished", "stopped")
                or value is None
            ):
                continue
            if best_value is None or sign * value > sign * best_value:
                best, best_value = row, value
        for row in self.partial_rows():
            counts[row.stage]["running" if holder else "interrupted"] += 1
        plain = {stage: dict(counter) for stage, counter in counts.items()}
        return Summary(counts=plain, best=best, best_value=best_value, holder=holder)

    def trials(
        self, stage: Stage | None = None, *, every_setting: bool = False, oracle: bool = False
    ) -> pd.DataFrame:
        """Return a data frame with one line per row, its index the row's key.

        It has names as categories, seeds and counts as whole numbers, metrics as floats, times as
        UTC timestamps; what a row lacks is missing. A metric is the last finite value of the row's
        curve, as in tables. Rows that were begun and have not ended are there too, "running" or
        "interrupted".

        Args:
            stage: Only searches or only retrainings; None is both.
            every_setting: Whether all settings are columns ("search.weight_lr"), or those alone
                that differ between rows of a stage.
            oracle: Whether to look up the genotypes of searches in the study's benchmark table, as
                `oracle_test_accuracy`, `oracle_test_regret` and `oracle_rank`.
        """
        from orchestrator import frames

        return frames.trials(self, stage, every_setting=every_setting, oracle=oracle)

    def curves(self, stage: Stage | None = None, *, oracle: bool = False) -> pd.DataFrame:
        """Return a data frame with one line per row and epoch, its numbers as columns.

        Args:
            stage: Only searches or only retrainings; None is both.
            oracle: As in `trials`, for the genotype after each epoch.
        """
        from orchestrator import frames

        return frames.curves(self, stage, oracle=oracle)

    def genotypes(self) -> pd.DataFrame:
        """Return a data frame with one line per distinct genotype, its index the hash.

        Those found most often come first. `labels` and `keys` say by which finished searches,
        `best_val_accuracy` is the best of them after the epoch that the genotype is of,
        `mean_test_accuracy` is over `retrained` retrainings, and `genotype` is the object.
        """
        from orchestrator import frames

        return frames.genotypes(self)

    @property
    def plot(self) -> Figures:
        """Plots of the study, each a matplotlib figure: `study.plot.curves()`."""
        from orchestrator.figures import Figures

        return Figures(self)

    def frame(self, stage: Stage | None = None) -> pd.DataFrame:
        """Return `trials` with the key as a column: its earlier name."""
        return self.trials(stage).reset_index()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the study for this process; the system lets go of it however the process ends.

        Raises:
            StudyError: Another live process holds it.
        """
        with hold_folder(self.path):
            yield

    def holder(self) -> Holder | None:
        """Return the live process that holds the study, or None."""
        return read_lock(self.path)


def studies_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of studies: the argument, else NAS_ROOT, else `studies` here; absolute."""
    return Path(root or os.environ.get("NAS_ROOT") or "studies").expanduser().absolute()


def studies(root: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Return the names of the studies under `root`, sorted."""
    return tuple(sorted(path.parent.name for path in studies_root(root).glob("*/study.json")))


def check_name(name: str) -> str:
    """Return `name` if it can name a study.

    Raises:
        StudyError: It cannot, for instance because it would leave the folder of studies.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise StudyError(
            "a study's name must be letters, digits, '_', '-' and '.' (not first), at most 100 of"
            f" them, and not one of {', '.join(_RESERVED)}, got {name!r}."
        )
    return name


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json_files.parse(path.read_bytes())
    except ValueError as error:
        raise StudyError(f"{path} is damaged: {error}.") from error
    needed = {"format", "id", "name", "created", "command"}
    if not isinstance(record, dict) or not needed <= set(record):
        raise StudyError(f"{path} is damaged: it must hold {', '.join(sorted(needed))}.")
    if record["format"] > STUDY_FORMAT:
        raise StudyError(
            f"{path} has format {record['format']}, but this version reads formats up to"
            f" {STUDY_FORMAT}. Update nas-orchestrator."
        )
    return record
