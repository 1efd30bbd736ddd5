"""The table of a study: one line per label, from the rows of its ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.ledger import with_selections
from orchestrator.planning import fits
from orchestrator.statistics import METHOD, MIN_SEEDS, Summary, show_share, show_time, summarize
from trainables.settings import with_later

if TYPE_CHECKING:
    from orchestrator.experiment import Limits
    from orchestrator.ledger import Row

COLUMNS = (
    "method",
    "seeds",
    "val accuracy %, mean [95 %]",
    "retrain test accuracy %",
    "genotype",
    "params",
    "macs",
    "search time",
)
TRAINING_COLUMNS = (
    "configuration",
    "seeds",
    "val accuracy %, mean [95 %]",
    "test accuracy %, mean [95 %]",
    "genotype",
    "params",
    "macs",
    "time",
)
NUMERIC = (
    "val accuracy %, mean [95 %]",
    "retrain test accuracy %",
    "test accuracy %, mean [95 %]",
    "params",
    "macs",
    "search time",
    "time",
)
_COSTS = ("params", "macs")
_BEST = {
    "val_loss": "least validation loss",
    "oracle/test_accuracy": "best test accuracy in the oracle's table",
    "oracle/test_regret": "least regret in the oracle's table",
}


@dataclass(frozen=True)
class Result:
    """One line of the table: a configuration over its seeds.

    Attributes:
        label: What tells it from the other lines.
        method: Name of its method.
        asked: Rows it has in the ledger, whatever became of them: searches, or retrainings where
            nothing was searched.
        searched: Whether the study has searches of it.
        compared: Whether the study compares retrainings, so that each has a line of its own.
        val_accuracies: Last validation accuracy of each finished search by seed, shares; of each
            finished retraining where these are compared.
        accuracy: Their mean and interval.
        test_accuracies: Test accuracy of each retraining of `genotype_hash`, by retrain seed.
        test: Their mean and interval.
        genotype_hash: Hash of the genotype with the best validation accuracy, or loss.
        genotype: Its JSON form.
        params, macs: Cost of its evaluation network, where it has been counted.
        over: Limits of the study that it is over, because no genotype of the line keeps them.
        search_s: Mean duration of a finished search, or compared retraining, in seconds.
    """

    label: str
    method: str
    asked: int
    val_accuracies: dict[int, float] = field(default_factory=dict)
    accuracy: Summary = field(default_factory=Summary)
    test_accuracies: dict[int, float] = field(default_factory=dict)
    test: Summary = field(default_factory=Summary)
    genotype_hash: str | None = None
    genotype: dict[str, Any] | None = None
    search_s: float | None = None
    searched: bool = True
    params: int | None = None
    macs: int | None = None
    over: tuple[str, ...] = ()
    compared: bool = False

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the line, in the order of `columns`."""
        n = self.accuracy.n if self.searched else self.test.n
        return (
            self.label,
            str(n) if n == self.asked else f"{n} of {self.asked}",
            show_share(self.accuracy),
            show_share(self.test) if self.test.n > 1 else _single(self.test),
            self.genotype_hash or "–",
            *(show_count(getattr(self, name), f"max_{name}" in self.over) for name in _COSTS),
            show_time(self.search_s),
        )


def columns(results: Sequence[Result]) -> tuple[str, ...]:
    """Return the heads of the table's columns."""
    return TRAINING_COLUMNS if any(result.compared for result in results) else COLUMNS


def _single(summary: Summary) -> str:
    return "–" if summary.mean is None else f"{100 * summary.mean:.2f}"


def show_count(count: float | None, over: bool = False) -> str:
    """Return a number of parameters or multiply-adds: "3.349 M"; a dash for None."""
    if count is None:
        return "–"
    shown = f"{count / 1e6:.3f} M" if count < 1e8 else f"{count / 1e6:.1f} M"
    return f"{shown} (over the limit)" if over else shown


def row_label(row: Row) -> str:
    """Return what a table calls a row's configuration."""
    return row.label or row.method


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group searches by configuration, under labels that tell them apart, in the order of blocks.

    Rows of an adaptive sweep are labelled before it is known what else will be drawn, so equal
    labels of different configurations get the sampled values added.
    """
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.block):
        groups.setdefault(row.config_id, []).append(row)
    labels = {key: row_label(group[0]) for key, group in groups.items()}
    for make in (_with_params, _with_id):
        taken = Counter(labels.values())
        labels = {
            key: make(label, groups[key][0]) if taken[label] > 1 else label
            for key, label in labels.items()
        }
    return {labels[key]: group for key, group in groups.items()}


def _with_params(label: str, row: Row) -> str:
    shown = (
        f"{key.rsplit('.', 1)[-1]}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in row.params.items()
    )
    return " ".join([label, *shown])


def _with_id(label: str, row: Row) -> str:
    return f"{label} ({row.config_id})"


def tabulate(
    rows: Sequence[Row],
    retrain_settings: Mapping[str, Any] | None = None,
    by: str = "val_accuracy",
    limits: Limits | None = None,
) -> list[Result]:
    """Return the table's lines.

    Args:
        rows: Rows of both stages.
        retrain_settings: Only retrainings with these settings count; None takes all.
        by: Metric by which the genotype of a line is the best of its seeds: `retrain.by`.
        limits: Limits that the genotype of a line keeps where one of its seeds has such a one.

    Means are over finished searches alone: a stopped row was measured after fewer epochs, and a
    diverged or failed one has no accuracy; how many there were of each is in the line's `asked`.
    Where every line has two seeds or more, the best mean comes first. Otherwise the lines keep the
    experiment's order: one seed is not enough to rank by.
    """
    rows = counting(rows, retrain_settings)
    searches = with_selections([row for row in rows if row.stage == "search"])
    retrains = [row for row in rows if row.stage == "retrain" and row.status == "finished"]
    results = [
        _result(label, group, retrains, by, limits) for label, group in by_label(searches).items()
    ] or _retrain_only([row for row in rows if row.stage == "retrain"])
    if all(max(result.accuracy.n, result.test.n) > 1 for result in results):
        results.sort(key=lambda result: -(result.accuracy.mean or result.test.mean or 0.0))
    return results


def counting(rows: Sequence[Row], retrain_settings: Mapping[str, Any] | None) -> list[Row]:
    """Return the searches, and of the retrainings those with these settings; None takes all."""
    if retrain_settings is None:
        return list(rows)
    given = retrain_settings.items()
    return [
        row
        for row in rows
        if row.stage == "search" or given <= with_later(row.settings.get("retrain", {})).items()
    ]


def _result(
    label: str, group: Sequence[Row], retrains: Sequence[Row], by: str, limits: Limits | None
) -> Result:
    finished = [row for row in group if row.status == "finished"]
    scored = [(row, value) for row in finished if (value := row.value("val_accuracy")) is not None]
    tested = {row.genotype_hash for row in retrains}
    best: Row | None = None
    if scored:
        # Among equal ones the genotype that was retrained is meant, then the lowest seed.
        best = max(
            (row for row, _ in scored),
            key=lambda row: (
                limits is None or fits(row, limits),
                row.quality(by),
                row.genotype_hash in tested,
                -row.seed,
            ),
        )
    tests = _test_accuracies(retrains, best.genotype_hash if best else None)
    times = [row.cost["time_s"] for row in finished if "time_s" in row.cost]
    cost = (best.evaluation if best else None) or _counted_by(retrains, best)
    return Result(
        label=label,
        method=group[0].method,
        asked=len(group),
        val_accuracies={row.seed: value for row, value in scored},
        accuracy=summarize([value for _, value in scored]),
        test_accuracies=tests,
        test=summarize(list(tests.values())),
        genotype_hash=best.genotype_hash if best else None,
        genotype=best.genotype if best else None,
        search_s=sum(times) / len(times) if times else None,
        params=cost.get("params"),
        macs=cost.get("macs"),
        over=limits.over(cost) if limits and cost else (),
    )


def _counted_by(retrains: Sequence[Row], best: Row | None) -> dict[str, int]:
    """Return what a retraining of the row's genotype has counted, for rows from before costs."""
    for row in retrains:
        if best is not None and row.genotype_hash == best.genotype_hash:
            counted = {name: row.value(name) for name in _COSTS}
            return {name: int(value) for name, value in counted.items() if value is not None}
    return {}


def tabulate_trainings(rows: Sequence[Row]) -> list[Result]:
    """Return the table's lines of a study that compares retrainings: one per configuration.

    As in `tabulate`, means are over finished rows alone, and lines are sorted by validation
    accuracy where each has two seeds or more; test accuracy never sorts them where there is any.
    """
    groups = by_label([row for row in rows if row.stage == "retrain"])
    results = [training_result(label, group) for label, group in groups.items()]
    if all(result.test.n > 1 for result in results):
        results.sort(key=lambda result: -(result.accuracy.mean or result.test.mean or 0.0))
    return results


def training_result(label: str, group: Sequence[Row], time_s: float | None = None) -> Result:
    """Return the line of retrainings that are compared, one row a seed.

    Args:
        label: What tells it from other lines.
        group: Its rows.
        time_s: Its time; None is the mean of the finished rows.
    """
    finished = [row for row in group if row.status == "finished"]
    vals, tests = (
        {row.seed: value for row in finished if (value := row.value(metric)) is not None}
        for metric in ("val_accuracy", "test_accuracy")
    )
    times = [row.cost["time_s"] for row in finished if "time_s" in row.cost]
    cost = _counted_by(finished, group[0])
    return Result(
        label=label,
        method=group[0].method,
        asked=len(group),
        val_accuracies=vals,
        accuracy=summarize(list(vals.values())),
        test_accuracies=tests,
        test=summarize(list(tests.values())),
        genotype_hash=group[0].genotype_hash,
        genotype=group[0].genotype,
        search_s=(sum(times) / len(times) if times else None) if time_s is None else time_s,
        params=cost.get("params"),
        macs=cost.get("macs"),
        searched=False,
        compared=True,
    )


def _retrain_only(retrains: Sequence[Row]) -> list[Result]:
    """Return one line per genotype, for a study that searched nothing."""
    groups: dict[str | None, list[Row]] = {}
    for row in retrains:
        groups.setdefault(row.genotype_hash, []).append(row)
    results = []
    for genotype_hash, group in groups.items():
        tests = _test_accuracies([r for r in group if r.status == "finished"], genotype_hash)
        cost = _counted_by(group, group[0])
        results.append(
            Result(
                label="a given genotype",
                searched=False,
                method=group[0].method,
                asked=len(group),
                test_accuracies=tests,
                test=summarize(list(tests.values())),
                genotype_hash=genotype_hash,
                genotype=group[0].genotype,
                params=cost.get("params"),
                macs=cost.get("macs"),
            )
        )
    return results


def _test_accuracies(retrains: Sequence[Row], genotype_hash: str | None) -> dict[int, float]:
    return {
        row.seed: value
        for row in retrains
        if genotype_hash is not None
        and row.genotype_hash == genotype_hash
        and (value := row.value("test_accuracy")) is not None
    }


def document(results: Sequence[Result]) -> dict[str, Any]:
    """Return the table as plain JSON: the numbers of every seed beside their mean and interval."""
    return {
        "interval": METHOD,
        "fewest_seeds_for_an_interval": MIN_SEEDS,
        "rows": [asdict(result) for result in results],
    }


def caption(
    results: Sequence[Result], by: str = "val_accuracy", *, simulated: bool = False
) -> list[str]:
    """Return the sentences that the table cannot be read without."""
    if any(result.compared for result in results):
        return _caption_of_trainings(results)
    best = _BEST.get(by, "best one")
    lines = [
        f"Interval: {METHOD}, for {MIN_SEEDS} seeds or more; a dash stands where there are fewer.",
        "Val accuracy is the supernet's on the validation split after the last epoch; the genotype "
        f"is that of the seed with the {best} (for a method that takes the genotype of its best "
        "epoch, after that epoch), and retraining it reads the test split.",
        "Search time is the mean of a finished search.",
    ]
    if simulated:
        lines[1:] = [
            "Val accuracy is the table's of the genotype after the last epoch, the genotype that "
            f"of the seed with the {best}. Retraining it looks its test accuracy up, which is the "
            "same for every seed: its interval has no width and says nothing.",
            "Search time is simulated: the table's training time of every cell that was drawn, "
            "mean of a finished search.",
        ]
    if any(result.params is not None for result in results):
        lines.append("Params and macs are those of the genotype's evaluation network.")
    if any(result.searched and result.accuracy.n < result.asked for result in results):
        lines.append("Means leave out the rows that did not finish, which are listed below.")
    if len(results) > 1 and any(result.accuracy.n == 1 for result in results):
        lines.append("One seed does not rank methods: lines keep the order of the experiment.")
    return lines


def _caption_of_trainings(results: Sequence[Result]) -> list[str]:
    lines = [
        f"Interval: {METHOD}, for {MIN_SEEDS} seeds or more; a dash stands where there are fewer.",
        "Val accuracy is of the held-out training images after the last epoch, and what "
        "configurations are compared by; the test split is read once, at that epoch's end.",
        "Time is the mean of a finished retraining.",
    ]
    if not any(result.accuracy.n for result in results):
        lines[1] = "No images are held out; the test split is read once, after the last epoch."
    if any(result.test.n < result.asked for result in results):
        lines.append("Means leave out the rows that did not finish, which are listed below.")
    if len(results) > 1 and any(result.test.n == 1 for result in results):
        lines.append("One seed ranks nothing: lines keep the order of the experiment.")
    return lines
