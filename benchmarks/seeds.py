"""A block of seeds, as a study runs it, against the same searches one after the other."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measuring import interleaved
from benchmarks.step import Size
from benchmarks.trials import make_trial
from trainables.block import Block


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

    On a GPU the seeds run side by side, on a CPU one after the other, where the factor is about 1.
    """
    alone = make_trial(space_name, method, size, images, device)
    trials = {
        seed: make_trial(space_name, method, size, images, device, seed=seed)
        for seed in range(seeds)
    }
    block = Block()

    def epoch() -> None:
        for _, run in block.epochs(trials):
            run()

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
