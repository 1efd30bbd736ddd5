"""A step of fixed shapes that is recorded once as a CUDA graph and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Step = Callable[..., Mapping[str, Tensor]]

WARM_UP = 3
"""Calls before the one that is recorded: libraries choose their kernels, optimizers make state."""


class CaptureError(RuntimeError):
    """A step that cannot be recorded; nothing has been changed by the attempt."""


class Captured:
    """A step with inputs and outputs at fixed places; on a GPU it is recorded and replayed.

    What the step reads and writes besides its inputs has to stay where it is, and every number of
    Python's in it stays as it was when it was recorded. On a CPU, which has no graphs, every call
    takes the step anew on the same buffers: the flow of data is the same.

    Args:
        step: Function of tensors on the device, to scalars by name. It may neither wait for the
            device nor look at values.
        device: Where it runs.
        generators: What it draws from, on that device.
    """

    def __init__(
        self, step: Step, device: torch.device, generators: Sequence[torch.Generator]
    ) -> None:
        self._step = step
        self._device = device
        self._generators = generators
        self._inputs: list[Tensor] = []
        self._outputs: Mapping[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Take the step; the first calls on a GPU do so one kernel after the other.

        Args:
            inputs: Of the same shapes and types in all calls.

        Returns:
            Copies of the outputs, which the next call does not change.

        Raises:
            CaptureError: The step cannot be recorded.
        """
        if not self._inputs:
            self._inputs = [torch.empty_like(value) for value in inputs]
        for buffer, value in zip(self._inputs, inputs, strict=True):
            if buffer.shape != value.shape or buffer.dtype != value.dtype:
                raise ValueError(
                    f"A recorded step takes {tuple(buffer.shape)} of {buffer.dtype}, got "
                    f"{tuple(value.shape)} of {value.dtype}."
                )
            buffer.copy_(value, non_blocking=True)
        self._calls += 1
        if self._device.type != "cuda":
            self._outputs = self._step(*self._inputs)
        elif self._calls <= WARM_UP:
            self._outputs = self._beside()
        else:
            if self._graph is None:
                self._graph = self._recorded()
            self._graph.replay()
        return {name: value.detach().clone() for name, value in self._outputs.items()}

    def _beside(self) -> Mapping[str, Tensor]:
        """Take the step on a stream of its own, as torch asks for before a recording."""
        current, own = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        own.wait_stream(current)
        with torch.cuda.stream(own):
            outputs = self._step(*self._inputs)
        current.wait_stream(own)
        return outputs

    def _recorded(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph):
                self._outputs = self._step(*self._inputs)
        except RuntimeError as error:
            raise CaptureError(f"a step could not be recorded ({error})") from error
        return graph
