"""What the dry run says of a method's schedule: the resolved epochs and values."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.estimate import _schedule
from orchestrator.units import Unit
from spaces.core import plugins


def schedule(method: dict[str, Any], epochs: int, selection: str = "magnitude") -> str:
    name, config = plugins.make_config("methods", method)
    settings = {
        "method": plugins.settings_of(name, config),
        "selection": {"name": selection},
        "search": {"weight_decay": 3e-4},
    }
    return _schedule(Unit("search", settings, {0: "key"}, "id", 0, {}, name, epochs))


@pytest.mark.parametrize(
    ("method", "epochs", "expected"),
    [
        ({"name": "darts"}, 50, ""),
        ({"name": "sdarts_rs"}, 10, "radius 0.03 to 0.273"),
        ({"name": "pc_darts"}, 50, "alphas rest for 15 of 50 epochs"),
        (
            {"name": "ms_darts"},
            40,
            "alphas rest for 5 of 40 epochs, radius 0.025 to 0.244, bandwidth 1 throughout, "
            "genotype of the best epoch",
        ),
        ({"name": "gdas"}, 50, "tau 10 to 0.1"),
        ({"name": "darts_minus"}, 50, "skip_scale 1 to 0.02"),
        (
            {"name": "p_darts"},
            75,
            "stage 1: +0 cells, all operations, alphas rest for 10 of 25 epochs, "
            "skip_dropout 0.096 to 0.00608 · "
            "stage 2: +6 cells, 5 operations, alphas rest for 10 of 25 epochs, "
            "skip_dropout 0.384 to 0.0243 · "
            "stage 3: +12 cells, 3 operations, alphas rest for 10 of 25 epochs, "
            "skip_dropout 0.672 to 0.0426",
        ),
        (
            {"name": "darts", "early_stop": "eigenvalue"},
            50,
            "may end early by eigenvalue, measured 25 times at most",
        ),
        (
            {
                "name": "darts",
                "early_stop": {"name": "eigenvalue", "then": "regularize", "extra_epochs": 3},
            },
            50,
            "may go back by eigenvalue, 4 times at most and up to 15 epochs each, which are not "
            "counted",
        ),
        (
            {"name": "darts", "select": "perturbation", "fixed_alphas": True},
            9,
            "alphas rest for 9 of 9 epochs, genotype by perturbation after the last epoch, its "
            "time not counted",
        ),
        (
            {"name": "random"},
            9,
            "alphas rest for 9 of 9 epochs, genotype by random after the last epoch, its time not "
            "counted",
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_a_schedule_is_resolved(method: dict[str, Any], epochs: int, expected: str) -> None:
    assert schedule(method, epochs) == expected


def test_a_radius_grows_over_all_stages_together() -> None:
    parts = schedule({"name": "p_darts", "perturb": "sdarts_rs"}, 75).split(" · ")
    # 0.03 + 0.27 epoch / 75, in epochs 0 and 24, 25 and 49, 50 and 74 of the search.
    ends = ["radius 0.03 to 0.116", "radius 0.12 to 0.206", "radius 0.21 to 0.296"]
    assert [part.rpartition(", ")[2] for part in parts] == ends
