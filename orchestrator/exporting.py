"""Which retrained network is meant, in which order they are good, and exporting one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import StudyError
from orchestrator.genotypes import find_genotype
from orchestrator.ledger import Row
from orchestrator.selecting import use_plugins
from orchestrator.study import Study, studies, studies_root
from spaces.core.errors import NasError

if TYPE_CHECKING:
    from trainables.exporting import Exported, Format

Run = tuple[Study, Row]


def find_run(text: str, root: Path | None = None) -> Run:
    """Return the retraining that is meant.

    Args:
        text: `STUDY`, the best retraining of a study; `STUDY:KEY`, with the first characters of a
            ledger key or of a genotype's hash; or a genotype (its hash, a file, an official text or
            a name) that one study alone has retrained.
        root: Folder of studies.

    Returns:
        The study and a finished row of it whose weights are stored.

    Raises:
        StudyError: There is none, its weights are not stored, or several are meant.
    """
    name, colon, key = text.partition(":")
    if _is_study(text, root):  # a folder whose path has a colon
        name, colon, key = text, "", ""
    if _is_study(name, root):
        study = Study.open(name, root)
        use_plugins(study)
        return study, _row_of(study, key, text) if colon else _best_of(study)
    wanted = _hash_of(text, root)
    found: list[Run] = []
    for each in studies(root):
        study = Study.open(each, root)
        rows = [row for row in stored(study) if (row.genotype_hash or "").startswith(wanted)]
        found += [(study, row) for row in best_first(rows, study.rows("search"))[:1]]
    if not found:
        raise StudyError(
            f"no study in {studies_root(root)} has a finished retraining of {wanted} with stored "
            f"weights. Train it: nas retrain {wanted if text == wanted else text!r} --like FILE"
        )
    if len(found) > 1:
        several = ", ".join(f"{study.name}:{row.key}" for study, row in found)
        raise StudyError(f"{text} was retrained in {len(found)} studies. Name one: {several}")
    use_plugins(found[0][0])
    return found[0]


def stored(study: Study) -> list[Row]:
    """Return the finished retrainings of a study whose weights are stored."""
    rows = (row for row in study.rows("retrain") if row.status == "finished" and row.final)
    return [row for row in rows if (study.path / str(row.final)).is_file()]


def best_first(retrainings: Iterable[Row], searches: Iterable[Row]) -> list[Row]:
    """Sort retrainings by what validation says of them; the test split chooses nothing.

    Where every retraining held a validation split out (`val_share`), its accuracy there decides.
    Otherwise that of the best search that found the genotype does; then the seed, lowest first.
    """
    rows = list(retrainings)
    own = {row.key: row.quality("val_accuracy") for row in rows}
    found: dict[str, float] = {}
    for search in searches:
        hashes = [search.genotype_hash, *(s["genotype_hash"] for s in search.selections.values())]
        for genotype_hash in filter(None, hashes):
            if search.status in ("finished", "stopped"):
                value = search.quality("val_accuracy")
                found[genotype_hash] = max(value, found.get(genotype_hash, value))
    worst = float("-inf")
    if worst in own.values():
        own = {row.key: found.get(row.genotype_hash or "", worst) for row in rows}
    return sorted(rows, key=lambda row: (-own[row.key], row.seed, row.key))


def export_run(run: Run, path: Path, to: Format) -> Exported:
    """Write the network of a retraining to a file.

    Raises:
        NasError: Its weights or plug-ins are not here, or it has no such form.
    """
    from trainables.exporting import export, open_retrained

    study, row = run
    retrained = open_retrained(
        study.path / str(row.final), dataset=row.settings.get("dataset") or None
    )
    return export(retrained, path, to, origin(run))


def origin(run: Run) -> dict[str, object]:
    """Return where a network comes from, for its metadata."""
    study, row = run
    accuracies = {name: row.value(name) for name in ("test_accuracy", "val_accuracy")}
    known = {name: value for name, value in accuracies.items() if value is not None}
    return {"study": study.name, "key": row.key, "epochs": row.epochs_done, **known}


def _best_of(study: Study) -> Row:
    ordered = best_first(stored(study), study.rows("search"))
    if ordered:
        return ordered[0]
    ended = sum(row.status == "finished" for row in study.rows("retrain"))
    why = "has no finished retraining"
    if ended:
        retrain = study.experiment.retrain
        kept = f" (retrain.keep: {retrain.keep})" if retrain is not None else ""
        why = f"has {ended} finished retrainings and the weights of none{kept}"
    raise StudyError(f"{study.name} {why}. Train one: nas retrain {study.name}")


def _row_of(study: Study, key: str, text: str) -> Row:
    rows = [row for row in study.rows("retrain") if row.status == "finished"] if key else []
    by_key = [row for row in rows if row.key.startswith(key)]
    by_hash = [row for row in rows if (row.genotype_hash or "").startswith(key)]
    genotypes = {row.genotype_hash for row in by_hash}
    here = stored(study)
    if len(by_key) + len(genotypes) != 1:
        raise StudyError(
            f"{text}: {len(by_key)} finished retrainings of {study.name} have a key that begins "
            f"with {key!r}, and {len(genotypes)} genotypes a hash. It has {_listed(here)}."
        )
    keys = {row.key for row in here}
    meant = [row for row in by_key or by_hash if row.key in keys]
    if not meant:
        raise StudyError(f"{text}: its weights, final.pt, are not stored.")
    return best_first(meant, study.rows("search"))[0]


def _listed(rows: Sequence[Row]) -> str:
    words = [f"{row.key} ({row.genotype_hash}, seed {row.seed})" for row in rows[:5]]
    return ", ".join(words) + (", ..." if len(rows) > len(words) else "") if words else "none"


def _is_study(text: str, root: Path | None) -> bool:
    places = (studies_root(root) / text, Path(text))
    try:
        return bool(text) and any((place / "study.json").is_file() for place in places)
    except (OSError, ValueError):  # a genotype's text can be too long, or odd, for a path
        return False


def _hash_of(text: str, root: Path | None) -> str:
    if 6 <= len(text) <= 12 and set(text) <= set("0123456789abcdef"):
        return text
    try:
        return find_genotype(text).hash
    except NasError as error:
        listed = ", ".join(studies(root)) or "no study"
        raise StudyError(
            f"{text!r} names no retrained network: a study ({studies_root(root)} has {listed}), "
            f"STUDY:KEY or a genotype. {error}"
        ) from error
