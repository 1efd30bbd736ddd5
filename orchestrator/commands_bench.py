"""`nas bench`: side-by-side measurements, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import display
from orchestrator.commands_faults import faults
from orchestrator.commands_load import load
from orchestrator.commands_run import Json
from orchestrator.statistics import show_bytes, show_time
from spaces.core.errors import NasError, near_miss

ALL = "all"

SpaceName = Annotated[
    str, typer.Option("--space", help="nasbench201, darts or all.", metavar="NAME,...")
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method", help="darts, darts_unrolled, sdarts_rs, sdarts_adv or all.", metavar="NAME,..."
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="As search.engine; several are timed side by side: eager,graph.",
        metavar="NAME,...",
    ),
]
PrecisionName = Annotated[
    str, typer.Option("--precision", help="As search.precision; bf16 is ours alone.")
]
Channels = Annotated[str, typer.Option(help="Of the supernet; several for a curve: 8,16,32.")]
Cells = Annotated[
    str | None, typer.Option(help="Cells (NAS-Bench-201: per stage); the published number.")
]
Batch = Annotated[str, typer.Option("--batch", help="Images of a batch; several for a curve.")]
ImageSize = Annotated[str, typer.Option("--image-size", help="Side of an image, pixels.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
Rounds = Annotated[int, typer.Option(min=1, help="Timed rounds, in turns; the least counts.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch on a CPU.")]
Images = Annotated[int, typer.Option(min=1, help="Training images of an epoch.")]


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`, as `nas bench ...`."""
    bench = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="rich",
        help="Measure this machine: ours against the reference, side by side.",
    )
    bench.command(epilog="Example: nas bench step --space darts --method all")(step)
    bench.command(epilog="Example: nas bench scaling --over channels,batch --plot scaling.png")(
        scaling
    )
    bench.command(epilog="Example: nas bench search --images 512 --batch 64")(search)
    bench.command(epilog="Example: nas bench pipeline --batch 64")(pipeline)
    bench.command(epilog="Example: nas bench seeds --seeds 8")(seeds)
    bench.command(epilog="Example: nas bench sweep --trials 200")(sweep)
    bench.command(epilog="Example: nas bench retrain DARTS_V2 --batch 16")(retrain)
    bench.command(epilog="Example: nas bench load --trials 100,1000 --table nasbench201.parquet")(
        load
    )
    bench.command(epilog="Example: nas bench faults --rounds 20 --seed 1 --record rounds.jsonl")(
        faults
    )
    bench.command(epilog="Example: nas bench fuzz --inputs 10000 --seed 0")(fuzz)
    app.add_typer(bench, name="bench", epilog="Example: nas bench step --json")


def step(
    space: SpaceName = ALL,
    method: MethodName = "darts",
    channels: Channels = "16",
    cells: Cells = None,
    batch: Batch = "8",
    image_size: ImageSize = "32",
    engine: EngineName = "auto",
    precision: PrecisionName = "float32",
    device: Device = "auto",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time a search step against the op-by-op reference, and count kernels and saved activations.

    A step is all that a method does with a training and a validation batch. Times are CPU seconds
    of the process, or wall seconds of a GPU; the floor is what this machine's matrix products and
    copies would take for the same work. Peak memory is what a step allocates beside weights and
    optimizers.
    """
    where = _prepare(device, threads)
    from benchmarks import step as bench
    from benchmarks.measuring import measure_floor

    def rows() -> Iterator[dict[str, Any]]:
        names = _chosen(space, bench.SPACES, "--space")
        methods = _chosen(method, tuple(bench.METHODS), "--method")
        engines = _chosen(engine, bench.ENGINES, "--engine")
        (exact,) = _chosen(precision, bench.PRECISIONS, "--precision", several=False)
        sizes = list(_sizes(channels, cells, batch, image_size))
        floor = measure_floor(where)
        for size, name, label in itertools.product(sizes, names, methods):
            yield from bench.measure_engines(
                name,
                label,
                size,
                where,
                rounds=rounds,
                floor=floor,
                engines=engines,
                precision=exact,
            )

    _show(rows(), where, as_json)


def scaling(
    over: Annotated[
        str,
        typer.Option(
            help="channels, cells, batch, image, seeds, ops, edges or all.", metavar="NAME,..."
        ),
    ] = ALL,
    space: SpaceName = "nasbench201",
    method: MethodName = "darts",
    channels: Annotated[int, typer.Option(min=2, help="Of the supernet, where it stays.")] = 16,
    cells: Annotated[
        int | None, typer.Option(min=1, help="Cells (NAS-Bench-201: per stage), where they stay.")
    ] = None,
    batch: Annotated[int, typer.Option(min=2, help="Images of a batch, where it stays.")] = 8,
    image_size: Annotated[
        int, typer.Option("--image-size", min=8, help="Side of an image, where it stays.")
    ] = 16,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to draw the curves into.", metavar="FILE")
    ] = None,
    engine: EngineName = "auto",
    precision: PrecisionName = "float32",
    device: Device = "auto",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time a step, and count what it saves and holds, over one size after the other.

    A curve goes from a quarter of what stays to its double. Seeds take their steps one after the
    other here; for a block of them on a GPU see [bold]nas bench seeds[/bold]. Operations and edges
    are those of the space, fewer and fewer.
    """
    where = _prepare(device, threads)
    from benchmarks import scaling as bench
    from benchmarks import step

    curves = _chosen(over, tuple(bench.OVER), "--over")
    (name,) = _chosen(space, step.SPACES, "--space", several=False)
    (label,) = _chosen(method, tuple(step.METHODS), "--method", several=False)
    (path,) = _chosen(engine, step.ENGINES, "--engine", several=False)
    (exact,) = _chosen(precision, step.PRECISIONS, "--precision", several=False)
    if plot is not None and not plot.absolute().parent.is_dir():
        raise NasError(f"--plot must be a file in a folder that exists, got {plot}.")
    base = step.Size(channels, cells or bench.BASE_CELLS[name], batch, image_size)
    found: dict[str, list[dict[str, Any]]] = {}
    for what in curves:
        found[what] = bench.measure(
            what, name, label, base, where, rounds=rounds, engine=path, precision=exact
        )
        if not as_json:
            _show_curve(what, found[what], where, first=len(found) == 1)
    if as_json:
        environment = _environment(where)
        display.say_json([row | environment for rows in found.values() for row in rows])
    if plot is not None:
        from benchmarks.scaling_plot import draw

        size = f"C={base.channels}, cells={base.cells}, batch {base.batch}, {base.image} pixels"
        draw(found, plot, title=f"{name}, {label}: {size}")


def _show_curve(over: str, rows: Sequence[dict[str, Any]], device: Any, *, first: bool) -> None:
    if first:
        display.say(", ".join(f"{name} {value}" for name, value in _environment(device).items()))
    cells = [
        [
            str(row["value"]),
            f"{row['step_s']:.4g} s",
            f"{row['step_median_s']:.4g} s",
            f"{row['images_per_s']:,.0f}",
            show_bytes(row["saved_bytes"]),
            show_bytes(row["peak_bytes"]),
            show_bytes(row["weight_bytes"]),
        ]
        for row in rows
    ]
    columns = [over, "least", "median", "images/s", "saved", "peak memory", "weights"]
    display.say("")
    display.say_table(display.table(columns, cells, numeric=columns))


def search(
    space: SpaceName = "nasbench201",
    method: MethodName = "darts",
    channels: Channels = "16",
    cells: Cells = None,
    batch: Batch = "64",
    image_size: ImageSize = "32",
    images: Images = 512,
    device: Device = "auto",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time an epoch of a search against a DataLoader, reference steps, and a validation pass."""
    where = _prepare(device, threads)
    from benchmarks import search as bench
    from benchmarks.step import METHODS, SPACES

    def rows() -> Iterator[dict[str, Any]]:
        names = _chosen(space, SPACES, "--space")
        methods = _chosen(method, tuple(METHODS), "--method")
        for size, name, label in itertools.product(
            _sizes(channels, cells, batch, image_size), names, methods
        ):
            _check_images(images, size.batch)
            yield bench.measure(name, label, size, where, rounds=rounds, images=images)

    _show(rows(), where, as_json)


def pipeline(
    batch: Batch = "64",
    images: Images = 5000,
    device: Device = "auto",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time the input pipeline, images a second, against a DataLoader with torchvision."""
    where = _prepare(device, threads)
    from benchmarks import pipeline as bench

    def rows() -> Iterator[dict[str, Any]]:
        for size in _numbers(batch, "--batch"):
            _check_images(2 * images, size)
            yield bench.measure(batch=size, images=images, device=where, rounds=rounds)

    _show(rows(), where, as_json)


def seeds(
    seeds: Annotated[str, typer.Option(help="Seeds of a block; several for a curve.")] = "8",
    space: SpaceName = "nasbench201",
    method: MethodName = "darts",
    channels: Channels = "16",
    cells: Cells = None,
    batch: Batch = "64",
    image_size: ImageSize = "32",
    images: Images = 256,
    device: Device = "auto",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time an epoch of a block of seeds against the same searches one after the other."""
    where = _prepare(device, threads)
    from benchmarks import seeds as bench
    from benchmarks.step import METHODS, SPACES

    def rows() -> Iterator[dict[str, Any]]:
        names = _chosen(space, SPACES, "--space")
        methods = _chosen(method, tuple(METHODS), "--method")
        for size, name, label, count in itertools.product(
            _sizes(channels, cells, batch, image_size), names, methods, _numbers(seeds, "--seeds")
        ):
            _check_images(images, size.batch)
            yield bench.measure(name, label, size, where, seeds=count, rounds=rounds, images=images)

    _show(rows(), where, as_json)


def sweep(
    trials: Annotated[int, typer.Option(min=2, help="Number of short searches.")] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Of each search.")] = 3,
    concurrent: Annotated[
        str | None, typer.Option(help="Trials at once; several for a curve: 1,2.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run many short searches through Ray, ledger and MLflow, and say what a trial costs beside."""
    where = _prepare("cpu", 1)
    from benchmarks import sweep as bench

    def rows() -> Iterator[dict[str, Any]]:
        counts = [None] if concurrent is None else _numbers(concurrent, "--concurrent")
        for count in counts:
            yield bench.measure(trials=trials, epochs=epochs, concurrent=count)

    _show(rows(), where, as_json)


def retrain(
    genotype: Annotated[
        str, typer.Argument(metavar="GENOTYPE", help="As nas list genotypes says.")
    ] = "DARTS_V2",
    batch: Batch = "16",
    steps: Annotated[int, typer.Option(min=1, help="Steps of a round.")] = 4,
    device: Device = "auto",
    rounds: Rounds = 3,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Time the training of a published genotype at its published size, and its memory."""
    where = _prepare(device, threads)
    from benchmarks import retrain as bench

    def rows() -> Iterator[dict[str, Any]]:
        for size in _numbers(batch, "--batch"):
            if size < 2:
                raise NasError("--batch must be >= 2: batch norm needs two images, got 1.")
            yield bench.measure(genotype, size, where, rounds=rounds, steps=steps)

    _show(rows(), where, as_json)


def fuzz(
    inputs: Annotated[int, typer.Option(min=1, help="Random files, of all kinds together.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds draw equal files.")] = 0,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="NAME,...",
            help="experiment, genotype, study, outbox, checkpoint or all; each has its share.",
        ),
    ] = ALL,
    as_json: Json = False,
) -> None:
    """Try random experiments, study folders, outboxes, genotypes and checkpoints, most broken.

    Each has to be taken, refused with a clear message, or repaired and said. Exit code 1: one was
    not. Nothing is timed but the slowest.
    """
    where = _prepare("cpu", 1)
    try:
        from benchmarks.fuzzing import running
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise NasError(
            "nas bench fuzz needs Hypothesis, which comes with the tools of developers: "
            "pip install 'nas-orchestrator[dev]'"
        ) from None

    begun = time.monotonic()
    tallies = []
    for tally in running.run(inputs, seed, _chosen(kind, tuple(running.KINDS), "--kind")):
        tallies.append(tally)
        display.note(f"{tally.kind}: {tally.inputs} tried, {sum(tally.faults.values())} findings")
    seconds = round(time.monotonic() - begun, 1)
    rows = [dataclasses.asdict(tally) for tally in tallies]
    found = sum(sum(tally.faults.values()) for tally in tallies)
    total = sum(tally.inputs for tally in tallies)
    if as_json:
        head = {"inputs": total, "seed": seed, "findings": found, "seconds": seconds}
        display.say_json({**head, "kinds": rows, **_environment(where)})
    else:
        display.say(", ".join(f"{name} {value}" for name, value in _environment(where).items()))
        cells = [_fuzz_cells(row) for row in rows]
        display.say_table(display.table(_FUZZ_COLUMNS, cells, numeric=_FUZZ_COLUMNS[1:]))
        for example in (example for tally in tallies for example in tally.examples):
            display.say(example)
        display.say(f"{total:,} inputs of seed {seed} in {show_time(seconds)}, {found} findings")
    if found:
        raise typer.Exit(1)


_FUZZ_COLUMNS = (
    *("file", "inputs", "accepted", "refused", "repaired", "tracebacks", "losses", "unclear"),
    *("slow", "slowest"),
)


def _fuzz_cells(row: dict[str, Any]) -> list[str]:
    outcomes, faults = row["outcomes"], row["faults"]
    ended = [outcomes.get(name, 0) for name in ("accepted", "refused", "repaired")]
    found = [faults.get(name, 0) for name in ("traceback", "loss", "unclear")]
    slow = faults.get("slow", 0) + faults.get("memory", 0)
    counts = [f"{count:,}" for count in (row["inputs"], *ended, *found, slow)]
    return [row["kind"], *counts, f"{row['slowest_s']:.1f} s"]


def _prepare(device: str, threads: int) -> Any:
    import torch

    from trainables.state import resolve_device

    torch.set_num_threads(threads)
    return resolve_device(device)


def _chosen(text: str, names: Sequence[str], option: str, *, several: bool = True) -> list[Any]:
    """Return the names that an option asks for: one, several with commas between, or all."""
    if several and text == ALL:
        return list(names)
    words = [*names, ALL] if several else list(names)
    chosen = text.split(",") if several else [text]
    for word in chosen:
        if word not in names:
            hint = near_miss(word, words)
            raise NasError(f"{option} must be one of {', '.join(words)}, got {word!r}.{hint}")
    return list(dict.fromkeys(chosen))


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise NasError(f"{option} must be whole numbers >= 1 such as 8 or 8,16, got {text!r}.")
    return numbers


def _sizes(channels: str, cells: str | None, batch: str, image_size: str) -> Iterator[Any]:
    from benchmarks.step import Size

    depths = [None] if cells is None else _numbers(cells, "--cells")
    for width, depth, count, side in itertools.product(
        _numbers(channels, "--channels"),
        depths,
        _numbers(batch, "--batch"),
        _numbers(image_size, "--image-size"),
    ):
        yield Size(width, depth, count, side)


def _check_images(images: int, batch: int) -> None:
    if images < 2 * batch:
        raise NasError(
            f"--images must be at least two batches, one for each half, got {images} for batches "
            f"of {batch}."
        )


def _show(rows: Iterable[dict[str, Any]], device: Any, as_json: bool) -> None:
    """Print rows, a line each as soon as it is there, or one JSON array at the end."""
    environment = _environment(device)
    if as_json:
        display.say_json([row | environment for row in rows])
        return
    shown: list[dict[str, Any]] = []
    for row in rows:
        if not shown:
            display.say(", ".join(f"{name} {value}" for name, value in environment.items()))
        display.say("")
        display.say(row["case"])
        for name, text in _lines(row):
            display.say(f"  {name:<14}{text}")
        shown.append(row)
    if len(shown) > 1:
        display.say("")
        columns = [name for name in _COLUMNS if any(name in _cells(row) for row in shown)]
        cells = [[_cells(row).get(name, "–") for name in columns] for row in shown]
        display.say_table(display.table(columns, cells, numeric=columns[1:]))


_COLUMNS = (
    *("case", "ours", "reference", "speed-up", "of medians", "kernels", "launches", "saved"),
    *("peak memory", "times floor", "overhead", "CPU s", "trials/hour"),
)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """Return a row as cells of the table that stands below several of them, by column."""
    cells = {"case": row["case"]}
    if row["speedup"] is not None:
        cells["ours"], cells["reference"] = f"{row['ours_s']:.4g} s", f"{row['reference_s']:.4g} s"
        cells["speed-up"] = f"{row['speedup']:.2f} x"
        cells["of medians"] = f"{row['speedup_of_medians']:.2f} x"
    if "kernels" in row:
        for column, key in (("kernels", "kernels"), ("launches", "launches"), *_SIZES):
            cells[column] = f"{row[key] / row[f'reference_{key}']:.2f} x"
        cells["times floor"] = f"{row['times_floor']:.1f}"
    if "overhead_per_trial_s" in row:
        cells["overhead"] = f"{row['overhead_per_trial_s']:.3f} s"
        cells["trials/hour"] = f"{row['trials_per_hour']:,.0f}"
        if row["overhead_cpu_s"] is not None:
            cells["CPU s"] = f"{row['overhead_cpu_s']:.3f}"
    return cells


_SIZES = (("saved", "saved_bytes"), ("peak memory", "peak_bytes"))


def _lines(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if row["speedup"] is not None:
        least = f"{row['ours_s']:.4g} s, reference {row['reference_s']:.4g} s"
        yield "least", f"{least} (of {row['rounds']})"
        yield "median", f"{row['ours_median_s']:.4g} s, reference {row['reference_median_s']:.4g} s"
        of_medians = f"{row['speedup_of_medians']:.2f} x of medians"
        yield "speed-up", f"{row['speedup']:.2f} x ({of_medians})"
    if "images_per_s" in row:
        yield "images/s", f"{row['images_per_s']:,.0f}"
    if "kernels" in row:
        yield from _step_lines(row)
    if "epoch_s" in row:
        yield "time", f"{row['step_s']:.4g} s a step (least of {row['rounds']})"
        yield "epoch", f"{show_time(row['epoch_s'])} for 50,000 images"
        yield "peak memory", show_bytes(row["peak_bytes"])
    if "times_one" in row:
        yield "block", f"{row['times_one']:.2f} times one search"
    if "overhead_per_trial_s" in row:
        yield from _sweep_lines(row)


def _sweep_lines(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return what a sweep's row says."""
    yield "trials/hour", f"{row['trials_per_hour']:,.0f}, {row['search_s']:.3f} s of search each"
    yield "overhead", f"{row['overhead_per_trial_s']:.3f} s a trial of a core's time"
    setup = f"set-up {row['setup_s']:.3f} s, recording {row['recording_s']:.3f} s"
    yield "", f"{setup}, to the next trial {row['hand_over_s']:.3f} s"
    if row["overhead_cpu_s"] is not None:
        yield "CPU", f"{row['overhead_cpu_s']:.3f} s a trial beside its search"
        worker = f"set-up {row['setup_cpu_s']:.3f} s, recording {row['recording_cpu_s']:.3f} s"
        parts = ("driver", "ray", "mlflow")
        others = ", ".join(f"{name} {row[f'{name}_cpu_s']:.3f} s" for name in parts)
        yield "", f"{worker}, {others}"
        yield "workers", f"{row['workers']} processes for {row['trials']} trials"
    imports = f"{row['import_cpu_s']:.1f} s of CPU to import"
    yield "first trial", f"set up in {row['first_setup_s']:.1f} s, {imports}"
    yield "start and end", f"{row['start_s']:.1f} s and {row['end_s']:.1f} s"
    sizes = (("result", "result_bytes"), ("row", "row_bytes"), ("outbox", "outbox_bytes"))
    texts = [f"{name} {show_bytes(round(row[key]))}" for name, key in sizes]
    yield "a trial", ", ".join([*texts, f"state {show_bytes(round(row['state_bytes']))}"])


def _step_lines(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return what a step's row says beside its times."""
    for name, key in (("kernels", "kernels"), ("launches", "launches")):
        share = row[key] / row[f"reference_{key}"]
        both = f"{row[key]:,}, reference {row[f'reference_{key}']:,} ({share:.2f} x)"
        in_form = (
            "" if key == "kernels" else " in the form for a GPU, in both passes of a weight step"
        )
        yield name, both + in_form
    passes = row["passes_with_gradient"] + row["passes_without"]
    yield "passes", f"{passes} forward, {row['backward_passes']} backward"
    for name, key in _SIZES:
        share = row[key] / row[f"reference_{key}"]
        ours, theirs = show_bytes(row[key]), show_bytes(row[f"reference_{key}"])
        yield name, f"{ours}, reference {theirs} ({share:.2f} x)"
    work, copies = f"{row['floor_of_flops_s']:.4g} s", f"{row['floor_of_bytes_s']:.4g} s"
    rates = row["machine_flops_per_s"] / 1e9, row["machine_bytes_per_s"] / 1e9
    yield "floor", f"{work} at {rates[0]:.0f} GFLOP/s, {copies} at {rates[1]:.1f} GB/s"
    yield "gap", f"{row['times_floor']:.1f} times the floor, {row['flops_per_s'] / 1e9:.1f} GFLOP/s"
    yield "engine", f"{row['engine']} in {row['precision']}"


def _environment(device: Any) -> dict[str, Any]:
    from trainables.state import Fingerprint

    found = Fingerprint.of(device, "float32")
    cores = {} if device.type == "cuda" else {"cores": os.cpu_count()}
    return {
        "machine": found.machine,
        **cores,
        "threads": found.threads,
        "torch": found.torch,
        "date": datetime.now(UTC).date().isoformat(),
    }
