"""Errors whose message is meant for the user: where, what must hold, what was got, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NasError(Exception):
    """Root of every error that a user can cause; the command line shows it without a traceback."""


class SpaceError(NasError):
    """A genotype, op weights or a space setting that does not fit its space."""


class UnknownPluginError(NasError):
    """No plug-in of that kind has that name."""


class PluginSettingsError(NasError):
    """Settings that a plug-in does not accept."""


class OracleError(NasError):
    """A benchmark table that is missing, damaged or unfit, or a cell that it does not have."""


def near_miss(got: str, valid: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `valid`, or an empty text."""
    close = difflib.get_close_matches(got, list(valid), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
