"""Outboxes and their offsets, damaged: what is sent then, and that all of it is sent once."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from benchmarks.fuzzing import template
from benchmarks.fuzzing.damage import VALUES, Damage, damaged, damages, dumped, write
from benchmarks.fuzzing.outcomes import Finding, Outcome, tried, warnings_to
from benchmarks.fuzzing.store import RunStore
from orchestrator import tracking_drain, tracking_send
from orchestrator.outbox import offset_file
from orchestrator.study import Study
from orchestrator.tracking_drain import Drain

_URI = "memory:"
_MOST_SENDS = 3


@dataclass(frozen=True)
class Mail:
    """What becomes of an outbox.

    Attributes:
        sort: "outbox": its file is damaged; "lines": lines of odd shapes are put in; "offset": the
            offsets are other ones, or damaged.
        damage: Of the file.
        lines: Bytes of lines, and where they are put in, as a share of all lines.
        offset: What the file of offsets holds, or None for what the damage leaves of it.
        sent: Share of the lines that were sent before.
    """

    sort: str
    damage: Damage
    lines: tuple[tuple[float, bytes], ...]
    offset: bytes | None
    sent: float


class Outboxes:
    """What a drain does with a damaged outbox.

    Args:
        folder: An empty folder.
    """

    name = "outbox"

    def __init__(self, folder: Path) -> None:
        self._template = template.make(folder / "whole")
        self._path = folder / "study"
        self._lines = Study.open(self._template.path).outbox.read_bytes().splitlines(keepends=True)
        self._experiment = Study.open(self._template.path).experiment
        self._expected = self._picture(self._sent_whole())

    def inputs(self) -> st.SearchStrategy[Mail]:
        """Return damaged outboxes and offsets."""
        position = st.one_of(st.integers(-5, 20_000), VALUES)
        fields = st.fixed_dictionaries(
            {
                "parent": st.just("run0") | VALUES,
                "position": position,
                "writer": st.text(max_size=3),
            }
        )
        offset = st.one_of(
            st.none(),
            st.dictionaries(st.just(_URI) | st.text(max_size=4), fields | VALUES, max_size=2).map(
                dumped
            ),
        )
        place = st.floats(0, 1, exclude_max=True)
        return st.builds(
            Mail,
            st.sampled_from(["outbox", "lines", "offset"]),
            damages(),
            st.lists(st.tuples(place, lines()), min_size=1, max_size=4).map(tuple),
            offset,
            place,
        )

    def check(self, item: Mail) -> Outcome:
        """Damage a copy of the study's outbox and send it."""
        self._template.copy(self._path)
        study = Study.open(self._path)
        study.__dict__["experiment"] = self._experiment
        store = RunStore()
        self._send_before(study, store, item)
        self._damage(study, item)
        heard = io.StringIO()
        undrawn = mock.patch.object(tracking_send, "write_artifacts", _no_artifacts)
        with undrawn, warnings_to(heard):
            sent, message = self._send(study, store)
        if sent is None:
            if str(study.path) not in message:
                raise Finding("unclear", f"a message that names no file: {message!r:.300}")
            return "refused"
        if self._picture(store) != self._expected:
            raise Finding("loss", "the store has not all rows and epochs once")
        bad = study.outbox.with_suffix(".bad")
        if bad.is_file() and not heard.getvalue():
            raise Finding("loss", "lines were put aside without a word")
        return "repaired" if heard.getvalue() else "accepted"

    def _send(self, study: Study, store: RunStore) -> tuple[Any, str]:
        """Send until nothing is left; a drain that is never done is stuck."""
        drain = Drain(study, store, _URI, models=False)
        for _ in range(_MOST_SENDS):
            sent, message = tried(drain.send)
            if not sent:
                return sent, message
        raise Finding("slow", "a drain that finds new records for ever")

    def _send_before(self, study: Study, store: RunStore, item: Mail) -> None:
        if item.sort != "offset":
            return
        whole = study.outbox.read_bytes()
        study.outbox.write_bytes(b"".join(self._lines[: int(item.sent * len(self._lines))]))
        undrawn = mock.patch.object(tracking_send, "write_artifacts", _no_artifacts)
        unsettled = mock.patch.object(tracking_drain.Drain, "_settle", _no_settling)
        with undrawn, unsettled:
            Drain(study, store, _URI, models=False).send()
        study.outbox.write_bytes(whole)

    def _damage(self, study: Study, item: Mail) -> None:
        if item.sort == "lines":
            lines = list(self._lines)
            for place, line in item.lines:
                lines.insert(int(place * len(lines)), line)
            study.outbox.write_bytes(b"".join(lines))
        elif item.sort == "outbox":
            data = b"".join(self._lines)
            if item.damage.sort == "field":
                at = int(item.damage.place * len(self._lines))
                line = damaged(self._lines[at], item.damage) or b""
                data = b"".join([*self._lines[:at], line + b"\n", *self._lines[at + 1 :]])
                study.outbox.write_bytes(data)
            else:
                write(study.outbox, damaged(data, item.damage, self._lines))
        elif item.offset is not None:
            offset_file(study.outbox).write_bytes(item.offset)
        else:
            file = offset_file(study.outbox)
            write(file, damaged(file.read_bytes(), item.damage, self._lines))

    def _sent_whole(self) -> RunStore:
        self._template.copy(self._path)
        study, store = Study.open(self._path), RunStore()
        with mock.patch.object(tracking_send, "write_artifacts", _no_artifacts):
            Drain(study, store, _URI, models=False).send()
        return store

    @staticmethod
    def _picture(store: RunStore) -> dict[str, Any]:
        """Return what a store shows of each row: its status, and each epoch's values once.

        Raises:
            Finding: A row has two runs.
        """
        shown: dict[str, Any] = {}
        for run in store.all.values():
            key = run.tags.get("nas.key", "study")
            if key in shown:
                raise Finding("loss", f"two runs of {key}")
            points = sorted((p.metric, p.step, p.value) for p in run.points if p.step)
            shown[key] = None if key == "study" else (run.status, points)
        return shown


def lines() -> st.SearchStrategy[bytes]:
    """Return lines that no driver writes."""
    kind = st.sampled_from(["study", "start", "epoch", "row", "study_end", "other"]) | VALUES
    key = st.sampled_from(["0" * 16, "../../x", ""]) | VALUES
    record = st.fixed_dictionaries(
        {"k": kind},
        optional={
            "t": st.just(template.BEGIN) | VALUES,
            "key": key,
            "row": VALUES,
            "step": st.integers(0, 5) | VALUES,
            "m": st.dictionaries(st.just("search/val_loss"), VALUES, max_size=1) | VALUES,
            "status": st.just("finished") | VALUES,
        },
    )
    whole = record.map(lambda form: json.dumps(form).encode() + b"\n")
    torn = whole.map(lambda line: line[: len(line) // 2] + b"\n")
    noise = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"") + b"\n")
    deep = st.just(b"[" * 50_000 + b"\n")
    return st.one_of(
        whole, whole, torn, noise, deep, st.just(b"\n"), VALUES.map(lambda v: dumped(v) + b"\n")
    )


def _no_artifacts(_folder: Path, _row: Any) -> None:
    """Draw nothing: a drawing takes longer than all else."""


def _no_settling(_drain: Drain, _keys: list[str], *, all_rows: bool = False) -> None:
    """Send no row that no record told of, as while a driver runs."""
