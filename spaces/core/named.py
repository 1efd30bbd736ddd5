"""Published genotypes that can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spaces.core.errors import SpaceError, near_miss
from spaces.core.genotype import Genotype
from spaces.core.text import parse


@dataclass(frozen=True)
class Named:
    """A published genotype: its text and where it was published."""

    text: str
    source: str


_DARTS_SOURCE = "Liu et al., DARTS, ICLR 2019; quark0/darts, cnn/genotypes.py"
_GENOTYPES: Mapping[str, Named] = {
    "DARTS_V1": Named(
        "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), "
        "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
        "('skip_connect', 2)], normal_concat=range(2, 6), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
        "('max_pool_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
        "('avg_pool_3x3', 0)], reduce_concat=range(2, 6))",
        f"{_DARTS_SOURCE} (first order)",
    ),
    "DARTS_V2": Named(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
        "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
        "('dil_conv_3x3', 2)], normal_concat=range(2, 6), "
        "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
        "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
        "('max_pool_3x3', 1)], reduce_concat=range(2, 6))",
        f"{_DARTS_SOURCE} (second order)",
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of the published genotypes."""
    return tuple(_GENOTYPES)


def named(name: str) -> Genotype:
    """Return a published genotype.

    Raises:
        SpaceError: There is none of that name.
    """
    return parse(_entry(name).text)


def source(name: str) -> str:
    """Return where a named genotype was published.

    Raises:
        SpaceError: There is none of that name.
    """
    return _entry(name).source


def _entry(name: str) -> Named:
    if name not in _GENOTYPES:
        raise SpaceError(
            f"There is no genotype named '{name}'; there is {', '.join(_GENOTYPES)}."
            f"{near_miss(name, _GENOTYPES)}"
        )
    return _GENOTYPES[name]
