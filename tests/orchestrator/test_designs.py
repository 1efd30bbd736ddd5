"""Designs of sensitivity studies: their points, their keys, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import factors, planning, runner, simulating, tracking
from orchestrator.config import dump, load_experiment, load_resolved
from orchestrator.dimensions import Dimension
from orchestrator.errors import ConfigError
from orchestrator.study import Study
from tests.orchestrator.test_simulate import Quiet
from tests.spaces.tables import columns201, write

HEAD = """
name: designed
space: {name: nasbench201, channels: 4, cells_per_stage: 1}
dataset: digits
seeds: [0, 1]
"""
TWO = (
    HEAD
    + """
method: {name: sdarts_rs, radius_max: {uniform: [0.1, 0.5]}}
search: {epochs: 2, alpha_lr: {loguniform: [0.001, 0.1]}}
"""
)
CHOICES = (
    HEAD
    + """
method:
  choice:
    - {name: darts}
    - {name: sdarts_rs, radius_max: {uniform: [0.1, 0.5]}}
search: {epochs: 2}
"""
)


def load(tmp_path: Path, text: str, tune: str, *overrides: str) -> Any:
    file = tmp_path / "designed.yaml"
    file.write_text(f"{text}tune: {tune}\n")
    return load_experiment(file, overrides)


def drawn(experiment: Any) -> list[tuple[float, ...]]:
    return [tuple(each.params.values()) for each in factors.configurations(experiment)]


def test_a_grid_has_every_combination(tmp_path: Path) -> None:
    found = drawn(load(tmp_path, TWO, "{design: {name: grid, levels: 3}}"))
    radii, rates = (0.1, 0.3, 0.5), (0.001, 0.01, 0.1)
    expected = [(radius, rate) for radius in radii for rate in rates]
    assert np.allclose(found, expected)
    assert factors.count(load(tmp_path, TWO, "{design: {name: grid, levels: 3}}")) == 9


def test_a_grid_asks_for_a_setting_where_it_is_there_alone(tmp_path: Path) -> None:
    found = load(tmp_path, CHOICES, "{design: {name: grid, levels: 4}}")
    methods = [each.settings["method"]["name"] for each in factors.configurations(found)]
    assert methods == ["darts"] + ["sdarts_rs"] * 4


def test_a_sobol_design_fills_every_half_and_quarter(tmp_path: Path) -> None:
    found = np.array(drawn(load(tmp_path, TWO, "{design: sobol, num_samples: 16}")))
    cube = np.c_[(found[:, 0] - 0.1) / 0.4, np.log(found[:, 1] / 0.001) / math.log(100)]
    for axis in range(2):  # a point in each sixteenth of each range, as no random draw has
        assert sorted(np.floor(16 * cube[:, axis])) == list(range(16))
    quarters = {tuple(np.floor(4 * point).astype(int)) for point in cube}
    assert len(quarters) == 16


def test_a_design_is_the_same_again_and_another_by_its_seed(tmp_path: Path) -> None:
    tune = "{design: {name: sobol, seed: SEED}, num_samples: 8}"
    first = load(tmp_path, TWO, tune.replace("SEED", "1"))
    assert drawn(first) == drawn(load(tmp_path, TWO, tune.replace("SEED", "1")))
    assert drawn(first) != drawn(load(tmp_path, TWO, tune.replace("SEED", "2")))
    dump(first, tmp_path / "resolved.yaml")
    assert drawn(load_resolved(tmp_path / "resolved.yaml")) == drawn(first)


@pytest.mark.parametrize(
    "tune",
    [
        "{design: {name: grid, levels: 3}}",
        "{design: {name: sobol, indices: true}, num_samples: 4}",
        "{design: {name: one_at_a_time, centre: {method.radius_max: 0.2, search.alpha_lr: 0.01}}}",
    ],
)
def test_a_resolved_design_says_what_has_an_effect_alone(tmp_path: Path, tune: str) -> None:
    experiment = load(tmp_path, TWO, tune)
    dump(experiment, tmp_path / "resolved.yaml")
    again = load_resolved(tmp_path / "resolved.yaml")
    assert again == experiment
    assert "searcher" not in again.resolved()["tune"]


def test_points_of_sobol_indices_are_saltellis(tmp_path: Path) -> None:
    experiment = load(tmp_path, TWO, "{design: {name: sobol, indices: true}, num_samples: 8}")
    (block,) = factors.blocks(experiment)
    points = [tuple(c.params.values()) for c in factors.design_points(experiment, block)]
    assert len(points) == 8 * (2 + 2)
    base, first, second, other = points[0:4]  # A, A with one column of B each, B
    assert first == (other[0], base[1])
    assert second == (base[0], other[1])


def test_one_setting_moves_at_a_time(tmp_path: Path) -> None:
    tune = "{design: {name: one_at_a_time, levels: 3, centre: {method.radius_max: 0.3, search.alpha_lr: 0.02}}}"  # noqa: E501
    found = drawn(load(tmp_path, TWO, tune))
    assert found[0] == (0.3, 0.02)
    assert np.allclose(
        found, [(0.3, 0.02), (0.1, 0.02), (0.5, 0.02), (0.3, 0.001), (0.3, 0.01), (0.3, 0.1)]
    )


def test_whole_numbers_are_within_their_range_and_each_once(tmp_path: Path) -> None:
    text = TWO.replace("{uniform: [0.1, 0.5]}", "0.3").replace(
        "alpha_lr: {loguniform: [0.001, 0.1]}", "batch_size: {randint: [8, 11]}"
    )
    assert drawn(load(tmp_path, text, "{design: grid}")) == [(8,), (9,), (10,)]
    experiment = load(tmp_path, text, "{design: sobol, num_samples: 8}")
    assert sorted(drawn(experiment)) == [(8,), (9,), (10,)]
    assert factors.count(experiment) == 3


def test_every_block_has_the_same_points(tmp_path: Path) -> None:
    text = TWO.replace("{name: sdarts_rs,", "{grid: [{name: sdarts_adv, steps: 2, radius_max: {uniform: [0.1, 0.5]}}, {name: sdarts_rs,").replace("[0.1, 0.5]}}\nsearch", "[0.1, 0.5]}}]}\nsearch")  # noqa: E501  # fmt: skip
    found = drawn(load(tmp_path, text, "{design: sobol, num_samples: 4}"))
    assert found[:4] == found[4:]


def test_what_runs_has_the_keys_that_it_has_without_a_design(tmp_path: Path) -> None:
    listed = TWO.replace("{uniform: [0.1, 0.5]}", "{grid: [0.1, 0.5]}").replace(
        "{loguniform: [0.001, 0.1]}", "0.01"
    )
    designed = TWO.replace("{loguniform: [0.001, 0.1]}", "0.01")
    plain = load(tmp_path, listed, "{}")
    assert "design" not in plain.resolved()["tune"]
    both = (plain, load(tmp_path, designed, "{design: {name: grid, levels: 2}}"))
    identity = planning.Identity({"name": "digits", "digest": "d"}, None, None, {})
    keys = [
        {planning.search_key(each, identity, 0) for each in factors.configurations(experiment)}
        for experiment in both
    ]
    assert keys[0] == keys[1]


def test_a_simulated_study_runs_its_design_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "start_drain", lambda study, uri: None)
    monkeypatch.setattr(tracking, "wait_a_while", lambda process, seconds: True)
    columns = columns201()
    columns["cifar10_val"] = columns["cifar10_test"]
    table = write(columns, tmp_path / "nb201.parquet")
    oracle = f"oracle: {{name: nasbench201, path: {table}}}\n"
    experiment = load(tmp_path, TWO + oracle, "{design: {name: grid, levels: 3}}")
    made = simulating.simulated(experiment, ray=False)
    runner.run_study(made, tmp_path / "studies", command="", reporter=Quiet())
    study = Study.open(made.name, tmp_path / "studies")
    keys = set(study.ledger.keys())
    assert len(keys) == 9 * 2
    for key in sorted(keys)[:5]:
        (study.path / "ledger" / f"{key}.json").unlink()
    runner.resume_study(study, command="", reporter=Quiet())
    assert set(study.ledger.keys()) == keys


@pytest.mark.parametrize(
    ("text", "tune", "message"),
    [
        (TWO, "{design: sobol}", "tune.num_samples must be given with tune.design sobol"),
        (TWO, "{design: sobol, num_samples: 12}", "must be a power of 2 .* got 12. 8 or 16 would"),
        (TWO, "{design: sobol, num_samples: 1}", "must be a power of 2 from 2 to"),
        (TWO, "{design: {name: sobol, indices: true}, num_samples: 4096}", "makes 16384 points"),
        (CHOICES, "{design: sobol, num_samples: 8}", "needs ranges, and method is a choice"),
        (TWO, "{design: {name: sobol, levels: 3}}", "tune.design.levels has no effect with sobol"),
        (TWO, "{design: {name: grid, levels: 101}}", "at most 10000 points, got 10201: 2 settings"),
        (TWO, "{design: {name: grid, levels: 1}}", "tune.design.levels must be >= 2, got 1"),
        (TWO, "{design: grid, num_samples: 9}", "num_samples has no effect with tune.design grid"),
        (
            TWO,
            "{design: sobl}",
            "tune.design must be one of grid, sobol, one_at_a_time, got 'sobl'",
        ),
        (TWO, "{design: [grid]}", "tune.design must be a mapping of settings"),
        (TWO, "{design: one_at_a_time}", "it lacks method.radius_max, search.alpha_lr"),
        (CHOICES, "{design: one_at_a_time}", "needs one centre, and method.radius_max is there"),
        (
            TWO,
            "{design: {name: one_at_a_time, centre: {method.radius_max: 2, search.alpha_lr: 0.01}}}",  # noqa: E501
            r"centre.method.radius_max must be a number in \[0.1, 0.5\], got 2",
        ),
        (
            TWO,
            "{design: {name: one_at_a_time, centre: {method.radius_max: 0.2, search.alpha_lr: 0.01, search.lr: 1}}}",  # noqa: E501
            "centre has search.lr, which is no range or choice here",
        ),
        (TWO, "{design: grid, searcher: random}", "tune.searcher has no effect with tune.design"),
        (
            TWO,
            "{design: grid, scheduler: {name: asha, grace_epochs: 1}}",
            "tune.scheduler must be none with tune.design grid",
        ),
        (
            HEAD + "method: darts\nsearch: {epochs: 2}\n",
            "{design: grid}",
            "tune.design has nothing to place",
        ),
    ],
)
def test_what_cannot_be_is_refused(text: str, tune: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text, tune)


def test_the_ends_of_a_range_are_reached_and_not_left() -> None:
    from orchestrator.designs import levels, place

    log = Dimension("search.x", "search.x", "loguniform", (1e-4, 0.1))
    assert levels(log, 4) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert (place(log, 0.0), place(log, 1.0)) == (1e-4, 0.1)
    whole = Dimension("search.n", "search.n", "randint", (2, 5))
    assert [place(whole, u) for u in (0.0, 0.34, 0.67, 1.0)] == [2, 3, 4, 4]
