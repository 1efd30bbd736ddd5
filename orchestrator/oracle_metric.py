"""Values of the oracle as a tuning metric, where an experiment allows what is never done otherwise.

The driver looks them up and shows them to searcher and scheduler; a trial neither sees nor returns
them, and no row holds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.experiment import ORACLE_METRICS, Experiment
from orchestrator.ledger import Row, read_row
from orchestrator.oracle import StudyOracle, of_study
from trainables.worst import worst_value

if TYPE_CHECKING:
    from orchestrator.oracle import Truth
    from orchestrator.study import Study


def metrics_of(experiment: Experiment) -> list[str]:
    """Return the metrics of the oracle that decide something in an experiment; often none."""
    asked = [experiment.tune.metric, experiment.retrain.by if experiment.retrain else ""]
    return [metric for metric in dict.fromkeys(asked) if metric in ORACLE_METRICS]


def filled(study: Study, rows: Iterable[Row]) -> list[Row]:
    """Return rows with the metrics of the oracle that the study asks for in their curves.

    As they are where it asks for none, or its table is gone.
    """
    metrics = metrics_of(study.experiment)
    oracle = of_study(study)[0] if metrics else None
    return [row if oracle is None else _filled(row, oracle, metrics) for row in rows]


def _filled(row: Row, oracle: StudyOracle, metrics: Iterable[str]) -> Row:
    truths = oracle.by_epoch(row) if row.stage == "search" else {}
    curve = []
    for place, entry in enumerate(row.curve, start=1):
        truth = truths.get(int(entry.get("epoch", place)))
        known = {metric: _value(truth, metric) for metric in metrics} if truth else {}
        curve.append({**entry, **known})
    return replace(row, curve=curve)


class OracleMetric:
    """What a running study's searcher and scheduler are shown in the place of a trial's own value.

    Args:
        study: The study, held by this process.
        metric: One of `ORACLE_METRICS`.

    Raises:
        NasError: Its table cannot be read.
    """

    def __init__(self, study: Study, metric: str) -> None:
        experiment = study.experiment
        self.metric = metric
        self._study = study
        self._oracle = StudyOracle(experiment.oracle or {}, experiment.space)

    def add(self, config: Mapping[str, Any], result: dict[str, Any]) -> None:
        """Put the mean over the seeds of a block into its result, of the epoch that it is of.

        A seed that has no genotype there, or one that the table lacks, counts with the worst value.
        """
        keys = config["unit"]["rows"].values()
        values = [self._of_row(str(key), int(result["epoch"])) for key in keys]
        result[self.metric] = sum(values) / len(values)

    def _of_row(self, key: str, epoch: int) -> float:
        # The study folder has an epoch before Tune hears of it.
        row = self._study.ledger.read(key)
        if row is None or len(row.curve) < epoch:
            with contextlib.suppress(ValueError):  # damaged: the next epoch writes it anew
                row = read_row(self._study.checkpoints / key / "row.json") or row
        if row is None or row.status == "diverged" or not row.curve:
            return worst_value(self.metric)
        # Past its end a search that ended itself stands where it ended.
        entry = row.curve[min(epoch, len(row.curve)) - 1]
        truth = self._oracle.of_row(replace(row, genotype=entry.get("genotype")))
        return worst_value(self.metric) if truth is None else _value(truth, self.metric)


def _value(truth: Truth, metric: str) -> float:
    return float(getattr(truth, metric.rpartition("/")[2]))
