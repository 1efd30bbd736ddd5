"""Plug-in look-up: name -> module, by file name, with an error that helps.

A plug-in is one Python file in the folder of its kind. It is looked for in the package, then in the
entry points `nas_orchestrator.<kind>`, then in the folders of NAS_PLUGINS (`DIR/<kind>/<file>.py`).
Nothing registers itself: a Ray worker is a fresh process in which no decorator has run.

Names, summaries and settings are read from the source as syntax, so that a wrong experiment file is
refused in well under a second, without importing torch. This is why a plug-in's `Config` uses the
standard library alone.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from spaces.core.errors import PluginSettingsError, UnknownPluginError, near_miss

PACKAGES: Mapping[str, str] = {
    "spaces": "spaces",
    "methods": "trainables.methods",
    "alpha_gradients": "trainables.alpha_gradients",
    "selections": "trainables.selection",
    "early_stops": "trainables.early_stopping",
    "datasets": "trainables.datasets",
    "operations": "spaces.operations",
    "oracles": "spaces.oracles",
    "protocols": "trainables.protocols",
}
ENVIRONMENT_VARIABLE = "NAS_PLUGINS"
_SINGULAR = {
    "spaces": "space",
    "methods": "method",
    "alpha_gradients": "alpha_gradient",
    "selections": "selection",
    "early_stops": "early_stop",
    "datasets": "dataset",
    "operations": "operation",
    "oracles": "oracle",
    "protocols": "protocol",
}
_WITHOUT_SETTINGS = frozenset({"operations"})  # a file of these kinds needs no Config
_CONSTANTS = frozenset({"EXPORTS", "SOURCE", "RESULTS_VERSION", "PROVIDES", "SPACES"})
_ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part of a method that can come from another plug-in: the type of such a setting.

    Attributes:
        kind: Kind of the plug-in that fills it.
        provides: What that plug-in must have in its PROVIDES; None asks for nothing.
    """

    kind: str
    provides: str | None = None

    @property
    def __name__(self) -> str:
        """How messages call the type."""
        return "a name or a mapping with a name"

    def choices(self) -> tuple[str, ...]:
        """Return the names of the plug-ins that can fill it."""
        return tuple(
            name
            for name in available(self.kind)
            if self.provides in (None, *describe(self.kind, name).provides)
        )


@dataclasses.dataclass(frozen=True)
class _NoSettings:
    """The settings of a plug-in of a kind that has none."""


@dataclasses.dataclass(frozen=True)
class _OfEveryMethod:
    """What every method can be given besides its own settings; None is what the method has itself.

    A part that the method itself provides cannot be given.

    Attributes:
        alpha_gradient: How the alpha gradient is computed.
        perturb: A method whose perturbation the weight step sees.
        select: The rule that turns the supernet into a genotype after the last epoch, in the place
            of the experiment's `selection`.
        early_stop: The rule that may end the search before its last epoch.
        alpha_start: Epochs in which the weights are trained and the alphas rest; published for
            other numbers of epochs, it is by default the same share of them, at least 1.
        genotype_of: "last_epoch", or "best_epoch" by validation accuracy.
        fixed_alphas: True leaves all alphas at 0: the supernet is trained at equal op weights, for
            a `select` that looks at the trained supernet.
    """

    alpha_gradient: Any = None
    perturb: Any = None
    select: Any = None
    early_stop: Any = None
    alpha_start: int | None = None
    genotype_of: typing.Literal["last_epoch", "best_epoch"] | None = None
    fixed_alphas: bool | None = None


SLOTS: Mapping[str, Slot] = {
    "alpha_gradient": Slot("alpha_gradients"),
    "perturb": Slot("methods", "perturb"),
    "select": Slot("selections"),
    "early_stop": Slot("early_stops"),
}


@dataclasses.dataclass(frozen=True)
class PluginInfo:
    """What is known of a plug-in without importing it.

    Attributes:
        name: Its name in an experiment file.
        kind: One of `PACKAGES`.
        summary: First line of the module's docstring.
        source: Paper or code that it follows.
        results_version: Raised by hand whenever results change; part of a row's key.
        path: Its source file.
        module: Name under which it is imported.
        config: Frozen dataclass of its settings; of a method, with those of every method.
        own: Frozen dataclass of its own settings alone.
        provides: Parts in `SLOTS` that it has itself and can lend to other methods.
        spaces: Of an oracle, the spaces whose genotypes it knows; `*` stands for any ending.
    """

    name: str
    kind: str
    summary: str
    source: str
    results_version: int
    path: Path
    module: str
    config: type[Any]
    own: type[Any]
    provides: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()


def plugin_folders() -> tuple[Path, ...]:
    """Return the user's plug-in folders, from NAS_PLUGINS (separated as in PATH)."""
    text = os.environ.get(ENVIRONMENT_VARIABLE, "")
    return tuple(Path(part).expanduser().resolve() for part in text.split(os.pathsep) if part)


def folders_digest(folders: tuple[Path, ...]) -> str | None:
    """Return a content digest of the Python files below `folders`, or None if there is none.

    Returns:
        16 hexadecimal characters, independent of where the folders are.
    """
    if not folders:
        return None
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def available(kind: str) -> tuple[str, ...]:
    """Return the names of all plug-ins of a kind, sorted."""
    return tuple(sorted(_found(kind)))


def describe(kind: str, name: str) -> PluginInfo:
    """Return what the source file of a plug-in says of it, without importing it.

    Raises:
        UnknownPluginError: `kind` has no plug-in of that name.
    """
    found = _found(kind)
    if name not in found:
        folder = _folder(kind).relative_to(_ROOT) if _folder(kind).is_relative_to(_ROOT) else kind
        raise UnknownPluginError(
            f"{kind} has no plug-in {name!r}; it has {', '.join(sorted(found))}."
            f"{near_miss(name, found)} To add one, create {folder}/{name}.py."
        )
    return found[name]


def load(kind: str, name: str) -> types.ModuleType:
    """Import the module of a plug-in.

    Raises:
        UnknownPluginError: `kind` has no plug-in of that name, or a user's file cannot be imported.
    """
    info = describe(kind, name)
    known = sys.modules.get(info.module)
    # A user's plug-in of that name may have been another folder's when it was imported.
    if known is not None and _is_from(known, info):
        return known
    if not info.module.startswith("nas_plugins."):
        return importlib.import_module(info.module)
    spec = importlib.util.spec_from_file_location(info.module, info.path)
    if spec is None or spec.loader is None:
        raise UnknownPluginError(f"{info.path} cannot be imported as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[info.module] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        # A user's file may raise anything; half a module must not be found the next time.
        del sys.modules[info.module]
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise UnknownPluginError(
            f"{info.path} cannot be imported: {type(error).__name__}: {error} "
            f"({Path(line.filename).name}, line {line.lineno})."
        ) from error
    return module


def _is_from(module: types.ModuleType, info: PluginInfo) -> bool:
    users = info.module.startswith("nas_plugins.")
    return not users or Path(str(module.__file__)) == info.path


def make_config(
    kind: str, settings: str | Mapping[str, Any], *, where: str | None = None, own: bool = False
) -> tuple[str, Any]:
    """Return a plug-in's name and its checked settings.

    Args:
        kind: One of `PACKAGES`.
        settings: A name, or a mapping with `name` and any of the plug-in's settings.
        where: Key of the experiment file, for messages; None is that of the kind.
        own: Whether to take only its own settings, without those of every method.

    Raises:
        UnknownPluginError: No such plug-in.
        PluginSettingsError: A key or a value that its `Config` does not accept.
    """
    what = where or _SINGULAR[kind]
    if isinstance(settings, str):
        settings = {"name": settings}
    if "name" not in settings:
        raise PluginSettingsError(f"{what}.name is missing, got keys {sorted(settings)}.")
    name = settings["name"]
    if not isinstance(name, str):
        raise PluginSettingsError(f"{what}.name must be text, got {name!r}.")
    given = {key: value for key, value in settings.items() if key != "name"}
    info = describe(kind, name)
    return name, typed_config(info.own if own else info.config, given, where=what, owner=name)


def settings_of(name: str, config: Any) -> dict[str, Any]:
    """Return the whole mapping that `make_config` would read: the name and every setting.

    What every method can be given and is not stays out, so that a new part of that sort changes
    the identity of nothing. So does, at its default, a setting that a plug-in got after rows had
    been written: a field with the metadata `{"later": True}`.
    """
    later = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.metadata.get("later")
    }
    settings = {
        key: value
        for key, value in dataclasses.asdict(config).items()
        if (value is not None or not is_of_every_method(key))
        and (key not in later or value != later[key])
    }
    return {"name": name, **json.loads(json.dumps(settings))}


def is_of_every_method(key: str) -> bool:
    """Return whether a setting is one that every method can be given."""
    return key in _OfEveryMethod.__dataclass_fields__


def typed_config(config: type[Any], given: Mapping[str, Any], *, where: str, owner: str) -> Any:
    """Build a settings dataclass, checking keys and types first.

    Args:
        config: Dataclass with resolvable annotations.
        given: Values by field name.
        where: Key of the experiment file under which they stand, for messages.
        owner: Who has these settings, for messages.

    Raises:
        PluginSettingsError: Unknown or missing key, wrong type, or a value that it refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints = _hints(config)  # type: ignore[arg-type]  # mypy takes a class for unhashable
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            raise PluginSettingsError(f"{where}.{not_a_setting(key, fields, owner)}")
        values[key] = coerce(value, hints[key], f"{where}.{key}")
    for key, field in fields.items():
        no_default = field.default is dataclasses.MISSING
        if no_default and field.default_factory is dataclasses.MISSING and key not in values:
            raise PluginSettingsError(
                f"{where}.{key} must be given: {owner} has no default for it."
            )
    try:
        return config(**values)
    except (ValueError, TypeError) as error:
        raise PluginSettingsError(f"{where}.{error}") from error


def not_a_setting(key: Any, settings: Iterable[str], owner: str) -> str:
    """Say that there is no setting `key`, and which there are or what was meant."""
    names = list(settings)
    if key in SLOTS and set(names) & SLOTS.keys():
        # A method takes parts, and this one it provides itself.
        return (
            f"{key} cannot be given: {owner} has its own. Give both parts to a method that has "
            "neither, such as darts."
        )
    if is_of_every_method(str(key)):
        return f"{key} cannot be given here: it is a setting of the method as a whole."
    has = f" {owner} has {', '.join(names)}." if names else f" {owner} has no settings."
    return f"{key} is not a setting.{near_miss(str(key), names) or has}"


def check_filling(slot: Slot, name: str, where: str) -> None:
    """Refuse a plug-in that cannot fill a slot.

    Raises:
        PluginSettingsError: It does not provide what the slot is for.
    """
    if slot.provides is not None and slot.provides not in describe(slot.kind, name).provides:
        raise PluginSettingsError(
            f"{where} must be one of {', '.join(slot.choices())}, got {name!r}, which has nothing "
            f"to {slot.provides}."
        )


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type of `hint`, or raise with what must hold and what was got.

    An integer is accepted where a float is asked for; text never is.
    """
    if isinstance(hint, Slot):
        if value is None:
            return None
        if not isinstance(value, str | Mapping):
            raise PluginSettingsError(f"{where} must be {hint.__name__}, got {value!r}.")
        name, config = make_config(hint.kind, value, where=where, own=True)
        check_filling(hint, name, where)
        return settings_of(name, config)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        chosen = _alternative(value, arguments)
        if chosen is None:
            expected = " or ".join(_expected(argument) for argument in arguments)
            raise PluginSettingsError(f"{where} must be {expected}, got {value!r}.")
        return coerce(value, chosen, where)
    if origin is typing.Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        choices = ", ".join(str(argument) for argument in arguments)
        miss = near_miss(str(value), [str(argument) for argument in arguments])
        raise PluginSettingsError(f"{where} must be one of {choices}, got {value!r}.{miss}")
    if hint is Any:
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise PluginSettingsError(f"{where} must be a mapping, got {value!r}.")
        return {key: coerce(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise PluginSettingsError(f"{where} must be a list, got {value!r}.")
        inner = arguments[0]
        return tuple(coerce(item, inner, f"{where}[{index}]") for index, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise PluginSettingsError(f"{where} must be {expected}, got {value!r}.{number_hint(value)}")


def _alternative(value: Any, hints: Sequence[Any]) -> Any:
    """Return the one of several types that a value is to be read as; None where it is none."""
    rest = [hint for hint in hints if hint is not type(None)]
    if len(rest) == 1:
        return rest[0]
    words = [hint for hint in rest if typing.get_origin(hint) is typing.Literal]
    if isinstance(value, str) and words:
        return next((hint for hint in words if value in typing.get_args(hint)), None)
    lists = [hint for hint in rest if typing.get_origin(hint) is tuple]
    if lists and isinstance(value, list | tuple):
        return lists[0]
    others = [hint for hint in rest if hint not in [*words, *lists]]
    fitting = [hint for hint in others if isinstance(value, hint) and not isinstance(value, bool)]
    return fitting[0] if fitting else None


def _expected(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(str(word) for word in typing.get_args(hint))
    return "a list" if typing.get_origin(hint) is tuple else str(getattr(hint, "__name__", hint))


def takes_mapping(hint: Any) -> bool:
    """Say whether a value of a type is a mapping, or can be one."""
    return dict in (typing.get_origin(hint), *map(typing.get_origin, typing.get_args(hint)))


def number_hint(value: Any) -> str:
    """Explain YAML's reading of `1e-4` as text, where that is what happened."""
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if "e" in value.lower() and "." not in value:
        mantissa, exponent = value.lower().split("e")
        sign = "" if exponent.startswith(("-", "+")) else "+"
        return f" YAML reads {value} as text; write {mantissa}.0e{sign}{exponent}."
    return f" Write {number:g} without quotation marks."


def _folder(kind: str) -> Path:
    if kind not in PACKAGES:
        raise UnknownPluginError(
            f"There is no kind {kind!r} of plug-in; there is {list(PACKAGES)}."
        )
    return _ROOT.joinpath(*PACKAGES[kind].split("."))


@lru_cache(maxsize=256)
def _hints(config: type[Any]) -> dict[str, Any]:
    """Return the types of a record's settings, which Python evaluates anew each time."""
    return typing.get_type_hints(config)


def _found(kind: str) -> dict[str, PluginInfo]:
    found: dict[str, PluginInfo] = {}
    for module, path in _files(kind):
        for info in _read(kind, module, path, path.stat().st_mtime_ns):
            found.setdefault(info.name, info)
    return found


def _files(kind: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(_folder(kind).glob("*.py")):
        if not path.name.startswith("_"):
            yield f"{PACKAGES[kind]}.{path.stem}", path
    yield from _installed(kind)
    for folder in plugin_folders():
        for path in sorted((folder / kind).glob("*.py")):
            if not path.name.startswith("_"):
                yield f"nas_plugins.{kind}.{path.stem}", path


@lru_cache(maxsize=16)
def _installed(kind: str) -> tuple[tuple[str, Path], ...]:
    """Return modules and files of entry points; to look at all packages is slow, so only once."""
    found = []
    for entry in entry_points(group=f"nas_orchestrator.{kind}"):
        spec = importlib.util.find_spec(entry.value)
        if spec is not None and spec.origin is not None:
            found.append((entry.value, Path(spec.origin)))
    return tuple(found)


@lru_cache(maxsize=256)
def _read(kind: str, module: str, path: Path, _mtime_ns: int) -> tuple[PluginInfo, ...]:
    """Read a plug-in file as syntax; `_mtime_ns` is there to make the cache notice an edit."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UnknownPluginError(f"{path} is no readable Python file: {error}") from error
    constants = _constants(tree)
    summary = (ast.get_docstring(tree) or path.stem).splitlines()[0]
    exports = constants.get("EXPORTS", (path.stem,))
    # Several names may have a summary each: {"name": "what it is"}.
    summaries = exports if isinstance(exports, Mapping) else dict.fromkeys(exports, summary)
    own = _config_class(tree, path)
    if own is None and kind in _WITHOUT_SETTINGS:
        own = _NoSettings
    if own is None:
        return ()
    provides = tuple(constants.get("PROVIDES", ()))
    config = _with_parts(own, provides) if kind == "methods" else own
    return tuple(
        PluginInfo(
            name=name,
            kind=kind,
            summary=own_summary,
            source=str(constants.get("SOURCE", "")),
            results_version=int(constants.get("RESULTS_VERSION", 1)),
            path=path,
            module=module,
            config=config,
            own=own,
            provides=provides,
            spaces=tuple(constants.get("SPACES", ())),
        )
        for name, own_summary in summaries.items()
    )


def _with_parts(own: type[Any], provides: tuple[str, ...]) -> type[Any]:
    """Return a method's settings with those that every method can be given."""
    hints = typing.get_type_hints(_OfEveryMethod)
    fields: list[tuple[str, Any, Any]] = [
        (field.name, SLOTS.get(field.name, hints[field.name]), dataclasses.field(default=None))
        for field in dataclasses.fields(_OfEveryMethod)
        if field.name not in provides
    ]

    def check(self: Any) -> None:
        if hasattr(own, "__post_init__"):
            own.__post_init__(self)
        if self.alpha_start is not None and self.alpha_start < 0:
            raise ValueError(f"alpha_start must be >= 0, got {self.alpha_start!r}.")

    namespace = {"__doc__": _OfEveryMethod.__doc__, "__post_init__": check}
    return dataclasses.make_dataclass(
        own.__name__, fields, bases=(own,), namespace=namespace, frozen=True
    )


def _constants(tree: ast.Module) -> dict[str, Any]:
    constants: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in _CONSTANTS:
                constants[target.id] = ast.literal_eval(node.value)
    return constants


def _config_class(tree: ast.Module, path: Path) -> type[Any] | None:
    """Execute the class `Config` of a module alone, with its standard-library imports."""
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            keep = node.module.split(".")[0] in sys.stdlib_module_names
        elif isinstance(node, ast.Import):
            keep = all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)
        else:
            keep = isinstance(node, ast.ClassDef) and node.name == "Config"
        if keep:
            body.append(node)
    if not any(isinstance(node, ast.ClassDef) for node in body):
        return None
    # dataclasses and get_type_hints look the class's module up in sys.modules.
    holder = types.ModuleType(f"_nas_config_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}")
    sys.modules[holder.__name__] = holder
    code = compile(ast.Module(body=body, type_ignores=[]), str(path), "exec")
    exec(code, holder.__dict__)
    config = holder.__dict__["Config"]
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise UnknownPluginError(f"{path}: Config must be a frozen dataclass.")
    return config
