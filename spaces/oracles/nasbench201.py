"""NAS-Bench-201: all 15,625 cells, trained for 200 epochs on three image data sets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from spaces.core.errors import OracleError, SpaceError
from spaces.core.nats_files import is_nats, nats_columns
from spaces.core.oracle import Oracle, Record, Searchable, ranks, read_columns, shares
from spaces.core.text import format_nasbench201

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spaces.core.genotype import Genotype
    from spaces.core.nats_files import is_nats, nats_columns
from spaces.core.oracle import Columns

SOURCE = "Dong & Yang, NAS-Bench-201, ICLR 2020, https://arxiv.org/abs/2001.00326"
SPACES = ("nasbench201",)

_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_MILLION = 1_000_000


@dataclass(frozen=True)
class Config:
    """Which table, and which of its data sets.

    Attributes:
        path: Parquet or CSV file with one row for each of the 15,625 cells: `arch`, the official
            string, and for the data set D `D_test` in percent; where they are there also `D_val`
            in percent, `D_train_seconds`, `params_m` and `flops_m` in millions. Or NATS-Bench's own
            files of its topology search space: the folder, or the one .pickle.pbz2 file.
        dataset: D: whose accuracies are looked up. imagenet16 is ImageNet16-120.
    """

    path: str
    dataset: Literal["cifar10", "cifar100", "imagenet16"] = "cifar10"


class NasBench201Table:
    """The table of one data set; see `spaces.core.oracle.Oracle`.

    Params and FLOPs are of the network for CIFAR-10, whatever the data set: the table has no other.
    """

    def __init__(self, config: Config) -> None:
        import numpy as np

        data = config.dataset
        test, val, seconds = f"{data}_test", f"{data}_val", f"{data}_train_seconds"
        if is_nats(config.path):
            columns = nats_columns(config.path)
        else:
            others = (val, seconds, "params_m", "flops_m")
            columns = read_columns(config.path, ("arch", test), others)
        self._rows = _rows(config.path, columns["arch"].tolist())
        self._test = shares(columns[test], config.path, test, whole=100)
        self._val = shares(columns[val], config.path, val, whole=100) if val in columns else None
        self._rank = ranks(self._test)
        self._seconds = columns.get(seconds)
        self._path, self._names = config.path, (val, seconds)
        self._columns: Columns = columns
        self.size = len(self._rows)
        self.best_test_accuracy = float(np.max(self._test))

    def lookup(self, genotype: Genotype) -> Record:
        """Return what the table has of a genotype; the operations of its six edges are the key.

        Raises:
            OracleError: It is no cell of NAS-Bench-201.
        """
        try:
            text = format_nasbench201(genotype)
        except SpaceError as error:
            raise OracleError(f"NAS-Bench-201 does not have the genotype: {error}") from error
        row = self._rows.get(text)
        if row is None:
            raise OracleError(f"NAS-Bench-201 does not have the cell {text}.")
        return Record(
            test_accuracy=float(self._test[row]),
            rank=int(self._rank[row]),
            val_accuracy=None if self._val is None else float(self._val[row]),
            train_seconds=None if self._seconds is None else float(self._seconds[row]),
            params=self._millions("params_m", row),
            flops=self._millions("flops_m", row),
        )

    def searchable(self) -> Searchable:
        """Return the cells with their validation accuracy and training time.

        Raises:
            OracleError: The table lacks one of the two columns.
        """
        import numpy as np

        if self._val is None or self._seconds is None:
            lacking = [name for name in self._names if name not in self._columns]
            raise OracleError(
                f"oracle.path: {self._path} has no column {' and no column '.join(lacking)}, which "
                "a simulated search needs."
            )
        seconds = np.asarray(self._seconds, dtype=np.float64)
        if not (np.isfinite(seconds) & (seconds > 0)).all():
            raise OracleError(
                f"oracle.path: {self._path} must have seconds > 0 in {self._names[1]}."
            )
        return Searchable(tuple(self._rows), self._val, seconds)

    def _millions(self, name: str, row: int) -> int | None:
        column = self._columns.get(name)
        return None if column is None else round(_MILLION * float(column[row]))


def load(config: Config, space: Mapping[str, Any] | None = None) -> Oracle:
    """Return the table.

    Args:
        config: Settings.
        space: Settings of the space; the table's networks have their own size, whatever they say.

    Raises:
        OracleError: The file is missing or damaged, lacks a column, or is not of all cells.
    """
    del space
    return NasBench201Table(config)


def _rows(path: str, texts: list[str]) -> dict[str, int]:
    """Return the row of each cell, of a table that has all of them once."""
    rows = {text: row for row, text in enumerate(texts)}
    if len(rows) < len(texts):
        twice = next(text for row, text in enumerate(texts) if rows[text] != row)
        raise OracleError(f"oracle.path: {path} must have every cell once, got {twice} again.")
    every = _every_cell()
    strangers = rows.keys() - every
    if strangers:
        raise OracleError(
            f"oracle.path: {path} must have cells of NAS-Bench-201 in arch, got {min(strangers)!r}."
        )
    if len(rows) < len(every):
        # The best of a part would not be the best of the space, nor a regret against it true.
        raise OracleError(
            f"oracle.path: {path} must have all {len(every):,} cells, got {len(rows):,}."
        )
    return rows


def _every_cell() -> set[str]:
    return {
        f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
        for a, b, c, d, e, f in itertools.product(_OPERATIONS, repeat=6)
    }
