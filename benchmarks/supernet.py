"""Time a first-order bilevel step of the engine against the op-by-op reference supernet.

    python -m benchmarks.supernet --space all --rounds 3

Both run in one process, interleaved, on one thread; the figure is the least process CPU time of all
rounds, so that a busy machine does not blur it. A step is one alpha step (Adam) and one weight step
(SGD with momentum, gradient norm clipped), each on a batch of its own. The reference does as the
authors' public code does: NCHW, and every gradient in both halves of the step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spaces.core import plugins
from spaces.core.mixture import Mixture
from spaces.core.space import Space
from tests.spaces.reference import DartsReference, NasBench201Reference, copy_weights

Step = Callable[[], None]
Loss = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


def make_space(name: str, channels: int, cells: int | None) -> Space:
    """Return a space at the benchmark's size."""
    depth = "cells_per_stage" if name == "nasbench201" else "cells"
    sizes = {"channels": channels, **({} if cells is None else {depth: cells})}
    name, config = plugins.make_config("spaces", {"name": name, **sizes})
    return plugins.load("spaces", name).build(config, name)


def make_reference(space: Space) -> nn.Module:
    """Return the op-by-op supernet of a space."""
    config = space.config
    if space.name == "nasbench201":
        return NasBench201Reference(config.channels, config.cells_per_stage, 3, 10)
    return DartsReference(config.channels, config.cells, 3, 10)


def make_step(
    net: nn.Module, loss_of: Loss, space: Space, batches: list[Tensor], *, targeted: bool
) -> Step:
    """Return a first-order bilevel step; `targeted` asks for just the gradients that are used."""
    generator = torch.Generator().manual_seed(0)
    alphas = {
        name: (1e-3 * torch.randn(shape, generator=generator)).requires_grad_()
        for name, shape in space.alpha_shapes().items()
    }
    weights = list(net.parameters())
    foreach = True if targeted else None
    weight_optimizer = torch.optim.SGD(
        weights, lr=0.025, momentum=0.9, weight_decay=3e-4, foreach=foreach
    )
    alpha_optimizer = torch.optim.Adam(
        alphas.values(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, foreach=foreach
    )
    labels = torch.arange(batches[0].shape[0]) % 10

    def half(images: Tensor, targets: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
        op_weights = {name: alpha.softmax(-1) for name, alpha in alphas.items()}
        if targeted and targets is weights:
            op_weights = {name: value.detach() for name, value in op_weights.items()}
        loss = loss_of(images, labels, op_weights)
        if targeted:
            for target, gradient in zip(targets, torch.autograd.grad(loss, targets), strict=True):
                target.grad = gradient
        else:
            weight_optimizer.zero_grad()
            alpha_optimizer.zero_grad()
            loss.backward()
        if targets is weights:
            nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()

    def step() -> None:
        half(batches[0], list(alphas.values()), alpha_optimizer)
        half(batches[1], weights, weight_optimizer)

    return step


def steps_of(space: Space, batch_size: int, image_size: int) -> dict[str, Step]:
    """Return the step of the reference and that of the engine, from equal weights."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, 3, image_size, image_size)
    batches = [torch.randn(shape, generator=generator) for _ in range(2)]
    engine = space.build_supernet(3, 10, seed=0)
    reference = make_reference(space)
    copy_weights(engine, reference)

    def engine_loss(images: Tensor, labels: Tensor, op_weights: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(
            engine(images, Mixture(op_weights), norm="batch_and_update"), labels
        )

    def reference_loss(images: Tensor, labels: Tensor, op_weights: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(reference(images, op_weights), labels)

    return {
        "reference": make_step(reference, reference_loss, space, batches, targeted=False),
        "engine": make_step(engine, engine_loss, space, batches, targeted=True),
    }


def cpu_seconds(step: Step) -> float:
    """Return the process CPU time of one step, in seconds."""
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", choices=("nasbench201", "darts", "all"), default="all")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, help="cells (per stage in nasbench201)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds, least is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("nasbench201", "darts") if options.space == "all" else (options.space,)
    print(f"{'space':<12}{'reference s':>13}{'engine s':>11}{'speed-up':>11}")
    for name in names:
        space = make_space(name, options.channels, options.cells)
        steps = steps_of(space, options.batch_size, options.image_size)
        times: dict[str, list[float]] = {who: [] for who in steps}
        for index in range(options.rounds + 1):
            for who, step in steps.items():
                seconds = cpu_seconds(step)
                if index:  # the first round warms up
                    times[who].append(seconds)
        least = {who: min(values) for who, values in times.items()}
        ratio = least["reference"] / least["engine"]
        print(f"{name:<12}{least['reference']:>13.3f}{least['engine']:>11.3f}{ratio:>10.2f}x")


if __name__ == "__main__":
    main()
