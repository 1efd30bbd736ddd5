"""The driver's side of `nas simulate`: which experiments can be simulated, and from which table.

The searches see a file of validation accuracies and training times that is written here; the test
accuracies of the table stay with the driver, which gives a retraining the one that it asks for.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator import factors, planning
from orchestrator.errors import ConfigError, StudyError
from orchestrator.experiment import Experiment, RaySettings, Simulation
from orchestrator.ledger import replace_file
from orchestrator.notices import SIMULATED
from orchestrator.oracle import StudyOracle
from orchestrator.oracle_section import fixed_spaces, space_names
from orchestrator.simulated_response import NONE, SAID, draws
from orchestrator.simulated_trial import SEARCHABLE, SimulatedRetrain, SimulatedSearch
from spaces.core import plugins
from spaces.core.errors import NasError, OracleError
from spaces.core.genotype import Genotype

if TYPE_CHECKING:
    from orchestrator.study import Study
    from orchestrator.units import Unit
    from spaces.core.oracle import Columns, Searchable

MODEL = "random search in the table, one draw an epoch"
MODEL_VERSION = 1
DEFAULT_CONCURRENT = 4


def simulated(experiment: Experiment, *, ray: bool, response: str | None = None) -> Experiment:
    """Return an experiment whose trials are looked up in its oracle's table.

    Its name ends in "-simulated", unless it has that word already.

    Args:
        experiment: What is to be tried out.
        ray: Whether the trials run on Ray or in the driver's own process.
        response: Name of a made-up response; None is that of the experiment, by default none.

    Raises:
        ConfigError: It names no oracle, asks for what no table has, or for no such response.
    """
    problems = []
    before = experiment.simulation
    response = response or (NONE if before is None else before.response)
    if response not in (NONE, *SAID):
        problems.append(f"--response must be one of {NONE}, {', '.join(SAID)}, got {response!r}.")
    if experiment.oracle is None:
        problems.append(
            "nas simulate needs a table: name one by `oracle:`, or "
            "--set 'oracle={name: nasbench201, path: FILE}'."
        )
    names = space_names(experiment.space)
    if len(names) > 1:
        problems.append(
            f"nas simulate needs one space, got {' and '.join(names)}: fix it with --set space=..."
        )
    if experiment.tune.metric == "val_loss":
        problems.append(
            "tune.metric must be val_accuracy in a simulation, got "
            f"{experiment.tune.metric!r}: the table has no such value."
        )
    if experiment.retrain is not None and experiment.retrain.by == "val_loss":
        problems.append(
            "retrain.by must be val_accuracy in a simulation, got "
            f"{experiment.retrain.by!r}: the table has no such value."
        )
    if problems:
        raise ConfigError("\n".join(f"{experiment.name}: {problem}" for problem in problems))
    name = experiment.name
    changes: dict[str, Any] = {
        "name": name if SIMULATED in name else f"{name}-{SIMULATED}",
        "simulation": Simulation.model_validate({"ray": ray, "response": response}),
    }
    if not ray:
        changes["ray"] = RaySettings()  # no cluster is asked for
    return experiment.model_copy(update=changes)


def check_table(experiment: Experiment) -> None:
    """Refuse an experiment whose table has nothing that a search could be simulated from.

    Raises:
        ConfigError: It is damaged, or lacks validation accuracies or training times.
    """
    try:
        _searchable(experiment)
    except NasError as error:
        raise ConfigError(f"{experiment.name}: {error}") from error


class SimulatedStudy:
    """What the driver needs of a simulated study.

    Args:
        study: The study, held by this process.

    Attributes:
        ray: Whether the trials run on Ray.

    Raises:
        StudyError: Its table is gone or has changed its kind.
    """

    trainables: ClassVar[dict[str, type]] = {"search": SimulatedSearch, "retrain": SimulatedRetrain}

    def __init__(self, study: Study) -> None:
        self._study = study
        self._experiment = study.experiment
        simulation = self._experiment.simulation or Simulation()
        self.ray, self._response = simulation.ray, simulation.response
        try:
            found = _searchable(self._experiment)
        except NasError as error:
            raise StudyError(
                f"study {study.name} is simulated, and its table cannot be read: {error} Correct "
                f"oracle.path in {study.experiment_file}."
            ) from error
        columns = _columns(found)
        content = _file_of(columns)
        of_values = hashlib.sha256()
        for column in columns.values():
            of_values.update(column.tobytes())
        self._digest = of_values.hexdigest()[:16]
        if not study.searchable.is_file() or study.searchable.read_bytes() != content:
            replace_file(study.searchable, content)

    def identity(self, *, plugins_digest: str | None) -> planning.Identity:
        """Return what enters the keys of its rows: the table in the place of the images."""
        oracle = self._experiment.oracle or {}
        chosen = {key: value for key, value in oracle.items() if key != "path"}
        facts = [MODEL, MODEL_VERSION, self._response, chosen, self._digest]
        content = json.dumps(facts, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        per_trial = self._experiment.tune.per_trial
        return planning.Identity(
            dataset={
                "name": self._experiment.dataset["name"],
                "digest": f"{SIMULATED} {digest}",
            },
            plugins=plugins_digest,
            git=planning.git_commit(),
            per_trial={"cpu": per_trial.cpus, "gpu": per_trial.most_gpus},
        )

    def units(self, units: Sequence[Unit]) -> list[Unit]:
        """Return units as simulated ones, named so wherever their labels are shown."""
        return [self._unit(unit) for unit in units]

    def _unit(self, unit: Unit) -> Unit:
        said: dict[str, Any] = {
            "model": MODEL,
            "response": self._response,
            "oracle": self._oracle.title,
        }
        word = SIMULATED if self._response == NONE else f"{SIMULATED}-{self._response}"
        label = unit.label if unit.label.startswith(word) else f"{word} {unit.label}"
        if unit.stage == "search":
            dimensions = self._blocks[unit.block].dimensions
            said["draws"] = draws(self._response, dimensions, unit.params)
            said["table"] = self._study.searchable.relative_to(self._study.path).as_posix()
            settings = {**unit.settings, "simulation": said}
            extra = {**unit.extra, "stoppable": self._experiment.tune.scheduler is not None}
            return replace(unit, label=label, settings=settings, extra=extra)
        said["outcome"] = self._outcome(unit)
        settings = {**unit.settings, "simulation": said}
        return replace(unit, label=label, settings=settings, epochs=1)

    def _outcome(self, unit: Unit) -> dict[str, Any]:
        genotype = unit.settings["genotype"]
        truth = self._oracle.of_genotype(unit.settings["space"], genotype)
        if truth is None:
            raise StudyError(
                f"the table {self._oracle.title} does not have the genotype "
                f"{Genotype.from_json(genotype).hash}, so that its retraining cannot be simulated."
            )
        known = {
            "test_accuracy": truth.test_accuracy,
            "epoch_time_s": truth.train_seconds,
            "params": truth.params,
        }
        return {name: value for name, value in known.items() if value is not None}

    @cached_property
    def _blocks(self) -> list[factors.Block]:
        return factors.blocks(self._experiment)

    @cached_property
    def _oracle(self) -> StudyOracle:
        return StudyOracle(self._experiment.oracle or {}, self._experiment.space)


def _searchable(experiment: Experiment) -> Searchable:
    name, config = plugins.make_config("oracles", experiment.oracle or {})
    (space,) = space_names(experiment.space)
    settings = next(iter(fixed_spaces(experiment.space)), {"name": space})
    table = plugins.load("oracles", name).load(config, settings)
    if not hasattr(table, "searchable"):
        raise OracleError(f"oracle {name} has no `searchable()`, which a simulation needs.")
    found: Searchable = table.searchable()
    return found


def _columns(found: Searchable) -> Columns:
    import numpy as np

    texts = np.array([text.encode() for text in found.genotypes])
    values = (texts, found.val_accuracy, found.train_seconds)
    return dict(zip(SEARCHABLE, values, strict=True))


def _file_of(columns: Columns) -> bytes:
    """Return the file that simulated searches read."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]  # their names are not allow_pickle
    return buffer.getvalue()
