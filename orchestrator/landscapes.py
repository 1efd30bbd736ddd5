"""Slices through the loss of stored supernets: which rows are meant, and what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import StudyError
from orchestrator.ledger import Row
from orchestrator.outbox import Outbox, row_record
from orchestrator.results import by_label
from orchestrator.selecting import use_plugins
from orchestrator.study import Study

Run = tuple[Study, Row]
_LEVELS = 16
_MOST_RUNS = 12


def find_runs(texts: Sequence[str], root: Path) -> list[Run]:
    """Return the searches that are meant.

    Args:
        texts: `STUDY`, which means the best finished search of each line of its table, or
            `STUDY:KEY` with a ledger key or its first characters.
        root: Folder of studies.

    Raises:
        StudyError: There is no such study or row, its supernet is not stored, or it is simulated.
    """
    found: list[Run] = []
    for text in texts:
        name, colon, key = text.partition(":")
        study = Study.open(name, root)
        if study.simulated:
            raise StudyError(f"study {study.name} is simulated: no supernet was trained in it.")
        use_plugins(study)
        rows = [row for row in study.rows("search") if row.status == "finished"]
        stored = [row for row in rows if row.final and (study.path / row.final).is_file()]
        if colon:
            meant = [row for row in rows if key and row.key.startswith(key)]
            if len(meant) != 1:
                raise StudyError(
                    f"{text}: {len(meant)} finished searches of {study.name} have a key that "
                    f"begins with {key!r}. Keys are the names of the files in its ledger/."
                )
            if meant[0] not in stored:
                raise StudyError(f"{text}: its supernet, final.pt, is not stored.")
            found.append((study, meant[0]))
            continue
        if not stored:
            raise StudyError(f"{study.name} has no finished search with a stored final.pt.")
        for group in by_label(stored).values():
            best = max(
                group, key=lambda row: (row.genotype_value("val_accuracy") or 0.0, -row.seed)
            )
            found.append((study, best))
    runs = list({(study.path, row.key): (study, row) for study, row in found}.values())
    if len(runs) > _MOST_RUNS:
        raise StudyError(
            f"{len(runs)} searches are meant, and a drawing has room for {_MOST_RUNS}. Name them "
            f"by key, as {runs[0][0].name}:{runs[0][1].key}."
        )
    return runs


def measure(
    runs: Sequence[Run],
    *,
    size: int,
    extent: float,
    images: int,
    device: str = "auto",
    told: Callable[[int, Row], None] = lambda _count, _row: None,
) -> list[Run]:
    """Measure each run's landscape and keep it in its row; MLflow gets it with the row.

    Returns:
        The runs, with `landscape` filled in.

    Raises:
        StudyError: A study is running.
        NasError: A stored supernet cannot be opened.
    """
    from trainables.landscape import landscape
    from trainables.stored import open_final

    measured: list[Run] = []
    for count, (study, row) in enumerate(runs, start=1):
        with study.hold(), Outbox(study.outbox) as outbox:
            # As it is now: another command may have added to it.
            row = study.ledger.read(row.key) or row
            trial = open_final(
                study.path / str(row.final), dataset=row.settings["dataset"], device=device
            )
            found = landscape(trial, size=size, extent=extent, images=images)
            row = replace(row, landscape=asdict(found))
            study.ledger.write(row)
            outbox.append(row_record(row.key, time.time()))
        measured.append((study, row))
        told(count, row)
    return measured


def draw(panels: Sequence[tuple[str, dict[str, Any]]], path: Path) -> None:
    """Draw landscapes side by side on common scales: loss above, accuracy below.

    Args:
        panels: Title and `Row.landscape` of each.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(panels)
    figure = Figure(figsize=(3.2 * count + 1.0, 6.2), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, count, squeeze=False, sharex=True, sharey=True)
    for axes_row, (name, label, scale) in zip(
        grid, (("loss", "val loss, nats", 1.0), ("accuracy", "val accuracy, %", 100.0)), strict=True
    ):
        values = [value for _, panel in panels for row in panel[name] for value in row]
        low, high = scale * min(values), scale * max(values)
        # Common levels, or equal colours of two panels would mean different values.
        levels = [low + (high - low) * step / _LEVELS for step in range(_LEVELS + 1)]
        for axes, (title, panel) in zip(axes_row, panels, strict=True):
            offsets = panel["offsets"]
            mesh = [[scale * value for value in row] for row in panel[name]]
            image = axes.contourf(
                offsets, offsets, mesh, levels=levels if high > low else None,
                cmap="viridis_r" if name == "loss" else "viridis",
            )  # fmt: skip
            axes.plot(0.0, 0.0, marker="+", color="#D55E00", markersize=12, markeredgewidth=2)
            axes.set_aspect("equal")
            if name == "loss":
                axes.set_title(title, fontsize=9)
        figure.colorbar(image, ax=axes_row, shrink=0.8).set_label(label, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("along the random direction", fontsize=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("along the gradient", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
