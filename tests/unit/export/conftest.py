"""Fixtures of the export's tests."""

from __future__ import annotations

from tests.stores import *  # noqa: F403
