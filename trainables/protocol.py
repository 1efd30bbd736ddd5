"""What a protocol fills in: settings of a retraining as they were published. No torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from spaces.core import plugins


def values_of(name: str, *, space: str, dataset: str) -> dict[str, Any]:
    """Return the settings of a retraining that a protocol sets, by name.

    Args:
        name: The protocol.
        space, dataset: Names of the plug-ins of the study, for sizes that depend on them.

    Raises:
        UnknownPluginError: There is no such protocol.
        ValueError: It has no sizes for that space on that dataset.
    """
    values = fixed_values_of(name)
    sizes = getattr(plugins.load("protocols", name), "sizes", None)
    return values if sizes is None else values | sizes(name, space=space, dataset=dataset)


def fixed_values_of(name: str) -> dict[str, Any]:
    """Return the settings that a protocol sets whatever the space and the dataset.

    Raises:
        UnknownPluginError: There is no such protocol.
    """
    return dataclasses.asdict(plugins.describe("protocols", name).config())


def sources_of(name: str) -> dict[str, str]:
    """Return where each value of a protocol is from, by setting.

    Raises:
        UnknownPluginError: There is no such protocol.
    """
    return dict(plugins.load("protocols", name).SOURCES)
