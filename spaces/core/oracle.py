"""What a benchmark table says of a genotype, and how its file is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spaces.core.errors import OracleError, near_miss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spaces.core.genotype import Genotype

Columns = dict[str, "NDArray[Any]"]


@dataclass(frozen=True)
class Record:
    """What a table has of one architecture, trained by the benchmark's authors.

    Attributes:
        test_accuracy: Share, 0-1.
        rank: Of `test_accuracy` in the space, 1 being the best; equal accuracies share the rank of
            the first of them.
        val_accuracy: Share, 0-1, or None where the table has none.
        train_seconds: Seconds that its training took, or None.
        params: Number of trainable parameters, or None.
        flops: As the benchmark counts them for one image, or None.
    """

    test_accuracy: float
    rank: int
    val_accuracy: float | None = None
    train_seconds: float | None = None
    params: int | None = None
    flops: int | None = None


@dataclass(frozen=True)
class Searchable:
    """The part of a table that a simulated search may see: no test accuracy is in it.

    Attributes:
        genotypes: Every architecture of the space once, as a text that `spaces.core.text` reads.
        val_accuracy: Of each, `(size,)`, shares.
        train_seconds: Seconds that the training of each took, `(size,)`.
    """

    genotypes: tuple[str, ...]
    val_accuracy: NDArray[np.float64]
    train_seconds: NDArray[np.float64]


class Oracle(Protocol):
    """A loaded table. It is for reports alone: a search that saw it would see the test split.

    Attributes:
        size: Number of architectures of the space that it has.
        best_test_accuracy: The largest test accuracy among them, a share.
    """

    size: int
    best_test_accuracy: float

    def lookup(self, genotype: Genotype) -> Record:
        """Return what the table has of a genotype.

        Raises:
            OracleError: It is not in the table.
        """

    def searchable(self) -> Searchable:
        """Return what `nas simulate` may search in.

        Raises:
            OracleError: The table has no validation accuracy or no training time.
        """


def read_columns(path: str, needed: Sequence[str], optional: Sequence[str] = ()) -> Columns:
    """Read columns of a Parquet or CSV file; texts are NumPy objects, numbers NumPy numbers.

    Args:
        path: File that ends in .parquet or .csv.
        needed: Columns that it must have.
        optional: Columns that are read where it has them.

    Raises:
        OracleError: The file is missing, of another kind or damaged, lacks a column, or has a cell
            without a value.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        what = "it is a folder" if file.is_dir() else "there is no such file"
        raise OracleError(f"oracle.path must be a Parquet or CSV file, got {path!r}: {what}.")
    if file.suffix.lower() not in (".parquet", ".csv"):
        raise OracleError(f"oracle.path must end in .parquet or .csv, got {path!r}.")
    import pyarrow as pa

    try:
        columns = _read(file, needed, optional)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OracleError(f"oracle.path: {path} is no readable table: {reason}") from error
    for name, column in columns.items():
        if column.null_count:
            raise OracleError(
                f"oracle.path: {path} must have a value of {name} in every row, got "
                f"{column.null_count} rows without."
            )
    return {name: column.to_numpy() for name, column in columns.items()}


def shares(values: NDArray[Any], path: str, name: str, *, whole: float) -> NDArray[np.float64]:
    """Return accuracies as shares, 0-1.

    Args:
        values: A column.
        path, name: Its file and its name, for messages.
        whole: What stands for all images: 100 for percent.

    Raises:
        OracleError: A value is no accuracy.
    """
    import numpy as np

    if not np.issubdtype(values.dtype, np.number):
        raise OracleError(f"oracle.path: {path} must have numbers in {name}, got {values[0]!r}.")
    wrong = ~((values >= 0) & (values <= whole))  # also what is not a number
    if wrong.any():
        raise OracleError(
            f"oracle.path: {path} must have values from 0 to {whole:g} in {name}, got "
            f"{values[wrong][0]} in row {int(np.argmax(wrong))}."
        )
    return values.astype(np.float64) / whole


def ranks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rank of each value, 1 for the largest; equal values share the best rank."""
    import numpy as np

    return 1 + len(values) - np.searchsorted(np.sort(values), values, side="right")


def _read(file: Path, needed: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    if file.suffix.lower() == ".csv":
        # What looks like a number may be a text: the operations 131 of a NAS-Bench-101 cell.
        texts = {"arch": pa.string(), "ops": pa.string()}
        table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=texts))
        chosen = _chosen(file, table.column_names, needed, optional)
    else:
        with parquet.ParquetFile(file) as opened:
            chosen = _chosen(file, opened.schema_arrow.names, needed, optional)
            table = opened.read(columns=chosen)
    return {name: table[name] for name in chosen}


def _chosen(
    file: Path, there: Sequence[str], needed: Sequence[str], optional: Sequence[str]
) -> list[str]:
    for name in needed:
        if name not in there:
            has = near_miss(name, there) or f" It has {', '.join(there)}."
            raise OracleError(f"oracle.path: {file} has no column {name!r}.{has}")
    return [name for name in (*needed, *optional) if name in there]
