"""`nas bench load`: many trials, and what they cost the driver, the disk and MLflow."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import display
from orchestrator.commands_run import Json
from orchestrator.statistics import show_bytes, show_time
from spaces.core.errors import NasError


def load(
    trials: Annotated[
        str, typer.Option(help="Trials; several for a curve.", metavar="NUMBER,...")
    ] = "100",
    table: Annotated[
        Path | None,
        typer.Option(
            help="Table of NAS-Bench-201 to simulate searches with; without it they are real, "
            "of about a second.",
            metavar="FILE",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of a search; 12 simulated, 1 real.")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at once; as many as cores.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run sweeps of many trials through the whole stack, and follow driver, disk and MLflow.

    Says of each sweep what a trial costs the driver, and whether the last ones cost more than the
    first; its memory at most; how fast rows come into MLflow beside the sweep; and bytes.
    """
    from benchmarks import load as bench

    numbers = [int(part) if part.isdigit() else 0 for part in trials.split(",")]
    if min(numbers) < 10:
        raise NasError(f"--trials must be whole numbers >= 10 such as 100,1000, got {trials!r}.")
    if table is not None and not table.is_file():
        raise NasError(f"--table: there is no file {table}.")
    each = epochs or (12 if table else 1)
    rows: list[dict[str, Any]] = []
    for number in numbers:
        try:
            row = bench.measure(
                trials=number,
                epochs=each,
                table=table.absolute() if table else None,
                concurrent=concurrent,
                told=display.note,
            )
        except bench.SweepError as error:
            raise NasError(f"{error} What it said is above.") from error
        rows.append(row)
        if not as_json:
            display.say(row["case"])
            for name, text in _lines(row):
                display.say(f"  {name:<14}{text}")
    if as_json:
        environment = {"machine": platform.machine(), "cores": os.cpu_count()}
        environment["date"] = datetime.now(UTC).date().isoformat()
        display.say_json([row | environment for row in rows])


def _lines(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "time", f"{show_time(row['wall_s'])}, {row['wall_per_trial_s']:.3f} s a trial"
    parts = ", ".join(f"{1000 * seconds:.0f}" for seconds in row["driver_cpu_by_part_s"])
    mean = f"{1000 * row['driver_cpu_per_trial_s']:.0f} ms of CPU a trial"
    yield "driver", f"{mean}; by fifths of the sweep {parts} ms"
    growth = f"{row['driver_bytes_per_trial'] / 1000:.1f} kB a trial"
    yield "", f"{show_bytes(row['driver_peak_bytes'])} at most, {growth}"
    if row.get("snapshots"):
        each = (
            f"{show_time(row['snapshot_most_s'])} at most, {show_time(row['snapshots_s'])} in all"
        )
        yield "Ray's state", f"{row['snapshots']} snapshots, {each}"
        yield "", f"its file {show_bytes(row['state_file_bytes'])}"
    if row.get("sent_per_s") is not None:
        beside = row["sent_per_s_beside"]
        running = "" if beside is None else f", {beside:.1f} beside the sweep"
        yield "MLflow", f"{row['sent_per_s']:.1f} rows a second in all{running}"
        behind = f"{row['sent_beside']:.0%} were there when the sweep ended"
        yield "", f"{behind}, the rest {show_time(row['sent_after_s'])} later"
    sizes = f"row {show_bytes(round(row['ledger_bytes']))}"
    sizes += f", events {show_bytes(round(row['outbox_bytes']))}"
    yield "a trial", sizes
    whole = f"{row['files']:,} files, Ray's {show_bytes(row['ray_bytes'])}"
    yield "the study", f"{whole}, MLflow's store {show_bytes(row['store_bytes'])}"
