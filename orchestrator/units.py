"""What Ray Tune is given to run: one configuration for a block of seeds. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.progress import Stage


@dataclass(frozen=True)
class Unit:
    """One Ray trial: a configuration and the seeds that it runs for in lock-step.

    Attributes:
        stage: "search" or "retrain".
        settings: Arguments of the trial, all defaults filled in.
        rows: Ledger key of each seed.
        config_id: Identity of the configuration, without the seed.
        block: Index of the grid block that it belongs to.
        params: What was swept, flat: {"search.weight_lr": 0.01}.
        label: What tells its row from others in a table.
        epochs: Epochs of the whole run.
        extra: What a row records of it besides: git commit, resources, genotype hash.
    """

    stage: Stage
    settings: Mapping[str, Any]
    rows: Mapping[int, str]
    config_id: str
    block: int
    params: Mapping[str, Any]
    label: str
    epochs: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    def ray_config(self, study: str, device: str) -> dict[str, Any]:
        """Return the configuration of the Ray trial: plain data that workers can read.

        Args:
            study: Absolute path of the study folder.
            device: "cpu" or "cuda".
        """
        return {
            **self.settings,
            "seeds": list(self.rows),
            "device": device,
            "unit": {
                "study": study,
                "stage": self.stage,
                "rows": {str(seed): key for seed, key in self.rows.items()},
                "config_id": self.config_id,
                "block": self.block,
                "params": dict(self.params),
                "label": self.label,
                "epochs": self.epochs,
                **self.extra,
            },
        }
