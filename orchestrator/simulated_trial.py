"""Simulated trials: random search in a table's validation accuracies. Imports no torch.

A simulated search draws one architecture of the table, all equally likely, in each epoch; its
genotype after the epoch is the best drawn so far by the table's validation accuracy, and the epoch
lasts as long as the table says that the training of the drawn one took. The draws depend on the
key of the row alone, so on the configuration and the seed, and no setting makes them better; unless
a made-up response is asked for, which has some configurations draw several at a time.
"""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger import Status, write_row
from orchestrator.study_trial import ENDED, Recording, Replay, StudyRetrain, StudySearch
from spaces.core.text import parse
from trainables.ray_trial import Run, Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEARCHABLE = ("genotypes", "val_accuracy", "train_seconds")


@dataclass(frozen=True)
class Table:
    """What a simulated search sees: of each architecture its text, validation accuracy, seconds."""

    genotypes: NDArray[np.bytes_]
    val_accuracy: NDArray[np.float64]
    train_seconds: NDArray[np.float64]


@dataclass
class DrawnSearch:
    """A search that draws; it needs no state, since the same key draws the same again.

    Args:
        table: Where it draws.
        space: Name of the space, for genotypes.
        key: Key of its row.
        epochs: Epochs.
        draws: Architectures that an epoch draws; it lasts as long as one of them, on average.
    """

    table: Table
    space: str
    key: str
    epochs: int
    draws: int = 1
    diverged: bool = False
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None

    def __post_init__(self) -> None:
        self._draws = random.Random(int(self.key, 16))

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.curve)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.epochs

    def run_epoch(self) -> dict[str, Any]:
        """Draw again and return the entry of the curve."""
        accuracies = self.table.val_accuracy
        drawn = [self._draws.randrange(len(accuracies)) for _ in range(self.draws)]
        for cell in drawn:
            if self.best is None or accuracies[cell] > accuracies[self.best]:
                self.best = cell
        form, genotype_hash = _genotype(bytes(self.table.genotypes[self.best]), self.space)
        entry = {
            "epoch": self.epoch + 1,
            "val_accuracy": float(accuracies[self.best]),
            "genotype": form,
            "genotype_hash": genotype_hash,
            "epoch_time_s": float(self.table.train_seconds[drawn].mean()),
        }
        self.curve.append(entry)
        return entry

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it is drawn again."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore `state`: it is drawn again."""


@dataclass
class KnownRetraining:
    """A retraining whose outcome is in the table, as one entry of a curve."""

    outcome: Mapping[str, Any]
    diverged: bool = False
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Entries of the curve."""
        return len(self.curve)

    @property
    def finished(self) -> bool:
        """Whether it has been looked up."""
        return bool(self.curve)

    def run_epoch(self) -> dict[str, Any]:
        """Return the outcome as the entry of the only epoch."""
        self.curve.append({"epoch": 1, **self.outcome})
        return self.curve[0]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it is looked up again."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore `state`: it is looked up again."""


class _Simulating(Recording):
    """A block whose trials cost nothing, so that no state of theirs is kept."""

    def build(self, seed: int) -> Trial:
        """Return the trial of one seed: what the ledger has, or a new one."""
        row = self.ledger.read(self._key(seed))
        if row is not None and row.status in ENDED:
            return Replay(row.curve, ended_early=True)
        self.started[seed] = time.time()
        return self.make(seed)

    def make(self, seed: int) -> Any:
        """Make the simulated trial of one seed."""
        raise NotImplementedError

    def advance(self, seed: int, trial: Trial, run: Run) -> None:
        """Run one epoch and record it, as of a real trial but for its state."""
        run()["ended"] = time.time()
        if trial.finished:
            self._end(seed, trial)
        elif self.unit.get("stoppable"):  # the driver makes the row of a stopped search of it
            self._write(seed, trial, "running")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another configuration; there is nothing to free."""
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # type: ignore[override]
        """Return how far the block is, for a scheduler that pauses it."""
        del checkpoint_dir
        return {"reported": self.reported}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from there; what was reported is drawn again on the way."""
        self.reported = int(checkpoint["reported"])

    def _write(self, seed: int, trial: Trial, status: Status) -> None:
        row = self._row(seed, trial, status)
        write_row(self._folder(seed) / "row.json", row, durable=False)

    def _end(self, seed: int, trial: Trial) -> None:
        row = self._row(seed, trial, "finished")
        self.ledger.write(replace(row, ended=time.time()), durable=False)
        folder = self._folder(seed)
        (folder / "row.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # never made, or something else is in it
            folder.rmdir()


class SimulatedSearch(_Simulating, StudySearch):
    """A search of a simulated study."""

    METRICS = ("val_accuracy",)

    def make(self, seed: int) -> Any:
        """Make the `DrawnSearch` of one seed."""
        said = self.config["simulation"]
        table = _table(self.study / said["table"])
        space = str(self.config["space"]["name"])
        epochs = int(self.unit["epochs"])
        return DrawnSearch(table, space, self._key(seed), epochs, int(said["draws"]))


class SimulatedRetrain(_Simulating, StudyRetrain):
    """A retraining of a simulated study; each reading of a test accuracy is noted as ever."""

    def make(self, seed: int) -> Any:
        """Make the `KnownRetraining` of one seed; every seed has the same."""
        del seed
        return KnownRetraining(self.config["simulation"]["outcome"])

    def advance(self, seed: int, trial: Trial, run: Run) -> None:
        """Note the reading, then record the outcome."""
        record = {"simulated": True, "genotype_hash": self.unit["genotype_hash"], "seed": seed}
        self.note_test_read(seed, record)
        super().advance(seed, trial, run)


@functools.lru_cache(maxsize=1)
def _table(path: Path) -> Table:
    import numpy as np

    with np.load(path) as stored:
        return Table(*(stored[name] for name in SEARCHABLE))


@functools.lru_cache(maxsize=20_000)
def _genotype(text: bytes, space: str) -> tuple[dict[str, Any], str]:
    genotype = parse(text.decode(), space)
    return genotype.to_json(), genotype.hash
