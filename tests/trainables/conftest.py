"""Fixtures for tests of whole searches."""

from __future__ import annotations

from tests.trainables.searches import tiny_plugins as tiny_plugins
