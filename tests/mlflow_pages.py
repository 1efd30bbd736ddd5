"""MLflow's pages on a store, opened in headless Chromium; the pictures of docs/mlflow.md.

`python -m tests.mlflow_pages STUDY ROOT FOLDER` writes the pictures of a study that `nas sync` has
sent to the store of the folder ROOT; with `compare` behind it, that of twenty runs compared alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from mlflow import MlflowClient
from PIL import Image

from orchestrator.commands_study import _UI_ENVIRONMENT, ui_arguments
from orchestrator.tracking_location import default_uri
from tests import browser

_SECONDS = 120
_WIDTH, _HEIGHT = 1280, 720
_COLOURS = 128
_ML = "workflowType=machine_learning"
# What a picture need not show: an assistant that is no part of the study.
_CLOSE = 'document.querySelector(\'[aria-label="Close"], button[aria-label*="lose assistant"]\')'

_HIDE_PATH = """
[...document.querySelectorAll('*')].filter(e => /^\\s*(Path:)?\\s*file:/.test(e.textContent)
  && e.textContent.length < 400).forEach(e => { e.style.visibility = 'hidden'; })
"""


@contextlib.contextmanager
def server(uri: str) -> Iterator[str]:
    """Have MLflow's pages as `nas ui` serves them, and give their address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        ui_arguments(uri, port), env={**os.environ, **_UI_ENVIRONMENT}, **quiet
    )
    try:
        end = time.monotonic() + _SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError("MLflow's server does not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def table(address: str, experiment_id: str, search: str) -> str:
    """Return the address of the runs of an experiment that a search string finds."""
    return f"{address}/#/experiments/{experiment_id}/runs?searchFilter={quote(search)}&{_ML}"


def run(address: str, experiment_id: str, run_id: str, tab: str = "") -> str:
    """Return the address of a run."""
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}{tab}?{_ML}"


def comparison(address: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the address of the page that compares runs."""
    runs, experiments = (quote(json.dumps(each)) for each in (list(run_ids), [experiment_id]))
    return f"{address}/#/compare-runs?runs={runs}&experiments={experiments}&{_ML}"


def _open(page: browser.Page, address: str, sign: str) -> None:
    page.ask("Page.navigate", url="about:blank")
    page.open(address)
    page.wait(f"document.body.innerText.includes({json.dumps(sign)})", _SECONDS)
    time.sleep(2)
    if page.run(f"Boolean({_CLOSE})"):
        page.click(_CLOSE)
        time.sleep(1)


def _named(elements: str, text: str) -> str:
    return (
        f"[...document.querySelectorAll('{elements}')].find(e => e.innerText.trim() === '{text}')"
    )


def _take(page: browser.Page, path: Path) -> None:
    page.photograph(path)
    with Image.open(path) as shot:
        shot.convert("RGB").quantize(_COLOURS).save(path, optimize=True)


@contextlib.contextmanager
def _opened(study: str, root: Path) -> Iterator[tuple[str, browser.Page, MlflowClient, str]]:
    """Give the server's address, a page, a client, and the id of a study's experiment."""
    with server(default_uri(root)) as address, browser.page() as page:
        client = MlflowClient(address, address)
        experiment = client.get_experiment_by_name(study)
        assert experiment is not None
        page.size(_WIDTH, _HEIGHT)
        yield address, page, client, experiment.experiment_id


def pictures(study: str, root: Path, folder: Path) -> None:
    """Write the pictures of docs/mlflow.md."""
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(study, root) as (address, page, client, at):
        order = ["metrics.`search/val_accuracy` DESC"]
        searches = client.search_runs([at], "tags.stage = 'search'", order_by=order)
        (parent,) = client.search_runs([at], "tags.stage = 'study'")
        found = table(address, at, "tags.stage = 'search'")
        _open(page, found, f"{len(searches) + 1} matching runs")
        page.click("document.querySelector('.ag-row button')")  # the study's searches
        page.wait("document.body.innerText.includes('seed')", _SECONDS)
        _take(page, folder / "runs.png")
        _open(page, f"{found}&compareRunsMode=CHART", "Group by")
        page.click(_named("button", "Group by"))
        page.click(_named("[role=menuitemcheckbox], [role=menuitem], label", "label"))
        page.ask("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape")
        page.click("document.querySelector('input[placeholder=\"Search metric charts\"]')")
        page.ask("Input.insertText", text="search/val")
        page.wait(
            "document.querySelectorAll('.js-plotly-plot .scatterlayer path').length > 8", _SECONDS
        )
        time.sleep(2)
        _take(page, folder / "grouped.png")
        _open(page, run(address, at, parent.info.run_id), "Show more")
        page.click(_named("button", "Show more"))
        time.sleep(1)
        _take(page, folder / "study.png")
        shown = "/artifacts/report/report.html"
        _open(page, run(address, at, parent.info.run_id, shown), "report.html")
        time.sleep(4)
        page.run(_HIDE_PATH)  # where the files are is of no interest to anybody else
        _take(page, folder / "artifacts.png")
        _open(page, run(address, at, searches[0].info.run_id), "Description")
        page.click(_named("button", "Show more"))
        page.wait("Boolean(document.querySelector('img[src*=cell]')?.naturalWidth)", _SECONDS)
        _take(page, folder / "run.png")


def compared(study: str, root: Path, folder: Path) -> None:
    """Write the picture of twenty runs compared, those of the study's first configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(study, root) as (address, page, client, at):
        # One seed each would be nine runs of this study's grid: seeds of all configurations.
        order = ["tags.seed ASC"]
        searches = client.search_runs([at], "tags.stage = 'search'", order_by=order)
        chosen = [each.info.run_id for each in searches[:20]]
        _open(page, comparison(address, at, chosen), "Comparing 20 Runs")
        page.wait("document.querySelectorAll('.js-plotly-plot .axis-heading').length > 2", _SECONDS)
        _take(page, folder / "compare.png")


if __name__ == "__main__":
    make = compared if sys.argv[4:] == ["compare"] else pictures
    make(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
