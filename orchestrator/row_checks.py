"""What the inner values of a ledger row must be like, so that whoever reads it need not ask.

A row that a worker wrote has a checksum. One that has none, of an earlier version or written by
hand, is looked at by these rules before anything is counted, drawn or sent of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from spaces.core.errors import SpaceError
from spaces.core.genotype import Genotype

if TYPE_CHECKING:
    from orchestrator.ledger import Row

_MOST = 2**63  # what tables hold of a whole number
_LATEST = 1e11  # unix time in seconds, some 3000 years on
_LARGEST = 1e300
_SIZE = ("channels", "cells", "classes", "in_channels", "image_size")
_NAMED = ("method", "space", "dataset", "selection")
_SECTIONS = (*_NAMED, "search", "retrain", "diagnostics", "simulation")


def check(row: Row) -> None:
    """Refuse a row whose values are not of the kinds that readers take them for.

    Raises:
        ValueError: It says which.
    """
    for name in ("block", "seed", "epochs_done", "epochs_total"):
        _must(_is_count(getattr(row, name)), name, getattr(row, name))
    _must(_is_count_or_none(row.genotype_epoch), "genotype_epoch", row.genotype_epoch)
    for name in ("started", "ended"):
        _must(_is_time_or_none(getattr(row, name)), name, getattr(row, name))
    for entry in row.curve:
        _check_entry(entry)
    for name, value in row.cost.items():
        _must(value is None or _is_number(value), f"cost.{name}", value)
    _check_settings(row.settings)
    for name, value in row.params.items():
        _must(_is_setting(value), f"params.{name}", value)
    if row.stop is not None:
        _must(_is_count(row.stop.get("epoch", 0)), "stop.epoch", row.stop.get("epoch"))
        _must(isinstance(row.stop.get("reason", ""), str), "stop.reason", row.stop.get("reason"))
    _check_genotype(row.genotype, "genotype")
    _check_evaluation(row.evaluation, "evaluation")
    for name, result in row.selections.items():
        _check_selection(result, f"selections.{name}")
    for index, entry in enumerate(row.history):
        _check_change(entry, f"history[{index}]")
    if row.landscape is not None:
        _check_landscape(row.landscape)


def _must(good: bool, name: str, value: Any) -> None:
    if not good:
        raise ValueError(f"{name} has the wrong value: {value!r:.80}")


def _check_entry(entry: Mapping[str, Any]) -> None:
    """Refuse an epoch with a number that is none, or with half a genotype."""
    for name, value in entry.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            _must(_is_number(value), f"curve.{name}", value)
    _must(_is_count(entry.get("epoch", 1)), "curve.epoch", entry.get("epoch"))
    for name in ("epoch_time_s", "ended"):
        _must(entry.get(name) is None or _is_number(entry[name]), f"curve.{name}", entry.get(name))
    _must(_is_text_or_none(entry.get("genotype_hash")), "curve.genotype_hash", entry)
    kinds = (dict, int, type(None))  # a number is its place in the list of genotypes
    _must(isinstance(entry.get("genotype"), kinds), "curve.genotype", entry.get("genotype"))


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name in _SECTIONS:
        section = settings.get(name, {})
        short = name in _NAMED and isinstance(section, str)  # darts for {name: darts}
        _must(short or isinstance(section, dict), f"settings.{name}", section)
        if name in _NAMED and isinstance(section, dict):
            _must(isinstance(section.get("name", ""), str), f"settings.{name}.name", section)
    if "pbt" in settings:
        population = settings["pbt"]
        _must(isinstance(population, dict), "settings.pbt", population)
        for name in ("member", "population"):
            _must(_is_count(population.get(name)), f"settings.pbt.{name}", population.get(name))
        _must("retrain" in settings, "settings.retrain", None)
    for value in settings.values():
        _must(_is_setting(value), "settings", value)


def _check_genotype(form: Any, where: str) -> None:
    if form is None:
        return
    try:
        Genotype.from_json(form)
    except SpaceError as error:
        raise ValueError(f"{where} is none: {error!s:.200}") from error


def _check_evaluation(cost: Any, where: str) -> None:
    if cost is None:
        return
    _must(isinstance(cost, dict), where, cost)
    for name in ("params", "macs"):
        _must(_is_number(cost.get(name)), f"{where}.{name}", cost.get(name))
    for name in _SIZE:
        _must(_is_count(cost.get(name, 1)), f"{where}.{name}", cost.get(name))
    _must(isinstance(cost.get("stem", ""), str), f"{where}.stem", cost.get("stem"))


def _check_selection(result: Any, where: str) -> None:
    _must(isinstance(result, dict), where, result)
    for name in ("label", "genotype_hash"):
        _must(isinstance(result.get(name), str), f"{where}.{name}", result.get(name))
    _must(isinstance(result.get("genotype"), dict), f"{where}.genotype", result.get("genotype"))
    _check_genotype(result["genotype"], f"{where}.genotype")
    _check_evaluation(result.get("evaluation"), f"{where}.evaluation")


def _check_change(entry: Mapping[str, Any], where: str) -> None:
    _must(_is_count(entry.get("epoch")), f"{where}.epoch", entry.get("epoch"))
    settings, source = entry.get("settings"), entry.get("copied_from")
    _must(isinstance(settings, dict) and _is_setting(settings), f"{where}.settings", settings)
    _must(_is_count_or_none(source), f"{where}.copied_from", source)


def _check_landscape(form: Mapping[str, Any]) -> None:
    _must(all(_all_numbers(value) for value in form.values()), "landscape", form)


def _all_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_all_numbers, value))
    return value is None or isinstance(value, str) or _is_number(value)


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -_LARGEST < value < _LARGEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _or_none(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


_is_count_or_none = _or_none(_is_count)
_is_text_or_none = _or_none(lambda value: isinstance(value, str))
_is_time_or_none = _or_none(lambda value: _is_number(value) and 0 <= value < _LATEST)


def _is_setting(value: Any) -> bool:
    """Return whether a value is one of settings: text, numbers in range, and nestings of them."""
    if isinstance(value, dict):
        return _all_settings(value.values())
    if isinstance(value, list | tuple):
        return _all_settings(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return -_MOST <= value < _MOST if isinstance(value, int) else _is_number(value)
    return True


def _all_settings(values: Iterable[Any]) -> bool:
    return all(map(_is_setting, values))
