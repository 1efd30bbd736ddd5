"""Training steps through torch.compile, and a clear word where it cannot work."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def check_compiler(device: str) -> None:
    """Refuse a machine on which torch.compile has nothing to compile with.

    Args:
        device: "cpu" or "cuda".

    Raises:
        StateError: The compiler is missing, or for a GPU Triton is.
    """
    missing = None
    named = os.environ.get("CXX")
    compiler = named or ("clang++" if sys.platform == "darwin" else "g++")
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            missing = "the package triton, which comes with torch's builds for CUDA"
        elif not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
            missing = "a C compiler, gcc or clang, or the one that CC names"
    elif shutil.which(compiler) is None:
        missing = f"a C++ compiler: there is no {compiler}" + (
            " (CXX)" if named else "; or set CXX"
        )
    if missing is None and not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing = "Python's headers (python3-dev, or a Python that has them)"
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
