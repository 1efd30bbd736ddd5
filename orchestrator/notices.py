"""What every output of a study has to say of it first, in the same words everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.oracle_section import title_of

if TYPE_CHECKING:
    from orchestrator.experiment import Experiment
    from orchestrator.ledger import Row

SIMULATED = "simulated"


def notices(experiment: Experiment) -> list[str]:
    """Return the sentences without which no number of the study may be shown; often none."""
    said = []
    if experiment.simulation is not None and experiment.oracle is not None:
        said.append(_simulated(title_of(experiment.oracle)))
    return said


def row_notices(row: Row) -> list[str]:
    """Return the sentences without which no number of the row may be shown."""
    return [_simulated(row.settings["simulation"]["oracle"])] if row.simulated else []


def marks(experiment: Experiment) -> dict[str, Any]:
    """Return the same for JSON documents."""
    return {"simulated": experiment.simulation is not None, "notices": notices(experiment)}


def tags(experiment: Experiment) -> dict[str, str]:
    """Return the same as tags of the study's run in MLflow; none where nothing is to be said."""
    return {SIMULATED: "true"} if experiment.simulation is not None else {}


def row_tags(row: Row) -> dict[str, str]:
    """Return the same as tags of the row's run in MLflow."""
    return {SIMULATED: "true"} if row.simulated else {}


def _simulated(table: str) -> str:
    return (
        f"SIMULATED: nothing was trained. Accuracies and times are those of the table {table}; a "
        "search draws a cell of it by chance in each epoch and keeps the best by validation "
        "accuracy. NO hyperparameter, method or setting has an effect in here: lines differ by "
        "chance."
    )
