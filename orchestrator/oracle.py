"""True accuracies of a study's genotypes, from the benchmark table that its experiment names.

It is a view of the rows, for the report and for MLflow. Nothing of it enters a row or a key, and
what trains, draws or stops trials does not import it: the test accuracies in such a table are what
a search is judged by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.oracle_section import fixed_spaces, title_of
from spaces.core import plugins
from spaces.core.errors import NasError

if TYPE_CHECKING:
    from orchestrator.ledger import Row
    from orchestrator.study import Study
    from spaces.core.oracle import Oracle


@dataclass(frozen=True)
class Truth:
    """What a table says of one genotype.

    Attributes:
        test_accuracy: Share, 0-1.
        test_regret: The best test accuracy in the space less this one, a share.
        rank: Of the test accuracy in the space, from 1.
        size: Architectures in the space.
        val_accuracy, train_seconds, params, flops: As in `spaces.core.oracle.Record`.
    """

    test_accuracy: float
    test_regret: float
    rank: int
    size: int
    val_accuracy: float | None
    train_seconds: float | None
    params: int | None
    flops: int | None


class StudyOracle:
    """The oracle of a study.

    Args:
        settings: Its section of the experiment file, complete.
        space: The study's section `space`, complete.

    Attributes:
        name: Name of the oracle.
        title: How a report calls it: its name and settings, without its path.
        digest: 16 hexadecimal characters of its settings and of how many and how good its
            architectures are; where the file lies does not matter.

    Raises:
        NasError: Its table cannot be read.
    """

    def __init__(self, settings: Mapping[str, Any], space: Mapping[str, Any]) -> None:
        self.name, self._config = plugins.make_config("oracles", settings)
        self._module = plugins.load("oracles", self.name)
        self._by_space: dict[str, Oracle] = {}
        self._found: dict[str, Truth | None] = {}
        # Here, because what is wrong with the table is to be known before it is asked.
        loaded = [self._oracle(each) for each in fixed_spaces(space)]
        loaded = loaded or [self._module.load(self._config)]
        chosen = {key: value for key, value in settings.items() if key not in ("name", "path")}
        self.title = title_of(settings)
        tables = [[each.size, each.best_test_accuracy] for each in loaded]
        facts = json.dumps([self.name, chosen, tables])
        self.digest = hashlib.sha256(facts.encode()).hexdigest()[:16]

    def of_row(self, row: Row) -> Truth | None:
        """Return what the table says of the row's genotype, or None."""
        return self._truth(row, row.genotype)

    def of_genotype(self, space: Mapping[str, Any], form: Mapping[str, Any]) -> Truth | None:
        """Return what the table says of a genotype, given as JSON, of a space, or None."""
        return self._looked_up(space, form)

    def by_epoch(self, row: Row) -> dict[int, Truth]:
        """Return what the table says of the genotype after each epoch, where it has it."""
        found = {}
        for place, entry in enumerate(row.curve, start=1):
            truth = self._truth(row, entry.get("genotype"))
            if truth is not None:
                found[int(entry.get("epoch", place))] = truth
        return found

    def _truth(self, row: Row, form: Any) -> Truth | None:
        if not isinstance(form, Mapping):
            return None
        space = row.settings.get("space") or {"name": row.space}
        key = json.dumps([space, form], sort_keys=True)
        if key not in self._found:
            self._found[key] = self._looked_up(space, form)
        return self._found[key]

    def _looked_up(self, space: Mapping[str, Any], form: Mapping[str, Any]) -> Truth | None:
        from spaces.core.genotype import Genotype

        try:
            oracle = self._oracle(space)
            record = oracle.lookup(Genotype.from_json(form))
        except NasError:
            return None  # it is not in the table: counted by whoever shows the rows
        regret = oracle.best_test_accuracy - record.test_accuracy
        return Truth(test_regret=regret, size=oracle.size, **asdict(record))

    def _oracle(self, space: Mapping[str, Any]) -> Oracle:
        key = json.dumps(space, sort_keys=True)
        if key not in self._by_space:
            self._by_space[key] = self._module.load(self._config, space)
        return self._by_space[key]


def of_study(study: Study) -> tuple[StudyOracle | None, str]:
    """Return the study's oracle, or None and why there is none.

    A table may be moved or lost long after the search; a study is read without it then.

    Returns:
        The oracle and an empty text; None and one line that says what is wrong; or None and an
        empty text where the experiment names no oracle.
    """
    settings = study.experiment.oracle
    if settings is None:
        return None, ""
    try:
        return StudyOracle(settings, study.experiment.space), ""
    except NasError as error:
        return None, (
            f"left out what the oracle {settings['name']} says: {error} Correct oracle.path in "
            f"{study.experiment_file}."
        )
