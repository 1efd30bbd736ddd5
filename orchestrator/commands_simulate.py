"""The command that tries a study out in a benchmark table before it is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands_run import DEFAULT_ROOT, Json, Overrides, Root, finish, training


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`."""
    app.command(
        epilog="Example: nas simulate experiments/simulate/asha_nasbench201.yaml --no-ray",
    )(simulate)


def simulate(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An experiment, in YAML, that names an oracle.")
    ],
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the study.")] = None,
    root: Root = DEFAULT_ROOT,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="Run all trials in this process, by a simulated clock.")
    ] = False,
    response: Annotated[
        str | None,
        typer.Option(
            "--response",
            metavar="NAME",
            help="A made-up effect of what is drawn, said in every output: middle. None otherwise.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try a study out: the whole pipeline, with a table's records in the place of training."""
    from orchestrator import config, simulating

    loaded = config.load_experiment(file, overrides or (), name)
    experiment = simulating.simulated(loaded, ray=not no_ray, response=response)
    simulating.check_table(experiment)
    config.check_methods(experiment)
    from orchestrator import runner

    with training(experiment.name, root) as reporter:
        outcome = runner.run_study(experiment, root, command=context.obj, reporter=reporter)
    finish(outcome, root, as_json)
