"""Commands that judge what studies found: compare and sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator import display
from orchestrator.commands_run import DEFAULT_ROOT, Json, Root, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.analysis.method_comparison import MethodComparison

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
