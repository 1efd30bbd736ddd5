"""Training steps through torch.compile, and a clear word where it cannot work."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def missing_compiler(device: str) -> str | None:
    """Return what torch.compile lacks on this machine; None where it has all it needs.

    Args:
        device: "cpu" or "cuda".
    """
    named = os.environ.get("CXX")
    compiler = named or ("clang++" if sys.platform == "darwin" else "g++")
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton, which comes with torch's builds for CUDA"
        if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
            return "a C compiler, gcc or clang, or the one that CC names"
    elif shutil.which(compiler) is None:
        return f"a C++ compiler: there is no {compiler}" + (" (CXX)" if named else "; or set CXX")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (python3-dev, or a Python that has them)"
    return None


def check_compiler(device: str) -> None:
    """Refuse a machine on which torch.compile has nothing to compile with.

    Args:
        device: "cpu" or "cuda".

    Raises:
        StateError: The compiler is missing, or for a GPU Triton is.
    """
    missing = missing_compiler(device)
    if missing is not None:
        raise StateError(
            f"retrain.compile needs {missing}. Install it, or set retrain.compile=false."
        )


def compiled(network: nn.Module, device: str) -> Callable[..., Any]:
    """Return a call of the network that compiles at first use; weights stay the network's own.

    Args:
        network: In training mode when called; `Draws` in the place of a generator.
        device: "cpu" or "cuda".

    Raises:
        StateError: Nothing can be compiled here; from the call, torch.compile fails.
    """
    import torch

    check_compiler(device)
    call = torch.compile(network)

    def run(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise StateError(
                f"torch.compile cannot compile this network: {error}. Set retrain.compile=false."
            ) from error

    return run


class CompileError(RuntimeError):
    """Cells that torch.compile cannot compile."""


class CompiledCells:
    """Calls of a supernet's cells that compile at first use; weights stay the cells' own.

    Cells of one form share their code: it takes them as an argument. What torch would compile anew
    too often is an error, or it would silently be run as it is.

    Attributes:
        on: Whether calls are compiled; passes outside of steps are not worth it.
    """

    LIMIT = 256
    """Versions of the code: for channels, strides, statistics and what gradients are taken of."""

    def __init__(self) -> None:
        import torch

        self.on = False
        self._call = torch.compile(_run_cell, dynamic=False)

    def __call__(self, run: Callable[..., Any], cell: nn.Module, *arguments: Any) -> Any:
        """Return what `run(cell, *arguments)` does.

        Raises:
            CompileError: torch.compile fails.
        """
        if not self.on:
            return run(cell, *arguments)
        import torch

        limit: dict[str, Any] = {"recompile_limit": self.LIMIT, "fail_on_recompile_limit_hit": True}
        try:
            with torch._dynamo.config.patch(limit), warnings.catch_warnings():
                # It looks at the gradients of all inputs, of op weights too, which have none.
                warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
                return self._call(run, cell, *arguments)
        except _failures() as error:
            raise CompileError(str(error)) from error


def _failures() -> tuple[type[Exception], ...]:
    import torch

    found = torch._dynamo.exc
    return found.TorchDynamoException, found.FailOnRecompileLimitHit


def _run_cell(run: Callable[..., Any], cell: nn.Module, *arguments: Any) -> Any:
    return run(cell, *arguments)
