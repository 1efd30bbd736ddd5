"""Runs populations on Ray Tune: one Ray trial is a member in a generation.

One Tuner runs all of them. Its searcher gives out what a generation lacks; when the last member of
it ends, the driver decides and commits the next one, and gives that out. So Ray's processes are
used again and no other population waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from orchestrator.monitor import Monitor
from orchestrator.population_units import Population
from orchestrator.searchers import MakeConfig, StatelessSearcher
from orchestrator.study_trial import ENDED
from orchestrator.units import Unit


class PopulationSearcher(StatelessSearcher):
    """Gives out the members of generations, as each generation is decided.

    Args:
        populations: What is trained, each where it stands.
        config: Makes the Ray configuration of a unit.
        told: Takes a line for each generation that has ended.
    """

    def __init__(
        self, populations: Sequence[Population], config: MakeConfig, told: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._config = config
        self._told = told
        self._running: dict[str, Population] = {}
        self._queue: list[tuple[Population, Unit]] = []
        for population in populations:
            self._give_out(population)

    def _give_out(self, population: Population) -> None:
        """Queue what a population lacks now; all may be through already, after a kill."""
        while population.advance():
            self._told(population.said())
        self._queue += [(population, unit) for unit in population.units()]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next member to train, or None while that is not decided."""
        if not self._queue:
            return None if self._running else Searcher.FINISHED
        population, unit = self._queue.pop(0)
        self._running[trial_id] = population
        return self._config(unit)

    def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None:
        """Look whether a generation has ended; what counts is what the study folder holds."""
        population = self._running.pop(trial_id, None)
        if population is not None and population.advance():
            self._told(population.said())
            self._give_out(population)


class PopulationMonitor(Monitor):
    """Follows populations, whose rows end with the last generation alone."""

    def on_end(self, config: dict[str, Any], result: dict[str, Any], error: str | None) -> None:
        """Tune has done with a member's generation; a row may have ended or failed with it."""
        for key in config["unit"]["rows"].values():
            row = self.study.ledger.read(key)
            ended = row is not None and row.status in ENDED
            ran_out = row is not None and row.status == "oom"
            if ended or ran_out or error is not None:
                super().on_end(config, result, error)

    def look_at(self, keys: Sequence[str]) -> None:
        """Take note of rows that the driver itself has ended."""
        for key in keys:
            self._look_for_row(key, self.stage_started)


def train(
    populations: Sequence[Population],
    monitor: PopulationMonitor,
    *,
    config: MakeConfig,
    run: Callable[[Any, int], None],
    told: Callable[[str], None],
    max_failures: int,
) -> None:
    """Train populations to their ends, or as far as they come.

    Args:
        populations: What is trained, each where it stands.
        monitor: Follows their rows.
        config: Makes the Ray configuration of a unit.
        run: Runs a searcher's units, at most as many as the second argument says.
        told: Takes lines for the person.
        max_failures: Times that members whose processes died before they ran are tried again.
    """
    # Tune gives up a trial whose process dies before it is running, whatever max_failures says.
    for _ in monitor.rounds(max_failures):
        monitor.lost.clear()
        searcher = PopulationSearcher(populations, config, told)
        left = sum(population.left for population in populations)
        if left:
            run(searcher, left)
        for population in populations:
            monitor.look_at(population.plan.keys)
        if not monitor.lost:
            break
        if any(not _waits(population, monitor) for population in populations):
            return  # interrupted: a resume runs the lost ones too
    monitor.give_up()
    for population in populations:
        failed = [unit for unit in population.units() if _has_failed(unit, monitor)]
        if failed:
            names = " and ".join(unit.label for unit in failed)
            told(
                f"{population.name} waits at epoch {population.plan.end(population.index)}: "
                f"{names} failed, and `nas resume` runs what failed again"
            )


def _waits(population: Population, monitor: Monitor) -> bool:
    """Return whether a population has ended, or lacks nothing but what was lost or has failed."""
    return all(monitor.is_lost(unit) or _has_failed(unit, monitor) for unit in population.units())


def _has_failed(unit: Unit, monitor: Monitor) -> bool:
    return any(monitor.statuses.get(key) in ("failed", "oom") for key in unit.rows.values())
