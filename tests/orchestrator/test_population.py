"""Population-based training as pure functions: who copies whom, and what a copy trains with."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import population
from orchestrator.dimensions import Dimension
from orchestrator.errors import StudyError
from orchestrator.experiment import Pbt
from orchestrator.population import Generation, Part, Rules, changed, lineage, selected
from orchestrator.population_file import Snapshot, read_snapshot, snapshots, write_snapshot

LR = Dimension("retrain.lr", "retrain.lr", "loguniform", (0.01, 1.0))
DROP = Dimension("retrain.drop_path", "retrain.drop_path", "uniform", (0.0, 0.5))
CUTOUT = Dimension("retrain.cutout", "retrain.cutout", "choice", (0, 2, 4, 8))
WHOLE = Dimension("retrain.cutout", "retrain.cutout", "randint", (1, 9))
RULES = Rules(Pbt(population=4, every=2), (LR, CUTOUT), (0, 0), "max")
FIRST = tuple(Part({"lr": lr, "cutout": 2}) for lr in (0.1, 0.2, 0.3, 0.4))


class Fixed:
    """A generator whose draws are given, in order: `random` and `integers`."""

    def __init__(self, *draws: float) -> None:
        self.draws = list(draws)

    def random(self) -> float:
        return self.draws.pop(0)

    def integers(self, high: int) -> int:
        drawn = int(self.draws.pop(0))
        assert 0 <= drawn < high
        return drawn


def near(dimension: Dimension, value: Any, *draws: float) -> Any:
    """Move a value near by: the first draw says that it is not drawn anew."""
    return changed(dimension, value, 0.25, Fixed(0.9, *draws))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "quantile", "mode", "copying", "best"),
    [
        ([0.5, 0.9, 0.1, 0.7], 0.25, "max", [2], [1]),
        ([0.5, 0.9, 0.1, 0.7], 0.25, "min", [1], [2]),
        ([0.5, 0.9, 0.1, 0.7], 0.5, "max", [0, 2], [1, 3]),
        # 0.25 of 7 is 1.75: one, never more than the share that was asked for.
        ([1, 2, 3, 4, 5, 6, 7], 0.25, "max", [0], [6]),
        # 0.1 * 30 is 3.0000000000000004 and 0.29 * 100 is 28.999999999999996.
        (list(range(100)), 0.29, "max", list(range(29)), list(range(99, 70, -1))),
        # Equal values go by number.
        ([0.5, 0.5, 0.5, 0.5], 0.25, "max", [3], [0]),
        ([0.5, 0.5, 0.5, 0.5], 0.25, "min", [3], [0]),
        # All that diverged copy, and nobody copies them.
        ([None, 0.9, None, 0.7], 0.25, "max", [0, 2], [1]),
        ([None, 0.9, None, None], 0.5, "max", [0, 2, 3], [1]),
        ([None, None, None, None], 0.25, "max", [0, 1, 2, 3], []),
    ],
)
def test_the_worst_copy_the_best(
    values: list[float | None], quantile: float, mode: str, copying: list[int], best: list[int]
) -> None:
    assert selected(values, quantile, mode) == (copying, best)


@given(
    st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=20),
    st.floats(0.01, 0.5),
    st.sampled_from(["max", "min"]),
)
def test_nobody_copies_and_is_copied(
    values: list[float | None], quantile: float, mode: str
) -> None:
    copying, best = selected(values, quantile, mode)
    assert not set(copying) & set(best)
    assert len(best) <= int(len(values) * quantile + 1e-9)
    assert {i for i, value in enumerate(values) if value is None} <= set(copying)
    sign = 1.0 if mode == "max" else -1.0
    for good in best:
        for bad in copying:
            assert values[bad] is None or sign * values[good] >= sign * values[bad]


def test_a_number_is_multiplied_and_kept_in_its_range() -> None:
    assert near(LR, 0.1, 0) == pytest.approx(0.08)
    assert near(LR, 0.1, 1) == pytest.approx(0.12)
    assert near(LR, 0.9, 1) == 1.0
    assert near(LR, 0.011, 0) == 0.01
    assert near(DROP, 0.45, 1) == 0.5


def test_a_whole_number_moves_by_one_at_least() -> None:
    # 2 * 1.2 = 2.4 and 2 * 0.8 = 1.6 round to 2; 6 * 1.2 = 7.2, 6 * 0.8 = 4.8; 9 is not drawn.
    assert [near(WHOLE, value, 1) for value in (2, 6, 8)] == [3, 7, 8]
    assert [near(WHOLE, value, 0) for value in (2, 6, 1)] == [1, 5, 1]
    assert isinstance(near(WHOLE, 6, 1), int)


def test_a_choice_goes_to_a_neighbour() -> None:
    assert [near(CUTOUT, value, 0) for value in (0, 2, 4, 8)] == [2, 0, 2, 4]
    assert [near(CUTOUT, value, 1) for value in (0, 2, 4, 8)] == [2, 4, 8, 4]


def test_what_is_resampled_is_drawn_from_the_range() -> None:
    rng = np.random.default_rng(0)
    drawn = [changed(LR, 0.1, 1.0, rng) for _ in range(200)]
    assert 0.01 <= min(drawn) < 0.02
    assert 0.5 < max(drawn) <= 1.0
    # Half of a loguniform's draws are below its geometric mean, 0.1.
    assert 70 < sum(value < 0.1 for value in drawn) < 130
    moved = [changed(LR, 0.1, 0.0, rng) for _ in range(200)]
    assert {round(value, 3) for value in moved} == {0.08, 0.12}
    share = sum(round(changed(LR, 0.1, 0.25, rng), 6) not in (0.08, 0.12) for _ in range(2000))
    assert share / 2000 == pytest.approx(0.25, abs=0.04)  # 4 standard errors


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_a_copy_keeps_its_ranges_and_never_all_settings(seed: int, resample: float) -> None:
    rules = replace(RULES, pbt=Pbt(population=4, every=2, resample=resample))
    settings = {"lr": 1.0, "cutout": 8}
    found = rules.explored(settings, np.random.default_rng(seed))
    assert settings == {"lr": 1.0, "cutout": 8}
    assert 0.01 <= found["lr"] <= 1.0
    assert found["cutout"] in CUTOUT.args
    assert found != settings


def test_only_what_mutates_changes_and_the_rest_is_copied() -> None:
    rules = replace(RULES, pbt=Pbt(population=4, every=2, mutations=("lr",)))
    generation = Generation(0, (Part({"lr": 0.1, "cutout": 8}), *FIRST[1:]), (0.9, 0.5, 0.5, 0.1))
    parts = rules.next_parts(generation, 1)
    assert parts is not None
    assert (parts[3].copied_from, parts[3].settings["cutout"]) == (0, 8)
    assert parts[3].settings["lr"] != 0.1
    assert parts[:3] == generation.parts[:3]


def test_the_same_generation_is_planned_the_same_and_another_is_not() -> None:
    generation = Generation(0, FIRST, (0.5, 0.9, 0.1, 0.7))
    parts = RULES.next_parts(generation, 1)
    assert parts == RULES.next_parts(generation, 1)
    others = [
        RULES.next_parts(generation, 2),
        replace(RULES, seeds=(1, 0)).next_parts(generation, 1),
        replace(RULES, seeds=(0, 1)).next_parts(generation, 1),
    ]
    assert all(other is not None and other != parts for other in others)
    # Each member draws by itself: a second one that copies changes nothing for the first.
    more = RULES.next_parts(Generation(0, FIRST, (None, 0.9, None, 0.7)), 1)
    assert parts is not None
    assert more is not None
    assert [part.copied_from for part in more] == [1, None, 1, None]
    assert more[2] == parts[2]


def test_without_a_good_member_there_is_no_next_generation() -> None:
    assert RULES.next_parts(Generation(0, FIRST, (None,) * 4), 1) is None


def test_history_and_lineage_of_copies() -> None:
    a, b, c, d = ({"lr": lr} for lr in (0.1, 0.2, 0.3, 0.4))
    generations = [
        Generation(0, (Part(a), Part(b))),
        Generation(2, (Part(c, 1), Part(b))),
        Generation(4, (Part(c), Part(d, 0))),
    ]
    assert population.history(generations, 0) == [
        {"epoch": 1, "settings": a, "copied_from": None},
        {"epoch": 3, "settings": c, "copied_from": 1},
    ]
    histories = [population.history(generations, member) for member in (0, 1)]
    # Member 1 copied 0 before epoch 5, which had copied 1 before epoch 3.
    assert lineage(histories, 1) == [
        {"epoch": 1, "member": 1, "settings": b},
        {"epoch": 3, "member": 0, "settings": c},
        {"epoch": 5, "member": 1, "settings": d},
    ]
    assert lineage(histories, 0) == lineage(histories, 1)[:2]


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "population" / "a.json"
    assert read_snapshot(path) is None
    done = Generation(0, FIRST, (0.1, None, 1 / 3, 0.7))
    snapshot = Snapshot("x", 3, 6, (done, Generation(2, (*FIRST[:3], Part({"lr": 0.1 / 3}, 2)))))
    write_snapshot(path, snapshot)
    assert read_snapshot(path) == snapshot
    write_snapshot(tmp_path / "population" / "0.json", replace(snapshot, label="y"))
    assert [each.label for each in snapshots(tmp_path)] == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged .* Remove it to train this population anew"),
        ('{"format": 1, "label": "x"}', "is damaged"),
        ('{"format": 2}', "has format 2, but this version reads formats up to 1"),
        ("[]", "is damaged"),
        ("[" * 2000, "is damaged"),
        ("null", "is damaged"),
    ],
)
def test_a_damaged_snapshot_is_no_new_population(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(StudyError, match=message):
        read_snapshot(path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("label",), 3),
        (("seed",), "3"),
        (("epochs",), None),
        (("epochs",), 1),
        (("generations",), []),
        (("generations",), {}),
        (("generations", 0, "start"), 1),
        (("generations", 1, "start"), 0),
        (("generations", 1, "start"), 2.5),
        (("generations", 0, "values"), None),
        (("generations", 0, "values"), [0.1]),
        (("generations", 0, "values", 0), "0.1"),
        (("generations", 0, "values", 0), True),
        (("generations", 0, "parts"), []),
        (("generations", 0, "parts", 0), None),
        (("generations", 1, "parts", 0, "settings"), 7),
        (("generations", 1, "parts", 3, "copied_from"), 4),
        (("generations", 1, "parts", 3, "copied_from"), -1),
        (("generations", 1, "parts", 3, "copied_from"), "0"),
    ],
)
def test_values_of_a_wrong_kind_are_a_damaged_snapshot(
    tmp_path: Path, where: tuple[str | int, ...], value: Any
) -> None:
    path = tmp_path / "a.json"
    done = Generation(0, FIRST, (0.1, None, 1 / 3, 0.7))
    write_snapshot(path, Snapshot("x", 3, 6, (done, Generation(2, FIRST))))
    form = json.loads(path.read_bytes())
    del form["crc32"]  # as of an earlier version
    path.write_text(json.dumps(form))
    assert read_snapshot(path) is not None
    inner = form
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = value
    path.write_text(json.dumps(form))
    with pytest.raises(StudyError, match="is damaged"):
        read_snapshot(path)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_no_flipped_bit_of_a_snapshot_is_believed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        done = Generation(0, FIRST, (0.1, None, 1 / 3, 0.7))
        snapshot = Snapshot("x", 3, 6, (done, Generation(2, FIRST)))
        write_snapshot(path, snapshot)
        written = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(written) - 1))
        written[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(written)
        try:
            found = read_snapshot(path)
        except StudyError:
            return
        assert found == snapshot  # a space for another, or the name of the checksum
