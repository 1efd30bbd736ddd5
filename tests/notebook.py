"""Runs a notebook of the docs. `python -m tests.notebook FILE` stores its outputs.

What differs between two runs or machines is left out of what is stored: execution times, the words
of stderr, and the version of Python.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import nbformat

_SECONDS = 300


def execute(path: Path) -> Any:
    """Return the notebook with the outputs of a new run, its own ones gone.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    packages = str(path.resolve().parents[1])
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
    }
    client = NotebookClient(
        notebook, timeout=_SECONDS, kernel_name="python3", coalesce_streams=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter, about its own folders
        asyncio.run(client.async_execute(env={**os.environ, **paths}))
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def texts(notebook: Any) -> list[str]:
    """Return the words of each output, one blank apart."""
    return [
        " ".join(str(output.get("text") or output.get("data", {}).get("text/plain", "")).split())
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]


if __name__ == "__main__":
    file = Path(sys.argv[1])
    nbformat.write(execute(file), file)
