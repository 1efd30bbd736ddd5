"""What a person sees while a study runs and when it ends; progress on stderr, results on stdout."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.progress import Estimate, Progress, Reporter
from orchestrator.statistics import show_bytes, show_time

PLAIN_PERIOD_S = 10.0
_ENDLESS = 100_000


def console(stream: TextIO) -> Console:
    """Return a console on `stream`; colours only on a terminal and never under NO_COLOR."""
    return Console(file=stream, highlight=False, emoji=False)


def say(text: str) -> None:
    """Print one line of a result on stdout, as it is."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Print one line for the person on stderr, as it is."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_json(document: Any) -> None:
    """Print the one JSON document of a command on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[str] = ()
) -> Table:
    """Return a plain table; columns named in `numeric` are set flush right, nothing is bold."""
    result = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for column in columns:
        right = column in numeric
        result.add_column(column, justify="right" if right else "left", no_wrap=right)
    for row in rows:
        # Text, not str: a label may hold [brackets], which Rich would read as markup.
        result.add_row(*(Text(cell) for cell in row))
    return result


def say_table(content: Table) -> None:
    """Print a table on stdout; in a file or pipe every row is one line, however long."""
    if sys.stdout.isatty():
        console(sys.stdout).print(content)
        return
    buffer = io.StringIO()
    Console(file=buffer, width=_ENDLESS, highlight=False, emoji=False).print(content)
    for line in buffer.getvalue().splitlines():
        say(line.rstrip())


def progress_line(progress: Progress) -> str:
    """Return one line: "search 4/9 done, 2 running, 0 failed; best ...; 41 s, about 52 s left"."""
    parts = [f"{progress.done}/{progress.total} done", f"{progress.running} running"]
    parts.append(f"{progress.failed} failed")
    if progress.stopped:
        parts.append(f"{progress.stopped} stopped")
    line = f"{progress.stage:<7} " + ", ".join(parts)
    if progress.best is not None:
        line += f" · {_best(progress)} ({progress.best_label})"
    line += f" · {show_time(progress.elapsed_s)}"
    if progress.left_s is not None and progress.done < progress.total:
        line += f", about {show_time(progress.left_s)} left"
    return line


def _best(progress: Progress) -> str:
    name, value = show_metric(progress.metric, progress.best or 0.0)
    return f"best {name} {value}"


def show_metric(metric: str, value: float) -> tuple[str, str]:
    """Return a short name of a metric and its value as shown: shares in percent.

    Args:
        metric: Such as "val_accuracy", "val_loss" or "oracle/test_regret".
        value: A share for accuracies and regrets.
    """
    if metric.endswith("_accuracy"):
        return metric.removesuffix("_accuracy"), f"{100 * value:.2f} %"
    if metric.endswith("_regret"):
        return metric, f"{100 * value:.2f} %"
    return metric, f"{value:.4g}"


class PlainReporter:
    """Writes a line whenever a row ends, and otherwise one every `period_s` seconds at most.

    Args:
        stream: Where to; a log file or a pipe.
        period_s: Longest silence while epochs are done but no row ends.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        stream: TextIO,
        period_s: float = PLAIN_PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._period_s = period_s
        self._clock = clock
        self._counts: tuple[object, ...] | None = None
        self._written_at = float("-inf")
        self._closed = False

    def update(self, progress: Progress) -> None:
        """Write where the study stands, if that is new or the last line is old."""
        counts = (progress.stage, progress.total, progress.done, progress.failed)
        due = self._clock() - self._written_at >= self._period_s
        if self._closed or (counts == self._counts and not due):
            return
        self._counts = counts
        self._written_at = self._clock()
        self._write(progress_line(progress))

    def message(self, text: str) -> None:
        """Write one line."""
        if not self._closed:
            self._write(text)

    def close(self) -> None:
        """Write nothing more."""
        self._closed = True

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class RichReporter:
    """Redraws a few lines in place: one per stage, with a bar, the best value and the time left.

    Args:
        stream: A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = console(stream)
        self._stages: dict[str, Progress] = {}
        # The driver's other threads print nothing; Rich need not catch stdout and stderr.
        self._live = Live(
            console=self._console,
            refresh_per_second=4,
            transient=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        self._closed = False

    def update(self, progress: Progress) -> None:
        """Redraw the line of the progress' stage."""
        if self._closed:
            return
        self._stages[progress.stage] = progress
        self._live.update(_panel(list(self._stages.values())))

    def message(self, text: str) -> None:
        """Print one line above the display."""
        if not self._closed:
            self._console.print(Text(text))

    def close(self) -> None:
        """Stop redrawing; the last state stays on the screen."""
        if not self._closed:
            self._closed = True
            self._live.stop()


def _panel(stages: Sequence[Progress]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(5):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    for progress in stages:
        counts = Text(f"{progress.done}/{progress.total} done", style="green")
        counts.append(f"  {progress.running} running", style="cyan" if progress.running else "dim")
        counts.append(f"  {progress.failed} failed", style="red" if progress.failed else "dim")
        if progress.stopped:
            counts.append(f"  {progress.stopped} stopped", style="yellow")
        best = Text("")
        if progress.best is not None:
            best = Text(f"{_best(progress)}  {progress.best_label}")
        left = ""
        if progress.left_s is not None and progress.done < progress.total:
            left = f"  {show_time(progress.left_s)} left"
        grid.add_row(
            Text(progress.stage),
            ProgressBar(total=max(progress.total, 1), completed=progress.done, width=20),
            counts,
            Text(f"{show_time(progress.elapsed_s)}{left}", style="dim"),
            best,
        )
    return grid


def reporter(stream: TextIO | None = None) -> Reporter:
    """Return the display that fits: redrawn on a terminal, plain lines anywhere else."""
    stream = sys.stderr if stream is None else stream
    if console(stream).is_terminal and not console(stream).is_dumb_terminal:
        return RichReporter(stream)
    return PlainReporter(stream)


def estimate_lines(estimate: Estimate) -> list[str]:
    """Return the lines of a dry run below its table of trials."""
    new = sum(not trial.cached for trial in estimate.trials)
    kind = "searches" if estimate.stage == "search" else "retrainings"
    lines = [
        f"trials     {len(estimate.trials)} {kind}, {new} to run, "
        f"{len(estimate.trials) - new} already in the ledger",
        f"resources  {estimate.cpus_per_trial:g} CPUs and {estimate.gpus_per_trial:g} GPUs a trial"
        f"; there are {estimate.cluster_cpus:g} CPUs and {estimate.cluster_gpus:g} GPUs"
        f": {estimate.concurrent} at a time",
    ]
    lines += [
        f"epoch      {show_time(seconds)}  {label}"
        for label, seconds in estimate.seconds_per_epoch.items()
    ]
    lines += [f"schedule   {label}: {text}" for label, text in estimate.schedules.items()]
    # Mostly all searches run alike: then one line says it.
    engines = [*dict.fromkeys(estimate.engines.values())]
    for engine in engines:
        labels = [label for label, its in estimate.engines.items() if its == engine]
        lines.append(f"engine     {engine}" + (f" ({', '.join(labels)})" if engines[1:] else ""))
    if estimate.retrain:
        lines.append(f"retrain    {estimate.retrain}")
    lines.append(f"time       about {show_time(estimate.total_s)} (from a measured step)")
    lines.append(f"disk       about {show_bytes(estimate.disk_bytes)}")
    if estimate.memory_bytes:
        lines.append(f"memory     {_memory(estimate)}")
    lines += estimate.notes
    lines.append("Nothing was started.")
    return lines


def _memory(estimate: Estimate) -> str:
    """Return the peak of the largest trial, and of those that share a machine or a GPU."""
    label, peak = max(estimate.memory_bytes.items(), key=lambda item: item[1])
    text = f"at most about {show_bytes(peak)} a trial ({label})"
    there = estimate.memory_there
    if there is None or estimate.packed:
        return text
    of_gpu = estimate.gpus_per_trial > 0
    sharing = estimate.concurrent
    if of_gpu:
        sharing = min(sharing, max(1, round(1 / estimate.gpus_per_trial)))
    text += f", {show_bytes(sharing * peak)} for {sharing} at a time"
    text += f"; {'a GPU' if of_gpu else 'the machine'} has {show_bytes(there)}"
    if sharing * peak <= there:
        return text
    fitting = int(there // peak)
    if not fitting:
        return text + ": TOO LITTLE for one. Lower search.batch_size or the size of the network"
    setting = (
        f"tune.per_trial.gpus: {1 / fitting:.4g}" if of_gpu else f"tune.max_concurrent: {fitting}"
    )
    return text + f": TOO LITTLE. Set {setting}"


def outline(document: Mapping[str, Any], indent: int = 0) -> list[str]:
    """Return a nested document as indented lines, as an experiment file would say it."""
    space = "  " * indent
    lines: list[str] = []
    for key, value in document.items():
        if isinstance(value, dict) and value:
            lines += [f"{space}{key}:", *outline(value, indent + 1)]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines += [f"{space}{key}:", *(f"{space}  - {_inline(item)}" for item in value)]
        else:
            lines.append(f"{space}{key}: {_inline(value)}")
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)
