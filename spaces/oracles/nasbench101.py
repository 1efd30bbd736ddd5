"""NAS-Bench-101: all 423,624 cells on CIFAR-10, for the spaces of NAS-Bench-1Shot1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spaces.core import graph101, plugins
from spaces.core.errors import OracleError, SpaceError
from spaces.core.graph101 import DIGITS, MAX_VERTICES
from spaces.core.oracle import Oracle, Record, Searchable, ranks, read_columns, shares

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from spaces.core.genotype import Genotype
    from spaces.core.oracle import Columns

SOURCE = "Ying et al., NAS-Bench-101, ICML 2019, https://arxiv.org/abs/1902.09635"
SPACES = ("nasbench1shot1*",)

CELLS = 423_624
_LETTERS = {"3": 0, "1": 1, "p": 2}  # how `ops` writes the digits of `graph101`
_WORDS = len(DIGITS) ** (MAX_VERTICES - 2)
_EDGE_SETS = 2 ** (MAX_VERTICES * (MAX_VERTICES - 1) // 2)


@dataclass(frozen=True)
class Config:
    """Which table.

    Attributes:
        path: Parquet or CSV file with one row for each of the 423,624 cells: `n_vertices`,
            `adjacency` as a bit set, edge x -> y being bit x + y (y - 1) / 2, `ops`, a letter for
            each inner vertex (3: 3x3 convolution, 1: 1x1 convolution, p: pooling), all in the
            smallest form, and `test_acc_108`, a share; where they are there also `params` and
            `flops`. For a space a column of true and false that marks its cells.
    """

    path: str


class NasBench101Table:
    """The cells of one space; see `spaces.core.oracle.Oracle`.

    A space that has such cells says so by `cell101(genotype) -> (operations, adjacency)`, in the
    form of `spaces.core.graph101`, and by `column101`, the name of the column that marks its cells.

    Args:
        config: Settings.
        space: The space; None takes all cells, which can then be looked up as graphs alone.

    Raises:
        OracleError: As `load`.
    """

    def __init__(self, config: Config, space: Any = None) -> None:
        import numpy as np

        self._space = space
        needed = ["n_vertices", "adjacency", "ops", "test_acc_108"]
        if space is not None:
            needed.append(_column(space))
        columns = read_columns(config.path, needed, ("params", "flops"))
        if len(columns["ops"]) != CELLS:
            # The best of a part would not be the best of the space, nor a regret against it true.
            got = len(columns["ops"])
            raise OracleError(
                f"oracle.path: {config.path} must have all {CELLS:,} cells, got {got:,}."
            )
        test = shares(columns["test_acc_108"], config.path, "test_acc_108", whole=1)
        keys = _keys(config.path, columns)
        if space is not None:
            chosen = columns[needed[-1]].astype(bool)
            if not chosen.any():
                raise OracleError(f"oracle.path: {config.path} marks no cell by {needed[-1]}.")
            test, keys = test[chosen], keys[chosen]
            columns = {name: column[chosen] for name, column in columns.items()}
        order = keys.argsort()
        self._keys, self._test, self._rank = keys[order], test[order], ranks(test)[order]
        self._counts = {
            name: columns[name][order] for name in ("params", "flops") if name in columns
        }
        if (self._keys[1:] == self._keys[:-1]).any():
            raise OracleError(f"oracle.path: {config.path} must have every cell once.")
        self.size = len(test)
        self.best_test_accuracy = float(np.max(test))

    def lookup(self, genotype: Genotype) -> Record:
        """Return what the table has of a genotype of the space.

        Raises:
            OracleError: Its cell is not one of the space's, or there is no space.
        """
        if self._space is None:
            raise OracleError("A genotype can only be looked up in NAS-Bench-101 for a space.")
        return self.lookup_cell(*self._space.cell101(genotype))

    def searchable(self) -> Searchable:
        """Refuse: all that the table has of an accuracy is of the test split.

        Raises:
            OracleError: Always.
        """
        raise OracleError(
            "The table of NAS-Bench-101 has no validation accuracy and no training time, so that a "
            "simulated search could be led by test accuracies alone. Simulate in nasbench201."
        )

    def lookup_cell(self, operations: Sequence[str], adjacency: Sequence[Sequence[int]]) -> Record:
        """Return what the table has of a cell in any of its forms; see `graph101`.

        Accuracies are of one run of three, at 108 epochs; there is no validation accuracy.

        Raises:
            OracleError: It is no cell, or none of the space's.
        """
        try:
            small = graph101.pruned(*graph101.in_order(operations, adjacency))
            if len(small[1]) > MAX_VERTICES:
                raise OracleError(
                    f"A cell of NAS-Bench-101 must have at most {MAX_VERTICES} vertices between "
                    f"input and output, both included, got {len(small[1])}."
                )
            cell = graph101.canonical(*small)
        except SpaceError as error:
            raise OracleError(str(error)) from error
        key = _number(*cell)
        row = int(self._keys.searchsorted(key))
        if row == self.size or self._keys[row] != key:
            raise OracleError(f"NAS-Bench-101 does not have the cell {cell} among {self.size:,}.")
        counts = {name: int(column[row]) for name, column in self._counts.items()}
        return Record(float(self._test[row]), int(self._rank[row]), **counts)


def load(config: Config, space: Mapping[str, Any] | None = None) -> Oracle:
    """Return the table's cells of a space.

    Args:
        config: Settings.
        space: Settings of the space, {"name": ..., ...}; None takes all cells.

    Raises:
        OracleError: The file is missing or damaged, lacks a column, or is not of all cells; or the
            space has no cells of NAS-Bench-101.
    """
    if space is None:
        return NasBench101Table(config)
    name, settings = plugins.make_config("spaces", space)
    return NasBench101Table(config, plugins.load("spaces", name).build(settings, name))


def _column(space: Any) -> str:
    if not hasattr(space, "cell101") or not hasattr(space, "column101"):
        raise OracleError(
            f"Space '{space.name}' has no cells of NAS-Bench-101: it must have `cell101` and "
            "`column101`."
        )
    return str(space.column101)


def _keys(path: str, columns: Columns) -> NDArray[np.int64]:
    """Return each row's key as one number."""
    import numpy as np

    texts, places = np.unique(columns["ops"].astype(str), return_inverse=True)
    words = []
    for text in texts.tolist():
        if len(text) > MAX_VERTICES - 2 or not set(text) <= set(_LETTERS):
            raise OracleError(
                f"oracle.path: {path} must have up to {MAX_VERTICES - 2} of the letters "
                f"{', '.join(_LETTERS)} in ops, got {text!r}."
            )
        words.append(_word([_LETTERS[letter] for letter in text]))
    vertices = columns["n_vertices"].astype(np.int64)
    edges = columns["adjacency"].astype(np.int64)
    found: NDArray[np.int64] = (vertices * _EDGE_SETS + edges) * _WORDS
    return found + np.asarray(words, dtype=np.int64)[places]


def _number(num_vertices: int, edges: int, digits: Sequence[int]) -> int:
    return (num_vertices * _EDGE_SETS + edges) * _WORDS + _word(digits)


def _word(operations: Sequence[int]) -> int:
    number = 0
    for place in operations:
        number = len(DIGITS) * number + place
    return number
