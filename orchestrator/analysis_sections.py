"""What a report says of sensitivity and of which configurations can be told apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import plots
from orchestrator.document import Block, Grid, Heading, Interval, Paragraph, Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.analysis.method_comparison import MethodComparison
    from orchestrator.ledger import Row
    from orchestrator.study import Study

FEWEST_CONFIGURATIONS = 4
MOST_LINES = 8
"""Lines that are compared with each other; pairs grow with their square."""

MOST_MAPS = 3
_CAPTIONS = {
    "responses": "Means over configurations and seeds at each value of a setting, 95 % intervals.",
    "best_of": "Expected best of k seeds.",
    "ranks": "How often each line would come first, second and so on, over draws of seeds.",
}


def sensitivity(study: Study, rows: Sequence[Row], folder: Path) -> list[Block]:
    """Return the section on settings that vary; nothing for fewer than four configurations."""
    from orchestrator.analysis.frame import study_frame

    finished = {row.config_id for row in rows if row.status == "finished"}
    if len(finished) < FEWEST_CONFIGURATIONS:
        return []
    frame = study_frame(study)
    if not frame.factors:
        return []
    from orchestrator.analysis import responses
    from orchestrator.analysis.robust import robust_region
    from orchestrator.analysis.sensitivity import Sensitivity
    from orchestrator.analysis.sensitivity_plots import sensitivity_figures
    from orchestrator.analysis.surrogate import points_of

    factors = frame.factors
    points = points_of(frame, factors)
    if len(points.y) < FEWEST_CONFIGURATIONS:
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
    figures = sensitivity_figures(shown)
    said = f"`nas sensitivity {study.name}` says which setting matters most, by several estimators."
    robust: list[Block] = []
    if region is not None:
        best = ", ".join(f"{k}={responses.show(v)}" for k, v in region.recommended.items())
        robust.append(
            Paragraph(
                f"{region.inside} of {region.of} configurations are within one standard error of "
                f"the best; of these the middle one is {best}."
            )
        )
    pictures = _pictures(figures, folder / "sensitivity")
    return [Heading("Sensitivity"), *pictures, *robust, Paragraph(said)]


def told_apart(study: Study, rows: Sequence[Row], folder: Path) -> list[Block]:
    """Return the section on differences between lines; nothing without two that have two seeds."""
    finished = {row.config_id for row in rows if row.status == "finished"}
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
        said = _CAPTIONS.get(name, f"{name.replace('_', ' ').replace('-', ' ')}.")
        found.append(Picture(path, said))
    return found
