"""Look-ups a second of the oracles, random cells of their tables, on one core.

    python -m benchmarks.oracle_lookups --nasbench201 FILE --nasbench101 FILE

A look-up takes a genotype (NAS-Bench-201) or a graph with its vertices in any order (NAS-Bench-101)
to its record. The fastest round counts, in CPU seconds of this process, so that other work on the
machine disturbs little; reading the table is given by itself.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from spaces.core.graph101 import DIGITS, INPUT, OUTPUT
from spaces.core.text import parse
from spaces.oracles import nasbench101, nasbench201

LETTERS = dict(zip("31p", DIGITS, strict=True))


def genotypes(path: str, count: int) -> list[Any]:
    """Return the arguments of `lookup` for random rows of a NAS-Bench-201 table."""
    from pyarrow import parquet

    texts = parquet.read_table(path, columns=["arch"])["arch"].to_pylist()
    return [(parse(text),) for text in random.Random(0).choices(texts, k=count)]


def graphs(path: str, count: int) -> list[Any]:
    """Return the arguments of `lookup_cell` for random NAS-Bench-101 cells, relabelled."""
    from pyarrow import parquet

    draw = random.Random(0)
    table = parquet.read_table(path, columns=["n_vertices", "adjacency", "ops"])
    found = []
    for row in table.take(draw.choices(range(table.num_rows), k=count)).to_pylist():
        last, bits = row["n_vertices"] - 1, row["adjacency"]
        order = [0, *draw.sample(range(1, last), last - 1), last]
        old_names = [INPUT, *(LETTERS[letter] for letter in row["ops"]), OUTPUT]
        names = [old_names[order.index(vertex)] for vertex in range(last + 1)]
        matrix = [[0] * (last + 1) for _ in order]
        for x, y in itertools.combinations(range(last + 1), 2):
            matrix[order[x]][order[y]] = bits >> (x + y * (y - 1) // 2) & 1
        found.append((names[1:-1], matrix))
    return found


def rate(look_up: Callable[..., Any], arguments: Sequence[Any], rounds: int) -> float:
    """Return calls a second of the fastest round."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        for each in arguments:
            look_up(*each)
        seconds.append(time.process_time() - start)
    return len(arguments) / min(seconds)


def main() -> None:
    """Print one line for each table that is given."""
    parser = argparse.ArgumentParser(description="Look-ups a second of the oracles.")
    parser.add_argument("--nasbench201", metavar="FILE")
    parser.add_argument("--nasbench101", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.nasbench201:
        start = time.process_time()
        table = nasbench201.load(nasbench201.Config(options.nasbench201))
        read = time.process_time() - start
        found = rate(table.lookup, genotypes(options.nasbench201, 20_000), options.rounds)
        print(f"nasbench201  {found:>9,.0f} look-ups a second; table read in {read:.2f} s")
    if options.nasbench101:
        start = time.process_time()
        cells = nasbench101.NasBench101Table(nasbench101.Config(options.nasbench101))
        read = time.process_time() - start
        found = rate(cells.lookup_cell, graphs(options.nasbench101, 2_000), options.rounds)
        print(f"nasbench101  {found:>9,.0f} look-ups a second; table read in {read:.2f} s")


if __name__ == "__main__":
    main()
