"""From a method's name and settings to its `Method`, with parts of other plug-ins put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from spaces.core import plugins
from spaces.core.errors import PluginSettingsError, SpaceError
from spaces.core.space import Space
from trainables.choices import Plugin, choose_plugin
from trainables.method import Method, SearchPoint
from trainables.selecting import Selection
from trainables.stages import space_of
from trainables.watching import EarlyStop

_JUMP = 1e30


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
    if given["early_stop"] is not None:
        method = replace(method, early_stop=_build("early_stops", given["early_stop"]))
    if getattr(config, "alpha_start", None) is not None:
        method = replace(method, alpha_start=config.alpha_start)
    if getattr(config, "genotype_of", None) is not None:
        method = replace(method, genotype_of=config.genotype_of)
    if getattr(config, "fixed_alphas", None):
        if method.alphas != "trained":
            raise PluginSettingsError(
                f"method.fixed_alphas has no effect: {name} does not train its alphas."
            )
        _check_fixed(name, method)
        method = replace(method, alphas="zero")
    _check_parts(name, method, config)
    stages = method.stages_of(epochs)
    shortest = min(stage.epochs for stage in stages)
    if shortest < 1:
        raise PluginSettingsError(
            f"method: {name} has {len(stages)} stages, and search.epochs is {epochs}: search "
            "longer."
        )
    start = method.first_alpha_epoch(shortest)
    if method.alphas == "trained" and start >= shortest:
        rest = f"its alphas rest for the first {start} epochs"
        if len(stages) > 1:
            rest += f" of each of its {len(stages)} stages, the shortest of {shortest}"
        raise PluginSettingsError(
            f"method: {name} would search nothing: {rest}, and search.epochs is {epochs}. "
            "Set method.alpha_start below it, or search longer."
        )
    if method.early_stop is not None and not _can_end(method.early_stop, start, epochs):
        raise PluginSettingsError(
            f"method.early_stop could never end this search: with search.epochs {epochs} it has "
            "too few measurements after the alphas begin to move. Search longer, or measure more "
            "often and over shorter windows."
        )
    return method


def _check_fixed(name: str, method: Method) -> None:
    """Refuse alphas at 0 where more than them would lose its effect."""
    plain = Method()
    lost = {
        "its penalty on the alphas": method.penalty is not None,
        "its alpha gradient": method.alpha_gradient is not plain.alpha_gradient,
        "its stages, which drop operations by the alphas": method.stages is not None,
        "the steps between two of the alphas": method.weight_steps != plain.weight_steps,
    }
    if without := next((what for what, has in lost.items() if has), None):
        raise PluginSettingsError(
            f"method.fixed_alphas would leave {name} without {without}: give it to a method that "
            "has none, such as darts."
        )


def _can_end(rule: EarlyStop, start: int, epochs: int) -> bool:
    """Return whether a rule ends a search in which a measurement jumps, wherever it may be."""
    due = [epoch for epoch in range(start, epochs) if rule.due(epoch, epochs)]
    for count in range(1, len(due) + 1):
        values = [(epoch, 1.0) for epoch in due[: count - 1]] + [(due[count - 1], _JUMP)]
        if rule.verdict(values, epochs)[1] is not None:
            return True
    return False


def check_space(space: Space, selection: Selection) -> None:
    """Refuse a rule that decides edges in a space that has none.

    Raises:
        SpaceError: The space has no edges.
    """
    if selection.of_edges and not space.has_edges:
        raise SpaceError(
            f"Space '{space.name}' has blocks with weighted inputs and no edges, and the selection "
            "decides edge by edge: take one that decides all at once, such as magnitude or "
            "operation_strength with progressive: off."
        )


def check_supernets(space: Space, method: Method, *, epochs: int) -> None:
    """Refuse a space whose supernets cannot be what the method needs, without their memory.

    Raises:
        SpaceError: Its channels, depth or cells do not allow them.
    """
    with torch.device("meta"):
        for stage in method.stages_of(epochs):
            deep = space_of(space, stage)
            deep.build_supernet(3, 10, seed=0, structure=method.structure)


def check_going_back(method: Method, weight_decay: float) -> None:
    """Refuse a rule that would go back with more weight decay where there is no more.

    Args:
        method: From `build_method`.
        weight_decay: Of the weights, as the search starts.

    Raises:
        PluginSettingsError: The first step would exceed the rule's limit, or change nothing.
    """
    rule = method.early_stop.go_back if method.early_stop is not None else None
    if rule is not None and rule.raised(weight_decay) is None:
        raise PluginSettingsError(
            f"method.early_stop could never take this search back: search.weight_decay is "
            f"{weight_decay:g}, and {rule.weight_decay_factor:g} times that must be more, and at "
            f"most max_weight_decay, {rule.max_weight_decay:g}."
        )


def _check_parts(name: str, method: Method, config: Any) -> None:
    """Refuse parts that would have no effect in this method, or another than they are meant to."""

    def given(*keys: str) -> str | None:
        return next((key for key in keys if getattr(config, key, None) is not None), None)

    if method.sampled is not None and method.perturb is not None:
        raise PluginSettingsError(
            f"method.perturb cannot be given: {name} runs one drawn operation on an edge, and a "
            "perturbation would take away which."
        )
    if not method.simplex and method.perturb is not None:
        raise PluginSettingsError(
            f"method.perturb cannot be given: rows of the op weights of {name} need not sum to "
            "one, and a perturbation would rescale them so that they do."
        )
    if not method.trains and (key := given("perturb")):
        raise PluginSettingsError(f"method.{key} has no effect: {name} has no training steps.")
    unused = given("alpha_gradient", "alpha_start", "early_stop")
    if method.alphas != "trained" and unused:
        raise PluginSettingsError(
            f"method.{unused} has no effect: the alphas of {name} are not trained here."
        )
    if method.alphas != "trained" and method.genotype_of == "best_epoch":
        raise PluginSettingsError(
            f"method.genotype_of best_epoch has no effect: the alphas of {name} are not trained "
            "here, and every epoch has the same genotype."
        )
    if method.early_stop is not None:
        against = None
        if method.stages is not None:
            against = f"the stages of {name}: it goes back to what another supernet had"
        elif method.genotype_of == "best_epoch":
            against = "genotype_of best_epoch: both say which epoch's genotype is the result"
            if method.early_stop.go_back is not None:
                against = "genotype_of best_epoch, which may be one that was taken back"
        if against:
            raise PluginSettingsError(f"method.early_stop cannot be combined with {against}.")


def build_selection(
    rule: Plugin, settings: Mapping[str, Any] | None = None, *, of_method: Method | None = None
) -> Selection:
    """Return the selection rule of a search.

    Args:
        rule: A plug-in of kind "selections".
        settings: Settings of the method, whose `select` goes first; None for a rule by itself.
        of_method: The method built from them, whose own rule stands for `magnitude`.

    Raises:
        PluginSettingsError: The rule chooses once, after the last epoch, and the method is asked
            for the genotype of the best one; or it can only choose by alphas that stay zero.
    """
    method = settings or {}
    name, config = choose_plugin("selections", method.get("select") or rule)
    selection: Selection = plugins.load("selections", name).build(config)
    if of_method is not None and name == "magnitude":
        selection = of_method.selection or selection
    if of_method is not None and of_method.alphas == "at_start" and name != "magnitude":
        raise PluginSettingsError(
            f"The selection {name} has nothing to choose by: this method's op weights are those of "
            "one random genotype. It chooses itself."
        )
    if of_method is not None and of_method.alphas == "zero" and selection.at_end is None:
        raise PluginSettingsError(
            f"method.fixed_alphas leaves the selection {name} nothing to choose by: the alphas "
            "stay 0. Give method.select a rule that looks at the supernet, such as perturbation."
        )
    watched = of_method.early_stop if of_method is not None and method.get("early_stop") else None
    if selection.at_end is not None and watched is not None and watched.go_back is None:
        raise PluginSettingsError(
            f"method.early_stop cannot be combined with the selection {name}, which looks at the "
            "supernet after the last epoch: the genotype of an ended search is of an earlier one."
        )
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
