"""A device that is not the CPU, for machines that have none: what CUDA refuses is refused.

A tensor on `DEVICE` holds a CPU tensor, on which its operations run. Refused are operands on two
devices (but single numbers, copies and indices), generators of another device than what they fill,
and draws without a generator. So a search that runs here has each of its tensors where it belongs,
and has to find exactly what it finds on the CPU.

torch's device type "lazy", which nothing else uses, lends its name; autograd treats it as a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("lazy", 0)
_aten = torch.ops.aten
_TAKE_BOTH = {
    _aten.copy_.default,
    _aten._to_copy.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
_GIVE_NUMBERS = {_aten._local_scalar_dense.default, _aten.equal.default}
_Generator = torch.Generator


class DeviceError(RuntimeError):
    """Something that CUDA would refuse."""


class Elsewhere(Tensor):
    """A tensor on `DEVICE`."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Generator(_Generator):
    """A generator that knows which device it is for; its numbers are the CPU's."""

    kind: str

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        made.kind = torch.device(device).type
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return DEVICE if self.kind == DEVICE.type else torch.device("cpu")


# Arguments of operations are values and lists of them. torch's pytree, which walks anything, would
# take longer than the operations.


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _replaced(value: Any, kind: type, replace: Callable[[Any], Any]) -> Any:
    """Return a value with what is of a kind, in it or in its lists, replaced."""
    if isinstance(value, kind):
        return replace(value)
    if type(value) in (list, tuple):
        return type(value)(_replaced(each, kind, replace) for each in value)
    return value


def _raw(value: Any) -> Any:
    return _replaced(value, Elsewhere, lambda x: x.raw)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what the tensors hold, and put its results where they belong."""
    leaves = list(_leaves((*args, *kwargs.values())))
    elsewhere = any(isinstance(leaf, Elsewhere) for leaf in leaves)
    here = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere)]
    if elsewhere and func not in _TAKE_BOTH and any(leaf.dim() for leaf in here):
        raise DeviceError(f"{func}: operands on two devices")
    asked = kwargs.get("device")
    onto = elsewhere if asked is None else torch.device(asked).type == DEVICE.type
    if func in (_aten.copy_.default, _aten.index.Tensor):
        onto = isinstance(args[0], Elsewhere)
        if func is _aten.index.Tensor and elsewhere and not onto:
            raise DeviceError(f"{func}: the indices are not where the tensor is")
    drawn = torch.Tag.nondeterministic_seeded in func.tags
    if onto and drawn and not any(isinstance(leaf, _Generator) for leaf in leaves):
        raise DeviceError(f"{func}: a draw without a generator")
    raw_args, raw_kwargs = _raw(args), {name: _raw(value) for name, value in kwargs.items()}
    if asked is not None:
        raw_kwargs["device"] = "cpu"
    out = func(*raw_args, **raw_kwargs)
    if func in _GIVE_NUMBERS:
        return out
    put = _replaced(out, Tensor, Elsewhere) if onto else out
    return return_and_correct_aliasing(func, args, kwargs, put)


class _Operations(TorchDispatchMode):
    """Reaches what has no tensor among its operands, such as `torch.zeros(..., device=...)`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Reaches what is decided above operations: `torch.tensor`, `tolist`, the generators."""

    MAKERS: ClassVar = (torch.tensor, torch.as_tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func in self.MAKERS and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.tolist and isinstance(first, Elsewhere):
            return first.detach().raw.tolist()
        generator = kwargs.get("generator")
        if generator is not None:
            device = kwargs.get("device") or (first.device if first is not None else "cpu")
            if generator.device.type != torch.device(device).type:
                raise DeviceError(f"{func}: a generator of {generator.device} for {device}")
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Yield a device that is not the CPU; tensors on it can be made inside the context only."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch, "Generator", Generator)
        autocast = torch.autocast
        patch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k))
        name = "_get_foreach_kernels_supported_devices"
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("torch.") and name in vars(module):
                patch.setattr(module, name, lambda: ["cpu", DEVICE.type])
        stack.enter_context(_Functions())
        stack.enter_context(_Operations())
        yield DEVICE
