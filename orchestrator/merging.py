"""`nas merge`: studies of one experiment that ran in several places, joined by the keys of rows.

Rows, states and checkpoints are taken along as they are. What is not the same experiment, or has
two different results under one key, is refused with the differences: a table must not hide them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator import config, growth, history, planning
from orchestrator.errors import ConfigError, StudyError
from orchestrator.experiment import Experiment, sweep_word
from orchestrator.ledger import Row, replace_file
from orchestrator.progress import Progress
from orchestrator.study import STUDY_FORMAT, Study, check_name
from trainables.errors import DataError

_SHOWN = 5  # differences that an error lists
_ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Merged:
    """A study that others were joined in.

    Attributes:
        study: The new study.
        rows: Rows of its ledger, by the name of the study that they came from.
        doubled: Rows that more than one study had.
        asked: Rows that the joined experiment asks for, retrainings after searches left out.
        present: Those of them that the ledger has.
        unchecked: Why it could not be checked that the studies saw the same images, or None.
    """

    study: Study
    rows: Mapping[str, int]
    doubled: int
    asked: int
    present: int
    unchecked: str | None


def merge(
    studies: Sequence[Study], name: str, root: Path, *, command: str, prefer: str | None = None
) -> Merged:
    """Join studies in a new one.

    Args:
        studies: Two or more, none of them running.
        name: Name of the new one.
        root: Folder of studies that it is made in.
        command: The command line, for the record.
        prefer: Name of the study whose rows win where two have other results under one key.

    Raises:
        StudyError: A study is running, there is one of that name, or rows contradict each other.
        ConfigError: The studies are not of one experiment.
    """
    target = root / check_name(name)
    _check_names(studies, target, prefer)
    with contextlib.ExitStack() as held:
        for study in studies:
            held.enter_context(study.hold())
        experiment = join([(study.name, study.experiment) for study in studies], name)
        _check_plugins(studies)
        ordered = sorted(studies, key=lambda study: study.name != prefer)
        origin = _origins(ordered, prefer)
        unchecked = _check_data(studies[0].experiment, origin)
        work = target.with_name(f".{name}.merging")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            _fill(work, experiment, ordered, origin, command)
            work.replace(target)
        except OSError as error:
            raise StudyError(
                f"{target} cannot be made: {error.strerror or error}. Nothing was changed."
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    merged = Study.open(target)
    counts = {study.name: 0 for study in studies}
    for study, _, _ in origin.values():
        counts[study.name] += 1
    asked = growth.total(experiment)
    present = len(merged.rows(experiment.trainable))
    doubled = sum(len(study.ledger.keys()) for study in studies) - len(merged.ledger.keys())
    progress = Progress(stage=experiment.trainable, total=asked, done=min(asked, present))
    text = json.dumps({**asdict(progress), "time": time.time()})
    replace_file(merged.progress, text.encode())
    return Merged(merged, counts, doubled, asked, present, unchecked)


def join(experiments: Sequence[tuple[str, Experiment]], name: str) -> Experiment:
    """Return the experiment that asks for all that some experiments ask for.

    Args:
        experiments: Each with what messages call it.
        name: Name of the result.

    Raises:
        ConfigError: There is none: settings differ that rows depend on.
    """
    (first, joined), *rest = experiments
    document = joined.resolved()
    for other, experiment in rest:
        conflicts: list[str] = []
        document = _joined(document, experiment.resolved(), conflicts, (first, other))
        if conflicts:
            raise ConfigError(
                "\n".join([f"{first} and {other} are not of one experiment:", *conflicts])
            )
    whole = config.check_document({**document, "name": name}, f"{name} (joined)")
    for other, experiment in experiments:
        refused = growth.refusals(experiment, whole)
        if refused:
            sentences = "\n".join(refused)
            raise ConfigError(f"no one experiment has the rows of all; for {other}:\n{sentences}")
    return whole


def _joined(
    a: Mapping[str, Any], b: Mapping[str, Any], conflicts: list[str], names: Sequence[str]
) -> dict[str, Any]:
    """Return a document with what either asks for; what cannot be joined goes to `conflicts`."""
    found = dict(a)
    for path, (mine, other) in history.differences(a, b).items():
        *parents, key = path.split(".")
        node = found
        for parent in parents:
            node[parent] = dict(node[parent])
            node = node[parent]
        section = path.partition(".")[0]
        if growth.is_free(path):
            continue  # the content of data is in the keys of rows
        if path in ("seeds", "retrain.seeds"):
            node[key] = [*mine, *(seed for seed in other if seed not in mine)]
        elif path in ("tune.num_samples", "retrain.top_k"):
            node[key] = max(mine, other)
        elif section in ("method", "space", "search", "genotype") or (
            section == "retrain" and a.get("trainable") == "retrain"
        ):
            node[key] = _both(mine, other)
        else:
            conflicts.append(f"  {path}: {names[0]} has {mine!r}, {names[1]} has {other!r}")
    return found


def _both(mine: Any, other: Any) -> Any:
    """Return a sweep over the values of two settings, each a value or a sweep itself."""
    words = {word for word in map(sweep_word, (mine, other)) if word is not None}
    if words <= {"grid"} or words == {"choice"}:
        word = next(iter(words), "grid")
        values = [*_values(mine, word), *_values(other, word)]
        distinct = {json.dumps(value, sort_keys=True): value for value in values}
        return {word: list(distinct.values())}
    return mine  # ranges are compared where it is seen whether the plan has both


def _values(node: Any, word: str) -> list[Any]:
    return list(node[word]) if sweep_word(node) == word else [node]


def _check_names(studies: Sequence[Study], target: Path, prefer: str | None) -> None:
    names = [study.name for study in studies]
    if len({study.path.resolve() for study in studies}) < max(2, len(studies)):
        raise StudyError(f"nas merge needs two studies or more, each once, got {', '.join(names)}.")
    if prefer is not None and prefer not in names:
        raise StudyError(f"--prefer must be one of {', '.join(names)}, got {prefer!r}.")
    if target.exists():
        raise StudyError(f"{target} exists already. Choose another name: --into NAME.")
    kinds = {study.simulated for study in studies}
    if len(kinds) > 1:
        raise StudyError("simulated and real studies are never joined.")


def _check_plugins(studies: Sequence[Study]) -> None:
    kept = {study.name: sorted(p.name for p in study.plugins.glob("*")) for study in studies}
    if len({tuple(digests) for digests in kept.values()}) > 1:
        lines = (f"  {name}: {', '.join(digests) or 'none'}" for name, digests in kept.items())
        raise StudyError("\n".join(["the studies have other plug-ins of their own:", *lines]))


Origin = dict[str, tuple[Study, Row, bool]]


def _origins(studies: Sequence[Study], prefer: str | None) -> Origin:
    """Return for each key the study whose row is taken, the row, and whether it is in the ledger.

    Raises:
        StudyError: Two have ended with other results.
    """
    found: Origin = {}
    problems: list[str] = []
    for study in studies:
        rows = [*((row, True) for row in study.rows()), *((r, False) for r in study.partial_rows())]
        for row, ended in rows:
            if row.key not in found:
                found[row.key] = (study, row, ended)
                continue
            _, mine, settled = found[row.key]
            if ended and settled and row.status in _ENDED and mine.status in _ENDED:
                difference = _difference(mine, row)
                if difference is not None:
                    label = f"{mine.label or mine.method} seed {mine.seed}"
                    problems.append(f"  {row.key} ({label}): {difference}")
                    continue
            if _rank(row, ended) > _rank(mine, settled):
                found[row.key] = (study, row, ended)
    if problems and prefer is None:
        more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        names = " and ".join(study.name for study in studies)
        raise StudyError(
            "\n".join([f"{names} have other results under one key:", *problems[:_SHOWN], *more])
            + "\nOther hardware or versions may be why; --prefer STUDY takes those of one."
        )
    return found


def _rank(row: Row, ended: bool) -> tuple[bool, int, bool]:
    return (ended and row.status in _ENDED, row.epochs_done, ended)


def _difference(mine: Row, other: Row) -> str | None:
    """Say in what two rows of one key differ, times and memory left out; None in nothing."""
    if mine.status != other.status:
        return f"{mine.status} and {other.status}"
    if mine.genotype_hash != other.genotype_hash:
        return f"genotype {mine.genotype_hash} and {other.genotype_hash}"
    if len(mine.curve) != len(other.curve):
        return f"{len(mine.curve)} and {len(other.curve)} epochs"
    from trainables.search import TIME_FIELDS  # here: it brings torch

    for place, (a, b) in enumerate(zip(mine.curve, other.curve, strict=True), start=1):
        for name in sorted({*a, *b} - {*TIME_FIELDS, "ended"}):
            if a.get(name) != b.get(name) and not isinstance(a.get(name), Mapping):
                return f"epoch {place}: {name} {a.get(name)} and {b.get(name)}"
    return None


def _check_data(experiment: Experiment, origin: Origin) -> str | None:
    """Refuse rows whose keys are not of the images that are here; return why that cannot be told.

    Raises:
        StudyError: Some rows are of the images and some are not.
    """
    if experiment.simulation is not None:
        return None  # its table is in the keys, and rows are compared by them
    try:
        identity = planning.identity(experiment, plugins_digest=planning.plugins_digest())
    except DataError as error:
        return f"the images are not here ({error})"
    foreign: dict[str, int] = {}
    counted: dict[str, int] = {}
    for study, row, _ in origin.values():
        if row.stage != "search" or "search" not in row.settings:
            continue
        counted[study.name] = counted.get(study.name, 0) + 1
        key = planning.key_of_search(row.settings, identity, row.seed)
        foreign[study.name] = foreign.get(study.name, 0) + (key != row.key)
    if any(foreign.values()) and foreign != counted:
        lines = (f"  {name}: {n} of {counted[name]}" for name, n in foreign.items() if n)
        raise StudyError(
            "\n".join(["rows are of other images, plug-ins or versions of a method:", *lines])
        )
    if any(foreign.values()):
        return "the images here are others than those of all the studies"
    return None


def _fill(
    work: Path, experiment: Experiment, studies: Sequence[Study], origin: Origin, command: str
) -> None:
    first = studies[0]
    config.dump(experiment, work / "experiment.yaml")
    _take(first.plugins, work / "plugins")
    for key, (study, _, ended) in origin.items():
        if ended:
            _take(study.ledger.folder / f"{key}.json", work / "ledger" / f"{key}.json")
        _take(study.checkpoints / key, work / "checkpoints" / key)
    reads: dict[str, None] = {}
    for study in studies:
        _take_populations(study, work)
        with contextlib.suppress(FileNotFoundError):
            reads |= dict.fromkeys(study.test_reads.read_text().splitlines())
    if reads:
        (work / first.test_reads.name).write_text("".join(f"{line}\n" for line in reads))
    sources = [
        {"name": study.name, "id": study.id, "created": study.created, "command": study.command}
        for study in studies
    ]
    record = {"format": STUDY_FORMAT, "id": uuid.uuid4().hex, "name": experiment.name}
    record |= {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": command}
    record |= {"merged": sources} | ({"simulated": True} if first.simulated else {})
    replace_file(work / "study.json", json.dumps(record, indent=2).encode())


def _take_populations(study: Study, work: Path) -> None:
    from orchestrator.population_file import FOLDER

    for path in sorted((study.path / FOLDER).glob("*.json")):
        target = work / FOLDER / path.name
        if target.exists() and target.read_bytes() != path.read_bytes():
            raise StudyError(
                f"the population {path.stem} was begun in two studies; its members copied each "
                "other differently. Leave one of them out."
            )
        _take(path, target)


def _take(source: Path, target: Path) -> None:
    """Take a file or folder along: by a second link, since no writer changes one in place, or else
    by a copy.
    """
    for path, place in _files(source, target):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)


def _files(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    if source.is_file():
        yield source, target
    elif source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                yield path, target / path.relative_to(source)
