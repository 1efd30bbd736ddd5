"""Commands that train: run, resume, retrain."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import display, notices, oracle_report, results
from orchestrator.budget import read_spending
from orchestrator.genotypes import find_genotype, find_with_space, is_file
from orchestrator.progress import Estimate, Outcome, Reporter
from spaces.core.errors import NasError

if TYPE_CHECKING:
    from orchestrator.config import Experiment
    from orchestrator.oracle_report import OracleView
    from orchestrator.report import Report
    from orchestrator.study import Study
    from spaces.core.genotype import Genotype

GOOD, TRIALS_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the same again later
DEFAULT_ROOT = Path("studies")
_DARTS_STACKS = {"darts", "s1", "s2", "s3", "s4"}  # a retraining's settings mean the same in them
_MOST_LINES = 200  # nobody reads more on a terminal
_BEST_LINES = 20

Root = Annotated[
    Path,
    typer.Option("--root", metavar="DIR", envvar="NAS_ROOT", help="Folder that holds the studies."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as search.epochs=5."),
]


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`."""
    app.command(epilog="Example: nas run experiments/quickstart.yaml --set search.epochs=5")(run)
    app.command(epilog="Example: nas resume quickstart")(resume)
    app.command(epilog="Example: nas retrain cell.json --like quickstart --set retrain.epochs=20")(
        retrain
    )


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An experiment, in YAML.")],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the study.")] = None,
    root: Root = DEFAULT_ROOT,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show trials, resources, time and disk; start nothing."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Search, retrain and report what an experiment file describes."""
    from orchestrator import config

    experiment = config.load_experiment(file, overrides or (), name)
    config.check_real(experiment)
    config.check_hardware(experiment)
    config.check_oracle(experiment)
    config.check_data(experiment)
    config.check_methods(experiment)
    config.check_limits(experiment)
    if dry_run:
        from orchestrator.estimate import estimate

        _show_estimate(experiment, estimate(experiment, root), as_json)
        return
    from orchestrator import runner

    with training(experiment.name, root) as reporter:
        outcome = runner.run_study(experiment, root, command=context.obj, reporter=reporter)
    finish(outcome, root, as_json)


def resume(
    context: typer.Context,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name or folder of a study.")],
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Go on with a study that was stopped, killed or cut off; finished rows are not run again."""
    opened = _open(study, root)
    from orchestrator import runner

    with training(opened.name, opened.root) as reporter:
        outcome = runner.resume_study(opened, command=context.obj, reporter=reporter)
    finish(outcome, opened.root, as_json)


def retrain(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|GENOTYPE",
            help="A study, whose best genotypes are trained; or a genotype: a file, its official "
            "text, or a name.",
        ),
    ],
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="FILE|STUDY",
            help="For a genotype: the experiment whose dataset and retrain settings it takes.",
        ),
    ] = None,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the new study, for a genotype.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Train genotypes from scratch and read the test split once."""
    from orchestrator.study import Study

    is_study = _is_study(what, root)
    if is_study and (like or overrides or name):
        raise NasError(
            f"--like, --set and --name are for a genotype; {what} is a study and is retrained as "
            "its experiment says."
        )
    if is_study:
        from orchestrator import runner

        study = Study.open(what, root)
        with training(study.name, study.root) as reporter:
            outcome = runner.retrain_study(study, command=context.obj, reporter=reporter)
        finish(outcome, study.root, as_json)
        return
    if like is None:
        raise NasError(
            f"{what} is no study in {root}, and to retrain a genotype takes --like FILE: the "
            "experiment whose space, dataset and retrain settings are used."
        )
    from orchestrator import config

    file = Study.open(like, root).experiment_file if _is_study(like, root) else Path(like)
    genotype = find_with_space(what)
    own = [] if genotype is None else _own_network(what, genotype, file)
    experiment = config.load_experiment(file, [*own, *(overrides or ())], name)
    config.check_real(experiment)
    space = experiment.settings("space")["name"]
    if genotype is None:
        genotype = find_genotype(what, space)
    if genotype.space != space:
        raise NasError(
            f"{what} is a genotype of space '{genotype.space}', and {like} has space '{space}': "
            f"give --like an experiment in '{genotype.space}', or --set space={genotype.space}."
        )
    if name is None:
        experiment = experiment.model_copy(update={"name": f"retrain-{genotype.hash}"})
    config.check_hardware(experiment)
    config.check_data(experiment)
    from orchestrator import checks, costs, runner

    checks.check_network(experiment, checks.space_of(experiment), genotype)
    costs.check_genotype(experiment, genotype)
    with training(experiment.name, root) as reporter:
        outcome = runner.retrain_genotype(
            genotype, experiment, root, command=context.obj, reporter=reporter
        )
    finish(outcome, root, as_json)


def _own_network(what: str, genotype: Genotype, file: Path) -> list[str]:
    """Return what puts a genotype's space, and its published size, in the place of an experiment's.

    What the file says of the size holds, and so does its space unless settings of a retraining mean
    the same in that of the genotype, or the genotype says its stack itself.
    """
    from orchestrator import config
    from spaces.core.named import network_of
    from spaces.core.rebuilding import space_settings

    document = config.read_document(file)
    space, given = document.get("space"), document.get("retrain")
    name = space.get("name") if isinstance(space, Mapping) else space
    alike = genotype.stack or {name, genotype.space} <= _DARTS_STACKS
    words = []
    if name != genotype.space and alike:
        words.append(f"space={json.dumps(space_settings(genotype))}")
    if isinstance(given, Mapping) and "consistent" not in (given.get("protocol"), *given):
        size = {key: network_of(what).get(key) for key in ("channels", "cells")}
        words += [f"retrain.{key}={n}" for key, n in size.items() if n and key not in given]
    return words


def resume_command(study_name: str, root: Path) -> str:
    """Return the command that goes on with a study, ready to be pasted."""
    words = ["nas", "resume", study_name]
    if root.resolve() != DEFAULT_ROOT.resolve():
        words += ["--root", str(short(root))]
    return shlex.join(words)


def short(path: Path) -> Path:
    """Return the path as seen from the current folder where it is below it, else unchanged."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def ui_command(study: Study) -> str:
    """Return the command that opens MLflow's pages on the store of a study."""
    words = ["nas", "ui"]
    if study.experiment.mlflow.tracking_uri is not None:
        words.append(study.name)
    if study.root.resolve() != DEFAULT_ROOT.resolve():
        words += ["--root", str(short(study.root))]
    return shlex.join(words)


def _is_study(text: str, root: Path) -> bool:
    from orchestrator.study import studies

    return text in studies(root) or is_file(Path(text) / "study.json")


def _open(study: str, root: Path) -> Study:
    from orchestrator.study import Study

    return Study.open(study, root)


@contextmanager
def training(study_name: str, root: Path) -> Iterator[Reporter]:
    """Give a display; a Ctrl-C ends it and says how to go on."""
    reporter = display.reporter()
    reporter.message(f"study {study_name} in {short((root / study_name).absolute())}")
    try:
        yield reporter
    except KeyboardInterrupt as stop:
        reporter.close()
        asked = str(stop) or None  # of a StoppedError
        display.note(f"{_stopped(asked)} Go on with: {resume_command(study_name, root)}")
        raise typer.Exit(_code_of(asked)) from None
    finally:
        reporter.close()


def finish(outcome: Outcome, root: Path, as_json: bool) -> None:
    """Write the report, print the table and where to look next, and exit."""
    from orchestrator import tracking
    from orchestrator.report import update_report

    study = _open(outcome.study_name, root)
    report = update_report(study)
    tracking.send_later(study, tracking.tracking_uri(study.experiment, study.root))
    failed = outcome.failed + outcome.diverged
    if as_json:
        document = dataclasses.asdict(outcome)
        said = notices.marks(study.experiment)
        table = report.to_json()
        display.say_json({**said, **document, "report": str(report.markdown), "table": table})
    else:
        show_results(report, notices.notices(study.experiment))
        display.say(f"report  {short(report.html)}")
        display.say(f"browse  {ui_command(study)}")
    if failed:
        display.note(f"{failed} rows failed or diverged: the report says why.")
    spending = read_spending(study.path)
    if spending is not None:
        again = resume_command(study.name, root)
        where = short(study.experiment_file)
        display.note(f"{spending} To run them: raise retrain.budget_hours in {where}, then {again}")
    if outcome.interrupted:
        by = outcome.stopped_by
        why = "The study is not complete." if by is None else _stopped(by)
        display.note(f"{why} Go on with: {resume_command(study.name, root)}")
        raise typer.Exit(_code_of(by))
    raise typer.Exit(TRIALS_FAILED if failed else GOOD)


def _stopped(by: str | None) -> str:
    return f"Stopped by {by}." if by not in (None, "Ctrl-C") else "Interrupted."


def _code_of(stopped_by: str | None) -> int:
    """Return the exit code of an incomplete study; what a batch system ended it may run again."""
    return REQUEUE if stopped_by in ("SIGTERM", "SIGUSR1") else INTERRUPTED


def show_results(report: Report, said: Sequence[str] = ()) -> None:
    """Print the tables of results on stdout, below what has to be said of them first.

    Of a study of thousands only the best by validation accuracy are shown.
    """
    for sentence in said:
        display.say(sentence)
        display.say("")
    lines = list(report.results)
    if len(lines) > _MOST_LINES:
        lines.sort(key=lambda line: line.accuracy.mean or 0.0, reverse=True)
        lines = lines[:_BEST_LINES]
        display.say(f"The best {len(lines)} of {len(report.results):,}; all are in the report.")
    _show_lines(results.columns(lines), [line.cells() for line in lines], results.NUMERIC)
    _show_oracle(report.oracle, [line.label for line in lines])


def _show_oracle(shown: OracleView, labels: Sequence[str]) -> None:
    """Print the true accuracies of lines on stdout; why there are none on stderr."""
    if shown.reason:
        display.note(shown.reason)
    known = {line.label: line for line in shown.lines}
    lines = [known[label] for label in labels if label in known]
    if lines:
        if shown.simulated:
            display.say("True accuracy of what the simulated searches found")
        columns = oracle_report.COLUMNS
        _show_lines(columns, [line.cells() for line in lines], columns[2:])


def _show_lines(
    columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[str]
) -> None:
    display.say_table(display.table(columns, cells, numeric=numeric))
    display.say("")


def _show_estimate(experiment: Experiment, estimate: Estimate, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = dataclasses.asdict(estimate)
        display.say_json({"experiment": experiment.resolved(), **document})
        return
    display.say("\n".join(display.outline(experiment.resolved())))
    display.say("")
    rows = [
        (trial.label, str(trial.seed), trial.config_id, "in the ledger" if trial.cached else "new")
        for trial in estimate.trials
    ]
    display.say_table(display.table(("trial", "seed", "configuration", ""), rows))
    display.say("")
    for line in display.estimate_lines(estimate):
        display.say(line)
