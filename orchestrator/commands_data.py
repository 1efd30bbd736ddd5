"""Commands on datasets: get one, and look which are there."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import display
from orchestrator.commands_run import TRIALS_FAILED, Json
from orchestrator.dataset_paths import PATH_SETTINGS, offers
from orchestrator.statistics import show_bytes
from spaces.core import plugins
from spaces.core.errors import NasError
from trainables.errors import DataError
from trainables.official_files import prepare_command

DataRoot = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="Folder that holds the datasets.")
]
DEFAULT_DATA_ROOT = Path("data")
_DOWNLOAD_S = 6 * 3600.0
# What YAML reads as text without quotation marks, and the words that it does not.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`, as `nas data ...`."""
    data = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="rich",
        help="Get datasets; look which are there.",
    )
    data.command(epilog="Example: nas data prepare cifar10 --root data")(prepare)
    data.command(epilog="Example: nas data status --root data")(status)
    app.add_typer(data, name="data", epilog="Example: nas data prepare cifar10")


def prepare(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="As nas list datasets says.")],
    root: DataRoot = DEFAULT_DATA_ROOT,
    all_nodes: Annotated[
        bool, typer.Option("--all-nodes", help="On every node of a Ray cluster, at the same path.")
    ] = False,
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="Of that cluster.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Download a dataset unless it is there, and verify its checksums.

    It can be run again, interrupted, and run from several processes at once. Trials never download.
    """
    _check_root(root)
    fields = _settings(dataset)
    paths = [name for name in PATH_SETTINGS if name in fields]
    if not offers(dataset, "prepare"):
        if paths:
            listed = " and ".join(f"dataset.{name}" for name in sorted(paths, reverse=True))
            raise NasError(
                f"{dataset} reads files of your own: nothing can be downloaded. Set {listed} in "
                "the experiment; docs/datasets.md says what must lie there."
            )
        _show_nothing_needed(dataset, as_json)
        return
    if all_nodes:
        _prepare_everywhere(dataset, root.expanduser().absolute(), address, as_json)
        return
    settings = {"name": dataset} | ({"root": str(root)} if "root" in fields else {})
    config = plugins.make_config("datasets", settings)[1]
    module = plugins.load("datasets", dataset)
    folder = module.prepare(config)
    size = _size(module.files(config)) if hasattr(module, "files") else None
    if as_json:
        display.say_json(
            {"dataset": dataset, "folder": str(folder), "bytes": size, "settings": settings}
        )
        return
    shown = "" if size is None else f" ({show_bytes(size)})"
    display.say(f"{dataset} is ready in {folder}{shown}. In an experiment:")
    display.say(_yaml_line(settings))


def _prepare_everywhere(dataset: str, root: Path, address: str, as_json: bool) -> None:
    from orchestrator import cluster_nodes, sweep

    settings = {"name": dataset} | ({"root": str(root)} if "root" in _settings(dataset) else {})
    with sweep.cluster(address, None, Path(os.devnull)):
        nodes = cluster_nodes.prepare_everywhere(dataset, settings, _DOWNLOAD_S)
    failed = [name for name, _, error in nodes if error is not None]
    if as_json:
        found = [{"node": name, "folder": f or None, "error": e} for name, f, e in nodes]
        display.say_json({"dataset": dataset, "settings": settings, "nodes": found})
    else:
        rows = [(name, "bad" if e else "ready", e or folder) for name, folder, e in nodes]
        display.say_table(display.table(("node", "state", "found"), rows))
        if not failed:
            display.say(_yaml_line(settings))
    if failed:
        raise typer.Exit(TRIALS_FAILED)


def status(root: DataRoot = DEFAULT_DATA_ROOT, as_json: Json = False) -> None:
    """List the datasets that can be prepared, with what of them is in a folder."""
    _check_root(root)
    found = [
        _state(name, root)
        for name in plugins.available("datasets")
        if offers(name, "prepare") and offers(name, "files") and "root" in _settings(name)
    ]
    if as_json:
        display.say_json(found)
        return
    rows = [
        (
            state["dataset"],
            state["state"],
            "" if state["bytes"] is None else show_bytes(state["bytes"]),
            state["digest"] or "",
            state["get"] or "",
        )
        for state in found
    ]
    display.say_table(display.table(("dataset", "state", "size", "digest", "to get it"), rows))


def _state(name: str, root: Path) -> dict[str, Any]:
    """Return what is there of a dataset: "there", "damaged" or "missing"."""
    module = plugins.load("datasets", name)
    config = plugins.make_config("datasets", {"name": name, "root": str(root)})[1]
    state: dict[str, Any] = {"dataset": name, "state": "missing", "bytes": None, "digest": None}
    state["get"] = prepare_command(name, root)
    try:
        state["bytes"] = _size(module.files(config))
        state["state"] = "damaged"
        state["digest"] = module.digest(config)
    except DataError:
        return state
    return state | {"state": "there", "get": None}


def _check_root(root: Path) -> None:
    """Raise NasError for a path that no folder can have."""
    try:
        root.expanduser().is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise NasError(f"--root must be a folder, got {str(root)!r}: {error}.") from error


def _settings(dataset: str) -> set[str]:
    config = plugins.describe("datasets", dataset).config
    return {field.name for field in dataclasses.fields(config)}


def _size(files: tuple[Path, ...]) -> int:
    return sum(path.stat().st_size for path in files)


def _show_nothing_needed(dataset: str, as_json: bool) -> None:
    settings = {"name": dataset}
    if as_json:
        display.say_json({"dataset": dataset, "folder": None, "bytes": None, "settings": settings})
        return
    display.say(f"{dataset} needs no files: nothing is to be done. In an experiment:")
    display.say(_yaml_line(settings))


def _yaml_line(settings: dict[str, str]) -> str:
    """Return the line of an experiment file that chooses a dataset with these settings."""
    if len(settings) == 1:
        return f"dataset: {settings['name']}"
    return f"dataset: {{{', '.join(f'{key}: {_text(value)}' for key, value in settings.items())}}}"


def _text(value: str) -> str:
    """Return a text as YAML reads it; JSON's quotation marks are YAML's too."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)
