"""A population's generations: who copies whom, and what a copy trains with. No files, no Ray.

Every draw comes from a generator seeded by the population, the generation and the member, so that a
population which is continued plans what it would have planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator import factors
from orchestrator.dimensions import Dimension
from orchestrator.experiment import Pbt
from orchestrator.pbt_section import number_copied, setting

if TYPE_CHECKING:
    import numpy as np

FACTORS = (0.8, 1.2)
"""What a number is multiplied by where it is not drawn anew, as in the paper."""

_MAX_REPEATS = 100


@dataclass(frozen=True)
class Part:
    """What a member does in a generation.

    Attributes:
        settings: Values of the drawn settings of `retrain` that it trains with.
        copied_from: Member whose state it goes on from, or None for its own.
    """

    settings: Mapping[str, Any]
    copied_from: int | None = None


@dataclass(frozen=True)
class Generation:
    """The epochs between two looks at all members.

    Attributes:
        start: Epochs done before it.
        parts: What each member does.
        values: The metric of each member at its end, None for one that diverged; None as a whole
            until all members are through.
    """

    start: int
    parts: tuple[Part, ...]
    values: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Rules:
    """How a population goes from one generation to the next.

    Attributes:
        pbt: Sizes and probabilities.
        dimensions: What is drawn, in the order of the file.
        seeds: Seeds of its draws: of the searcher and of the population.
        mode: "max" or "min", the direction of the metric.
    """

    pbt: Pbt
    dimensions: tuple[Dimension, ...]
    seeds: tuple[int, int]
    mode: str

    @property
    def mutated(self) -> tuple[str, ...]:
        """Names of the settings that a copy changes."""
        every = tuple(setting(dimension) for dimension in self.dimensions)
        named = self.pbt.mutations
        return every if named is None else tuple(name for name in every if name in named)

    def next_parts(self, generation: Generation, index: int) -> tuple[Part, ...] | None:
        """Return what the members do in the generation after `generation`.

        Args:
            generation: One with values.
            index: Number of the next one, from 1.

        Returns:
            None where no member is left to go on from.
        """
        import numpy as np

        copying, best = selected(generation.values or (), self.pbt.quantile, self.mode)
        if not best:
            return None
        parts = [Part(part.settings) for part in generation.parts]
        for member in copying:
            rng = np.random.default_rng([*self.seeds, index, member])
            source = best[int(rng.integers(len(best)))]
            settings = self.explored(generation.parts[source].settings, rng)
            parts[member] = Part(settings, source)
        return tuple(parts)

    def explored(self, settings: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return settings with the mutated ones changed, drawn again until one has changed.

        A member with the settings and the state of another would only train the same network twice.
        """
        found = dict(settings)
        for _ in range(_MAX_REPEATS):
            for dimension in self.dimensions:
                name = setting(dimension)
                if name in self.mutated:
                    found[name] = changed(dimension, settings[name], self.pbt.resample, rng)
            if found != settings:
                break
        return found


def selected(
    values: Sequence[float | None], quantile: float, mode: str
) -> tuple[list[int], list[int]]:
    """Return the members that copy, and those that they copy from (truncation selection).

    Equal values go by number. All that diverged copy, also where they are more than the quantile.

    Args:
        values: The metric of each member; None for one that diverged.
        quantile: Share of the members at either end.
        mode: "max" or "min".
    """
    sign = -1.0 if mode == "max" else 1.0
    good = [(sign * value, member) for member, value in enumerate(values) if value is not None]
    ranked = [member for _, member in sorted(good)]
    diverged = [member for member, value in enumerate(values) if value is None]
    count = number_copied(len(values), quantile)
    worst = [*ranked, *diverged][len(values) - count :]
    return sorted({*worst, *diverged}), ranked[:count]


def changed(dimension: Dimension, value: Any, resample: float, rng: np.random.Generator) -> Any:
    """Return another value of a setting: drawn anew with probability `resample`, else near by.

    Near by is 0.8 or 1.2 times a number, within its range and at least 1 away for whole ones, or a
    neighbour in the list of a choice.
    """
    if rng.random() < resample:
        return factors.draw(dimension, rng)
    up = int(rng.integers(2))
    if dimension.kind == "choice":
        place = dimension.args.index(value)
        near = [i for i in (place - 1, place + 1) if 0 <= i < len(dimension.args)]
        return dimension.args[near[up % len(near)]] if near else value
    low, high = dimension.args
    moved = value * FACTORS[up]
    if dimension.kind == "randint":
        step = 1 if up else -1
        moved, high = round(moved), high - 1
        moved = value + step if moved == value else moved
    return min(max(moved, low), high)


def history(generations: Sequence[Generation], member: int) -> list[dict[str, Any]]:
    """Return what a member trained with: the first epoch of each settings, and who it copied."""
    return [
        {
            "epoch": generation.start + 1,
            "settings": dict(generation.parts[member].settings),
            "copied_from": generation.parts[member].copied_from,
        }
        for index, generation in enumerate(generations)
        if index == 0 or generation.parts[member].copied_from is not None
    ]


def lineage(histories: Sequence[Sequence[Mapping[str, Any]]], member: int) -> list[dict[str, Any]]:
    """Return what a member's weights were trained with, since the first epoch.

    That is its own history after its last copy, before that the one of the member that it copied,
    and so on.

    Args:
        histories: The history of each member of its population.
        member: Its number.

    Returns:
        `epoch` (the first one), `member` and `settings` of each stretch, in order.
    """
    found: list[dict[str, Any]] = []
    before = float("inf")
    while True:
        entry = [each for each in histories[member] if each["epoch"] < before][-1]
        found.append({"epoch": entry["epoch"], "member": member, "settings": entry["settings"]})
        if entry["copied_from"] is None:
            return found[::-1]
        before, member = entry["epoch"], entry["copied_from"]
