"""What a report shows of the genotypes: drawn, how often each was found, and in which trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import frames
from orchestrator.document import Block, Card, Gallery, Heading, Paragraph, Picture
from orchestrator.results import Result, show_count

if TYPE_CHECKING:
    from orchestrator.frames import Found
    from orchestrator.ledger import Row

MOST_DRAWINGS = 12
_MOST_TRIALS = 30


def blocks(rows: Sequence[Row], results: Sequence[Result], folder: Path) -> list[Block]:
    """Return the section, with its drawings in `folder`; nothing without a genotype.

    The best genotype of each line of the table comes first, then what was found most often.

    Args:
        rows: Rows of the ledger.
        results: Lines of the table of results.
        folder: The report's folder.
    """
    found = frames.found(frames.labelled(rows))
    best: dict[str, list[str]] = {}
    for result in results:
        if result.genotype_hash is not None:
            best.setdefault(result.genotype_hash, []).append(result.label)
            found.setdefault(
                result.genotype_hash, frames.Found(result.genotype or {}, result.method)
            )
    shown = list(dict.fromkeys([*best, *found]))[:MOST_DRAWINGS]
    if not shown:
        return []
    searches = sum(len(each.searches) for each in found.values())
    drawn: list[Block] = [
        Gallery([_card(name, found[name], best.get(name, []), searches, folder) for name in shown])
    ]
    if len(found) > len(shown):
        drawn.append(
            Paragraph(
                f"{len(found) - len(shown)} more genotypes are not drawn; `nas show` draws any, "
                "and Study.genotypes() lists all."
            )
        )
    return [Heading("Best genotypes"), *drawn]


def _card(name: str, found: Found, best: Sequence[str], searches: int, folder: Path) -> Card:
    # Imported here: the table alone needs no drawing.
    from spaces.core.drawing import draw_genotype
    from spaces.core.genotype import Genotype

    path = folder / f"genotype-{name}.png"
    genotype = Genotype.from_json(found.form)
    for suffix in (".png", ".svg"):
        draw_genotype(genotype, path.with_suffix(suffix))
    facts = [f"Best of {', '.join(best)}."] if best else []
    if found.searches:
        facts.append(f"Found by {len(found.searches)} of {searches} finished searches.")
    values = [value for row in found.searches if (value := row.genotype_value("val_accuracy"))]
    if values:
        facts.append(f"Val accuracy of the search: best {100 * max(values):.2f} %.")
    tests = [value for row in found.retrains if (value := row.value("test_accuracy")) is not None]
    if tests:
        mean = 100 * math.fsum(tests) / len(tests)
        facts.append(f"Test accuracy: {mean:.2f} %, mean of {_times(len(tests), 'retraining')}.")
    cost = next((row.evaluation for row in found.searches if row.evaluation), None) or {}
    if cost.get("params") is not None:
        facts.append(f"{show_count(cost['params'])} params, {show_count(cost.get('macs'))} macs.")
    trials = [f"{row.label} seed {row.seed}" for row in found.searches]
    if len(trials) > _MOST_TRIALS:
        trials = [*trials[:_MOST_TRIALS], f"and {len(trials) - _MOST_TRIALS} more"]
    return Card(Picture(path, name), facts, "Found by", trials)


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"
