"""An epoch of a search, ours against the reference: input pipeline, steps, and validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from benchmarks.measuring import interleaved
from benchmarks.pipeline import ReferenceImages
from benchmarks.reference.steps import Batch, ReferenceSearch
from benchmarks.reference.supernets import copy_weights
from benchmarks.step import Size, reference_of
from benchmarks.trials import make_trial
from trainables.search import SearchTrial


def make_reference(trial: SearchTrial, method: str, size: Size) -> Callable[[], None]:
    """Return an epoch as public code runs it: two DataLoaders, steps, a pass for validation."""
    net = reference_of(trial.space).to(trial.device)
    copy_weights(trial._bilevel.supernet, net)  # type: ignore[arg-type]
    search = ReferenceSearch(net, trial.alphas, method)
    images = int(trial.description["dataset"]["images"])
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (images, size.image, size.image, 3), dtype=np.uint8)
    data = ReferenceImages(pixels, size.image)

    def loader(rows: range) -> DataLoader[Any]:
        return DataLoader(Subset(data, rows), size.batch, shuffle=True, drop_last=True)

    train, val = loader(range(images // 2)), loader(range(images // 2, images))

    def moved(batch: list[Tensor]) -> Batch:
        return batch[0].to(trial.device), batch[1].to(trial.device)

    def epoch() -> None:
        for train_batch, val_batch in zip(train, val, strict=True):
            search.step(moved(train_batch), moved(val_batch))
        net.eval()
        op_weights = {name: matrix.detach() for name, matrix in search.op_weights().items()}
        with torch.no_grad():
            for batch in val:
                search.loss(net, moved(batch), op_weights)
        net.train()

    return epoch


def measure(
    space_name: str, method: str, size: Size, device: torch.device, *, rounds: int, images: int
) -> dict[str, Any]:
    """Return the row of a case; times in seconds."""
    trial = make_trial(space_name, method, size, images, device)
    reference = make_reference(trial, method, size)
    cases = {"ours": trial.run_epoch, "reference": reference}
    times = interleaved(cases, rounds, device)
    ours, theirs = times["ours"], times["reference"]
    return {
        "case": f"search {space_name} {method} C={size.channels} batch={size.batch}",
        "speedup": theirs.least / ours.least,
        "speedup_of_medians": theirs.median / ours.median,
        "ours_s": ours.least,
        "ours_median_s": ours.median,
        "reference_s": theirs.least,
        "reference_median_s": theirs.median,
        "steps": trial.steps_per_epoch,
        "images_per_s": 2 * size.batch * trial.steps_per_epoch / ours.least,
        "rounds": rounds,
    }
