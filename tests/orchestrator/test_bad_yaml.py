"""Wrong experiment files: each gives clear lines, fast and without importing torch or Ray."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError

GOOD = """\
name: study
space: {name: nasbench201, channels: 4, cells_per_stage: 1}
dataset: digits
seeds: [0, 1]
method: darts
search: {epochs: 4}
"""


def good(**replaced: str) -> str:
    """The good file with some top-level lines replaced or added; an empty text takes one away."""
    lines = dict(line.split(":", 1) for line in GOOD.splitlines())
    lines |= replaced
    return "".join(f"{key}: {value.strip()}\n" for key, value in lines.items() if value)


RANGE = "{weight_lr: {uniform: [0.01, 0.1]}}"
EXPLODING = ("epochs", "batch_size", "weight_lr", "threads")
# name: (file, fragments of the only line of its message)
BAD: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    # Not an experiment at all.
    "empty": ("", ("it is empty",)),
    "comments_only": ("# nothing\n", ("it is empty",)),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", ("not UTF-8 text", "byte 0x89", "position 0")),
    "nul_character": ("name: a\x00b\n", ("#x0000",)),
    "list_at_top": ("- name: a\n", ("must be a mapping of settings", "got a list")),
    "text_at_top": ("just words\n", ("must be a mapping of settings", "got text")),
    "two_documents": (GOOD + "---\n" + GOOD, ("line 7", "expected a single document")),
    "syntax": ("name: [a\nspace: b\n", ("line 2", "expected ',' or ']'")),
    "tab": ("search:\n\tepochs: 4\n", ("line 2", "cannot start any token")),
    "nested_too_deeply": ("[" * 5000, ("line 1", "nested more than 30 levels deep")),
    "too_large": ("#" * 1_000_001, ("below 1000000 bytes",)),
    "python_tag": (
        good(name='!!python/object/apply:os.system ["true"]'),
        ("line 1", "!!python/object/apply:os.system", "not allowed"),
    ),
    "set_tag": (good(seeds="!!set {0, 1}"), ("line 4", "!!set is not allowed")),
    "alias": (good(space="&a nasbench201", dataset="*a"), ("line 3", "alias *a is not allowed")),
    "duplicate_key": (GOOD + "seeds: [3]\n", ("line 7", "'seeds' stands on line 4 already")),
    "duplicate_inner_key": (good(search="{epochs: 4, epochs: 5}"), ("'epochs'", "already")),
    "key_that_is_no_text": (good(search="{4: 5}"), ("the key 4 must be text",)),
    "impossible_date": (good(name="2026-02-31"), ("a value that cannot be read", "day")),
    "half_character": (good(question='"\\ud800"'), ("line 7", "half a character")),
    "too_many_values": (
        good(question="[" + "1, " * 30_001 + "1]"),
        ("line 7", "more than 30000 keys and values"),
    ),
    # Unknown and missing keys.
    "key_that_a_terminal_obeys": ('"\\e[2J": 1\n' + GOOD, ("\\x1b[2J is not a setting",)),
    "unknown_section": (good(serach="{epochs: 4}"), ("serach is not", "Did you mean 'search'?")),
    "key_of_another_section": (good(epochs="5"), ("Did you mean 'search.epochs'?",)),
    "unknown_search_key": (
        good(search="{weigth_lr: 0.1}"),
        ("search.weigth_lr is not a setting", "Did you mean 'weight_lr'?"),
    ),
    "unknown_tune_key": (good(tune="{num_sample: 1}"), ("tune.num_sample", "'num_samples'?")),
    "unknown_retrain_key": (good(retrain="{topk: 1}"), ("retrain.topk", "'top_k'?")),
    "unknown_method_key": (
        good(method="{name: sdarts_rs, radius: 0.1}"),
        ("method.radius is not a setting", "radius_"),
    ),
    "no_method": (good(method=""), ("method is missing",)),
    "no_name": (good(name=""), ("name is missing",)),
    "no_dataset": (good(dataset=""), ("dataset is missing",)),
    "method_without_name": (good(method="{radius_max: 1.0}"), ("method.name is missing",)),
    # Names.
    "near_miss_method": (good(method="sdart_rs"), ("'sdart_rs'", "Did you mean 'sdarts_rs'?")),
    "near_miss_space": (good(space="nasbench101"), ("Did you mean 'nasbench201'?",)),
    "near_miss_dataset": (good(dataset="digit"), ("Did you mean 'digits'?",)),
    "near_miss_selection": (good(selection="magnitud"), ("Did you mean 'magnitude'?",)),
    "name_leaves_folder": (good(name="../../etc"), ("name must be", "'../../etc'")),
    "name_is_dots": (good(name='".."'), ("name must be", "'..'")),
    "name_is_path": (good(name="a/b"), ("name must be", "'a/b'")),
    "name_too_long": (good(name="a" * 101), ("1 to 100 letters",)),
    "name_is_number": (good(name="42"), ("name must be text, got 42", "quotation marks")),
    "name_ends_with_newline": (good(name='"a\\n"'), ("name must be", "'a\\n'")),
    # Types.
    "text_for_number": (
        good(search="{alpha_lr: 3e-4}"),
        ("search.alpha_lr must be float, got '3e-4'", "write 3.0e-4"),
    ),
    "quoted_number": (good(search='{alpha_lr: "0.1"}'), ("must be float", "quotation marks")),
    "text_for_epochs": (good(search="{epochs: many}"), ("search.epochs must be int, got 'many'",)),
    "fraction_of_an_epoch": (good(search="{epochs: 1.5}"), ("search.epochs must be int",)),
    "boolean_for_number": (good(search="{weight_lr: yes}"), ("must be float, got True",)),
    "null_for_number": (good(search="{epochs: }"), ("search.epochs must be int, got None",)),
    "search_is_a_list": (good(search="[epochs]"), ("search must be a mapping",)),
    "method_is_a_list": (good(method="[darts]"), ("method must be a name", "grid")),
    "wrong_choice": (good(search="{augment: crop}"), ("must be one of auto, none, crop_flip",)),
    "not_finite": (good(method="{name: sdarts_rs, radius_max: .inf}"), ("must be a finite",)),
    # Ranges of values.
    "negative_epochs": (good(search="{epochs: -3}"), ("search.epochs must be > 0, got -3",)),
    "zero_batch": (good(search="{batch_size: 0}"), ("search.batch_size must be > 0, got 0",)),
    "share_of_all": (good(search="{train_share: 1.0}"), ("train_share must be in (0, 1)",)),
    "space_setting": (good(space="{name: nasbench201, channels: 0}"), ("space.channels must be",)),
    "settings_that_contradict": (
        good(search="{nesterov: true, weight_momentum: 0}"),
        ("search.nesterov needs weight_momentum > 0",),
    ),
    "setting_without_effect": (
        good(method="{name: amended_darts, product: exact, probe_radius: 0.02}"),
        ("method.probe_radius has no effect",),
    ),
    # Seeds.
    "repeated_seeds": (good(seeds="[0, 1, 0]"), ("seeds must be distinct, got 0 twice",)),
    "seeds_is_a_number": (good(seeds="3"), ("seeds must be a list", "Write [0, 1, 2]")),
    "no_seeds": (good(seeds="[]"), ("seeds must be a list of at least one",)),
    "negative_seed": (good(seeds="[0, -1]"), ("seeds[1] must be a whole number >= 0, got -1",)),
    "repeated_retrain_seeds": (good(retrain="{seeds: [1, 1]}"), ("retrain.seeds must be dist",)),
    # Sweep words.
    "empty_grid": (good(search="{weight_lr: {grid: []}}"), ("weight_lr.grid must be a list of",)),
    "repeated_in_grid": (good(search="{epochs: {grid: [4, 4]}}"), ("epochs.grid has 4 twice",)),
    "repeated_methods": (
        good(method="{grid: [sdarts_rs, {name: sdarts_rs, radius_max: 0.3}]}"),
        ("method.grid has", "twice"),
    ),
    "wrong_value_in_grid": (
        good(search="{epochs: {grid: [4, -4]}}"),
        ("search.epochs must be > 0, got -4",),
    ),
    "engines_as_a_sweep": (
        good(search="{engine: {grid: [eager, graph]}}"),
        ("search.engine must be one of them, got a sweep", "changes no result"),
    ),
    "checkpointing_as_a_sweep": (
        good(search="{checkpointing: {grid: [none, cell]}}"),
        ("search.checkpointing must be one of them, got a sweep", "changes no result"),
    ),
    "auto_in_a_sweep": (
        good(search="{precision: {grid: [auto, bf16]}}"),
        ("search.precision must not be swept over auto, which is float32",),
    ),
    "unknown_engine": (
        good(search="{engine: turbo}"),
        ("search.engine must be one of auto, eager, graph, compile, reference, got 'turbo'",),
    ),
    "wrong_type_in_grid": (
        good(search="{epochs: {grid: [4, x]}}"),
        ("search.epochs.grid[1] must be int, got 'x'",),
    ),
    "wrong_method_in_grid": (good(method="{grid: [darts, dartz]}"), ("method.grid[1]", "'dartz'")),
    "empty_range": (
        good(search="{weight_lr: {uniform: [0.1, 0.1]}}", tune="{num_samples: 2}"),
        ("search.weight_lr.uniform must have low < high, got [0.1, 0.1]",),
    ),
    "reversed_range": (
        good(search="{weight_lr: {uniform: [0.1, 0.01]}}", tune="{num_samples: 2}"),
        ("must have low < high", "Did you mean [0.01, 0.1]?"),
    ),
    "one_bound": (good(search="{weight_lr: {uniform: [0.1]}}"), ("must be a list [low, high]",)),
    "log_of_zero": (
        good(search="{weight_lr: {loguniform: [0, 1]}}", tune="{num_samples: 2}"),
        ("search.weight_lr.loguniform must have low > 0",),
    ),
    "empty_randint": (good(search="{epochs: {randint: [4, 4]}}"), ("which is not drawn itself",)),
    "uniform_integer": (good(search="{epochs: {uniform: [1, 4]}}"), ("Use randint or choice",)),
    "range_below_the_allowed": (
        good(search="{weight_lr: {uniform: [-1, 1]}}", tune="{num_samples: 2}"),
        ("search.weight_lr must be > 0, got -1.0",),
    ),
    "randint_above_the_allowed": (
        good(space="{name: darts, operations: {randint: [7, 10]}}", tune="{num_samples: 2}"),
        ("space.operations must be 7 or 8, got 9",),
    ),
    "misspelt_sweep_word": (
        good(search="{weight_lr: {loguniforn: [0.1, 1.0]}}"),
        ("search.weight_lr must be float or one of grid", "Did you mean 'loguniform'?"),
    ),
    "two_sweep_words": (good(search="{epochs: {grid: [1], choice: [2]}}"), ("search.epochs must",)),
    "sweep_word_beside_a_name": (
        good(method="{grid: [darts], name: darts}"),
        ("method must be either grid alone or settings",),
    ),
    "swept_dataset": (good(dataset="{grid: [digits]}"), ("dataset must be one fixed plug-in",)),
    "swept_retrain": (good(retrain="{lr: {grid: [0.1]}}"), ("retrain.lr cannot be swept",)),
    "swept_name": (good(method="{name: {grid: [darts]}}"), ("Write method: {grid: [...]}",)),
    "grid_inside_choice": (
        good(method="{choice: [darts, {name: sdarts_rs, radius_max: {grid: [0.1, 0.3]}}]}"),
        ("method.choice[1].radius_max cannot be a grid inside a choice",),
    ),
    "combination_that_cannot_be": (
        good(method="{name: sdarts_rs, radius_start: {grid: [0.1, 0.9]}}"),
        ("method.radius_max must be >= radius_start (0.9)",),
    ),
    "grids_that_explode": (
        good(
            search="{" + ", ".join(f"{key}: {{grid: {[*range(1, 40)]}}}" for key in EXPLODING) + "}"
        ),
        ("at most 10000 combinations, got 2313441",),
    ),
    "range_for_a_list": (
        good(
            space="darts",
            method="{name: p_darts, skip_dropout: {uniform: [0.1, 0.2]}}",
            tune="{num_samples: 2}",
        ),
        ("method.skip_dropout.uniform draws real numbers, but the setting is a list",),
    ),
    "endless_grid": (
        good(search="{epochs: {grid: " + str([*range(1, 10_002)]) + "}}"),
        ("search.epochs.grid must be a list of at most 10000 values, got 10001",),
    ),
    "endless_plan": (
        good(search=RANGE, tune="{num_samples: 1000000000000}"),
        ("a study has at most 1000000 rows", "got 2000000000000"),
    ),
    # Searchers and schedulers.
    "grid_searcher_with_range": (
        good(search=RANGE, tune="{searcher: grid, num_samples: 2}"),
        ("tune.searcher grid cannot run search.weight_lr, which is a uniform",),
    ),
    "range_without_num_samples": (good(search=RANGE), ("tune.num_samples must be given",)),
    "num_samples_without_range": (
        good(tune="{num_samples: 4}"),
        ("tune.num_samples has no effect, got 4",),
    ),
    "more_samples_than_there_are": (
        good(search="{weight_lr: {choice: [0.1, 0.2]}}", tune="{num_samples: 3}"),
        ("tune.num_samples must be <= 2",),
    ),
    "optuna_without_range": (good(tune="{searcher: optuna}"), ("optuna has nothing to search",)),
    "near_miss_searcher": (good(tune="{searcher: optun}"), ("Did you mean 'optuna'?",)),
    "seed_of_grid": (
        good(tune="{searcher: {name: grid, seed: 1}}"),
        ("tune.searcher.seed has no effect with grid",),
    ),
    "unknown_scheduler": (good(tune="{scheduler: hyperband}"), ("none, asha, median",)),
    "asha_without_grace": (
        good(method="{grid: [darts, sdarts_rs]}", tune="{scheduler: asha}"),
        ("tune.scheduler.grace_epochs must be given",),
    ),
    "option_of_another_scheduler": (
        good(
            method="{grid: [darts, sdarts_rs]}",
            tune="{scheduler: {name: asha, grace_epochs: 1, min_trials: 2}}",
        ),
        ("tune.scheduler.min_trials is not a setting", "asha has grace_epochs"),
    ),
    "grace_beyond_epochs": (
        good(
            method="{grid: [darts, sdarts_rs]}", tune="{scheduler: {name: asha, grace_epochs: 9}}"
        ),
        ("grace_epochs must be < search.epochs (4)", "got 9"),
    ),
    "grace_of_all_epochs": (
        good(
            method="{grid: [darts, sdarts_rs]}", tune="{scheduler: {name: asha, grace_epochs: 4}}"
        ),
        ("grace_epochs must be < search.epochs (4)", "got 4"),
    ),
    "max_epochs_beyond_epochs": (
        good(
            method="{grid: [darts, sdarts_rs]}",
            tune="{scheduler: {name: asha, grace_epochs: 1, max_epochs: 8}}",
        ),
        ("max_epochs must be <= search.epochs (4), got 8",),
    ),
    "reduction_factor_of_one": (
        good(
            method="{grid: [darts, sdarts_rs]}",
            tune="{scheduler: {name: asha, grace_epochs: 1, reduction_factor: 1}}",
        ),
        ("reduction_factor must be > 1",),
    ),
    "scheduler_of_one": (
        good(tune="{scheduler: {name: asha, grace_epochs: 1}}"),
        ("tune.scheduler asha has no effect: there is one configuration",),
    ),
    "median_of_too_many": (
        good(
            method="{grid: [darts, sdarts_rs]}",
            tune="{scheduler: {name: median, grace_epochs: 1, min_trials: 2}}",
        ),
        ("min_trials must be < 2",),
    ),
    "adaptive_on_lucky_seeds": (
        good(
            method="{grid: [darts, sdarts_rs]}",
            tune="{scheduler: {name: asha, grace_epochs: 1}, seeds_per_trial: 1}",
        ),
        ("tune.seeds_per_trial must be all with asha", "got 1 of 2"),
    ),
    "more_seeds_per_trial": (good(tune="{seeds_per_trial: 3}"), ("must be <= 2",)),
    "seeds_per_trial_text": (good(tune="{seeds_per_trial: some}"), ("auto, all or a number",)),
    "test_metric": (good(tune="{metric: test_accuracy}"), ("tune.metric", "read once, by retrain")),
    "unknown_metric": (good(tune="{metric: val_acuracy}"), ("Did you mean 'val_accuracy'?",)),
    "wrong_mode": (good(tune="{mode: min}"), ("tune.mode must be max for val_accuracy",)),
    # Resources and the rest.
    "no_cpus": (good(tune="{per_trial: {cpus: 0}}"), ("tune.per_trial.cpus must be > 0",)),
    "odd_gpu_share": (
        good(tune="{per_trial: {gpus: 0.15}}"),
        ("share 1/n", "nearest is 0.1428 (7 on a GPU)", "got 0.15"),
    ),
    "one_and_a_half_gpus": (good(tune="{per_trial: {gpus: 1.5}}"), ("whole number above 1",)),
    "negative_gpus": (good(tune="{per_trial: {gpus: -1}}"), ("gpus must be >= 0",)),
    "negative_failures": (good(tune="{max_failures: -1}"), ("tune.max_failures must be >= 0",)),
    "ray_address": (good(ray="{address: cluster}"), ("local, auto or host:port", "'cluster'")),
    "ray_client": (good(ray='{address: "ray://a:10001"}'), ("leave out ray://",)),
    "ray_cpus_of_a_cluster": (good(ray="{address: auto, cpus: 4}"), ("ray.cpus has no effect",)),
    "mlflow_uri": (good(mlflow="{tracking_uri: mlruns}"), ("mlflow.tracking_uri", "'mlruns'")),
    "keep": (good(keep="some"), ("keep must be all, none or best_K",)),
    "keep_best_of_none": (good(keep="best_0"), ("keep must be all, none or best_K",)),
    "keep_more_than_there_are": (good(keep="best_3"), ("keep must be at most best_2",)),
    "top_k": (good(retrain="{top_k: 3}"), ("retrain.top_k must be <= 2",)),
    "top_k_of_three_seeds": (
        good(seeds="[0, 1, 2]", retrain="{top_k: 4}"),
        ("retrain.top_k must be <= 3",),
    ),
    "retrain_channels": (good(retrain="{channels: 0}"), ("retrain.channels must be > 0",)),
    "no_hours": (good(max_hours="0"), ("max_hours must be > 0",)),
    "hours_text": (good(max_hours="long"), ("max_hours must be float",)),
    "missing_dataset_path": (
        good(dataset="{name: parquet, train: nowhere/train.parquet}"),
        ("dataset.train must be an existing path", "tried"),
    ),
    "missing_cifar10": (
        good(dataset="{name: cifar10, root: nowhere}"),
        (
            "dataset.root must be an existing path",
            "To get it: nas data prepare cifar10 --root nowhere",
        ),
    ),
    "home_of_nobody": (
        good(dataset='{name: cifar10, root: "~nobody-of-that-name/data"}'),
        ("dataset.root must be an existing path, got '~nobody-of-that-name/data'",),
    ),
    "dataset_without_its_path": (good(dataset="parquet"), ("dataset.train must be given",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_gives_one_clear_line(case: str, tmp_path: Path) -> None:
    content, fragments = BAD[case]
    path = tmp_path / f"{case}.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1, message
    for fragment in fragments:
        assert fragment in message


def test_there_are_at_least_thirty_wrong_files() -> None:
    assert len(BAD) >= 30


def test_the_good_file_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    assert load_experiment(path).search["epochs"] == 4


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "several.yaml"
    path.write_text(
        good(
            name="a/b",
            method="dart",
            seeds="[1, 1]",
            search="{epochs: -1, batch_size: 0, weigth_lr: 0.1, alpha_lr: 3e-4}",
            tune="{mode: up, scheduler: {name: asha, reduction_factor: 1}}",
        )
    )
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    lines = str(error.value).splitlines()
    found = sorted(line.removeprefix(f"{path}: ").split()[0].rstrip(":") for line in lines)
    # Values are tried against the settings class only where their types are right.
    assert found == [
        "method",
        "name",
        "search.alpha_lr",
        "search.weigth_lr",
        "seeds",
        "tune.mode",
        "tune.scheduler.grace_epochs",
        "tune.scheduler.reduction_factor",
    ]


def test_all_values_out_of_range_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "several.yaml"
    path.write_text(good(search="{epochs: -1, batch_size: 0, weight_lr: -0.1}"))
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    keys = [line.split()[1] for line in str(error.value).splitlines()]
    assert keys == ["search.epochs", "search.batch_size", "search.weight_lr"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"no such file\. Did you mean 'quickstart.yaml'\?"):
        load_experiment(tmp_path / "quickstar.yaml")
    with pytest.raises(ConfigError, match="it is a folder"):
        load_experiment(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path / ("a" * 300))


SCRIPT = """
import sys, time
from pathlib import Path
from orchestrator.config import check_hardware, load_experiment
from orchestrator.errors import ConfigError
wrong, slowest = 0, 0.0
for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
    started = time.process_time()
    try:
        check_hardware(load_experiment(path))
    except ConfigError:
        wrong += 1
    if path.stat().st_size < 50_000:  # thousands of values take as long as they take to read
        slowest = max(slowest, time.process_time() - started)
heavy = [name for name in ("torch", "ray", "mlflow", "optuna", "pandas") if name in sys.modules]
print(wrong, slowest, *heavy)
"""


def validate_in_a_process(folder: Path) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_validation_imports_nothing_heavy(tmp_path: Path) -> None:
    for case, (content, _) in BAD.items():
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / f"{case}.yaml").write_bytes(data)
    (tmp_path / "impossible.yaml").write_text(good(tune="{per_trial: {cpus: 100000}}"))
    (tmp_path / "good.yaml").write_text(GOOD)
    wrong, slowest, *heavy = validate_in_a_process(tmp_path)
    assert int(wrong) == len(BAD) + 1
    assert heavy == []
    assert float(slowest) < 1.5


def test_a_wrong_file_is_refused_within_three_seconds(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(good(search="{weigth_lr: 0.1}"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert validate_in_a_process(tmp_path)[0] == "1"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU seconds, which other work beside does not stretch; all imports included.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
