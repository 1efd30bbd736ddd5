"""What a drain needs of a tracking store, and runs as a drain remembers them."""

from __future__ import annotations

import functools
import json
import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from orchestrator.landscapes import draw
from orchestrator.ledger import Row
from orchestrator.tracking_notes import Outcome
from orchestrator.tracking_view import Point
from spaces.core.errors import NasError, SpaceError
from spaces.core.genotype import Genotype

_DRAWING_WIDTH = 800  # pixels
_log = logging.getLogger(__name__)


class StoreDownError(NasError):
    """The tracking store cannot be reached or does not work now; nothing is lost by waiting."""


class RunRefusedError(NasError):
    """The store refuses a write to one run, for instance because a person deleted it."""


@dataclass(frozen=True)
class StoredRun:
    """A run as the store has it; `metrics` are the last values."""

    run_id: str
    name: str
    status: str
    end: int | None
    tags: Mapping[str, str]
    params: Collection[str]
    metrics: Mapping[str, float]


class Store(Protocol):
    """What a drain needs of a tracking store. All raise StoreDownError; writes RunRefusedError."""

    def experiment(self, name: str) -> str:
        """Return the id of the experiment of that name, made if missing."""

    def find_experiment(self, name: str) -> str | None:
        """Return the id of the experiment of that name, or None; nothing is made."""

    def runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        """Return the study's runs, oldest first."""

    def deleted_runs(self, experiment_id: str, study_id: str) -> list[StoredRun]:
        """Return the study's runs that were deleted and can be restored, oldest first."""

    def delete(self, run_id: str) -> None:
        """Delete a run, so that it can be restored."""

    def restore(self, run_id: str) -> None:
        """Restore a run that was deleted."""

    def create(self, experiment_id: str, name: str, start: int, tags: Mapping[str, str]) -> str:
        """Make a run with status RUNNING and return its id."""

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add params and points and set tags."""

    def steps(self, run_id: str, metrics: Iterable[str]) -> set[int]:
        """Return the steps at which the run has any of the metrics."""

    def upload(self, run_id: str, folder: Path) -> None:
        """Copy the files of a folder to the run's artifacts."""

    def set_status(self, run_id: str, status: str, end: int | None) -> None:
        """Set the run's status, and its end unless None."""

    def log_dataset(self, run_id: str, dataset: Mapping[str, Any]) -> None:
        """Say which images a run was trained on, once; `dataset` is the section of its row."""

    def register(self, experiment_id: str, run_id: str, name: str, tags: Mapping[str, str]) -> None:
        """Make a run's model a version of the registered model `name`, its alias "best"."""

    def log_model(
        self,
        experiment_id: str,
        run_id: str,
        final: Path,
        *,
        dataset: Mapping[str, Any] | None,
        tags: Mapping[str, str],
        step: int,
    ) -> None:
        """Give a run the network of a `final.pt`, unless it has it.

        Raises:
            NasError: Besides, where there is no such network or it has no such form.
        """


@dataclass
class Waiting:
    """Params, points and tags of a run that are not in the store: a request costs more than they.

    Attributes:
        params, points, tags: As `Store.log` takes them.
    """

    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.params or self.points or self.tags)


@dataclass
class Run:
    """A row's run: what of it the store has by now.

    Attributes:
        digest: Digest of the row that was sent whole, or None.
        steps: Epochs whose points are there; None where the store has to be asked.
        artifacts: Whether its artifacts were taken.
        waiting: What goes out with its next write.
    """

    run_id: str
    name: str
    status: str
    end: int | None
    tags: dict[str, str]
    params: set[str]
    metrics: dict[str, float]
    digest: str | None = None
    steps: set[int] | None = None
    artifacts: bool = True
    waiting: Waiting = field(default_factory=Waiting)

    def outcome(self) -> Outcome:
        """Return what other runs and the study say of it."""
        tags, metrics = self.tags, self.metrics
        value = "search/val_accuracy" if tags["stage"] == "search" else "retrain/test_accuracy"
        return Outcome(
            key=tags["nas.key"],
            run_id=self.run_id,
            name=self.name,
            label=tags.get("label", ""),
            stage=tags["stage"],
            status=tags.get("status", "running"),
            genotype_hash=tags.get("genotype_hash"),
            value=metrics.get(value),
            time_s=metrics.get("cost/time_s"),
            val_accuracy=metrics.get("retrain/val_accuracy"),
        )


def study_totals(outcomes: list[Outcome], end: int) -> list[Point]:
    """Return the metrics of a study whose last row ended at `end`, in milliseconds since 1970."""
    ended = [o for o in outcomes if o.status not in ("running", "interrupted")]
    values: dict[str, float] = {"cost/time_s": sum(o.time_s or 0.0 for o in ended)}
    for stage, metric in (("search", "best_val_accuracy"), ("retrain", "best_test_accuracy")):
        of_stage = [o for o in ended if o.stage == stage]
        values[f"study/{stage}_rows"] = float(len(of_stage))
        good = [o.value for o in of_stage if o.value is not None and o.status == "finished"]
        if good:
            values[f"study/{metric}"] = max(good)
    compared = [o for o in ended if o.val_accuracy is not None and o.status == "finished"]
    if compared and not values["study/search_rows"]:
        # Where retrainings are compared the test split must not say which is the best.
        best = max(compared, key=lambda o: o.val_accuracy or 0.0)
        values["study/best_val_accuracy"] = best.val_accuracy or 0.0
        values["study/best_test_accuracy"] = best.value or 0.0
    points = [Point(name, value, end, len(ended)) for name, value in sorted(values.items())]
    return points if ended else []


def write_artifacts(folder: Path, row: Row) -> None:
    """Write a row's artifacts: curves.json, and genotype.json and cell.png if it has a genotype.

    The genotype of a simulated row is not drawn.
    """
    form = row.to_json()
    names = ("key", "curve", "genotypes", "history")
    curves = {name: form[name] for name in names if name in form}
    (folder / "curves.json").write_text(json.dumps(curves))
    if row.landscape is not None:
        (folder / "landscape.json").write_text(json.dumps(row.landscape))
        draw(
            [(f"{row.label or row.method}, seed {row.seed}", row.landscape)],
            folder / "landscape.png",
        )
    if row.genotype is None:
        return
    # A drawing takes longer than a simulated search, and nearly every one finds a cell of its own.
    _write_genotype(folder, row.genotype, row.key, drawn=not row.simulated)
    for name, result in row.selections.items():
        own = folder / "selections" / name
        own.mkdir(parents=True)
        _write_genotype(own, result["genotype"], row.key)
        (own / "scores.json").write_text(json.dumps(result))


def _write_genotype(folder: Path, form: Mapping[str, Any], key: str, *, drawn: bool = True) -> None:
    (folder / "genotype.json").write_text(json.dumps(form, indent=1))
    if not drawn:
        return
    try:
        genotype = Genotype.from_json(form)
    except SpaceError as error:
        _log.warning("row %s: %s", key, error)
        return
    (folder / "cell.png").write_bytes(_drawing(genotype))


@functools.lru_cache(maxsize=256)  # a study finds the same cell again and again
def _drawing(genotype: Genotype) -> bytes:
    from PIL import Image

    from spaces.core.drawing import draw_genotype  # here: it brings matplotlib

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.png"
        draw_genotype(genotype, path)
        with Image.open(path) as drawing:
            # MLflow's descriptions show a picture pixel by pixel, in a column of about this width.
            drawing.thumbnail((_DRAWING_WIDTH, 10 * _DRAWING_WIDTH), Image.Resampling.LANCZOS)
            drawing.save(path)
        return path.read_bytes()
