"""The numbers at the top of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator import hours_report
from orchestrator.document import Block, Fact, Facts
from orchestrator.results import Result
from orchestrator.statistics import show_time

if TYPE_CHECKING:
    from orchestrator.ledger import Row
    from orchestrator.study import Study

_STAGES = {"search": "searches finished", "retrain": "retrainings finished"}


def blocks(study: Study, rows: Sequence[Row], results: Sequence[Result]) -> list[Block]:
    """Return the numbers that say what a study has come to; nothing before a row has ended.

    Args:
        study: The study.
        rows: Rows of its ledger.
        results: Lines of the table of results.
    """
    facts = []
    progress = study.read_progress()
    for stage, title in _STAGES.items():
        own = [row for row in rows if row.stage == stage]
        done = sum(row.status == "finished" for row in own)
        if own:
            odd = Counter(row.status for row in own if row.status != "finished")
            more = ", ".join(f"{count} {status}" for status, count in sorted(odd.items()))
            planned = progress.get("total") if progress.get("stage") == stage else None
            asked = max(len(own), planned) if isinstance(planned, int) else len(own)
            facts.append(Fact(title, f"{done:,} of {asked:,}", more))
    if not facts:
        return []
    seeds = {row.seed for row in rows if row.stage == rows[0].stage}
    if study.experiment.tune.pbt is None:
        what = "configurations"
        count = len({row.config_id for row in rows if row.stage == rows[0].stage})
    else:  # its members are no configurations
        what, count = "populations", sum(len(result.val_accuracies) for result in results)
    facts.append(Fact(what, f"{count:,}", f"{len(seeds)} seeds in all"))
    # Of the validation split: the test split says nothing of which is best.
    scored = [result for result in results if result.accuracy.mean is not None]
    if scored:
        best = max(scored, key=lambda result: result.accuracy.mean or 0.0)
        mean = 100 * (best.accuracy.mean or 0.0)
        n = best.accuracy.n
        told = f"{best.label}, " if len(scored) > 1 else ""
        facts.append(
            Fact("best mean val accuracy", f"{mean:.2f} %", f"{told}{n} seed{'s' * (n > 1)}")
        )
        if best.test.mean is not None:
            times = f"{best.test.n} retraining{'s' * (best.test.n > 1)}"
            facts.append(Fact("its test accuracy", f"{100 * best.test.mean:.2f} %", times))
    unit = hours_report.unit_of(rows)
    total = hours_report.hours(rows, unit)
    if total > 0:
        lost = hours_report.hours([row for row in rows if row.status != "finished"], unit)
        word = "GPU time" if unit == "gpu_hours" else "CPU core time"
        said = f"simulated {word}" if study.simulated else word
        facts.append(
            Fact(said, show_time(3600 * total), f"{100 * lost / total:.0f} % not finished")
        )
    return [Facts(facts)]
