"""Time and memory of training a published genotype."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measuring import interleaved
from benchmarks.trials import use_random_images
from spaces.core import named
from trainables.retrain import RetrainTrial
from trainables.timing import peak_memory_bytes, reset_peak_memory

EPOCH_IMAGES = 50_000
"""Images of an epoch of CIFAR-10, to which the time of a few steps is scaled."""

_EPOCHS = 1_000  # never the last one: it reads the test split


def measure(
    genotype: str, batch: int, device: torch.device, *, rounds: int, steps: int
) -> dict[str, Any]:
    """Return the row of a genotype at its published size.

    Peak memory is that of the process on a CPU, with torch itself, and of torch on a GPU.

    Args:
        genotype: Name of a published genotype.
        batch: Images of a step.
        device: Where it trains.
        rounds: How often the steps are timed.
        steps: Steps of a round.
    """
    use_random_images()
    found = named.named(genotype)
    trial = RetrainTrial(
        genotype=found,
        space=found.space,
        dataset={"name": "random_images", "images": batch * steps},
        retrain={"epochs": _EPOCHS, "batch_size": batch},
        device=device,
    )
    reset_peak_memory(device)
    times = interleaved({"ours": trial.run_epoch}, rounds, device)["ours"]
    size = trial.space.evaluation
    return {
        "case": f"retrain {genotype} C={size.channels} cells={size.cells} batch={batch}",
        "speedup": None,
        "step_s": times.least / steps,
        "epoch_s": times.least / steps * (EPOCH_IMAGES / batch),
        "images_per_s": batch * steps / times.least,
        "peak_bytes": peak_memory_bytes(device),
        "steps": steps,
        "rounds": rounds,
    }
