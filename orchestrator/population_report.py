"""What a report says of populations: the best member of each, and the schedule that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import plots
from orchestrator.document import Block, Grid, Heading, Paragraph, Picture
from orchestrator.population import lineage
from orchestrator.population_file import Snapshot, snapshots
from orchestrator.results import Result, training_result
from orchestrator.statistics import METHOD, MIN_SEEDS
from orchestrator.sweep_words import canonical

if TYPE_CHECKING:
    from orchestrator.ledger import Row

_HEADS = ("population", "seed", "members", "best member", "val accuracy %", "test accuracy %")
_OF_LINEAGE = ("population", "seed", "epochs", "member", "settings")


@dataclass(frozen=True)
class Ended:
    """The rows of a population that has ended.

    Attributes:
        label: What tells its grid block from others.
        seed: Its seed.
        rows: Its rows, by number of the member.
        best: The best of those that finished, or None.
    """

    label: str
    seed: int
    rows: tuple[Row, ...]
    best: Row | None

    def lineage(self) -> list[dict[str, Any]]:
        """Return what the weights of the best member were trained with."""
        if self.best is None:
            return []
        members = {member_of(row): row.history for row in self.rows}
        return lineage([members.get(i, []) for i in range(max(members) + 1)], member_of(self.best))


def member_of(row: Row) -> int:
    """Return the number of a member."""
    return int(row.settings["pbt"]["member"])


def ended(rows: Sequence[Row], metric: str) -> list[Ended]:
    """Return the populations whose members have all come to an end, in the order of blocks.

    Args:
        rows: Rows of the ledger.
        metric: Value of the validation split that members are compared by.
    """
    groups: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows:
        if "pbt" in row.settings:
            # A study whose experiment was changed has rows of other populations too.
            rules = {**row.settings["pbt"], "member": None, "retrain": row.settings["retrain"]}
            groups.setdefault((row.block, row.seed, canonical(rules)), []).append(row)
    found = []
    for (_, seed, _), group in sorted(groups.items()):
        members = tuple(sorted(group, key=member_of))
        statuses = {row.status for row in members}
        whole = len(members) == members[0].settings["pbt"]["population"]
        if not whole or not statuses <= {"finished", "diverged"}:
            continue
        label = members[0].label.rpartition(" member ")[0]
        good = [row for row in members if row.status == "finished"]
        best = max(good, key=lambda row: (row.quality(metric), -member_of(row)), default=None)
        found.append(Ended(label, seed, members, best))
    return found


def tabulate(rows: Sequence[Row], metric: str) -> list[Result]:
    """Return the table's lines: one for each grid block, over the best members of its seeds."""
    groups: dict[str, list[Ended]] = {}
    for population in ended(rows, metric):
        groups.setdefault(population.label, []).append(population)
    results = []
    for label, group in groups.items():
        best = [population.best or population.rows[0] for population in group]
        # A population costs what all of its members cost.
        times = [sum(row.cost.get("time_s", 0.0) for row in each.rows) for each in group]
        results.append(training_result(label, best, sum(times) / len(times)))
    if all(result.test.n > 1 for result in results):
        results.sort(key=lambda result: -(result.accuracy.mean or 0.0))
    return results


def best_rows(rows: Sequence[Row], metric: str) -> list[Row]:
    """Return the best member of each population that has ended, labelled as its population."""
    return [
        replace(each.best, label=each.label)
        for each in ended(rows, metric)
        if each.best is not None
    ]


def to_json(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Return the best member of each population and its schedule as plain JSON."""
    return [
        {
            "label": each.label,
            "seed": each.seed,
            "best_member": None if each.best is None else member_of(each.best),
            "key": None if each.best is None else each.best.key,
            "schedule": each.lineage(),
        }
        for each in ended(rows, metric)
    ]


def caption() -> list[str]:
    """Return the sentences that the table of populations cannot be read without."""
    return [
        f"Interval: {METHOD}, for {MIN_SEEDS} seeds or more; a dash stands where there are fewer.",
        "A seed is a population, and counts with its best member by validation accuracy (or loss) "
        "after the last epoch: as the best of several that accuracy is too high by chance. Test "
        "accuracy is that of the same member.",
        "Time is that of all members of a population together.",
    ]


def blocks(rows: Sequence[Row], metric: str, study: Path, folder: Path) -> list[Block]:
    """Return the section on populations; [] where there is nothing to say yet.

    Args:
        rows: Rows of the ledger.
        metric: Value of the validation split that members are compared by.
        study: The study's folder, for the populations that are under way.
        folder: The report's folder.

    Raises:
        StudyError: A snapshot is damaged.
    """
    through = ended(rows, metric)
    names = {(population.label, population.seed) for population in through}
    under_way = [s for s in snapshots(study) if (s.label, s.seed) not in names]
    found: list[Block] = [
        Paragraph(f"Not ended: population {s.label} seed {s.seed}, {standing(s, metric)}.")
        for s in under_way
    ]
    if through:
        found += [
            Grid(_HEADS, [_line(population) for population in through], _HEADS[2:]),
            *_picture(through, folder),
            Paragraph(
                "What the weights of the best members were trained with, over all members that "
                "they were copied from:"
            ),
            Grid(_OF_LINEAGE, [line for each in through for line in _stretches(each)]),
        ]
    return [Heading("Populations"), *found] if found else []


def standing(snapshot: Snapshot, metric: str) -> str:
    """Return how far a population is: "epoch 4 of 12, best val_accuracy 0.9312 (member 3)"."""
    generations = [each for each in snapshot.generations if each.values is not None]
    if not generations:
        return f"epoch 0 of {snapshot.epochs}"
    later = snapshot.generations[len(generations) :]
    values = generations[-1].values or ()
    at = f"epoch {later[0].start if later else snapshot.epochs} of {snapshot.epochs}"
    sign = -1.0 if metric.endswith("loss") else 1.0
    good = [(-sign * v, member) for member, v in enumerate(values) if v is not None]
    if not good:
        return f"ended in its generation {len(generations)}: all members diverged"
    member = min(good)[1]
    return f"{at}, best {metric} {values[member]:.4f} (member {member})"


def _line(population: Ended) -> tuple[str, ...]:
    best = population.best
    if best is None:
        return (population.label, str(population.seed), str(len(population.rows)), *("–" * 3))
    return (
        population.label,
        str(population.seed),
        str(len(population.rows)),
        str(member_of(best)),
        *(
            "–" if (value := best.value(metric)) is None else f"{100 * value:.2f}"
            for metric in ("val_accuracy", "test_accuracy")
        ),
    )


def _stretches(population: Ended) -> list[tuple[str, ...]]:
    if population.best is None:
        return []
    entries = population.lineage()
    ends = [entry["epoch"] - 1 for entry in entries[1:]] + [population.best.epochs_done]
    return [
        (
            population.label,
            str(population.seed),
            f"{entry['epoch']}–{end}",
            str(entry["member"]),
            " ".join(
                f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in entry["settings"].items()
            ),
        )
        for entry, end in zip(entries, ends, strict=True)
    ]


def _picture(through: Sequence[Ended], folder: Path) -> list[Block]:
    def curve(row: Row) -> list[float]:
        return [entry["val_accuracy"] for entry in row.curve if "val_accuracy" in entry]

    shown = through[: plots.MOST_LABELS]
    series = {
        f"{each.label} seed {each.seed}, member {member_of(each.best)}": [curve(each.best)]
        for each in shown
        if each.best is not None
    }
    others = [curve(row) for each in shown for row in each.rows if row is not each.best]
    path = folder / "populations.png"
    plots.curves(series, path, ylabel="val accuracy, %", stopped=others, counted=False)
    return [Picture(path, "Validation accuracy of the best member of each; grey: the others.")]
