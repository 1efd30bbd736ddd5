"""From a method's name and settings to its `Method`, with parts of other plug-ins put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError
from trainables.choices import Plugin, choose_plugin
from trainables.method import Method, SearchPoint
from trainables.selecting import Selection


def build_method(name: str, config: Any, *, epochs: int) -> Method:
    """Return a method with the parts that its settings take from elsewhere.

    Args:
        name: Name of the method plug-in.
        config: Its settings, from `plugins.make_config`.
        epochs: Epochs of the search.

    Raises:
        PluginSettingsError: The parts do not go together, or nothing would be searched.
    """
    method: Method = plugins.load("methods", name).build(config)
    given = {key: getattr(config, key, None) for key in plugins.SLOTS}
    if given["alpha_gradient"] is not None:
        method = replace(method, alpha_gradient=_build("alpha_gradients", given["alpha_gradient"]))
    if given["perturb"] is not None:
        other: Method = _build("methods", given["perturb"])
        log = partial(_log_both, first=method, second=other)
        method = replace(method, perturb=other.perturb, log=log)
    if getattr(config, "alpha_start", None) is not None:
        method = replace(method, alpha_start=config.alpha_start)
    if getattr(config, "genotype_of", None) is not None:
        method = replace(method, genotype_of=config.genotype_of)
    start = method.first_alpha_epoch(epochs)
    if start >= epochs:
        raise PluginSettingsError(
            f"method: {name} would search nothing: its alphas rest for the first {start} epochs, "
            f"and search.epochs is {epochs}. Set method.alpha_start below it, or search longer."
        )
    return method


def build_selection(rule: Plugin, method: Mapping[str, Any] | None = None) -> Selection:
    """Return the selection rule of a search.

    Args:
        rule: A plug-in of kind "selections".
        method: Settings of the method, whose `select` goes first; None for a rule by itself.

    Raises:
        PluginSettingsError: The rule chooses once, after the last epoch, and the method is asked
            for the genotype of the best one.
    """
    method = method or {}
    name, config = choose_plugin("selections", method.get("select") or rule)
    selection: Selection = plugins.load("selections", name).build(config)
    if selection.at_end is not None and method.get("genotype_of") == "best_epoch":
        raise PluginSettingsError(
            f"method.genotype_of best_epoch has no effect with the selection {name}, which chooses "
            "once, after the last epoch. Leave out one of them."
        )
    return selection


def _build(kind: str, settings: Mapping[str, Any]) -> Any:
    name, config = plugins.make_config(kind, settings, own=True)
    return plugins.load(kind, name).build(config)


def _log_both(at: SearchPoint, *, first: Method, second: Method) -> Mapping[str, float]:
    return {**first.log(at), **second.log(at)}
