"""Methods made of parts, as experiments, labels, groups and keys see them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import factors, planning
from orchestrator.checks import check_methods
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment
from orchestrator.labels import plugin_labels
from orchestrator.tracking_view import flat_params
from spaces.core import plugins
from tests.orchestrator.fake_driver import make_row

YAML = """
name: study
space: nasbench201
dataset: digits
method: darts
search: {epochs: 50}
tune: {num_samples: 1}
"""


def load(tmp_path: Path, method: str, *overrides: str) -> Experiment:
    file = tmp_path / "study.yaml"
    drawn = any(word in method for word in ("choice", "uniform", "randint"))
    file.write_text(YAML if drawn else YAML.rpartition("tune")[0])
    return load_experiment(file, [f"method={method}", *overrides])


def full(settings: dict[str, Any]) -> dict[str, Any]:
    return plugins.settings_of(*plugins.make_config("methods", settings))


def labels_of(experiment: Experiment) -> list[str]:
    return list(factors.label(factors.configurations(experiment)).values())


def test_parts_are_always_said_and_compared_with_their_own_kind() -> None:
    rs = {"name": "darts", "perturb": "sdarts_rs"}
    ms = {"name": "darts", "perturb": "ms_darts"}
    assert plugin_labels("methods", [full(rs)]) == ["darts perturb=sdarts_rs"]
    # radius_start is 0.03 by default in one and None in the other: neither differs from its own.
    assert plugin_labels("methods", [full(rs), full(ms)]) == [
        "darts perturb=sdarts_rs",
        "darts perturb=ms_darts",
    ]
    wide = {"name": "darts", "perturb": {"name": "ms_darts", "radius_max": 0.5}}
    assert plugin_labels("methods", [full(rs), full(ms), full(wide)]) == [
        "darts perturb=sdarts_rs",
        "darts perturb=ms_darts perturb.radius_max=0.25",
        "darts perturb=ms_darts perturb.radius_max=0.5",
    ]


def test_swept_settings_of_a_part_are_dimensions_of_their_own(tmp_path: Path) -> None:
    experiment = load(
        tmp_path,
        "{name: darts, perturb: {name: sdarts_adv, radius_max: {uniform: [0.1, 0.2]},"
        " steps: {grid: [3, 7]}}}",
    )
    blocks = factors.blocks(experiment)
    assert [block.tree["method"]["perturb"]["steps"] for block in blocks] == [3, 7]
    (dimension,) = blocks[0].dimensions
    assert (dimension.name, dimension.path) == ("method.perturb.radius_max",) * 2
    found = factors.sample(blocks[0], np.random.default_rng(0))
    drawn = found.settings["method"]["perturb"]["radius_max"]
    assert 0.1 <= drawn <= 0.2
    assert found.params == {"method.perturb.radius_max": drawn}
    assert factors.configuration(blocks[0], found.params) == found
    override = load(tmp_path, "{name: darts, perturb: sdarts_rs}", "method.perturb.radius_max=0.2")
    assert override.method["perturb"]["radius_max"] == 0.2


def test_a_grid_of_parts_is_a_choice_of_methods(tmp_path: Path) -> None:
    experiment = load(tmp_path, "{name: darts, perturb: {grid: [sdarts_rs, sdarts_adv]}}")
    assert labels_of(experiment) == ["darts perturb=sdarts_rs", "darts perturb=sdarts_adv"]
    groups = [
        planning.method_group(experiment, configuration.settings["method"])
        for configuration in factors.configurations(experiment)
    ]
    assert groups == labels_of(experiment)
    # What is swept inside a part opens no group; plain darts is not darts with a part.
    swept = "{name: darts, perturb: {name: sdarts_rs, radius_max: {grid: [0.1, 0.2]}}}"
    experiment = load(tmp_path, f"{{grid: [darts, {swept}]}}")
    assert [
        planning.method_group(experiment, configuration.settings["method"])
        for configuration in factors.configurations(experiment)
    ] == ["darts", *["darts perturb=sdarts_rs"] * 2]


def test_genotypes_of_several_spaces_are_not_compared(tmp_path: Path) -> None:
    experiment = load(tmp_path, "{grid: [darts, sdarts_rs]}", "space={grid: [nasbench201, darts]}")
    settings = [configuration.settings for configuration in factors.configurations(experiment)]
    assert {planning.retrain_group(experiment, each) for each in settings} == {
        "darts space=nasbench201",
        "darts space=darts",
        "sdarts_rs space=nasbench201",
        "sdarts_rs space=darts",
    }
    # Sizes of one space are of one group, and so is the only space.
    sizes = "space={name: darts, channels: {grid: [4, 8]}}"
    experiment = load(tmp_path, "darts", sizes)
    settings = [configuration.settings for configuration in factors.configurations(experiment)]
    assert {planning.retrain_group(experiment, each) for each in settings} == {"darts"}


def test_a_part_that_is_null_is_the_method_without_it(tmp_path: Path) -> None:
    plain = load(tmp_path, "darts")
    for settings in ("alpha_start: null", "genotype_of: null", "perturb: null", "select: null"):
        assert load(tmp_path, f"{{name: darts, {settings}}}") == plain


def test_versions_of_parts_and_selections_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = planning.Identity({"name": "digits", "digest": "0"}, None, None, {})
    rule = {"name": "darts", "select": "operation_strength"}
    experiments = [
        load(tmp_path, "darts", "selection=operation_strength"),
        load(tmp_path, f"{{name: darts, select: {rule['select']}}}"),
        load(tmp_path, "{name: darts, alpha_gradient: unrolled}"),
    ]
    chosen = [factors.configurations(experiment)[0] for experiment in experiments]
    before = [planning.search_key(configuration, identity, 0) for configuration in chosen]
    assert len(set(before)) == 3
    describe = plugins.describe

    def raised(kind: str, name: str) -> plugins.PluginInfo:
        from dataclasses import replace

        info = describe(kind, name)
        raised = name in ("operation_strength", "unrolled")
        return replace(info, results_version=info.results_version + 1) if raised else info

    monkeypatch.setattr(plugins, "describe", raised)
    after = [planning.search_key(configuration, identity, 0) for configuration in chosen]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_setting_that_came_later_is_named_where_it_is_not_at_its_default() -> None:
    rules: list[Any] = ["eigenvalue", {"name": "eigenvalue", "then": "regularize"}]
    parts = [full({"name": "darts", "early_stop": rule}) for rule in rules]
    assert plugin_labels("methods", parts) == [
        "darts early_stop=eigenvalue",
        "darts early_stop=eigenvalue early_stop.then=regularize",
    ]
    assert plugin_labels("methods", [full({"name": "darts"}), *parts]) == [
        "darts",
        "darts early_stop=eigenvalue",
        "darts early_stop=eigenvalue early_stop.then=regularize",
    ]


def test_a_setting_that_came_later_changes_no_key_at_its_default(tmp_path: Path) -> None:
    def key(rule: str) -> str:
        experiment = load(tmp_path, f"{{name: darts, early_stop: {rule}}}")
        identity = planning.Identity({"name": "digits", "digest": "x"}, None, None, {})
        (chosen,) = factors.configurations(experiment)
        return planning.search_key(chosen, identity, 0)

    plain = key("eigenvalue")
    # As it was before the rule could do anything but end a search.
    assert plain == "dd7810472fcbee07"
    assert key("{name: eigenvalue, then: end}") == plain
    assert key("{name: eigenvalue, weight_decay_factor: null}") == plain
    assert key("{name: eigenvalue, then: regularize}") != plain


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("{name: darts, alpha_start: {choice: [3, 60]}}", [], "would search nothing"),
        ("{name: darts, alpha_start: 3}", ["search.epochs={grid: [3, 9]}"], "would search nothing"),
        (
            "{name: darts, genotype_of: {choice: [last_epoch, best_epoch]}}",
            ["selection=operation_strength"],
            "genotype_of best_epoch has no effect",
        ),
        (
            "{name: darts, select: operation_strength}",
            ["selection={name: operation_strength, variant: signed}"],
            "selection has no effect where method.select is given",
        ),
        # What a method needs of the space: channels, depth; one depth for a consistent retraining.
        ("pc_darts", ["space={name: nasbench201, channels: 6}"], "channels"),
        ("pc_darts", ["space={name: nasbench201, channels: {grid: [8, 6]}}"], "channels"),
        ("p_darts", ["space={name: darts_per_cell, channels: 4, cells: 3}"], "darts_per_cell"),
        (
            "p_darts",
            ["space={name: darts, channels: 4, cells: 5}", "retrain={consistent: true}"],
            "retrain.consistent cannot be combined with p_darts",
        ),
        (
            "darts",
            ["space={grid: [darts, nasbench201]}", "retrain.stem=imagenet"],
            "retrain.stem cannot be imagenet in space nasbench201",
        ),
        # A space without edges.
        (
            "{name: darts, select: {name: operation_strength, progressive: edge_wise}}",
            ["space={grid: [nasbench201, nasbench1shot1_2]}"],
            "'nasbench1shot1_2' .* decides edge by edge",
        ),
        (
            "sdarts_rs",
            [
                "space=nasbench1shot1_2",
                "selection={name: operation_strength, progressive: edge_wise}",
            ],
            "decides edge by edge",
        ),
        (
            "{grid: [darts, pc_darts]}",
            ["space={name: nasbench1shot1_3, channels: 6}"],
            "partial_channels must divide the channels",
        ),
        ("{name: darts, early_stop: eigenvalue}", ["search.epochs=8"], "could never end"),
        ("{name: darts, fixed_alphas: true}", [], "nothing to choose by"),
        # A size that no network of a retraining can have.
        (
            "darts",
            [
                "space={name: darts_per_cell, channels: 4, cells: 4}",
                "retrain={protocol: darts_cifar}",
            ],
            "retrain: A network of 'darts_per_cell' .* cells cannot be 20",
        ),
        (
            "darts",
            ["space=nasbench1shot1_1", "retrain={channels: 8, cells: 1, auxiliary_weight: 0}"],
            "retrain: cells must be >= 3",
        ),
        (
            "darts",
            ["space=s4", "retrain={stem: imagenet, channels: 8, cells: 1}"],
            "retrain: cells must be >= 2 with the stem of ImageNet, got 1",
        ),
        ("darts", ["space=s1", "retrain={channels: 1}"], "retrain: channels must be >= 2"),
        # A search that goes back: with more weight decay than it may have, or among rungs.
        (
            "{name: darts, early_stop: {name: eigenvalue, then: regularize}}",
            ["search.epochs=50", "search.weight_decay={grid: [3.0e-4, 0.01]}"],
            "could never take this search back: search.weight_decay is 0.01",
        ),
        (
            "{grid: [darts, {name: darts, early_stop: {name: eigenvalue, then: regularize}}]}",
            ["search.epochs=50", "tune.scheduler={name: asha, grace_epochs: 5}"],
            "tune.scheduler cannot compare searches that go back",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, method: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_methods(load(tmp_path, method, *overrides))


@pytest.mark.parametrize(
    "method",
    [
        "{name: sdarts_rs, radius_start: 0.5, radius_max: {uniform: [0.6, 0.8]}}",
        "{choice: [{name: ms_darts, alpha_start: {choice: [0, 49]}}, darts]}",
        "{name: darts, perturb: {name: ms_darts, samples: {randint: [1, 5]}}}",
    ],
)
def test_drawn_values_that_go_together_are_taken(tmp_path: Path, method: str) -> None:
    check_methods(load(tmp_path, method))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{name: darts, perturb: {uniform: [1, 2]}}", "method.perturb must use grid here"),
        ("{name: darts, perturb: {choice: [sdarts_rs]}}", "method.perturb must use grid here"),
        (
            "{name: darts, perturb: {grid: [{choice: [sdarts_rs]}, ms_darts]}}",
            r"method.perturb.grid\[0\] must be one fixed plug-in here, got choice",
        ),
        (
            "{name: darts, perturb: {grid: [{grid: [sdarts_rs]}, ms_darts]}}",
            r"method.perturb.grid\[0\] must be one fixed plug-in here, got grid",
        ),
        ("{name: darts, perturb: {grid: [darts, ms_darts]}}", "got 'darts', which has nothing to"),
        ("{name: darts, perturb: {name: sdarts_rs, radius: 1}}", "perturb.radius is not a setting"),
        ("{name: darts, perturb: sdarts_r}", "Did you mean 'sdarts_rs'"),
        ("{name: sdarts_rs, perturb: ms_darts}", "method.perturb cannot be given: sdarts_rs has"),
    ],
)
def test_wrong_parts_are_explained(tmp_path: Path, method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, method)


def test_mlflow_has_the_rule_that_counts() -> None:
    row = make_row()
    assert flat_params(row)["selection"] == "magnitude"
    row.settings["method"]["select"] = {"name": "operation_strength", "variant": "signed"}
    params = flat_params(row)
    assert params["select"] == "operation_strength"
    assert params["select.variant"] == "signed"
    assert "selection" not in params


def test_amended_darts_and_the_amended_part_have_the_same_settings() -> None:
    method = plugins.describe("methods", "amended_darts").own
    part = plugins.describe("alpha_gradients", "amended").own
    assert [(f.name, f.type, f.default) for f in fields(method)] == [
        (f.name, f.type, f.default) for f in fields(part)
    ]
