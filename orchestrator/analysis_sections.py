"""What a report says of sensitivity and of which configurations can be told apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import plots
from orchestrator.document import Block, Grid, Heading, Interval, Paragraph, Picture
from orchestrator.errors import StudyError
from orchestrator.oracle import of_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.analysis.method_comparison import MethodComparison
    from orchestrator.ledger import Row
    from orchestrator.study import Study

FEWEST_CONFIGURATIONS = 4
MOST_LINES = 8
"""Lines that are compared with each other; pairs grow with their square."""

MOST_MAPS = 3
_TRUE = "oracle/test_accuracy"
_CAPTIONS = {
    "responses": "Means over configurations and seeds at each value of a setting, 95 % intervals.",
    "map": "Mean over seeds and other settings at each pair of values, and half of its interval.",
    "best_of": "Expected best of k seeds.",
    "ranks": "How often each line would come first, second and so on, over draws of seeds.",
}


def sensitivity(study: Study, rows: Sequence[Row], folder: Path) -> list[Block]:
    """Return the section on settings that vary; nothing for fewer than four configurations.

    Where the study has an oracle, its accuracies come first: what cells are worth says more than
    what the supernet has.
    """
    finished = {row.config_id for row in rows if row.status == "finished"}
    if len(finished) < FEWEST_CONFIGURATIONS or study.experiment.tune.pbt is not None:
        return []
    own = study.experiment.metric_of(study.experiment.trainable)
    metrics = [own] if of_study(study)[0] is None else list(dict.fromkeys((_TRUE, own)))
    blocks: list[Block] = []
    for metric in metrics:
        found = _sensitivity(study, metric, folder)
        if found and len(metrics) > 1:
            title = "True test accuracy" if metric == _TRUE else metric.replace("_", " ")
            blocks.append(Heading(title[0].upper() + title[1:], 3))
        blocks += found
    if not blocks:
        return []
    said = f"`nas sensitivity {study.name}` says which setting matters most, by several estimators."
    return [Heading("Sensitivity"), *blocks, Paragraph(said)]


def _sensitivity(study: Study, metric: str, folder: Path) -> list[Block]:
    """Return what there is to show of one metric, often nothing."""
    from orchestrator.analysis import responses
    from orchestrator.analysis.frame import study_frame
    from orchestrator.analysis.robust import robust_region
    from orchestrator.analysis.sensitivity import Sensitivity
    from orchestrator.analysis.sensitivity_plots import sensitivity_figures
    from orchestrator.analysis.surrogate import points_of

    try:
        frame = study_frame(study, metric)
    except StudyError:
        if metric == _TRUE:  # the table knows none of the cells
            return []
        raise
    factors = frame.factors
    points = points_of(frame, factors)
    if not factors or len(points.y) < FEWEST_CONFIGURATIONS:
        return []
    region = robust_region(frame, points)
    counts = [len(values) for values in points.seeds]
    shown = Sensitivity(
        study=frame.study,
        metric=frame.metric,
        maximize=frame.maximize,
        share=frame.share,
        simulated=frame.simulated,
        design=frame.design,
        configurations=len(points.y),
        seeds=(min(counts), max(counts)),
        outcomes=frame.counts,
        responses=tuple(responses.response(frame, factor) for factor in factors),
        maps=tuple(
            responses.heat_map(frame, *pair)
            for pair in list(itertools.combinations(factors, 2))[:MOST_MAPS]
        ),
        importances=(),  # forests take longer than a report may: `nas sensitivity` grows them
        predicted=None,
        dependences=(),
        interactions={},
        robust=region,
        said=(),
    )
    robust: list[Block] = []
    if region is not None:
        best = ", ".join(f"{k}={responses.show(v)}" for k, v in region.recommended.items())
        robust.append(
            Paragraph(
                f"{region.inside} of {region.of} configurations are within one standard error of "
                f"the best; of these the middle one is {best}."
            )
        )
    prefix = folder / ("sensitivity-oracle" if metric == _TRUE else "sensitivity")
    return [*_pictures(sensitivity_figures(shown), prefix), *robust]


def told_apart(study: Study, rows: Sequence[Row], folder: Path) -> list[Block]:
    """Return the section on differences between lines; nothing without two that have two seeds."""
    finished = {row.config_id for row in rows if row.status == "finished"}
    if study.experiment.tune.pbt is not None:
        return []  # members of a population copy each other: none is a configuration
    # Lines that were stopped or failed count too: all of them are compared.
    if len(finished) < 2 or len({row.config_id for row in rows}) > MOST_LINES:
        return []
    from orchestrator.analysis.comparison_plots import best_of_figure, ranks_figure
    from orchestrator.analysis.frame import study_frame
    from orchestrator.analysis.method_comparison import compare_methods

    shown = compare_methods([study_frame(study)])
    if len([group for group in shown.groups if len(group.values) > 1]) < 2:
        return []
    figures = {"best_of": best_of_figure(shown)}
    if shown.ranks is not None:
        figures["ranks"] = ranks_figure(shown)
    return [
        Heading("What can be told apart"),
        *_pairs(shown),
        *(Paragraph(sentence) for sentence in shown.said),
        *_pictures(figures, folder / "comparison"),
    ]


def _pairs(shown: MethodComparison) -> list[Block]:
    from orchestrator.analysis.tables import show_interval, show_p

    heads = ("first", "second", "difference [95 %]", "effect", "p (Holm)", "what can be said")
    lines = [
        (
            pair.first,
            pair.second,
            show_interval(pair.difference, shown.share, sign=True),
            "–" if pair.effect is None else f"{pair.effect:+.2f}",
            show_p(pair.p_holm),
            pair.verdict,
        )
        for pair in shown.pairs
    ]
    scale = 100.0 if shown.share else 1.0
    drawn: list[Interval | None] = []
    for pair in shown.pairs:
        found = pair.difference
        ends = (None if end is None else scale * end for end in (found.low, found.high))
        low, high = ends
        drawn.append(None if found.estimate is None else (scale * found.estimate, low, high))
    return [Grid(heads, lines, heads[2:5], drawn)] if lines else []


def _pictures(figures: dict[str, Figure], prefix: Path) -> list[Block]:
    found: list[Block] = []
    for name, figure in figures.items():
        path = prefix.with_name(f"{prefix.name}-{name}.png")
        plots.save(figure, path)
        said = _CAPTIONS.get(name) or _CAPTIONS[name.partition("_")[0]]
        found.append(Picture(path, said))
    return found
