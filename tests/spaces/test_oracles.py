"""Benchmark tables: every cell of theirs is found, and nothing that is not in them."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

from spaces.core import plugins
from spaces.core.errors import OracleError
from spaces.core.oracle import Oracle, Record, ranks
from spaces.core.text import format_nasbench201, parse
from spaces.oracles import nasbench101
from tests.spaces.helpers import space_of
from tests.spaces.tables import CONV, cell201, columns201, write

SKIP = cell201(("skip_connect",) * 6)


@pytest.fixture(scope="module")
def columns() -> dict[str, list[Any]]:
    return columns201()


@pytest.fixture(scope="module")
def table(columns: dict[str, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(columns, tmp_path_factory.mktemp("tables") / "nb201.parquet")


def load(kind: str, path: Path | str, **settings: Any) -> Oracle:
    name, config = plugins.make_config("oracles", {"name": kind, "path": str(path), **settings})
    return plugins.load("oracles", name).load(config)


@pytest.mark.parametrize("name", plugins.available("oracles"))
def test_an_oracle_says_what_it_is_and_refuses_a_missing_file(name: str, tmp_path: Path) -> None:
    info = plugins.describe("oracles", name)
    assert info.summary.endswith(".")
    assert info.source
    assert info.spaces
    with pytest.raises(OracleError, match=r"oracle\.path .*there is no such file"):
        load(name, tmp_path / "missing.parquet")


@pytest.mark.parametrize("values", [[3.0, 1.0, 3.0, 2.0], [5.0], [1.0, 1.0]])
def test_rank_is_one_more_than_the_number_of_better_values(values: list[float]) -> None:
    expected = [1 + sum(other > value for other in values) for value in values]
    assert ranks(np.array(values)).tolist() == expected


def test_a_cell_has_its_row_in_shares_seconds_and_counts(table: Path) -> None:
    oracle = load("nasbench201", table)
    assert (oracle.size, oracle.best_test_accuracy) == (15625, pytest.approx(0.94))  # 40 + 6 * 9
    one = parse(cell201((CONV, *["none"] * 5)))
    # Better are the cells of two 3x3 convolutions or more: all but 4^6 + 6 * 4^5.
    assert oracle.lookup(one) == Record(
        test_accuracy=pytest.approx(0.49),
        rank=15625 - 4**6 - 6 * 4**5 + 1,
        val_accuracy=pytest.approx(0.47),
        train_seconds=101.0,
        params=73_306 + 243_040,
        flops=7_783_050 + 35_389_440,
    )


def test_cells_of_equal_graphs_have_rows_of_their_own(
    columns: dict[str, list[Any]], tmp_path: Path
) -> None:
    # Nodes 1 and 2 change places: one hash, two strings, and in the real table two accuracies.
    first = cell201((CONV, "none", "none", "skip_connect", "none", "none"))
    second = cell201(("none", CONV, "none", "skip_connect", "none", "none"))
    test = [50.0 if text == second else 60.0 for text in columns["arch"]]
    oracle = load("nasbench201", write({**columns, "cifar10_test": test}, tmp_path / "t.parquet"))
    assert oracle.lookup(parse(first)).test_accuracy == pytest.approx(0.6)
    assert oracle.lookup(parse(second)).test_accuracy == pytest.approx(0.5)


def test_csv_is_read_as_parquet_is(
    columns: dict[str, list[Any]], table: Path, tmp_path: Path
) -> None:
    from_csv = load("nasbench201", write(columns, tmp_path / "t.csv"))
    genotype = parse(SKIP)
    assert from_csv.lookup(genotype) == load("nasbench201", table).lookup(genotype)


def test_what_a_table_does_not_have_is_none(columns: dict[str, list[Any]], tmp_path: Path) -> None:
    few = {name: columns[name] for name in ("arch", "cifar10_test")}
    record = load("nasbench201", write(few, tmp_path / "few.parquet")).lookup(parse(SKIP))
    assert (record.val_accuracy, record.train_seconds, record.params, record.flops) == (None,) * 4


def test_a_data_set_has_its_own_columns(columns: dict[str, list[Any]], tmp_path: Path) -> None:
    more = {**columns, "imagenet16_test": [v / 2 for v in columns["cifar10_test"]]}
    path = write(more, tmp_path / "more.parquet")
    record = load("nasbench201", path, dataset="imagenet16").lookup(parse(SKIP))
    assert (record.test_accuracy, record.val_accuracy) == (pytest.approx(0.2), None)
    with pytest.raises(
        OracleError, match=r"has no column 'cifar100_test'\. Did you mean 'cifar10_t"
    ):
        load("nasbench201", path, dataset="cifar100")


def test_a_genotype_of_another_space_is_not_in_the_table(table: Path) -> None:
    oracle = load("nasbench201", table)
    short = parse("|nor_conv_3x3~0|+|none~0|none~1|", "nasbench201")
    with pytest.raises(OracleError, match="does not have the cell"):
        oracle.lookup(short)
    darts = parse(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], normal_concat=[2], "
        "reduce=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], reduce_concat=[2])"
    )
    with pytest.raises(OracleError, match="does not have the genotype"):
        oracle.lookup(darts)


def _changed(columns: dict[str, list[Any]], name: str, row: int, value: Any) -> dict[str, Any]:
    return {**columns, name: [*columns[name][:row], value, *columns[name][row + 1 :]]}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("arch", SKIP, "must have every cell once, got .*skip_connect~2. again"),
        ("cifar10_test", 100.5, "values from 0 to 100 in cifar10_test, got 100.5 in row 7"),
        ("cifar10_test", float("nan"), "values from 0 to 100 in cifar10_test, got nan in row 7"),
        ("cifar10_val", None, "a value of cifar10_val in every row, got 1 rows without"),
        ("cifar10_test", "94 %", "must have numbers in cifar10_test"),
    ],
)
def test_a_wrong_value_is_named(
    name: str, value: Any, message: str, columns: dict[str, list[Any]], tmp_path: Path
) -> None:
    wrong = _changed(columns, name, 7, value)
    if isinstance(value, str) and name != "arch":
        wrong[name] = [str(each) for each in wrong[name]]
    with pytest.raises(OracleError, match=message):
        load("nasbench201", write(wrong, tmp_path / "wrong.parquet"))


def test_a_part_of_the_cells_is_refused(columns: dict[str, list[Any]], tmp_path: Path) -> None:
    part = {name: column[:100] for name, column in columns.items()}
    with pytest.raises(OracleError, match="must have all 15,625 cells, got 100"):
        load("nasbench201", write(part, tmp_path / "part.parquet"))


def test_a_cell_that_takes_the_place_of_another_is_found_out(
    columns: dict[str, list[Any]], tmp_path: Path
) -> None:
    path = write(_changed(columns, "arch", 7, "|other~0|"), tmp_path / "wrong.parquet")
    with pytest.raises(OracleError, match=r"cells of NAS-Bench-201 in arch, got '\|other~0"):
        load("nasbench201", path)


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("arch,cifar10_test\n")
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(OracleError, match=r"text\.parquet is no readable table: "):
        load("nasbench201", tmp_path / "text.parquet")
    with pytest.raises(OracleError, match=r"must end in \.parquet or \.csv, got .*table\.xlsx"):
        load("nasbench201", tmp_path / "table.xlsx")
    with pytest.raises(OracleError, match="it is a folder"):
        load("nasbench201", tmp_path)


def test_every_real_cell_is_found_by_its_string(shared_data: Path) -> None:
    path = shared_data / "nasbench201" / "nasbench201.parquet"
    oracle = load("nasbench201", path)
    rows = parquet.read_table(path, columns=["arch", "cifar10_test", "cifar10_train_seconds"])
    texts, test, seconds = (column.to_pylist() for column in rows.columns)
    assert len(set(texts)) == 15625
    for text, accuracy, time_s in zip(texts, test, seconds, strict=True):
        genotype = parse(text)
        assert format_nasbench201(genotype) == text
        record = oracle.lookup(genotype)
        assert (100 * record.test_accuracy, record.train_seconds) == pytest.approx(
            (accuracy, time_s)
        )


@pytest.mark.parametrize(
    ("dataset", "best", "all_skip"),
    # The benchmark's: its optimum, and the cell that DARTS collapses to.
    [
        ("cifar10", 94.373, 54.297),
        ("cifar100", 73.513, 15.607),
        ("imagenet16", 47.311, 16.322),
    ],
)
def test_the_best_real_cell_and_the_collapsed_one(
    dataset: str, best: float, all_skip: float, shared_data: Path
) -> None:
    path = shared_data / "nasbench201" / "nasbench201.parquet"
    oracle = load("nasbench201", path, dataset=dataset)
    assert round(100 * oracle.best_test_accuracy, 3) == best
    assert round(100 * oracle.lookup(parse(SKIP)).test_accuracy, 3) == all_skip
    name = f"{dataset}_test"
    rows = parquet.read_table(path, columns=["arch", name])
    at = int(np.argmax(rows[name].to_numpy()))
    record = oracle.lookup(parse(rows["arch"][at].as_py()))
    assert (round(100 * record.test_accuracy, 3), record.rank) == (best, 1)


# NAS-Bench-101

LETTERS = {"3": "conv3x3-bn-relu", "1": "conv1x1-bn-relu", "p": "maxpool3x3"}
Cell = tuple[list[str], list[list[int]]]


def cell101(ops: str, adjacency: int, order: list[int] | None = None) -> Cell:
    """Return inner operations and matrix of a table's row; `order` numbers the vertices anew."""
    count = len(ops) + 2
    order = list(range(count)) if order is None else order
    names = [""] * count
    for vertex, name in enumerate(["input", *(LETTERS[letter] for letter in ops), "output"]):
        names[order[vertex]] = name
    matrix = [[0] * count for _ in range(count)]
    for x, y in itertools.combinations(range(count), 2):
        matrix[order[x]][order[y]] = adjacency >> (x + y * (y - 1) // 2) & 1
    return names[1:-1], matrix


# A chain input -> 3x3 -> output is 0 -> 1, 1 -> 2: bits 0 and 2; with 0 -> 2 also bit 1.
ROWS101 = {
    "n_vertices": [3, 2, 3, 3],
    "adjacency": [5, 1, 7, 5],
    "ops": ["1", "", "p", "3"],
    "test_acc_108": [0.8, 0.1, 0.7, 0.9],
    "params": [20, 10, 10, 30],
    "in_small": [True, True, True, False],
}


@pytest.fixture
def small101(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nasbench101, "CELLS", 4)
    return write(ROWS101, tmp_path / "small.csv")


def test_a_graph_has_its_row(small101: Path) -> None:
    oracle = nasbench101.NasBench101Table(nasbench101.Config(str(small101)))
    assert oracle.lookup_cell(*cell101("1", 5)) == Record(0.8, 2, params=20)
    assert oracle.lookup_cell(*cell101("", 1)).rank == 4
    # The 1x1 convolution leads nowhere: what counts is input -> output.
    dangling = ([LETTERS["1"]], [[0, 1, 1], [0, 0, 0], [0, 0, 0]])
    assert oracle.lookup_cell(*dangling).test_accuracy == 0.1
    with pytest.raises(OracleError, match="does not have the cell"):
        oracle.lookup_cell(*cell101("3", 7))
    with pytest.raises(OracleError, match="only be looked up in NAS-Bench-101 for a space"):
        oracle.lookup(parse(SKIP))


def test_operations_that_look_like_numbers_are_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nasbench101, "CELLS", 3)
    rows = {name: [column[row] for row in (0, 1, 3)] for name, column in ROWS101.items()}
    path = write(rows, tmp_path / "digits.csv")
    path.write_text(path.read_text().replace('"', ""))
    oracle = nasbench101.NasBench101Table(nasbench101.Config(str(path)))
    assert oracle.lookup_cell(*cell101("3", 5)).test_accuracy == 0.9


def test_a_space_has_its_own_best_and_ranks(small101: Path) -> None:
    cells = {"1": cell101("1", 5), "3": cell101("3", 5)}
    space = SimpleNamespace(name="s", column101="in_small", cell101=lambda key: cells[key])
    oracle = nasbench101.NasBench101Table(nasbench101.Config(str(small101)), space)
    assert (oracle.size, oracle.best_test_accuracy) == (3, 0.8)
    assert oracle.lookup("1").rank == 1  # type: ignore[arg-type]
    with pytest.raises(OracleError, match="among 3"):
        oracle.lookup("3")  # type: ignore[arg-type]


def test_a_space_without_such_cells_is_refused(small101: Path) -> None:
    config = nasbench101.Config(str(small101))
    with pytest.raises(OracleError, match="'nasbench201' has no cells of NAS-Bench-101"):
        nasbench101.load(config, {"name": "nasbench201"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ops", ["3", "", "p", "3"], "every cell once"),
        ("ops", ["x", "", "p", "3"], "up to 5 of the letters 3, 1, p in ops, got 'x'"),
        ("test_acc_108", [0.9, 0.1, 80.0, 0.7], "values from 0 to 1 in test_acc_108, got 80.0"),
    ],
)
def test_a_wrong_row_is_named(
    name: str, value: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nasbench101, "CELLS", 4)
    path = write({**ROWS101, name: value}, tmp_path / "wrong.parquet")
    with pytest.raises(OracleError, match=message):
        nasbench101.NasBench101Table(nasbench101.Config(str(path)))


def test_a_part_of_the_table_is_refused(tmp_path: Path) -> None:
    path = write(ROWS101, tmp_path / "part.parquet")
    with pytest.raises(OracleError, match="must have all 423,624 cells, got 4"):
        load("nasbench101", path)


@pytest.fixture(scope="module")
def real101(shared_data: Path) -> nasbench101.NasBench101Table:
    path = shared_data / "nasbench101" / "nasbench101.parquet"
    return nasbench101.NasBench101Table(nasbench101.Config(str(path)))


def test_real_cells_are_found_under_relabelling(
    shared_data: Path, real101: nasbench101.NasBench101Table
) -> None:
    path = shared_data / "nasbench101" / "nasbench101.parquet"
    names = ["n_vertices", "adjacency", "ops", "test_acc_108", "params", "flops"]
    rows = parquet.read_table(path, columns=names)
    draw = random.Random(0)
    chosen = rows.take(draw.sample(range(rows.num_rows), 1000)).to_pylist()
    for row in chosen:
        count = row["n_vertices"]
        inner = draw.sample(range(1, count - 1), count - 2)
        found = real101.lookup_cell(*cell101(row["ops"], row["adjacency"], [0, *inner, count - 1]))
        assert (found.test_accuracy, found.params, found.flops) == (
            pytest.approx(row["test_acc_108"]), row["params"], row["flops"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "size", "least_error"),
    [(1, 2685, 0.05639), (2, 7773, 0.0575922), (3, 55854, 0.0533854)],
)
def test_a_space_of_choice_blocks_is_looked_up_among_its_own_cells(
    shared_data: Path, number: int, size: int, least_error: float
) -> None:
    name = f"nasbench1shot1_{number}"
    space = space_of(name)
    path = shared_data / "nasbench101" / "nasbench101.parquet"
    oracle = nasbench101.load(nasbench101.Config(str(path)), {"name": name})
    assert oracle.size == size
    assert 1 - oracle.best_test_accuracy == pytest.approx(least_error, abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    found = [
        oracle.lookup(
            space.discretize(
                {k: torch.rand(s, generator=generator) for k, s in space.alpha_shapes().items()}
            )
        )
        for _ in range(50)
    ]
    assert all(1 <= record.rank <= size and record.params for record in found)
    assert len({record.test_accuracy for record in found}) > 20


def test_the_cell_of_the_official_notebook_has_its_published_numbers(
    real101: nasbench101.NasBench101Table,
) -> None:
    edges = {(0, 1), (0, 2), (0, 3), (0, 5), (1, 6), (2, 6), (3, 4), (4, 6), (5, 6)}
    matrix = [[int((x, y) in edges) for y in range(7)] for x in range(7)]
    names = [LETTERS[letter] for letter in "1333p"]
    found = real101.lookup_cell(names, matrix)
    assert (found.test_accuracy, found.params) == (pytest.approx(0.93118990), 2_694_282)


def test_the_module_of_a_table_needs_no_torch(table: Path) -> None:
    code = (
        "import sys; from spaces.oracles import nasbench201 as o\n"
        "o.load(o.Config(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(table)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_every_cell_of_the_space_is_in_the_table(table: Path) -> None:
    name, config = plugins.make_config("spaces", "nasbench201")
    space = plugins.load("spaces", name).build(config, name)
    ((edges, operations),) = space.alpha_shapes().values()
    assert load("nasbench201", table).size == operations**edges


SPACE_101 = '''"""A space of one edge that is a cell of NAS-Bench-101."""
from dataclasses import dataclass
from spaces.nasbench201 import NasBench201
SOURCE = "none"
@dataclass(frozen=True)
class Config:
    channels: int = 4
    cells_per_stage: int = 1
class Fake(NasBench201):
    column101 = "in_small"
    def cell101(self, genotype):
        name = {"nor_conv_1x1": "conv1x1-bn-relu", "avg_pool_3x3": "maxpool3x3"}
        operation = name[genotype.cell("cell").edges[0].operation]
        return (operation,), ((0, 1, 0), (0, 0, 1), (0, 0, 0))
def build(config, name):
    return Fake(name, config)
'''


def test_a_space_says_which_graph_its_genotype_is(
    small101: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins" / "spaces").mkdir(parents=True)
    (tmp_path / "plugins" / "spaces" / "nasbench1shot1_fake.py").write_text(SPACE_101)
    monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, str(tmp_path / "plugins"))
    oracle = nasbench101.load(
        nasbench101.Config(str(small101)), {"name": "nasbench1shot1_fake", "channels": 8}
    )
    chain = parse(cell201(("nor_conv_1x1", *["none"] * 5)))
    assert oracle.lookup(chain) == Record(0.8, 1, params=20)
    with pytest.raises(OracleError, match="does not have the cell"):
        oracle.lookup(parse(cell201(("avg_pool_3x3", *["none"] * 5))))
