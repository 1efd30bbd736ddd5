"""From the mapping that an experiment file holds to a checked, frozen `Experiment`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator import consistency, training_section
from orchestrator.dataset_paths import Folders, absolute_paths
from orchestrator.experiment import (
    OF_SEARCHES,
    SWEEP_WORDS,
    Experiment,
    Limits,
    MlflowSettings,
    RaySettings,
    Retrain,
    Simulation,
    Tune,
    sweep_word,
)
from orchestrator.limits_section import check_limits
from orchestrator.oracle_section import check_oracle
from orchestrator.problems import Problems
from orchestrator.protocols import set_by_protocol, with_protocol
from orchestrator.sections import check_lowest, check_mapping, check_record
from orchestrator.settings_tree import check_construction, check_fields, check_plugin, specs_of
from orchestrator.sweep_words import candidates, checked
from orchestrator.tracking_location import without_password
from orchestrator.tune_section import check_tune
from spaces.core.errors import PluginSettingsError, near_miss
from trainables.settings import (
    DIAGNOSTICS,
    RetrainSettings,
    SearchSettings,
    field_names,
    own_of_consistent,
    resolved,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})")
_QUESTION_LENGTH = 1000
_URI_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_SECTIONS = tuple(key for key in Experiment.model_fields if key != "training")


def check_experiment(
    document: Mapping[Any, Any],
    problems: Problems,
    *,
    name: str | None = None,
    folders: Folders | None = None,
    resolved: bool = False,
) -> Experiment | None:
    """Return the experiment that `document` describes, every default filled in.

    Args:
        document: What the file says, with the overrides of the command line in it.
        problems: Takes everything that is wrong.
        name: Name of the study, over the one in the file.
        folders: Where relative paths of plug-ins are looked for; None takes them as they are.
        resolved: Whether it leaves nothing to a default or a protocol, as a study's own does.

    Returns:
        None if there are problems.
    """
    for key in document:
        if key not in _SECTIONS:
            problems.add(str(key), f"{key} is not a setting.{_where_it_belongs(str(key))}")
    given: Mapping[str, Any] = {key: v for key, v in document.items() if key in _SECTIONS}
    trainable = _trainable(given, problems)
    searching = trainable == "search"
    given = _relevant(given, problems, searching=searching)
    method, space = (
        check_plugin(kind, given[key], key, problems, words=SWEEP_WORDS) if key in given else None
        for kind, key in (("methods", "method"), ("spaces", "space"))
    )
    search = _search(given.get("search"), problems) if searching else {}
    dataset = _dataset(given, problems, folders)
    retrain = given.get("retrain")
    if not resolved and isinstance(retrain, Mapping) and space and dataset:
        retrain = with_protocol(retrain, space, dataset, problems)
    genotype, training = None, None
    if not searching:
        if "genotype" in given:
            genotype = training_section.check_genotypes(given["genotype"], space, problems, folders)
        training = training_section.check_training(retrain, problems, given.get("retrain"))
    parts = (method, space, search if training is None else training.settings)
    tune = check_tune(given.get("tune"), problems, swept=any(map(has_sampled, parts)))
    if training is not None and not problems.under("retrain", "tune"):
        training = training_section.hold_out(training, given, tune, problems)
    values: dict[str, Any] = {
        "name": _name(given, name, problems),
        "question": _question(given.get("question"), problems),
        "trainable": trainable,
        "genotype": genotype,
        "space": space,
        "dataset": dataset,
        "seeds": check_seeds(given.get("seeds", [0]), "seeds", problems),
        "method": method,
        "selection": check_plugin(
            "selections", given.get("selection", "magnitude"), "selection", problems
        )
        if searching
        else {},
        "search": search,
        "diagnostics": _diagnostics(given.get("diagnostics"), problems),
        "oracle": check_oracle(given.get("oracle"), space, problems, folders),
        "simulation": _simulation(given.get("simulation"), problems),
        "retrain": _retrain(retrain, search, problems, given.get("retrain")) if searching else None,
        "training": training,
        "limits": check_limits(given.get("limits"), problems),
        "tune": tune,
        "ray": _ray(given.get("ray"), problems),
        "mlflow": _mlflow(given.get("mlflow"), problems),
        "keep": _keep(given.get("keep", "all"), problems),
        "max_hours": _max_hours(given.get("max_hours"), problems),
    }
    # What is missing here has been reported; an empty plug-in lets the other checks go on.
    filled = {
        key: {} if value is None and _is_plugin(key) else value for key, value in values.items()
    }
    experiment = Experiment(**filled)
    consistency.check(experiment, given, problems)
    if problems:
        return None
    size = experiment.tune.seeds_per_trial
    if experiment.adaptive and size != "all":
        tune = experiment.tune.model_copy(update={"seeds_per_trial": "all"})
        experiment = experiment.model_copy(update={"tune": tune})
    return experiment


def _trainable(given: Mapping[str, Any], problems: Problems) -> str:
    value = given.get("trainable", "search")
    if value in ("search", "retrain") and isinstance(value, str):
        return value
    miss = near_miss(str(value), ("search", "retrain"))
    problems.add("trainable", f"trainable must be search or retrain, got {value!r}.{miss}")
    return "search"


def _relevant(
    given: Mapping[str, Any], problems: Problems, *, searching: bool
) -> Mapping[str, Any]:
    """Return the sections without those of the other kind of study; report these, and lacks."""
    if not searching:
        training_section.refuse_searching(given, problems)
        given = {key: item for key, item in given.items() if key not in OF_SEARCHES}
    elif given.get("genotype") is not None:
        problems.add(
            "genotype",
            "genotype has no meaning in a study of searches, which find theirs. To train it, write "
            "trainable: retrain; or nas retrain GENOTYPE --like FILE.",
        )
    needed = ("space", "dataset", "method" if searching else "genotype")
    for key in needed:
        if key not in given:
            every = "Every experiment" if searching else "An experiment with trainable: retrain"
            listed = " and ".join(", ".join(needed).rsplit(", ", 1))
            problems.add(key, f"{key} is missing. {every} needs {listed}.")
    return given


def has_sampled(node: Any) -> bool:
    """Return whether a part of an experiment holds a sweep word that is drawn, so not `grid`."""
    word = sweep_word(node)
    if word == "grid":
        return any(has_sampled(item) for item in node[word])
    if word is not None:
        return True
    return isinstance(node, Mapping) and any(has_sampled(value) for value in node.values())


def check_seeds(value: Any, where: str, problems: Problems) -> tuple[int, ...]:
    """Return distinct whole numbers >= 0; what is wrong is reported and replaced by (0,)."""
    if not isinstance(value, list) or not value:
        hint = ""
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 10:
            hint = f" Write {list(range(value))}."
        problems.add(where, f"{where} must be a list of at least one number, got {value!r}.{hint}")
        return (0,)
    for index, seed in enumerate(value):
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            problems.add(where, f"{where}[{index}] must be a whole number >= 0, got {seed!r}.")
            return (0,)
    if len(set(value)) < len(value):
        repeated = next(seed for seed, count in Counter(value).items() if count > 1)
        problems.add(where, f"{where} must be distinct, got {repeated} twice in {value!r}.")
        return (0,)
    return tuple(value)


def check_name(name: Any) -> str | None:
    """Return what is wrong with a study name, or None."""
    if not isinstance(name, str):
        hint = (
            "" if name is None or isinstance(name, dict | list) else " Put it in quotation marks."
        )
        return f"name must be text, got {name!r}.{hint}"
    if not NAME.fullmatch(name):
        return (
            "name must be 1 to 100 letters, digits, dots, dashes or underscores and begin with a "
            f"letter or digit, since it names a folder of studies, got {name!r}."
        )
    return None


def _is_plugin(key: str) -> bool:
    return key in ("space", "dataset", "method", "selection")


def _where_it_belongs(key: str) -> str:
    miss = near_miss(key, _SECTIONS)
    if miss:
        return miss
    places = {
        "search": field_names(SearchSettings),
        "tune": tuple(Tune.model_fields),
        "retrain": field_names(RetrainSettings),
        "limits": tuple(Limits.model_fields),
    }
    for section, names in places.items():
        if key in names:
            return f" Did you mean '{section}.{key}'?"
    return f" An experiment has {', '.join(_SECTIONS)}."


def _name(given: Mapping[str, Any], name: str | None, problems: Problems) -> str:
    if name is None and "name" not in given:
        problems.add("name", "name is missing. It names the study and its folder.")
        return "unnamed"
    value = name if name is not None else given["name"]
    message = check_name(value)
    if message is not None:
        problems.add("name", message)
        return "unnamed"
    return str(value)


def _search(value: Any, problems: Problems) -> dict[str, Any]:
    specs = specs_of(SearchSettings)
    given = check_mapping(value, "search", problems)
    if given is not None and any(key in SWEEP_WORDS for key in given):
        problems.add("search", f"search must be settings, got {[*given]!r}. Sweep each setting.")
        given = None
    before = len(problems.found)
    tree = check_fields(specs, given or {}, "search", "search", problems, words=SWEEP_WORDS)
    for name, instead in (
        ("engine", " `nas bench step` compares their speed."),
        ("checkpointing", ""),
    ):
        if sweep_word(tree.get(name)) is not None:
            problems.add(
                f"search.{name}",
                f"search.{name} must be one of them, got a sweep: it changes no result, so that "
                f"all its values would be the same rows.{instead}",
            )
    if sweep_word(tree.get("precision")) is not None and "auto" in candidates(tree["precision"]):
        problems.add(
            "search.precision",
            f"search.precision must not be swept over auto, which is {resolved('auto')}: name it.",
        )
    if len(problems.found) == before:
        check_construction(SearchSettings, tree, specs, "search", problems)
    return tree


def _dataset(
    given: Mapping[str, Any], problems: Problems, folders: Folders | None
) -> dict[str, Any] | None:
    if "dataset" not in given:
        return None
    dataset = check_plugin("datasets", given["dataset"], "dataset", problems)
    if dataset is None or folders is None:
        return dataset
    return absolute_paths(dataset, folders, problems)


def _retrain(
    value: Any, search: Mapping[str, Any], problems: Problems, written: Any
) -> Retrain | None:
    """Return the section `retrain`; `written` is what the file says of it, without a protocol."""
    if value is None or value == "none":
        return None
    given = check_mapping(value, "retrain", problems)
    if given is None:
        return None
    before = len(problems.found)
    plan_specs = {key: spec for key, spec in specs_of(Retrain).items() if key != "settings"}
    settings_specs = specs_of(RetrainSettings)
    # Seeds have messages of their own.
    seeds = check_seeds(given.get("seeds", [0]), "retrain.seeds", problems)
    rest = {key: item for key, item in given.items() if key != "seeds"}
    if given.get("consistent") is True:
        _check_consistent(rest, search, problems)
        rest.setdefault("epochs", min(candidates(search["epochs"])))
    tree = check_fields(settings_specs | plan_specs, rest, "retrain", "retrain", problems)
    settings = {key: tree[key] for key in settings_specs}
    if len(problems.found) == before:
        check_construction(RetrainSettings, settings, settings_specs, "retrain", problems)
    check_lowest(tree, "retrain", problems, top_k=1)
    if tree["budget_hours"] is not None and tree["budget_hours"] <= 0:
        problems.add(
            "retrain.budget_hours",
            f"retrain.budget_hours must be > 0, got {tree['budget_hours']!r}.",
        )
    keep = _keep(tree["keep"], problems, "retrain.keep", "retraining")
    if len(problems.found) > before:
        set_by_protocol(given, written, problems, before)
        return None
    return Retrain(
        settings=RetrainSettings(**settings),
        top_k=tree["top_k"],
        by=tree["by"],
        per=tree["per"],
        seeds=seeds,
        consistent=tree["consistent"],
        protocol=tree["protocol"],
        budget_hours=tree["budget_hours"],
        keep=keep,
    )


def _diagnostics(value: Any, problems: Problems) -> dict[str, dict[str, Any]]:
    given = check_mapping(value, "diagnostics", problems) or {}
    found: dict[str, dict[str, Any]] = {}
    for name, settings in given.items():
        at = f"diagnostics.{name}"
        if name not in DIAGNOSTICS:
            has = near_miss(str(name), DIAGNOSTICS) or f" There is {', '.join(DIAGNOSTICS)}."
            problems.add(at, f"{at} is no diagnostic.{has}")
            continue
        kind = DIAGNOSTICS[name]
        if settings is None:
            problems.add(at, f"{at} must be a mapping of settings, got None; {{}} has defaults.")
            continue
        rest = check_mapping(settings, at, problems)
        if rest is None:
            continue
        before = len(problems.found)
        specs = specs_of(kind)
        found[name] = check_fields(specs, rest, at, name, problems)
        if len(problems.found) == before:
            check_construction(kind, found[name], specs, at, problems)
    return found


def _simulation(value: Any, problems: Problems) -> Simulation | None:
    given = check_mapping(value, "simulation", problems)
    if value is None or given is None:
        return None
    return check_record(Simulation, given, "simulation", problems)


def _check_consistent(
    given: Mapping[str, Any], search: Mapping[str, Any], problems: Problems
) -> None:
    for key in given:
        if key in field_names(RetrainSettings) and key not in own_of_consistent():
            problems.add(
                f"retrain.{key}",
                f"retrain.{key} cannot be given with retrain.consistent, which takes it from the "
                "search. Leave out one of them.",
            )
    if "epochs" not in given and len(candidates(search["epochs"])) > 1:
        problems.add(
            "retrain.epochs",
            "retrain.epochs must be given with retrain.consistent where search.epochs is swept.",
        )


def _ray(value: Any, problems: Problems) -> RaySettings:
    settings = check_record(
        RaySettings, check_mapping(value, "ray", problems) or {}, "ray", problems
    )
    address = settings.address
    match = _ADDRESS.fullmatch(address)
    if address not in ("local", "auto") and not (match and 0 < int(match[2]) < 65536):
        hint = " Ray Client is not supported; leave out ray://." if "://" in address else ""
        must = "local, auto or host:port of the cluster's head"
        problems.add("ray.address", f"ray.address must be {must}, got {address!r}.{hint}")
    check_lowest(settings.model_dump(), "ray", problems, cpus=1)
    if settings.cpus is not None and address != "local":
        problems.add(
            "ray.cpus", f"ray.cpus has no effect with address {address!r}: a cluster has its own."
        )
    return settings


def _mlflow(value: Any, problems: Problems) -> MlflowSettings:
    given = check_mapping(value, "mlflow", problems) or {}
    settings = check_record(MlflowSettings, given, "mlflow", problems)
    uri = settings.tracking_uri
    scheme = urlsplit(uri or "").scheme.split("+")[0]
    if uri is not None and (scheme not in _URI_SCHEMES or "://" not in uri):
        problems.add(
            "mlflow.tracking_uri",
            "mlflow.tracking_uri must be a server (http://host:port) or a database "
            f"(sqlite:////folder/mlflow.db), got {without_password(uri)!r}.",
        )
    elif uri is not None and without_password(uri) != uri:
        problems.add(
            "mlflow.tracking_uri",
            "mlflow.tracking_uri must hold no user, password or query, which the study folder and "
            f"MLflow would show; write {without_password(uri)}. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the whole URI as MLFLOW_TRACKING_URI.",
        )
    return settings


def _question(value: Any, problems: Problems) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= _QUESTION_LENGTH):
        return value.strip() or None if value else None
    problems.add("question", f"question must be text of at most {_QUESTION_LENGTH} characters.")
    return None


def _keep(value: Any, problems: Problems, at: str = "keep", what: str = "search") -> str:
    if isinstance(value, str) and re.fullmatch(r"all|none|best_[1-9]\d{0,5}", value):
        return value
    hint = f" Write none for no {what}." if value is False or value is None else ""
    problems.add(at, f"{at} must be all, none or best_K (as best_3), got {value!r}.{hint}")
    return "all"


def _max_hours(value: Any, problems: Problems) -> float | None:
    try:
        hours: float | None = checked(value, float | None, "max_hours")
    except PluginSettingsError as error:
        problems.add("max_hours", str(error))
        return None
    if hours is not None and hours <= 0:
        problems.add("max_hours", f"max_hours must be > 0, got {hours!r}.")
        return None
    return hours
