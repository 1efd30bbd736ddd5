"""Commands on the folder of a study: status, report, clean, sync, ui."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import (
    display,
    history,
    node_load,
    notices,
    population_report,
    results,
    standing,
)
from orchestrator.budget import read_spending
from orchestrator.commands_run import (
    DEFAULT_ROOT,
    TRIALS_FAILED,
    Json,
    Root,
    resume_command,
    short,
    show_results,
)
from orchestrator.errors import StudyError
from orchestrator.population_file import snapshots
from orchestrator.statistics import show_bytes, show_time

if TYPE_CHECKING:
    from orchestrator.reconciling import Finding
    from orchestrator.study import Study

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="Name of a study, or path of its folder.")
]
HOST = "127.0.0.1"
_KEYS_SHOWN = 3
# Pages alone: no job runner (a second process of 230 MB) and no word to anybody outside.
_UI_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`."""
    app.command(epilog="Example: nas status quickstart")(status)
    app.command(epilog="Example: nas report quickstart")(report)
    app.command(epilog="Example: nas select quickstart --rule operation_strength")(select)
    app.command(epilog="Example: nas landscape quickstart")(landscape)
    app.command(epilog="Example: nas clean quickstart --dry-run")(clean)
    app.command(epilog="Example: nas sync quickstart --rebuild")(sync)
    app.command(epilog="Example: nas ui --port 5001")(ui)


def status(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; none lists them all.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again until the study ends.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.5, help="How often, with --watch.")
    ] = 5.0,
    as_prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Numbers for Prometheus, of one study or all.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Where --prometheus writes; *.prom."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where a study stands, or list all studies of a folder."""
    from orchestrator.study import Study, studies

    if as_prometheus or out is not None:
        if not as_prometheus or watch or as_json:
            raise StudyError("-o goes with --prometheus, and that without --watch and --json.")
        _give_to_prometheus([study] if study is not None else studies(root), root, out)
        return
    if watch:
        if study is None or as_json:
            raise StudyError("--watch needs a STUDY, and goes without --json.")
        _watch(study, root, every)
        return
    if study is not None:
        state = study_state(Study.open(study, root))
        if as_json:
            display.say_json(state)
        else:
            _show_state(state)
        return
    states = [study_state(Study.open(name, root)) for name in studies(root)]
    if as_json:
        display.say_json(states)
        return
    if not states:
        display.say(f"No study in {root}. Start one with: nas run experiments/quickstart.yaml")
        return
    rows = [
        (
            state["name"],
            _state(state),
            _counts(state["search"]),
            _counts(state["retrain"]),
            _best(state),
        )
        for state in states
    ]
    display.say_table(display.table(("study", "state", "searches", "retrainings", "best"), rows))


def _give_to_prometheus(names: Sequence[str], root: Path, out: Path | None) -> None:
    from orchestrator import prometheus
    from orchestrator.study import Study

    text = prometheus.exposition(study_state(Study.open(name, root)) for name in names)
    if out is None:
        sys.stdout.write(text)
    else:
        prometheus.write(text, out)


def _watch(study: str, root: Path, every: float) -> None:
    """Show a study until nobody runs it; on a terminal in place, else one block after another."""
    from orchestrator.study import Study

    while True:
        state = study_state(Study.open(study, root))
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[2J")
        _show_state(state)
        sys.stdout.flush()
        if state["state"] != "running":
            return
        if not sys.stdout.isatty():
            display.say("")
        time.sleep(every)


def study_state(study: Study) -> dict[str, Any]:
    """Return where a study stands, as plain JSON."""
    summary = study.summary()
    progress = study.read_progress()
    open_rows = any(counts.get("interrupted") for counts in summary.counts.values())
    if summary.holder is not None:
        state = "running"
    elif open_rows or progress.get("done", 0) < progress.get("total", 0) or not study.rows():
        state = "incomplete"
    else:
        state = "complete"
    best = summary.best
    spending = read_spending(study.path)
    stands = standing.standing(study.rows(), study.partial_rows(), study=study.path)
    return {
        "name": study.name,
        **notices.marks(study.experiment),
        "state": state,
        "path": str(study.path),
        "created": study.created,
        "command": study.command,
        "search": summary.counts.get("search", {}),
        "retrain": summary.counts.get("retrain", {}),
        "metric": study.experiment.metric_of(study.experiment.trainable),
        "best": summary.best_value,
        "best_label": None if best is None else results.row_label(best),
        "best_seed": None if best is None else best.seed,
        "holder": None if summary.holder is None else dataclasses.asdict(summary.holder),
        "populations": _populations(study),
        "left_out": 0 if spending is None else len(spending.left_out),
        "progress": progress if summary.holder is not None else None,
        "resume": resume_command(study.name, study.root) if state == "incomplete" else None,
        "nodes": _nodes(study) if summary.holder is not None else [],
        "damaged": study.ledger.lost(),
        "standing": stands.to_json(),
        "extended": [entry.time for entry in history.read(study)],
    }


def _populations(study: Study) -> list[str]:
    """Return a line on each population of a study; often none."""
    if study.experiment.tune.pbt is None:
        return []
    metric = study.experiment.tune.metric
    return [
        f"{each.label} seed {each.seed}: {population_report.standing(each, metric)}"
        for each in snapshots(study.path)
    ]


def _nodes(study: Study) -> list[dict[str, Any]]:
    return node_load.to_json(node_load.nodes(study.path))


def _state(state: dict[str, Any]) -> str:
    return f"{state['state']}, simulated" if state["simulated"] else str(state["state"])


def _damaged(keys: Sequence[str]) -> str:
    more = ", ..." if len(keys) > _KEYS_SHOWN else ""
    return (
        f"{len(keys)} rows that could not be read ({', '.join(keys[:_KEYS_SHOWN])}{more}), put "
        "aside in ledger/damaged; nas resume runs them again"
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "–"


def _best(state: dict[str, Any]) -> str:
    if state["best"] is None:
        return "–"
    name, value = display.show_metric(state["metric"], state["best"])
    what = "" if state["metric"].endswith("_accuracy") else f" {name}"
    return f"{value}{what}  {state['best_label']}, seed {state['best_seed']}"


def _show_state(state: dict[str, Any]) -> None:
    lines = [
        ("study", f"{state['name']} ({_state(state)})"),
        ("folder", str(short(Path(state["path"])))),
        ("made", f"{state['created']} by: {state['command']}"),
        ("searches", _counts(state["search"])),
        ("retrainings", _counts(state["retrain"])),
        ("best", _best(state)),
        *_listed("populations", state["populations"]),
    ]
    if state["left_out"]:
        lines.append(("left out", f"{state['left_out']} retrainings, for retrain.budget_hours"))
    if state["damaged"]:
        lines.append(("damaged", _damaged(state["damaged"])))
    holder, progress = state["holder"], state["progress"]
    if holder is not None:
        where = f"pid {holder['pid']} on {holder['host']} since {holder['since']}"
        lines.append(("runs", where))
    if progress:
        said = f"{progress.get('done')} of {progress.get('total')}"
        if progress.get("left_s") is not None:
            said += f", about {show_time(progress['left_s'])} left"
        lines.append(("progress", said))
    lines += _listed("nodes", node_load.lines(state["nodes"]))
    lines += standing.lines(standing.from_json(state["standing"])).items()
    if state["extended"]:
        last = state["extended"][-1]
        lines.append(("extended", f"{len(state['extended'])} times, last {last}; see history/"))
    if state["resume"] is not None:
        lines.append(("go on", state["resume"]))
    for key, value in lines:
        display.say(f"{key:<12} {value}")
    for sentence in state["notices"]:
        display.say(sentence)


def _listed(head: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return lines under one head."""
    return [(head if index == 0 else "", line) for index, line in enumerate(lines)]


def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY [STUDY]", help="A study, or two to compare, by name or path."
        ),
    ],
    html: Annotated[
        bool, typer.Option("--html", help="Print where the page is, and nothing else.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page, renewed while the study runs.")
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of --serve; 0 is any free one.")
    ] = 0,
    host: Annotated[str, typer.Option("--host", help="Address that --serve listens on.")] = HOST,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Write the report of a study, finished or not, and print its table; or compare two."""
    from orchestrator.study import Study

    if len(studies) > 2:
        raise StudyError(f"report takes one study, or two to compare, got {len(studies)}.")
    opened = [Study.open(study, root) for study in studies]
    if serve:
        _serve(opened, host, port, as_json)
    elif len(opened) == 2:
        _compare(opened, html, as_json)
    else:
        _report(opened[0], html, as_json)


def _report(study: Study, html: bool, as_json: bool) -> None:
    from orchestrator.report import write_report

    written = write_report(study)
    if as_json:
        table = written.to_json()
        paths = {"markdown": str(written.markdown), "html": str(written.html)}
        display.say_json({"study": study.name, **notices.marks(study.experiment), **paths, **table})
        return
    if html:
        display.say(str(short(written.html)))
        return
    show_results(written, notices.notices(study.experiment))
    display.say(f"report  {short(written.html)}")


def _compare(studies: Sequence[Study], html: bool, as_json: bool) -> None:
    from orchestrator.comparison_report import write_comparison

    written = write_comparison(studies)
    if as_json:
        paths = {"markdown": str(written.markdown), "html": str(written.html)}
        names = [study.name for study in studies]
        display.say_json({"studies": names, **paths, **written.to_json()})
        return
    if not html:
        for sentence in dict.fromkeys(
            s for each in studies for s in notices.notices(each.experiment)
        ):
            display.say(sentence)
        for stage, lines in written.lines.items():
            display.say("val accuracy %" if stage == "search" else "retrain test accuracy %")
            heads = ("configuration", *(study.name for study in studies), "difference", "")
            cells = [line.cells() for line in lines]
            display.say_table(display.table(heads, cells, numeric=heads[1:4]))
            display.say("")
    display.say(str(short(written.html)) if html else f"report  {short(written.html)}")


def _serve(studies: Sequence[Study], host: str, port: int, as_json: bool) -> None:
    from orchestrator import serving

    if len(studies) > 1 or as_json:
        raise StudyError("--serve shows one study in the browser: leave out the other and --json.")
    with serving.open_server(studies[0], host, port) as server:
        _warn_of_others(host, "read the report")
        # Where a shell started it in the background, SIGINT would be ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        display.say(f"report  {server.url}   (Ctrl-C ends it)")
        sys.stdout.flush()
        server.serve_forever(poll_interval=0.2)


def _warn_of_others(host: str, may: str) -> None:
    """Say on stderr what others may do where a server listens to more than this machine."""
    from orchestrator.serving import is_loopback

    if not is_loopback(host):
        display.note(
            f"{host} is not this machine alone: whoever reaches it can {may}, for there is no "
            "authentication."
        )


def select(
    study: StudyName,
    rule: Annotated[
        str, typer.Option("--rule", help="A selection rule; `nas list selections` has them.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the rule, as variant=signed."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Let another rule choose genotypes from a study's stored supernets; nothing is searched."""
    from orchestrator import selecting
    from orchestrator.config import read_overrides
    from orchestrator.report import write_report
    from orchestrator.study import Study

    opened = Study.open(study, root)
    planned = selecting.plan(opened, {"name": rule, **read_overrides(settings or ())})
    total = len(planned.todo)
    failed = selecting.select(
        opened,
        planned,
        device=device,
        told=lambda count, row: display.note(
            f"{planned.label} {count}/{total}: {results.row_label(row)}, seed {row.seed}"
        ),
    )
    for row, reason in failed:
        display.note(f"{results.row_label(row)}, seed {row.seed}: {reason}")
    if planned.missing:
        display.note(f"{planned.missing} searches have no final.pt and were left out.")
    _send(opened)
    written = write_report(opened)
    if as_json:
        document = written.to_json()
        counts = {"selected": total - len(failed), "failed": len(failed), "before": planned.done}
        document |= notices.marks(opened.experiment)
        display.say_json({"study": opened.name, "rule": planned.name, **counts, **document})
    else:
        show_results(written, notices.notices(opened.experiment))
        display.say(f"train   nas retrain {opened.name}   (the best genotype of each line)")
    if failed:
        raise typer.Exit(TRIALS_FAILED)


def landscape(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="STUDY, the best search of each of its lines, or STUDY:KEY, a row of its ledger.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="PNG to write.")] = Path(
        "landscape.png"
    ),
    size: Annotated[int, typer.Option("--size", min=3, help="Points a side, odd.")] = 11,
    extent: Annotated[
        float, typer.Option("--extent", help="Largest step, in the L2 norm of all alphas.")
    ] = 3.0,
    images: Annotated[int, typer.Option("--images", min=1, help="Most validation images.")] = 1000,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Draw validation loss and accuracy around the final alphas of stored supernets."""
    from orchestrator import landscapes

    if size % 2 == 0 or not 0 < extent < float("inf"):
        raise StudyError(f"--size must be odd and --extent > 0, got {size} and {extent:g}.")
    found = landscapes.find_runs(runs, root)
    measured = landscapes.measure(
        found,
        size=size,
        extent=extent,
        images=images,
        device=device,
        told=lambda count, row: display.note(
            f"{count}/{len(found)}: {results.row_label(row)}, seed {row.seed}"
        ),
    )
    panels = [
        (f"{results.row_label(row)}, seed {row.seed}", row.landscape)
        for _, row in measured
        if row.landscape is not None
    ]
    landscapes.draw(panels, out)
    for study in {study.path: study for study, _ in measured}.values():
        _send(study)
    if as_json:
        rows = {row.key: row.landscape for _, row in measured}
        display.say_json({"drawing": str(out), "landscapes": rows})
    else:
        display.say(f"drawing  {short(out)}")


def _send(study: Study) -> None:
    """Send what is new to MLflow; a store that is down gets it later, from the outbox."""
    from orchestrator import tracking

    uri = tracking.tracking_uri(study.experiment, study.root)
    try:
        tracking.drain(study, uri)
    except tracking.StoreDownError as error:
        display.note(f"MLflow does not answer ({error}); send it later: nas sync {study.name}")


def clean(
    study: StudyName,
    root: Root = DEFAULT_ROOT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove what a study no longer needs; ledger, experiment and final weights stay."""
    from orchestrator import cleaning
    from orchestrator.study import Study

    opened = Study.open(study, root)
    removal = cleaning.removable(opened) if dry_run else cleaning.clean(opened)
    names = [str(path.relative_to(opened.path)) for path in removal.paths]
    if as_json:
        display.say_json({"removed": not dry_run, "bytes": removal.size, "paths": names})
        return
    for name in names:
        display.say(name)
    what = "would be freed" if dry_run else "freed"
    display.say(f"{len(names)} files and folders, {show_bytes(removal.size)} {what}.")


def sync(
    study: StudyName,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Fill a fresh store from the folder alone.")
    ] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Another store than the study's own.")
    ] = None,
    models: Annotated[
        bool | None,
        typer.Option(
            "--models/--no-models", help="Retrained networks too; default as mlflow.models says."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare; exit code 1 says that they differ.")
    ] = False,
    root: Root = DEFAULT_ROOT,
    as_json: Json = False,
) -> None:
    """Send to MLflow what it has not got yet, compare it with the study, repair what differs."""
    from orchestrator import tracking, tracking_location
    from orchestrator.study import Study

    opened = Study.open(study, root)
    if uri is None:
        uri = tracking.tracking_uri(opened.experiment, opened.root)
    uri = tracking_location.check_uri(uri)
    shown = tracking_location.without_password(uri)
    sent, mended = 0, list[Any]()
    if not check:
        tracking.prepare_store(uri)
        mended = tracking.mend(opened, uri)
        send = tracking.rebuild if rebuild else tracking.drain
        sent = send(opened, uri, models=models)
    found, left = tracking.reconcile(opened, uri, check=check)
    found = [*mended, *found]
    if as_json:
        marks = notices.marks(opened.experiment)
        document = {"study": opened.name, **marks, "tracking_uri": shown, "sent": sent}
        lists = {"found": found, "left": left}
        document |= {name: [dataclasses.asdict(f) for f in each] for name, each in lists.items()}
        display.say_json(document)
    else:
        what = f"{'simulated ' if opened.simulated else ''}{'rows' if rebuild else 'records'}"
        if not check:
            display.say(f"{sent} {what} sent to {shown}")
        _show_findings(found, left, check=check)
        if check and not found:
            display.say(f"{opened.name} and {shown} agree.")
    if left:
        raise typer.Exit(TRIALS_FAILED)


def _show_findings(found: Sequence[Finding], left: Sequence[Finding], *, check: bool) -> None:
    from orchestrator.reconciling import SAID

    for kind, text in SAID.items():
        keys = [finding.key for finding in found if finding.kind == kind]
        if not keys:
            continue
        more = ", ..." if len(keys) > _KEYS_SHOWN else ""
        repaired = not check and not any(finding.kind == kind for finding in left)
        end = "; repaired" if repaired else ""
        display.say(f"{len(keys)} {text} ({', '.join(keys[:_KEYS_SHOWN])}{more}){end}")


def ui(
    study: Annotated[
        str | None,
        typer.Argument(metavar="[STUDY]", help="A study that names a store of its own."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")
    ] = 5000,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = HOST,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Open MLflow's pages on 127.0.0.1, on the store that the studies write to."""
    from orchestrator import tracking, tracking_location
    from orchestrator.study import Study

    if study is not None:
        opened = Study.open(study, root)
        uri = tracking.tracking_uri(opened.experiment, opened.root)
    elif named := os.environ.get("MLFLOW_TRACKING_URI"):
        uri = tracking_location.check_uri(named, "MLFLOW_TRACKING_URI")
    else:
        uri = tracking_location.default_uri(root)
    if not tracking_location.is_database(uri):
        shown = tracking_location.without_password(uri)
        display.say(f"The studies are tracked by a server; open {shown}")
        return
    _check_port(host, port)
    _warn_of_others(host, "read, change and delete all runs")
    tracking.prepare_store(uri)
    shown = f"[{host}]" if ":" in host else host
    display.say(f"MLflow starts at http://{shown}:{port} in some 15 s; Ctrl-C ends it.")
    sys.stdout.flush()
    # Replaces this process, so that a signal to it reaches the server and leaves nothing behind.
    environment = {**os.environ, **_UI_ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": uri}
    os.execve(sys.executable, ui_arguments(uri, port, host), environment)


def ui_arguments(uri: str, port: int, host: str = HOST) -> list[str]:
    """Return the command line of MLflow's pages, on this machine alone unless `host` is another.

    A store with a password is named by MLFLOW_BACKEND_STORE_URI: everybody sees a command line.
    """
    from orchestrator.tracking_location import without_password

    plain = ["--backend-store-uri", uri] if without_password(uri) == uri else []
    where = [*plain, "--host", host, "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "server", *where, "--workers", "1"]


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StudyError(
                f"port {port} of {host} cannot be used ({error.strerror}); choose another: "
                f"nas ui --port {port + 1 if port < 65535 else 5000}"
            ) from error
