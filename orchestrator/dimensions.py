"""What is drawn in a block: one dimension per choice or range, some of them conditional."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.experiment import sweep_word
from orchestrator.labels import plugin_labels
from orchestrator.sweep_words import canonical

Kind = Literal["choice", "uniform", "loguniform", "randint"]
PLUGIN_KINDS = {"method": "methods", "space": "spaces"}


@dataclass(frozen=True)
class Dimension:
    """One thing that is drawn.

    Attributes:
        name: Its name in `Configuration.params`, unique in a block.
        path: The setting that it sets, as "search.weight_lr"; "method" chooses a whole method.
        kind: The sweep word.
        args: Values of a choice; [low, high] of a range, where randint excludes high.
        condition: (name, text): drawn only if the choice of that name took the value of that text.
    """

    name: str
    path: str
    kind: Kind
    args: tuple[Any, ...]
    condition: tuple[str, str] | None = None

    @property
    def texts(self) -> tuple[str | int | float | bool | None, ...]:
        """The values of a choice as `params` holds them: plain ones as they are, others as text."""
        if all(isinstance(value, str | int | float | bool | None) for value in self.args):
            return self.args
        if self.path not in PLUGIN_KINDS:
            return tuple(canonical(value) for value in self.args)
        parts = [without_words(value) for value in self.args]
        labels = plugin_labels(PLUGIN_KINDS[self.path], parts)
        return tuple(
            text if labels.count(text) == 1 else f"{text} ({index})"
            for index, text in enumerate(labels, start=1)
        )


def dimensions_of(
    node: Mapping[str, Any], part: str, name: str | None = None, condition: Any = None
) -> Iterable[Dimension]:
    """Yield what is drawn in `part`; `name` is the part's name inside a choice."""
    name = name or part
    if sweep_word(node) == "choice":
        choice = Dimension(name, part, "choice", tuple(node["choice"]), condition)
        yield choice
        names = [alternative["name"] for alternative in choice.args]
        for index, alternative in enumerate(choice.args):
            own = names[index]
            inner = f"{name}.{own if names.count(own) == 1 else f'{own}-{index + 1}'}"
            condition = (name, str(choice.texts[index]))
            yield from dimensions_of(alternative, part, inner, condition)
        return
    for key, value in node.items():
        word = sweep_word(value)
        if word is not None:
            args = tuple(value[word])
            yield Dimension(f"{name}.{key}", f"{part}.{key}", word, args, condition)  # type: ignore[arg-type]
        elif isinstance(value, Mapping):
            yield from dimensions_of(value, f"{part}.{key}", f"{name}.{key}", condition)


def holds(dimension: Dimension, params: Mapping[str, Any]) -> bool:
    """Return whether a dimension is drawn, given what has been drawn before it."""
    if dimension.condition is None:
        return True
    name, text = dimension.condition
    return name in params and str(params[name]) == text


def without_words(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of an experiment without what is swept; {} where all of it is."""
    if sweep_word(part) is not None:
        return {}
    return {
        key: without_words(value) if isinstance(value, Mapping) else value
        for key, value in part.items()
        if sweep_word(value) is None
    }
