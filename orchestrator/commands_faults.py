"""`nas bench faults`: studies on a small cluster that is broken on purpose, and what survived."""

from __future__ import annotations

import logging
import os
import platform
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import display
from orchestrator.commands_run import Json
from orchestrator.statistics import show_time
from spaces.core.errors import NasError, near_miss

if TYPE_CHECKING:
    from benchmarks.faults.campaign import Round


def faults(
    rounds: Annotated[int, typer.Option(min=1, help="Studies that are broken, one after another.")],
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    kinds: Annotated[
        str | None, typer.Option(help="Only these kinds of fault.", metavar="NAME,...")
    ] = None,
    database: Annotated[
        str, typer.Option(help="Behind MLflow: auto, sqlite or postgresql.", metavar="NAME")
    ] = "auto",
    record: Annotated[
        Path | None,
        typer.Option(
            help="Adds each round to this file, and goes on after those that it has.",
            metavar="FILE",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Keeps studies and logs of rounds with a finding or failed trials here.",
            metavar="DIR",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Break studies at random moments, resume them, and compare them with undisturbed ones.

    A round is a sweep with seeds, Optuna and ASHA on a cluster of three nodes of this machine, with
    an MLflow server beside, that is struck by one to three faults. Everything runs in a temporary
    folder and on the loopback; only its own processes are killed. The exit code is 1 if anything
    was lost, doubled or wrong.
    """
    from benchmarks.faults import campaign
    from benchmarks.faults.kinds import KINDS
    from benchmarks.faults.stores import StoreError

    chosen = None if kinds is None else kinds.split(",")
    for name in chosen or ():
        if name not in KINDS:
            known = ", ".join(KINDS)
            raise NasError(
                f"--kinds must be of {known}, got {name!r}.{near_miss(name, list(KINDS))}"
            )
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # nodes that die are the point
    _check_record(record, seed)
    played: list[Round] = []
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with campaign.Campaign(seed, database=database, only=chosen, keep=keep) as field:
            if not as_json:
                _introduce(field, chosen)
            for each in campaign.play(field, rounds, record=record):
                played.append(each)
                if not as_json:
                    _show_round(each)
    except StoreError as error:
        raise NasError(f"--database: {error}.") from error
    finally:
        signal.signal(signal.SIGTERM, before)
    found = campaign.summary(played)
    if as_json:
        display.say_json([found | _environment(seed, field)])
    else:
        _show_summary(found)
    if found["lost"] or found["doubled"] or found["wrong"]:
        raise typer.Exit(1)


def _leave(number: int, _: object) -> None:
    """End in order, so that no server and no node of the cluster stays behind."""
    raise SystemExit(128 + number)


def _check_record(record: Path | None, seed: int) -> None:
    """Refuse to add to a file of another seed: its rounds would be other ones.

    Raises:
        NasError: It is of another seed, or no record.
    """
    from benchmarks.faults import campaign

    if record is None:
        return
    try:
        seeds = {each.seed for each in campaign.read(record)}
    except (OSError, ValueError, TypeError) as error:
        raise NasError(f"--record: {record} is no record of rounds ({error}).") from error
    if seeds - {seed}:
        raise NasError(f"--record: {record} has rounds of the seed {min(seeds)}, got {seed}.")


def _introduce(field: Any, chosen: Sequence[str] | None) -> None:
    from benchmarks.faults.kinds import KINDS

    behind = field.server.database
    display.say(f"3 nodes, MLflow behind {behind}, faults: {', '.join(field.kinds)}")
    absent = [kind for kind in chosen or KINDS if kind not in field.kinds]
    if absent:
        why = "PostgreSQL and psycopg2, and the right to mount a file system"
        display.say(f"left out here: {', '.join(absent)} (they need {why})")


def _show_round(each: Round) -> None:
    amiss = [*each.lost, *each.doubled, *each.wrong]
    recovered = [seconds for seconds in each.recovery_s if seconds is not None]
    again = f"going on after {show_time(max(recovered))}" if recovered else "nothing left to run"
    verdict = "all there" if not amiss else f"{len(amiss)} FINDINGS"
    display.say(f"{each.round:>4}  {verdict}  {'; '.join(each.said)}; {again}")
    for sentence in amiss:
        display.say(f"      {sentence}")


def _show_summary(found: dict[str, Any]) -> None:
    display.say("")
    for name in ("rounds", "rows", "lost", "doubled", "wrong"):
        display.say(f"{name:<18}{found[name]:,}")
    display.say(f"{'redone epochs':<18}{found['redone_epochs']:,}")
    display.say(f"{'of torn records':<18}{found['destroyed_epochs']:,}")
    display.say(f"{'resumes':<18}{found['resumes']:,}")
    display.say(f"{'time':<18}{show_time(found['wall_s'])}")
    display.say("")
    cells = []
    for kind, count in found["faults"].items():
        of = found["recovery_s"].get(kind)
        times = [show_time(of["median"]), show_time(of["most"])] if of else ["–", "–"]
        cells.append([kind, f"{count:,}", *times])
    columns = ["fault", "times", "goes on after (median)", "at most"]
    display.say_table(display.table(columns, cells, numeric=columns[1:]))


def _environment(seed: int, field: Any) -> dict[str, Any]:
    return {
        "seed": seed,
        "database": field.server.database,
        "kinds": field.kinds,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }
