"""Methods of one or more studies side by side: means, best of k, ranks, pairs and their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.best_of import expected_best
from orchestrator.analysis.comparing import (
    ALPHA,
    Comparison,
    Test,
    compare,
    fewest_each,
    fewest_pairs,
)
from orchestrator.analysis.frame import StudyFrame
from orchestrator.analysis.intervals import Interval, mean_interval
from orchestrator.analysis.ranks import Ranks, rank_distribution
from orchestrator.errors import StudyError
from orchestrator.statistics import MIN_SEEDS

if TYPE_CHECKING:
    import pandas as pd

MOST_PAIRED = 12
"""Most lines of which all pairs are compared: 66 pairs."""
MOST_LINES = 26
_OFTEN_REPORTED = 4
_OF_A_LINE = ("label", "method", "study")


@dataclass(frozen=True)
class Group:
    """One line: a method, or what else is compared, over its seeds.

    Attributes:
        name: What tells it from the other lines.
        letter: A short name, "A" and so on, for tables of pairs.
        configurations: How many it is made of; with several the value of a seed is their mean.
        asked: Rows it has in the ledgers, whatever became of them.
        outcomes: Number of rows by outcome: finished, collapsed, diverged, failed, ...
        values: Value by seed, of finished rows, collapsed ones included.
        mean: Their mean and interval.
        best_of: Expected best of k = 1 ... n seeds.
        hours: Hours that all its rows have taken.
        wasted: Of these, the hours of rows that have no value.
    """

    name: str
    letter: str
    configurations: int
    asked: int
    outcomes: dict[str, int]
    values: dict[int, float]
    mean: Interval
    best_of: tuple[float, ...]
    hours: float
    wasted: float

    def best(self, k: int) -> float | None:
        """Return the expected best of k seeds, or None where there are not so many."""
        return self.best_of[k - 1] if 0 < k <= len(self.best_of) else None

    @property
    def hours_per_seed(self) -> float | None:
        """Hours that one value has taken, those of rows without a value included."""
        return self.hours / len(self.values) if self.values else None


@dataclass(frozen=True)
class MethodComparison:
    """What `nas compare` shows.

    Attributes:
        metric, maximize, share, simulated: As in `StudyFrame`.
        by: What a line is: "label", "method", "study" or a setting.
        unit: Of hours: "GPU" or, where no GPU was used, "CPU".
        groups: The lines; the best mean first where all have two seeds or more.
        ranked: Whether they are in that order.
        pairs: Every two of them, or each against one.
        ranks: How often each would be first, second, ...; None for too few seeds.
        said: Sentences on what can and cannot be read from it.
    """

    metric: str
    maximize: bool
    share: bool
    simulated: bool
    by: str
    unit: str
    groups: tuple[Group, ...]
    ranked: bool
    pairs: tuple[Comparison, ...]
    ranks: Ranks | None
    said: tuple[str, ...]

    @property
    def best_k(self) -> int:
        """The k of the column "best of k": 4, as is often reported, or the fewest seeds."""
        counts = [len(group.values) for group in self.groups if group.values]
        return min([_OFTEN_REPORTED, *counts])

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        groups = []
        for group in self.groups:
            values = {str(seed): value for seed, value in group.values.items()}
            groups.append({**asdict(group), "values": values, "best_of": list(group.best_of)})
        ranks = None
        if self.ranks is not None:
            ranks = {name: list(shares) for name, shares in
                     zip(self.ranks.names, self.ranks.shares, strict=True)}  # fmt: skip
        head = {key: getattr(self, key) for key in ("metric", "maximize", "simulated", "by")}
        return {
            **head,
            "hours_of": self.unit,
            "ranked": self.ranked,
            "groups": groups,
            "pairs": [asdict(pair) | {"n": list(pair.n)} for pair in self.pairs],
            "rank_shares": ranks,
            "said": list(self.said),
        }


def compare_methods(
    frames: Sequence[StudyFrame],
    *,
    by: str = "label",
    against: str | None = None,
    test: Test = "permutation",
    alpha: float = ALPHA,
) -> MethodComparison:
    """Return the comparison of what is in one or more studies.

    Args:
        frames: All with the same metric.
        by: "label" compares configurations, "method" what was searched with, "study" whole studies,
            the name of a setting its values.
        against: Name, or letter, of a line that all others are compared with; None makes all pairs.
        test: Of pairs of seeds.
        alpha: Probability of telling apart any two that are equal.

    Raises:
        StudyError: There is nothing to compare, too much of it, or no such setting or line.
    """
    tables = _grouped(frames, by)
    _check_number(len(tables), by, against)
    gpu = any(float(frame.table["gpu_hours"].sum()) > 0 for frame in frames)
    first = frames[0]
    groups = [
        _group(name, table, "gpu_hours" if gpu else "cpu_hours", first)
        for name, table in tables.items()
    ]
    ranked = len(groups) > 1 and all(len(group.values) > 1 for group in groups)
    if ranked:
        sign = -1 if first.maximize else 1
        groups.sort(key=lambda group: sign * (group.mean.estimate or 0.0))
    lettered = tuple(
        Group(**{**vars(group), "letter": _letter(place)}) for place, group in enumerate(groups)
    )
    values = {group.name: group.values for group in lettered}
    chosen = _named(lettered, against)
    pairs = compare(values, test=test, alpha=alpha, against=chosen) if len(values) > 1 else []
    return MethodComparison(
        metric=first.metric,
        maximize=first.maximize,
        share=first.share,
        simulated=any(frame.simulated for frame in frames),
        by=by,
        unit="GPU" if gpu else "CPU",
        groups=lettered,
        ranked=ranked,
        pairs=tuple(pairs),
        ranks=rank_distribution(values, maximize=first.maximize),
        said=tuple(_sentences(lettered, pairs, first, alpha)),
    )


def _grouped(frames: Sequence[StudyFrame], by: str) -> dict[str, pd.DataFrame]:
    import pandas as pd

    metrics = {frame.metric for frame in frames}
    if len(metrics) != 1:
        raise StudyError(f"studies must be compared by one metric, got {', '.join(metrics)}.")
    parts: list[tuple[str, str, pd.DataFrame]] = []
    for frame in frames:
        if by == "study":
            parts.append((frame.study, frame.study, frame.table))
            continue
        column = by if by in _OF_A_LINE else frame.factor(by).name
        shown = frame.table[frame.table[column].notna()]
        # In the order of the file, not of the alphabet.
        order = shown.sort_values(["block"], kind="stable")[column].unique()
        if by not in _OF_A_LINE and frame.factor(by).kind == "number":
            order = sorted(order)
        for value in order:
            name = value if by in _OF_A_LINE else f"{by}={_plain(value)}"
            parts.append((str(name), frame.study, shown[shown[column] == value]))
    names = [name for name, _, _ in parts]
    found: dict[str, pd.DataFrame] = {}
    for name, study, table in parts:
        full = name if names.count(name) == 1 else f"{study}: {name}"
        if full in found:  # the same study named twice
            raise StudyError(f"study {study} is named twice.")
        found[full] = table
    if not found or not any(len(table) for table in found.values()):
        raise StudyError(f"study {frames[0].study} has no row yet: there is nothing to compare.")
    return {name: pd.DataFrame(table) for name, table in found.items()}


def _check_number(lines: int, by: str, against: str | None) -> None:
    most = MOST_PAIRED if against is None else MOST_LINES
    if lines <= most:
        return
    hints = ["--by method", "--by the name of a setting"] if by == "label" else []
    hints += ["--against one of them"] if against is None and lines <= MOST_LINES else []
    said = f" Say {' or '.join(hints)}." if hints else ""
    raise StudyError(
        f"at most {most} lines can be compared with each other, got {lines} by {by}.{said} For "
        "settings with many values there is nas sensitivity."
        if against is None
        else f"at most {most} lines can be compared, got {lines} by {by}.{said}"
    )


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _letter(place: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place]


def _named(groups: Sequence[Group], name: str | None) -> str | None:
    if name is None:
        return None
    for group in groups:
        if name in (group.name, group.letter):
            return group.name
    known = ", ".join(group.name for group in groups)
    raise StudyError(f"--against must be one of the lines {known}, got {name!r}.")


def _group(name: str, table: pd.DataFrame, hours: str, frame: StudyFrame) -> Group:
    used = table[table["value"].notna()]
    by_seed = used.groupby("seed")["value"].mean()
    values = {int(seed): float(value) for seed, value in by_seed.items()}
    return Group(
        name=name,
        letter="",
        configurations=int(table["config_id"].nunique()),
        asked=len(table),
        outcomes={str(key): int(n) for key, n in table["outcome"].value_counts().items()},
        values=values,
        mean=mean_interval(list(values.values()), bounds=frame.bounds),
        best_of=tuple(expected_best(list(values.values()), maximize=frame.maximize))
        if values
        else (),
        hours=float(table[hours].sum()),
        wasted=float(table[table["value"].isna()][hours].sum()),
    )


def _sentences(
    groups: Sequence[Group], pairs: Sequence[Comparison], frame: StudyFrame, alpha: float
) -> list[str]:
    said = []
    if frame.simulated:
        said.append("SIMULATED: nothing was trained, and no method has an effect.")
    fewest = min(len(group.values) for group in groups)
    if fewest < 2:
        ones = sum(len(group.values) < 2 for group in groups)
        said.append(
            f"Not ranked: {ones} of {len(groups)} lines have fewer than two seeds. One search says "
            "nothing of the next; run more seeds."
        )
    elif fewest < MIN_SEEDS:
        said.append(f"No interval and no test for fewer than {MIN_SEEDS} seeds.")
    lacking = [group for group in groups if sum(group.outcomes.values()) > _ended(group)]
    for group in lacking:
        rest = {key: n for key, n in group.outcomes.items() if key not in ("finished", "collapsed")}
        listed = ", ".join(f"{n} {key}" for key, n in rest.items())
        said.append(
            f"{group.letter} lacks {listed} of {group.asked} rows: its mean is of the rest."
        )
    several = [group.letter for group in groups if group.configurations > 1]
    if several:
        said.append(
            f"{', '.join(several)}: the value of a seed is the mean over several configurations."
        )
    tried = [pair for pair in pairs if pair.p is not None]
    unable = [pair for pair in tried if pair.verdict == "too few seeds"]
    if unable:
        each = fewest_pairs if unable[0].paired else fewest_each
        said.append(
            f"Too few seeds: with {len(tried)} comparison{'s' * (len(tried) > 1)} this test can "
            f"tell nothing apart below {each(alpha / len(tried))} seeds each, however large the "
            "difference. --test t can, if differences are taken to be normal."
        )
    told = [pair for pair in tried if pair.verdict in ("higher", "lower")]
    if tried and not told:
        said.append("No two can be told apart. The order of the lines is no ranking.")
    searched = "search" in set(frame.table["stage"])
    if frame.metric == "val_accuracy" and searched and not frame.simulated:
        said.append(
            "Validation accuracy is that of the supernet and says little of the genotypes; see "
            "--metric retrain_accuracy or oracle_test."
        )
    return said


def _ended(group: Group) -> int:
    return group.outcomes.get("finished", 0) + group.outcomes.get("collapsed", 0)
