"""Limits of parameters and multiply-adds, and the view of accuracy against cost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator import cost_report, costs, factors, planning, runner
from orchestrator.config import check_limits, dump, load_experiment, load_resolved
from orchestrator.cost_report import Point, dominates, view
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment, Limits
from orchestrator.ledger import Row, with_selections
from orchestrator.outbox import Outbox, read_records
from orchestrator.report import write_report
from orchestrator.results import tabulate
from orchestrator.study import Study
from orchestrator.tracking_view import view_of
from orchestrator.units import Unit
from spaces.core import plugins
from spaces.core.cost import network_cost
from spaces.core.text import parse
from tests.orchestrator.fake_study import CELL, YAML, make_study, retrain_row, search_row
from trainables.retrain import RetrainTrial

IDENTITY = planning.Identity({"name": "digits", "digest": "d"}, None, None, {})
SPACE = {"name": "nasbench201", "channels": 4, "cells_per_stage": 1}
# In the network of 4 channels with one cell a stage a 3x3 convolution has 9 times the weights of a
# 1x1 one, and an average pool none.
CHEAP, MIDDLE, DEAR = "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3"
# What `YAML` retrains; the images of digits are grey and have 8 pixels.
SIZE: dict[str, Any] = {
    **{"channels": 4, "cells": 1, "classes": 10, "in_channels": 1, "image_size": 8},
    "stem": "cifar",
}


@pytest.fixture(scope="module", autouse=True)
def threads() -> None:
    torch.set_num_threads(1)


def experiment(tmp_path: Path, limits: str | None = None, text: str = YAML) -> Experiment:
    file = tmp_path / "tiny.yaml"
    file.write_text(text if limits is None else f"{text}\nlimits: {limits}\n")
    return load_experiment(file)


def space(settings: Any = SPACE) -> Any:
    name, config = plugins.make_config("spaces", settings)
    return plugins.load("spaces", name).build(config, name)


def counted(operation: str) -> Any:
    """Return the cost of a genotype in the network that `YAML` retrains."""
    genotype = parse(CELL.format(operation))
    return network_cost(space(), genotype, **SIZE)


def searched(method: str, seed: int, operation: str, accuracy: float) -> Row:
    """Return a finished search whose cost has not been counted."""
    row = search_row(method, seed, [accuracy], operation=operation)
    config = plugins.make_config("methods", method)[1]
    filled = plugins.settings_of(method, config)
    row.settings.update({"space": SPACE, "search": {}, "method": filled})
    return row


def study_of(tmp_path: Path, rows: list[Row], limits: str | None = None) -> Study:
    made = make_study(tmp_path / "studies", YAML + (f"limits: {limits}\n" if limits else ""))
    for row in rows:
        made.ledger.write(row)
    return made


ROWS = [
    searched("darts", 0, DEAR, 0.95),
    searched("darts", 1, MIDDLE, 0.90),
    searched("darts", 2, CHEAP, 0.80),
]


# -- the section ---------------------------------------------------------------------------------


def test_mobile_is_600_million_multiply_adds(tmp_path: Path) -> None:
    assert experiment(tmp_path, "mobile").limits == Limits(max_macs=600_000_000)
    assert experiment(tmp_path).limits is experiment(tmp_path, "none").limits is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("mobil", "limits has no preset 'mobil'. Did you mean 'mobile'?"),
        ("huge", "limits has no preset 'huge'. There is mobile."),
        ("4", "limits must be a mapping of max_params and max_macs, or the preset mobile, got 4."),
        ("{}", "limits has no effect: give max_params, max_macs or both"),
        ("{max_params: null}", "limits has no effect"),
        ("{max_params: 0}", "limits.max_params must be > 0, got 0.0."),
        ("{max_macs: 600e6}", "limits.max_macs must be float, got '600e6'"),
        ("{max_macs: {grid: [1, 2]}}", "limits.max_macs cannot be swept"),
        ("{max_flops: 5}", "limits.max_flops is not a setting"),
    ],
)
def test_wrong_limits_are_refused(tmp_path: Path, limits: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment(tmp_path, limits)


def test_a_limit_at_the_top_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'limits\.max_macs'"):
        experiment(tmp_path, text=YAML + "max_macs: 5\n")


def test_what_the_study_keeps_means_the_same(tmp_path: Path) -> None:
    limited = experiment(tmp_path, "{max_params: 4_000_000}")
    dump(limited, tmp_path / "resolved.yaml")
    assert load_resolved(tmp_path / "resolved.yaml") == limited


def test_limits_enter_no_key(tmp_path: Path) -> None:
    free = experiment(tmp_path)
    limited = experiment(tmp_path, "{max_params: 1_000_000}")
    keys = [
        [planning.search_key(c, IDENTITY, 0) for c in factors.configurations(each)]
        for each in (free, limited)
    ]
    assert keys[0] == keys[1]
    rows = [replace(row, evaluation={"params": 5, "macs": 5}) for row in ROWS]
    units = [planning.retrain_units(each, rows, IDENTITY) for each in (free, limited)]
    assert [unit.rows for unit in units[0]] == [unit.rows for unit in units[1]]


# -- counting ------------------------------------------------------------------------------------


def test_rows_know_the_network_that_is_retrained(tmp_path: Path) -> None:
    study = study_of(tmp_path, ROWS)
    assert {row.key for row in costs.fill(study)} == {row.key for row in ROWS}
    for row, operation in zip(study.rows("search"), (DEAR, MIDDLE, CHEAP), strict=True):
        expected = counted(operation)
        assert row.evaluation is not None
        assert row.evaluation["params"] == expected.params
        assert row.evaluation["macs"] == expected.macs
    # A retraining says the same of itself.
    trial = RetrainTrial(
        genotype=parse(CELL.format(DEAR)),
        space=SPACE,
        dataset="digits",
        retrain=study.experiment.retrain.given(),  # type: ignore[union-attr]
    )
    assert trial.cost() == {"params": counted(DEAR).params, "macs": counted(DEAR).macs}
    assert costs.fill(study) == []


def test_without_retraining_it_is_the_published_network(tmp_path: Path) -> None:
    text = YAML.replace("retrain: {", "retrain: null #")
    study = make_study(tmp_path / "studies", text)
    study.ledger.write(ROWS[0])
    (row,) = costs.fill(study)
    published = network_cost(space(), parse(CELL.format(DEAR)))  # 16 channels, 5 cells a stage
    assert row.evaluation == {
        "params": published.params,
        "macs": published.macs,
        **{"channels": 16, "cells": 5, "classes": 10, "in_channels": 3, "image_size": 32},
        "stem": "cifar",
    }


def test_another_network_is_counted_anew(tmp_path: Path) -> None:
    study = study_of(tmp_path, ROWS[:1])
    costs.fill(study)
    wider = study.experiment_file.read_text().replace(
        "channels: 4\n  cells:", "channels: 8\n  cells:"
    )
    assert wider != study.experiment_file.read_text()
    study.experiment_file.write_text(wider)
    (row,) = costs.fill(Study.open(study.path))
    assert row.evaluation is not None
    assert row.evaluation["channels"] == 8
    assert row.evaluation["params"] > counted(DEAR).params


def test_genotypes_of_rules_are_counted_too(tmp_path: Path) -> None:
    chosen = parse(CELL.format(CHEAP))
    result = {"label": "rule", "genotype": chosen.to_json(), "genotype_hash": chosen.hash}
    study = study_of(tmp_path, [replace(ROWS[0], selections={"rule": result})])
    costs.fill(study)
    own, other = with_selections(study.rows("search"))
    assert own.evaluation is not None
    assert other.evaluation is not None
    assert own.evaluation["params"] == counted(DEAR).params
    assert other.evaluation["params"] == counted(CHEAP).params


def test_a_genotype_without_such_a_network_is_no_end_of_the_study(tmp_path: Path) -> None:
    other = {
        "space": "nasbench201",
        "cells": [{"name": "x", "edges": [[0, 1, "y"]], "concat": [1]}],
    }
    study = study_of(tmp_path, [replace(ROWS[0], genotype=other), ROWS[1]])
    costs.fill(study)
    assert [row.evaluation is None for row in study.rows("search")] == [True, False]


def test_mlflow_gets_the_cost_of_a_search(tmp_path: Path) -> None:
    study = study_of(tmp_path, ROWS[:1])
    (row,) = costs.fill(study)
    totals = {point.metric: point.value for point in view_of(row, "id", "parent").totals}
    assert totals["cost/params"] == counted(DEAR).params
    assert totals["cost/macs"] == counted(DEAR).macs
    retrained = view_of(retrain_row(DEAR, 0, 0.9), "id", "parent").totals
    assert {"cost/params", "cost/macs"} <= {point.metric for point in retrained}


# -- the filter ----------------------------------------------------------------------------------


def promoted(tmp_path: Path, rows: list[Row], limits: str | None, more: str = "") -> list[str]:
    """Return the operations of the genotypes that are retrained, in order."""
    names = {parse(CELL.format(name)).hash: name for name in (CHEAP, MIDDLE, DEAR)}
    text = YAML.replace("retrain: {", f"retrain: {{{more}")
    units = planning.retrain_units(experiment(tmp_path, limits, text), rows, IDENTITY)
    return [names[unit.extra["genotype_hash"]] for unit in units]


def costed(*values: int) -> list[Row]:
    """Return the three searches with these parameters; multiply-adds are ten times as many."""
    pairs = zip(ROWS, values, strict=True)
    return [replace(row, evaluation={"params": n, "macs": 10 * n, **SIZE}) for row, n in pairs]


def test_the_next_best_that_fits_takes_the_place(tmp_path: Path) -> None:
    rows = costed(30, 20, 10)
    assert promoted(tmp_path, rows, None) == [DEAR]
    assert promoted(tmp_path, rows, "{max_params: 30}") == [DEAR]  # as much as is allowed
    assert promoted(tmp_path, rows, "{max_params: 29}") == [MIDDLE]
    assert promoted(tmp_path, rows, "{max_macs: 199}") == [CHEAP]
    assert promoted(tmp_path, rows, "{max_params: 29, max_macs: 100}") == [CHEAP]
    assert promoted(tmp_path, rows, "{max_params: 29}", "top_k: 2, ") == [MIDDLE, CHEAP]
    assert promoted(tmp_path, rows, "{max_params: 9}") == []


def test_what_has_not_been_counted_is_not_promoted(tmp_path: Path) -> None:
    first, *others = costed(30, 20, 10)
    rows = [replace(first, evaluation=None), *others]
    assert promoted(tmp_path, rows, "{max_params: 99}") == [MIDDLE]
    assert promoted(tmp_path, rows, None) == [DEAR]


def test_the_driver_counts_then_filters_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, ROWS, f"{{max_params: {counted(MIDDLE).params}}}")
    said: list[str] = []
    ran: list[Unit] = []
    monkeypatch.setattr(runner._Driver, "_run_list", lambda *given: ran.extend(given[2]) or [])
    driver = runner._Driver(study, SimpleNamespace(message=said.append), "nas run")  # type: ignore[arg-type]
    driver.identity = IDENTITY
    with Outbox(study.outbox) as driver.outbox:
        driver._retrain()
    assert [unit.extra["genotype_hash"] for unit in ran] == [parse(CELL.format(MIDDLE)).hash]
    assert said == [
        "over the limits, and so not retrained: 1 of the genotypes found; the report lists them"
    ]
    # MLflow is told of the rows that now have a cost.
    told = {
        record["key"] for record in read_records(study.outbox, 0, 10**6)[0] if record["k"] == "row"
    }
    assert told == {row.key for row in ROWS}


def test_the_table_shows_the_genotype_that_can_be_retrained() -> None:
    rows = costed(30_000_000, 20_000_000, 10_000_000)
    (free,) = tabulate(rows)
    (line,) = tabulate(rows, limits=Limits(max_params=25e6))
    (none,) = tabulate(rows, limits=Limits(max_params=5e6))
    assert (free.params, line.params, none.params) == (30_000_000, 20_000_000, 30_000_000)
    assert line.accuracy == free.accuracy
    assert (free.over, line.over, none.over) == ((), (), ("max_params",))
    assert none.cells()[5:7] == ("30.000 M (over the limit)", "300.0 M")
    assert line.cells()[5:7] == ("20.000 M", "200.0 M")


@pytest.mark.parametrize(
    "settings",
    [
        SPACE,
        {"name": "darts", "channels": 4, "cells": 4},
        {"name": "darts_per_cell", "channels": 4, "cells": 4},
        {"name": "s1", "channels": 4, "cells": 4},
        {"name": "s2", "channels": 4, "cells": 4},
        {"name": "s3", "channels": 4, "cells": 4},
        {"name": "s4", "channels": 4, "cells": 4},
    ],
)
def test_no_genotype_is_cheaper_than_the_cheapest(settings: dict[str, Any]) -> None:
    built = space(settings)
    sizes: dict[str, Any] = {"channels": 4, "cells": None, "image_size": 8}
    sizes["cells"] = 4 if settings["name"] != "nasbench201" else 1
    found = costs.cheapest(built)
    assert found is not None
    least = network_cost(built, found, **sizes)
    draws = torch.Generator().manual_seed(0)
    for _ in range(6):
        shapes = built.alpha_shapes().items()
        drawn = {name: torch.rand(shape, generator=draws) for name, shape in shapes}
        cost = network_cost(built, built.discretize(drawn), **sizes)
        assert cost.params >= least.params
        assert cost.macs >= least.macs


def test_the_cheapest_cell_of_s2_leaves_the_inputs_of_reductions_alone() -> None:
    # There are skips and separable convolutions alone. Into node 2 both edges come from inputs, and
    # a skip of stride 2 has weights; into nodes 3, 4 and 5 one and two edges need not.
    cell = costs.cheapest(space({"name": "s2"})).cell("reduction")  # type: ignore[union-attr]
    assert {edge.operation for edge in cell.edges} == {"skip_connect"}
    assert sorted((e.target, e.source >= 2) for e in cell.edges) == [
        (2, False), (2, False), (3, False), (3, True), (4, True), (4, True), (5, True), (5, True),
    ]  # fmt: skip


def test_a_limit_below_the_smallest_network_is_refused(tmp_path: Path) -> None:
    text = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    least = network_cost(space(), parse(text), **SIZE)
    check_limits(experiment(tmp_path, f"{{max_params: {least.params}}}"))
    with pytest.raises(ConfigError, match=f"max_params must be >= {least.params:,}, got") as caught:
        check_limits(experiment(tmp_path, f"{{max_params: {least.params - 1}}}"))
    assert "4 channels, 1 cell, 10 classes and images of 8 pixels" in str(caught.value)
    with pytest.raises(ConfigError, match="max_macs must be >="):
        check_limits(experiment(tmp_path, "{max_macs: 1}"))


def test_a_given_genotype_over_the_limit_is_refused(tmp_path: Path) -> None:
    cost = counted(DEAR)
    genotype = parse(CELL.format(DEAR))
    costs.check_genotype(experiment(tmp_path, f"{{max_macs: {cost.macs}}}"), genotype)
    with pytest.raises(ConfigError, match=f"this genotype has {cost.macs:,} in the network of 4"):
        costs.check_genotype(experiment(tmp_path, f"{{max_macs: {cost.macs - 1}}}"), genotype)


# -- the report ----------------------------------------------------------------------------------


def retrained(operation: str, test: float, params: int, macs: int, seed: int = 0) -> Row:
    row = retrain_row(operation, seed, test)
    row.curve[-1].update({"params": params, "macs": macs})
    return row


def test_the_front_has_what_nothing_beats() -> None:
    rows = [
        retrained(CHEAP, 0.90, 100, 900),
        retrained(MIDDLE, 0.80, 200, 500),  # less accurate and larger than CHEAP; fewest macs
        retrained(DEAR, 0.95, 300, 900),
    ]
    shown = view(rows, None)
    assert shown.accuracy == "test"
    names = {parse(CELL.format(name)).hash: name for name in (CHEAP, MIDDLE, DEAR)}
    fronts = {names[point.genotype_hash]: point.fronts for point in shown.points}
    # At 900 multiply-adds DEAR is more accurate than CHEAP.
    assert fronts == {CHEAP: ("params",), MIDDLE: ("macs",), DEAR: ("params", "macs")}
    assert [point.params for point in shown.front("params")] == [100, 300]


def test_equal_points_are_all_on_the_front() -> None:
    rows = [retrained(name, 0.9, 100, 900) for name in (CHEAP, MIDDLE)]
    shown = view(rows, None)
    assert [point.fronts for point in shown.points] == [("params", "macs")] * 2
    assert not dominates(*shown.points, "params")


def test_an_accuracy_is_the_mean_over_retrainings() -> None:
    rows = [retrained(DEAR, test, 100, 900, seed) for seed, test in enumerate((0.8, 0.9))]
    (point,) = view(rows, None).points
    assert (point.mean, point.seeds) == (pytest.approx(0.85), (0, 1))


def test_without_retrainings_the_supernets_stand_in() -> None:
    shown = view(costed(30, 20, 10), Limits(max_params=20))
    assert shown.accuracy == "val"
    assert [(point.params, point.over) for point in shown.points] == [
        (30, ("max_params",)), (20, ()), (10, ()),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 12])
def test_any_number_of_points_can_be_drawn(count: int, tmp_path: Path) -> None:
    from orchestrator import pareto_plot
    from orchestrator.statistics import summarize

    points = [
        Point(f"m{i}", str(i), (0,), summarize([0.9]), 5, 7, ("max_macs",), ("params", "macs"))
        for i in range(count)
    ]
    shown = cost_report.CostView("test", tuple(points), limits=Limits(max_macs=6))
    pareto_plot.scatter(shown, tmp_path / "pareto.png", ylabel="accuracy, %")
    assert (tmp_path / "pareto.png").stat().st_size > 5000


def test_the_report_lists_what_is_over_and_draws_the_fronts(tmp_path: Path) -> None:
    limit = counted(MIDDLE).params
    study = study_of(tmp_path, ROWS, f"{{max_params: {limit}}}")
    costs.fill(study)
    study.ledger.write(retrained(MIDDLE, 0.97, counted(MIDDLE).params, counted(MIDDLE).macs))
    report = write_report(study)
    text, table = report.markdown.read_text(), json.loads(report.table.read_text())
    assert "## Limits" in text
    assert f"At most {limit:,} parameters in the network of 4 channels, 1 cell" in text
    over = table["costs"]["over_the_limits"]
    dear = parse(CELL.format(DEAR)).hash
    assert [(row["genotype_hash"], row["over"]) for row in over] == [(dear, ["max_params"])]
    assert f"| darts | 0 | {dear} |" in text
    (point,) = table["costs"]["points"]
    assert point["fronts"] == ["params", "macs"]
    assert point["accuracy"]["mean"] == 0.97
    assert (study.report / "pareto.png").is_file()
    assert "params and macs |" in text
    # The line is that of the genotype that was retrained.
    assert table["rows"][0]["genotype_hash"] == parse(CELL.format(MIDDLE)).hash
    assert "Accuracy and cost" in report.html.read_text()


def test_a_report_without_limits_does_not_speak_of_them(tmp_path: Path) -> None:
    study = study_of(tmp_path, ROWS)
    text = write_report(study).markdown.read_text()
    assert "## Limits" not in text
    assert "Accuracy and cost" not in text  # nothing has been counted


def test_how_genotypes_are_trained_is_found_out_once_for_thousands_of_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = make_study(tmp_path / "studies")
    asked = []

    def noted(*arguments: Any) -> Any:
        asked.append(arguments)
        return planning.retrain_settings(*arguments)

    monkeypatch.setattr(costs, "retrain_settings", noted)
    counts = costs.Costs(study.experiment)
    genotype = parse(CELL.format("nor_conv_3x3"))
    space = {"name": "nasbench201", "channels": 4, "cells_per_stage": 1}
    for _ in range(3):
        first = counts.size(genotype, space, {"epochs": 3})
        other = counts.size(genotype, space | {"channels": 8}, {"epochs": 3})
    assert len(asked) == 2
    assert first["cells"] == other["cells"] == 1
