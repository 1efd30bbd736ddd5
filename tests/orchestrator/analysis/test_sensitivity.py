"""`nas sensitivity`: curves, maps, the robust region; every figure on every odd study."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.analysis.frame import Factor, StudyFrame, study_frame
from orchestrator.analysis.intervals import Interval
from orchestrator.analysis.responses import MISSING, Level, Response, heat_map, response
from orchestrator.analysis.robust import robust_region
from orchestrator.analysis.sensitivity import analyse
from orchestrator.analysis.sensitivity_plots import (
    dependence_figure,
    importance_figure,
    interactions_figure,
    responses_figure,
    sensitivity_figures,
)
from orchestrator.analysis.surrogate import points_of
from orchestrator.errors import StudyError
from tests.orchestrator.analysis.made import frame_of, function
from tests.orchestrator.analysis.test_compare_command import nas
from tests.orchestrator.fake_study import make_study, search_row

GRID = [{"method.bandwidth": h, "method.radius": r} for h in (0.1, 1.0) for r in (0.2, 0.3, 0.4)]


def grid(seeds: int = 3, **changes: Any) -> StudyFrame:
    """0.9, less 0.1 for the lower bandwidth, less a tenth of the radius, and a point a seed."""
    values = [
        [0.9 - 0.1 * (g["method.bandwidth"] < 1) - g["method.radius"] / 10 + 0.01 * s
         for s in range(seeds)]
        for g in GRID
    ]  # fmt: skip
    return frame_of(GRID, values, metric="val_accuracy", **changes)


def test_a_curve_is_the_mean_over_seeds_of_means_over_the_rest() -> None:
    frame = grid()
    found = response(frame, frame.factor("bandwidth"))
    assert [level.text for level in found.levels] == ["0.1", "1"]
    assert [level.configurations for level in found.levels] == [3, 3]
    # 0.8 - 0.03 + 0.01; the seeds are a point apart, t of 2 degrees of freedom is 4.303.
    low = found.levels[0].mean
    assert low.estimate == pytest.approx(0.78)
    assert low.half_width == pytest.approx(4.302652729911275 * 0.01 / 3**0.5)
    assert found.factor.log


def test_a_map_has_a_mean_and_an_interval_for_each_pair() -> None:
    frame = grid()
    found = heat_map(frame, frame.factor("bandwidth"), frame.factor("radius"))
    assert (found.rows, found.columns) == (("0.1", "1"), ("0.2", "0.3", "0.4"))
    assert found.cells[1][2].estimate == pytest.approx(0.9 - 0.04 + 0.01)
    assert found.cells[0][0].n == 3


def test_rows_without_a_value_are_counted_where_they_were_lost() -> None:
    values: list[list[float | None]] = [[0.5, 0.6], [0.7, None], [None, None]]
    frame = frame_of([{"search.x": x} for x in (1.0, 2.0, 3.0)], values)
    found = response(frame, frame.factor("x"))
    assert [level.lost for level in found.levels] == [0, 1, 2]
    assert found.levels[2].mean.n == 0
    assert "Without a value, and in no mean: 3 failed of 6 rows." in analyse(frame).said


def test_many_values_are_put_together_into_ranges() -> None:
    frame = function(lambda u: u[:, 0], 1, 64)
    found = response(frame, frame.factors[0])
    assert len(found.levels) == 8
    assert sum(level.configurations for level in found.levels) == 64
    assert [level.at for level in found.levels] == sorted(level.at for level in found.levels)


def test_what_some_rows_do_not_have_is_a_value_of_a_category() -> None:
    settings = [{"method": "a"}, {"method": "a"}, {"method": "b", "method.kind": "x"},
                {"method": "b", "method.kind": "y"}]  # fmt: skip
    frame = frame_of(settings, [[1.0], [2.0], [3.0], [4.0]])
    found = response(frame, frame.factor("kind"))
    assert [level.text for level in found.levels] == ["x", "y", MISSING]
    assert found.levels[2].configurations == 2


def test_what_is_fixed_by_the_method_or_changes_with_another_is_no_factor() -> None:
    steps = {"a": 1, "b": 7}
    settings = [
        {"method": name, "method.steps": steps[name], "search.lr": lr, "search.end": lr}
        for name in "ab"
        for lr in (0.1, 0.2)
    ]
    frame = frame_of(settings, [[float(n)] for n in range(4)])
    assert [factor.name for factor in frame.factors] == ["method", "search.lr"]
    assert frame.factor("lr").aliases == ("search.end",)
    said = analyse(frame).said
    assert "lr and search.end change together: their parts cannot be told." in said


def test_a_missing_number_is_a_value_of_its_own_among_few() -> None:
    frame = frame_of([{"search.batches": n} for n in (None, 1, 16, 4)], [[1.0]] * 4)
    (factor,) = frame.factors
    assert (factor.kind, factor.levels) == ("category", ("1", "4", "16", "none"))


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ((0.1, 0.3, 1.0), True),
        ((1, 3, 6, 12), True),
        ((0.1, 0.3, 0.5), False),  # a factor of 5
        ((0.1, 0.4, 0.7, 1.0), False),  # steps, of a factor of 10 in all
        (tuple(0.001 + 0.01 * step for step in range(60)), False),
        (tuple(1.1**step for step in range(60)), True),
        ((0.0, 1.0, 100.0), False),
    ],
)
def test_numbers_that_are_spread_by_factors_are_told(values: tuple[float, ...], log: bool) -> None:
    frame = frame_of([{"search.x": value} for value in values], [[1.0]] * len(values))
    assert frame.factor("x").log == log


def test_the_robust_region_is_within_an_error_of_the_best() -> None:
    frame = grid()
    found = robust_region(frame, points_of(frame))
    assert found is not None
    # The seeds of every configuration are 0, 1 and 2 points: a deviation of 1 over the root of 3.
    assert found.error == pytest.approx(0.01 / 3**0.5)
    # The best is (1, 0.2) at 0.89; (1, 0.3) is a point below, so that it is alone.
    assert found.best == {"bandwidth": 1.0, "radius": 0.2}
    assert (found.inside, found.of) == (1, 6)
    wide = frame_of(GRID, [[0.8, 0.9]] * 3 + [[0.81, 0.89], [0.84, 0.88], [0.82, 0.9]])
    region = robust_region(wide, points_of(wide))
    assert region is not None
    assert region.inside == 6
    assert region.ranges == {"bandwidth": (0.1, 1.0), "radius": (0.2, 0.4)}
    assert region.recommended["radius"] == 0.3  # the middle
    assert any("within one standard error of the best" in line for line in analyse(wide).said)


def test_one_seed_has_no_region_and_says_so() -> None:
    shown = analyse(grid(seeds=1))
    assert shown.robust is None
    assert "One seed each: no interval, and no telling a setting from a lucky seed." in shown.said


def test_less_is_better_for_a_loss() -> None:
    frame = frame_of(
        [{"search.x": float(x)} for x in range(3)], [[3.0, 3.1], [1.0, 1.1], [2.0, 2.1]]
    )
    region = robust_region(frame, points_of(frame))
    assert region is not None
    assert region.best == {"x": 1.0}
    assert region.value == pytest.approx(1.05)


ODD = {
    "one row": lambda: frame_of([{}], [[0.5]]),
    "one configuration of one setting": lambda: frame_of([{"search.x": 1.0}], [[0.5, 0.6]]),
    "one seed": lambda: grid(seeds=1),
    "constants": lambda: frame_of(GRID * 2, [[0.5] * 3] * 12, metric="val_accuracy"),
    "all failed": lambda: frame_of(GRID, [[None, None]] * 6),
    "some failed": lambda: frame_of(GRID * 2, [[0.5, None], [None, None], [0.6, 0.7]] * 4),
    "categories": lambda: frame_of(
        [{"method": m, "search.norm": n} for m in "abc" for n in (True, False)] * 2,
        [[0.1 * place, 0.2] for place in range(12)],
    ),
    "conditional": lambda: frame_of(
        [{"method": "a"}] * 4 + [{"method": "b", "method.r": 0.1 * p} for p in range(5)],
        [[0.1 * place, 0.2] for place in range(9)],
    ),
    "missing and text": lambda: frame_of(
        [{"search.n": n, "search.t": t} for n in (None, 1, 100) for t in ("x" * 30, "y", None)],
        [[0.1 * place] for place in range(9)],
    ),
    "many values": lambda: function(lambda u: u[:, 0] * u[:, 1], 2, 32),
    "finite beside a huge one": lambda: frame_of(GRID * 2, [[1e9], [0.1], [0.2]] * 4),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_every_figure_of_every_odd_study(name: str) -> None:
    frame = ODD[name]()
    shown = analyse(frame, bootstraps=2)
    json.dumps(shown.to_json(), allow_nan=False)
    figures = sensitivity_figures(shown)
    # What has nothing to show is left out there, and is a figure that says so when asked for.
    rest = {"responses": responses_figure, "dependence": dependence_figure,
            "importance": importance_figure, "interactions": interactions_figure}  # fmt: skip
    figures |= {key: draw(shown) for key, draw in rest.items() if key not in figures}
    assert len(figures) == 4 + len(shown.maps)
    for figure in figures.values():
        figure.canvas.draw()


# The command


def write(study: Any, configurations: int = 4) -> None:
    for place in range(configurations):
        for seed in range(3):
            settings = {"search": {"alpha_lr": 0.01 * 10**place, "threads": place}}
            row = search_row(f"lr {place}", seed, [0.5 + 0.1 * place + 0.01 * seed], block=place)
            row.settings.update(settings | {"method": {"name": "darts"}})
            study.ledger.write(row, durable=False)


def test_the_command_reads_a_running_study(tmp_path: Path, capsys: Any) -> None:
    study = make_study(tmp_path / "studies")
    write(study)
    partial = search_row("lr 9", 0, [0.5], status="running")
    partial.settings.update({"search": {"alpha_lr": 0.01}, "method": {"name": "darts"}})
    folder = study.checkpoints / partial.key
    folder.mkdir(parents=True)
    (folder / "row.json").write_text(json.dumps(partial.to_json()))
    assert study_frame(study).counts == {"finished": 12, "running": 1}
    code, out, _ = nas(capsys, "sensitivity", str(study.path), "-o", str(tmp_path / "figures"))
    assert code == 0
    assert "val accuracy, %; 4 configurations, 3 seeds each" in out
    assert "robust     1 of 4 within one standard error" in out
    assert "default    alpha_lr=10: 81.00" in out
    assert "threads" not in out  # it changes no result
    assert all(len(line) <= 80 for line in out.splitlines() if "[" in line)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["responses.png"]


def test_the_command_as_json_and_of_named_settings(tmp_path: Path, capsys: Any) -> None:
    study = make_study(tmp_path / "studies")
    write(study, 9)
    code, out, _ = nas(capsys, "sensitivity", str(study.path), "--params", "alpha_lr", "--json")
    document = json.loads(out)
    assert code == 0
    assert list(document["responses"]) == ["alpha_lr"]
    assert {each["estimator"] for each in document["importances"]} == {
        "fanova", "ped_anova", "permutation"
    }  # fmt: skip
    code, _, err = nas(capsys, "sensitivity", str(study.path), "--params", "alpha_rl")
    assert code == 2
    assert "study tiny does not vary 'alpha_rl'. Did you mean 'alpha_lr'?" in err


def test_a_name_that_two_settings_end_in_is_refused() -> None:
    settings = [{"search.lr": a, "method.lr": b} for a in (1.0, 2.0) for b in (1.0, 2.0)]
    frame = frame_of(settings, [[1.0]] * 4)
    with pytest.raises(StudyError, match=r"does not vary 'lr'. It varies search.lr, method.lr"):
        frame.factor("lr")


def test_an_axis_within_a_decade_has_numbers_and_lost_rows_do_not_cover_each_other() -> None:
    levels = tuple(0.01 * 1.2**step for step in range(12))
    factor = Factor("search.weight_lr", "weight_lr", "number", log=True, levels=levels)
    sampled = [
        Level(f"{at:g}", at, 3, Interval(3, 0.9, 0.8, 1.0), 1100 + step)
        for step, at in enumerate(levels[::2])
    ]
    figure = responses_figure(
        SimpleNamespace(  # type: ignore[arg-type]
            responses=[Response(factor, tuple(sampled))], metric="val_accuracy", share=True
        )
    )
    figure.canvas.draw()
    (axes,) = [each for each in figure.axes if each.get_visible() and each.lines]
    low, high = axes.get_xlim()
    shown = [
        tick.get_text()
        for tick, at in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
        if low <= at <= high
    ]
    assert "0.02" in shown
    boxes = [text.get_window_extent() for text in axes.texts if "without" in text.get_text()]
    assert len(boxes) == len(sampled)
    for first, second in pairwise(boxes):
        assert first.x1 < second.x0
