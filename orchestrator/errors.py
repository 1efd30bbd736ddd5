"""Errors of studies and their configuration."""

from __future__ import annotations

from spaces.core.errors import NasError


class ConfigError(NasError):
    """An experiment file or a command-line override that cannot be run."""


class StudyError(NasError):
    """A study folder that is missing, in use, damaged or of a newer format."""
