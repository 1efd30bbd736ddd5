"""Errors of trials."""

from __future__ import annotations

from spaces.core.errors import NasError


class DataError(NasError):
    """Data that is missing, damaged or unfit; the message names the file and what to do."""


class StateError(NasError):
    """A stored state that is damaged or belongs to another trial."""


class MethodError(NasError):
    """A method that is asked for something outside what it can do."""
