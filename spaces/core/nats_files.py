"""Files of NATS-Bench's topology search space, read as data: no code in them is ever run.

The files are bz2-compressed pickles of nested mappings of numbers. There is one for each of 15,625
architectures, so what is needed of them is kept in the user's cache folder.
"""

from __future__ import annotations

import bz2
import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.core.errors import OracleError

if TYPE_CHECKING:
    from spaces.core.oracle import Columns

SOURCE = "Dong et al., NATS-Bench, TPAMI 2021; files as of the package nats_bench 1.8"
ENDING = ".pickle.pbz2"

_VERSION = 1
_HP = "200"  # epochs
# Name here: where test and validation accuracies are: data set and set of the files. Seconds are of
# the training that the validation accuracy is of, as the benchmark charges a search for it.
_SETS = {
    "cifar10": (("cifar10", "ori-test"), ("cifar10-valid", "x-valid")),
    "cifar100": (("cifar100", "x-test"), ("cifar100", "x-valid")),
    "imagenet16": (("ImageNet16-120", "x-test"), ("ImageNet16-120", "x-valid")),
}
_COSTS = "cifar10-valid"
_FIRST_SEED = 888  # where seeds differ in params, those of the others are known to be wrong


def is_nats(path: str) -> bool:
    """Return whether `path` is the folder or the one file of NATS-Bench."""
    file = Path(path).expanduser()
    return file.name.endswith(ENDING) or (file / f"meta{ENDING}").is_file()


def nats_columns(path: str) -> Columns:
    """Return the columns of `spaces.oracles.nasbench201`, of all data sets.

    Accuracies are in percent after 200 epochs, the mean over the seeds that there are.

    Args:
        path: A folder with meta.pickle.pbz2, 000000.pickle.pbz2 and so on (NATS-tss-v1_0-...-simple
            or -full), or the one file NATS-tss-v1_0-....pickle.pbz2.

    Raises:
        OracleError: It is neither, or damaged, or lacks what is needed.
    """
    import numpy as np

    source = Path(path).expanduser().resolve()
    kept = _cache_file(source)
    if not kept.is_file():
        rows = list(_rows(source))
        if not rows:
            raise OracleError(f"oracle.path: {path} has no architecture in it.")
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        _keep(kept, columns)
    with np.load(kept) as stored:
        found: Columns = {name: stored[name] for name in stored}
    found["arch"] = found["arch"].astype(object)
    return found


def _cache_file(source: Path) -> Path:
    """Return where the columns are kept: by path, and by size and time of every file."""
    import platformdirs

    files = sorted(source.glob(f"*{ENDING}")) if source.is_dir() else [source]
    try:
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        what = f"oracle.path: {source} cannot be read: {error.strerror}"
        raise OracleError(f"{what}; is there such a file?") from error
    text = repr((_VERSION, str(source), facts))
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("nas-orchestrator")) / "nats" / f"{name}.npz"


def _keep(path: Path, columns: Columns) -> None:
    import os
    import tempfile

    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]  # their names are not allow_pickle
    Path(temporary).replace(path)


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    for index, (text, results) in enumerate(_architectures(source)):
        try:
            yield _row(text, results[_HP])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            what = f"{type(error).__name__}: {error}"
            raise OracleError(
                f"oracle.path: {source} has no results of {_HP} epochs for architecture {index} "
                f"({what})."
            ) from error


def _architectures(source: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every architecture's text and its results by number of epochs."""
    if not source.is_dir():
        whole = _load(source)
        for index, text in enumerate(_texts(source, whole)):
            if index not in whole.get("arch2infos", {}):
                raise OracleError(f"oracle.path: {source} lacks architecture {index}.")
            yield text, whole["arch2infos"][index]
        return
    meta = source / f"meta{ENDING}"
    for index, text in enumerate(_texts(meta, _load(meta))):
        names = (f"{index:06d}{ENDING}", f"{index}{ENDING}")
        file = next((source / name for name in names if (source / name).is_file()), None)
        if file is None:
            raise OracleError(f"oracle.path: {source} lacks {names[0]}.")
        yield text, _load(file)


def _texts(file: Path, content: Mapping[str, Any]) -> Sequence[str]:
    texts = content.get("meta_archs")
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise OracleError(
            f"oracle.path: {file} has no architectures of NATS-Bench's topology search space."
        )
    return texts


def _row(text: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of one architecture from its results of 200 epochs."""
    seeds, trials = results["dataset_seed"], results["all_results"]

    def mean(dataset: str, value: Any) -> float:
        values = [float(value(trials[(dataset, seed)])) for seed in seeds[dataset]]
        return sum(values) / len(values)

    def accuracy(name: str) -> Any:
        return lambda trial: trial["eval_acc1es"][f"{name}@{trial['epochs'] - 1}"]

    row: dict[str, Any] = {"arch": text}
    for dataset, (test, val) in _SETS.items():
        row[f"{dataset}_test"] = mean(test[0], accuracy(test[1]))
        row[f"{dataset}_val"] = mean(val[0], accuracy(val[1]))
        row[f"{dataset}_train_seconds"] = mean(val[0], _seconds)
    for column, name in (("params_m", "params"), ("flops_m", "flop")):
        counts = {seed: float(trials[(_COSTS, seed)][name]) for seed in seeds[_COSTS]}
        same = len({f"{count:.5f}" for count in counts.values()}) == 1
        row[column] = next(iter(counts.values())) if same else counts[_FIRST_SEED]
    return row


def _seconds(trial: Mapping[str, Any]) -> float:
    return sum(float(trial["train_times"][epoch]) for epoch in range(trial["epochs"]))


def _load(file: Path) -> Mapping[str, Any]:
    try:
        with bz2.open(file, "rb") as opened:
            content = _DataUnpickler(opened).load()
    except (
        OSError, EOFError, pickle.UnpicklingError, ValueError, IndexError, AttributeError, TypeError
    ) as error:  # fmt: skip
        reason = str(error).strip() or type(error).__name__
        raise OracleError(f"oracle.path: {file} cannot be read: {reason}") from error
    if not isinstance(content, Mapping):
        raise OracleError(f"oracle.path: {file} is no file of NATS-Bench.")
    return content


class _Inert:
    """Stands for any object that is not plain data, such as the weights in the -full files."""

    def __init__(self, *_: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        """Take anything."""


class _DataUnpickler(pickle.Unpickler):
    """Makes numbers, texts and containers; of whatever else a pickle names nothing is called."""

    _PLAIN = (("collections", "OrderedDict"),)
    _NUMPY = (
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return what may be made: the few classes that the files' numbers need."""
        if (module, name) in self._PLAIN:
            return OrderedDict
        if (module, name) in self._NUMPY:
            # The module's own name has changed with NumPy 2.
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        return _Inert
