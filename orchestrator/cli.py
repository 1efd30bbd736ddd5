"""The `nas` command. Heavy libraries are imported inside the commands that need them."""

from __future__ import annotations

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
    commands_fleet,
    commands_logs,
    commands_look,
    commands_run,
    commands_simulate,
    commands_study,
)
from orchestrator.commands_run import INTERRUPTED, USER_ERROR
from orchestrator.display import note, say
from orchestrator.errors import NO_ROOM
from orchestrator.problems import plain_text
from spaces.core.errors import NasError
from spaces.core.plugins import ENVIRONMENT_VARIABLE

_LONGEST_LINE = 1000

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
commands_fleet.add_to(app)
commands_logs.add_to(app)
commands_analysis.add_to(app)
commands_look.add_to(app)
commands_export.add_to(app)
commands_data.add_to(app)
commands_bench.add_to(app)


def _shown(line: str) -> str:
    """Return a line of a message as a terminal can show it: it may quote a file of any content."""
    line = plain_text(line)
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


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

    Exit codes: 0 good, 1 trials failed, 2 wrong input, 130 interrupted, 75 stopped by SIGTERM or
    SIGUSR1 and to be gone on with. Progress goes to stderr, results to stdout.
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
        note("\n".join(map(_shown, str(error).splitlines())))
        raise SystemExit(USER_ERROR) from None
    except PermissionError as error:
        note(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}.")
        raise SystemExit(USER_ERROR) from None
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        found = "no folder" if isinstance(error, NotADirectoryError) else "there already"
        found = "a folder" if isinstance(error, IsADirectoryError) else found
        note(f"{error.filename or 'a file'} cannot be used: it is {found}. Move it away.")
        raise SystemExit(USER_ERROR) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        note(f"{error.filename or 'a file'} cannot be written: {error.strerror}.")
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt:
        note("Interrupted.")
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
