"""The robust region: settings that cannot be told from the best one, and one to recommend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.frame import StudyFrame
from orchestrator.analysis.surrogate import Points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RobustRegion:
    """Configurations within one standard error of the best.

    Attributes:
        best: Settings of the best configuration, by short name.
        value: Its mean over seeds.
        error: Standard error of such a mean: of the spread over seeds, pooled over configurations.
        inside: Number of configurations in the region.
        of: Number of configurations.
        ranges: For each factor the lowest and highest number, or the categories, in the region.
        recommended: Settings of the configuration of the region that lies most in its middle.
        recommended_value: Its mean over seeds.
    """

    best: dict[str, Any]
    value: float
    error: float
    inside: int
    of: int
    ranges: dict[str, tuple[Any, ...]]
    recommended: dict[str, Any]
    recommended_value: float


def robust_region(frame: StudyFrame, points: Points) -> RobustRegion | None:
    """Return the region, or None without two seeds of any configuration, or without settings.

    The error is pooled: the spread of a few seeds of one configuration says little, and the best
    one is often the one whose seeds happen to agree. Recommended is the medoid: the member of the
    region with the least mean distance to the others, each setting scaled to its range.
    """
    import numpy as np

    several = [np.array(values) for values in points.seeds if len(values) > 1]
    if not several or not points.factors:
        return None
    freedom = sum(len(values) - 1 for values in several)
    pooled = math.sqrt(sum(float(((v - v.mean()) ** 2).sum()) for v in several) / freedom)
    best = int(np.argmax(points.y))
    error = pooled / math.sqrt(len(points.seeds[best]))
    inside = np.flatnonzero(points.y >= points.y[best] - error)
    middle = int(inside[_medoid(_scaled(points)[inside])])
    sign = 1.0 if frame.maximize else -1.0
    settings = [_settings(frame, points, int(place)) for place in inside]
    ranges: dict[str, tuple[Any, ...]] = {}
    for factor in points.factors:
        values = [each[factor.short] for each in settings if each[factor.short] is not None]
        ordered = [level for level in factor.levels if level in values]
        ranges[factor.short] = (
            tuple(ordered) if factor.kind == "category" else tuple(ordered[:1] + ordered[-1:])
        )
    return RobustRegion(
        best=_settings(frame, points, best),
        value=sign * float(points.y[best]),
        error=error,
        inside=len(inside),
        of=len(points.y),
        ranges=ranges,
        recommended=_settings(frame, points, middle),
        recommended_value=sign * float(points.y[middle]),
    )


def _scaled(points: Points) -> NDArray[np.float64]:
    import numpy as np

    x = points.x.copy()
    for place in range(x.shape[1]):
        width = np.ptp(x[:, place])
        x[:, place] = (x[:, place] - x[:, place].min()) / width if width else 0.0
    return x


def _medoid(x: NDArray[np.float64]) -> int:
    import numpy as np

    distances = np.abs(x[:, None, :] - x[None, :, :]).sum(axis=2).mean(axis=1)
    return int(np.argmin(np.round(distances, 12)))


def _settings(frame: StudyFrame, points: Points, place: int) -> dict[str, Any]:
    import pandas as pd

    used = frame.used
    row = used[used["config_id"] == points.ids[place]].iloc[0]
    return {
        each.short: None if pd.isna(row[each.name]) else row[each.name] for each in points.factors
    }
