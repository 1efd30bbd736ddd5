"""Cells that keep no activations for the backward pass but run again in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spaces.core.errors import SpaceError


def recomputed(
    run: Callable[..., Tensor],
    inputs: list[Tensor],
    cell: nn.Module,
    generator: torch.Generator | None,
) -> Tensor:
    """Return `run(*inputs)`, of which the backward pass keeps no more than inputs and output.

    When gradients are taken, `run` is called once more, at the weights as they then are; it finds
    the same statistics and draws the same numbers, and leaves both as it found them. So results are
    those of a plain call, bit for bit.

    Args:
        run: Gives the output of the cell.
        inputs: `(B, C, H, W)` each.
        cell: Whose buffers `run` may update.
        generator: What `run` draws from; None where it draws nothing.
    """
    if not torch.is_grad_enabled():
        return run(*inputs)
    start = None if generator is None else generator.get_state()
    calls = 0

    def first_or_again(*tensors: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            return run(*tensors)
        with _left_alone(cell, generator):
            if generator is not None and start is not None:
                generator.set_state(start)
            return run(*tensors)

    # Of torch's global generators nothing is drawn.
    output: Tensor = checkpoint(
        first_or_again, *inputs, use_reentrant=False, preserve_rng_state=False
    )
    return output


@contextmanager
def _left_alone(cell: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Have buffers and generator afterwards as they are now."""
    buffers = list(cell.buffers())
    kept = [torch.empty_like(buffer) for buffer in buffers]
    draws = None if generator is None else generator.get_state()
    _copy(buffers, kept)
    try:
        yield
    finally:  # torch ends a second run by an exception, once it has what the gradients need
        _copy(kept, buffers)
        if generator is not None and draws is not None:
            generator.set_state(draws)


@torch.no_grad()
def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    if values:
        torch._foreach_copy_(into, values)


def recompute_cells(supernet: nn.Module) -> None:
    """Have the cells of a supernet run again in the backward pass from now on.

    Raises:
        SpaceError: It is a module of a space's own, which does not say how.
    """
    if not hasattr(supernet, "recomputes"):
        raise SpaceError(
            "search.checkpointing needs a supernet with the attribute `recomputes`, which "
            f"{type(supernet).__name__} does not have. Set search.checkpointing=none."
        )
    setattr(supernet, "recomputes", True)  # noqa: B010 (a module's attribute would be a tensor)
