"""The command that hands out a retrained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator import display
from orchestrator.commands_run import DEFAULT_ROOT, Json, Root, short
from orchestrator.statistics import show_bytes


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`."""
    app.command(epilog="Example: nas export quickstart --format onnx -o cell.onnx")(export)


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|STUDY:KEY|GENOTYPE",
            help="A study, of which the best retraining by validation accuracy is taken; a row of "
            "its ledger, or a genotype of it by its hash; or a genotype that one study has "
            "retrained: its hash, a file, its official text, or a name.",
        ),
    ],
    to: Annotated[
        Literal["torch", "pt2", "onnx"] | None,
        typer.Option(
            "--format",
            help="torch: weights and genotype; pt2: a program of torch.export; onnx: a graph. "
            "Where it is not given, what the ending of FILE says, or torch.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: STUDY-HASH-seedN.SUFFIX."),
    ] = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Write a retrained network to a file, and check that it computes the same logits.

    It maps normalised images to logits, in evaluation mode; the auxiliary head is left out. The
    file says itself how images are normalised, which classes there are and where it comes from.
    """
    from orchestrator import exporting

    study, row = exporting.find_run(run, root)
    # Imported late: a wrong name is refused without waiting for torch.
    from trainables.exporting import SUFFIXES, Format

    ending = "" if out is None else out.suffix
    by_ending = {suffix: name for name, suffix in SUFFIXES.items()}
    chosen: Format = to or by_ending.get(ending, "torch")
    if out is None:
        out = Path(f"{study.name}-{row.genotype_hash}-seed{row.seed}{SUFFIXES[chosen]}")
    done = exporting.export_run((study, row), out, chosen)
    if as_json:
        document = {"file": str(out), "format": chosen, "bytes": done.size, "study": study.name}
        document |= {"key": row.key, "genotype_hash": row.genotype_hash, "seed": row.seed}
        checked = {"difference": done.difference, "tolerance": done.tolerance}
        display.say_json(document | checked)
        return
    display.say(f"network  {study.name}:{row.key}, genotype {row.genotype_hash}, seed {row.seed}")
    display.say(
        f"checked  logits differ by {done.difference:.1e}; at most {done.tolerance:.1e} is allowed"
    )
    display.say(f"file     {short(out)} ({show_bytes(done.size)})")
