"""Errors of studies and their configuration."""

from __future__ import annotations

import errno

from spaces.core.errors import NasError

NO_ROOM = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}
"""Numbers of system errors that say that a disk takes nothing more."""


class ConfigError(NasError):
    """An experiment file or a command-line override that cannot be run."""


class StudyError(NasError):
    """A study folder that is missing, in use, damaged or of a newer format."""
