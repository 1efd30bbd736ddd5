"""Many trials: configuration, Ray Tune, ledger, MLflow, reports, the `nas` command.

`from orchestrator import Study` opens a study in a notebook; nothing else is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.study import Study as Study

__all__ = ["Study"]


def __getattr__(name: str) -> Any:
    # Late: importing the package is part of every `nas` command and of every worker.
    if name == "Study":
        from orchestrator.study import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
