"""A block of seeds against the same searches one after the other."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measuring import interleaved
from benchmarks.step import Size
from benchmarks.trials import make_trial


def measure(
    space_name: str,
    method: str,
    size: Size,
    device: torch.device,
    *,
    seeds: int,
    rounds: int,
    images: int,
) -> dict[str, Any]:
    """Return the row of a block: an epoch of all its seeds against `seeds` epochs of one.

    On a CPU a block runs its seeds one after the other, so that the factor is about 1.
    """
    alone = make_trial(space_name, method, size, images, device)
    block = [make_trial(space_name, method, size, images, device) for _ in range(seeds)]

    def epoch() -> None:
        for trial in block:
            trial.run_epoch()

    times = interleaved({"ours": epoch, "alone": alone.run_epoch}, rounds, device)
    ours, single = times["ours"], times["alone"]
    return {
        "case": f"seeds {space_name} {method} C={size.channels} batch={size.batch} R={seeds}",
        "speedup": seeds * single.least / ours.least,
        "speedup_of_medians": seeds * single.median / ours.median,
        "ours_s": ours.least,
        "ours_median_s": ours.median,
        "reference_s": seeds * single.least,
        "reference_median_s": seeds * single.median,
        "times_one": ours.least / single.least,
        "rounds": rounds,
    }
