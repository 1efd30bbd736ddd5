"""Commands that only look: validate, show, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from orchestrator import display
from orchestrator.commands_run import USER_ERROR, Json
from orchestrator.genotypes import find_genotype
from spaces.core import named, plugins
from spaces.core.errors import NasError


def add_to(app: typer.Typer) -> None:
    """Give the commands of this module to `app`."""
    app.command(epilog="Example: nas validate experiments/*.yaml")(validate)
    app.command(epilog="Example: nas show DARTS_V2 --out cell.svg")(show)
    app.command("list", epilog="Example: nas list methods --json")(list_plugins)


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Experiments, in YAML.")],
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="Whether to load the datasets, as a run does.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Check experiment files: keys, values, paths, resources and data; start nothing."""
    from orchestrator import config

    results: list[dict[str, Any]] = []
    for file in files:
        error: str | None = None
        try:
            experiment = config.load_experiment(file)
            config.check_hardware(experiment)
            if data:
                config.check_oracle(experiment)
                config.check_data(experiment)
                config.check_methods(experiment)
                config.check_limits(experiment)
        except NasError as problem:
            error = str(problem)
            display.note(error)
        results.append({"file": str(file), "valid": error is None, "error": error})
        if error is None and not as_json:
            display.say(f"{file}: good")
    if as_json:
        display.say_json(results)
    if not all(result["valid"] for result in results):
        raise typer.Exit(USER_ERROR)


def show(
    genotype: Annotated[
        str, typer.Argument(metavar="GENOTYPE", help="A file, an official text, or a name.")
    ],
    space: Annotated[
        str | None, typer.Option("--space", help="Space of a text that does not say its own.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", min=1, help="Channels of the first cell.")
    ] = None,
    cells: Annotated[
        int | None, typer.Option("--cells", min=1, help="Cells (NAS-Bench-201: per stage).")
    ] = None,
    classes: Annotated[int | None, typer.Option("--classes", min=1, help="Classes.")] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=1,
            help="Side of the images, in pixels; from 128 on with the stem "
            "for ImageNet, where the space has it.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Drawing, .png or .svg; default SPACE-HASH.png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a genotype's cell and count parameters and multiply-adds of its network.

    Sizes that are not given are those of the published network, of the name or of the space. The
    auxiliary head is not counted; multiply-adds are those of convolutions and matrix products, for
    one image. With --json a drawing is made only where --out is given.
    """
    if out is not None and out.suffix.lower() not in {".png", ".svg"}:
        raise NasError(f"--out must end in .png or .svg, got {str(out)!r}.")
    found = find_genotype(genotype, space)
    if space is not None and found.space != space:
        raise NasError(
            f"{genotype} is a genotype of space '{found.space}', not of '{space}': leave out "
            "--space."
        )
    # Imported late: a wrong text is refused without waiting for torch.
    from spaces.core.cost import network_cost
    from spaces.core.rebuilding import space_settings

    name, settings = plugins.make_config("spaces", space_settings(found))
    built = plugins.load("spaces", name).build(settings, name)
    published = named.network_of(genotype)
    sizes = {
        "channels": channels or published.get("channels", built.evaluation.channels),
        "cells": built.network_cells(found, cells or published.get("cells")),
        "classes": classes or published.get("classes", built.evaluation.classes),
        "image_size": image_size or built.evaluation.image_size,
    }
    cost = network_cost(built, found, **sizes, in_channels=built.evaluation.in_channels)
    if out is None and not as_json:
        out = Path(f"{found.space}-{found.hash}.png")
    if out is not None:
        from spaces.core.drawing import draw_genotype

        draw_genotype(found, out)
    if as_json:
        document = {"space": found.space, "hash": found.hash, "params": cost.params}
        document |= {"macs": cost.macs, **sizes, "genotype": found.to_json()}
        display.say_json({**document, "drawing": None if out is None else str(out)})
        return
    pairs = [("space", found.space), ("hash", found.hash), ("text", built.format(found))]
    pairs += [(size.replace("_", " "), str(value)) for size, value in sizes.items()]
    pairs += [("params", f"{cost.params:,}"), ("macs", f"{cost.macs:,}"), ("drawing", str(out))]
    for key, value in pairs:
        display.say(f"{key:<10} {value}")


def list_plugins(
    kind: Annotated[
        Literal[
            "methods",
            "alpha_gradients",
            "selections",
            "early_stops",
            "spaces",
            "operations",
            "datasets",
            "oracles",
            "protocols",
            "genotypes",
        ],
        typer.Argument(help="What to list."),
    ],
    as_json: Json = False,
) -> None:
    """List what there is to choose from, one line each, with its source."""
    columns = ("name", "summary", "source")
    if kind == "genotypes":
        described = [(name, named.describe(name)) for name in named.names()]
        rows = [(name, entry.summary, entry.source) for name, entry in described]
    else:
        found = [plugins.describe(kind, name) for name in plugins.available(kind)]
        rows = [(info.name, info.summary, info.source) for info in found]
    if as_json:
        display.say_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    display.say_table(display.table(columns, rows))
