"""Frames of made-up studies, with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import qmc

from orchestrator.analysis.frame import StudyFrame, _factors


def frame_of(
    settings: Sequence[Mapping[str, Any]],
    values: Sequence[Sequence[float | None]],
    *,
    metric: str = "val_loss",
    **changes: Any,
) -> StudyFrame:
    """Return a frame with one configuration per mapping and one value per seed; None has failed."""
    lines, repeated = [], []
    for place, (given, seeds) in enumerate(zip(settings, values, strict=True)):
        for seed, value in enumerate(seeds):
            status = "finished" if value is not None else "failed"
            line = {"key": f"{place}-{seed}", "stage": "search", "status": status}
            line |= {"outcome": status, "label": f"c{place}", "method": "darts", "seed": seed}
            line |= {"space": "s", "dataset": "d", "config_id": f"c{place}", "block": place}
            line |= {"value": value, "time_s": 1.0, "gpu_hours": 0.0, "cpu_hours": 1.0}
            lines.append({**line, "epochs_done": 3, "epochs_total": 3})
            repeated.append(given)
    table = pd.DataFrame(lines)
    table["value"] = table["value"].astype(float)
    factors, columns = _factors(repeated)
    for factor in factors:
        table[factor.name] = pd.Series(columns[factor.name], index=table.index, dtype=object)
        if factor.kind == "number":
            table[factor.name] = table[factor.name].astype(float)
    facts = {"study": "made", "metric": metric, "maximize": not metric.endswith("loss")}
    facts |= {"share": metric.endswith("accuracy"), "simulated": False, "design": ""}
    return StudyFrame(**{**facts, "table": table, "factors": factors, **changes})


def function(
    of: Callable[[Any], Any], count: int, configurations: int, *, noise: float = 0.0, seeds: int = 2
) -> StudyFrame:
    """Return a frame of a function of the unit cube, turned so that less is better."""
    cube = qmc.Sobol(count, rng=np.random.default_rng(0)).random(configurations)
    rng = np.random.default_rng(1)
    values = [[float(v + noise * rng.normal()) for _ in range(seeds)] for v in of(cube)]
    settings = [
        {f"search.x{place}": float(value) for place, value in enumerate(line)} for line in cube
    ]
    return frame_of(settings, values)


def ishigami(cube: Any) -> Any:
    """Ishigami's function, a = 7 and b = 0.1; a fourth input has no effect."""
    x = np.pi * (2 * cube - 1)
    return np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])
