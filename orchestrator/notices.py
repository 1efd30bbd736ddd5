"""What every output of a study has to say of it first, in the same words everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.experiment import ORACLE_METRICS
from orchestrator.oracle_section import title_of
from orchestrator.simulated_response import SAID

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment

SIMULATED = "simulated"


def notices(experiment: Experiment) -> list[str]:
    """Return the sentences without which no number of the study may be shown; often none."""
    said = []
    if experiment.simulation is not None and experiment.oracle is not None:
        said.append(_simulated(title_of(experiment.oracle), experiment.simulation.response))
    by_oracle = _by_oracle(experiment)
    if by_oracle and experiment.oracle is not None:
        said.append(
            f"LED BY TEST ACCURACIES of the table {title_of(experiment.oracle)} "
            f"({', '.join(by_oracle)}), as tune.allow_oracle_metric permits: what was found is "
            "chosen by what it is judged by, and no test accuracy here is an unbiased one."
        )
    return said


def marks(experiment: Experiment) -> dict[str, Any]:
    """Return the same for JSON documents."""
    return {
        "simulated": experiment.simulation is not None,
        "simulated_response": _response(experiment),
        "oracle_metric": _by_oracle(experiment) or None,
        "notices": notices(experiment),
    }


def tags(experiment: Experiment) -> dict[str, str]:
    """Return the same as tags of all its runs in MLflow; none where nothing is to be said."""
    found = {SIMULATED: "true"} if experiment.simulation is not None else {}
    response = _response(experiment)
    found |= {"simulated_response": response} if response else {}
    by_oracle = _by_oracle(experiment)
    return found | ({"oracle_metric": ", ".join(by_oracle)} if by_oracle else {})


def _response(experiment: Experiment) -> str | None:
    """Return the name of the made-up response, or None."""
    simulation = experiment.simulation
    return simulation.response if simulation and simulation.response in SAID else None


def _by_oracle(experiment: Experiment) -> list[str]:
    asked = {"tune.metric": experiment.tune.metric}
    if experiment.retrain is not None:
        asked["retrain.by"] = experiment.retrain.by
    return [f"{key} {value}" for key, value in asked.items() if value in ORACLE_METRICS]


def _simulated(table: str, response: str) -> str:
    start = (
        f"SIMULATED: nothing was trained. Accuracies and times are those of the table {table}; a "
        "search draws a cell of it by chance in each epoch and keeps the best by validation "
        "accuracy."
    )
    if response in SAID:
        return (
            f"{start} The effect of hyperparameters is MADE UP, response '{response}': "
            f"{SAID[response]}. Nobody has measured it, and nothing else has an effect in here."
        )
    return (
        f"{start} NO hyperparameter, method or setting has an effect in here: lines differ by "
        "chance."
    )
