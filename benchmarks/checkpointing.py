"""What checkpointing of cells saves and costs: `python -m benchmarks.checkpointing`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Work, interleaved, peak_bytes, saved_bytes
from benchmarks.step import SPACES, Size
from benchmarks.trials import make_trial
from trainables.bilevel import Batch, Bilevel
from trainables.timing import Stopwatch


def measure(
    space_name: str, method: str, size: Size, device: torch.device, *, rounds: int
) -> dict[str, Any]:
    """Return the row of a step whose cells run again, against one that keeps everything."""
    steps: dict[str, Work] = {}
    kept: dict[str, int] = {}
    for what in ("none", "cell"):
        trial = make_trial(space_name, method, size, 2 * size.batch, device, checkpointing=what)
        bilevel, batches = trial._bilevel, trial._data.next_batches()
        clocks = Stopwatch(device), Stopwatch(device)
        steps[what] = partial(bilevel.step, bilevel.point(0), *batches, clocks)
        kept[what] = saved_bytes(partial(_pass, bilevel, batches[0]), bilevel.weights)
    times = interleaved(steps, rounds, device)
    peaks = {f"peak_bytes_{what}": peak_bytes(step, device) for what, step in steps.items()}
    return {
        "case": f"checkpointing {space_name} {method} C={size.channels} batch={size.batch}",
        "speedup": times["none"].least / times["cell"].least,
        "ours_s": times["cell"].least,
        "reference_s": times["none"].least,
        "against": "none",
        "saved_bytes": kept["cell"],
        "reference_saved_bytes": kept["none"],
        **{name: peak for name, peak in peaks.items() if peak is not None},
        "rounds": rounds,
    }


def _pass(bilevel: Bilevel, batch: Batch) -> Tensor:
    at = bilevel.point(0)
    mixture = bilevel.training_mixture(bilevel.drawn(bilevel.logits, at), at)
    return bilevel.loss_on(mixture, batch, "batch")


def main() -> int:
    """Print the rows of every space."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = Size(batch=64 if device.type == "cuda" else 8)
    for space in SPACES:
        row = measure(space, "darts", size, device, rounds=3)
        times = f"{row['ours_s']:.3g} s against {row['reference_s']:.3g} s"
        saved = (
            f"{row['saved_bytes'] / 1e6:.1f} MB against {row['reference_saved_bytes'] / 1e6:.1f}"
        )
        print(f"{row['case']}: step {times}, saved {saved} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
