"""Experiment files: YAML -> typed frozen `Experiment`, and back; the only importer of yaml."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.checks import (
    check_data,
    check_hardware,
    check_methods,
    check_oracle,
    check_real,
)
from orchestrator.costs import check_limits
from orchestrator.dataset_paths import Folders
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment, sweep_word
from orchestrator.problems import Problems
from orchestrator.schema import json_schema
from orchestrator.validation import check_experiment
from spaces.core.errors import near_miss

__all__ = [
    "Experiment",
    "check_data",
    "check_document",
    "check_hardware",
    "check_limits",
    "check_methods",
    "check_oracle",
    "check_real",
    "dump",
    "json_schema",
    "load_changed",
    "load_experiment",
    "load_resolved",
    "read_document",
    "read_overrides",
]

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 30
_MAX_NODES = 30_000
_MOST_LINES = 50  # of a message


def load_experiment(
    path: str | Path, overrides: Sequence[str] = (), name: str | None = None
) -> Experiment:
    """Read, check and complete an experiment file.

    Args:
        path: The YAML file.
        overrides: "search.epochs=5" and the like, as the command line's --set gives them.
        name: Name of the study, over the one in the file.

    Raises:
        ConfigError: Everything that is wrong, one line each.
    """
    path = Path(path)
    document = read_document(path)
    problems = Problems()
    for override in overrides:
        _override(document, override, problems)
    folders = Folders(file=path.absolute().parent, current=Path.cwd())
    experiment = check_experiment(document, problems, name=name, folders=folders)
    if experiment is None or problems:
        raise ConfigError(_report(path, overrides, problems))
    return experiment


def load_resolved(path: str | Path) -> Experiment:
    """Read an experiment that `dump` wrote; its dataset need not be there any more.

    Raises:
        ConfigError: It has been changed by hand, and wrongly.
    """
    problems = Problems()
    experiment = check_experiment(read_document(Path(path)), problems, resolved=True)
    if experiment is None or problems:
        raise ConfigError(_report(Path(path), (), problems))
    return experiment


def load_changed(
    path: str | Path, overrides: Sequence[str], changes: Mapping[str, Any] | None = None
) -> Experiment:
    """Read a resolved experiment with other values; a list in the place of a value sweeps it.

    Args:
        path: What `dump` wrote.
        overrides: "search.weight_lr=[0.1, 0.2]" and the like.
        changes: Further settings by their path, as they are.

    Raises:
        ConfigError: Everything that is wrong, one line each.
    """
    document = read_document(Path(path))
    problems = Problems()
    for override in overrides:
        before = copy.deepcopy(document)
        _override(document, override, problems)
        document = _lists_swept(before, document)
    for key, value in (changes or {}).items():
        _set(document, key, value, problems)
    experiment = check_experiment(document, problems, resolved=True)
    if experiment is None or problems:
        raise ConfigError(_report(Path(path), overrides, problems))
    return experiment


def check_document(document: Mapping[str, Any], where: str) -> Experiment:
    """Return the experiment of a mapping that leaves nothing to a default.

    Raises:
        ConfigError: Everything that is wrong, one line each; `where` says of what.
    """
    problems = Problems()
    experiment = check_experiment(document, problems, resolved=True)
    if experiment is None or problems:
        raise ConfigError(_report(Path(where), (), problems))
    return experiment


def _lists_swept(before: Any, after: Any) -> Any:
    """Return a changed document in which new lists, where none were, are values of a sweep."""
    word = sweep_word(before)
    if isinstance(after, list) and not isinstance(before, list) and before is not None:
        return {word if word in ("grid", "choice") else "grid": after}
    if isinstance(after, Mapping) and isinstance(before, Mapping):
        return {key: _lists_swept(before.get(key), value) for key, value in after.items()}
    return after


def dump(experiment: Experiment, path: str | Path) -> None:
    """Write the resolved experiment as an experiment file, whole or not at all."""
    path = Path(path)
    text = yaml.dump(
        experiment.resolved(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class _Loader(yaml.SafeLoader):
    """SafeLoader without what an experiment file must not have: repeated keys, tags, aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        mark = event.start_mark
        if self._depth >= _MAX_DEPTH:  # composing is recursive
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {_MAX_DEPTH} levels deep", problem_mark=mark
            )
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not allowed; write the value out",
                problem_mark=mark,
            )
        self._nodes += 1
        if self._nodes > _MAX_NODES:  # reading takes a tenth of a millisecond for each
            raise yaml.MarkedYAMLError(
                problem=f"it holds more than {_MAX_NODES} keys and values", problem_mark=mark
            )
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            raise yaml.MarkedYAMLError(
                problem=f"the tag {_short_tag(tag)} is not allowed; write a plain value",
                problem_mark=mark,
            )
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise yaml.MarkedYAMLError(
                problem="it holds half a character, which no file can hold",
                problem_mark=node.start_mark,
            ) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} must be text", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands on line {seen[key]} already",
                    problem_mark=key_node.start_mark,
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes equal lists out instead of using aliases."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def read_document(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, unchecked.

    Raises:
        ConfigError: There is no such file, or it is no YAML mapping.
    """
    text = _text(path)
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from error
    except ValueError as error:  # a date or number that matches YAML's pattern but is none
        raise ConfigError(f"{path}: it holds a value that cannot be read: {error}.") from error
    if document is None:
        raise ConfigError(f"{path}: it is empty. It needs at least space, dataset and method.")
    if not isinstance(document, dict):
        kind = {"list": "a list", "str": "text"}.get(type(document).__name__, repr(document))
        raise ConfigError(f"{path}: it must be a mapping of settings, got {kind}.")
    return document


def _text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: it must be below {_MAX_BYTES} bytes to be an experiment.")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file.{_near_file(path)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: it is a folder; name a YAML file.") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(
            f"{path}: it is not UTF-8 text (byte 0x{byte:02x} at position {error.start})."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read: {error}.") from error


def _near_file(path: Path) -> str:
    folder = path.parent
    names = [item.name for item in folder.glob("*.y*ml")] if folder.is_dir() else []
    miss = near_miss(path.name, names)
    if miss:
        return miss
    return f" {folder} has {', '.join(sorted(names)[:5])}." if names else ""


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    context = getattr(error, "context", None)
    text = f"{problem} {context}" if context else problem
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{text.strip().rstrip('.')}."


def read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the mapping that "KEY=VALUE" words make, values read as YAML.

    Raises:
        ConfigError: A word that is not of that form.
    """
    document: dict[str, Any] = {}
    problems = Problems()
    for override in overrides:
        _override(document, override, problems)
    if problems:
        raise ConfigError("\n".join(message for _, message in problems.found))
    return document


def _override(document: dict[str, Any], override: str, problems: Problems) -> None:
    """Put "a.b=value" into the document; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        problems.add(key, f"--set must be KEY=VALUE, as search.epochs=5, got {override!r}.")
        return
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        reason = _yaml_problem(error) if isinstance(error, yaml.YAMLError) else "no YAML value."
        problems.add(key, f"{key} cannot be read: {reason}")
        return
    _set(document, key, value, problems)


def _set(document: dict[str, Any], key: str, value: Any, problems: Problems) -> None:
    """Put a value at the path `key` of the document."""
    parts = key.split(".")
    node: Any = document
    for depth, part in enumerate(parts[:-1]):
        inner = node.get(part)
        if inner is None:
            inner = node[part] = {}
        elif isinstance(inner, str):  # `method: darts` is short for `method: {name: darts}`
            inner = node[part] = {"name": inner}
        if not isinstance(inner, Mapping):
            at = ".".join(parts[: depth + 1])
            problems.add(key, f"{key} cannot be set: {at} is {inner!r}, not a mapping.")
            return
        node = inner
    node[parts[-1]] = value


def _report(path: Path, overrides: Sequence[str], problems: Problems) -> str:
    """Return one line a problem; what the command line has set is said to come from there."""
    lines = []
    for key, message in problems.found[:_MOST_LINES]:
        set_here = [o for o in overrides if _is_within(key, o.partition("=")[0])]
        where = f"{path} with --set {set_here[-1]}" if set_here else str(path)
        lines.append(f"{where}: {message}")
    more = len(problems.found) - _MOST_LINES
    return "\n".join([*lines, *([f"{path}: and {more} more like these."] if more > 0 else [])])


def _is_within(key: str, override: str) -> bool:
    return key == override or key.startswith((f"{override}.", f"{override}["))
