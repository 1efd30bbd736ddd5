"""Made-up benchmark tables, whose values are worked out from the cell alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CONV = "nor_conv_3x3"


def cell201(operations: tuple[str, ...]) -> str:
    """Return the official string of six operations, in the order of edges 01 02 12 03 13 23."""
    a, b, c, d, e, f = operations
    return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def accuracy201(text: str) -> float:
    """Return the made-up test accuracy in percent: 40 and 9 more for each 3x3 convolution."""
    return 40.0 + 9.0 * text.count(CONV)


def columns201() -> dict[str, list[Any]]:
    """Return the columns of a table of NAS-Bench-201 for CIFAR-10."""
    cells = [cell201(each) for each in itertools.product(OPERATIONS, repeat=6)]
    return {
        "arch": cells,
        "cifar10_test": [accuracy201(text) for text in cells],
        "cifar10_val": [accuracy201(text) - 2.0 for text in cells],
        "cifar10_train_seconds": [100.0 + text.count("conv") for text in cells],
        "params_m": [0.073306 + 0.24304 * text.count(CONV) for text in cells],
        "flops_m": [7.78305 + 35.38944 * text.count(CONV) for text in cells],
    }


def write(columns: dict[str, list[Any]], path: Path) -> Path:
    """Write a table as Parquet or CSV, by the ending of `path`."""
    table = pa.table(columns)
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    return path
