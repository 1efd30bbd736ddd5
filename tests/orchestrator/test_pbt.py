"""Populations of retrainings: files, rows, what a kill at any moment leaves, reports and runs."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ray.tune.search import Searcher

from orchestrator import cleaning, ledger, memory, planning, population_file, population_run
from orchestrator.commands_study import study_state
from orchestrator.config import check_data, check_methods, dump, load_experiment, load_resolved
from orchestrator.errors import ConfigError
from orchestrator.estimate import estimate
from orchestrator.experiment import Experiment
from orchestrator.outbox import Outbox
from orchestrator.population import lineage
from orchestrator.population_file import FOLDER, read_snapshot, state_name
from orchestrator.population_trial import PopulationRetrain
from orchestrator.population_units import Plan, Population, plans
from orchestrator.progress import Progress
from orchestrator.report import write_report
from orchestrator.schema import json_schema
from orchestrator.study import Study
from orchestrator.tracking_view import view_of
from tests.orchestrator import drive
from tests.orchestrator.fake_study import CELL
from tests.trainables.test_retrain import small_digits
from trainables import retrain, state
from trainables.datasets import digits
from trainables.search import TIME_FIELDS
from trainables.settings import CHANGEABLE
from trainables.state import load_state

YAML = f"""
name: many
trainable: retrain
space: nasbench201
genotype: "{CELL.format("nor_conv_3x3")}"
dataset: digits
seeds: [0]
retrain:
  epochs: 5
  batch_size: 32
  channels: 2
  cells: 1
  val_share: 0.2
  auxiliary_weight: 0.0
  drop_path: 0.0
  cutout: {{choice: [0, 2, 4]}}
  lr: {{loguniform: [0.001, 1.0]}}
tune: {{scheduler: {{name: pbt, population: 4, every: 2}}}}
"""
IDENTITY = planning.Identity({"name": "digits", "digest": "d"}, None, None, {"cpu": 1, "gpu": 0})
IGNORED = {*TIME_FIELDS, "ended"}
# Of the six pairs with a cutout four are drawn, so that one to three of them diverge. Their copies
# take over the rate of 0.05.
DIVERGING = (
    "retrain.lr={choice: [0.05, 1.0e+30]}",
    "tune.scheduler={name: pbt, population: 4, every: 2, mutations: [cutout]}",
    "retrain.epochs=3",
)


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the code under test may catch it."""


class Told:
    """A reporter that remembers its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def update(self, progress: Progress) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Remember a line."""
        self.messages.append(text)

    def close(self) -> None:
        """Do nothing."""


def use_fewer(patch: pytest.MonkeyPatch) -> None:
    original = digits.load
    patch.setattr(digits, "load", lambda config, split: small_digits(original(config, split), 150))


@pytest.fixture
def fewer_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use 150 digits of each split."""
    use_fewer(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a study that nothing interrupted, with a member that diverges."""
    study = make_study(tmp_path_factory.mktemp("whole"), *DIVERGING)
    with pytest.MonkeyPatch.context() as patch:
        use_fewer(patch)
        train(study)
    return results(study)


def load(tmp_path: Path, *overrides: str, text: str = YAML) -> Experiment:
    file = tmp_path / "many.yaml"
    file.write_text(text)
    return load_experiment(file, list(overrides))


def scheduler(**changes: Any) -> str:
    return "tune.scheduler=" + json.dumps({"name": "pbt", "population": 4, "every": 2, **changes})


def make_study(tmp_path: Path, *overrides: str) -> Study:
    return Study.create(tmp_path / "studies", load(tmp_path, *overrides), "nas run many.yaml")


def block_of(config: dict[str, Any]) -> PopulationRetrain:
    # Without Ray's constructor, which makes loggers and folders for a process of its own.
    block = object.__new__(PopulationRetrain)
    block.setup(config)
    return block


def train(study: Study, failing: Callable[[dict[str, Any]], bool] = lambda _: False) -> Told:
    """Run the populations of a study in this process, one member after the other."""
    told = Told()
    found = plans(study.experiment, IDENTITY)
    populations = [Population(study, plan) for plan in found]
    units = [unit for plan in found for unit in plan.units()]
    with Outbox(study.outbox) as outbox:
        monitor = population_run.PopulationMonitor(
            study, outbox, told, "retrain", units, len(units), time.time()
        )

        def run(searcher: Any, count: int) -> None:
            for index in range(count):
                config = searcher.suggest(str(index))
                if config is None or config == Searcher.FINISHED:
                    return
                if failing(config["unit"]):
                    searcher.on_trial_complete(str(index), error=True)
                    monitor.on_end(config, {}, "Failure # 1\nValueError: out of luck")
                    continue
                block, result = block_of(config), {"done": False}
                while not result["done"]:
                    result = block.step()
                    monitor.on_result(config, result)
                searcher.on_trial_complete(str(index), result=result, error=False)
                monitor.on_end(config, result, None)

        population_run.train(
            populations,
            monitor,
            config=lambda unit: unit.ray_config(str(study.path), "cpu"),
            run=run,
            told=told.message,
            max_failures=0,
        )
    return told


def plain(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k not in IGNORED} for entry in curve]


def results(study: Study) -> dict[str, Any]:
    """Return what must not depend on interruptions, weights included."""
    return {
        row.key: (
            row.status,
            plain(row.curve),
            row.history,
            row.settings,
            {
                name: value.tolist()
                for name, value in load_state(study.path / str(row.final))["weights"].items()
            },
        )
        for row in study.rows()
    }


def only_plan(study: Study) -> Plan:
    (plan,) = plans(study.experiment, IDENTITY)
    return plan


# -- files -----------------------------------------------------------------------------------------


def test_a_population_begins_with_what_a_sweep_would_draw(tmp_path: Path) -> None:
    experiment = load(tmp_path, "seeds=[0, 7]", "retrain.epochs={grid: [5, 6]}")
    found = plans(experiment, IDENTITY)
    assert [(plan.seed, plan.epochs, plan.generations) for plan in found] == [
        (0, 5, 3), (0, 6, 3), (7, 5, 3), (7, 6, 3),
    ]  # fmt: skip
    assert [plan.end(2) for plan in found] == [5, 6, 5, 6]
    assert len({key for plan in found for key in plan.keys}) == 16
    # Seeds and blocks begin with the same draws, which are distinct.
    assert len({str(plan.first) for plan in found}) == 1
    assert len({str(part.settings) for part in found[0].first}) == 4
    swept = load(tmp_path, "tune={num_samples: 4}")
    drawn = planning.known_configurations(swept)
    assert [dict(part.settings) for part in found[0].first] == [
        {name: item.settings["retrain"][name] for name in ("cutout", "lr")} for item in drawn
    ]
    assert found[0].config_ids == found[2].config_ids


def test_keys_hang_on_all_that_decides_a_population(tmp_path: Path) -> None:
    def keys(*overrides: str) -> tuple[str, ...]:
        return plans(load(tmp_path, *overrides), IDENTITY)[0].keys

    before = keys()
    assert keys("retrain.precision=float32") == before == keys("name=other")
    assert keys(scheduler(mutations=["cutout", "lr"])) == before
    for change in (
        scheduler(every=3),
        scheduler(quantile=0.5),
        scheduler(resample=0.0),
        scheduler(mutations=["lr"]),
        "seeds=[1]",
        "tune.searcher={name: random, seed: 1}",
        "tune.metric=val_loss",
        "retrain.lr={loguniform: [0.001, 2.0]}",
        "retrain.channels=4",
    ):
        assert not set(keys(change)) & set(before), change


def test_the_study_keeps_what_the_file_meant(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    assert (experiment.tune.searcher.name, experiment.tune.seeds_per_trial) == ("random", 1)
    assert "num_samples" not in experiment.resolved()["tune"]
    dump(experiment, tmp_path / "resolved.yaml")
    assert load_resolved(tmp_path / "resolved.yaml") == experiment
    assert load_experiment(tmp_path / "resolved.yaml") == experiment
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(json.loads(json.dumps(experiment.resolved())))


def test_the_documented_example_is_one(tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "pbt.md"
    (text,) = re.findall(r"```yaml\n(name: .*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    experiment = load(tmp_path, text=text)
    assert experiment.tune.pbt is not None
    named = re.findall(r"`(\w+)`", docs.read_text(encoding="utf-8").partition("may be drawn:")[2])
    assert tuple(named[: len(CHANGEABLE)]) == CHANGEABLE
    assert len(plans(experiment, IDENTITY)) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.searcher=optuna"], "tune.searcher cannot be optuna with pbt: it learns what"),
        (["tune.searcher=grid"], "tune.searcher grid cannot begin a population"),
        (["tune.seeds_per_trial=all"], "must be 1 with pbt, which has a population of its own"),
        (["seeds=[0, 1]", "tune.seeds_per_trial=2"], "must be 1 with pbt"),
        (["tune.num_samples=4"], "tune.num_samples has no effect with pbt: .*population says"),
        ([scheduler(population=1)], "tune.scheduler.population must be >= 2, got 1"),
        ([scheduler(population=3)], r"population must be >= 4 with quantile 0.25, .* got 3"),
        ([scheduler(quantile=0.6)], "quantile must be > 0 and <= 0.5, .* got 0.6"),
        ([scheduler(quantile=0.0)], "quantile must be > 0 and <= 0.5"),
        ([scheduler(resample=1.5)], r"resample must be a probability in \[0, 1\], got 1.5"),
        ([scheduler(every=0)], "every must be >= 1, got 0"),
        ([scheduler(every=5)], r"every must be < retrain.epochs \(5\), .* got 5"),
        (["tune.scheduler={name: pbt, every: 2}"], "population must be given: pbt has no default"),
        (
            [scheduler(mutations=["cutot"])],
            r"drawn \(lr, cutout\), got 'cutot'. Did you mean 'cutout'",
        ),
        ([scheduler(mutations=["retrain.lr"])], "got 'retrain.lr'. Did you mean 'lr'"),
        ([scheduler(mutations=["momentum"])], "settings of retrain that are drawn .* 'momentum'"),
        ([scheduler(mutations=[])], "mutations must be different settings, at least one"),
        ([scheduler(mutations=["lr", "lr"])], "mutations must be different settings"),
        (["retrain.lr=0.1", "retrain.cutout=0"], "pbt has nothing to change: no setting of"),
        (["retrain.channels={choice: [2, 4]}"], "channels cannot be a choice .* its shape"),
        (["retrain.batch_size={choice: [16, 32]}"], "batch_size cannot be a choice .* order of"),
        (["retrain.epochs={choice: [5, 6]}"], "retrain.epochs cannot be a choice"),
        (["retrain.ema_decay={uniform: [0.0, 0.9]}"], "ema_decay .* 0 switches off"),
        (["retrain.lr=0.1"], "population must be <= 3, the number of different configurations"),
        (["retrain.workers=2"], "retrain.workers must be 1 with pbt, got 2"),
        (["retrain.compile=true"], "retrain.compile cannot be used with pbt"),
        (["retrain.val_share=0.0"], "retrain.val_share must be > 0, got 0"),
        (["tune.scheduler=ptb"], "must be one of none, asha, median, pbt, got 'ptb'"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, *overrides)


def test_searches_have_no_populations(tmp_path: Path) -> None:
    text = (
        "name: a\nspace: nasbench201\ndataset: digits\nmethod: darts\n"
        "search: {weight_lr: {loguniform: [0.01, 0.1]}}\n"
        "tune: {scheduler: {name: pbt, population: 4, every: 2}}\n"
    )
    with pytest.raises(ConfigError, match=r"pbt is for retrainings \(trainable: retrain\)"):
        load(tmp_path, text=text)


def test_a_dry_run_counts_members_and_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "peaks", lambda requests: [None] * len(requests))
    experiment = load(tmp_path, "seeds=[0, 1]")
    check_data(experiment)
    check_methods(experiment)
    found = estimate(experiment, tmp_path)
    assert len(found.trials) == 8
    assert any("2 populations of 4 members, 3 generations of 2 epochs" in n for n in found.notes)
    assert not any("may stop" in note for note in found.notes)


# -- in one process --------------------------------------------------------------------------------


def test_a_population_from_its_first_draw_to_its_rows(tmp_path: Path, fewer_digits: None) -> None:
    study = make_study(tmp_path)
    told = train(study)
    plan, rows = only_plan(study), {row.key: row for row in study.rows()}
    assert set(rows) == set(plan.keys)
    snapshot = read_snapshot(study.path / FOLDER / f"{plan.id}.json")
    assert snapshot is not None
    assert [generation.start for generation in snapshot.generations] == [0, 2, 4]
    for generation, end in zip(snapshot.generations, (2, 4, 5), strict=True):
        assert generation.values == tuple(
            rows[key].curve[end - 1]["val_accuracy"] for key in plan.keys
        )
    for member, key in enumerate(plan.keys):
        row = rows[key]
        assert (row.status, row.epochs_done, row.label) == ("finished", 5, plan.label(member))
        assert [entry["epoch"] for entry in row.curve] == [1, 2, 3, 4, 5]
        assert row.history[0] == {
            "epoch": 1, "settings": dict(plan.first[member].settings), "copied_from": None,
        }  # fmt: skip
        assert ["test_accuracy" in entry for entry in row.curve] == [False] * 4 + [True]
        # Each epoch says what it was trained with; the rows' settings are those that stay.
        for entry in row.curve:
            (used,) = [each for each in row.history if each["epoch"] <= entry["epoch"]][-1:]
            assert entry["settings/lr"] == used["settings"]["lr"]
            assert entry["settings/cutout"] == used["settings"]["cutout"]
            copied = used["copied_from"] if used["epoch"] == entry["epoch"] else None
            assert entry.get("copied_from") == copied
        assert not {"lr", "cutout"} & set(row.settings["retrain"])
        assert row.settings["pbt"]["member"] == member
        assert row.params == {}
    assert sum(len(row.history) for row in rows.values()) == 4 + 2  # one copies, twice
    assert len([line for line in told.messages if "copies" in line]) == 2
    assert sorted(path.name for path in study.checkpoints.glob("*/*")) == ["final.pt"] * 4
    reads = [json.loads(line)["key"] for line in study.test_reads.read_text().splitlines()]
    assert sorted(reads) == sorted(plan.keys)
    before = results(study)
    assert train(study).messages == []
    assert results(study) == before


def first_generation(study: Study) -> tuple[Plan, Population]:
    """Run the first generation and stop when the second one has been decided."""

    def stop(unit: dict[str, Any]) -> bool:
        if unit["generation"]["index"] == 1:
            raise KilledError
        return False

    with pytest.raises(KilledError):
        train(study, stop)
    assert study.rows() == []  # a generation's end is the end of no row
    return only_plan(study), Population(study, only_plan(study))


def test_a_copy_goes_on_from_the_state_of_the_other(tmp_path: Path, fewer_digits: None) -> None:
    plan, population = first_generation(make_study(tmp_path))
    study = Study.open("many", tmp_path / "studies")
    generation = population.generations[1]
    (copying,) = (i for i, part in enumerate(generation.parts) if part.copied_from is not None)
    source = generation.parts[copying].copied_from
    assert source is not None
    kept = [load_state(study.checkpoints / key / state_name(0)) for key in plan.keys]
    for member, key in enumerate(plan.keys):
        unit = plan.unit(population.generations, member)
        trial = block_of(unit.ray_config(str(study.path), "cpu")).trials[0]
        state = trial.state_dict()
        of = kept[source if member == copying else member]
        for name in ("network", "batches", "drop_generator"):
            assert str(state["training"][name]) == str(of["training"][name])
        stored = of["training"]["optimizer"]["state"]
        assert str(state["training"]["optimizer"]["state"]) == str(stored)
        # What was before stays its own, whoever it copies.
        assert json.loads(state["curve"]) == json.loads(kept[member]["curve"])
        assert trial.settings.lr == generation.parts[member].settings["lr"]  # type: ignore[attr-defined]
        assert (study.checkpoints / key / state_name(0)).is_file()
    assert generation.parts[copying].settings != generation.parts[source].settings


@pytest.mark.parametrize("writes", [4, 11])
def test_a_kill_before_any_write_loses_nothing(
    tmp_path: Path,
    whole: dict[str, Any],
    fewer_digits: None,
    writes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = make_study(tmp_path, *DIVERGING)
    left = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            return original(*arguments, **named)

        return write

    for module, name in (
        (ledger, "replace_file"), (population_file, "replace_file"),
        (state, "save_state"), (retrain, "save_state"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    kills = 0
    for _ in range(100):
        left = writes
        try:
            train(study)
            break
        except KilledError:
            kills += 1
            # Every state that a member may go on from is there whole.
            for path in study.checkpoints.glob("*/generation-*.pt"):
                load_state(path)
    assert kills >= 3
    assert results(study) == whole


def test_a_member_that_diverged_copies_at_the_next_generation(whole: dict[str, Any]) -> None:
    diverged = [
        (curve, history)
        for status, curve, history, *_ in whole.values()
        if status == "finished" and any(entry["diverged"] for entry in curve)
    ]
    assert diverged
    for curve, history in diverged:
        assert [entry["diverged"] for entry in curve] == [1, 1, 0]
        assert [entry["epoch"] for entry in curve] == [1, 2, 3]
        assert [each["epoch"] for each in history] == [1, 3]
        assert [each["settings"]["lr"] for each in history] == [1.0e30, 0.05]
        assert curve[2]["copied_from"] == history[1]["copied_from"]


def test_a_population_that_all_diverged_has_ended(tmp_path: Path, fewer_digits: None) -> None:
    study = make_study(tmp_path, "retrain.lr={choice: [1.0e+30, 2.0e+30, 3.0e+30, 4.0e+30]}")
    told = train(study)
    assert [row.status for row in study.rows()] == ["diverged"] * 4
    assert {row.epochs_done for row in study.rows()} == {2}
    assert "all members diverged" in told.messages[-1]
    assert train(study).messages == []
    assert "all members diverged" in study_state(study)["populations"][0]
    assert write_report(study).results[0].val_accuracies == {}


def test_a_population_waits_for_a_member_that_failed(tmp_path: Path, fewer_digits: None) -> None:
    study = make_study(tmp_path, "seeds=[0, 1]", "retrain.epochs=3")
    first, second = plans(study.experiment, IDENTITY)
    told = train(study, lambda unit: unit["rows"].get("0") == first.keys[2])
    statuses = {row.key: row.status for row in study.rows()}
    assert statuses.pop(first.keys[2]) == "failed"
    assert statuses == dict.fromkeys(second.keys, "finished")
    assert "waits at epoch 2" in told.messages[-1]
    assert "member 2 failed" in told.messages[-1]
    train(study)
    assert [row.status for row in study.rows()] == ["finished"] * 8


def test_a_lost_snapshot_begins_anew_and_a_lost_row_goes_on(
    tmp_path: Path, fewer_digits: None
) -> None:
    study = make_study(tmp_path)
    plan, _ = first_generation(study)
    folder = study.checkpoints / plan.keys[0]
    (folder / "row.json").write_text("{")
    population = Population(study, plan)
    assert population.index == 1
    (study.path / FOLDER / f"{plan.id}.json").unlink()
    assert Population(study, plan).index == 0
    assert not list(study.checkpoints.glob("*/*"))


def test_cleaning_keeps_what_others_go_on_from(tmp_path: Path, fewer_digits: None) -> None:
    study = make_study(tmp_path)
    plan = only_plan(study)

    def stop(unit: dict[str, Any]) -> bool:
        if unit["generation"]["index"] == 2 and unit["generation"]["pbt"]["member"] == 3:
            raise KilledError
        return False

    with pytest.raises(KilledError):
        train(study, stop)
    assert len(study.rows()) == 3  # the last generation lacks one
    cleaning.clean(study)
    assert all((study.checkpoints / key / state_name(1)).is_file() for key in plan.keys)
    train(study)
    assert len(study.rows()) == 4
    assert not list(study.checkpoints.glob(f"*/{state_name('*')}"))


def test_a_damaged_state_is_put_aside_and_the_generation_runs_again(
    tmp_path: Path, fewer_digits: None
) -> None:
    study = make_study(tmp_path)
    plan, population = first_generation(study)
    config = plan.unit(population.generations, 1).ray_config(str(study.path), "cpu")
    block = block_of(config)
    entry = block.step()
    path = block.state_file(0)
    path.write_bytes(path.read_bytes()[:100])
    again = block_of(config)
    assert path.with_suffix(".damaged").is_file()
    assert again.step()["val_accuracy"] == entry["val_accuracy"]


# -- what is shown ---------------------------------------------------------------------------------


def test_mutated_settings_are_metrics_and_no_params(tmp_path: Path, fewer_digits: None) -> None:
    augment = "retrain.augment={choice: [none, crop_flip]}"
    study = make_study(tmp_path, augment, "retrain.cutout=0", "retrain.epochs=3")
    train(study)
    lines = [json.loads(line) for line in study.outbox.read_text().splitlines()]
    sent = {(line["key"], line["step"]): line["m"] for line in lines if line["k"] == "epoch"}
    for row in study.rows():
        view = view_of(row, "study", "parent")
        assert not {"lr", "augment"} & set(view.params)
        assert (view.params["member"], view.params["batch_size"]) == (
            str(row.settings["pbt"]["member"]), "32",
        )  # fmt: skip
        points = {(p.metric, p.step): p.value for p in view.curve}
        for entry in row.curve:
            step = entry["epoch"]
            assert points["retrain/settings/lr", step] == entry["settings/lr"]
            assert points["retrain/settings/augment", step] in (0.0, 1.0)
            live = sent[row.key, step]
            assert {(name, step): value for name, value in live.items()}.items() <= points.items()


def test_the_report_has_a_line_per_block_and_the_schedule_of_the_best(
    tmp_path: Path, fewer_digits: None
) -> None:
    study = make_study(tmp_path, "seeds=[0, 1]", "retrain.epochs=3")
    found = plans(study.experiment, IDENTITY)
    assert study_state(study)["populations"] == []
    train(study)
    report = write_report(study)
    rows = {row.key: row for row in study.rows()}
    assert {line.label for line in report.results} == {plan.block.label for plan in found}
    for line in report.results:
        for seed, value in line.val_accuracies.items():
            (plan,) = (p for p in found if (p.block.label, p.seed) == (line.label, seed))
            members = [rows[key] for key in plan.keys]
            best = max(members, key=lambda row: row.value("val_accuracy") or 0.0)
            assert value == best.value("val_accuracy")
            assert line.test_accuracies[seed] == rows[best.key].value("test_accuracy")
    page = report.markdown.read_text(encoding="utf-8")
    assert "- populations: 2 (2 seeds in all)" in page
    assert "What can be told apart" not in page  # of members, which copy each other
    assert "## Sensitivity" not in page
    table = json.loads(report.table.read_text())["populations"]
    assert [(each["label"], each["seed"]) for each in table] == sorted(
        (plan.block.label, plan.seed) for plan in found
    )
    for each in table:
        (plan,) = (p for p in found if (p.block.label, p.seed) == (each["label"], each["seed"]))
        histories = [rows[key].history for key in plan.keys]
        assert each["schedule"] == lineage(histories, each["best_member"])
    text = report.markdown.read_text()
    assert "What the weights of the best members were trained with" in text
    shown = study_state(study)["populations"]
    assert [re.sub("0[.].*", "x", line.partition(" ")[2]) for line in shown] == [
        f"seed {seed}: epoch 3 of 3, best val_accuracy x" for seed in (0, 1)
    ]


# -- on Ray ----------------------------------------------------------------------------------------


def test_a_killed_study_goes_on_from_its_snapshot(tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text(
        YAML.replace("batch_size: 32", "batch_size: 256").replace("epochs: 5", "epochs: 4")
    )
    log = tmp_path / "nas.log"
    with drive.short_ray_folder():
        process = drive.nas("run", file, root=tmp_path)
        folder = tmp_path / "many" / FOLDER

        def decided() -> bool:
            found = [read_snapshot(path) for path in folder.glob("*.json")]
            return any(each is not None and len(each.generations) == 2 for each in found)

        drive.wait_for(decided, tmp_path)
        drive.kill_group(process)
        study = Study.open("many", tmp_path)
        assert study_state(study)["state"] == "incomplete"
        assert "epoch 2 of 4" in study_state(study)["populations"][0]
        assert drive.finish(drive.nas("resume", "many", root=tmp_path), tmp_path) == 0, (
            log.read_text()
        )
    rows = {row.key: row for row in study.rows()}
    assert [row.status for row in rows.values()] == ["finished"] * 4
    # The same as in this process, where nothing was killed, but for what differs between processes.
    alone = Study.create(tmp_path / "alone", load_experiment(file), "nas run many.yaml")
    train(alone)
    by_member = {row.settings["pbt"]["member"]: row for row in alone.rows()}
    for row in rows.values():
        other = by_member[row.settings["pbt"]["member"]]
        assert row.history == other.history
        assert plain(row.curve) == plain(other.curve)
    reads = (study.path / "test_reads.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in reads) == sorted(rows)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = store.execute(
            "select tags.value, runs.status from runs join tags on tags.run_uuid = runs.run_uuid "
            "and tags.key = 'nas.key'"
        ).fetchall()
        points = store.execute(
            "select count(distinct run_uuid || ' ' || step) from metrics "
            "where key = 'retrain/settings/lr'"
        ).fetchone()
        params = store.execute("select count(*) from params where key = 'lr'").fetchone()
    assert sorted(runs) == sorted((key, "FINISHED") for key in rows)
    assert (points, params) == ((16,), (0,))
