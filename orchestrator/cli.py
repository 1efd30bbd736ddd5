"""The `nas` command. Heavy libraries are imported inside the commands that need them."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import (
    commands_analysis,
    commands_bench,
    commands_data,
    commands_export,
    commands_look,
    commands_run,
    commands_simulate,
    commands_study,
)
from orchestrator.commands_run import INTERRUPTED, USER_ERROR
from orchestrator.display import note, say
from spaces.core.errors import NasError
from spaces.core.plugins import ENVIRONMENT_VARIABLE

_DISK = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}

app = typer.Typer(
    name="nas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: nas run experiments/quickstart.yaml",
)
commands_run.add_to(app)
commands_simulate.add_to(app)
commands_study.add_to(app)
commands_analysis.add_to(app)
commands_look.add_to(app)
commands_export.add_to(app)
commands_data.add_to(app)
commands_bench.add_to(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"nas {distribution_version('nas-orchestrator')}")
        raise typer.Exit


@app.callback()
def options(
    plugins: Annotated[
        list[Path] | None,
        typer.Option(
            "--plugins",
            metavar="DIR",
            help="Folder with methods/, spaces/, datasets/ and so on of your own; repeatable.",
        ),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
) -> None:
    """Differentiable architecture search: one file in, a table of results out.

    Exit codes: 0 good, 1 trials failed, 2 wrong input, 130 interrupted. Progress goes to stderr,
    results to stdout.
    """
    if not plugins:
        return
    for folder in plugins:
        if not folder.is_dir():
            raise NasError(f"--plugins must name a folder, got {folder}, which is not one.")
    # The environment, because Ray's workers are fresh processes that inherit it.
    folders = [str(folder.expanduser().resolve()) for folder in plugins]
    inherited = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = os.pathsep.join(folders + ([inherited] if inherited else []))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `nas` command and exit the process.

    Args:
        arguments: Words after `nas`; None takes them from the command line.

    Raises:
        SystemExit: Always, with the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=words, prog_name="nas", obj=shlex.join(["nas", *words]))
    except NasError as error:
        note(str(error))
        raise SystemExit(USER_ERROR) from None
    except PermissionError as error:
        note(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}.")
        raise SystemExit(USER_ERROR) from None
    except OSError as error:
        if error.errno not in _DISK:
            raise
        note(f"{error.filename or 'a file'} cannot be written: {error.strerror}.")
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        note("Interrupted.")
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
