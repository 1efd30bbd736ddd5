"""The space of a genotype, from the genotype alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spaces.core import plugins

if TYPE_CHECKING:
    from spaces.core.genotype import Genotype


def space_settings(genotype: Genotype) -> dict[str, Any]:
    """Return settings of a space that a genotype is of, {"name": ..., ...}.

    They are the defaults of its space, unless that has a `settings_for(genotype)`.

    Raises:
        UnknownPluginError: There is no such space.
    """
    module = plugins.load("spaces", genotype.space)
    own = module.settings_for(genotype) if hasattr(module, "settings_for") else {}
    return {"name": genotype.space, **own}
