"""States of trials, damaged: a trial begins anew and says so, or goes on bit for bit."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from benchmarks.fuzzing.damage import VALUES, Damage, damaged, damages, paths_of, replaced, write
from benchmarks.fuzzing.outcomes import Finding, Outcome, tried, warnings_to
from orchestrator.ledger import Ledger, Row
from orchestrator.study_trial import Recording, StudyRetrain, StudySearch
from spaces.core.text import parse
from trainables.search import TIME_FIELDS
from trainables.state import load_state
from trainables.stored import open_final

_KEY = "0" * 16
_EPOCHS = 2
_CELL = parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1~2|")
_TIMES = (*TIME_FIELDS, "ended")
_SORTS = ("state", "state", "state", "row", "tensor", "entry", "pickle", "final")


@dataclass(frozen=True)
class State:
    """What becomes of the files of a trial that is half done.

    Attributes:
        stage: "search" or "retrain".
        sort: "state", "row" or "final": the file is damaged; "tensor": its archive is whole, and
            its content flipped; "entry": a value of its mapping is another one; "pickle": code.
        damage: What is done.
        place: At which value, as a share of all, for "entry".
        value: Of "entry".
    """

    stage: str
    sort: str
    damage: Damage
    place: float
    value: Any


class _Half:
    """A trial of one stage that is half done, and what it should come to."""

    def __init__(self, stage: str, folder: Path) -> None:
        self._stage = stage
        whole, half = folder / "whole", folder / "half"
        self.expected = self.finished(self.trial(whole), whole)
        self.final = (whole / "checkpoints" / _KEY / "final.pt").read_bytes()
        self.trial(half).step()
        files = half / "checkpoints" / _KEY
        self.bytes = {name: (files / name).read_bytes() for name in ("state.pt", "row.json")}
        self.picture = _picture(self.trial(half))
        self.new = _picture(self.trial(folder / "new"))

    def trial(self, study: Path) -> Recording:
        """Begin, or go on with what is in a folder."""
        of_stage = StudySearch if self._stage == "search" else StudyRetrain
        return of_stage(_config(self._stage, study))

    def finished(self, block: Recording, study: Path) -> Any:
        """Run a trial to its end and return its result."""
        while not block.step()["done"]:
            pass
        return _result(Ledger(study / "ledger").read(_KEY))


class Checkpoints:
    """What a trial does with a damaged state of its own.

    Args:
        folder: An empty folder.
    """

    name = "checkpoint"

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._study = folder / "study"
        self._ran = folder / "ran"
        self._halves = {stage: _Half(stage, folder / stage) for stage in ("search", "retrain")}

    def inputs(self) -> st.SearchStrategy[State]:
        """Return damaged states."""
        return st.builds(
            State,
            st.sampled_from(("search", "search", "retrain")),
            st.sampled_from(_SORTS),
            damages(),
            st.floats(0, 1, exclude_max=True),
            VALUES,
        )

    def check(self, item: State) -> Outcome:
        """Build the trial again over the damaged files; now and then run it to its end."""
        shutil.rmtree(self._study, ignore_errors=True)
        folder = self._study / "checkpoints" / _KEY
        folder.mkdir(parents=True)
        half = self._halves[item.stage]
        for name, data in half.bytes.items():
            (folder / name).write_bytes(data)
        if item.sort == "final":
            return self._check_final(folder, item.damage, half)
        self._damage(folder, item, half)
        heard = io.StringIO()
        with warnings_to(heard):
            block, message = tried(lambda: half.trial(self._study))
        if self._ran.exists():
            raise Finding("loss", "code that a state holds was run")
        if block is None:
            raise Finding("unclear", f"a trial that cannot begin: {message:.300}")
        picture, said = _picture(block), heard.getvalue()
        # A value that was replaced in a whole archive is as good as any other.
        if picture not in (half.picture, half.new) and item.sort != "entry":
            raise Finding("loss", "a trial goes on from what no trial left")
        if picture == half.new and "state.pt" not in said:
            raise Finding("loss", f"a state was dropped without a word: {said!r:.200}")
        if (
            item.place > 0.95
            and item.sort != "entry"
            and half.finished(block, self._study) != half.expected
        ):
            raise Finding("loss", "the result is not that of an undisturbed trial")
        return "repaired" if said else "accepted"

    def _check_final(self, folder: Path, damage: Damage, half: _Half) -> Outcome:
        file = folder / "final.pt"
        write(file, damaged(half.final, damage, [half.bytes["state.pt"]]))
        opened, _ = tried(lambda: open_final(file, device="cpu"))
        return "refused" if opened is None else "accepted"

    def _damage(self, folder: Path, item: State, half: _Half) -> None:
        file = folder / ("row.json" if item.sort == "row" else "state.pt")
        data = half.bytes[file.name]
        if item.sort in ("state", "row"):
            write(file, damaged(data, item.damage, [half.final]))
        elif item.sort == "tensor":
            file.write_bytes(_with_flipped_tensor(data, item.damage))
        elif item.sort == "entry":
            _replace_entry(file, item)
        else:
            file.write_bytes(pickle.dumps(_Code(str(self._ran))))
            if item.damage.data[0] % 2:
                torch.save({"kind": item.stage, "evil": _Code(str(self._ran))}, file)


class _Code:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)


def _with_flipped_tensor(data: bytes, damage: Damage) -> bytes:
    """Flip a bit in the numbers of a tensor and leave the archive around them as it is."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        tensors = [info for info in archive.infolist() if "/data/" in info.filename]
        info = tensors[int(damage.place * len(tensors))]
        content = archive.read(info)
    at = data.find(content, info.header_offset) + damage.data[-1] % max(1, len(content))
    return data[:at] + (data[at] ^ (1 << damage.data[0] % 8)).to_bytes() + data[at + 1 :]


def _replace_entry(file: Path, item: State) -> None:
    """Write a state in which one value is another one."""
    state = load_state(file)
    paths = [path for path in paths_of(state) if len(path) < 4]
    path = paths[int(item.place * len(paths))]
    torch.save(replaced(state, path, item.value), file)


def _config(stage: str, study: Path) -> dict[str, Any]:
    space = {"name": "nasbench201", "channels": 2, "cells_per_stage": 1}
    if stage == "search":
        what: dict[str, Any] = {
            "method": {"name": "darts"},
            "selection": {"name": "magnitude"},
            "search": {"epochs": _EPOCHS, "batch_size": 512},
        }
    else:
        settings = {"epochs": _EPOCHS, "channels": 2, "cells": 1, "batch_size": 512}
        what = {"genotype": _CELL.to_json(), "retrain": settings}
    return {
        "space": space,
        "dataset": {"name": "digits"},
        **what,
        "device": "cpu",
        "seeds": [0],
        "unit": {
            "study": str(study),
            "stage": stage,
            "rows": {"0": _KEY},
            "config_id": "c" * 10,
            "block": 0,
            "params": {},
            "label": "darts",
            "epochs": _EPOCHS,
            "git": None,
            "per_trial": {"cpu": 1.0, "gpu": 0.0},
            "genotype_hash": _CELL.hash,
        },
    }


def _picture(block: Recording) -> tuple[int, str]:
    """Return the epochs of a trial and a text of its state, tensors whole."""
    trial: Any = block.trials[0]
    return trial.epoch, _text(trial.state_dict())


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes().hex()[:4096] + str(value.sum().item())
    if isinstance(value, dict):
        return str({k: _text(v) for k, v in value.items() if k not in _TIMES})
    if isinstance(value, list | tuple):
        return str([_text(item) for item in value])
    return repr(value)


def _result(row: Row | None) -> Any:
    if row is None:
        return None
    curve = [{k: v for k, v in entry.items() if k not in _TIMES} for entry in row.curve]
    return row.status, row.genotype_hash, curve
