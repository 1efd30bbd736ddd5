"""How a trial is asked for from Python: plug-ins and settings by name, by mapping or ready made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from spaces.core import plugins
from trainables.settings import DIAGNOSTICS, Diagnostics

Plugin = str | Mapping[str, Any] | tuple[str, Any]
"""A name, a mapping with `name` and any of the plug-in's settings, or a pair (name, Config)."""

Settings = TypeVar("Settings")


def choose_plugin(kind: str, given: Plugin) -> tuple[str, Any]:
    """Return the name and the checked settings of a plug-in.

    Raises:
        UnknownPluginError: No such plug-in.
        PluginSettingsError: A setting that it does not accept.
    """
    return given if isinstance(given, tuple) else plugins.make_config(kind, given)


def choose_settings(
    kind: type[Settings], given: Settings | Mapping[str, Any] | None, where: str
) -> Settings:
    """Return settings of a class, from a mapping of those that differ from the defaults.

    Args:
        kind: Dataclass of the settings.
        given: Ready made, a mapping, or None for the defaults.
        where: Name of the argument, for messages.

    Raises:
        PluginSettingsError: Unknown key, wrong type or a value out of range.
    """
    if isinstance(given, kind):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{where} must be {kind.__name__} or a mapping, got {given!r}.")
    settings: Settings = plugins.typed_config(kind, given or {}, where=where, owner=where)
    return settings


def choose_diagnostics(given: Diagnostics | Mapping[str, Any] | None) -> Diagnostics:
    """Return which diagnostics to run: `{"hessian": {"every": 5}}`.

    Raises:
        PluginSettingsError: Unknown key, wrong type or a value out of range.
    """
    if isinstance(given, Diagnostics):
        return given
    parts = {}
    for name, value in (given or {}).items():
        kind = DIAGNOSTICS.get(name)
        if kind is not None and value is not None:
            value = choose_settings(kind, value, f"diagnostics.{name}")
        parts[name] = value
    unknown = [name for name in parts if name not in DIAGNOSTICS]
    if unknown:
        plugins.typed_config(Diagnostics, parts, where="diagnostics", owner="diagnostics")
    return Diagnostics(**parts)
