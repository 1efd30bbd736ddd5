"""Importance where the answer is known: Ishigami, an additive function, a pure interaction, noise.

Variances by hand. Ishigami: a^2 / 8 + b pi^4 / 5 + b^2 pi^8 / 18 + 1 / 2 = 13.84, of which x0 alone
has 0.314, x1 0.442, x2 none; with their interactions x0 0.558, x1 0.442 and x2 0.244.
"""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator import factors
from orchestrator.analysis.frame import StudyFrame, study_frame
from orchestrator.analysis.importance import doubts, importances, sobol_indices
from orchestrator.analysis.sensitivity import analyse
from orchestrator.analysis.surrogate import (
    dependence,
    encode,
    interactions,
    points_of,
    predicted,
)
from tests.orchestrator.analysis.made import frame_of, function, ishigami
from tests.orchestrator.fake_study import make_study, search_row


@pytest.fixture(scope="module")
def of_ishigami() -> StudyFrame:
    return function(ishigami, 4, 256)


def by(frame: StudyFrame, bootstraps: int = 0) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for each in importances(points_of(frame), bootstraps=bootstraps):
        found.setdefault(each.estimator, {})[each.factor] = each.value
    return found


def test_ishigami_by_functional_anova_and_permutation(of_ishigami: StudyFrame) -> None:
    found = by(of_ishigami)
    # Of 256 configurations forests see a part: shares are low by up to a third, never in order.
    for name, share in {"x0": 0.314, "x1": 0.442, "x2": 0.0, "x3": 0.0}.items():
        assert found["fanova"][name] == pytest.approx(share, abs=0.16)
    for name, share in {"x0": 0.558, "x1": 0.442, "x2": 0.244, "x3": 0.0}.items():
        assert found["permutation"][name] == pytest.approx(share, abs=0.3)
    assert found["fanova"]["x2"] < 0.1 < found["permutation"]["x2"]  # by interaction alone
    assert sum(found["ped_anova"].values()) == pytest.approx(1.0)


def test_an_inert_setting_is_recognised(of_ishigami: StudyFrame) -> None:
    shown = analyse(of_ishigami, bootstraps=6)
    inert = next(
        each for each in shown.importances
        if (each.estimator, each.factor) == ("permutation", "x3")
    )  # fmt: skip
    assert inert.low is not None
    assert inert.high is not None
    assert inert.low <= 0
    assert abs(inert.high) < 0.05
    assert any(line.startswith("Not told from no effect:") and "x3" in line for line in shown.said)
    others = [each for each in shown.importances
              if each.estimator == "permutation" and each.factor != "x3"]  # fmt: skip
    assert all(each.low is not None and each.low > 0 for each in others)
    # Here, because the fixture is at hand: the pair that interacts is found.
    assert max(shown.interactions, key=lambda pair: shown.interactions[pair]) == ("x0", "x2")


def test_an_additive_function_has_its_shares_and_no_interaction() -> None:
    frame = function(lambda u: 4 * u[:, 0] + 2 * u[:, 1] + u[:, 2], 3, 128)
    found = by(frame)
    for name, share in {"x0": 16 / 21, "x1": 4 / 21, "x2": 1 / 21}.items():
        assert found["fanova"][name] == pytest.approx(share, abs=0.1)
        assert found["permutation"][name] == pytest.approx(share, abs=0.15)
    assert max(interactions(points_of(frame)).values()) < 0.03
    score = predicted(points_of(frame))
    assert score is not None
    assert score > 0.8


def test_a_pure_interaction_is_seen_by_what_looks_for_it() -> None:
    frame = function(lambda u: np.sign(u[:, 0] - 0.5) * np.sign(u[:, 1] - 0.5), 3, 256)
    found = by(frame)
    assert max(found["fanova"].values()) < 0.25  # alone no setting does anything
    assert min(found["permutation"]["x0"], found["permutation"]["x1"]) > 0.3
    assert abs(found["permutation"]["x2"]) < 0.1
    pairs = interactions(points_of(frame))
    assert pairs["x0", "x1"] > 0.5
    assert max(pairs["x0", "x2"], pairs["x1", "x2"]) < 0.1


def test_noise_is_said_to_be_noise() -> None:
    frame = function(lambda u: 0 * u[:, 0], 3, 32, noise=1.0)
    points = points_of(frame)
    score = predicted(points)
    assert score is not None
    assert score < 0.1
    said = doubts(points, importances(points, bootstraps=0), min(score, -0.1))
    assert any("no better than their mean does" in line for line in said)


def test_estimators_that_disagree_are_said_to() -> None:
    # x0 explains most of the variance, far from the best; x1 decides what is best.
    frame = function(lambda u: 10 * (u[:, 0] > 0.5) + (u[:, 0] <= 0.5) * u[:, 1], 2, 128)
    points = points_of(frame)
    found = importances(points, bootstraps=0)
    said = " ".join(doubts(points, found, 0.9))
    tops = {each.estimator for each in found}
    assert tops == {"fanova", "ped_anova", "permutation"}
    assert "The estimators disagree on what matters most: x0 by fanova, x1 by ped_anova" in said


def test_small_samples_are_said_to_be_small() -> None:
    points = points_of(function(lambda u: u[:, 0], 2, 16))
    said = doubts(points, importances(points, bootstraps=0), 0.5)
    assert said[0].startswith("Small sample: 16 configurations for 2 settings. Below 20")
    few = points_of(function(lambda u: u[:, 0], 2, 4))
    assert importances(few) == []
    assert predicted(few) is None
    assert doubts(few, [], None) == [
        "No importance: 4 configurations with a value, and 8 that differ are needed."
    ]


def test_a_setting_that_is_missing_elsewhere_is_below_all_others() -> None:
    settings = [{"search.x0": 0.1 * place} for place in range(6)] + [{} for _ in range(6)]
    frame = frame_of(settings, [[float(place < 6)] for place in range(12)])
    (factor,) = frame.factors
    assert factor.conditional
    assert encode(factor, None) < encode(factor, 0.0)
    # What it decides is whether it is there.
    assert dict(by(frame)["fanova"])["x0"] > 0.5


def test_partial_dependence_is_the_function_where_it_is_additive() -> None:
    frame = function(lambda u: 4 * u[:, 0] + u[:, 1], 2, 256)
    found = dependence(frame, points_of(frame))[0]
    assert found.factor.short == "x0"
    slope = np.polyfit(found.at, found.mean, 1)[0]
    assert slope == pytest.approx(4, abs=0.3)
    assert found.curves.shape == (60, len(found.at))
    assert dependence(frame_of([{}], [[1.0]]), points_of(frame_of([{}], [[1.0]]))) == []


def test_sobol_indices_are_taken_where_the_design_is_theirs(tmp_path) -> None:
    text = (
        "name: tiny\nspace: {name: nasbench201, channels: 4, cells_per_stage: 1}\n"
        "dataset: digits\nmethod: darts\nsearch:\n  epochs: 3\n"
        "  alpha_lr: {uniform: [0.1, 1.1]}\n  weight_lr: {uniform: [0.1, 1.1]}\n"
        "tune: {design: {name: sobol, indices: true}, num_samples: 128}\n"
    )
    study = make_study(tmp_path / "studies", text)
    for each in factors.configurations(study.experiment):
        search = each.settings["search"]
        # 4 x + y: variances 16 : 1, no interaction.
        worth = (4 * search["alpha_lr"] + search["weight_lr"]) / 10
        row = search_row(each.config_id, 0, [worth], config_id=each.config_id)
        row.settings.update(each.settings)
        study.ledger.write(row, durable=False)
    frame = study_frame(study)
    assert (frame.design, len(frame.design_points[0])) == ("sobol", 128 * 4)
    found = {(e.estimator, e.factor): e for e in sobol_indices(frame, points_of(frame))}
    for name in ("sobol_first", "sobol_total"):
        assert found[name, "alpha_lr"].value == pytest.approx(16 / 17, abs=0.05)
        assert found[name, "weight_lr"].value == pytest.approx(1 / 17, abs=0.05)
    first = found["sobol_first", "alpha_lr"]
    assert first.low is not None
    assert first.high is not None
    assert first.low < 16 / 17 < first.high
    # One point that is missing, and the estimate would be of another design.
    study.ledger.folder.joinpath(f"{frame.table['key'][0]}.json").unlink()
    less = study_frame(study)
    assert sobol_indices(less, points_of(less)) == []
