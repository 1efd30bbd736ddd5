"""Plots of a study for notebooks: `study.plot.curves()` and so on, each a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator import frames, plots
from orchestrator.errors import StudyError
from orchestrator.results import by_label
from orchestrator.statistics import summarize
from spaces.core.errors import near_miss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.ledger import Row, Stage
    from orchestrator.oracle import StudyOracle
    from orchestrator.study import Study

_OF_ORACLE = "oracle_"
_TRUTHS = ("oracle_test_accuracy", "oracle_test_regret")
_SHARES = ("accuracy", "regret", "skip_share", "discretization_gap")


class Figures:
    """Plots of what a study's folder holds now.

    Figures are made without pyplot, so that none has to be closed; a notebook shows them after
    `%matplotlib inline`, and `savefig` writes them.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study

    def curves(
        self,
        metric: str = "val_accuracy",
        *,
        stage: Stage | None = None,
        labels: Sequence[str] | None = None,
    ) -> Figure:
        """Draw a metric against the epoch: mean over seeds, the 95 % interval shaded from 3 on.

        Rows that did not finish are thin and grey.

        Args:
            metric: A number of epochs, as a column of `Study.curves` is called, or
                "oracle_test_accuracy" or "oracle_test_regret".
            stage: Whose curves; None is the searches, or the retrainings where there are none.
            labels: Configurations, as in `Study.trials`; None is the first that there are colours
                for.

        Raises:
            StudyError: No row has the metric, or there is no such label.
        """
        groups = self._groups(stage, labels)
        oracle = self._oracle() if metric in _TRUTHS else None
        rows = [row for group in groups.values() for row in group]
        values = {row.key: self._by_epoch(row, metric, oracle) for row in rows}
        if not any(values.values()):
            known = sorted({n for row in rows for e in row.curve for n in frames.scalars(e)})
            raise StudyError(
                f"no row of study {self._study.name} has {metric!r} in its curve; there is "
                f"{', '.join(known) or 'nothing'}.{near_miss(metric, known)}"
            )
        finished = {
            label: [values[row.key] for row in group if row.status == "finished"]
            for label, group in groups.items()
        }
        others = [values[row.key] for row in rows if row.status != "finished"]
        every = [set(curve) for curves in finished.values() for curve in curves if curve]
        epochs = sorted(set.intersection(*every) if every else set().union(*others))
        percent = metric.endswith(_SHARES)
        return plots.curve_figure(
            {
                label: [[curve[epoch] for epoch in epochs] for curve in curves if curve]
                for label, curves in finished.items()
                if any(curves)
            },
            ylabel=f"{metric.replace('_', ' ')}{', %' if percent else ''}",
            stopped=[[curve[epoch] for epoch in epochs if epoch in curve] for curve in others],
            epochs=epochs,
            percent=percent,
            legend="best",
        )

    def seeds(self, metric: str = "val_accuracy", *, stage: Stage | None = None) -> Figure:
        """Draw the last value of every finished seed, and their means with 95 % intervals.

        Args:
            metric: A number of rows, as in `Study.trials`.
            stage: As in `curves`.

        Raises:
            StudyError: No finished row has the metric.
        """
        groups = self._groups(stage, None, most=40)
        found = {
            label: [value for row in group if (value := row.value(metric)) is not None]
            for label, group in (
                (label, [row for row in group if row.status == "finished"])
                for label, group in groups.items()
            )
        }
        found = {label: values for label, values in found.items() if values}
        if not found:
            raise StudyError(f"no finished row of study {self._study.name} has {metric!r}.")
        percent = metric.endswith(_SHARES)
        scale = 100.0 if percent else 1.0
        figure = plots.new_figure(8.0, 1.0 + 0.34 * max(len(found), 2))
        axes = figure.add_subplot()
        for place, values in enumerate(found.values()):
            colour = plots.COLOURS[place % len(plots.COLOURS)]
            shown = [scale * value for value in values]
            axes.plot(shown, [place] * len(shown), "o", color=colour, alpha=0.45, markersize=4)
            summary = summarize(values, bounds=None)
            if summary.low is not None and summary.high is not None:
                ends = [scale * summary.low, scale * summary.high]
                axes.plot(ends, [place, place], color=colour, linewidth=2)
            axes.plot([scale * (summary.mean or 0.0)], [place], "D", color=colour, markersize=6)
        axes.set_yticks(range(len(found)), [f"{k}  (n = {len(v)})" for k, v in found.items()])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlabel(f"{metric.replace('_', ' ')}{', %' if percent else ''}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        return figure

    def regret(self, *, labels: Sequence[str] | None = None) -> Figure:
        """Draw the regret in true test accuracy after each epoch, by the study's benchmark table.

        Args:
            labels: As in `curves`.

        Raises:
            StudyError: The study has no oracle, or its table has none of the genotypes.
        """
        return self.curves("oracle_test_regret", stage="search", labels=labels)

    def genotype(self, genotype_hash: str | None = None) -> Figure:
        """Draw the cells of a genotype.

        Args:
            genotype_hash: Of a genotype of the study; None is the one that was found most often.

        Raises:
            StudyError: The study has found no such genotype.
        """
        from spaces.core.drawing import genotype_figure
        from spaces.core.genotype import Genotype

        found = frames.found(self._study.rows())
        if not found or (genotype_hash is not None and genotype_hash not in found):
            said = f" {genotype_hash}" if genotype_hash else ""
            known = f"; it has {', '.join(list(found)[:20])}" if found else ""
            raise StudyError(f"study {self._study.name} has found no genotype{said}{known}.")
        chosen = genotype_hash or next(iter(found))
        return genotype_figure(Genotype.from_json(found[chosen].form))

    def pareto(self) -> Figure:
        """Draw accuracy against parameters and multiply-adds of the evaluation networks.

        Raises:
            StudyError: Nothing has both.
        """
        from orchestrator import cost_report, pareto_plot

        view = cost_report.view(self._study.rows(), self._study.experiment.limits)
        if not view.points:
            raise StudyError(f"study {self._study.name} has no genotype with accuracy and cost.")
        said = "test accuracy" if view.accuracy == "test" else "val accuracy of the supernet"
        return pareto_plot.scatter_figure(view, ylabel=f"{said}, %")

    def _groups(
        self, stage: Stage | None, labels: Sequence[str] | None, *, most: int = plots.MOST_LABELS
    ) -> dict[str, list[Row]]:
        rows = frames.all_rows(self._study)
        chosen = stage or ("search" if any(row.stage == "search" for row in rows) else "retrain")
        groups = by_label([row for row in rows if row.stage == chosen])
        missing = [label for label in labels or () if label not in groups]
        if missing:
            raise StudyError(
                f"study {self._study.name} has no configuration {missing[0]!r}; it has "
                f"{', '.join(groups) or 'none'}.{near_miss(missing[0], list(groups))}"
            )
        return {label: groups[label] for label in labels or list(groups)[:most]}

    def _by_epoch(self, row: Row, metric: str, oracle: StudyOracle | None) -> dict[int, float]:
        if oracle is not None:
            truths = oracle.by_epoch(row).items()
            name = metric.removeprefix(_OF_ORACLE)
            return {epoch: float(getattr(truth, name)) for epoch, truth in truths}
        return {
            int(entry.get("epoch", place)): float(entry[metric])
            for place, entry in enumerate(row.curve, start=1)
            if isinstance(entry.get(metric), int | float)
        }

    def _oracle(self) -> StudyOracle:
        from orchestrator.oracle import of_study

        oracle, reason = of_study(self._study)
        if oracle is None:
            raise StudyError(reason or f"the experiment of study {self._study.name} has no oracle.")
        return oracle
