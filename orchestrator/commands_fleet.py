"""Commands of an operator of many studies: doctor, extend, merge, stop, archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import display
from orchestrator.commands_run import (
    DEFAULT_ROOT,
    TRIALS_FAILED,
    Json,
    Overrides,
    Root,
    resume_command,
    short,
)
from orchestrator.commands_study import StudyName
from orchestrator.statistics import show_bytes

if TYPE_CHECKING:
    from orchestrator.study import Study


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`."""
    app.command(epilog="Example: nas doctor experiments/quickstart.yaml")(doctor)
    app.command(epilog="Example: nas extend quickstart --seeds 0-9")(extend)
    app.command(epilog="Example: nas archive quickstart s3://bucket/studies")(archive)
    app.command(epilog="Example: nas stop quickstart")(stop)
    app.command(epilog="Example: nas merge east west --into both")(merge)


def doctor(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An experiment, in YAML.")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the study.")] = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Look whether an experiment can run here, or on its cluster; start nothing.

    Exit code 1: something is bad.
    """
    from orchestrator import config, preflight
    from orchestrator.doctor import examine

    experiment = config.load_experiment(file, overrides or (), name)
    config.check_real(experiment)
    checks = examine(experiment, root)
    states = [check.state for check in checks]
    if as_json:
        document = {"experiment": experiment.name, "checks": preflight.as_json(checks)}
        display.say_json({**document, "good": "bad" not in states})
    else:
        rows = [(check.name, check.state, check.said) for check in checks]
        display.say_table(display.table(("check", "state", "found"), rows))
    if "bad" in states:
        raise typer.Exit(TRIALS_FAILED)


def extend(
    context: typer.Context,
    study: StudyName,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="0-9", help="All seeds it is to have: 0-4,7 and the like."),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", min=1, help="Configurations drawn in each block.")
    ] = None,
    overrides: Overrides = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Let a study ask for more; finished rows are not run again, and `nas resume` runs the rest.

    A list given by --set sweeps a setting: all its values, the old ones included.
    """
    from orchestrator import extending
    from orchestrator.study import Study

    opened = Study.open(study, root)
    result = extending.extend(
        opened,
        command=context.obj,
        seeds=None if seeds is None else extending.read_seeds(seeds),
        num_samples=num_samples,
        overrides=overrides or (),
    )
    again = resume_command(opened.name, opened.root)
    if as_json:
        changes = {path: {"from": a, "to": b} for path, (a, b) in result.changes.items()}
        numbers = {"before": result.before, "after": result.after, "present": result.present}
        display.say_json({"study": opened.name, "changes": changes, "rows": numbers})
        return
    if not result.changes:
        display.say(f"{opened.name} asks for all of that already; nothing was changed.")
        return
    for path, (old, new) in result.changes.items():
        display.say(f"{path:<20} {_value(old)}  ->  {_value(new)}")
    display.say(f"{'rows':<20} {result.before} -> {result.after}, {result.present} in the ledger")
    display.say(f"{'go on':<20} {again}")


def merge(
    context: typer.Context,
    studies: Annotated[
        list[str], typer.Argument(metavar="STUDY STUDY...", help="Names of studies, or folders.")
    ],
    into: Annotated[
        str | None, typer.Option("--into", metavar="NAME", help="Name of the new study.")
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            "--prefer", metavar="STUDY", help="Whose rows are taken where two have other results."
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Join studies of one experiment that ran in several places; those stay as they are."""
    from orchestrator import merging
    from orchestrator.study import Study, studies_root

    opened = [Study.open(study, root) for study in studies]
    name = into or f"{opened[0].name}-merged"
    merged = merging.merge(opened, name, studies_root(root), command=context.obj, prefer=prefer)
    new = merged.study
    if as_json:
        document: dict[str, Any] = {"study": new.name, "path": str(new.path)}
        document |= {"rows": dict(merged.rows), "doubled": merged.doubled}
        document |= {"asked": merged.asked, "present": merged.present}
        display.say_json({**document, "unchecked": merged.unchecked})
        return
    taken = ", ".join(f"{count} of {source}" for source, count in merged.rows.items())
    lines = {"study": f"{new.name} in {short(Path(new.path))}", "rows": taken}
    if merged.doubled:
        lines["in both"] = f"{merged.doubled}, with equal results or by --prefer"
    lines["complete"] = f"{merged.present} of the {merged.asked} rows that it asks for"
    if merged.present < merged.asked:
        lines["go on"] = resume_command(new.name, new.root)
    lines["browse"] = f"nas sync {new.name}"
    for key, value in lines.items():
        display.say(f"{key:<12} {value}")
    if merged.unchecked:
        display.note(f"Not checked whether all saw the same images: {merged.unchecked}.")


def archive(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A folder, or s3://bucket/folder and the like.")
    ],
    restore: Annotated[
        bool, typer.Option("--restore", help="Bring the study back from there.")
    ] = False,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Copy a study to a place for keeping, verified by digest; go on if that was cut off."""
    from orchestrator import archiving
    from orchestrator.study import Study, studies_root

    if restore:
        done = archiving.restore(target, study, studies_root(root), display.note)
    else:
        done = archiving.archive(Study.open(study, root), target, display.note)
    if as_json:
        document = {"study": study, "place": done.place, "files": done.files, "bytes": done.size}
        display.say_json({**document, "copied": done.sent, "restored": restore})
        return
    was = f"{done.files - done.sent} were there already" if done.sent < done.files else "all copied"
    display.say(f"{done.place}: {done.files} files, {show_bytes(done.size)}, {was}; verified")


def stop(
    study: StudyName,
    seconds: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0.0, help="How long to wait for it.")
    ] = 120.0,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Stop a study that runs, here or on another host; all epochs that were done are kept.

    Exit code 1: it was asked, and has not stopped yet.
    """
    from orchestrator import stopping
    from orchestrator.study import Study

    opened = Study.open(study, root)
    holder = opened.holder()
    stopped, signalled = True, False
    if holder is not None:
        signalled = stopping.request(opened, holder)
        stopped = stopping.wait(opened, holder, seconds)
    kept = _kept(opened)
    if as_json:
        said = {"was_running": holder is not None, "stopped": stopped, "signalled": signalled}
        display.say_json({"study": opened.name, **said, **kept})
    elif holder is None:
        display.say(f"{opened.name} is not running.")
    elif stopped:
        display.say(f"{opened.name} has stopped.")
    if not as_json:
        display.say(f"kept    {kept['rows']} rows, {kept['begun']} begun ({kept['epochs']} epochs)")
        display.say(f"go on   {resume_command(opened.name, opened.root)}")
    if not stopped and holder is not None:
        display.note(
            f"{opened.name} has been asked to stop and still runs (pid {holder.pid} on "
            f"{holder.host}). It looks every second while trials run; `nas status {opened.name}` "
            f"says when it has ended. On {holder.host}, `kill -9 {holder.pid}` ends it at once and "
            "loses no more than the epochs in progress."
        )
        raise typer.Exit(TRIALS_FAILED)


def _kept(study: Study) -> dict[str, int]:
    """Return what a study has: its rows, those begun, and the epochs of these."""
    begun = study.partial_rows()
    epochs = sum(row.epochs_done for row in begun)
    return {"rows": len(study.ledger.keys()), "begun": len(begun), "epochs": epochs}


def _value(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
