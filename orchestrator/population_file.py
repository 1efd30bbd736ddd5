"""The snapshot of a population: one file, replaced whole, the commit point of each generation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import json_files
from orchestrator.errors import StudyError
from orchestrator.ledger import replace_file
from orchestrator.population import Generation, Part

FORMAT = 1
FOLDER = "population"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What is decided of a population, and what it was decided by.

    Attributes:
        label: What tells its grid block from others.
        seed: Its seed.
        epochs: Epochs of a whole retraining.
        generations: All so far; the last one is under way until it has values.
    """

    label: str
    seed: int
    epochs: int
    generations: tuple[Generation, ...]


def state_name(generation: int | str) -> str:
    """Return the file beside a member's row that has its state in, and after, a generation."""
    return f"generation-{generation}.pt"


def write_snapshot(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot so that it outlives a kill and a loss of power, or leave the old one."""
    form = {"format": FORMAT, **dataclasses.asdict(snapshot)}
    replace_file(path, json.dumps(form, indent=1, allow_nan=False).encode())


def read_snapshot(path: Path) -> Snapshot | None:
    """Read a snapshot; None where there is none.

    Raises:
        StudyError: It is damaged, or of a newer format.
    """
    try:
        form = json_files.parse(path.read_bytes())
        if form["format"] > FORMAT:
            raise StudyError(
                f"{path} has format {form['format']}, but this version reads formats up to "
                f"{FORMAT}. Update nas-orchestrator."
            )
        return Snapshot(
            label=str(form["label"]),
            seed=int(form["seed"]),
            epochs=int(form["epochs"]),
            generations=tuple(_generation(each) for each in form["generations"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(
            f"{path} is damaged ({error!r}). Remove it to train this population anew."
        ) from error


def _generation(form: dict[str, Any]) -> Generation:
    values = form["values"]
    return Generation(
        start=int(form["start"]),
        parts=tuple(Part(part["settings"], part["copied_from"]) for part in form["parts"]),
        values=None if values is None else tuple(values),
    )


def snapshots(study: Path) -> list[Snapshot]:
    """Return the populations of a study, in the order of labels and seeds.

    Raises:
        StudyError: A file is damaged.
    """
    found: Sequence[Snapshot | None] = [
        read_snapshot(path) for path in sorted((study / FOLDER).glob("*.json"))
    ]
    return sorted((s for s in found if s is not None), key=lambda s: (s.label, s.seed))
