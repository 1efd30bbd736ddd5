"""Commands that judge what studies found: compare and sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator import display
from orchestrator.commands_run import DEFAULT_ROOT, Json, Root, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.analysis.method_comparison import MethodComparison
    from orchestrator.analysis.sensitivity import Sensitivity

Out = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder to draw figures into.")
]
_NAME_WIDTH = 24
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="val_accuracy, val_loss, retrain_accuracy, oracle_test, oracle_regret, time_s or "
        "another value of the curves; by default what the study compares by.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`."""
    app.command(epilog="Example: nas compare systems-digits --metric retrain_accuracy")(compare)
    app.command(epilog="Example: nas sensitivity sensitivity-ms-darts-digits -o figures")(
        sensitivity
    )


def compare(
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY...", help="One study or more, or their folders.")
    ],
    metric: Metric = None,
    by: Annotated[
        str,
        typer.Option("--by", help="What is compared: label, method, study or a swept setting."),
    ] = "label",
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="LINE", help="Compare all lines with this one alone."),
    ] = None,
    test: Annotated[
        Literal["permutation", "wilcoxon", "t"],
        typer.Option("--test", help="t takes differences to be normal, the others do not."),
    ] = "permutation",
    out: Out = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Say which methods of a study, or of several, can be told apart, and which cannot.

    Values of the same seed are compared in pairs; p-values are corrected for the number of
    comparisons by Holm's method.
    """
    from orchestrator.analysis.frame import study_frame
    from orchestrator.analysis.method_comparison import compare_methods
    from orchestrator.study import Study

    frames = [study_frame(Study.open(name, root), metric) for name in studies]
    shown = compare_methods(frames, by=by, against=against, test=test)
    drawn: dict[str, str] = {}
    if out is not None:
        from orchestrator.analysis.comparison_plots import comparison_figures

        drawn = save(comparison_figures(shown), out)
    if as_json:
        display.say_json({"studies": studies, **shown.to_json(), "figures": drawn})
        return
    _show_comparison(shown)
    _show_figures(drawn)


def sensitivity(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A study, finished or running.")],
    metric: Metric = None,
    params: Annotated[
        list[str] | None,
        typer.Option("--params", help="A swept setting to look at; repeatable, all by default."),
    ] = None,
    out: Out = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Say what a study's outcome depends on, and which settings are as good as the best.

    Reads the ledger alone. Several estimators of importance stand side by side: they ask
    different questions, and where they disagree that is said.
    """
    from orchestrator.analysis.frame import study_frame
    from orchestrator.analysis.sensitivity import analyse
    from orchestrator.study import Study

    names = [name for given in params or () for name in given.split(",") if name]
    shown = analyse(study_frame(Study.open(study, root), metric), names or None)
    drawn: dict[str, str] = {}
    if out is not None:
        from orchestrator.analysis.sensitivity_plots import sensitivity_figures

        drawn = save(sensitivity_figures(shown), out)
    if as_json:
        display.say_json({**shown.to_json(), "figures": drawn})
        return
    _show_sensitivity(shown)
    _show_figures(drawn)


def save(figures: dict[str, Figure], folder: Path) -> dict[str, str]:
    """Write figures as PNGs into a folder; return the path of each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, metadata={"Software": None})
        paths[name] = str(path)
    return paths


def _show_figures(drawn: dict[str, str]) -> None:
    if drawn:
        first = Path(next(iter(drawn.values())))
        display.say(f"figures  {short(first.parent)}: {', '.join(drawn)}")


def _show_comparison(shown: MethodComparison) -> None:
    from orchestrator.analysis.tables import show_interval, show_p, show_value, unit_of

    k = shown.best_k
    heads = ("", "", "seeds", "mean [95 %]", f"best of {k}", f"{shown.unit} h", "wasted")
    display.say(unit_of(shown.metric, shown.share))
    long = max(len(group.name) for group in shown.groups) > _NAME_WIDTH
    for group in shown.groups if long else ():
        display.say(f"{group.letter}  {group.name}")
    rows = [
        (
            group.letter,
            "" if long else group.name,
            str(len(group.values)),
            show_interval(group.mean, shown.share),
            show_value(group.best(k), shown.share),
            f"{group.hours:.3g}",
            f"{group.wasted:.3g}",
        )
        for group in shown.groups
    ]
    display.say_table(display.table(heads, rows, numeric=heads[3:]))
    if shown.pairs:
        display.say("")
        columns = ("pair", "difference [95 %]", "effect", "p (Holm)", "", "more seeds")
        lines = [
            (
                f"{_letter(shown, pair.first)} – {_letter(shown, pair.second)}",
                show_interval(pair.difference, shown.share, sign=True),
                "–" if pair.effect is None else f"{pair.effect:+.2f}",
                show_p(pair.p_holm),
                "not told apart" if pair.verdict == "cannot be told apart" else pair.verdict,
                _more(pair.more_seeds, pair.verdict),
            )
            for pair in shown.pairs
        ]
        display.say_table(display.table(columns, lines, numeric=columns[1:4]))
    for sentence in shown.said:
        display.say(sentence)


def _more(seeds: int | None, verdict: str) -> str:
    if seeds == 0:
        return "–"
    if seeds is None:
        return "–" if verdict in ("equal", "too few seeds") else "> 1000"
    return f"+{seeds}"


def _letter(shown: MethodComparison, name: str) -> str:
    return next(group.letter for group in shown.groups if group.name == name)


def _show_sensitivity(shown: Sensitivity) -> None:
    from orchestrator.analysis.tables import show_interval, unit_of

    fewest, most = shown.seeds
    seeds = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    design = f", design {shown.design}" if shown.design else ""
    display.say(
        f"{unit_of(shown.metric, shown.share)}; {shown.configurations} configurations, "
        f"{seeds} seeds each{design}"
    )
    for each in shown.responses:
        display.say("")
        heads = (each.factor.short, "mean [95 %]", "configurations", "lost")
        rows = [
            (
                level.text,
                show_interval(level.mean, shown.share),
                str(level.configurations),
                str(level.lost or "–"),
            )
            for level in each.levels
        ]
        display.say_table(display.table(heads, rows, numeric=heads[1:]))
    _show_importances(shown)
    _show_robust(shown)
    for sentence in shown.said:
        display.say(sentence)


def _show_importances(shown: Sensitivity) -> None:
    if not shown.importances:
        return
    estimators = list(dict.fromkeys(each.estimator for each in shown.importances))
    factors = list(dict.fromkeys(each.factor for each in shown.importances))
    cells = {
        (each.estimator, each.factor): f"{each.value:.2f}"
        + ("" if each.low is None else f" [{each.low:.2f}, {each.high:.2f}]")
        for each in shown.importances
    }
    display.say("")
    # The Sobol indices of a design stand below the others: all five would not fit into 80 columns.
    for part in (estimators[:3], estimators[3:]):
        if part:
            rows = [(name, *(cells.get((e, name), "–") for e in part)) for name in factors]
            heads = ("importance", *part)
            display.say_table(display.table(heads, rows, numeric=heads[1:]))
    pairs = sorted(shown.interactions.items(), key=lambda item: -item[1])[:3]
    if pairs:
        listed = ", ".join(f"{one} x {other} {100 * s:.1f} %" for (one, other), s in pairs)
        display.say(f"pairs together, of a forest's variance: {listed}")
    if shown.predicted is not None:
        display.say(f"variance that forests predict, unseen: {100 * shown.predicted:.0f} %")


def _show_robust(shown: Sensitivity) -> None:
    from orchestrator.analysis.responses import show
    from orchestrator.analysis.tables import show_value

    robust = shown.robust
    if robust is None:
        return

    def said(settings: Mapping[str, Any]) -> str:
        return ", ".join(f"{k}={show(v)}" for k, v in settings.items() if v is not None)

    display.say("")
    display.say(f"best       {said(robust.best)}: {show_value(robust.value, shown.share)}")
    error = show_value(robust.error, shown.share)
    display.say(f"robust     {robust.inside} of {robust.of} within one standard error ({error})")
    for name, values in robust.ranges.items():
        number = len(values) == 2 and not any(isinstance(value, str) for value in values)
        joined = (" to " if number else ", ").join(dict.fromkeys(map(show, values)))
        display.say(f"           {name}: {joined or 'not set'}")
    value = show_value(robust.recommended_value, shown.share)
    display.say(f"default    {said(robust.recommended)}: {value}")
