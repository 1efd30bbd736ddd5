"""A step of fixed shapes that is recorded once as a CUDA graph and then replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Step = Callable[..., Mapping[str, Tensor]]

WARM_UP = 3
"""Calls before the one that is recorded: libraries choose their kernels, optimizers make state."""


_APART = 0.01
"""Of how far a step moves its state, the share by which a replay may end elsewhere: rounding."""


class CaptureError(RuntimeError):
    """A step that cannot be recorded, or does something else replayed; it has not been taken."""


class _Anew:
    """Stands for a graph where there are none: a replay takes the step anew."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.replay = step


class Captured:
    """A step with inputs and outputs at fixed places, which on a GPU is recorded and replayed.

    What the step reads and writes besides its inputs has to stay where it is, and every number of
    Python's in it stays as it was when it was recorded. Before a recording is trusted, one step is
    taken both ways from the same state and the results are compared. On a CPU, which has no graphs,
    a replay takes the step anew on the same buffers: all else is the same.

    Args:
        step: Function of tensors on the device, to scalars by name. It may neither wait for the
            device nor look at values.
        device: Where it runs.
        generators: What it draws from, on that device.
        state: Returns all tensors that the step changes in place.
        stream: Where the step is recorded, and warmed up, unless another than the device's default
            stream is the current one: then there. What is replayed side by side has to be recorded
            on different streams, since libraries keep a workspace for each stream: see
            https://github.com/pytorch/pytorch/issues/193402. The memory of a graph is its own.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        generators: Sequence[torch.Generator],
        state: Callable[[], Sequence[Tensor]],
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._stream = stream
        self._step = step
        self._device = device
        self._generators = generators
        self._state = state
        self._inputs: list[Tensor] = []
        self._outputs: Mapping[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | _Anew | None = None
        self._calls = 0

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Take the step; the first calls do so one kernel after the other.

        Args:
            inputs: Of the same shapes and types in all calls.

        Returns:
            Copies of the outputs, which the next call does not change.

        Raises:
            CaptureError: The step cannot be recorded, or a replay does something else.
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
        if self._calls <= WARM_UP:
            self._take()
        elif self._graph is None:
            self._graph = self._recorded()
            self._replay_and_compare(self._graph)
        else:
            self._graph.replay()
        return {name: value.detach().clone() for name, value in self._outputs.items()}

    def _take(self) -> None:
        """Take the step, on a GPU on the stream it is recorded on, as torch asks for."""
        if self._device.type != "cuda":
            self._outputs = self._step(*self._inputs)
            return
        current, own = torch.cuda.current_stream(self._device), self._side()
        own.wait_stream(current)
        with torch.cuda.stream(own):
            self._outputs = self._step(*self._inputs)
        current.wait_stream(own)

    def _side(self) -> torch.cuda.Stream:
        """Return the stream to record on: graphs cannot be on the default one."""
        current = torch.cuda.current_stream(self._device)
        if current != torch.cuda.default_stream(self._device):
            return current
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        return self._stream

    def _recorded(self) -> torch.cuda.CUDAGraph | _Anew:
        if self._device.type != "cuda":
            return _Anew(self._take)
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph, stream=self._side()):
                self._outputs = self._step(*self._inputs)
        except RuntimeError as error:
            raise CaptureError(f"a step could not be recorded ({error})") from error
        return graph

    @torch.no_grad()
    def _replay_and_compare(self, graph: torch.cuda.CUDAGraph | _Anew) -> None:
        """Replay the step where it does what it does when it is taken; else leave all as it is."""
        state, recorded = self._state(), self._outputs
        before = [value.clone() for value in state]
        draws = [generator.get_state() for generator in self._generators]
        with torch.enable_grad():
            self._take()
        expected = [value.clone() for value in [*state, *self._outputs.values()]]
        self._set_back(state, before, draws)
        self._outputs = recorded
        with torch.enable_grad():
            graph.replay()
        found = [*state, *self._outputs.values()]
        moved = [new.double() - old.double() for new, old in zip(expected, before, strict=False)]
        apart = [a.double() - b.double() for a, b in zip(found, expected, strict=True)]
        limit = _APART * _length([*moved, *expected[len(state) :]])
        # Where the step itself diverges there is nothing to compare.
        if bool(limit.isfinite()) and not bool(_length(apart) <= limit):
            self._set_back(state, before, draws)
            raise CaptureError("a replayed step did something else than the step itself")

    def _set_back(
        self, state: Sequence[Tensor], values: Sequence[Tensor], draws: Sequence[Tensor]
    ) -> None:
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)
        for generator, drawn in zip(self._generators, draws, strict=True):
            generator.set_state(drawn)


def _length(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.double().norm().cpu() for part in parts]).norm()
