"""Experiment files: made of the settings that there are, then broken, and pure noise."""

from __future__ import annotations

import json
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from hypothesis import strategies as st

from benchmarks.fuzzing.damage import VALUES, paths_of, replaced
from benchmarks.fuzzing.outcomes import Finding, Outcome, nas, tried
from orchestrator import config, factors, planning, training
from orchestrator.experiment import Asha, Experiment, Median
from orchestrator.settings_tree import REQUIRED, Spec, specs_of
from spaces.core import named, plugins
from trainables.settings import CHANGEABLE, DIAGNOSTICS, RetrainSettings, SearchSettings

_BARE = re.compile(r"'[^']*'\.?|\w+(Error|Exception)\b.*")  # of an error of Python
_MOST_UNITS = 300  # whose keys are compared
_MOST_ROWS = 10_000_000  # of which a plan could still be held in memory
_IDENTITY = planning.Identity({"name": "digits", "digest": "0" * 16}, None, None, {"cpu": 1.0})
_SECTIONS = (*Experiment.model_fields, "retrain")
_TREES = ("spaces", "methods", "datasets", "selections")

# What breaks a text rather than a value.
_TEXTS = (
    *("\t", "\ufeff", "\x00", "\u2028", "---\n", "...\n", "%YAML 9.9\n", "<<: {a: 1}\n", "? \n"),
    *("!!python/object/apply:os.system ['true']\n", "!!binary aGk=\n", "!!set {a}\n", "!x y\n"),
    *(
        "a: &a [x]\nb: *a\n",
        "a: !!python/name:os.system\n",
        "name: other\n",
        "search: {epochs: 1}\n",
    ),
    *("[" * 200, "{a: " * 200, "- " * 200, "'", '"', "|", ">", "&", "*", "`", "@", "é: ü\n", "💥"),
    *(
        "seeds: [" + "1, " * 5000,
        "9" * 5000,
        "name: " + "a" * 5000,
        "2026-02-31\n",
        ": :\n",
        "{}\n",
    ),
    '"\\ud800": "\\ud800"\n',
    '"\\e[2J": 1\n',
)
_BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_NAMES = (
    "../up",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "con",
    "naïve",
    "a" * 101,
    "-x",
    "a\nb",
    "mlflow.db",
)
_WHOLE: tuple[bytes, ...] = (
    *(
        b"",
        b"\n",
        b"#",
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf",
        "name: x".encode("utf-16"),
        b"null",
        b"[]",
    ),
    *(b"{}", b"\x80", b"\x89PNG\r\n\x1a\n", _BOMB.encode(), b"[" * 9000, b"a: " * 9000),
    *(b"- " * 9000, b"{" * 9000, b"? " * 9000, b"\t", b"!!python/object:os.x {}", b"&a *a"),
)


@dataclass(frozen=True)
class File:
    """An experiment file.

    Attributes:
        sort: "whole" was made to be good, "broken" of such a one, "noise" of nothing.
        data: What it holds.
    """

    sort: Literal["whole", "broken", "noise"]
    data: bytes


class Experiments:
    """What `nas validate` does with a file, and what a study keeps of a good one.

    Args:
        folder: An empty folder.
    """

    name = "experiment"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "a.yaml"
        self._kept = folder / "experiment.yaml"

    def inputs(self) -> st.SearchStrategy[File]:
        """Return whole files, broken ones and noise."""
        return files()

    def check(self, item: File) -> Outcome:
        """Validate the file, and read back what a study would keep of it."""
        self._file.write_bytes(item.data)
        said = nas(["validate", "--no-data", str(self._file)])
        if said.code == 2:
            _check_names_place(said.err, str(self._file))
            return "refused"
        if said.code:
            raise Finding("unclear", f"exit code {said.code}: {said.everything!r:.300}")
        experiment, _ = tried(lambda: config.load_experiment(self._file))
        if experiment is None:
            raise Finding("unclear", "validated, and then refused")
        tried(lambda: config.dump(experiment, self._kept))
        again, message = tried(lambda: config.load_resolved(self._kept))
        if again != experiment:
            raise Finding("loss", f"what a study keeps is another experiment: {message:.300}")
        keys, message = tried(lambda: (_keys(experiment), _keys(again)))
        if keys is None:
            raise Finding("unclear", f"validated, and cannot be planned: {message:.300}")
        if keys[0] != keys[1]:
            raise Finding("loss", "what a study keeps has other keys")
        return "accepted"


def _check_names_place(message: str, file: str) -> None:
    """Refuse a message whose lines do not say where in the file something is wrong."""
    lines = message.splitlines()
    for line in lines:
        if not line.startswith(file):
            raise Finding("unclear", f"a line that does not name the file: {line!r:.300}")
        said = line.removeprefix(file).removeprefix(": ")
        if not said or _BARE.fullmatch(said):
            raise Finding("unclear", f"a line that names no key: {line!r:.300}")


def _keys(experiment: Experiment) -> list[str]:
    """Return the keys of the rows that are planned; none where that is not known or many."""
    rows = factors.count(experiment, factors.blocks(experiment)) * len(experiment.seeds)
    if rows > _MOST_ROWS:
        raise Finding("slow", f"a plan of {rows} rows was taken")
    if rows > _MOST_UNITS:
        return []
    if experiment.tune.searcher.name == "optuna" or experiment.tune.pbt is not None:
        return []
    configurations = planning.known_configurations(experiment)
    make = planning.search_units if experiment.training is None else training.training_units
    units = make(experiment, configurations, _IDENTITY, factors.label(configurations))
    return sorted(key for unit in units for key in unit.rows.values())


# -- whole files ------------------------------------------------------------------------------


def files() -> st.SearchStrategy[File]:
    """Return the strategy of files of all sorts."""
    return st.one_of(
        documents().map(lambda form: File("whole", text_of(form).encode())),
        broken_trees(),
        broken_texts(),
        noise(),
    )


def text_of(form: Any) -> str:
    """Return a document as YAML; what is no YAML at all as JSON."""
    try:
        return yaml.safe_dump(form, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(form)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an experiment of the real settings, most of them good."""
    searching = draw(st.integers(0, 3)) > 0
    form: dict[str, Any] = {"name": draw(st.sampled_from(["study", "a-1", "A.b_2"]))}
    form["space"] = draw(_seldom("nasbench201", plugin("spaces", sweeps=searching)))
    form["dataset"] = draw(_seldom("digits", plugin("datasets", sweeps=False)))
    form["seeds"] = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True))
    if searching:
        form["method"] = draw(methods())
        form["search"] = draw(settings(specs_of(SearchSettings), sweeps=True))
        form |= draw(some({"selection": plugin("selections", sweeps=False), **_OF_SEARCHES}))
    else:
        form["trainable"] = "retrain"
        form["genotype"] = draw(genotypes())
        form["space"] = named.named(form["genotype"]).space
        form["retrain"] = draw(settings(specs_of(RetrainSettings), sweeps=True))
    form |= draw(some(_REST))
    form["tune"] = draw(tunes(form, searching=searching))
    return form


def _seldom(usual: str, other: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), other)


def genotypes() -> st.SearchStrategy[str]:
    """Return the strategy of names of published genotypes."""
    return st.sampled_from([*named.names()])


@st.composite
def some(draw: st.DrawFn, sections: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """Draw some of these sections, seldom many."""
    names = draw(st.lists(st.sampled_from([*sections]), max_size=2, unique=True))
    return {name: draw(sections[name]) for name in names}


@st.composite
def plugin(draw: st.DrawFn, kind: str, *, sweeps: bool) -> Any:
    """Draw a plug-in of a kind with some of its settings."""
    name = draw(st.sampled_from(plugins.available(kind)))
    if draw(st.booleans()):
        return name
    config = plugins.describe(kind, name).config
    return {"name": name, **draw(settings(specs_of(config), sweeps=sweeps))}


@st.composite
def methods(draw: st.DrawFn) -> Any:
    """Draw a method, or a grid or choice of some."""
    one = plugin("methods", sweeps=True)
    word = draw(st.sampled_from(["", "", "grid", "choice"]))
    return {word: draw(st.lists(one, min_size=1, max_size=3))} if word else draw(one)


@st.composite
def settings(draw: st.DrawFn, specs: dict[str, Spec], *, sweeps: bool) -> dict[str, Any]:
    """Draw up to three settings near their defaults, and those that have none; some swept."""
    optional = [key for key, spec in specs.items() if spec.default is not REQUIRED]
    drawn = draw(st.lists(st.sampled_from(optional), max_size=3, unique=True)) if optional else []
    names = [key for key, spec in specs.items() if spec.default is REQUIRED] + drawn
    found: dict[str, Any] = {}
    for name in names:
        near = value_of(specs[name].hint, specs[name].default)
        word = draw(st.sampled_from([None, None, None, "grid", "choice", "range"]))
        if name in ("path", "root", "train", "test"):
            found[name] = "."  # of the file, so that it exists
        elif not sweeps or word is None:
            found[name] = draw(near)
        elif word == "range":
            found[name] = draw(ranges(specs[name]))
        else:
            found[name] = {word: draw(st.lists(near, min_size=1, max_size=3))}
    return found


@st.composite
def ranges(draw: st.DrawFn, spec: Spec) -> Any:
    """Draw a range around a default."""
    middle = spec.default if isinstance(spec.default, int | float) and spec.default else 1
    if spec.hint is int:
        return {"randint": [max(1, middle // 2), 2 * middle + 1]}
    word = draw(st.sampled_from(["uniform", "loguniform"]))
    return {word: [middle / 2, middle * 1.05]}


def value_of(hint: Any, default: Any) -> st.SearchStrategy[Any]:
    """Return values of a setting's type, near its default where it is a number."""
    if isinstance(hint, plugins.Slot):
        return plugin(hint.kind, sweeps=False)
    if get_origin(hint) is typing.Literal:
        return st.sampled_from(get_args(hint))
    if get_args(hint) and get_origin(hint) is not dict:
        inner = [each for each in get_args(hint) if each not in (type(None), Ellipsis)]
        one = st.one_of([value_of(each, default) for each in inner])
        return st.lists(one, max_size=3) if get_origin(hint) is tuple else one
    if hint is bool:
        return st.booleans()
    if hint is int:
        middle = default if isinstance(default, int) else 2
        return st.sampled_from([middle, middle + 1, max(1, middle // 2), 2 * middle])
    if hint is float:
        number = default if isinstance(default, float) and default else 0.1
        return st.sampled_from([number, number / 2, number * 0.9, number * 1.05])
    if get_origin(hint) is dict:
        return st.just({})
    return st.sampled_from(["a", "digits", str(default)])


def _record(record: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return settings(specs_of(record), sweeps=False)


_OF_SEARCHES: dict[str, st.SearchStrategy[Any]] = {
    "diagnostics": st.dictionaries(
        st.sampled_from([*DIAGNOSTICS]), st.just({}), min_size=1, max_size=2
    ),
    "oracle": plugin("oracles", sweeps=False),
    "limits": st.sampled_from(["mobile", {"max_params": 1e6}, {"max_macs": 3e8}, "none"]),
    "retrain": st.one_of(
        settings(specs_of(RetrainSettings), sweeps=False),
        st.builds(
            lambda name, rest: {"protocol": name, **rest},
            st.sampled_from(plugins.available("protocols")),
            st.sampled_from([{}, {"top_k": 2}, {"seeds": [0, 1]}, {"per": "study"}, {"epochs": 2}]),
        ),
        st.sampled_from([{"consistent": True}, {"consistent": True, "epochs": 3}, "none"]),
        st.sampled_from([{"budget_hours": 2.5}, {"keep": "best_1"}, {"by": "val_loss"}]),
    ),
}
_REST: dict[str, st.SearchStrategy[Any]] = {
    "question": st.text(max_size=20) | st.just("Does it?"),
    "keep": st.sampled_from(["all", "none", "best_1"]),
    "max_hours": st.sampled_from([1, 0.5, 1e6]),
    "ray": st.sampled_from([{"address": "local"}, {"cpus": 2}, {"address": "10.0.0.1:6379"}]),
    "mlflow": st.sampled_from([{"models": True}, {"tracking_uri": "sqlite:////tmp/m.db"}]),
    "simulation": st.sampled_from([{}, {"ray": False}, {"response": "middle"}]),
}


@st.composite
def tunes(draw: st.DrawFn, form: dict[str, Any], *, searching: bool) -> dict[str, Any]:
    """Draw the section `tune` that what is drawn elsewhere needs, and some of the rest."""
    text = json.dumps(form)
    drawn = any(f'"{word}"' in text for word in ("choice", "uniform", "loguniform", "randint"))
    found: dict[str, Any] = {}
    way = draw(st.sampled_from(["random", "optuna", "design", "scheduler", "pbt"]))
    if drawn and way != "design":
        found["num_samples"] = draw(st.sampled_from([1, 2, 3]) | st.just(10**12))
    if way in ("random", "optuna") and drawn:
        found["searcher"] = draw(st.sampled_from([way, {"name": way, "seed": 3}]))
    elif way == "design" and drawn:
        found["design"] = draw(_designs())
        found |= {"num_samples": 8} if found["design"]["name"] == "sobol" else {}
    elif way == "scheduler" and drawn:
        record = draw(st.sampled_from([Asha, Median]))
        found["scheduler"] = {
            "grace_epochs": 1,
            **draw(_record(record)),
            "name": record.__name__.lower(),
        }
    elif way == "pbt" and not searching:
        form["retrain"] = {"epochs": 8, draw(st.sampled_from(CHANGEABLE)): {"uniform": [0.01, 0.1]}}
        found = {"scheduler": {"name": "pbt", "population": 4, "every": 2}}
    rest = {
        "per_trial": st.sampled_from([{"cpus": 2}, {"cpus": 0.5}, {"gpus": 0}, {}]),
        "seeds_per_trial": st.sampled_from(["auto", "all", 1]),
        "max_concurrent": st.integers(1, 4),
        "max_failures": st.integers(0, 3),
        "trial_timeout": st.sampled_from([60, 3600.0]),
        "metric": st.sampled_from(["val_accuracy", "val_loss"]),
    }
    return found | draw(some(rest))


def _designs() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(
        [
            {"name": "grid", "levels": 2},
            {"name": "grid", "levels": 10**6},
            {"name": "sobol"},
            {"name": "sobol", "indices": True, "seed": 2},
            {"name": "one_at_a_time", "levels": 3},
        ]
    )


# -- broken ones ------------------------------------------------------------------------------


@st.composite
def broken_trees(draw: st.DrawFn) -> File:
    """Draw a good document, and change values or keys of it."""
    form: Any = draw(documents())
    for _ in range(draw(st.integers(1, 3))):
        paths = [*paths_of(form)]
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        form = draw(_changed(form, path))
    return File("broken", text_of(form).encode("utf-8", "surrogatepass"))


@st.composite
def _changed(draw: st.DrawFn, form: Any, path: tuple[Any, ...]) -> Any:
    """Draw the document with another value, key or name at a path."""
    *above, last = path
    parent = form
    for key in above:
        parent = parent[key]
    how = draw(st.sampled_from(["value", "value", "value", "key", "gone", "name", "many", "long"]))
    if how == "long":
        many = [*range(9_000)]
        return replaced(form, path, draw(st.sampled_from([many, {"grid": many}, "x" * 90_000])))
    if how == "name":
        return {**form, "name": draw(st.sampled_from(_NAMES))}
    if how == "key" and isinstance(parent, dict):
        key = draw(st.sampled_from([f"{last}x", str(last)[1:], "grid", "name", "\x1b[31m", "ü"]))
        new: Any = {**parent, key: parent[last]}
    elif how == "gone" and isinstance(parent, dict):
        new = {key: value for key, value in parent.items() if key != last}
    elif how == "many":
        new = replaced(parent, [last], [parent[last]] * draw(st.sampled_from([2, 50, 2000])))
    else:
        new = replaced(parent, [last], draw(VALUES))
    return replaced(form, above, new)


@st.composite
def broken_texts(draw: st.DrawFn) -> File:
    """Draw a good file, and put in, take out or flip some of its text."""
    data = text_of(draw(documents())).encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["text", "line", "bytes", "flip", "cut", "twice"]))
        if how == "text":
            data = data[:at] + draw(st.sampled_from(_TEXTS)).encode() + data[at:]
        elif how == "line":
            lines = data.splitlines(keepends=True)
            place = at % (len(lines) + 1)
            lines.insert(place, draw(st.sampled_from(_TEXTS)).encode())
            data = b"".join(lines)
        elif how == "bytes":
            data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
        elif how == "flip" and at < len(data):
            flipped = (data[at] ^ (1 << draw(st.integers(0, 7)))).to_bytes()
            data = data[:at] + flipped + data[at + 1 :]
        elif how == "cut":
            data = data[:at]
        else:
            lines = data.splitlines(keepends=True)
            data += b"".join(draw(st.lists(st.sampled_from(lines), max_size=2))) if lines else b""
    return File("broken", data)


def noise() -> st.SearchStrategy[File]:
    """Return texts and bytes of no sense, and the worst that are known."""
    form = st.dictionaries(st.sampled_from(_SECTIONS) | st.text(max_size=5), VALUES, max_size=5)
    return st.one_of(
        st.sampled_from(_WHOLE),
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        form.map(lambda each: text_of(each).encode("utf-8", "surrogatepass")),
    ).map(lambda data: File("noise", data))
