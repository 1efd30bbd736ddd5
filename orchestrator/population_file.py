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
    text = json.dumps(form, indent=1, allow_nan=False)
    replace_file(path, json_files.sealed(text.encode()))


def read_snapshot(path: Path) -> Snapshot | None:
    """Read a snapshot; None where there is none.

    Raises:
        StudyError: It is damaged, or of a newer format.
    """
    try:
        form, _ = json_files.unsealed(path.read_bytes())
        if form["format"] > FORMAT:
            raise StudyError(
                f"{path} has format {form['format']}, but this version reads formats up to "
                f"{FORMAT}. Update nas-orchestrator."
            )
        return _snapshot(form)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(
            f"{path} is damaged ({error!r}). Remove it to train this population anew."
        ) from error


def _snapshot(form: dict[str, Any]) -> Snapshot:
    """Return what `dataclasses.asdict` made of a snapshot.

    Raises:
        ValueError, TypeError, KeyError: It is none.
    """
    generations = tuple(_generation(each) for each in form["generations"])
    starts = [each.start for each in generations]
    members = {len(each.parts) for each in generations}
    ended = [each.values is not None for each in generations[:-1]]
    whole = isinstance(form["label"], str) and _is_count(form["seed"]) and _is_count(form["epochs"])
    in_order = starts[:1] == [0] and starts == sorted(set(starts)) and starts[-1] <= form["epochs"]
    if not (whole and in_order and len(members) == 1 and all(ended)):
        raise ValueError("its generations do not follow each other")
    return Snapshot(form["label"], form["seed"], form["epochs"], generations)


def _generation(form: dict[str, Any]) -> Generation:
    values, members = form["values"], range(len(form["parts"]))
    parts = [(part["settings"], part["copied_from"]) for part in form["parts"]]
    good = (
        _is_count(form["start"])
        and parts
        and all(isinstance(settings, dict) for settings in (each[0] for each in parts))
        and all(source is None or (_is_count(source) and source in members) for _, source in parts)
        and (values is None or (len(values) == len(parts) and all(map(_is_value, values))))
    )
    if not good:
        raise ValueError("a generation has members of another kind")
    return Generation(
        start=form["start"],
        parts=tuple(Part(settings, source) for settings, source in parts),
        values=None if values is None else tuple(values),
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_value(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def snapshots(study: Path) -> list[Snapshot]:
    """Return the populations of a study, in the order of labels and seeds.

    Raises:
        StudyError: A file is damaged.
    """
    found: Sequence[Snapshot | None] = [
        read_snapshot(path) for path in sorted((study / FOLDER).glob("*.json"))
    ]
    return sorted((s for s in found if s is not None), key=lambda s: (s.label, s.seed))
