"""Methods put together from parts: what comes through, what is refused, which epoch is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, UnknownPluginError
from tests.trainables.searches import PLUGINS, differences, small_search
from trainables.compose import build_method, build_selection
from trainables.method import Method, SearchPoint
from trainables.search import SearchTrial

pytestmark = pytest.mark.usefixtures("tiny_plugins")


def method_of(settings: Any, epochs: int = 40) -> Method:
    name, config = plugins.make_config("methods", settings)
    return build_method(name, config, epochs=epochs)


def point(epoch: int = 0, epochs: int = 10) -> SearchPoint:
    return SearchPoint(epoch, epochs, torch.Generator())


def unequal(first: SearchTrial, second: SearchTrial) -> list[str]:
    """What differs besides the names of the parts."""
    return [path for path in differences(first, second) if path != "/identity"]


def same_weights(first: SearchTrial, second: SearchTrial) -> bool:
    """Whether the networks are bit for bit equal."""
    pairs = zip(first._bilevel.weights, second._bilevel.weights, strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def search_of(settings: Any) -> SearchTrial:
    trial = small_search(settings, epochs=2, batch_size=24)
    trial.run()
    return trial


# Parts that come through.


@pytest.mark.parametrize(
    ("part", "rest"),
    [
        ({"name": "sdarts_rs", "radius_start": 0.2}, {}),
        ({"name": "sdarts_adv", "steps": 3}, {}),
        # The schedule and the choice of the epoch are no part of the perturbation.
        ({"name": "ms_darts", "samples": 2}, {"alpha_start": 1, "genotype_of": "best_epoch"}),
    ],
    ids=str,
)
def test_darts_with_a_perturbation_is_the_method_that_lends_it(
    part: dict[str, Any], rest: dict[str, Any]
) -> None:
    composed = search_of({"name": "darts", "perturb": part} | rest)
    assert unequal(search_of(part), composed) == []
    assert not same_weights(search_of("darts"), composed)


@pytest.mark.parametrize("name", ["first_order", "unrolled", "amended"])
def test_every_method_takes_another_alpha_gradient(name: str) -> None:
    gradient = {"name": "darts", "alpha_gradient": name}
    with_noise = search_of({"name": "sdarts_rs", "alpha_gradient": name})
    assert unequal(search_of(gradient | {"perturb": "sdarts_rs"}), with_noise) == []
    assert same_weights(search_of("sdarts_rs"), with_noise) == (name == "first_order")


def test_three_ways_to_the_same_two_parts() -> None:
    perturb, gradient = {"name": "sdarts_adv", "steps": 2}, {"name": "amended", "eta": 2.0}
    first, second, third = (
        search_of({"name": "darts", "perturb": perturb, "alpha_gradient": gradient}),
        search_of(perturb | {"alpha_gradient": gradient}),
        search_of({"name": "amended_darts", "eta": 2.0, "perturb": perturb}),
    )
    assert unequal(first, second) == []
    assert unequal(first, third) == []
    assert {"radius", "perturb_distance", "amended_angle"} <= set(first.curve[0])


def test_a_lent_perturbation_brings_its_log_and_nothing_else() -> None:
    # The authors' schedule and best epoch stay with the method that has them.
    method = method_of({"name": "darts", "perturb": "ms_darts"})
    assert (method.alpha_start, method.genotype_of) == (0.0, "last_epoch")
    own = method_of("ms_darts")
    assert (own.alpha_start, own.genotype_of) == (5 / 40, "best_epoch")
    assert method.log(point(3)) == own.log(point(3))
    assert method.alpha_gradient == method_of("darts").alpha_gradient
    assert method.relax == method_of("darts").relax


def test_the_logs_of_both_methods_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "logging_for_tests.py").write_text(
        '"""Logs a value of its own."""\n'
        "from dataclasses import dataclass\n"
        "from trainables.method import Method\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
        "    value: float = 2.5\n"
        "def build(config):\n"
        '    return Method(log=lambda at: {"own": config.value * at.epoch})\n'
    )
    monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, f"{PLUGINS}{os.pathsep}{tmp_path}")
    method = method_of({"name": "logging_for_tests", "perturb": "sdarts_rs"})
    # The radius of epoch 4 of 10: 0.03 + 0.27 * 0.4.
    assert method.log(point(4)) == pytest.approx({"own": 10.0, "radius": 0.138})


# Parts that are refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "sdarts_rs", "perturb": "sdarts_adv"},
            r"method\.perturb cannot be given: sdarts_rs has its own\. Give both parts to a method "
            "that has neither, such as darts",
        ),
        ({"name": "ms_darts", "perturb": "ms_darts"}, "ms_darts has its own"),
        (
            {"name": "amended_darts", "alpha_gradient": "unrolled"},
            r"method\.alpha_gradient cannot be given: amended_darts has its own",
        ),
        (
            {"name": "darts", "perturb": "amended_darts"},
            r"method\.perturb must be one of ms_darts, sdarts_adv, sdarts_rs, "
            "got 'amended_darts', which has nothing to perturb",
        ),
        ({"name": "darts", "perturb": {"name": "darts"}}, "got 'darts', which has nothing"),
        # A part is a part: it takes none itself, and no schedule.
        (
            {"name": "darts", "perturb": {"name": "sdarts_adv", "alpha_gradient": "amended"}},
            r"method\.perturb\.alpha_gradient cannot be given",
        ),
        (
            {"name": "darts", "perturb": {"name": "sdarts_adv", "perturb": "sdarts_rs"}},
            r"method\.perturb\.perturb cannot be given",
        ),
        (
            {"name": "darts", "perturb": {"name": "ms_darts", "alpha_start": 3}},
            r"method\.perturb\.alpha_start cannot be given here",
        ),
        (
            {"name": "darts", "perturb": {"name": "ms_darts", "genotype_of": "best_epoch"}},
            r"method\.perturb\.genotype_of cannot be given here",
        ),
        (
            {"name": "darts", "alpha_gradient": {"name": "unrolled", "perturb": "sdarts_rs"}},
            r"method\.alpha_gradient\.perturb cannot be given",
        ),
        (
            {"name": "darts", "perturb": {"name": "sdarts_rs", "radius_max": -1.0}},
            r"method\.perturb\.radius_max must be >= 0, got -1\.0",
        ),
        ({"name": "darts", "perturb": ["sdarts_rs"]}, "must be a name or a mapping with a name"),
        ({"name": "darts", "perturb": {"steps": 3}}, r"method\.perturb\.name is missing"),
    ],
    ids=str,
)
def test_a_part_that_cannot_be_is_refused_with_the_reason(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        plugins.make_config("methods", settings)


def test_a_part_that_is_none_is_as_good_as_not_given() -> None:
    parts = dict.fromkeys(("perturb", "alpha_gradient", "alpha_start", "genotype_of", "select"))
    assert method_of({"name": "darts"} | parts) == method_of("darts") == Method()


# When the alphas begin to move.


@pytest.mark.parametrize(
    ("epochs", "start"),
    # 5 of 40, the same share of other lengths, but at least one epoch.
    [(40, 5), (80, 10), (50, 6), (8, 1), (3, 1), (2, 1)],
)
def test_the_published_start_of_the_alphas_is_a_share(epochs: int, start: int) -> None:
    assert method_of("ms_darts", epochs).first_alpha_epoch(epochs) == start
    # Of a method without one, every epoch moves them.
    assert method_of("darts", epochs).first_alpha_epoch(epochs) == 0


@pytest.mark.parametrize("start", [0, 1, 39])
@pytest.mark.parametrize("name", ["ms_darts", "darts"])
def test_a_number_of_epochs_is_taken_as_it_is(name: str, start: int) -> None:
    method = method_of({"name": name, "alpha_start": start}, 40)
    assert method.first_alpha_epoch(40) == start


@pytest.mark.parametrize(
    ("settings", "epochs", "start"),
    [
        ({"name": "darts", "alpha_start": 5}, 5, 5),
        ({"name": "darts", "alpha_start": 7}, 5, 7),
        ("ms_darts", 1, 1),
    ],
)
def test_a_search_of_nothing_is_refused(settings: Any, epochs: int, start: int) -> None:
    message = (
        rf"would search nothing: its alphas rest for the first {start} epochs, and search.epochs "
        rf"is {epochs}\. Set method\.alpha_start below it"
    )
    with pytest.raises(PluginSettingsError, match=message):
        method_of(settings, epochs)
    with pytest.raises(PluginSettingsError, match=message):
        small_search(settings, epochs=epochs)


def test_alphas_rest_while_the_weights_are_trained() -> None:
    trial = small_search({"name": "darts", "alpha_start": 2}, alpha_weight_decay=0.1)
    before = trial.alphas["cell"].detach().clone()
    for epoch in range(3):
        weights = [weight.detach().clone() for weight in trial._bilevel.weights]
        entry = trial.run_epoch()
        # Neither Adam's momentum nor its weight decay moves them.
        assert torch.equal(trial.alphas["cell"], before) == (epoch < 2)
        assert any(
            not torch.equal(a, b) for a, b in zip(weights, trial._bilevel.weights, strict=True)
        )
        assert (entry["alpha_step_time_s"] > 0) == (epoch >= 2)


# Which epoch's genotype is the result.


def graded(accuracies: list[float], method: dict[str, Any], **search: Any) -> SearchTrial:
    """A search whose validation accuracies are those given and whose alphas move far."""
    settings = {"epochs": len(accuracies), "alpha_lr": 1.0, "batch_size": 24} | search
    trial = small_search(method, **settings)

    def evaluate(*_args: Any, **_options: Any) -> torch.Tensor:
        return torch.tensor([1.0, accuracies[trial.epoch]], dtype=torch.float64)

    trial._bilevel.evaluate = evaluate  # type: ignore[method-assign, assignment]
    return trial


BEST = {"name": "darts", "genotype_of": "best_epoch"}


@pytest.mark.parametrize(
    ("accuracies", "start", "chosen"),
    [
        ([0.1, 0.6, 0.5, 0.4], 0, [1, 2, 2, 2]),
        ([0.1, 0.2, 0.3, 0.4], 0, [1, 2, 3, 4]),
        # Ties go to the earlier one.
        ([0.5, 0.5, 0.6, 0.6], 0, [1, 1, 3, 3]),
        # Accuracies from before the alphas moved do not count, however high.
        ([0.9, 0.8, 0.5, 0.7, 0.7], 2, [1, 2, 3, 4, 4]),
        ([0.9, 0.1], 1, [1, 2]),
    ],
)
def test_the_best_epoch_is_that_of_the_highest_validation_accuracy(
    accuracies: list[float], start: int, chosen: list[int]
) -> None:
    trial = graded(accuracies, BEST | {"alpha_start": start})
    for best in chosen:
        trial.run_epoch()
        assert trial.genotype_epoch == best
        assert trial.genotype.to_json() == trial.curve[best - 1]["genotype"]
    genotypes = [entry["genotype_hash"] for entry in trial.curve]
    # Else the genotype of the last epoch would do.
    assert chosen[-1] == len(genotypes) or genotypes[chosen[-1] - 1] != genotypes[-1]


def test_the_last_epoch_is_taken_where_nothing_else_is_said() -> None:
    trial = graded([0.9, 0.1, 0.2], {"name": "darts"})
    trial.run()
    assert trial.genotype_epoch == 3
    assert trial.genotype.to_json() == trial.curve[2]["genotype"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_the_best_epoch_survives_a_resume(tmp_path: Path, stop: int) -> None:
    accuracies = [0.95, 0.7, 0.6, 0.65]
    method = BEST | {"alpha_start": 1}
    straight, stopped, resumed = (graded(accuracies, method) for _ in range(3))
    straight.run()
    for _ in range(stop):
        stopped.run_epoch()
    stopped.save_state(tmp_path / "state.pt")
    resumed.load_state(tmp_path / "state.pt")
    assert resumed.genotype_epoch == stopped.genotype_epoch
    assert resumed.genotype == stopped.genotype
    resumed.run()
    assert differences(straight, resumed) == []
    assert resumed.genotype_epoch == straight.genotype_epoch == 2
    assert resumed.genotype.to_json() == straight.curve[1]["genotype"]


def test_an_epoch_that_diverged_is_not_the_best_one() -> None:
    trial = small_search(
        {"name": "exploding", "epoch": 2, "genotype_of": "best_epoch"}, epochs=4, alpha_lr=1.0
    )
    trial.run()
    assert trial.diverged
    assert len(trial.curve) == 3
    best = max(trial.curve[:2], key=lambda entry: entry["val_accuracy"])
    assert trial.genotype_epoch == best["epoch"]
    assert trial.genotype.to_json() == best["genotype"]


@pytest.mark.parametrize("as_part", [True, False])
def test_the_best_epoch_and_a_choice_at_the_end_exclude_each_other(as_part: bool) -> None:
    settings = BEST | ({"select": "operation_strength"} if as_part else {})
    rule = "magnitude" if as_part else "operation_strength"
    _, config = plugins.make_config("methods", settings)
    message = "best_epoch has no effect with the selection operation_strength"
    with pytest.raises(PluginSettingsError, match=message):
        build_selection(rule, plugins.settings_of("darts", config))
    if as_part:
        with pytest.raises(PluginSettingsError, match=message):
            small_search(settings)


def test_a_rule_of_the_method_goes_before_that_of_the_experiment() -> None:
    assert build_selection("magnitude", {"name": "darts"}).at_end is None
    _, config = plugins.make_config("methods", {"name": "darts", "select": "operation_strength"})
    settings = plugins.settings_of("darts", config)
    assert build_selection("magnitude", settings).at_end is not None
    _, config = plugins.make_config("methods", BEST | {"select": "magnitude"})
    settings = plugins.settings_of("darts", config)
    assert build_selection("operation_strength", settings).at_end is None


def test_a_choice_at_the_end_is_the_last_epochs_although_the_method_prefers_the_best() -> None:
    # The preference is the method's own, not asked for; the published rule of both cannot be.
    trial = graded([0.9, 0.8, 0.1], {"name": "ms_darts", "select": "operation_strength"})
    trial.run_epoch()
    trial.run_epoch()
    assert trial.genotype_epoch == 2
    trial.run()
    assert trial.genotype_epoch == 3
    assert trial.scores


# Settings.


def test_what_is_not_given_is_no_part_of_the_settings() -> None:
    def settings(given: Any) -> dict[str, Any]:
        return plugins.settings_of(*plugins.make_config("methods", given))

    assert settings("darts") == {"name": "darts"}
    assert settings({"name": "darts", "alpha_start": 0}) == {"name": "darts", "alpha_start": 0}
    # A method's own setting stays, also where it is None.
    own = settings("ms_darts")
    assert own["bandwidth_end"] is None
    assert own.keys().isdisjoint({"alpha_gradient", "select", "alpha_start", "genotype_of"})
    # A part is written out whole: its defaults may change.
    part = settings({"name": "darts", "perturb": "sdarts_rs", "genotype_of": "best_epoch"})
    noise = {"name": "sdarts_rs", "radius_start": 0.03, "radius_max": 0.3}
    assert part == {"name": "darts", "perturb": noise, "genotype_of": "best_epoch"}
    for whole in (own, part):
        assert settings(whole) == whole


BAD = [
    ({"name": "sdarts_adv", "radius_start": -0.1}, r"radius_start must be >= 0, got -0\.1"),
    ({"name": "sdarts_adv", "radius_max": float("inf")}, "radius_max must be >= 0, got inf"),
    ({"name": "sdarts_adv", "radius_max": 0.01}, r"radius_max must be >= radius_start \(0\.03\)"),
    ({"name": "sdarts_adv", "steps": 0}, "steps must be >= 1, got 0"),
    ({"name": "sdarts_adv", "steps": 7.0}, r"steps must be int, got 7\.0"),
    ({"name": "ms_darts", "radius_max": -0.1}, r"radius_max must be >= 0, got -0\.1"),
    ({"name": "ms_darts", "radius_start": float("nan")}, "radius_start must be >= 0, got nan"),
    ({"name": "ms_darts", "radius_start": 0.5}, r"radius_max must be >= radius_start \(0\.5\)"),
    ({"name": "ms_darts", "bandwidth": 0.0}, r"bandwidth must be > 0, got 0\.0"),
    ({"name": "ms_darts", "bandwidth": float("inf")}, "bandwidth must be > 0, got inf"),
    ({"name": "ms_darts", "bandwidth_end": 0.0}, r"bandwidth_end must be > 0, got 0\.0"),
    ({"name": "ms_darts", "samples": 0}, "samples must be >= 1, got 0"),
    ({"name": "ms_darts", "shifts": -1}, "shifts must be >= 1, got -1"),
    ({"name": "ms_darts", "temperature": 0.0}, r"temperature must be > 0, got 0\.0"),
    (
        {"name": "ms_darts", "loss_weighting": "none", "temperature": 0.5},
        r"temperature has no effect with loss_weighting none; leave it out, got 0\.5",
    ),
    ({"name": "ms_darts", "loss_weighting": "hihger"}, "loss_weighting .* Did you mean 'higher'"),
    ({"name": "amended_darts", "eta": float("inf")}, "eta must be a finite number >= 0, got inf"),
    ({"name": "amended_darts", "eta": float("nan")}, "eta must be a finite number >= 0, got nan"),
    ({"name": "amended_darts", "eta": -0.1}, r"eta must be a finite number >= 0, got -0\.1"),
    ({"name": "amended_darts", "probe_radius": 0.0}, r"probe_radius must be > 0, got 0\.0"),
    (
        {"name": "amended_darts", "product": "exact", "probe_radius": 0.1},
        "probe_radius has no effect with product exact",
    ),
    ({"name": "darts", "alpha_start": -1}, "alpha_start must be >= 0, got -1"),
    ({"name": "darts", "alpha_start": 0.125}, r"alpha_start must be int, got 0\.125"),
    ({"name": "darts", "genotype_of": "best"}, "genotype_of must be one of last_epoch, best_epoch"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=str)
def test_settings_without_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=rf"^method\.{message}"):
        plugins.make_config("methods", settings)
    part = {"amended_darts": "alpha_gradient", "sdarts_adv": "perturb", "ms_darts": "perturb"}
    slot = part.get(settings["name"])
    if slot is not None:
        name = {"amended_darts": "amended"}.get(settings["name"], settings["name"])
        with pytest.raises(PluginSettingsError, match=rf"method\.{slot}\."):
            plugins.make_config("methods", {"name": "darts", slot: settings | {"name": name}})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "gdas", "perturb": "sdarts_rs"}, "runs one drawn operation on an edge"),
        ({"name": "fair_darts", "perturb": "sdarts_rs"}, "need not sum to one"),
        ({"name": "random", "perturb": "sdarts_rs"}, "runs one drawn operation on an edge"),
        ({"name": "random", "alpha_gradient": "unrolled"}, "are not trained"),
        ({"name": "random", "share_weights": False, "perturb": "sdarts_rs"}, "no training steps"),
        ({"name": "random", "fixed_alphas": True}, "does not train its alphas"),
        ({"name": "random", "genotype_of": "best_epoch"}, "every epoch has the same genotype"),
        ({"name": "darts", "fixed_alphas": True, "alpha_start": 3}, "alpha_start has no effect"),
        ({"name": "beta_darts", "fixed_alphas": True}, "without its penalty"),
        ({"name": "amended_darts", "fixed_alphas": True}, "without its alpha gradient"),
        ({"name": "p_darts", "fixed_alphas": True}, "without its stages"),
    ],
    ids=str,
)
def test_parts_without_effect_are_refused(method: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginSettingsError, match=message):
        method_of(method)


def test_alphas_at_zero_need_a_rule_that_looks_at_the_supernet() -> None:
    settings = {"name": "darts", "fixed_alphas": True}
    with pytest.raises(PluginSettingsError, match="nothing to choose by"):
        small_search(settings)
    trial = small_search(settings | {"select": {"name": "perturbation", "tune_epochs": 0}})
    trial.run()
    assert all((alpha == 0).all() for alpha in trial.alphas.values())
    # What is measured of trained alphas is left out; the supernet was trained all the same.
    assert "top1_margin" not in trial.curve[-1]
    assert trial.curve[-1]["train_loss"] < trial.curve[0]["train_loss"]
    with pytest.raises(PluginSettingsError, match="nothing to choose by"):
        trial.select("magnitude")


def test_magnitude_is_the_methods_own_reading_where_it_has_one() -> None:
    trial = small_search({"name": "fair_darts", "threshold": 0.99}, epochs=1)
    trial.run()
    operations = {edge.operation for edge in trial.genotype.cells[0].edges}
    assert operations == {"none"}
    assert trial.select("magnitude").genotype == trial.genotype


def test_a_plug_in_that_fails_at_import_is_explained_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "methods" / "broken.py"
    file.parent.mkdir()
    config = "@dataclass(frozen=True)\nclass Config:\n    pass\n"
    file.write_text(f"from dataclasses import dataclass\n\n{config}\nvalue = {{}}['missing']\n")
    monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, os.pathsep.join([str(PLUGINS), str(tmp_path)]))
    for _ in range(2):
        with pytest.raises(UnknownPluginError, match=r"cannot be imported: KeyError.*line 7"):
            small_search("broken")


def test_a_plug_in_of_another_folder_takes_the_place_of_its_namesake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "@dataclass(frozen=True)\nclass Config:\n    pass\n"
    for name in ("one", "two"):
        file = tmp_path / name / "methods" / "namesake.py"
        file.parent.mkdir(parents=True)
        file.write_text(f"from dataclasses import dataclass\n\nWHO = {name!r}\n\n{config}")
        monkeypatch.setenv(plugins.ENVIRONMENT_VARIABLE, str(tmp_path / name))
        module = plugins.load("methods", "namesake")
        assert name == module.WHO
        assert plugins.load("methods", "namesake") is module
